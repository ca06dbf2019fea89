"""Comparing checkpoints: what is measured is what happened, and nothing is measured twice."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from small import small_model

from distill import compare
from distill.dataset import Clip
from distill.evaluate import roll_out
from distill.measures import gradient_energy, measure, moments, summary, window
from distill.motion import angle_deg, rotation_errors, seen_rotation
from distill.scenes import FPS, GALLERY_SEEDS, RESERVED_SEED, RESERVED_START, family_of, render
from worldmodel.actions import Action, parse_script, to_array
from worldmodel.camera import intrinsics_from_fov
from worldmodel.memory import MemoryConfig

SIZE = (96, 128)
SIGNS = {"up": (1, 1), "down": (1, -1), "right": (0, 1), "left": (0, -1), "o": (2, 1), "u": (2, -1)}


def turned(script: list[tuple[str, int]], speed: float = 1.0) -> np.ndarray:
    """uint8 [T, H, W, 3]: a camera that only turns before a painted wall, by SciPy's rotations and a homography a frame."""
    rng = np.random.default_rng(3)
    wall = np.full((900, 900, 3), 90, dtype=np.uint8)
    for x, y, w, h in rng.integers((0, 0, 8, 8), (900, 900, 60, 60), (700, 4)):
        cv2.rectangle(wall, (int(x), int(y)), (int(x + w), int(y + h)), tuple(map(int, rng.integers(0, 255, 3))), -1)
    height, width = SIZE
    fx, fy, cx, cy = intrinsics_from_fov(70, SIZE) * (width, height, width, height)
    k = np.array([[fx, 0, cx - 0.5], [0, fy, cy - 0.5], [0, 0, 1]])
    of_wall = np.array([[fx, 0, 450], [0, fy, 450], [0, 0, 1]])
    pose, poses = Rotation.identity(), [Rotation.identity()]
    for key, count in script:
        angles = np.zeros(3)
        angles[SIGNS[key][0]] = SIGNS[key][1] * speed * 1.25
        for _ in range(count):
            pose = pose * Rotation.from_euler("YXZ", angles, degrees=True)
            poses.append(pose)
    return np.stack([cv2.warpPerspective(wall, k @ p.inv().as_matrix() @ np.linalg.inv(of_wall), (width, height)) for p in poses])


TURNS = [("left", 12), ("up", 8), ("o", 8), ("right", 16), ("down", 12), ("u", 8)]
ACTIONS = to_array([Action.idle(), *parse_script(" ".join(f"{k}*{n}" for k, n in TURNS))])


def errors_of(frames: np.ndarray) -> np.ndarray:
    return rotation_errors(frames, ACTIONS, intrinsics_from_fov(70, SIZE), FPS)[1]


def test_action_error_is_calibrated_on_turns():
    """0 for the truth, the commanded 20 degrees a second for a still picture, twice that for reversed keys."""
    truth = turned(TURNS)
    ends, errors = rotation_errors(truth, ACTIONS, intrinsics_from_fov(70, SIZE), FPS)
    assert ends.tolist() == list(range(4, len(truth), 4))
    assert np.nanmedian(errors) < 0.5 and np.nanmax(errors) < 1.5 and np.isfinite(errors).all()
    np.testing.assert_allclose(errors_of(np.broadcast_to(truth[:1], truth.shape)), 20, atol=0.01)
    np.testing.assert_allclose(errors_of(turned(TURNS, speed=-1)), 40, atol=1.5)
    np.testing.assert_allclose(errors_of(turned(TURNS, speed=1.5)), 10, atol=1.5)


def test_seen_rotation_has_the_right_axis_at_any_size():
    frames = turned([("right", 4), ("up", 4)])
    expected = Rotation.from_euler("YXZ", [[5, 0, 0], [0, 5, 0]], degrees=True).as_matrix()
    for scale in (0.5, 2):
        for i in (0, 1):
            before, after = (cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for f in frames[[4 * i, 4 * i + 4]])
            assert angle_deg(seen_rotation(before, after, intrinsics_from_fov(70, SIZE)).T @ expected[i]) < 0.3


def test_action_error_is_calibrated_on_rendered_walks():
    """Walking while turning: near things pass far ones, so no single rotation explains the picture."""
    script = "w+left*12 d+right*12 left*8 s+up*8"
    clip = render(5, script, start=RESERVED_START)
    opposite = render(5, [a.opposite() for a in parse_script(script)], start=RESERVED_START)
    truth = rotation_errors(clip.frames, clip.actions, clip.intrinsics, FPS)[1]
    assert np.nanmedian(truth) < 2 and np.isnan(truth).mean() < 0.3
    assert np.nanmedian(rotation_errors(opposite.frames, clip.actions, clip.intrinsics, FPS)[1]) > 36


def test_no_estimate_from_blank_faint_or_unrelated_pictures():
    faint = (127 + (turned(TURNS).astype(float) - 127) * 0.01).round().astype(np.uint8)  # nobody sees a level or two
    assert np.isnan(errors_of(faint)).all()
    blank = np.full((len(ACTIONS), *SIZE, 3), 127, dtype=np.uint8)
    assert np.isnan(errors_of(blank)).all()
    noise = np.random.default_rng(0).integers(0, 255, blank.shape, dtype=np.uint8)
    assert np.isnan(errors_of(noise)).mean() > 0.9


def test_windows_are_the_second_before_a_moment():
    assert (window(1, 321), window(20, 321), window(20, 41)) == (slice(1, 17), slice(305, 321), slice(25, 41))
    assert moments(321) == [1, 5, 10, 20] and moments(160) == [1, 5]


def test_gradient_energy_of_a_ramp():
    y, x = np.mgrid[:10, :12]
    ramp = np.repeat((3 * x + 4 * y)[None, ..., None], 3, axis=-1).astype(np.uint8)
    assert gradient_energy(ramp) == pytest.approx(3**2 + 4**2)


def test_measure_of_the_truth_and_of_a_blurred_truth():
    frames = turned(TURNS)
    clip = Clip(frames, np.tile(np.eye(4), (len(frames), 1, 1)), intrinsics_from_fov(70, SIZE), ACTIONS)
    blurred = np.stack([cv2.GaussianBlur(f, (0, 0), 2) for f in frames])
    row = summary("x", None, [measure(blurred, clip) | {"model": "m"}] * 2, len(frames))
    mse = ((blurred[1:17].astype(np.float64) - frames[1:17]) ** 2).mean((1, 2, 3))
    assert row["psnr"]["1 s"] == [pytest.approx((10 * np.log10(255**2 / mse)).mean(), abs=0.01), 0.0]
    assert 0.02 < row["sharpness"]["1 s"] < 0.5
    assert measure(frames, clip)["energy"] == measure(frames, clip)["truth_energy"]


def test_summary_of_known_records():
    records = [
        {"model": "m", "psnr": [p], "energy": [e], "truth_energy": [t], "turns": turns, "revisit": p + 1, "chunk_ms": ms, "chunk_frames": 4,
         "threads": 2, "run": "now", "device": "cpu"}
        for p, e, t, turns, ms in ((10.0, 1.0, 4.0, [[4, 1.0], [8, None], [20, 5.0]], [100.0, 100.0, 900.0]),
                                   (14.0, 2.0, 2.0, [[12, 3.0]], [200.0, 100.0]))
    ]  # fmt: skip
    row = summary("x", 2, records, 33)
    assert row["psnr"] == {"1 s": [12.0, 2.0]} and row["revisit"] == [13.0, 2.0]  # standard error sqrt(8) / sqrt(2)
    assert row["sharpness"] == {"1 s": 0.5} and row["frames per second"] == 40.0
    assert row["action error"]["all"] == 3.0 and row["action error per second"] == [2.0, 5.0] and row["no estimate"]["all"] == 0.25
    assert summary("x", 2, records[:1], 33)["psnr"] == {"1 s": [10.0, None]}
    table = compare.markdown({"sets": {"unseen": [row]}, "seconds": 2.0, "revisit": "left*4"})
    assert "| x | 2 | 12.00 ± 2.00 | 13.00 ± 2.00 | 3.0 | 25% | 3.0 | 25% | 0.50 | 40.0 |" in table and "in one run" in table
    assert "| (3.0) | 75% |" in compare.markdown(
        {"sets": {"unseen": [row | {"no estimate": dict.fromkeys(row["no estimate"], 0.75)}]}, "seconds": 2.0, "revisit": "left*4"}
    )


def test_the_tour_presses_every_key_and_walks_are_reserved():
    tour = to_array(parse_script(compare.TOUR))
    assert len(tour) == 20 * FPS and tour.any(0).all()
    known, unseen = compare.walks_of("known", 30), compare.walks_of("unseen", 8)
    assert all(c.seed in GALLERY_SEEDS and c.start >= RESERVED_START for c in known) and all(c.seed >= RESERVED_SEED for c in unseen)
    assert len({(c.seed, c.start) for c in known}) == 30 and {c.seed for c in known} == set(GALLERY_SEEDS)
    assert known[:6] == compare.walks_of("known", 6) and len({family_of(c.seed) for c in known[:4]}) == 4


def test_identity_is_of_everything_but_the_steps():
    model = small_model()
    assert compare.identity(model) == compare.identity(model.with_steps(7)) == compare.identity(small_model())
    assert compare.identity(model) != compare.identity(model.with_memory(MemoryConfig(window=2, horizon=10)))
    assert compare.identity(model) != compare.identity(small_model(seed=1))
    name = compare.identity(model)
    other = small_model()
    next(iter(other.autoencoder.parameters())).data.add_(1)
    assert compare.identity(other) != name


@pytest.fixture
def folders(monkeypatch):
    """`from_pretrained("3")` is the small model of seed 3."""
    monkeypatch.setattr(compare.WorldModel, "from_pretrained", staticmethod(lambda folder: small_model(seed=int(folder))))
    played = []
    real = compare.play
    monkeypatch.setattr(compare, "play", lambda line, case, *truths: played.append((line.label, line.steps)) or real(line, case, *truths))
    return played


def test_a_comparison_is_written_and_goes_on_where_it_stopped(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "SETS", {"known": "worlds that the weights know"})
    monkeypatch.setattr(compare, "REVISIT", "left*8 right*8")
    command = ["before=0", "after=1", "--steps", "2", "1", "--walks", "1", "--seconds", "1.5", "--out", str(tmp_path)]
    assert compare.main(command) == 0
    assert folders == [*((c, None) for c in compare.CALIBRATION), ("before", 2), ("before", 1), ("after", 2), ("after", 1)]
    results = json.loads((tmp_path / "results.json").read_text())
    rows = {(r["label"], r["steps"]): r for r in results["sets"]["known"]}
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (22 + 3 * 64, 190 + 6 * 64, 3)  # truth and two models

    case = compare.walks_of("known", 1, results["script"])[0]
    clip = render(case.seed, case.script, start=case.start, size=(64, 64))
    video = roll_out(small_model(seed=1, steps=1), clip)
    mse = ((video[1:17].astype(np.float64) - clip.frames[1:17]) ** 2).mean((1, 2, 3))
    assert rows["after", 1]["psnr"]["1 s"][0] == pytest.approx((10 * np.log10(255**2 / mse)).mean(), abs=0.01)
    assert rows["after", 1]["psnr"] != rows["after", 2]["psnr"] and rows["truth", None]["sharpness"] == {"1 s": 1.0}

    folders.clear()
    with (tmp_path / "walks.jsonl").open("a") as file:
        file.write('{"key": "cut o')
    assert compare.main(command) == 0
    assert folders == [] and json.loads((tmp_path / "results.json").read_text()) == results
    assert compare.main(["old=1", "new=2", *command[2:]]) == 0  # weights are known by what they are, not by their label
    assert folders == [("new", 2), ("new", 1)]


def test_models_that_cannot_be_compared_are_refused(folders, tmp_path):
    model = small_model()
    with pytest.raises(compare.CompareError, match="size of the first"):
        compare.lines_of({"a": model, "b": model.with_config(size=(128, 64))}, [1])
    with pytest.raises(compare.CompareError, match="line of its own"):
        compare.lines_of({"truth": model}, [1])
    for bad in (["0"], ["a=0", "a=1"], ["a="]):
        with pytest.raises(SystemExit) as stop:
            compare.main([*bad, "--steps", "1", "--out", str(tmp_path)])
        assert stop.value.code == 2
