"""Convolutions over time and space on the CPU, by oneDNN also where PyTorch passes it by.

`F.conv3d` leaves an unstrided float32 convolution of one clip to a slow kernel, which unfolds the whole clip to a matrix, if channels x
frames x rows are 20,480 at most (`ConvParams::use_mkldnn` in PyTorch's Convolution.cpp; columns are not counted). So narrow layers are slow
however large their pictures are.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

MIN_POSITIONS = 1024
"""Places of the padded input, T * H * W, from which oneDNN is faster; below, bringing weights into its layout costs more than it gains."""


def conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...] | str, dilation: tuple[int, ...],
    groups: int,
) -> Tensor:  # fmt: skip
    """`F.conv3d` of [B, C, T, H, W], as `nn.Conv3d` calls it; the same but for rounding, and gradients pass."""
    float_clips = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.dim() == 5
    spatial = weight.shape[-2:].numel() > 1  # others are products of matrices, which PyTorch's kernel does well
    if float_clips and spatial and x.shape[2:].numel() >= MIN_POSITIONS and not isinstance(padding, str):
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups)
    return F.conv3d(x, weight, bias, stride, padding, dilation, groups)


class _Redirected(TorchFunctionMode):
    """Inside, this thread's calls of `F.conv3d` are calls of `conv3d`."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return (conv3d if func is F.conv3d else func)(*args, **kwargs or {})


def fast_conv3d(device: torch.device) -> AbstractContextManager:
    """Inside, every `nn.Conv3d` that this thread runs is `conv3d`. No module is changed, and on other devices nothing is."""
    return _Redirected() if device.type == "cpu" and torch.backends.mkldnn.is_available() else nullcontext()
