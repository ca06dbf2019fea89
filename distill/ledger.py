"""The ledger: one line for every run that produced a kept checkpoint, what it cost and what it measures.

    python -m distill.ledger add RUN --model FOLDER --eval RESULTS/results.json     # append a line
    python -m distill.ledger                                                        # write docs/ledger.md and its plot

A line of ``docs/weights/ledger.jsonl`` has the keys of `KEYS`, all of them. What is not known is null and has a word in `why`. The cost of
weights is that of their run and of all its ancestors, found by `from`, each once.
"""

from __future__ import annotations

import argparse
import difflib
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distill.checks import read_header

REPO = Path(__file__).parents[1]
LEDGER = REPO / "docs" / "weights" / "ledger.jsonl"
PAGE = REPO / "docs" / "ledger.md"
KEYS = {
    "run": str,  # a name of its own
    "day": str,  # of its last slice, YYYY-MM-DD
    "recipe": str,
    "digest": str,  # of the recipe with all that was set (`Recipe.digest`)
    "from": list,  # what it started from: runs by name, or weights by their digest; none: from random weights
    "weights": str,  # digest of the weights that came out (`work.weights_digest`), as in the name that `worldmodel eval` gives a model
    "hardware": str,
    "steps": int,
    "minutes": float,  # of training steps alone, or what the log says
    "sequences": int,  # drawn, not different ones; pictures count here
    "latent_frames": int,
    "flops": int,
    "counted": str,  # how the FLOPs were found
    "gemm": float,  # FLOP/s of a product of float32 matrices on that machine, the peak to compare with
    "quality": list,  # see `QUALITY`
    "curve": list,  # [FLOPs of this run so far, PSNR] on held-out walks of its data, while it trained
    "sheet": str,  # a picture, by its path in the repository
    "go on": str,  # the command
    "why": dict,  # key: why its value is null
}
QUALITY = {"measure": str, "psnr": float, "figures": dict, "scenes": dict, "source": str}
"""One measure of one model: two of the same `measure` compare. `scenes` has PSNR by scene where it is known."""
OPTIONAL = tuple(key for key in KEYS if key not in ("run", "day", "from", "quality", "curve", "why"))
TRAINED = ("autoencoder", "depth", "causal", "teacher", "student_init", "self_forcing")
PLAYABLE = ("self_forcing", "student_init", "causal")  # stages whose model plays, the last first


class LedgerError(ValueError):
    """A line or a run that does not fit; one sentence."""


# -- lines ------------------------------------------------------------------------------------------------------------------
def _check_keys(given: dict, known: dict, what: str) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise LedgerError(f"{what}: there is no key {key!r}" + (f", did you mean {near[0]!r}?" if near else "."))
    if missing := [k for k in known if k not in given]:
        raise LedgerError(f"{what}: {missing[0]!r} is missing.")
    for key, kind in known.items():
        value = given[key]
        kinds = (int, float) if kind is float else (kind,)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise LedgerError(f"{what}: {key!r} is {kind.__name__}, got {value!r}.")


def check(line: dict[str, Any]) -> None:
    """Raise LedgerError unless it is a line of the ledger."""
    name = str(line.get("run"))
    _check_keys(line, KEYS, name)
    for key in KEYS:
        if line[key] is None and key not in OPTIONAL:
            raise LedgerError(f"{name}: {key!r} is not optional.")
        if (line[key] is None) != (key in line["why"]):
            raise LedgerError(f"{name}: 'why' says why {key!r} is null, and only that of keys that are.")
    if unknown := [k for k in line["why"] if k not in KEYS]:
        raise LedgerError(f"{name}: 'why' speaks of {unknown[0]!r}.")
    for figure in line["quality"]:
        _check_keys(figure, QUALITY, f"{name}, quality")


def read(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []
    for line in lines:
        check(line)
    return lines


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other process is in here for the same folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line: the file is replaced as a whole, so it never holds half of one, and two processes that add do not lose any.

    LedgerError if it does not fit, or its run or its weights are there already.
    """
    check(line)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        for there in read(path):
            if there["run"] == line["run"]:
                raise LedgerError(f"The run {line['run']!r} is in {path} already.")
            if line["weights"] and there["weights"] == line["weights"]:
                raise LedgerError(f"The weights {line['weights']} are in {path} already, of the run {there['run']!r}.")
        part = path.with_name(path.name + ".part")
        part.write_text((path.read_text() if path.exists() else "") + json.dumps(line) + "\n")
        os.replace(part, path)


def ancestors(lines: list[dict[str, Any]], run: str) -> list[dict[str, Any]] | None:
    """The run's line and those of all that it came from, each once; None if one of them is not in the ledger."""
    by_name = {x["run"]: x for x in lines} | {x["weights"]: x for x in lines if x["weights"]}
    found: dict[str, dict[str, Any]] = {}
    todo = [run]
    while todo:
        line = by_name.get(todo.pop())
        if line is None:
            return None
        if line["run"] not in found:
            found[line["run"]] = line
            todo += line["from"]
    return list(found.values())


def cumulative(lines: list[dict[str, Any]], run: str, key: str = "flops") -> float | None:
    """FLOPs (or minutes, ...) behind the weights of a run: its own and its ancestors'; None if those of one are not known."""
    chain = ancestors(lines, run)
    values = None if chain is None else [x[key] for x in chain]
    return None if values is None or None in values else sum(values)


# -- a run ------------------------------------------------------------------------------------------------------------------
def slices_of(run: Path) -> dict[str, list[dict[str, Any]]]:
    """The account of each trained stage of a run (`distill.work`), trajectories with the stage that they are for."""
    found = {}
    for stage in TRAINED:
        state = run / stage / "checkpoint" / "state.json"
        if not state.exists():
            continue
        meta = json.loads(state.read_text())
        slices = meta.get("work", [])
        at = 0
        for one in slices:
            if one["steps"][0] != at:
                break
            at = one["steps"][1]
        if at != meta["step"]:
            raise LedgerError(f"{run / stage}: of {meta['step']} steps {meta['step'] - at} have no account, they are older than it.")
        shards = sorted((run / stage / "trajectories").glob("trajectories-*.safetensors"))
        found[stage] = slices + [json.loads(read_header(path)[1]["work"]) | {"steps": [0, 0]} for path in shards]
    if not found:
        raise LedgerError(f"{run} is no run of distill.train: none of its stages has a checkpoint.")
    return found


def quality_of(path: Path, weights: str) -> dict[str, Any]:
    """What a results.json of ``worldmodel eval`` says of these weights."""
    results = json.loads(path.read_text())
    if weights not in results["identity"]:
        raise LedgerError(f"{path} measures {results['identity']}, these weights are {weights}.")
    line, still = results["lines"]["model"], results["lines"]["still picture"]
    seconds = min(len(s) for s in (line["psnr"], still["psnr"]))
    figures = {f"PSNR, second {s}": line["psnr"][s - 1] for s in (1, 3, 5) if s <= seconds}
    figures |= {"action error": line["action error"]}
    figures |= {name: line["seen"][key]["psnr"] for key, name in (("given", "in the start picture"), ("invented", "not in it"))
                if key in line["seen"]}  # fmt: skip
    figures["still picture"] = round(sum(v[0] for v in still["psnr"][:5]) / len(still["psnr"][:5]), 3)
    if "ceiling" in line:
        figures["autoencoder"] = round(sum(v[0] for v in line["ceiling"][:5]) / len(line["ceiling"][:5]), 3)
    scenes = results["scenes"]
    size = "" if "size" not in results else f", {results['size'][0]}x{results['size'][1]}"  # results from before it was told: 128x128
    return {
        "measure": f"suite {results['suite']}, {results['walks']} unseen worlds{size}",
        "psnr": round(sum(scenes.values()) / len(scenes), 3),
        "figures": figures, "scenes": scenes,
        "source": f"worldmodel eval --suite {results['suite']} --walks {results['walks']}: {results['identity']}",
    }  # fmt: skip


def line_of(
    run: Path, name: str, model: Path | None, results: list[Path], sheet: str | None, start: list[str] | None, recipe: str | None
) -> dict[str, Any]:  # fmt: skip
    """The ledger's line of a run of `distill.train`."""
    from distill.work import weights_digest
    from worldmodel.transformer import CausalWorldTransformer

    by_stage = slices_of(run)
    slices = [s for stage in by_stage.values() for s in stage]
    stage = next((s for s in PLAYABLE if (run / s / "model").is_dir()), None)
    if stage is None:
        raise LedgerError(f"{run} has kept no model that plays.")
    weights = weights_digest(CausalWorldTransformer.from_pretrained(run / stage / "model").state_dict())
    if model is not None:
        kept = weights_digest(CausalWorldTransformer.from_pretrained(model / "transformer").state_dict())
        if kept != weights:
            raise LedgerError(f"{model} has the weights {kept}, the stage {stage} of {run} {weights}: it is no export of them.")
    recipe = recipe or slices[-1]["recipe"]
    seconds = sum(s["seconds"] for s in slices)
    export = "" if model else f"python -m distill.export {run} --recipe {recipe} --out {run}/model && "
    curve, before = [], 0
    for each, account in by_stage.items():
        path = run / each / "slices.jsonl"
        rows = [json.loads(row) for row in path.read_text().splitlines()] if path.exists() else []
        if each in PLAYABLE:
            curve += [[before + r["flops"], r["true"]] for r in rows if "flops" in r and "true" in r]
        before += sum(s["flops"] for s in account)
    machines = dict.fromkeys(
        f"{s['hardware']['device']}, {s['hardware']['threads']} threads"
        + (f", {s['hardware']['processes']} processes" if s["hardware"]["processes"] > 1 else "") + f", torch {s['hardware']['torch']}"
        for s in slices
    )  # fmt: skip
    return {
        "run": name, "day": datetime.now(UTC).strftime("%Y-%m-%d"), "recipe": recipe, "digest": slices[-1]["digest"],
        "from": start if start is not None else list(dict.fromkeys(s["from"] for s in slices if "from" in s)), "weights": weights,
        "hardware": "; ".join(machines), "steps": sum(s["steps"][1] - s["steps"][0] for s in slices), "minutes": round(seconds / 60, 2),
        "sequences": sum(s["sequences"] for s in slices), "latent_frames": sum(s["latent_frames"] for s in slices),
        "flops": sum(s["flops"] for s in slices), "counted": "while it trained",
        "gemm": sum(s["seconds"] * s["hardware"]["gemm"] for s in slices) / seconds,
        "quality": [quality_of(path, weights) for path in results], "curve": curve, "sheet": sheet,
        "go on": f"{export}python -m distill.train {recipe} --out {run}-on --from {model or run / 'model'}",
        "why": {} if sheet else {"sheet": "none was kept"},
    }  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.ledger", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ledger", type=Path, default=LEDGER)
    commands = parser.add_subparsers(dest="command")
    add = commands.add_parser("add", help="append the line of a run")
    add.add_argument("run", type=Path, help="folder of a run of distill.train")
    add.add_argument("--name", help="of the run in the ledger (default: the folder's)")
    add.add_argument("--recipe", help="name or path of its recipe, for the command that goes on (default: the recipe's own name)")
    add.add_argument("--model", type=Path, help="where its weights are kept: what distill.export wrote")
    add.add_argument("--eval", type=Path, nargs="*", default=[], metavar="JSON", help="results.json of worldmodel eval of these weights")
    add.add_argument("--sheet", help="a picture of what they make, by its path in the repository")
    add.add_argument("--from", dest="start", nargs="*", help="runs in the ledger that it came from, where the run itself does not tell")
    write = commands.add_parser("write", help="write the page and the plot (what happens without a command)")
    for each in (parser, write):
        each.add_argument("--page", type=Path, default=PAGE)
    args = parser.parse_args(argv)
    try:
        if args.command == "add":
            line = line_of(args.run, args.name or args.run.resolve().name, args.model, args.eval, args.sheet, args.start, args.recipe)
            append(args.ledger, line)
            print(json.dumps(line, indent=1))
        else:
            from distill.ledger_page import write_page

            write_page(read(args.ledger), args.page, args.ledger.with_suffix(".png"))
    except (LedgerError, OSError, KeyError) as error:
        parser.exit(2, f"{error}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
