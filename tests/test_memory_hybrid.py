"""Hybrid forcing's mask, key for key, against a memory that a roll-out has filled."""

import pytest
import torch
from small import small_model

from worldmodel.memory import CompressedMemory, MemoryConfig, token_positions, training_layout

GRID = (4, 4)
N = 16
LATENTS = 13


def rows(positions):
    """Positions as a sorted list, to compare sets with multiplicity."""
    return sorted(map(tuple, positions.tolist()))


def blocks(chunk):
    return [(0, 1)] + [(c, c + chunk) for c in range(1, LATENTS, chunk)]


def seen_by(layout, latent):
    """Positions of the full keys and of the pooled keys that the tokens of a latent frame may look at."""
    of_latent = layout.mask[N * latent : N * (latent + 1)]
    assert (of_latent == of_latent[0]).all()
    full = token_positions(torch.arange(LATENTS), GRID)[of_latent[0, : N * LATENTS]]
    return full, layout.pooled_positions[of_latent[0, N * LATENTS :]]


@pytest.mark.parametrize("schedule", [MemoryConfig().schedule, (2,), ()])
@pytest.mark.parametrize(("window", "chunk", "noisy"), [(3, 1, 1), (3, 1, 3), (2, 1, 5), (2, 2, 3), (4, 3, 2), (2, 1, 13)])
def test_mask_is_the_rollouts_memory_key_for_key(window, chunk, noisy, schedule):
    config = MemoryConfig(window=window, schedule=schedule)
    layout = training_layout(config, LATENTS, GRID, chunk, noisy_blocks=noisy)
    memory = CompressedMemory(config, layers=1, heads=1, head_dim=6, grid=GRID, chunk=chunk)
    first_noisy = blocks(chunk)[-noisy][0]
    for begin, end in blocks(chunk):
        held = memory.positions()  # what a roll-out sees besides the block itself
        own = token_positions(torch.arange(begin, end), GRID)
        for latent in range(begin, end):
            full, pooled = seen_by(layout, latent)
            got = torch.cat([full, pooled])
            if begin < first_noisy:
                assert rows(got) == rows(torch.cat([held, own]))
            else:
                clean = held[held[:, 0] < first_noisy]
                noisy_before = token_positions(torch.arange(first_noisy, begin), GRID)
                assert rows(got) == rows(torch.cat([clean, noisy_before, own]))
                assert (pooled[:, 0] < first_noisy).all()
        k = [torch.zeros(1, N * (end - begin), 1, 6)]
        memory.write(k, k)


def test_noisy_blocks_inside_the_window_change_nothing():
    config = MemoryConfig(window=4)
    plain, hybrid = training_layout(config, LATENTS, GRID, 2), training_layout(config, LATENTS, GRID, 2, noisy_blocks=3)
    assert torch.equal(plain.mask, hybrid.mask)
    beyond = training_layout(config, LATENTS, GRID, 2, noisy_blocks=4)
    assert plain.mask.shape != beyond.mask.shape or not torch.equal(plain.mask, beyond.mask)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 2])
def test_the_noisy_block_is_what_the_cached_rollout_computes(chunk):
    """One noisy block behind a clean, compressed past: the pass through the memory gives the same prediction."""
    model = small_model().transformer
    config, latents = MemoryConfig(window=2), 9
    g = torch.Generator().manual_seed(0)
    x, text = torch.randn(2, 8, latents, 4, 4, generator=g), torch.randn(2, 6, 16, generator=g)
    actions, poses = torch.rand(2, 1 + 4 * (latents - 1), 13, generator=g), torch.randn(2, 1 + 4 * (latents - 1), 9, generator=g)
    timestep = torch.zeros(2, latents)
    timestep[:, -chunk:] = torch.tensor([[833.0], [625.0]])
    one_pass = model(x, timestep, text, actions, poses, layout=training_layout(config, latents, GRID, chunk, noisy_blocks=1))
    memory = model.new_memory(config, (4, 4), batch=2, chunk=chunk)
    for begin, end in [(0, 1)] + [(c, c + chunk) for c in range(1, latents, chunk)]:
        frames = slice(0, 1) if begin == 0 else slice(1 + 4 * (begin - 1), 1 + 4 * (end - 1))
        part = model(
            x[:, :, begin:end], timestep[:, begin:end], text, actions[:, frames], poses[:, frames], memory=memory, write=end < latents
        )
    assert (part - one_pass[:, :, -chunk:]).abs().max() < 2e-5


def test_more_noisy_blocks_than_blocks_are_refused():
    with pytest.raises(ValueError, match="13 blocks"):
        training_layout(MemoryConfig(), 13, GRID, 1, noisy_blocks=14)
