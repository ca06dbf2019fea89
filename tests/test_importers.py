"""Importers, each judged by reprojection.

Three points in space are drawn into pictures by the format's own convention. After the import, projecting the same points
with the clip's poses and intrinsics has to hit the places where the clip's pictures show them.
"""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from distill.dataset import _encode, read_clip, stems
from distill.importers.__main__ import main
from distill.importers.pictures import PictureFiles, SourceError, VideoFile
from distill.importers.recording import Cut, Recording, choose, crop_intrinsics, interpolate, make_clips
from worldmodel.camera import integrate

POINTS = np.array([[-0.5, -0.3, 4.0], [0.45, -0.35, 5.0], [0.1, 0.4, 3.5]])  # one a colour channel; +Z ahead, +Y down
HEIGHT, WIDTH, FOCAL = 72, 96, (85.0, 80.0)  # of the source's pictures
CENTRE = (49.5, 35.0)


def draw(pixels: np.ndarray, size=(HEIGHT, WIDTH)) -> np.ndarray:
    """uint8 [H, W, 3]: a soft dot at (x, y) of `pixels` [3, 2] in each colour; the corner of the picture is (0, 0)"""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    dots = [np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * 3.0**2)) for u, v in pixels]
    return np.round(255 * np.stack(dots, -1)).astype(np.uint8)


def path_of(frames: int, seed: int = 0) -> np.ndarray:
    """Camera-to-world [F, 4, 4], turning about all axes and moving along all, not starting at the origin."""
    t = np.linspace(0, 1, frames)[:, None]
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (frames, 1, 1))
    poses[:, :3, :3] = Rotation.from_rotvec(rng.uniform(-0.05, 0.05, 3) + t * np.array([0.06, -0.05, 0.15])).as_matrix()
    poses[:, :3, 3] = rng.uniform(-0.1, 0.1, 3) + t * np.array([0.2, -0.15, 0.5])
    return poses


def see(world_to_camera: np.ndarray, points: np.ndarray, focal=FOCAL, centre=CENTRE) -> np.ndarray:
    """Pixels [3, 2] of `points` for an OpenCV camera."""
    x, y, z = world_to_camera[:3, :3] @ points.T + world_to_camera[:3, 3:]
    return np.stack([focal[0] * x / z + centre[0], focal[1] * y / z + centre[1]], -1)


def see_gl(camera_to_world: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Pixels of `points` for an OpenGL camera: it looks along -Z and its +Y is up."""
    x, y, z = camera_to_world[:3, :3].T @ (points - camera_to_world[:3, 3]).T
    return np.stack([CENTRE[0] + FOCAL[0] * x / -z, CENTRE[1] - FOCAL[1] * y / -z], -1)


def write_video(path, pixels, fps):
    path.parent.mkdir(parents=True, exist_ok=True)
    _encode(path, np.stack([draw(p) for p in pixels]), fps, 0)


def write_pictures(folder, pixels, names=None):
    folder.mkdir(parents=True, exist_ok=True)
    for i, p in enumerate(pixels):
        Image.fromarray(draw(p)).save(folder / f"{names[i] if names else i}.png")


def dots(frame: np.ndarray) -> np.ndarray:
    """Where the three dots are: centres of mass [3, 2] in pixels"""
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]] + 0.5
    weight = np.where(frame > 50, frame, 0).astype(float)
    total = weight.sum((0, 1))
    return np.stack([(x[..., None] * weight).sum((0, 1)) / total, (y[..., None] * weight).sum((0, 1)) / total], -1)


def assert_reprojects(clip, points_of_first_camera, tolerance=0.3):
    """`points_of_first_camera` [3, 3] in OpenCV axes; the tolerance is in pixels of the clip."""
    height, width = clip.frames.shape[1:3]
    fx, fy, cx, cy = clip.intrinsics.astype(float)
    for frame, pose in zip(clip.frames, clip.camera_to_world.astype(float), strict=True):
        x, y, z = np.linalg.inv(pose)[:3] @ np.concatenate([points_of_first_camera.T, np.ones((1, 3))])
        projected = np.stack([(fx * x / z + cx) * width, (fy * y / z + cy) * height], -1)
        np.testing.assert_allclose(dots(frame), projected, atol=tolerance)


def seen_from(pose, points):
    return (np.linalg.inv(pose) @ np.concatenate([points.T, np.ones((1, 3))]))[:3].T


def run(*args, code=0):
    assert main([str(a) for a in args]) == code


def test_realestate10k_reprojects_from_a_longer_video(tmp_path):
    fps, lead = 32, 5  # the poses begin five frames into the video
    poses = path_of(20)
    w2c = np.linalg.inv(poses)
    write_video(tmp_path / "abc.mp4", [see(w2c[0], POINTS)] * lead + [see(m, POINTS) for m in w2c] + [see(w2c[-1], POINTS)] * 3, fps)
    lens = f"{FOCAL[0] / WIDTH} {FOCAL[1] / HEIGHT} {CENTRE[0] / WIDTH} {CENTRE[1] / HEIGHT} 0 0"
    lines = [f"{round((lead + i) / fps * 1e6)} {lens} {' '.join(map(str, m[:3].reshape(-1)))}" for i, m in enumerate(w2c)]
    (tmp_path / "clip7.txt").write_text("https://www.example.org/watch?v=abc\n" + "\n".join(lines) + "\n")
    (tmp_path / "captions.json").write_text('{"clip7": "a  quiet\\nroom"}')
    more = ("--size", 48, "--frames", 9, "--captions", tmp_path / "captions.json")
    run("realestate10k", tmp_path / "clip7.txt", "--out", tmp_path / "out", *more)
    (stem,) = stems(tmp_path / "out")
    clip = read_clip(stem)
    assert clip.frames.shape == (9, 48, 48, 3) and clip.fps == 16 and clip.caption == "a quiet room"
    assert_reprojects(clip, seen_from(poses[0], POINTS))
    # actions lead through the poses, in units of the mean displacement
    moved = np.linalg.norm(np.diff(poses[:17:2, :3, 3], axis=0), axis=-1)
    assert clip.step == pytest.approx(moved.mean(), rel=1e-5)
    np.testing.assert_allclose(integrate(clip.actions, step=clip.step), clip.camera_to_world, atol=1e-4)
    assert json.loads((tmp_path / "out" / "metadata.jsonl").read_text())["file_name"] == stem.name + ".mp4"


def test_realestate10k_takes_pictures_named_by_time(tmp_path):
    poses = path_of(9)
    w2c, stamps = np.linalg.inv(poses), [1_000_000 + 62_500 * i for i in range(9)]
    write_pictures(tmp_path / "clip", [see(m, POINTS) for m in w2c], stamps)
    Image.fromarray(draw(see(w2c[0], POINTS + 1))).save(tmp_path / "clip" / "5.png")  # another time: not of this clip
    lens = f"{FOCAL[0] / WIDTH} {FOCAL[1] / HEIGHT} {CENTRE[0] / WIDTH} {CENTRE[1] / HEIGHT} 0 0"
    lines = [f"{s} {lens} {' '.join(map(str, m[:3].reshape(-1)))}" for s, m in zip(stamps, w2c, strict=True)]
    (tmp_path / "clip.txt").write_text("none\n" + "\n".join(lines))
    run("realestate10k", tmp_path, "--out", tmp_path / "out", "--size", 48, "--frames", 9)
    assert_reprojects(read_clip(stems(tmp_path / "out")[0]), seen_from(poses[0], POINTS))


@pytest.mark.parametrize("way", ["c2w", "w2c"])
def test_sekai_reprojects(tmp_path, way):
    poses = path_of(9, seed=1)
    w2c = np.linalg.inv(poses)
    write_video(tmp_path / "walk.mp4", [see(m, POINTS) for m in w2c], 16)
    k = np.array([[FOCAL[0] / WIDTH, 0, CENTRE[0] / WIDTH], [0, FOCAL[1] / HEIGHT, CENTRE[1] / HEIGHT], [0, 0, 1]])
    np.savez(tmp_path / "walk.npz", extrinsic=poses if way == "c2w" else w2c, intrinsic=k)
    with (tmp_path / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["videoFile", "cameraFile", "caption"], ["walk.mp4", "walk.npz", "a street, wet"]])
    run("sekai", tmp_path / "train.csv", "--out", tmp_path / "out", "--size", 48, "--frames", 9, "--extrinsics", way)
    clip = read_clip(stems(tmp_path / "out")[0])
    assert clip.caption == "a street, wet"
    assert_reprojects(clip, seen_from(poses[0], POINTS))


def test_nerfstudio_reprojects(tmp_path):
    poses = path_of(12, seed=2)
    poses[:, :3, 3] *= np.array([1, 1, -1])  # forwards is -Z
    points = POINTS * np.array([1, -1, -1])
    write_pictures(tmp_path / "scene" / "images", [see_gl(p, points) for p in poses], [f"frame_{i}" for i in range(12)])
    frames = [{"file_path": f"images/frame_{i}.png", "transform_matrix": p.tolist()} for i, p in enumerate(poses)]
    np.random.default_rng(0).shuffle(frames)  # frame_10 comes after frame_9
    head = {"w": WIDTH, "h": HEIGHT, "fl_x": FOCAL[0], "fl_y": FOCAL[1], "cx": CENTRE[0], "cy": CENTRE[1], "camera_model": "OPENCV"}
    (tmp_path / "scene" / "transforms.json").write_text(json.dumps({**head, "frames": frames}))
    run("nerfstudio", tmp_path / "scene", "--out", tmp_path / "out", "--size", "40x64", "--frames", 9)
    x, y, z = seen_from(poses[0], points).T
    clip = read_clip(stems(tmp_path / "out")[0])
    assert clip.frames.shape[1:3] == (40, 64)
    assert_reprojects(clip, np.stack([x, -y, -z], -1))
    ahead = np.linalg.inv(poses[0]) @ poses[:9]  # in order, and forwards is +Z now
    np.testing.assert_allclose(clip.camera_to_world[:, :3, 3], ahead[:, :3, 3] * np.array([1, -1, -1]), atol=1e-6)


def test_lingbot_reprojects(tmp_path):
    poses = path_of(9, seed=3)
    folder = tmp_path / "shot"
    write_video(folder / "video.mp4", [see(np.linalg.inv(p), POINTS) for p in poses], 16)
    Image.new("RGB", (2 * WIDTH, 2 * HEIGHT)).save(folder / "image.jpg")  # the intrinsics are in its pixels
    np.save(folder / "poses.npy", poses.astype(np.float32))
    np.save(folder / "intrinsics.npy", np.tile(2 * np.array([*FOCAL, *CENTRE]), (9, 1)))
    (folder / "prompt.txt").write_text("a hall\n")
    run("lingbot", tmp_path, "--out", tmp_path / "out", "--size", 48, "--frames", 9)
    clip = read_clip(stems(tmp_path / "out")[0])
    assert clip.caption == "a hall"
    assert_reprojects(clip, seen_from(poses[0], POINTS))


@pytest.mark.parametrize("frames", [9, 3])
def test_worldplay_reprojects_with_a_pose_a_frame_or_a_pose_a_latent_frame(tmp_path, frames):
    poses = path_of(9, seed=4)
    middle = (WIDTH / 2, HEIGHT / 2)
    write_video(tmp_path / "videos" / "turn.mp4", [see(np.linalg.inv(p), POINTS, centre=middle) for p in poses], 16)
    k = [[FOCAL[0] * 20, 0, WIDTH * 10], [0, FOCAL[1] * 20, HEIGHT * 10], [0, 0, 1]]  # of a picture twenty times as large
    chosen = poses if frames == 9 else poses[::4]
    (tmp_path / "turn.json").write_text(json.dumps({str(i): {"extrinsic": p.tolist(), "K": k} for i, p in enumerate(chosen)}))
    run("worldplay", tmp_path / "turn.json", "--video", tmp_path / "videos", "--out", tmp_path / "out", "--size", 48, "--frames", 9)
    assert_reprojects(read_clip(stems(tmp_path / "out")[0]), seen_from(poses[0], POINTS))


@pytest.mark.parametrize("size", [(72, 96), (50, 50), (20, 90), (144, 60)])
def test_cropping_keeps_what_a_camera_sees(size):
    source, lens = (72, 96), np.array([0.9, 1.1, 0.52, 0.47])
    fx, fy, cx, cy = crop_intrinsics(lens, source, size)
    scale = max(size[0] / 72, size[1] / 96)
    assert fx * size[1] == pytest.approx(0.9 * 96 * scale) and fy * size[0] == pytest.approx(1.1 * 72 * scale)
    assert (cx - 0.5) * size[1] == pytest.approx(0.02 * 96 * scale) and (cy - 0.5) * size[0] == pytest.approx(-0.03 * 72 * scale)


def test_interpolation_keeps_the_ends_and_turns_evenly():
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[1, :3, :3], poses[1, :3, 3] = Rotation.from_rotvec([0, 0.8, 0]).as_matrix(), (2, 0, -4)
    got = interpolate(np.array([1.0, 3.0]), poses, np.array([0.5, 1.0, 1.5, 3.0, 4.0]))
    np.testing.assert_allclose(got[[0, 1]], poses[[0, 0]], atol=1e-12)
    np.testing.assert_allclose(got[[3, 4]], poses[[1, 1]], atol=1e-12)
    np.testing.assert_allclose(Rotation.from_matrix(got[2, :3, :3]).as_rotvec(), [0, 0.2, 0], atol=1e-12)
    np.testing.assert_allclose(got[2, :3, 3], [0.5, 0, -1])


def test_videos_are_read_from_the_key_frame_before(tmp_path):
    import av

    with av.open(str(tmp_path / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "6", "crf": "0", "preset": "ultrafast", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for i in range(25):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 10 * i, np.uint8), format="rgb24")))
        container.mux(stream.encode())
    video = VideoFile(tmp_path / "v.mp4")
    assert video.size == (32, 32) and len(video) == 25
    np.testing.assert_allclose(video.times, np.arange(25) / 30, atol=1e-4)
    shown = [np.asarray(p).mean() / 10 for p in video.read([8, 14, 15, 23])]
    np.testing.assert_allclose(shown, [8, 14, 15, 23], atol=0.3)
    (tmp_path / "not.mp4").write_text("a film")
    with pytest.raises(SourceError, match="no video that FFmpeg can read"):
        VideoFile(tmp_path / "not.mp4")


def recording(tmp_path, fps, frames=13):
    write_pictures(tmp_path / "p", [[[40, 30], [50, 40], [60, 50]]] * frames)
    pictures = PictureFiles([tmp_path / "p" / f"{i}.png" for i in range(frames)], np.arange(frames) / fps)
    return Recording("r", pictures, pictures.times, path_of(frames), np.tile([1.0, 1, 0.5, 0.5], (frames, 1)))


def test_frames_are_the_nearest_ones_from_the_first_pose_to_the_last(tmp_path):
    assert choose(recording(tmp_path, 32), 16).tolist() == [0, 2, 4, 6, 8, 10, 12]
    assert choose(recording(tmp_path, 16), 16).tolist() == list(range(13))
    assert choose(recording(tmp_path, 16000 / 1001), 16).tolist() == list(range(13))  # nearly 16: as it is
    rare = recording(tmp_path, 24)
    assert choose(rare, 16).tolist() == [0, 2, 3, 5, 6, 8, 9, 11, 12]
    clips = dict(make_clips(rare, Cut((16, 16), 5)))
    assert list(clips) == [0]  # nine frames make one clip of five
    first = np.linalg.inv(rare.camera_to_world[0])
    for i, pose in zip(choose(rare, 16), clips[0].camera_to_world, strict=False):  # each picture has the pose of its own time
        np.testing.assert_allclose(pose, first @ rare.camera_to_world[i], atol=1e-6)
    with pytest.raises(SourceError, match="8.0 pictures a second are fewer"):
        choose(recording(tmp_path, 8), 16)


def test_recordings_that_cannot_be_right_are_refused(tmp_path):
    good = recording(tmp_path, 16)
    bad = good.camera_to_world.copy()
    bad[3, 0, 0] += 1
    with pytest.raises(SourceError, match="pose 3 is no rotation"):
        Recording("r", good.pictures, good.times, bad, good.intrinsics)
    zoom = good.intrinsics * np.linspace(1, 1.5, 13)[:, None]
    with pytest.raises(SourceError, match="zooms"):
        list(make_clips(Recording("r", good.pictures, good.times, good.camera_to_world, zoom), Cut((16, 16), 5)))
    with pytest.raises(SourceError, match="13 frames at 16 a second are fewer than a clip of 81"):
        list(make_clips(good, Cut((16, 16), 81)))


def write_worldplay(folder, name, frames, poses=None):
    write_pictures(folder / name, [[[40, 30], [50, 40], [60, 50]]] * frames)
    k = [[90, 0, 48], [0, 90, 36], [0, 0, 1]]
    rows = {str(i): {"extrinsic": p.tolist(), "K": k} for i, p in enumerate(path_of(poses or frames))}
    (folder / f"{name}.json").write_text(json.dumps(rows))


def test_bad_recordings_are_named_and_the_others_imported(tmp_path, capsys):
    source = tmp_path / "in"
    write_worldplay(source, "good", 11)
    write_worldplay(source, "uneven", 9, poses=7)
    write_worldplay(source, "lonely", 9)
    (source / "lonely").rename(source / "elsewhere")
    (source / "broken.json").write_text('{"0": {"K": 1}}')
    run("worldplay", source, "--out", tmp_path / "out", "--size", 16, "--frames", 5, code=1)
    said = capsys.readouterr()
    assert "uneven: 7 poses but 9 frames" in said.err
    assert "lonely: no video or folder of pictures" in said.err and "--video" in said.err
    assert "broken.json: this is not" in said.err
    assert "2 clips; 3 recordings were left out" in said.out
    assert [s.name for s in stems(tmp_path / "out")] == ["good-0000", "good-0001"]


def test_a_stopped_import_goes_on(tmp_path, capsys):
    write_worldplay(tmp_path, "good", 11)
    command = ["worldplay", tmp_path / "good.json", "--out", tmp_path / "out", "--size", 16, "--frames", 5]
    run(*command)
    kept, lost = tmp_path / "out" / "good-0000.mp4", tmp_path / "out" / "good-0001.json"
    before, text = kept.stat().st_mtime_ns, lost.read_text()
    lost.unlink()
    run(*command)
    assert kept.stat().st_mtime_ns == before and lost.read_text() == text
    with pytest.raises(SystemExit):
        run(*command[:-1], 9)
    assert "begun with other settings" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("worldplay", tmp_path / "nothing.json", "--out", tmp_path / "out")
    assert "does not exist" in capsys.readouterr().err
