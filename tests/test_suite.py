"""``worldmodel eval``: measures are calibrated, any model can be measured, and nothing is measured twice."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from distill import suite
from distill.scenes import RESERVED_SEED, render
from distill.suite_measures import SLACK, bootstrap, colour_drift, measure, same_poses, ssim
from worldmodel.actions import parse_script, to_array
from worldmodel.camera import integrate
from worldmodel.cli import main

SCRIPT = "right*8 left*16 right*16"
SIZE = (64, 64)


class Replay:
    """A model that shows the truth: it knows the first pictures of the reserved worlds."""

    size, chunk_frames, fps, fingerprint = SIZE, 4, 16, "replay"

    def __init__(self, name: str) -> None:
        self.places = {render(RESERVED_SEED + i, "w*1", size=SIZE).frames[0].tobytes(): RESERVED_SEED + i for i in range(1)}

    def start(self, image, prompt, seed):
        place, done = self.places[image.tobytes()], []

        def step(actions):
            done.extend(actions)
            return SimpleNamespace(frames=render(place, done, size=SIZE).frames[-len(actions) :])

        return SimpleNamespace(step=step, memory_bytes=7, memory_tokens=3)


def test_ssim_is_the_formula_at_a_pixel():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 255, (2, 11, 11, 1)).astype(np.uint8).repeat(3, -1)
    g = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    pad = [np.pad(v[..., 0].astype(float), 5, mode="symmetric") for v in (a, b)]
    w, values = np.outer(g, g) / g.sum() ** 2, []
    for i in range(11):
        for j in range(11):
            x, y = (p[i : i + 11, j : j + 11] for p in pad)
            mx, my = (w * x).sum(), (w * y).sum()
            vx, vy, cov = (w * (x - mx) ** 2).sum(), (w * (y - my) ** 2).sum(), (w * (x - mx) * (y - my)).sum()
            values.append((2 * mx * my + 6.5025) * (2 * cov + 58.5225) / ((mx**2 + my**2 + 6.5025) * (vx + vy + 58.5225)))
    assert ssim(a, b) == pytest.approx(np.mean(values), abs=1e-6) and ssim(a, a) == pytest.approx(1)


def test_measures_tell_truth_from_wrong_frozen_and_shuffled(monkeypatch):
    clip = render(RESERVED_SEED, "right*16 left*16 right*16", size=(96, 96))
    got = {name: measure(suite.control(name, clip), clip) for name in suite.CALIBRATION}
    blurred, truth = got.pop("blurred"), got.pop("truth")
    error = {n: np.nanmedian(np.array(r["turns"], dtype=float)) for n, r in got.items() if any(e is not None for e in r["turns"])}
    assert np.nanmedian(np.array(truth["turns"], dtype=float)) < 2 and min(truth["psnr"]) > 60
    assert truth["revisit"]["2"][0] > 45 and truth["revisit"]["2"][1] > 0.99 and np.abs(truth["drift"]).max() == 0
    assert error["still picture"] == pytest.approx(20, abs=0.5) and error["opposite actions"] > 36
    for name, record in got.items():
        assert max(record["psnr"]) < 25, name
        assert record["revisit"]["2"][2] < 25 and record["revisit"]["2"][3] < 0.8, name
    assert got["shuffled"]["revisit"]["2"][0] < 25
    assert 20 < min(blurred["psnr"]) < 40 and blurred["revisit"]["2"][0] > 45


def test_drift_is_the_brightening_that_was_added():
    truth = np.full((49, 8, 8, 3), 100, dtype=np.uint8)
    video = truth.copy()
    video[33:] += 30
    drift = colour_drift(video, truth)
    np.testing.assert_allclose(drift[:2], 0, atol=1e-9)
    np.testing.assert_allclose(drift[2], [30, 0, 0, 0, 0, 0], atol=0.01)


def test_bootstrap_is_over_scenes():
    rng = np.random.default_rng(1)
    values = rng.normal(5, 2, 40)
    mean, low, high = bootstrap({i: [v, v, v] for i, v in enumerate(values)})
    error = values.std() / 40**0.5
    assert mean == pytest.approx(values.mean(), abs=1e-3)
    assert (low, high) == (pytest.approx(mean - 1.96 * error, abs=0.15 * error), pytest.approx(mean + 1.96 * error, abs=0.15 * error))
    assert bootstrap({3: [1.0, 3.0]}) == [2.0, None, None]


def test_an_adapter_is_measured_and_goes_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(suite.SUITES, "quick", (SCRIPT,))
    monkeypatch.setitem(sys.modules, "my_adapter", SimpleNamespace(load=Replay))
    command = ["eval", "--adapter", "my_adapter:load", "--model", "x", "--walks", "1", "--out", str(tmp_path)]
    command += ["--vbench", str(tmp_path / "v")]
    assert main(command) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    lines = results["lines"]
    assert lines["model"]["psnr"] == lines["truth"]["psnr"] and lines["model"]["revisit"] == lines["truth"]["revisit"]
    assert lines["model"]["costs"][0][2:] == [7, 3]
    assert all((tmp_path / f).stat().st_size for f in ("table.md", "plots.png", "sheet.png"))
    assert lines["model"]["follow"] == lines["truth"]["follow"] != lines["still picture"]["follow"]
    shown = capsys.readouterr().out
    tables = ("revisit after 2 s", "PSNR to truth of what was", "back in view after 2 s", "Fréchet", "| action following |", "| pan left |")
    assert all(t in shown for t in tables)
    (name, prompt), = json.loads((tmp_path / "v" / "prompts.json").read_text()).items()
    assert name.endswith("-0.mp4") and prompt == render(RESERVED_SEED, "w*1", size=SIZE).caption and (tmp_path / "v" / name).stat().st_size
    assert prompt.startswith(name[:20])
    monkeypatch.setattr(suite, "measure", None)  # nothing may be measured again
    with (tmp_path / "walks.jsonl").open("a") as file:
        file.write('{"key": "cut o')
    assert main(command) == 0 and json.loads((tmp_path / "results.json").read_text()) == results


def test_full_and_long_suites_come_back_after_every_gap():
    """Where no wall is met: pairs of frames at one pose, and the length in seconds."""
    for name, gaps, length in (("full", (2, 5, 10, 20), 20), ("long", (2, 5, 10, 20, 60), 300)):
        counts = dict.fromkeys(gaps, 0)
        for script in suite.SUITES[name]:
            actions = to_array(parse_script(script))
            assert len(actions) >= 16 * length
            poses = integrate(np.concatenate([0 * actions[:1], actions]), np.eye(4), 0.18)
            for gap in gaps:
                counts[gap] += len(same_poses(poses, 16 * gap, 0.18, SLACK))
        assert min(counts.values()) >= 10, counts


def test_same_poses_are_found_one_by_one():
    angles = 1.25 * np.concatenate([np.arange(0, 40), np.arange(38, -20, -1)])
    turn = Rotation.from_euler("y", angles[:, None], degrees=True).as_matrix()
    poses = np.tile(np.eye(4), (len(turn), 1, 1))
    poses[:, :3, :3] = turn
    poses[70, 0, 3] = 0.1
    assert same_poses(poses, 32, 1.0) == [(23, 55)] and same_poses(poses, 32, 1.0, 4) == [(21, 57), (22, 56), (23, 55), (24, 54), (25, 53)]
    assert same_poses(poses, 62, 1.0) == []  # frame 70 is elsewhere


def test_mistakes_get_one_clear_sentence(monkeypatch, tmp_path, capsys):
    for adapter, says in (("nowhere", "module:function"), ("nowhere:x", "cannot be imported")):
        assert main(["eval", "--adapter", adapter, "--out", str(tmp_path)]) == 2
        assert says in capsys.readouterr().err
    monkeypatch.setattr(suite.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(suite.SuiteError, match="needs panda3d"):
        suite.check_installed()
