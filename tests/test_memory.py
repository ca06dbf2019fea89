"""The arithmetic of RELIC's schedule, pooling and positions, and what the memory keeps."""

import pytest
import torch
import torch.nn.functional as F

from worldmodel.memory import RELIC_SCHEDULE, CompressedMemory, MemoryConfig, cell_centres, pool_cells, token_positions, training_layout

WAN_GRID = (30, 52)


def test_schedule_is_the_papers():
    assert len(RELIC_SCHEDULE) == 18
    assert [RELIC_SCHEDULE.count(s) for s in (1, 2, 4)] == [1, 5, 12]
    config = MemoryConfig()
    assert config.factor(0) == 1  # the start picture stays whole
    assert all(config.factor(i) == config.factor(i + 18) for i in range(40))
    average = sum(1 / s**2 for s in RELIC_SCHEDULE) / 18
    assert average == pytest.approx(1 / 6)


def test_four_times_fewer_tokens_over_20_seconds():
    """80 latent frames of 1,560 tokens, window 8: 124,800 tokens become 31,200 in the paper's reading (tokens / s^2)."""
    window, full = 8, 30 * 52
    past = sum(full / RELIC_SCHEDULE[i % 18] ** 2 for i in range(80 - window))
    assert 80 * full / (past + window * full) == pytest.approx(4.0, abs=0.01)
    exact = sum(MemoryConfig().tokens(i, WAN_GRID) for i in range(80 - window)) + window * full
    assert 80 * full / exact == pytest.approx(4.0, abs=0.1)  # whole cells: 8x13 instead of 7.5x13


@pytest.mark.parametrize(("grid", "factor"), [((8, 8), 2), ((8, 8), 4), ((30, 52), 4), ((5, 7), 2), ((6, 6), 1)])
def test_pooling_is_the_mean_over_cells(grid, factor):
    x = torch.randn(2, 3, *grid, 4, 5, dtype=torch.float64)
    got = pool_cells(x, factor)
    cells = []
    for top in range(0, grid[0], factor):
        for left in range(0, grid[1], factor):
            cells.append(x[:, :, top : top + factor, left : left + factor].mean((2, 3)))
    assert torch.allclose(got, torch.stack(cells, 2))


def test_cell_centres_are_pooled_coordinates():
    for grid, factor in [((8, 8), 4), ((30, 52), 4), ((5, 7), 2)]:
        yx = torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij"))
        want = F.avg_pool2d(yx[None], factor, ceil_mode=True, count_include_pad=False)[0].flatten(1).T
        assert torch.allclose(cell_centres(grid, factor), want)


def fill(memory: CompressedMemory, latents: int, start: int = 0, seed: int = 0) -> list[torch.Tensor]:
    n, written = memory.tokens_per_latent, []
    for i in range(start, start + latents):
        g = torch.Generator().manual_seed(seed + i)
        k = torch.randn(memory.keys.shape[1], n, memory.keys.shape[2], memory.keys.shape[4], generator=g)
        memory.write([k + layer for layer in range(len(memory.keys))], [k * 2] * len(memory.keys))
        written.append(k)
    return written


def make(config: MemoryConfig, chunk: int = 1) -> CompressedMemory:
    return CompressedMemory(config, layers=2, heads=2, head_dim=6, grid=(4, 4), chunk=chunk)


def test_memory_keeps_window_whole_and_past_pooled():
    memory = make(MemoryConfig(window=3))
    written = fill(memory, 9)
    at = 0
    for i in range(9):
        s = 1 if i >= 6 else RELIC_SCHEDULE[i]
        want = pool_cells(written[i].unflatten(1, (1, 4, 4)), s).flatten(1, 2)
        here = slice(at, at + want.shape[1])
        assert torch.allclose(memory.keys[0, :, :, here].transpose(1, 2), want, atol=1e-6)
        assert torch.allclose(memory.values[1, :, :, here].transpose(1, 2), want * 2, atol=1e-6)
        at += want.shape[1]
    assert at == memory.num_tokens
    assert torch.equal(memory.positions()[:16], token_positions(torch.tensor([0]), (4, 4)))


def test_an_hour_costs_what_20_seconds_cost():
    config = MemoryConfig(window=3, horizon=12)
    memory = make(config)
    written = fill(memory, 12)
    first = written[0]
    most = memory.num_tokens
    for i in range(12, 80):
        fill(memory, 1, start=i)
        times = memory.positions()[:, 0]
        assert times.min() == 0 and times.max() < config.horizon
        assert memory.chunk_times(1).tolist() == [config.horizon - 1]
        assert torch.equal(memory.keys[0, :, :, :16].transpose(1, 2), first)  # the start picture stays
        assert memory.num_tokens <= memory.capacity - 16
        most = max(most, memory.num_tokens)
    entries = memory.num_tokens
    fill(memory, 18, start=80)
    assert memory.num_tokens == entries  # periodic: the same 18 factors again
    assert most < 12 * 16


def test_window_only_forgets():
    memory = make(MemoryConfig(window=3).window_only())
    fill(memory, 9)
    assert memory.num_tokens == 3 * 16


def test_state_round_trip_and_refusal():
    memory, other = make(MemoryConfig(window=3)), make(MemoryConfig(window=3))
    fill(memory, 7)
    other.load_state_dict(memory.state_dict())
    fill(memory, 3, start=7)
    fill(other, 3, start=7)
    n = memory.num_tokens
    assert other.num_tokens == n and torch.equal(other.keys[:, :, :, :n], memory.keys[:, :, :, :n])
    with pytest.raises(ValueError, match="another model"):
        CompressedMemory(MemoryConfig(), layers=3, heads=2, head_dim=6, grid=(4, 4)).load_state_dict(memory.state_dict())


@pytest.mark.parametrize("chunk", [1, 2])
def test_training_mask_is_what_a_rollout_sees(chunk):
    """Count the keys that each latent frame may see against a memory that is really filled."""
    config, latents = MemoryConfig(window=2), 9
    layout = training_layout(config, latents, (4, 4), chunk)
    memory = make(config, chunk)
    start = 0
    while start < latents:
        end = 1 if start == 0 else start + chunk
        for i in range(start, end):
            assert layout.mask[16 * i].sum() == memory.num_tokens + 16 * (end - start)
        fill_chunk = [torch.randn(1, 16 * (end - start), 2, 6)] * 2
        memory.write(fill_chunk, fill_chunk)
        start = end


def test_bad_configs_say_what_is_wrong():
    with pytest.raises(ValueError, match="horizon > window"):
        MemoryConfig(window=8, horizon=8)
    with pytest.raises(ValueError, match="1 or more"):
        MemoryConfig(schedule=(1, 0))
