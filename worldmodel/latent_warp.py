"""A short way from the last latent frame to the next one. Not RELIC's; off unless a config asks for it.

Most of the next latent frame is the last one, moved. A narrow transformer has to carry all of it through its residual stream,
attention head by attention head; here the transformer only says *how* each token's neighbourhood moves, and the latents
themselves go round it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LatentWarp(nn.Module):
    """Token i of the next latent frame from the neighbourhood of token i in the last clean one.

    ``out_i = sum_k B_k sum_n c_ikn z_(i+n)``: the coefficients c come from the transformer's last hidden state, the
    `operators` linear maps B_k are learned and shared by all tokens, n runs over the (2 `radius` + 1)^2 nearest tokens (edges
    repeat). Starts at zero.
    """

    def __init__(self, dim: int, channels: int, operators: int, radius: int) -> None:
        super().__init__()
        self.operators, self.radius = operators, radius
        self.coefficients = nn.Linear(dim, operators * (2 * radius + 1) ** 2)
        self.mix = nn.Linear(operators * channels, channels, bias=False)
        nn.init.zeros_(self.coefficients.weight)
        nn.init.zeros_(self.coefficients.bias)
        nn.init.normal_(self.mix.weight, std=0.5 * (operators * channels) ** -0.5)
        with torch.no_grad():
            self.mix.weight[:, :channels] = torch.eye(channels)

    def forward(self, hidden: Tensor, previous: Tensor) -> Tensor:
        """hidden [B, T*N, D], last clean latent frame before each one [B, C, T, h, w] -> [B, T*N, C]"""
        side = 2 * self.radius + 1
        frames = previous.transpose(1, 2).flatten(0, 1)  # B*T C h w
        around = F.unfold(F.pad(frames, [self.radius] * 4, mode="replicate"), side)  # B*T C*side^2 N
        around = around.unflatten(1, (-1, side**2)).permute(0, 3, 2, 1).flatten(0, 1)  # B*T*N side^2 C
        weights = self.coefficients(hidden).view(-1, self.operators, side**2)
        return self.mix(torch.bmm(weights, around).flatten(1)).unflatten(0, hidden.shape[:2])
