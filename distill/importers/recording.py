"""A posed recording of any format, and how it is cut into clips.

Pictures are taken at the asked rate, always the nearest one that was really shot; its pose is interpolated at that picture's
own time (rotation by slerp, position linearly), so what is seen and where the camera stands are the same instant. Pictures
are cropped about their middle and scaled to the asked size, and the intrinsics with them. One translation step of a clip is
the mean displacement over the frames that move (RELIC, arXiv 2512.04040, Algorithm 1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from distill.dataset import Clip
from distill.importers.pictures import Pictures, SourceError
from worldmodel.camera import actions_from_poses, relative_to_first

_STILL = 1e-6  # a displacement, in the recording's unit of length; as in `worldmodel.camera`
_SAME_RATE = 0.02  # a recording whose rate is this near to the asked one is taken picture by picture
_ZOOM = 0.02  # change of focal length within a clip that counts as none


@dataclass(frozen=True)
class Options:
    """What a format may need to be told."""

    video: Path | None = None  # the video, or the folder with the videos or pictures
    source_fps: float = 16.0  # of pictures in a folder
    extrinsics: str = "c2w"  # Sekai: what its extrinsic matrices are, "c2w" or "w2c"


@dataclass(frozen=True)
class Recording:
    """Poses and the pictures that they belong to."""

    name: str
    pictures: Pictures
    times: np.ndarray  # float64 [F], seconds of each pose on the clock of the pictures, increasing
    camera_to_world: np.ndarray  # float64 [F, 4, 4], OpenCV axes, any unit of length
    intrinsics: np.ndarray  # float64 [F, 4]: fx/W, fy/H, cx/W, cy/H of the pictures as they are
    caption: str = ""

    def __post_init__(self) -> None:
        rotation = self.camera_to_world[:, :3, :3]
        if not (np.isfinite(self.camera_to_world).all() and np.isfinite(self.intrinsics).all()):
            raise SourceError(f"{self.name}: some poses or intrinsics are not finite numbers.")
        if len(self.times) < 2 or not (np.diff(self.times) > 0).all():
            raise SourceError(f"{self.name}: needs at least two poses whose times increase, has {len(self.times)}.")
        off = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2)) + (np.linalg.det(rotation) < 0)
        if off.max() > 1e-2:
            raise SourceError(f"{self.name}: pose {off.argmax()} is no rotation and translation; is this the right format?")


@dataclass(frozen=True)
class Cut:
    """What clips are wanted."""

    size: tuple[int, int] = (128, 128)  # height, width
    frames: int = 81
    fps: float = 16.0


def paired(name: str, pictures: Pictures, poses: int) -> np.ndarray:
    """Times of the pictures, of which there must be one for each pose."""
    if len(pictures) != poses:
        raise SourceError(f"{name}: {poses} poses but {len(pictures)} frames in {pictures.path}; they have to be as many.")
    return pictures.times


def interpolate(times: np.ndarray, poses: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Poses [K, 4, 4] at times `at` [K] of poses [F, 4, 4] at `times` [F]; outside, the first and the last hold."""
    from scipy.spatial.transform import Rotation, Slerp

    at = np.clip(at, times[0], times[-1])
    out = np.tile(np.eye(4), (len(at), 1, 1))
    out[:, :3, :3] = Slerp(times, Rotation.from_matrix(poses[:, :3, :3]))(at).as_matrix()
    out[:, :3, 3] = np.stack([np.interp(at, times, poses[:, i, 3]) for i in range(3)], -1)
    return out


def choose(recording: Recording, fps: float) -> np.ndarray:
    """Indices [K] of the pictures nearest to a steady `fps`, from the first pose to the last."""
    t, slack = recording.pictures.times, 1e-3
    inside = np.flatnonzero((t >= recording.times[0] - slack) & (t <= recording.times[-1] + slack))
    if len(inside) < 2:
        raise SourceError(f"{recording.name}: no frames of {recording.pictures.path} lie between the first and the last pose.")
    t = t[inside]
    apart = float(np.median(np.diff(t)))
    if abs(apart * fps - 1) < _SAME_RATE:
        return inside
    target = t[0] + np.arange(int((t[-1] - t[0]) * fps + slack) + 1) / fps
    right = np.clip(np.searchsorted(t, target), 1, len(t) - 1)
    nearest = np.where(target - t[right - 1] < t[right] - target - 1e-6, right - 1, right)  # half-way: always the later one
    if (np.diff(nearest) == 0).any():
        raise SourceError(
            f"{recording.name}: about {1 / apart:.1f} pictures a second are fewer than the {fps:g} asked for; "
            "ask for fewer (--fps), or say how fast a folder of pictures is to be shown (--source-fps)."
        )
    return inside[nearest]


def crop_box(source: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest centred box (left, top, right, bottom; pixels) of `source` (height, width) in the shape of `size`."""
    scale = max(size[0] / source[0], size[1] / source[1])
    height, width = size[0] / scale, size[1] / scale
    left, top = (source[1] - width) / 2, (source[0] - height) / 2
    return left, top, left + width, top + height


def crop_intrinsics(intrinsics: np.ndarray, source: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Normalised intrinsics [..., 4] after cropping `source` to `crop_box` and scaling it to `size`."""
    left, top, right, bottom = crop_box(source, size)
    width, height = right - left, bottom - top
    fx, fy, cx, cy = np.moveaxis(np.asarray(intrinsics, dtype=np.float64), -1, 0)
    h, w = source
    return np.stack([fx * w / width, fy * h / height, (cx * w - left) / width, (cy * h - top) / height], -1)


def count_clips(recording: Recording, cut: Cut) -> int:
    """How many whole clips the recording gives; none is an error that says how long it is."""
    chosen = len(choose(recording, cut.fps))
    if chosen < cut.frames:
        raise SourceError(f"{recording.name}: {chosen} frames at {cut.fps:g} a second are fewer than a clip of {cut.frames} (--frames).")
    return chosen // cut.frames


def make_clips(recording: Recording, cut: Cut, skip: frozenset[int] = frozenset()) -> Iterator[tuple[int, Clip]]:
    """Number and clip, one after the other; the numbers in `skip` are not decoded. What is left at the end is dropped.

    World axes are those of the recording's first pose.
    """
    pictures = recording.pictures
    world = relative_to_first(recording.camera_to_world)
    chosen = choose(recording, cut.fps)
    for number in range(count_clips(recording, cut)):
        if number in skip:
            continue
        mine = chosen[number * cut.frames : (number + 1) * cut.frames]
        at = pictures.times[mine]
        lens = np.stack([np.interp(at, recording.times, recording.intrinsics[:, i]) for i in range(4)], -1)
        if np.ptp(lens[:, :2], axis=0).max() > _ZOOM * lens[:, :2].min():
            raise SourceError(f"{recording.name}: the lens zooms between {at[0]:.1f} and {at[-1]:.1f} s; a clip has one focal length.")
        poses = interpolate(recording.times, world, at)
        moved = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=-1)
        step = float(moved[moved > _STILL].mean()) if (moved > _STILL).any() else 1.0
        box, size = crop_box(pictures.size, cut.size), (cut.size[1], cut.size[0])
        frames = np.stack([np.asarray(p.resize(size, Image.Resampling.BICUBIC, box)) for p in pictures.read(mine)])
        yield number, Clip(
            frames, poses.astype(np.float32), crop_intrinsics(lens.mean(0), pictures.size, cut.size).astype(np.float32),
            actions_from_poses(poses, step), recording.caption, step, fps=cut.fps,
        )  # fmt: skip
