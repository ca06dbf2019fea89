"""The frames of a recording: a video file, or a folder of pictures, read one by one and never all at once."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class SourceError(ValueError):
    """A recording that cannot be imported; the message says which one, why, and what would help."""


class VideoFile:
    """A video and the times of its frames (seconds from its first frame)."""

    def __init__(self, path: Path) -> None:
        import av

        self.path = path
        try:
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                self.size = (stream.codec_context.height, stream.codec_context.width)
                self.pts = np.array(sorted(p.pts for p in container.demux(stream) if p.pts is not None), dtype=np.int64)
                self.times = (self.pts - self.pts[:1]) * float(stream.time_base)
        except (av.FFmpegError, IndexError) as error:
            raise SourceError(f"{path}: this is no video that FFmpeg can read ({error}).") from error

    def __len__(self) -> int:
        return len(self.pts)

    def read(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """The pictures with these increasing indices."""
        import av

        wanted = [int(self.pts[i]) for i in indices]
        with av.open(str(self.path)) as container:
            stream = container.streams.video[0]
            container.seek(wanted[0], stream=stream)  # to the key frame before
            for frame in container.decode(stream):
                if wanted and frame.pts == wanted[0]:
                    wanted.pop(0)
                    yield frame.to_image()
                if not wanted:
                    return
        raise SourceError(f"{self.path}: {len(wanted)} frames that the file lists could not be decoded; it may be cut off.")


class PictureFiles:
    """Pictures in order; `times` are seconds."""

    def __init__(self, files: Sequence[Path], times: np.ndarray) -> None:
        self.files, self.times = list(files), np.asarray(times, dtype=np.float64)
        self.path = self.files[0].parent
        with Image.open(self.files[0]) as first:
            self.size = (first.height, first.width)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        for i in indices:
            with Image.open(self.files[i]) as picture:
                if (picture.height, picture.width) != self.size:
                    raise SourceError(f"{self.files[i]}: {picture.height}x{picture.width} pixels, but the first picture has {self.size}.")
                yield picture.convert("RGB")


Pictures = VideoFile | PictureFiles


def natural(path: Path | str) -> list:
    """Sorting key by which frame 2 comes before frame 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def open_pictures(path: Path, fps: float) -> Pictures:
    """A video file, or a folder of pictures shown at `fps`."""
    if not path.is_dir():
        return VideoFile(path)
    files = sorted((p for p in path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES), key=natural)
    if not files:
        raise SourceError(f"{path}: there are no pictures ({', '.join(PICTURE_SUFFIXES)}) in this folder.")
    return PictureFiles(files, np.arange(len(files)) / fps)


def find_pictures(names: Sequence[str], given: Path | None, beside: Path) -> Path:
    """The video or folder of pictures of a recording.

    `given` (what the user named) is the video itself, or a folder in which one of `names` is a video or a folder of pictures.
    Without it the folder `beside` is searched.
    """
    if given is not None and given.is_file():
        return given
    folder = beside if given is None else given
    for name in names:
        for candidate in (folder / name, *(folder / f"{name}{suffix}" for suffix in VIDEO_SUFFIXES)):
            if candidate.is_file() and candidate.suffix.lower() in VIDEO_SUFFIXES:
                return candidate
            if candidate.is_dir() and any(p.suffix.lower() in PICTURE_SUFFIXES for p in candidate.iterdir()):
                return candidate
    raise SourceError(f"{names[0]}: no video or folder of pictures called {' or '.join(names)} in {folder}; say where with --video.")
