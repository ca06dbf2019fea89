"""How far a start picture is from those that weights were trained on, calibrated, so that a person can be told.

A picture is described by how much detail it has at three scales (quantiles over its places, so that smooth faces beside sharp edges
differ from grain everywhere) and by its colours. The distance is Mahalanobis's from the pictures of training; what it means is told by
pictures of places that were never trained on: how many of 100 of them are nearer (`distill/familiarity.py` makes the file).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

FAMILIARITY_NAME = "familiarity.safetensors"
FORMAT = 1
SIDE = 128
"""Pixels a side at which pictures are described."""
SCALES = 3
DETAIL, COLOUR_DETAIL = (0.1, 0.25, 0.5, 0.75, 0.9, 0.97), (0.25, 0.5, 0.75, 0.95)
"""Quantiles of detail in brightness, and in colour."""
LEAST_DETAIL = 2e-3
"""Half a grey level: what is below it is no detail."""
NEARER = 0.99
"""Share of unseen pictures of familiar places that are to be nearer than a picture that is called unfamiliar."""


def picture_statistics(picture: np.ndarray) -> np.ndarray:
    """float64 [42] of uint8 [H, W, 3]: logarithms of the quantiles of detail at each scale, and what colours there are and how many."""
    rgb = np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64) / 255
    grey = rgb @ (0.299, 0.587, 0.114)
    level = np.stack([grey, rgb[..., 2] - grey, rgb[..., 0] - grey])  # 3 h w
    out = []
    for _ in range(SCALES):
        detail = np.abs(level - _blurred(level))
        out.append(np.log(np.quantile(detail[0], DETAIL) + LEAST_DETAIL))
        out.append(np.log(np.quantile(detail[1:].mean(0), COLOUR_DETAIL) + LEAST_DETAIL))
        level = level.reshape(3, level.shape[1] // 2, 2, level.shape[2] // 2, 2).mean((2, 4))
    bins = (rgb * 255).astype(int) // 32 @ (1, 8, 64)
    share = np.sort(np.bincount(bins.ravel(), minlength=512) / bins.size)[::-1]
    some = share[share > 0]
    rest = 1 - np.cumsum(share)[[0, 1, 3, 7, 15, 31]]  # beside the most frequent colours
    out += [[-(some * np.log(some)).sum()], np.log(0.02 + rest)]
    out.append(np.quantile(rgb.max(-1) - rgb.min(-1), (0.1, 0.5, 0.9)))
    return np.concatenate([*out, np.quantile(grey, (0.02, 0.25))])


def _blurred(level: np.ndarray) -> np.ndarray:
    """[3, h, w] under the binomial kernel 1 2 1, in both directions"""
    for axis in (1, 2):
        padded = np.pad(level, [(int(k == axis),) * 2 for k in range(3)], mode="edge")
        size = level.shape[axis]
        before, here, after = (padded.take(range(k, k + size), axis) for k in range(3))
        level = (before + 2 * here + after) / 4
    return level


@dataclass(frozen=True)
class Familiarity:
    """Of one picture. `distance` is 1 where the notice begins; `nearer` is the share of unseen pictures of familiar places with a smaller
    one.
    """

    distance: float
    nearer: float

    @property
    def familiar(self) -> bool:
        return self.distance <= 1

    @property
    def notice(self) -> str | None:
        """A sentence for the person whose picture it is; None for a familiar one."""
        if self.familiar:
            return None
        return (
            "This picture is unlike the worlds that this model has learned from: what lies beyond its edges may not suit it. "
            "You can walk in it all the same."
        )


class KnownPictures:
    """What pictures of training look like in general.

    Args:
        mean: [D] of their `picture_statistics`.
        whitening: [D, D], which makes them uncorrelated and of deviation 1.
        calibration: [N], distances of pictures of places that were not trained on, in ascending order, in units of the limit.
    """

    def __init__(self, mean: np.ndarray, whitening: np.ndarray, calibration: np.ndarray) -> None:
        self.mean, self.whitening, self.calibration = mean, whitening, calibration

    @classmethod
    def fit(cls, trained: np.ndarray, unseen: np.ndarray, shrinkage: float = 0.02) -> KnownPictures:
        """From statistics [N, D] of pictures of training, and [M, D] of pictures of other such places."""
        mean, deviation = trained.mean(0), trained.std(0) + 1e-9
        correlation = np.corrcoef(trained.T)
        correlation = (1 - shrinkage) * np.nan_to_num(correlation) + shrinkage * np.eye(len(mean))
        whitening = np.linalg.inv(np.linalg.cholesky(correlation)) / deviation
        made = cls(mean, whitening, np.ones(1))
        distances = np.sort([made._length(row) for row in unseen])
        limit = np.quantile(distances, NEARER)
        return cls(mean.astype(np.float32), (whitening / limit).astype(np.float32), (distances / limit).astype(np.float32))

    def judge(self, picture: np.ndarray) -> Familiarity:
        """Of uint8 [H, W, 3], a millisecond or few of one core."""
        return self.judge_statistics(picture_statistics(picture))

    def judge_statistics(self, statistics: np.ndarray) -> Familiarity:
        distance = self._length(statistics)
        return Familiarity(distance, float(np.searchsorted(self.calibration, distance) / len(self.calibration)))

    def _length(self, statistics: np.ndarray) -> float:
        return float(np.sqrt(np.square(self.whitening @ (statistics - self.mean)).mean()))

    def save(self, folder: str | Path) -> None:
        """Beside the weights of a model's folder."""
        tensors = {name: np.asarray(getattr(self, name), np.float32) for name in ("mean", "whitening", "calibration")}
        save_file(tensors, Path(folder) / FAMILIARITY_NAME, {"familiarity": json.dumps({"format": FORMAT})})

    @classmethod
    def load(cls, folder: str | Path) -> KnownPictures | None:
        """Of a model's folder; None if it has none. ValueError if the file is not such a description."""
        path = Path(folder) / FAMILIARITY_NAME
        if not path.exists():
            return None
        try:
            with safe_open(str(path), framework="numpy") as file:
                known = json.loads((file.metadata() or {}).get("familiarity", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            size = len(picture_statistics(np.zeros((SIDE, SIDE, 3), np.uint8)))
            mean, whitening, calibration = (tensors[name] for name in ("mean", "whitening", "calibration"))
            fits = (mean.shape, whitening.shape, calibration.ndim) == ((size,), (size, size), 1) and len(calibration)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
        if known.get("format") != FORMAT or not fits:
            raise ValueError(f"{path} is no description of familiar pictures of format {FORMAT}: make it again (distill.familiarity).")
        return cls(mean, whitening, calibration)
