"""How far away what a start picture shows is, told by a pretrained estimator instead of the small network beside the weights.

That network has seen drawn worlds alone, so a photograph of one's own tears where it is wrong. Estimators that have seen the world are
tens of times as large; a start picture can wait for one. What they tell has no scale that fits here, and often an offset too, so
it is fitted to what the small network tells of the same picture: the estimator gives the shape, the network the size.

    model = WorldModel.from_pretrained("tiny", depth="depth-anything/Depth-Anything-V2-Small-hf")

Any folder or hub id does whose network is one of `KINDS` in transformers. What the model makes itself it goes on telling itself.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from worldmodel.depth import FAR

KINDS = {"depth_anything": "near", "dpt": "near", "zoedepth": "far", "glpn": "far", "depth_pro": "far"}
"""Kinds of network that transformers opens, and whether what they tell is large near by (inverse depth) or far away (metres)."""
RECENT = 64
"""Pictures whose depth is kept: a world that begins anew need not wait."""
ROUNDS = 25
"""Of the fit, after which it moves no more."""
AGREES = 0.02
"""Of the inverse depth, differences below which the fit does not tell from each other."""


class DepthEstimatorError(ValueError):
    """A depth estimator that cannot be loaded, or depth that is none. One clear sentence."""


class DepthEstimator:
    """A pretrained network, called with pictures. Make one with `from_pretrained`.

    Args:
        network, processor: transformers' model for depth estimation and its image processor.
        near: whether what it tells is large near by.
    """

    def __init__(self, network: torch.nn.Module, processor: object, near: bool) -> None:
        self.network, self.processor, self.near = network.eval().requires_grad_(False), processor, near
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, device: str | torch.device = "cpu") -> DepthEstimator:
        """From a folder or a hub id. Raises DepthEstimatorError."""
        from transformers import AutoConfig, AutoImageProcessor, AutoModelForDepthEstimation

        name = str(name_or_path)
        try:
            config = AutoConfig.from_pretrained(name)
            if config.model_type not in KINDS:
                raise DepthEstimatorError(f"{name} is a {config.model_type}; depth is estimated by {', '.join(KINDS)}.")
            processor = AutoImageProcessor.from_pretrained(name)
            network = AutoModelForDepthEstimation.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
        except DepthEstimatorError:
            raise
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DepthEstimatorError(f"The depth estimator {name} cannot be loaded, from a folder or from the hub: {reason}") from error
        metric = getattr(config, "depth_estimation_type", None) == "metric"
        return cls(network.to(device), processor, KINDS[config.model_type] == "near" and not metric)

    @torch.no_grad()
    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """A picture uint8 [H, W, 3] -> float32 [H, W], large near by, in a unit of the estimator's own."""
        name = hashlib.sha256(np.ascontiguousarray(picture).data).hexdigest()
        if name not in self._kept:
            device = next(self.network.parameters()).device
            inputs = {key: value.to(device) for key, value in self.processor(images=picture, return_tensors="pt").items()}
            told = self.processor.post_process_depth_estimation(self.network(**inputs), target_sizes=[picture.shape[:2]])
            depth = told[0]["predicted_depth"].float().cpu().reshape(picture.shape[:2]).numpy()
            self._kept[name] = depth if self.near else 1 / np.maximum(depth, 1e-3)
            while len(self._kept) > RECENT:
                self._kept.popitem(last=False)
        return self._kept[name]


def check_depth(depth: np.ndarray) -> np.ndarray:
    """float32 [h, w] as `WorldModel.start` takes it; raises DepthEstimatorError."""
    try:
        depth = np.asarray(depth, dtype=np.float32)
    except (TypeError, ValueError):
        raise DepthEstimatorError("Depth is an array of numbers [h, w].") from None
    if depth.ndim != 2 or min(depth.shape) < 2 or not np.isfinite(depth).all():
        raise DepthEstimatorError(f"Depth is an array [h, w] of finite numbers, large near by; got shape {depth.shape}.")
    return depth


def fitted(relative: np.ndarray, told: Tensor) -> Tensor:
    """Inverse depth of any scale and offset [k, l] in the units of what the small network tells [k, l] of the same picture.

    Scale and offset are those of the least absolute difference as a share of what was told (iteratively reweighted least squares), so that
    where the network is wrong it has no say. Where the two have nothing in common, `told` is given back.
    """
    x, y = torch.from_numpy(relative.astype(np.float64)).flatten(), told.double().cpu().flatten()
    spread = float(x.std())
    if not spread > 1e-9 * float(x.abs().max()):
        return told
    x = (x - x.mean()) / spread
    unit = y + FAR
    columns = torch.stack([x, torch.ones_like(x)], 1) / unit[:, None]
    wanted, weight = (y / unit)[:, None], torch.ones_like(unit)[:, None]
    for _ in range(ROUNDS):
        answer = torch.linalg.lstsq(columns * weight.sqrt(), wanted * weight.sqrt()).solution
        weight = 1 / (columns @ answer - wanted).abs().clamp_min(AGREES)
    scale, offset = answer.flatten().tolist()
    if scale <= 0:
        return told
    return (x * scale + offset).clamp_min(0).view_as(told).to(told)
