"""Posed clips on disk.

A data set is a folder of same-stem triples and one index::

    clip000001.mp4         the frames, H.264 4:4:4, near-lossless
    clip000001.camera.npz  c2w float32 [F, 4, 4]     camera-to-world, OpenCV axes (+X right, +Y down, +Z forward), metres
                           intrinsics float32 [F, 4] fx/W, fy/H, cx/W, cy/H
                           actions float32 [F, 13]   what led to each frame; the first is static
                           step float32 []           metres of a translation of magnitude 1.0
    clip000001.json        caption, fps, num_frames, height, width, seed, start
    metadata.jsonl         one line per clip: file_name and the same fields

The folder loads as a `datasets` VideoFolder; the same files in a tar load as a WebDataset shard. Where PyAV is not installed,
clips are read and written with clip000001.npy, the frames as they are (uint8 [F, H, W, 3]), in the place of the video.
"""

from __future__ import annotations

import importlib.util
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

VIDEO = ".mp4" if importlib.util.find_spec("av") else ".npy"


@dataclass(frozen=True)
class Clip:
    """Video with exact camera and actions."""

    frames: np.ndarray  # uint8 [T, H, W, 3]
    camera_to_world: np.ndarray  # float32 [T, 4, 4], OpenCV axes, metres
    intrinsics: np.ndarray  # float32 [4]: fx/W, fy/H, cx/W, cy/H
    actions: np.ndarray  # float32 [T, 13]
    caption: str = ""
    step: float = 1.0  # metres of a translation of magnitude 1.0
    seed: int = -1  # of the scene; -1: not one of ours
    start: int = -1  # index of the start view in the scene
    fps: float = 16.0
    depth: np.ndarray | None = None  # float32 [T, H, W], metres along the camera's axis; lives in memory only

    def __len__(self) -> int:
        return len(self.frames)


def paths(stem: str | Path) -> tuple[Path, Path, Path]:
    """The three files of a clip: video, camera, description."""
    stem = str(stem)
    return Path(f"{stem}{VIDEO}"), Path(f"{stem}.camera.npz"), Path(f"{stem}.json")


def write_clip(stem: str | Path, clip: Clip, crf: int = 6, **extra) -> dict:
    """Write the clip's three files and return its description; the JSON comes last, so where it is the clip is complete.

    `extra` entries are added to the description.
    """
    video, camera, description = paths(stem)
    video.parent.mkdir(parents=True, exist_ok=True)
    _replace(video, lambda path: _encode(path, clip.frames, clip.fps, crf))
    _replace(camera, lambda path: _save_camera(path, clip))
    count, height, width = clip.frames.shape[:3]
    facts = {
        "caption": clip.caption, "fps": clip.fps, "num_frames": count, "height": height, "width": width,
        "seed": clip.seed, "start": clip.start, **extra,
    }  # fmt: skip
    _replace(description, lambda path: path.write_text(json.dumps(facts, indent=1) + "\n"))
    return facts


def read_clip(stem: str | Path) -> Clip:
    """The clip with this path stem (folder/clip000001)."""
    video, camera, description = paths(stem)
    facts = json.loads(description.read_text())
    with np.load(camera) as data:
        c2w, intrinsics, actions, step = data["c2w"], data["intrinsics"], data["actions"], float(data["step"])
    frames = _decode(video)
    if not len(frames) == len(c2w) == len(actions):
        raise ValueError(f"{stem}: {len(frames)} frames, {len(c2w)} poses, {len(actions)} actions; write the clip again.")
    return Clip(frames, c2w, intrinsics[0], actions, facts["caption"], step, facts["seed"], facts["start"], facts["fps"])


def stems(folder: str | Path) -> list[Path]:
    """Path stems of the complete clips in a folder, in order."""
    return [p.with_suffix("") for p in sorted(Path(folder).glob("*.json")) if all(q.exists() for q in paths(p.with_suffix("")))]


def write_index(folder: str | Path) -> int:
    """(Re)write metadata.jsonl from the complete clips in `folder`; returns their number."""
    rows = [json.dumps({"file_name": f"{stem.name}{VIDEO}", **json.loads(paths(stem)[2].read_text())}) for stem in stems(folder)]
    _replace(Path(folder) / "metadata.jsonl", lambda path: path.write_text("".join(row + "\n" for row in rows)))
    return len(rows)


def _replace(target: Path, write) -> None:
    """Write to a temporary name beside the target, then rename: a file that exists is whole."""
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _save_camera(path: Path, clip: Clip) -> None:
    with path.open("wb") as file:
        np.savez(
            file, c2w=clip.camera_to_world.astype(np.float32), intrinsics=np.tile(clip.intrinsics.astype(np.float32), (len(clip), 1)),
            actions=clip.actions.astype(np.float32), step=np.float32(clip.step),
        )  # fmt: skip


def _encode(path: Path, frames: np.ndarray, fps: float, crf: int) -> None:
    if path.suffix == ".npy":
        np.save(path, frames)
        return
    from fractions import Fraction

    import av

    with av.open(str(path), "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": "veryfast", "threads": "1"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def _decode(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        return np.load(path)
    import av
    from av.video.reformatter import VideoReformatter

    convert = VideoReformatter()  # one for all frames: setting up a conversion costs ten times the conversion
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([convert.reformat(frame, format="rgb24").to_ndarray() for frame in container.decode(video=0)])
