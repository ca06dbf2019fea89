"""The usual few-step causal roll-out, written plainly, as what this engine is measured against (`bench_wan.side_by_side`).

It has the structure of Self-Forcing's published one (arXiv 2506.08009): keys are kept turned, at full resolution, in a window that rolls
on; every pass projects the text anew and puts the past and the chunk together by concatenation; a pass at time 0 writes the chunk. The
weights and the arithmetic inside a block are this engine's own, so that only how the loop is built differs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.configs import SamplerConfig
from worldmodel.memory import token_positions
from worldmodel.rotary import rotate
from worldmodel.transformer import CausalWorldTransformer


class PlainLoop:
    """One roll-out without actions or poses.

    Args:
        window: latent frames that stay in the cache.
        embeddings: of the prompt, [1, L, text_dim].
    """

    def __init__(self, model: CausalWorldTransformer, embeddings: Tensor, sampler: SamplerConfig, window: int) -> None:
        self.model, self.embeddings, self.sampler, self.window = model, embeddings, sampler, window
        self.cache: list[tuple[Tensor, Tensor]] = []  # per block: turned keys and values [1, K, heads, head_dim]
        self.count = 0

    @property
    def num_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for pair in self.cache for x in pair)

    @property
    def num_tokens(self) -> int:
        return self.cache[0][0].shape[1] if self.cache else 0

    @torch.no_grad()
    def step(self, noise: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The next clean latents [1, C, t, h, w], which are in the cache then."""
        scheduler, x = self.sampler.scheduler(), noise
        for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
            out = self._forward(x, float(timestep))
            velocity = out if self.model.config.prediction_type == "velocity" else (x - out) / sigma
            x = scheduler.step(velocity, timestep, x, generator=generator, return_dict=False)[0]
        self.write(x)
        return x

    @torch.no_grad()
    def write(self, latents: Tensor) -> None:
        """The pass at time 0 of clean latents."""
        self._forward(latents, 0.0, write=True)
        self.count += latents.shape[2]

    def _forward(self, latents: Tensor, time: float, write: bool = False) -> Tensor:
        model, frames = self.model, latents.shape[2]
        grid = model.grid(latents.shape[3:])
        turn = model.rope(token_positions(torch.arange(self.count, self.count + frames), grid)).to(latents.device)
        text = model.encode_text(self.embeddings)
        x = model.patch_embedding(latents).flatten(2).transpose(1, 2)
        nothing = latents.new_zeros(1, frames, model.config.camera_dim)
        temb, modulation = model._time(torch.full((1,), time, device=latents.device), x.dtype)
        kept = []
        for layer, block in enumerate(model.blocks):
            query, key, value = block.before(x, modulation, nothing)
            key = rotate(key, turn)
            if self.cache:
                key, value = (torch.cat([past, new], dim=1) for past, new in zip(self.cache[layer], (key, value), strict=True))
            x = block.after(x, block.attn1.attend(rotate(query, turn), key, value), text[layer], modulation, nothing)
            if write:
                most = self.window * grid[0] * grid[1]
                kept.append((key[:, -most:].clone(), value[:, -most:].clone()))
        if write:
            self.cache = kept
        shift, scale = (model.scale_shift_table.unsqueeze(0) + temb.unsqueeze(2)).chunk(2, dim=2)
        out = model.proj_out((model.norm_out(x.float()).unflatten(1, (frames, -1)) * (1 + scale) + shift).flatten(1, 2).type_as(latents))
        ph, pw = model.config.patch_size[1:]
        out = out.unflatten(2, (ph, pw, -1)).unflatten(1, (frames, *grid)).permute(0, 6, 1, 2, 4, 3, 5)  # B C T h ph w pw
        return out.flatten(5, 6).flatten(3, 4)
