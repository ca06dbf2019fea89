"""Sekai: a CSV with a row a video (videoFile, cameraFile, caption), mp4 files, and an npz of camera matrices for each.

The npz holds `extrinsic` [F, 4, 4] and `intrinsic` [3, 3] or [F, 3, 3], in units of the picture's width and height, OpenCV
axes. Its page says only that both are normalised, not which way the extrinsic matrices go; people who use the game part take
them as camera-to-world, and so does this importer unless told otherwise (--extrinsics w2c). Look at a clip's actions once.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distill.importers.pictures import SourceError, find_pictures, open_pictures
from distill.importers.recording import Options, Recording, paired


def entries(source: Path, options: Options) -> dict[str, Callable[[], Recording]]:
    with source.open(newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    if lacking := [c for c in ("videoFile", "cameraFile") if rows and c not in rows[0]]:
        raise SourceError(f"{source}: there is no column {lacking[0]}; Sekai's columns are videoFile, cameraFile, caption.")
    return {Path(row["videoFile"]).stem: lambda row=row: read(row, source.parent, options) for row in rows}


def read(row: dict[str, str], beside: Path, options: Options) -> Recording:
    name = Path(row["videoFile"]).stem
    folder = options.video if options.video is not None and options.video.is_dir() else beside
    camera = folder / row["cameraFile"]
    if not camera.is_file():
        raise SourceError(f"{name}: {camera} is missing; say in which folder Sekai's files lie with --video.")
    with np.load(camera) as data:
        if lacking := [k for k in ("extrinsic", "intrinsic") if k not in data]:
            raise SourceError(f"{camera}: there is no array {lacking[0]}, only {', '.join(data)}.")
        extrinsic, k = np.asarray(data["extrinsic"], dtype=np.float64), np.asarray(data["intrinsic"], dtype=np.float64)
    if extrinsic.ndim != 3 or extrinsic.shape[1:] not in ((4, 4), (3, 4)) or k.shape[-2:] != (3, 3):
        raise SourceError(f"{camera}: extrinsic is [F, 4, 4] and intrinsic [3, 3], got {extrinsic.shape} and {k.shape}.")
    poses = np.tile(np.eye(4), (len(extrinsic), 1, 1))
    poses[:, :3] = extrinsic[:, :3]
    if options.extrinsics == "w2c":
        poses = np.linalg.inv(poses)
    if not 0 < k[..., 0, 2].max() < 2:
        raise SourceError(f"{camera}: the intrinsics are not in units of width and height (cx is {k[..., 0, 2].max():g}).")
    lens = np.stack([k[..., 0, 0], k[..., 1, 1], k[..., 0, 2], k[..., 1, 2]], -1)
    pictures = open_pictures(find_pictures([row["videoFile"], name], options.video, beside), options.source_fps)
    return Recording(
        name, pictures, paired(name, pictures, len(poses)), poses, np.broadcast_to(lens, (len(poses), 4)), row.get("caption") or ""
    )
