"""What was in view before: depth by reprojection, absences counted by hand, and figures that find a planted mistake."""

from __future__ import annotations

import numpy as np
import pytest

from distill.scenes import RESERVED_SEED, render
from distill.scenes.walk import level_pose
from distill.suite_seen import absence, edges, follow, seen_again, views
from worldmodel.camera import intrinsics_from_fov

SIZE = (48, 64)
K = intrinsics_from_fov(70.0, SIZE)


def wall_depth(pose: np.ndarray, near: float = np.inf) -> np.ndarray:
    """Depth [48, 64] of a wall at x = 10, of a pillar at x = near for |y| < 0.5, and of sky above z = 6."""
    row, column = np.meshgrid(np.arange(48), np.arange(64), indexing="ij")
    rays = np.stack([((column + 0.5) / 64 - K[2]) / K[0], ((row + 0.5) / 48 - K[3]) / K[1], np.ones((48, 64))], -1) @ pose[:3, :3].T
    depth = np.full((48, 64), np.inf)
    for x, inside in ((10.0, lambda p: p[..., 2] < 6), (near, lambda p: np.abs(p[..., 1]) < 0.5)):
        t = (x - pose[0, 3]) / rays[..., 0]
        hit = (t > 0) & inside(pose[:3, 3] + t[..., None] * rays) & (t < depth) & np.isfinite(t)
        depth[hit] = t[hit]
    return depth


def test_points_are_followed_to_where_geometry_puts_them():
    before, after = level_pose(np.array([0.0, 0.3, 1.5]), 0.25), level_pose(np.array([1.5, -0.4, 1.6]), -0.1)
    seen, where = follow(np.stack([before, after]), np.stack([wall_depth(before), wall_depth(after)]), K)
    depth = wall_depth(after)
    for row, column in ((30, 50), (20, 40), (40, 45)):
        p = row * 64 + column
        ray = np.array([((column + 0.5) / 64 - K[2]) / K[0], ((row + 0.5) / 48 - K[3]) / K[1], 1])
        x = np.linalg.inv(before) @ np.append(after[:3, 3] + depth[row, column] * (after[:3, :3] @ ray), 1)
        expected = np.array([64 * (K[0] * x[0] / x[2] + K[2]), 48 * (K[1] * x[1] / x[2] + K[3])]) - 0.5
        np.testing.assert_allclose(where[0, p], expected, atol=2e-3)
        assert seen[0, p] == bool((expected >= 0).all() and (expected <= (63, 47)).all())
    assert 0.3 < seen[0].mean() < 0.9 and seen[1].all()


def test_what_a_pillar_hid_was_not_in_view():
    before, after = level_pose(np.array([0.0, 0.0, 1.5]), 0.0), level_pose(np.array([0.0, 3.0, 1.5]), 0.0)
    depth = [wall_depth(pose, near=4.0) for pose in (before, after)]
    seen, where = follow(np.stack([before, after]), np.stack(depth), K)
    inside = (where[0, :, 0] > 1) & (where[0, :, 0] < 62) & ~edges(depth[0]).ravel()[_nearest(where[0])]
    wall = (np.abs(depth[1].ravel() - 10) < 0.1) & inside
    behind = np.isclose(depth[0].ravel()[_nearest(where[0])], 4.0, atol=0.1)
    assert (wall & behind).sum() > 30
    assert not seen[0][wall & behind].any() and seen[0][wall & ~behind].all()


def _nearest(where: np.ndarray) -> np.ndarray:
    at = np.clip(np.round(where).astype(int), 0, (63, 47))
    return at[:, 1] * 64 + at[:, 0]


def test_absences():
    seen = np.array([[1, 0, 0, 1, 0, 0, 0, 1, 1], [1] * 9, [0, 0, 0, 0, 0, 0, 0, 0, 1], [1, 0, 1, 1, 1, 1, 1, 1, 1]], dtype=bool).T
    away, before = absence(seen, 0.25)
    assert away.tolist() == [1.0, 0.0, 0.0, 0.5] and before.tolist() == [3, -1, -1, 0]


def test_rendered_depth_takes_one_picture_to_another():
    clip = render(RESERVED_SEED + 1, "right*12 d*12", size=(64, 64), depth=True)
    assert clip.depth.shape == (25, 64, 64) and clip.depth.dtype == np.float32
    assert render(RESERVED_SEED + 1, "w*1", size=(64, 64)).depth is None
    pair = [12, 24]
    seen, where = follow(clip.camera_to_world[pair].astype(float), clip.depth[pair], clip.intrinsics)
    good = seen[0] & ~edges(clip.depth[24]).ravel()
    at = np.round(where[0]).astype(int)[good]
    warped, truth = clip.frames[12].astype(float)[at[:, 1], at[:, 0]], clip.frames[24].reshape(-1, 3)[good]
    unmoved = clip.frames[12].reshape(-1, 3)[good].astype(float)
    error, still = (np.square(v - truth).mean() for v in (warped, unmoved))
    assert good.mean() > 0.4 and error < still / 4


@pytest.fixture(scope="module")
def walk():
    clip = render(RESERVED_SEED, "left*56 right*56", size=(64, 64))
    return clip, views(clip)


def test_a_mistake_after_coming_back_is_found_where_it_is(walk):
    clip, view = walk
    truth = seen_again(clip.frames, view)
    assert truth["given"][1] > 60 and truth["2"][1] > 27 and truth["2"][3] > 60
    assert "20" not in truth
    lost = clip.frames.copy()
    lost[64:] = 255 - lost[64:]  # turned away for 3.5 s, then half of the way back
    got = seen_again(lost, view)
    assert got["2"][0] == truth["2"][0] and got["2"][1] < 15 and got["2"][3] < 15
    consistent = seen_again(255 - clip.frames, view)  # wrong, but always in the same way
    assert consistent["2"][1] == pytest.approx(truth["2"][1], abs=0.5)
    assert consistent["2"][3] < 15 and consistent["invented"][1] < 15


def test_kinds_of_pixels_are_consistent(walk):
    clip, view = walk
    assert view.given[0].all() and view.new[0].all()  # nothing was before the start
    assert not (view.new & view.given)[1:].any() and not (view.new & (view.away > 0)).any()
    assert (view.away[: len(view.frames) // 2] < 2).mean() > 0.99  # a single turn away brings nothing back
    assert view.given[-1].mean() > 0.95 and (view.away[-1] >= 2).mean() > 0.3
