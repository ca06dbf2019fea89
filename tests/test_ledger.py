"""The ledger: lines that do not fit are refused, none is lost or added twice, ancestors count once, and the page is that of the data."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from distilling import relic_recipe, synthetic_walks
from PIL import Image
from small import small_model

from distill import ledger
from distill.ledger import LEDGER, PAGE, LedgerError, append, cumulative, line_of, main, read, slices_of
from distill.ledger_page import change, markdown, measured, nearest, write_page
from distill.train import train_models
from distill.trainer import Deadline
from distill.work import weights_digest
from worldmodel.transformer import CausalWorldTransformer


def line(run, start=(), flops=100, **more):
    whole = {
        "run": run, "day": "2026-01-02", "recipe": "tiny", "digest": "0" * 12, "from": list(start), "weights": f"w-{run}", "hardware": "a",
        "steps": 3, "minutes": 0.5, "sequences": 6, "latent_frames": 12, "flops": flops, "counted": "while it trained", "gemm": 10.0,
        "quality": [], "curve": [], "sheet": None, "go on": "do", "why": {"sheet": "none was kept"},
    }  # fmt: skip
    return whole | more


def quality(psnr, measure="one", scenes=None):
    figures = {"still picture": 14.0, "in the start picture": [psnr, psnr - 1, psnr + 1]}
    return {"measure": measure, "psnr": psnr, "figures": figures, "scenes": scenes or {}, "source": "there"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"flop": 1}, "no key 'flop', did you mean 'flops'"),
        ({"flops": None}, "why 'flops' is null"),
        ({"why": {}}, "why 'sheet' is null"),
        ({"why": {"sheet": "x", "flops": "x"}}, "why 'flops' is null"),
        ({"why": {"sheet": "x", "from": "x"}}, "why 'from' is null"),
        ({"why": {"sheet": "x", "colour": "x"}}, "speaks of 'colour'"),
        ({"from": None}, "'from' is not optional"),
        ({"steps": "3"}, "'steps' is int"),
        ({"flops": True}, "'flops' is int"),
        ({"quality": [quality(1.0) | {"ssim": 1}]}, "no key 'ssim'"),
    ],
)
def test_a_line_that_does_not_fit_is_refused(tmp_path, changed, message):
    path = tmp_path / "ledger.jsonl"
    append(path, line("a"))
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=message):
        append(path, line("b", **changed))
    missing = line("c")
    del missing["gemm"]
    with pytest.raises(LedgerError, match="'gemm' is missing"):
        append(path, missing)
    assert path.read_bytes() == before


def test_a_run_is_not_added_twice(tmp_path):
    path = tmp_path / "ledger.jsonl"
    append(path, line("a"))
    for again in (line("a", weights="other"), line("b", weights="w-a")):
        with pytest.raises(LedgerError, match="already"):
            append(path, again)
    for name in ("c", "d"):  # weights that are not kept are no one's
        append(path, line(name, weights=None, why={"sheet": "none", "weights": "not kept"}))
    assert [x["run"] for x in read(path)] == ["a", "c", "d"]


def test_an_append_is_whole_or_not_at_all_and_none_is_lost(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    append(path, line("a"))
    before, real = path.read_bytes(), os.replace

    def broken(*_):
        raise OSError("no more")

    monkeypatch.setattr(ledger.os, "replace", broken)
    with pytest.raises(OSError, match="no more"):
        append(path, line("b"))
    assert path.read_bytes() == before
    monkeypatch.setattr(ledger.os, "replace", real)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: append(path, line(f"run {i}")), range(24)))
    assert {x["run"] for x in read(path)} == {"a", *(f"run {i}" for i in range(24))}


def test_ancestors_count_once():
    lines = [line("root", flops=1), line("left", ["root"], 10), line("right", ["w-root"], 100), line("end", ["left", "w-right"], 1000)]
    assert [cumulative(lines, x["run"]) for x in lines] == [1, 11, 101, 1111]
    assert cumulative(lines, "end", "minutes") == 2.0
    lines.append(line("stray", ["nobody"]))
    assert cumulative(lines, "stray") is None
    unknown = [*lines, line("vague", ["root"], flops=None, why={"flops": "no log", "sheet": "none"}), line("after", ["vague"])]
    assert cumulative(unknown, "after") is None


def test_measures_are_not_mixed(tmp_path):
    scenes = {str(k): 20.0 + k for k in range(4)}
    better = {k: v + (1.0 if int(k) % 2 else 2.0) for k, v in scenes.items()}
    lines = [
        line("a", quality=[quality(21.5, "one", scenes), quality(17.0, "two")]),
        line("b", ["a"], flops=300, quality=[quality(99.0, "three")]),
        line("c", ["b"], flops=400, quality=[quality(23.0, "one", better), quality(18.25, "two")]),
    ]
    assert {m: [x["run"] for x, _ in rows] for m, rows in measured(lines).items()} == {"one": ["a", "c"], "two": ["a", "c"], "three": ["b"]}
    assert nearest(lines, "c", "one")["run"] == "a" and nearest(lines, "b", "three") is None and nearest(lines, "b", "one")["run"] == "a"
    assert change(lines[2]["quality"][0], nearest(lines, "c", "one")).startswith("+1.50 [+1.0")
    assert change(lines[2]["quality"][1], nearest(lines, "c", "two")) == "+1.25 (a)"
    page, picture = tmp_path / "docs" / "ledger.md", tmp_path / "docs" / "weights" / "ledger.png"
    picture.parent.mkdir(parents=True)
    picture.with_name("ledger-notes.md").write_text("## My notes\n")
    write_page(lines, page, picture)
    text = page.read_text()
    assert text.count("## Quality:") == 3 and "## My notes" in text and "(weights/ledger.png)" in text
    one = next(row for row in text.splitlines() if row.startswith("| c |"))
    assert "8.00" in one and "**23.00**" in one  # 800 FLOPs behind it, 100 behind its ancestor
    narrow = Image.open(picture).size[0]
    more = [line(f"d{k}", ["c"], flops=100, quality=[quality(24.0 + k, "one", better)]) for k in range(2)]
    curves = [line("e", ["c"], flops=100, curve=[[50, 20.0], [100, 21.0]])]
    write_page(lines + more + curves, page, picture)
    assert Image.open(picture).size[0] == 2 * narrow  # a panel for the measure of four models, one for curves


def run_of(folder):
    """A run of all of RELIC's stages, two steps or three each."""
    recipe = relic_recipe()
    walks, model = synthetic_walks(), small_model()
    init = model.transformer.state_dict()
    assert train_models(recipe, folder, walks, walks, model.autoencoder, Deadline(5), torch.device("cpu"), init)
    return recipe, weights_digest(init)


def test_a_run_becomes_a_line(tmp_path, capsys):
    run = tmp_path / "run"
    recipe, start = run_of(run)
    path = tmp_path / "ledger.jsonl"
    kept = CausalWorldTransformer.from_pretrained(run / "self_forcing" / "model")
    weights = weights_digest(kept.state_dict())
    results = {
        "identity": f"small-{weights}-1234-2", "suite": "quick", "walks": 1, "scenes": {"1000000": 18.0},
        "lines": {
            "model": {"psnr": [[19.0, None, None], [17.0, None, None]], "action error": [2.0, None, None], "seen": {}},
            "still picture": {"psnr": [[14.0, None, None], [12.0, None, None]]},
        },
    }  # fmt: skip
    good, other = tmp_path / "results.json", tmp_path / "other.json"
    good.write_text(json.dumps(results))
    other.write_text(json.dumps(results | {"identity": f"small-{start}-1234-2"}))
    with pytest.raises(SystemExit):
        main(["--ledger", str(path), "add", str(run), "--eval", str(other)])
    assert "these weights are" in capsys.readouterr().err and not path.exists()
    assert main(["--ledger", str(path), "add", str(run), "--eval", str(good), "--sheet", "docs/sheet.png"]) == 0
    (got,) = read(path)
    stages = slices_of(run)
    assert list(stages) == ["teacher", "student_init", "self_forcing"] and len(stages["student_init"]) == 3  # one slice, two shards
    assert got["flops"] == sum(s["flops"] for account in stages.values() for s in account)
    assert (got["steps"], got["sequences"], got["latent_frames"]) == (7, 2 * 2 + 2 * 2 + 3 * 2 + 3, got["latent_frames"])
    assert (got["recipe"], got["digest"], got["from"], got["weights"]) == ("whole", recipe.digest, [start], weights)
    assert got["quality"][0]["psnr"] == 18.0 and got["quality"][0]["figures"]["still picture"] == 13.0
    assert [f for f, _ in got["curve"]] == sorted(f for f, _ in got["curve"]) and got["curve"][-1][0] == got["flops"]
    assert str(run) in got["go on"] and "--from" in got["go on"]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["--ledger", str(path), "add", str(run)])
    assert "already" in capsys.readouterr().err and len(read(path)) == 1
    # an export of other weights is not where these are kept, and steps without an account are not passed over
    small_model().save_pretrained(tmp_path / "export")
    with pytest.raises(LedgerError, match="no export of them"):
        line_of(run, "x", tmp_path / "export", [], None, None, None)
    state = run / "teacher" / "checkpoint" / "state.json"
    state.write_text(json.dumps({k: v for k, v in json.loads(state.read_text()).items() if k != "work"}))
    with pytest.raises(LedgerError, match="2 have no account"):
        slices_of(run)
    with pytest.raises(LedgerError, match="no run of distill.train"):
        slices_of(tmp_path)


def test_the_repositorys_ledger_and_its_page_belong_together():
    lines = read(LEDGER)
    counted = json.loads((LEDGER.parent / "flops.json").read_text())
    assert {x["run"]: x["flops"] for x in lines if x["run"] in counted} == {k: v["flops"] for k, v in counted.items()}
    for figures in counted.values():
        assert figures["flops"] == sum(times * flops for times, flops in figures["steps"].values())
    assert all((PAGE.parents[1] / x["sheet"]).exists() for x in lines if x["sheet"])
    notes = LEDGER.with_name("ledger-notes.md").read_text()
    assert PAGE.read_text() == markdown(lines, "weights/ledger.jsonl", "weights/ledger.png", "..", notes)
