"""Action following: the path and the controls are read right from rendered truth and wrong from what is wrong."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from distill import inverse_dynamics as inverse
from distill.action_following import align, f1, follow, held, measure_following, relative_errors, summary, trajectory
from distill.dataset import write_clip
from distill.motion import seen_motion, seen_rotation
from distill.scenes import RESERVED_SEED, render
from distill.suite import CALIBRATION, control
from distill.suite_measures import bootstrap
from worldmodel.actions import ACTION_NAMES, STATIC, parse_script, to_array
from worldmodel.camera import integrate, motion_from_actions

SCRIPT = "w*16 left*16 s*16 d+right*16"


def figures(record: dict) -> dict:
    return summary([{"seed": 0, "follow": record}], bootstrap)


@pytest.fixture(scope="module")
def walk():
    return render(RESERVED_SEED, SCRIPT, size=(128, 128))


def test_alignment_finds_the_similarity_that_was_applied():
    rng = np.random.default_rng(0)
    rotation, scale, shift = cv2.Rodrigues(np.array([0.3, -1.1, 0.4]))[0], 2.7, np.array([4.0, -1.0, 2.0])
    points = rng.normal(0, 5, (20, 3))
    got = align(points, scale * points @ rotation.T + shift)
    for value, wanted in zip(got, (scale, rotation, shift), strict=True):
        np.testing.assert_allclose(value, wanted, atol=1e-9)
    noisy = points * [1, -1, 1] + rng.normal(0, 3, (20, 3))  # a reflection is none
    got, (wanted, size) = align(points, noisy), cv2.estimateAffine3D(points, noisy, force_rotation=True)
    assert got[0] == pytest.approx(size) and np.linalg.det(got[1]) == pytest.approx(1)
    np.testing.assert_allclose(np.c_[got[1], got[2]], wanted, atol=1e-9)
    line = np.arange(12.0)[:, None] * [0, 0, 1.0]
    assert align(line, 0.5 * line)[0] == pytest.approx(0.5)
    assert align(line, 0 * line)[0] == align(0 * line, line)[0] == 1


def test_relative_errors_are_those_of_a_closed_form():
    truth = integrate(to_array(parse_script("left*16 w*16")), step=1.0)
    still = np.tile(np.eye(4), (32, 1, 1))
    degrees, steps = relative_errors(still, truth, span=8)
    assert degrees[0] == pytest.approx(8 * 1.25) and degrees[-1] == pytest.approx(0, abs=1e-5)
    assert steps[0] == pytest.approx(0, abs=1e-9) and steps[-1] == pytest.approx(8)
    other = truth[::-1, ...]  # where it went forward, this goes backward
    assert relative_errors(truth, truth, 8)[1].max() == 0 and relative_errors(other[:16], truth[16:], 8)[1] == pytest.approx(16)
    elsewhere = cv2.Rodrigues(np.array([0.2, 0.3, 0.4]))[0]
    moved = truth.copy()  # turning and shifting the whole path changes nothing
    moved[:, :3, :3], moved[:, :3, 3] = elsewhere @ truth[:, :3, :3], truth[:, :3, 3] @ elsewhere.T + 5
    assert max(e.max() for e in relative_errors(moved, truth, 8)) < 1e-5


def test_controls_held_and_their_scores():
    actions = to_array(parse_script(".*1 w*6 a*2 .*4"))
    assert [[ACTION_NAMES[i] for i in np.flatnonzero(row)] for row in held(actions)] == [
        ["dolly_in"], ["dolly_in", "truck_left"], ["static"],
    ]  # fmt: skip
    truth, seen = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert f1(truth, seen) == 0.5 and f1(truth, truth) == 1 and f1(truth & False, seen & False) is None


def test_backwards_and_mirrored_motions_are_those_of_matrices():
    motion = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def matrix(m):
        out = np.eye(4)
        out[:3, :3], out[:3, 3] = cv2.Rodrigues(m.numpy()[:3] * inverse._UNITS[:3])[0], m[3:]
        return out

    swap = np.diag([-1.0, 1, 1, 1])
    np.testing.assert_allclose(matrix(inverse.reverse(motion)), np.linalg.inv(matrix(motion)), atol=1e-9)
    np.testing.assert_allclose(matrix(inverse.mirror(motion)), swap @ matrix(motion) @ swap, atol=1e-9)
    for order, opposite in ((inverse._BACK, range(0, STATIC)), (inverse._MIRROR, (2, 3, 8, 9, 10, 11))):
        assert [i for i in range(STATIC + 1) if order[i] != i] == list(opposite) and [order[i] for i in order] == list(range(STATIC + 1))


def test_truth_is_near_perfect_and_wrong_videos_are_not(walk):
    same_motion = ("truth", "blurred", "another start")
    got = {line: figures(measure_following(control(line, walk), walk)) for line in CALIBRATION if line not in same_motion}
    truth = figures(measure_following(walk.frames, walk))
    assert truth["rotation"][0] < 1 and truth["translation"][0] < 2 and truth["f1"][0] > 0.95 and truth["accuracy"][0] > 0.9
    for line, figure in got.items():
        assert figure["rotation"][0] > 7 and figure["translation"][0] > 8 and figure["f1"][0] < 0.35, line
    assert got["opposite actions"]["rotation"][0] > 1.7 * got["still picture"]["rotation"][0]
    assert got["opposite actions"]["translation"][0] > 1.5 * got["still picture"]["translation"][0]
    blurred = replace(walk, frames=np.stack([cv2.GaussianBlur(f, (0, 0), 2) for f in walk.frames]))
    soft = figures(measure_following(blurred.frames, walk))
    assert soft["rotation"][0] < 2 and soft["translation"][0] < 4 and soft["f1"][0] > 0.9


def test_a_still_picture_reads_as_no_motion_at_all(walk):
    motions, pressed = inverse.load().read(np.repeat(walk.frames[:1], 9, axis=0), walk.intrinsics)
    np.testing.assert_allclose(motions, np.tile(np.eye(4), (2, 1, 1)), atol=1e-5)
    assert pressed.argmax(1).tolist() == [STATIC, STATIC]


def test_a_wider_picture_is_read_by_its_intrinsics():
    wide = render(RESERVED_SEED + 1, "left*8 w*8", size=(72, 128))
    motions, _ = inverse.load().read(wide.frames, wide.intrinsics)
    truth = motion_from_actions(wide.actions)[:, :3, :3]
    for k in range(2):
        turned = np.linalg.multi_dot(truth[4 * k + 1 : 4 * k + 5])
        assert np.degrees(np.arccos((np.trace(turned.T @ motions[k, :3, :3]) - 1) / 2)) < 1.5


def test_geometry_sees_the_direction_of_walking():
    for key, direction in (("w", (0, 0, 1)), ("s", (0, 0, -1)), ("a", (-1, 0, 0)), ("f", (0, 1, 0))):
        clip = render(RESERVED_SEED + 1, f"{key}*4", size=(128, 128))
        motion = seen_motion(clip.frames[0], clip.frames[4], clip.intrinsics)
        assert motion[:3, 3] @ direction > 0.98 and np.trace(motion[:3, :3]) > 2.998
        np.testing.assert_array_equal(motion[:3, :3], seen_rotation(clip.frames[0], clip.frames[4], clip.intrinsics))


def test_training_reads_the_motion_that_the_actions_make(tmp_path):
    clip = render(24, "w+left*6 up*6", start=3, size=(64, 64))
    write_clip(tmp_path / "clip000001", clip)
    inverse.train(tmp_path, tmp_path / "w.safetensors", samples=16, epochs=1, batch=8)
    assert (tmp_path / "w.safetensors").stat().st_size < 1e6
    inputs, motions, keys = inverse.read_walks(tmp_path, 64, torch.Generator().manual_seed(0))
    assert inputs.shape == (64, 14, 16, 16) and inputs.isfinite().all()
    per_frame = motion_from_actions(clip.actions)
    wanted = []
    for t in range(len(clip) - 4):
        whole = np.linalg.multi_dot(per_frame[t + 1 : t + 5])
        wanted.append([*cv2.Rodrigues(whole[:3, :3])[0][:, 0], *whole[:3, 3]] / np.array(inverse._UNITS))
    nearest = np.abs(motions.numpy()[:, None] - np.array(wanted)).max(-1)
    assert nearest.min(1).max() < 1e-3 and len(set(nearest.argmin(1))) > 4
    assert set(np.unique(keys)) <= {0, 0.25, 0.5, 0.75, 1}
    write_clip(tmp_path / "clip000002", replace(clip, seed=RESERVED_SEED))
    with pytest.raises(ValueError, match="reserved"):
        inverse.read_walks(tmp_path, 8, torch.Generator())


def test_a_record_scales_a_path_that_is_right_but_too_short(walk):
    poses = walk.camera_to_world[::4].astype(np.float64)
    motions = np.linalg.inv(poses[:-1]) @ poses[1:]
    motions[:, :3, 3] /= 2 * walk.step
    record = follow(motions, held(walk.actions), walk)
    assert record["scale"] == pytest.approx(2, abs=1e-3) and record["held"] == record["seen"]
    assert max(record["rotation"]) < 0.1 and max(record["translation"]) < 0.01 and record["ate"] < 0.01
    assert trajectory(motions)[-1][:3, 3] * 2 == pytest.approx(np.linalg.inv(poses[0])[:3] @ poses[-1][:, 3] / walk.step, abs=1e-3)
