"""Which pixels of a walk show what was in view before, from exact poses and depth, and how like the truth a video is there.

A pixel's surface point is followed through the other frames of the walk: it is in view where it falls inside the picture and
nothing is in front of it. Only the true walk enters, so all videos of a walk are measured on the same pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from distill.dataset import Clip
from distill.scenes import FPS, depth_maps
from distill.suite_measures import GAPS

GRID = 64  # pixels of the longer side at which points are followed
_EVERY, _MOST = 4, 160  # every fourth frame; fewer in walks so long that this would be more than _MOST
_DEPTH_RATIO, _DEPTH_METRES = 0.05, 0.03  # a point is the surface in view if its depth is this close to it
_EDGE = 0.1  # pixels whose inverse depth is not that of a plane to within this share are edges and left out
_FEWEST = 300  # pixels that a figure of one walk needs


@dataclass(frozen=True)
class Views:
    """For N sampled frames of a walk and the P = h w points of each; made by `views`.

    Points at edges of depth are marked invalid: a pixel there is a mixture of two surfaces.
    """

    frames: np.ndarray  # int [N], which frames of the walk
    size: tuple[int, int]  # (h, w)
    truth: np.ndarray  # float32 [N, h, w, 3], the true frames at that size
    valid: np.ndarray  # bool [N, P]
    given: np.ndarray  # bool [N, P]: the point is in view in frame 0, the start picture
    new: np.ndarray  # bool [N, P]: in view in no earlier sampled frame
    away: np.ndarray  # float32 [N, P]: the longest time in seconds that it went out of view before it came back; 0: never
    before: np.ndarray  # int [N, P]: sampled frame in which it was last seen before that time
    where: np.ndarray  # float32 [N, P, 2]: and at which pixel (column, row) of it


def small(video: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 [N, h, w, 3], area means of [N, H, W, 3]"""
    return np.stack([cv2.resize(np.ascontiguousarray(f), size[::-1], interpolation=cv2.INTER_AREA) for f in video]).astype(np.float32)


def views(clip: Clip) -> Views:
    """What a rendered walk sees again; about two seconds for 20 s of walk."""
    every = _EVERY * max(1, -(-len(clip) // (_EVERY * _MOST)))
    frames = np.arange(0, len(clip), every)
    height, width = clip.frames.shape[1:3]
    size = tuple(max(2, round(n * GRID / max(height, width))) for n in (height, width))
    poses = clip.camera_to_world[frames].astype(np.float64)
    depth = depth_maps(clip.seed, poses, size)
    rows = []
    for i in range(len(frames)):
        seen, where = follow(poses[: i + 1], depth[: i + 1], clip.intrinsics)
        away, before = absence(seen, every / FPS)
        at = where[np.maximum(before, 0), np.arange(where.shape[1])]
        rows.append((seen[0], ~seen[:-1].any(0), away, before, at))
    valid = np.stack([~edges(d).ravel() for d in depth])
    return Views(frames, size, small(clip.frames[frames], size), valid, *(np.stack(r) for r in zip(*rows, strict=True)))


def follow(poses: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the points that the last of n frames sees are in each of them.

    Args:
        poses: camera-to-world [n, 4, 4].
        depth: [n, h, w] along the camera's axis, infinite for what is too far away to move.
        intrinsics: [4] fx/W, fy/H, cx/W, cy/H.

    Returns:
        (bool [n, P] whether each point of the last frame is in view in frame j, P = h w;
         float32 [n, P, 2] its pixel (column, row) there, 0 being the centre of the first)
    """
    n, height, width = depth.shape
    fx, fy, cx, cy = np.float32(intrinsics) * np.float32([width, height, width, height]) - np.float32([0, 0, 0.5, 0.5])
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2).astype(np.float32)
    rays = np.stack([(pixels[:, 0] - cx) / fx, (pixels[:, 1] - cy) / fy, np.ones(len(pixels), np.float32)])  # [3, P], of depth 1
    inverse = _inverse(depth)
    nearness = inverse[-1].ravel()
    seen, where = np.zeros((n, len(pixels)), dtype=bool), np.zeros((n, len(pixels), 2), dtype=np.float32)
    for j in range(n - 1):
        turn = (poses[j, :3, :3].T @ poses[-1, :3, :3]).astype(np.float32)
        shift = (poses[j, :3, :3].T @ (poses[-1, :3, 3] - poses[j, :3, 3])).astype(np.float32)
        x, y, z = turn @ rays + shift[:, None] * nearness  # in camera j, in units of the point's depth in the last one
        ahead = z > 1e-3
        here = np.divide(1, z, out=np.zeros_like(z), where=ahead)
        u, v = fx * x * here + cx, fy * y * here + cy
        inside = ahead & (u >= 0) & (u <= width - 1) & (v >= 0) & (v <= height - 1)
        if inside.any():
            surface = cv2.remap(inverse[j], u.reshape(height, width), v.reshape(height, width), cv2.INTER_LINEAR).ravel()
            here *= nearness  # the point's inverse depth in camera j
            seen[j] = inside & (np.abs(surface - here) <= _DEPTH_RATIO * here + _DEPTH_METRES * here * surface)
            where[j, :, 0], where[j, :, 1] = u, v
    seen[-1], where[-1] = True, pixels
    return seen, where


def _inverse(depth: np.ndarray) -> np.ndarray:
    """1 / depth, float32: on a plane it is linear in the picture"""
    return np.where(np.isfinite(depth), 1 / np.maximum(depth, 1e-3), 0).astype(np.float32)


def edges(depth: np.ndarray) -> np.ndarray:
    """Where inverse depth, of depth [h, w], bends by more than a share `_EDGE` of itself between neighbours: bool [h, w]"""
    inverse = _inverse(depth)
    bends = [np.abs(cv2.filter2D(inverse, -1, k, borderType=cv2.BORDER_REPLICATE)) for k in (_BEND, _BEND.T)]
    return np.maximum(*bends) > _EDGE * cv2.dilate(inverse, np.ones((3, 3), np.uint8)) + 1e-6


_BEND = np.array([[0, 0, 0], [1, -2, 1], [0, 0, 0]], dtype=np.float32)


def absence(seen: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """The longest time that points were out of view, from seen [n, P] (in view in frame j), frames this many seconds apart.

    Returns:
        (float32 [P] seconds between the view before that time and the one after it, 0 for points never out of view;
         int [P] the frame before, -1 where there is none)
    """
    last = np.full(seen.shape[1], -1)
    longest, before = np.zeros_like(last), last.copy()
    for j, now in enumerate(seen):
        gap = np.where(now & (last >= 0), j - last, 0)
        better = (gap > longest) & (gap > 1)
        longest, before = np.where(better, gap, longest), np.where(better, last, before)
        last = np.where(now, j, last)
    return (longest * seconds).astype(np.float32), before


def seen_again(video: np.ndarray, view: Views) -> dict:
    """PSNR in dB of a video uint8 [T, H, W, 3] of the walk, by what its pixels show; each figure over all pixels of its kind.

    Returns:
        ``{"given": [share of pixels, PSNR to truth]}`` where the point is in the start picture, ``"invented"`` where it is not, ``"new"``
        where it was in no earlier frame, and for each gap ``{"5": [share, PSNR to the video's own earlier view, share of
        given points, PSNR to truth on these]}`` where it came back after at least so many seconds. Fewer than 300 pixels have
        PSNR None.
    """
    ours = small(video[view.frames], view.size)
    n, (height, width) = len(ours), view.size
    later = np.arange(n)[:, None] > 0
    to_truth = np.square(ours - view.truth).mean(-1).reshape(n, -1)
    valid = view.valid & later
    known = {"given": view.given, "invented": ~view.given, "new": view.new}
    out: dict = {name: _figure(to_truth, kind & valid, valid) for name, kind in known.items()}
    warped = _sample(ours, np.maximum(view.before, 0), view.where).reshape(n, height * width, 3)
    to_own = np.square(ours.reshape(n, -1, 3) - warped).mean(-1)
    for gap in GAPS:
        back = valid & (view.away >= gap)
        if back.sum() >= _FEWEST:
            out[str(gap)] = [*_figure(to_own, back, valid), *_figure(to_truth, back & view.given, valid)]
    return out


def _figure(error: np.ndarray, mask: np.ndarray, valid: np.ndarray) -> list[float | None]:
    share = round(float(mask.sum() / max(1, valid.sum())), 4)
    if mask.sum() < _FEWEST:
        return [share, None]
    return [share, round(float(10 * np.log10(255**2 / max(1e-3, float(error[mask].mean())))), 3)]


def _sample(video: np.ndarray, frame: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Bilinear values [N, P, 3] of video [N, h, w, 3] in frames [N, P] at pixels (column, row) [N, P, 2]"""
    height, width = video.shape[1:3]
    low = np.clip(np.floor(where).astype(int), 0, [width - 2, height - 2])
    part = (np.clip(where, 0, [width - 1, height - 1]) - low).astype(np.float32)
    out = 0.0
    for dx in (0, 1):
        for dy in (0, 1):
            weight = np.abs(1 - dx - part[..., 0]) * np.abs(1 - dy - part[..., 1])
            out = out + weight[..., None] * video[frame, low[..., 1] + dy, low[..., 0] + dx]
    return out
