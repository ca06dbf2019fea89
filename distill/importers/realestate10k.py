"""RealEstate10K: one text file a clip, the video or its frames from the user.

The first line is the video's address. Every other line is a frame: time in microseconds, fx fy cx cy in units of width and
height, two zeros, and the 3x4 world-to-camera matrix by rows, OpenCV axes. Pictures are looked for by the text file's name and
by the video's id. Of a long video the frames at the poses' times are taken; pictures named by their time, or as many pictures
as poses, are taken one to one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlparse

import numpy as np

from distill.importers.pictures import PictureFiles, Pictures, SourceError, find_pictures, open_pictures
from distill.importers.recording import Options, Recording


def entries(source: Path, options: Options) -> dict[str, Callable[[], Recording]]:
    files = sorted(source.glob("*.txt")) if source.is_dir() else [source]
    return {file.stem: lambda file=file: read(file, options) for file in files}


def read(file: Path, options: Options) -> Recording:
    address, *lines = file.read_text().split("\n")
    lines = [line.split() for line in lines if line.strip()]
    if bad := [i for i, line in enumerate(lines) if len(line) != 19]:
        raise SourceError(f"{file}: line {bad[0] + 2} has {len(lines[bad[0]])} numbers, a RealEstate10K line has 19.")
    if not lines:
        raise SourceError(f"{file}: there are no poses after the first line.")
    rows = np.array(lines, dtype=np.float64)
    world_to_camera = np.tile(np.eye(4), (len(rows), 1, 1))
    world_to_camera[:, :3] = rows[:, 7:].reshape(-1, 3, 4)
    names = [file.stem, *_video_id(address.strip())]
    pictures = open_pictures(find_pictures(names, options.video, file.parent), options.source_fps)
    pictures, times = _match(file.stem, pictures, rows[:, 0] * 1e-6)
    return Recording(file.stem, pictures, times, np.linalg.inv(world_to_camera), rows[:, 1:5])


def _match(name: str, pictures: Pictures, seconds: np.ndarray) -> tuple[Pictures, np.ndarray]:
    """Pictures and pose times on one clock."""
    if isinstance(pictures, PictureFiles):
        stamped = {int(p.stem): p for p in pictures.files if p.stem.isdigit()}
        stamps = np.round(seconds * 1e6).astype(int).tolist()
        if all(s in stamped for s in stamps):
            return PictureFiles([stamped[s] for s in stamps], seconds), seconds
    if len(pictures) == len(seconds):  # cut to the clip already: one to one
        pictures.times = seconds
        return pictures, seconds
    if isinstance(pictures, PictureFiles):
        raise SourceError(
            f"{name}: {len(seconds)} poses but {len(pictures)} pictures in {pictures.path}, and they are not named by the poses' times."
        )
    if pictures.times[-1] < seconds[-1] - 0.1:
        raise SourceError(
            f"{name}: {len(seconds)} poses up to {seconds[-1]:.1f} s but {len(pictures)} frames in {pictures.path}, "
            f"which ends at {pictures.times[-1]:.1f} s."
        )
    return pictures, seconds


def _video_id(address: str) -> list[str]:
    link = urlparse(address)
    return [v for v in (*parse_qs(link.query).get("v", []), link.path.rsplit("/", 1)[-1]) if v and v != "watch"]
