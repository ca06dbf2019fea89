"""Replayed back-propagation: the gradient of a long roll-out with the activation memory of one block.

RELIC (arXiv 2512.04040, section 4.4.2): the sequence is rolled out without autograd, the score difference D is computed over
all of it and kept, and then every block's exit step alone is run again with autograd, on the detached cache as it was at that
block; its part of the loss ``0.5 ||x_l - sg(x_l - D_l)||^2`` is back-propagated, its graph freed, and the gradients add up.

The cache is not stored block by block: walking through the sequence again, each block's clean-context pass rewrites it from
the latents that are already there. That costs one forward pass a block and no memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.dmd import matching_loss
from distill.rollout import RollOut, exit_estimate, look, start_memory, view_of, write_block
from worldmodel.transformer import CausalWorldTransformer


def replay_backward(model: CausalWorldTransformer, played: RollOut, difference: Tensor) -> Tensor:
    """Add the generator's gradient for `difference` [B, C, T, h, w], block by block; returns the loss, detached.

    The weights must be those that rolled out. The text is encoded anew in every block's graph, so it gets its gradient too.
    """
    _check(played, difference)
    condition, latents = played.condition, played.latents
    with torch.no_grad():
        text = model.encode_text(condition.text)
    memory = start_memory(model, latents[:, :, :1], text, condition, played.config)
    total = torch.zeros((), device=latents.device)
    for x, block in zip(played.inputs, played.config.blocks(latents.shape[2]), strict=True):
        look(memory, block, condition)
        view = view_of(model, latents[:, :, : block.start], block, condition, played.config, memory)
        with torch.enable_grad():
            clean = exit_estimate(model, x, played.level, block, condition.text, condition, memory, view)
            loss = matching_loss(clean, difference[:, :, block], difference.numel())
        loss.backward()
        total += loss.detach()
        write_block(model, latents[:, :, block], block, text, condition, memory)
    return total


def full_graph_backward(played: RollOut, difference: Tensor) -> Tensor:
    """The same gradient through one graph over all blocks (`roll_out(.., graph=True)`); returns the loss, detached."""
    _check(played, difference)
    if not played.latents.requires_grad:
        raise ValueError("The roll-out has no graph: roll out with graph=True, or use replay_backward.")
    loss = matching_loss(played.latents, difference)
    loss.backward()
    return loss.detach()


def _check(played: RollOut, difference: Tensor) -> None:
    if difference.shape != played.latents.shape:
        raise ValueError(f"The difference has the roll-out's shape {tuple(played.latents.shape)}, got {tuple(difference.shape)}.")
