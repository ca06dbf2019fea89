"""Products of matrices in bfloat16 where the machine has units for them, everything else in float32."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.runtime import fast_bfloat16
from worldmodel.transformer import CausalWorldTransformer


def autocast(device: torch.device | str) -> torch.autocast:
    """Where products are faster so (`fast_bfloat16`); elsewhere a context that changes nothing."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=fast_bfloat16(torch.device(device)))


def training_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of matrix products in training: ``weights``, as the weights are, float32; ``bfloat16``; ``auto``, that where it is faster."""
    half = precision == "bfloat16" or (precision == "auto" and fast_bfloat16(device))
    return torch.bfloat16 if half else torch.float32


def multiply_in(model: CausalWorldTransformer, dtype: torch.dtype) -> CausalWorldTransformer:
    """Make `model` multiply matrices inside its blocks, attention included, in `dtype`, and keep memories so; returns the model itself.

    Weights, their gradients and what goes from block to block stay as they are, so it is trained as it would be without.
    """
    for block in model.blocks:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.forward = partial(_multiply, module, dtype)
    model.compute_dtype = dtype
    return model


def _multiply(layer: nn.Linear, dtype: torch.dtype, x: Tensor) -> Tensor:
    return F.linear(x.to(dtype), layer.weight.to(dtype), None if layer.bias is None else layer.bias.to(dtype))
