"""LingBot: a folder with poses.npy [F, 4, 4] (camera-to-world, OpenCV), intrinsics.npy [F, 4] in pixels, prompt.txt, image.jpg.

Such a folder asks for a video; this importer takes it together with the video that was made (--video, or a video or a folder
`frames` inside). The pixels of the intrinsics are those of image.jpg, or of the video where there is no picture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from distill.importers.pictures import SourceError, find_pictures, open_pictures
from distill.importers.recording import Options, Recording, paired


def entries(source: Path, options: Options) -> dict[str, Callable[[], Recording]]:
    folders = [source] if (source / "poses.npy").exists() else sorted(p.parent for p in source.glob("*/poses.npy"))
    return {folder.absolute().name: lambda folder=folder: read(folder, options) for folder in folders}


def read(folder: Path, options: Options) -> Recording:
    name = folder.absolute().name
    poses = np.load(folder / "poses.npy").astype(np.float64)
    if not (folder / "intrinsics.npy").exists():
        raise SourceError(f"{name}: {folder / 'intrinsics.npy'} is missing.")
    lens = np.load(folder / "intrinsics.npy").astype(np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or lens.shape not in ((4,), (len(poses), 4)):
        raise SourceError(f"{name}: poses.npy is [F, 4, 4] and intrinsics.npy [F, 4], got {poses.shape} and {lens.shape}.")
    if options.video is None:
        where = find_pictures(["video", "frames", name], None, folder)
    else:
        where = find_pictures([name], options.video, folder)
    pictures = open_pictures(where, options.source_fps)
    height, width = pictures.size
    if (folder / "image.jpg").exists():
        with Image.open(folder / "image.jpg") as image:
            width, height = image.size
    prompt = folder / "prompt.txt"
    return Recording(
        name, pictures, paired(name, pictures, len(poses)), poses,
        np.broadcast_to(lens / np.array([width, height, width, height]), (len(poses), 4)),
        prompt.read_text() if prompt.exists() else "",
    )  # fmt: skip
