"""Rotary positions of tokens in time and space, and YaRN, which extends time beyond what weights were trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from worldmodel.memory import pairs


def yarn_frequencies(
    dim: int, theta: float, original: float, extension: float, beta_fast: float = 32.0, beta_slow: float = 1.0
) -> tuple[Tensor, float]:
    """Angular frequencies float64 [dim/2] and the factor on cos and sin of YaRN (Peng et al., arXiv 2309.00071).

    `original` is the length in positions that the model was trained on, `extension` how many times longer it shall be.
    NTK-by-parts (section 3.2): pairs that turn more than `beta_fast` times within `original` stay, those that turn less than
    `beta_slow` times are slowed down by `extension`, and a linear ramp lies between. As in the authors' code the ramp runs
    over the index of the pair and its ends are whole indices. The factor is the attention temperature (section 3.4),
    ``sqrt(1/t) = 0.1 ln(extension) + 1``.
    """
    index = torch.arange(0, dim, 2, dtype=torch.float64)
    frequency = 1.0 / theta ** (index / dim)
    if extension == 1:
        return frequency, 1.0

    def pair_that_turns(times: float) -> float:
        return dim * math.log(original / (2 * math.pi * times)) / (2 * math.log(theta))

    low = max(math.floor(pair_that_turns(beta_fast)), 0)
    high = min(math.ceil(pair_that_turns(beta_slow)), dim - 1)
    # high <= 0: no pair turns once within `original`, so all are slowed down
    slowed = ((index / 2 - low) / max(high - low, 1e-3)).clamp(0, 1) if high > 0 else torch.ones_like(frequency)
    return frequency * (1 - slowed) + frequency / extension * slowed, 0.1 * math.log(extension) + 1


class RotaryEmbedding(nn.Module):
    """Wan's 3D rotary embedding at any real position: head_dim is split over t, y, x as d-4(d//6), 2(d//6), 2(d//6).

    The time axis can be extended by YaRN: `extension` times longer than the `original_latents` latent frames that the weights
    were trained on. Frequencies and temperature change on the dimensions of time only; space keeps its length.
    """

    def __init__(self, head_dim: int, theta: float = 10000.0, original_latents: int = 0, extension: float = 1.0) -> None:
        super().__init__()
        if extension < 1 or (extension > 1 and original_latents < 1):
            raise ValueError(
                "A rotary embedding is extended by 1 or more, and beyond 1 needs the number of latent frames it was trained on; "
                f"got rope_extension={extension}, rope_original_latents={original_latents}."
            )
        space = 2 * (head_dim // 6)
        self.dims, self.theta = (head_dim - 2 * space, space, space), theta
        self.original_latents, self.extension = original_latents, extension

    def forward(self, positions: Tensor) -> Tensor:
        """By what the tokens at positions [N, 3] are turned: cos + i sin, complex64 [N, head_dim/2] on the CPU, computed in float64"""
        turn = []
        for axis, dim in enumerate(self.dims):
            frequency, factor = yarn_frequencies(dim, self.theta, self.original_latents, self.extension if axis == 0 else 1.0)
            angle = torch.outer(positions[:, axis].double().cpu(), frequency)
            turn.append(torch.complex((angle.cos() * factor).float(), (angle.sin() * factor).float()))
        return torch.cat(turn, dim=1)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn each pair of channels of x [..., N, heads, head_dim] by `turn`, complex [N, head_dim/2]."""
    return torch.view_as_real(pairs(x) * turn.unsqueeze(-2)).flatten(-2).type_as(x)
