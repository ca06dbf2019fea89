"""nerfstudio: transforms.json beside its pictures, camera-to-world with OpenGL axes (+X right, +Y up, -Z forward).

Pictures are taken in the order of their names, as frames of a walk shown at --source-fps; a set of photographs from all sides
is no walk. Lens distortion (k1, k2, ...) is not undone; fisheye pictures are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from distill.importers.pictures import PICTURE_SUFFIXES, PictureFiles, SourceError, natural
from distill.importers.recording import Options, Recording

_FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV's camera axes in OpenGL's
_PINHOLE = {"PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE"}


def entries(source: Path, options: Options) -> dict[str, Callable[[], Recording]]:
    if source.is_file():
        files = [source]
    else:
        files = [source / "transforms.json"] if (source / "transforms.json").exists() else sorted(source.glob("*/transforms.json"))
    return {file.absolute().parent.name: lambda file=file: read(file, options) for file in files}


def read(file: Path, options: Options) -> Recording:
    data = json.loads(file.read_text())
    name = file.absolute().parent.name
    frames = sorted(data.get("frames", []), key=lambda f: natural(f["file_path"]))
    if not frames:
        raise SourceError(f"{file}: there are no frames.")
    if (model := data.get("camera_model", "OPENCV")) not in _PINHOLE:
        raise SourceError(f"{file}: camera model {model} is not a pinhole; undistort the pictures first.")
    folder = options.video if options.video is not None and options.video.is_dir() else file.parent
    pictures = PictureFiles([_picture(folder, f["file_path"]) for f in frames], np.arange(len(frames)) / options.source_fps)
    poses = np.array([f["transform_matrix"] for f in frames], dtype=np.float64)
    if poses.shape[1:] == (3, 4):
        poses = np.concatenate([poses, np.broadcast_to([[[0, 0, 0, 1.0]]], (len(poses), 1, 4))], 1)
    lens = np.array([_intrinsics(file, {**data, **f}, pictures.size) for f in frames])
    return Recording(name, pictures, pictures.times, poses @ _FLIP, lens)


def _picture(folder: Path, path: str) -> Path:
    for candidate in (folder / path, *(folder / f"{path}{suffix}" for suffix in PICTURE_SUFFIXES)):
        if candidate.is_file():
            return candidate
    raise SourceError(f"{folder / path}: this picture is missing.")


def _intrinsics(file: Path, camera: dict, size: tuple[int, int]) -> tuple[float, float, float, float]:
    width, height = camera.get("w", size[1]), camera.get("h", size[0])
    if "fl_x" in camera:
        fx = camera["fl_x"]
        fy = camera.get("fl_y", fx)
    elif "camera_angle_x" in camera:
        fx = fy = 0.5 * width / np.tan(camera["camera_angle_x"] / 2)
    else:
        raise SourceError(f"{file}: there is no focal length (fl_x or camera_angle_x).")
    return fx / width, fy / height, camera.get("cx", width / 2) / width, camera.get("cy", height / 2) / height
