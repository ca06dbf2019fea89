"""Scenes: pictures depend on the pose alone, walks say what happened, clips survive the disk."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import distill.scenes as scenes
from distill.dataset import read_clip, write_clip
from distill.scenes import depth_maps, start_pose
from distill.scenes.__main__ import main
from distill.scenes.dataset import Settings, clip_stem, make_clip, write_dataset
from distill.scenes.mesh import Mesh
from distill.scenes.renderer import Renderer
from distill.scenes.scene import Box, Cylinder, Scene, Sky
from distill.scenes.trajectories import KINDS, MAX_TILT_DEG, random_script, script_text
from distill.scenes.walk import Space, level_pose, start_view, walk
from worldmodel.actions import ACTION_NAMES, STATIC, parse_script, to_array
from worldmodel.camera import integrate, intrinsics_from_fov

SIZE = (48, 64)


def toy_scene(seed: int) -> Scene:
    """Hills with a few houses and trees."""
    rng = np.random.default_rng(seed)

    def ground(x, y):
        return 0.4 * np.sin(np.asarray(x) / 9) * np.cos(np.asarray(y) / 11)

    xs = np.linspace(-60, 60, 25)
    mesh = Mesh().terrain(xs, xs, ground(*np.meshgrid(xs, xs)), rng.uniform(0.3, 0.8, (24, 24, 3)))
    colliders: list[Box | Cylinder] = []
    for i, (x, y) in enumerate(rng.uniform(-22, 22, (16, 2))):
        z = float(ground(x, y))
        if i % 2:
            mesh.box((x, y, z + 1.5), (4, 3, 4), tuple(rng.uniform(0.3, 0.9, 3)), yaw=i)
            colliders.append(Box(x, y, 2, 1.5, i, z - 1, z + 3.5))
        else:
            mesh.cylinder((x, y, z), 0.4, 5, (0.4, 0.3, 0.2))
            colliders.append(Cylinder(x, y, 0.4, z - 1, z + 5))
    sky = Sky((0.2, 0.4, 0.9), (0.8, 0.9, 1.0), clouds=6, sun_glow=0.5)
    return Scene("toy", f"Toy hills, number {seed}.", mesh, sky, colliders, ground, bounds=(-25, 25, -25, 25))


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """Every seed is a toy scene here, so these tests do not depend on the families."""
    monkeypatch.setattr(scenes, "build_scene", toy_scene)
    scenes._world.cache_clear()
    scenes._start.cache_clear()
    yield
    scenes._world.cache_clear()
    scenes._start.cache_clear()


def test_same_pose_same_pixels_also_after_other_scenes():
    poses = [level_pose(np.array([0.0, 0.0, 2.5]), h, 0.1) for h in np.linspace(0, 6, 12)]
    first = Renderer(toy_scene(1), SIZE)
    before = [first.frame(p) for p in poses]
    others = [Renderer(toy_scene(s), SIZE) for s in range(2, 6)]
    for other in others:
        other.frame(poses[0])
        other.at((32, 32), supersample=1).frame(poses[1])
    others[0].close()
    assert all(np.array_equal(a, first.frame(p)) for a, p in zip(before, poses, strict=True))
    again = Renderer(toy_scene(1), SIZE)
    assert all(np.array_equal(a, again.frame(p)) for a, p in zip(before, poses, strict=True))
    assert before[0].shape == (*SIZE, 3) and before[0].dtype == np.uint8
    assert not np.array_equal(before[0], before[1])


def test_projection_agrees_with_the_pinhole_model():
    """A small red cube is seen where the camera matrix says."""
    mesh = Mesh().box((8.0, 1.0, 2.0), (0.3, 0.3, 0.3), (1.0, 0.0, 0.0), glow=1.0)
    scene = Scene("toy", "A cube.", mesh, Sky((0.0, 0.0, 1.0), (0.0, 0.0, 1.0)))
    pose = level_pose(np.array([1.0, 0.5, 1.5]), 0.1, 0.05)
    clip_fov, (height, width) = 70.0, (96, 128)
    image = Renderer(scene, (height, width), fov=clip_fov).frame(pose).astype(float)
    ys, xs = np.nonzero(image[..., 0] > 128)
    fx, fy, cx, cy = intrinsics_from_fov(clip_fov, (height, width))
    p = np.linalg.inv(pose) @ (8.0, 1.0, 2.0, 1.0)
    assert abs(xs.mean() + 0.5 - width * (fx * p[0] / p[2] + cx)) < 0.5
    assert abs(ys.mean() + 0.5 - height * (fy * p[1] / p[2] + cy)) < 0.5


def test_depth_agrees_with_ray_casting():
    scene = toy_scene(3)
    pose = start_view(scene, 3, 0)
    height, width = 48, 64
    renderer = Renderer(scene, (height, width))
    picture = renderer.frame(pose)
    depth = renderer.depth(pose)
    assert np.array_equal(picture, renderer.frame(pose))
    fx, fy, cx, cy = intrinsics_from_fov(70.0, (height, width))
    ys, xs = np.meshgrid(np.arange(2, height, 5), np.arange(2, width, 5), indexing="ij")
    rays = np.stack([((xs + 0.5) / width - cx) / fx, ((ys + 0.5) / height - cy) / fy, np.ones(xs.shape)], -1)
    rays = rays.reshape(-1, 3) @ pose[:3, :3].T
    expected = ray_depth(scene.mesh.triangles, pose[:3, 3], rays).reshape(xs.shape)
    got = depth[ys, xs]
    far = expected > renderer.depth_range
    assert np.isinf(got[far]).mean() > 0.95
    got, expected = got[~far], expected[~far]
    assert (np.abs(got - expected) < 0.05 + 0.05 * expected).mean() > 0.9  # edges may fall on either side


def test_nothing_is_nearer_than_what_is_drawn():
    """At edges of triangles the rasteriser overflows too: single pixels came out 1.5 cm away."""
    for seed, start in ((0, 0), (0, 13), (8, 4), (16, 3), (703, 4)):
        assert depth_maps(seed, start_pose(seed, start)[None], (64, 64)).min() > 0.2


def test_what_lies_beyond_the_reach_of_depth_is_not_near():
    scene, pose = toy_scene(3), level_pose(np.array([0.0, 0.0, 2.5]), 0.5 * np.pi, 0.0)
    for distance in (150, 250, 400, 800):
        scene.mesh.box((0.4 * distance - 150, distance, 30), (60, 10, 80), (0.5, 0.5, 0.5))
    height, width = 48, 64
    depth = Renderer(scene, (height, width)).depth(pose)
    fx, fy, cx, cy = intrinsics_from_fov(70.0, (height, width))
    ys, xs = np.meshgrid(np.arange(0, height, 2), np.arange(0, width, 2), indexing="ij")
    rays = np.stack([((xs + 0.5) / width - cx) / fx, ((ys + 0.5) / height - cy) / fy, np.ones(xs.shape)], -1).reshape(-1, 3)
    expected = ray_depth(scene.mesh.triangles, pose[:3, 3], rays @ pose[:3, :3].T).reshape(xs.shape)
    beyond = depth[ys, xs][(expected > 130) & np.isfinite(expected)]
    assert len(beyond) > 50 and np.isinf(beyond).mean() > 0.9 and (beyond > 5).all()  # edges may fall on either side


def ray_depth(triangles: np.ndarray, origin: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """Moeller-Trumbore: multiple of each ray [R, 3] at which it first meets a front face of triangles [N, 3, 3]."""
    a, e1, e2 = triangles[:, 0], triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    out = np.full(len(rays), np.inf)
    for i, ray in enumerate(rays):
        h = np.cross(ray, e2)
        det = (e1 * h).sum(-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            s, q = origin - a, np.cross(origin - a, e1)
            u, v, t = (s * h).sum(-1) / det, (q @ ray) / det, (e2 * q).sum(-1) / det
        hit = (det > 1e-12) & (u >= 0) & (v >= 0) & (u + v <= 1) & (t > 0.2)
        out[i] = t[hit].min() if hit.any() else np.inf
    return out


def test_supersampling_is_the_mean():
    scene, pose = toy_scene(3), level_pose(np.array([0.0, 0.0, 2.5]), 1.0)
    renderer = Renderer(scene, (32, 40), supersample=2)
    fine = renderer.at((64, 80), supersample=1).frame(pose).astype(np.uint16)
    mean = (fine[::2, ::2] + fine[1::2, ::2] + fine[::2, 1::2] + fine[1::2, 1::2] + 2) // 4
    assert np.array_equal(renderer.frame(pose), mean)


def test_render_poses_are_the_integral_of_its_actions():
    script = "w+left*20 w*40 d+r+up*10 .*2 s+f+o*20"
    clip = scenes.render(5, script, start=3, size=SIZE)
    expected = integrate(clip.actions, scenes.start_pose(5, 3), clip.step)
    assert np.allclose(clip.camera_to_world, expected, atol=1e-4)
    assert clip.frames.shape == (93, *SIZE, 3) and clip.actions.shape == (93, 13)
    assert clip.actions[0, -1] == 1 and np.array_equal(clip.actions[:, -1] == 1, ~clip.actions[:, :-1].any(1))


def test_turning_away_and_back_gives_the_first_frame():
    clip = scenes.render(6, "left*24 right*24", size=SIZE)
    assert np.abs(clip.frames[0].astype(int) - clip.frames[-1]).max() <= 1
    assert np.array_equal(clip.frames[10], clip.frames[38])


def test_motion_scales_with_fps():
    slow = scenes.render(1, "right*16", size=(16, 16))
    fast = scenes.render(1, "right*32", size=(16, 16), fps=32)
    assert np.allclose(slow.camera_to_world[-1], fast.camera_to_world[-1], atol=1e-5)


def test_camera_never_comes_too_close():
    rng = np.random.default_rng(0)
    scene = toy_scene(9)
    space = Space(scene)
    for k in range(4):
        actions = np.zeros((300, 13), dtype=np.float32)
        actions[np.arange(300), np.repeat(rng.integers(0, 13, 30), 10)] = 1.5
        actions[:, 0] = np.maximum(actions[:, 0], 0.8)
        poses, done = walk(space, start_view(space, 9, k), actions)
        assert space.clearance(poses[:, :3, 3]).min() >= space.margin
        assert space.free(poses[:, :3, 3]).all()
        assert (done[1:, :6] != actions[:, :6]).any()  # something was in the way


def test_blocked_translation_keeps_the_rotation():
    scene = toy_scene(0)
    scene.colliders = [Box(5.0, 0.0, 1.0, 10.0)]
    poses, done = walk(scene, level_pose(np.array([3.5, 0.0, 1.6]), 0.0), to_array(parse_script("w+a+up*3")))
    assert np.all(done[1:, 0] == 0) and np.all(done[1:, 2] == 1) and np.all(done[1:, 6] == 1)
    assert np.allclose(poses[-1, :3, 3], [3.5, 3 * scene.step, 1.6], atol=1e-6)


def test_start_views_are_deterministic_and_differ():
    a, b = scenes.start_pose(2, 0), scenes.start_pose(2, 1)
    scenes._start.cache_clear()
    assert np.array_equal(a, scenes.start_pose(2, 0)) and not np.allclose(a, b)
    assert np.allclose(a[:3, :3].T @ a[:3, :3], np.eye(3)) and np.isclose(np.linalg.det(a[:3, :3]), 1)


def test_reserved_scenes_and_starts_are_refused():
    scenes.check_trainable(0, 0)
    with pytest.raises(ValueError, match="seed"):
        scenes.check_trainable(scenes.RESERVED_SEED, 0)
    with pytest.raises(ValueError, match="[Ss]tart"):
        scenes.check_trainable(0, scenes.RESERVED_START)


def test_scripts_are_balanced_and_stay_upright():
    scripts = np.stack([to_array(random_script(np.random.default_rng(i), 80)) for i in range(200)])
    shares = (scripts > 0).mean((0, 1))
    assert shares.min() > 0.03 and shares[:STATIC].max() < 4 * shares[:STATIC].min()
    held = (scripts[..., :STATIC] > 0).sum(-1)
    assert all((held == k).mean() > 0.05 for k in (1, 2, 3)) and held.max() == 3
    for actions in scripts[:60]:
        poses = integrate(actions)
        assert np.degrees(np.arcsin(np.abs(poses[:, 1, 2]))).max() <= MAX_TILT_DEG + 0.01
        assert poses[:, 1, 1].min() > 0.7  # upright


def test_level_zero_is_single_keys_of_few_actions():
    scripts = np.concatenate([to_array(random_script(np.random.default_rng(i), 80, level=0.0)) for i in range(60)])
    used = {ACTION_NAMES[i] for i in np.flatnonzero(scripts.any(0))}
    assert used == {"dolly_in", "dolly_out", "pan_left", "pan_right", "static"}
    assert (scripts > 0).sum(1).max() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_script_text_reads_back(kind):
    actions = random_script(np.random.default_rng(4), 60, kind=kind)
    assert len(actions) == 60 and parse_script(script_text(actions)) == actions


def test_turning_back_returns_exactly():
    actions = random_script(np.random.default_rng(1), 80, level=0.0, kind="palindrome")
    poses = integrate(to_array(actions))
    assert np.allclose(poses[-1], np.eye(4), atol=1e-9)


def test_clip_round_trip(tmp_path):
    clip = scenes.render(7, "w*6 left*6", start=2, size=(32, 32))
    write_clip(tmp_path / "clip000001", clip)
    back = read_clip(tmp_path / "clip000001")
    assert np.abs(back.frames.astype(int) - clip.frames).mean() < 1.5
    for name in ("camera_to_world", "intrinsics", "actions", "step"):
        assert np.allclose(getattr(back, name), getattr(clip, name), atol=1e-6)
    assert (back.caption, back.seed, back.start, back.fps, len(back)) == (clip.caption, 7, 2, 16.0, 13)


def test_dataset_resumes_and_a_clip_is_its_index(tmp_path):
    settings = Settings(seeds=(1, 2), frames=6, size=16)
    assert sorted(write_dataset(tmp_path, settings, 2)) == [1, 2]
    first = (tmp_path / "clip000002.camera.npz").read_bytes()
    (tmp_path / "clip000001.json").unlink()
    assert sorted(write_dataset(tmp_path, settings, 3)) == [1, 3]
    assert (tmp_path / "clip000002.camera.npz").read_bytes() == first
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [r["file_name"] for r in rows] == [f"clip00000{i}.mp4" for i in (1, 2, 3)] and [r["seed"] for r in rows] == [1, 2, 1]
    clip, _ = make_clip(settings, 3)
    assert np.array_equal(clip.actions, read_clip(clip_stem(tmp_path, 3)).actions)
    assert all(0 <= r["start"] < scenes.RESERVED_START for r in rows)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    with pytest.raises(ValueError, match="frames"):
        list(write_dataset(tmp_path, Settings(seeds=(1, 2), frames=7, size=16), 3))


def test_dataset_refuses_reserved_seeds(tmp_path):
    with pytest.raises(ValueError, match="reserved"):
        Settings(seeds=(0, scenes.RESERVED_SEED))
    with pytest.raises(SystemExit) as stop:
        main(["--out", str(tmp_path / "x"), "--seeds", str(scenes.RESERVED_SEED), "--clips", "1"])
    assert stop.value.code == 2 and not (tmp_path / "x").exists()


def test_importing_is_cheap():
    code = "import sys, distill.scenes; sys.exit('panda3d' in sys.modules or 'av' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("family", scenes.FAMILIES)
def test_every_family_can_be_walked(family, monkeypatch):
    module = pytest.importorskip(f"distill.scenes.{family}")
    monkeypatch.setattr(scenes, "build_scene", lambda seed: module.build(np.random.default_rng(seed), variant=None))
    clip = scenes.render(40, "w*8 left*8", size=(24, 24))
    assert clip.caption and (clip.actions[1:, 0] > 0).any()
    assert np.abs(np.diff(clip.frames.astype(int), axis=0)).max() > 20
