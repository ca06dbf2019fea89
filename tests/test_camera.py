"""Camera geometry against SciPy's rotations and against RELIC's own formulas, written with world-to-camera matrices."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldmodel import camera
from worldmodel.actions import ROTATION_UNIT_DEG, Action, parse_script, to_array

SCRIPT = "w*5 w+left*9 d+up*4 .*2 r+o*6 s+right+down*7 a+u*3 f*2"


def random_actions(seed: int, frames: int, scale: float = 1.0) -> np.ndarray:
    """float64 [T, 13], canonical: of two opposites at most one is there, as in everything `Action` makes"""
    rng = np.random.default_rng(seed)
    raw = rng.random((frames, 13)) * (rng.random((frames, 13)) < 0.6) * scale
    return np.stack([Action.from_vector(a).magnitudes for a in raw])


def assert_poses(poses: np.ndarray) -> None:
    rotation = poses[..., :3, :3]
    np.testing.assert_allclose(rotation @ np.swapaxes(rotation, -1, -2), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-12)
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-12)
    np.testing.assert_array_equal(poses[..., 3, :], np.broadcast_to([0, 0, 0, 1], poses.shape[:-2] + (4,)))


def test_yaw_pitch_roll_equal_scipys_intrinsic_yxz():
    angles = np.random.default_rng(0).uniform(-1.5, 1.5, (50, 3))
    ours = camera.rotation_from_ypr(*angles.T)
    np.testing.assert_allclose(ours, Rotation.from_euler("YXZ", angles).as_matrix(), atol=1e-14)
    np.testing.assert_allclose(camera.ypr_from_rotation(ours), angles, atol=1e-12)
    np.testing.assert_allclose(camera.ypr_from_rotation(ours), Rotation.from_matrix(ours).as_euler("YXZ"), atol=1e-12)


@pytest.mark.parametrize(
    ("keys", "axis", "towards"),
    [
        ("right", 2, (1, 0, 0)), ("left", 2, (-1, 0, 0)), ("up", 2, (0, -1, 0)), ("down", 2, (0, 1, 0)),
        ("o", 0, (0, 1, 0)), ("u", 0, (0, -1, 0)),
    ],  # fmt: skip
)
def test_rotations_turn_the_view_where_their_names_say(keys, axis, towards):
    """Column 2 is where the camera looks, column 0 its right hand; rolling clockwise lowers the right hand (+Y is down)."""
    pose = camera.integrate(to_array(parse_script(keys)))[0]
    unit = np.deg2rad(ROTATION_UNIT_DEG)
    np.testing.assert_allclose(pose[:3, axis] @ towards, np.sin(unit), atol=1e-12)
    np.testing.assert_allclose(pose[:3, 3], 0)


@pytest.mark.parametrize(
    ("keys", "towards"),
    [("w", (0, 0, 1)), ("s", (0, 0, -1)), ("a", (-1, 0, 0)), ("d", (1, 0, 0)), ("r", (0, -1, 0)), ("f", (0, 1, 0)), (".", (0, 0, 0))],
)
def test_translations_go_where_their_names_say(keys, towards):
    poses = camera.integrate(to_array(parse_script(keys + "*3")), step=0.5)
    np.testing.assert_allclose(poses[:, :3, 3], 0.5 * np.outer([1, 2, 3], towards), atol=1e-15)
    np.testing.assert_array_equal(poses[:, :3, :3], np.broadcast_to(np.eye(3), (3, 3, 3)))


def test_after_a_quarter_turn_right_forward_is_world_right():
    pose = camera.integrate(to_array(parse_script(f"right*{int(90 / ROTATION_UNIT_DEG)} w*4")))[-1]
    np.testing.assert_allclose(pose[:3, 3], (4, 0, 0), atol=1e-12)


def relic_loop(actions: np.ndarray, start: np.ndarray, step: float) -> np.ndarray:
    """RELIC's definitions solved for the next pose: R_{t+1} = dR_t R_t and P_{t+1} = P_t + R_t^T dP_t, R world-to-camera."""
    r, p = start[:3, :3].T, start[:3, 3]
    poses = []
    for a in actions:
        dp = step * np.array([a[3] - a[2], a[5] - a[4], a[0] - a[1]])
        angles = ROTATION_UNIT_DEG * np.array([a[9] - a[8], a[6] - a[7], a[10] - a[11]])
        p = p + r.T @ dp
        r = Rotation.from_euler("YXZ", angles, degrees=True).inv().as_matrix() @ r
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = r.T, p
        poses.append(pose)
    return np.stack(poses)


def test_integration_follows_relics_formulas():
    start = np.eye(4)
    start[:3, :3], start[:3, 3] = Rotation.from_euler("YXZ", [0.4, -0.2, 0.1]).as_matrix(), (3, -1, 2)
    actions = random_actions(1, 300, 2.0)
    poses = camera.integrate(actions, start, step=0.13)
    np.testing.assert_allclose(poses, relic_loop(actions, start, 0.13), atol=1e-10)
    assert_poses(poses)

    r, p = np.swapaxes(poses[:, :3, :3], 1, 2), poses[:, :3, 3]
    dp = np.einsum("tij,tj->ti", r[:-1], np.diff(p, axis=0))  # dP_t = R_t (P_{t+1} - P_t)
    dr = r[1:] @ np.swapaxes(r[:-1], 1, 2)  # dR_t = R_{t+1} R_t^T
    motion = camera.motion_from_actions(actions)[1:]
    np.testing.assert_allclose(dp, 0.13 * motion[:, :3, 3], atol=1e-10)
    np.testing.assert_allclose(dr, np.swapaxes(motion[:, :3, :3], 1, 2), atol=1e-10)


def test_an_hour_of_frames_stays_a_rotation():
    poses = camera.integrate(np.tile(random_actions(2, 100), (576, 1)))
    assert_poses(poses[-1])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_actions_to_poses_and_back(dtype):
    """Stored poses are float32; what comes back is the same actions, standing still included."""
    actions = to_array(parse_script(SCRIPT))
    poses = np.concatenate([np.eye(4)[None], camera.integrate(actions, step=0.07)]).astype(dtype)
    back = camera.actions_from_poses(poses, step=0.07)
    assert back.dtype == np.float32
    assert back[0].tolist() == [0.0] * 12 + [1.0]
    np.testing.assert_allclose(back[1:], actions, atol=1e-4 if dtype is np.float32 else 1e-6)
    np.testing.assert_array_equal(back[1:] > 0, actions > 0)


@pytest.mark.parametrize("seed", range(5))
def test_any_actions_come_back(seed):
    actions = random_actions(seed, 60, 5.0)
    poses = np.concatenate([np.eye(4)[None], camera.integrate(actions)])
    np.testing.assert_allclose(camera.actions_from_poses(poses, step=1.0)[1:], actions, atol=1e-5)


def test_a_camera_that_holds_still_is_static_in_float32_too():
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.from_euler("YXZ", [2.1, -0.7, 0.3]).as_matrix(), (123.4, -5.6, 78.9)
    still = np.tile(pose, (4, 1, 1)).astype(np.float32)
    np.testing.assert_array_equal(camera.actions_from_poses(still), np.tile([0.0] * 12 + [1.0], (4, 1)))


def test_the_default_step_is_the_mean_over_moving_frames():
    poses = camera.integrate(to_array(parse_script(". w*2 left*5 .*3 d*2")), step=0.3)
    actions = camera.actions_from_poses(poses)
    np.testing.assert_allclose(actions[[1, 2, -1]].max(-1), 1, atol=1e-6)  # every moving frame moves one step
    scaled = poses.copy()
    scaled[:, :3, 3] *= 40
    np.testing.assert_allclose(camera.actions_from_poses(scaled), actions, atol=1e-6)  # whatever the unit of length


def test_actions_do_not_depend_on_the_world_frame():
    poses = camera.integrate(random_actions(3, 40))
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = Rotation.random(random_state=4).as_matrix(), (5, 6, 7)
    np.testing.assert_allclose(camera.actions_from_poses(moved @ poses), camera.actions_from_poses(poses), atol=1e-5)


def test_undoing_every_step_returns_to_the_start():
    """One kind of motion a frame, so that the opposite action is the exact inverse of the motion."""
    there = parse_script("w*9 left*13 d*4 up*5 r*3 o*6 s*2")
    back = [a.opposite() for a in reversed(there)]
    poses = camera.integrate(to_array(there + back))
    np.testing.assert_allclose(poses[-1], np.eye(4), atol=1e-12)


def test_relative_to_first():
    actions = random_actions(5, 30)
    start = np.eye(4)
    start[:3, :3], start[:3, 3] = Rotation.from_euler("Y", 1.0).as_matrix(), (1, 2, 3)
    poses = np.concatenate([start[None], camera.integrate(actions, start, step=0.2)])
    relative = camera.relative_to_first(poses, step=0.2)
    np.testing.assert_allclose(relative[0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(relative[1:], camera.integrate(actions), atol=1e-10)


def test_pose_code_holds_the_whole_pose():
    poses = camera.integrate(random_actions(6, 20))
    code = camera.pose_code(poses)
    assert code.shape == (20, camera.POSE_CODE_DIM)
    assert code.dtype == np.float32
    x, y = code[:, 3:6], code[:, 6:9]
    rebuilt = np.stack([x, y, np.cross(x, y)], -1)
    np.testing.assert_allclose(rebuilt, poses[:, :3, :3], atol=1e-6)
    np.testing.assert_allclose(code[:, :3], poses[:, :3, 3], atol=1e-5)


@pytest.mark.parametrize(("length", "pivot"), [(9, 4), (9, 8), (8, 4), (8, 7), (2, 1), (1, 0), (81, 60)])
def test_palindrome_goes_there_and_back(length, pivot):
    order = camera.palindrome(np.zeros((length, 4, 4)), pivot)
    expected = list(range(pivot + 1))
    while len(expected) < length:
        expected.append(expected[-1] - 1)
    assert order.tolist() == expected
    assert min(expected) >= 0


def test_a_full_palindrome_ends_where_it_began():
    poses = np.concatenate([np.eye(4)[None], camera.integrate(random_actions(7, 16))])
    order = camera.palindrome(poses, 8)
    turned = poses[order]
    np.testing.assert_array_equal(turned[-1], turned[0])
    back = camera.actions_from_poses(turned, step=1.0)
    np.testing.assert_allclose(camera.integrate(back), turned, atol=1e-5)


@pytest.mark.parametrize("pivot", [3, 9, -1])
def test_palindrome_says_where_a_pivot_may_lie(pivot):
    with pytest.raises(ValueError, match=r"second half.*4\.\.8"):
        camera.palindrome(np.zeros((9, 4, 4)), pivot)


def test_intrinsics_project_the_edge_of_the_field_of_view_to_the_edge_of_the_picture():
    height, width, fov = 48, 80, 70.0
    fx, fy, cx, cy = camera.intrinsics_from_fov(fov, (height, width))
    edge = np.tan(np.deg2rad(fov / 2))  # a point at depth 1 on the right edge
    assert fx * edge + cx == pytest.approx(1.0)
    assert fx * width == pytest.approx(fy * height)  # square pixels
    assert (cx, cy) == (0.5, 0.5)
