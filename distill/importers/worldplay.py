"""HY-WorldPlay: JSON ``{"0": {"extrinsic": 4x4 camera-to-world, "K": 3x3}, ...}``, OpenCV axes, with the video (--video).

K's picture is twice its principal point wide and high, as the model itself reads it, so the video may have another size. There
is a pose for every frame, or one for every latent frame: then 1 + 4 (n - 1) frames belong to n poses, which we put at frames
0, 4, 8, ... and interpolate (which frame of four a pose is meant for is not said; the last one is our reading).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distill.importers.pictures import SourceError, find_pictures, open_pictures
from distill.importers.recording import Options, Recording, paired


def entries(source: Path, options: Options) -> dict[str, Callable[[], Recording]]:
    files = sorted(source.glob("*.json")) if source.is_dir() else [source]
    return {file.stem: lambda file=file: read(file, options) for file in files}


def read(file: Path, options: Options) -> Recording:
    name, data = file.stem, json.loads(file.read_text())
    try:
        rows = [data[key] for key in sorted(data, key=int)]
        poses = np.array([row["extrinsic"] for row in rows], dtype=np.float64).reshape(-1, 4, 4)
        k = np.array([row["K"] for row in rows], dtype=np.float64).reshape(-1, 3, 3)
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f'{file}: this is not {{"0": {{"extrinsic": 4x4, "K": 3x3}}, ...}} ({error!r}).') from error
    width, height = 2 * k[:, 0, 2], 2 * k[:, 1, 2]
    if not ((width > 0) & (height > 0)).all():
        raise SourceError(f"{file}: the principal point of K is not inside the picture.")
    half = np.full(len(k), 0.5)
    lens = np.stack([k[:, 0, 0] / width, k[:, 1, 1] / height, half, half], -1)
    pictures = open_pictures(find_pictures([name], options.video, file.parent), options.source_fps)
    per_latent = len(poses) > 1 and len(pictures) == 1 + 4 * (len(poses) - 1)
    times = pictures.times[::4] if per_latent else paired(name, pictures, len(poses))
    return Recording(name, pictures, times, poses, lens)
