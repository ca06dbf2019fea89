"""One world on several devices, in RELIC's layout (arXiv 2512.04040, section 4.5): self-attention split over heads, all else over tokens.

Every process has all weights and a share of each latent frame's tokens: linear layers and cross-attention see those alone. Around
self-attention an all-to-all hands over: there a process has all tokens of its own heads, so its memory holds the keys and values of
those heads only, and a memory of four processes is a quarter on each. Attention itself is exact: nothing is sent while it runs.

Run the same program in every process (``torchrun``); with the same picture, prompt, seed and actions all of them make the same frames::

    model = WorldModel.from_pretrained(...)
    share_heads(model.transformer, init_device_mesh("cuda", (4,)))
    world = model.start(...)              # in every process; show what one of them makes
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from worldmodel.transformer import CausalWorldTransformer


class HeadRanks:
    """The processes of one mesh axis, and how tensors go from one layout to the other. Shapes: P processes, L = T*N tokens.

    Every method is collective: all processes call it in the same order.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        if mesh.ndim != 1:
            raise ValueError(f"Heads are shared over one axis of a mesh, this one has {mesh.ndim}: choose one by its name, mesh['heads'].")
        self.group, self.size, self.rank = mesh.get_group(), mesh.size(), mesh.get_local_rank()

    def split(self, x: Tensor, frames: int) -> Tensor:
        """This process's tokens [B, L/P, D] of x [B, L, D]: the same part of every latent frame"""
        tokens = x.shape[1] // frames
        if tokens % self.size:
            raise ValueError(
                f"A latent frame has {tokens} tokens here, which {self.size} processes cannot share evenly: choose a size or a number of "
                "processes that divides it."
            )
        return x.unflatten(1, (frames, self.size, -1))[:, :, self.rank].flatten(1, 2).contiguous()

    def join(self, x: Tensor, frames: int) -> Tensor:
        """All tokens [B, L, D] of each process's x [B, L/P, D]"""
        parts = x.new_empty(self.size, *x.shape)
        dist.all_gather_into_tensor(parts.flatten(0, 1), x.contiguous(), group=self.group)
        return parts.unflatten(2, (frames, -1)).permute(1, 2, 0, 3, 4).flatten(1, 3)  # B T P n D

    def by_heads(self, *parts: Tensor, frames: int) -> list[Tensor]:
        """Own tokens of all heads, each [B, L/P, heads, d] -> all tokens of own heads, each [B, L, heads/P, d]"""
        x = torch.stack(parts).unflatten(3, (self.size, -1))  # parts B T*n P h d
        got = self._exchange(x.permute(3, 0, 1, 2, 4, 5))  # P parts B T*n h d
        return list(got.unflatten(3, (frames, -1)).permute(1, 2, 3, 0, 4, 5, 6).flatten(2, 4))

    def by_tokens(self, mixed: Tensor, frames: int) -> Tensor:
        """All tokens of own heads [B, L, heads/P, d] -> own tokens of all heads [B, L/P, heads, d]"""
        x = mixed.unflatten(1, (frames, self.size, -1))  # B T P n h d
        got = self._exchange(x.permute(2, 0, 1, 3, 4, 5))  # P B T n h d
        return got.permute(1, 2, 3, 0, 4, 5).flatten(3, 4).flatten(1, 2)

    def _exchange(self, x: Tensor) -> Tensor:
        """x [P, ...]: slice p goes to process p; what comes back is in the order of who sent it."""
        x = x.contiguous()
        got = torch.empty_like(x)
        dist.all_to_all_single(got, x, group=self.group)
        return got


def share_heads(model: CausalWorldTransformer, mesh: DeviceMesh) -> CausalWorldTransformer:
    """Share the heads of `model`, which every process of the one-axis `mesh` holds whole, for inference; returns it.

    Memories made before stay whole: make new ones. ValueError if the heads do not come out even.
    """
    ranks, heads = HeadRanks(mesh), model.config.num_attention_heads
    if heads % ranks.size:
        fits = [n for n in range(1, heads + 1) if heads % n == 0]
        raise ValueError(f"{heads} heads cannot be shared by {ranks.size} processes; numbers that fit: {', '.join(map(str, fits))}.")
    model.ranks = ranks
    for block in model.blocks:
        block.ranks = ranks
    return model
