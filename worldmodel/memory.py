"""The KV memory: what the model still knows of where it has been.

RELIC (arXiv 2512.04040, section 3.4) keeps keys and values in two branches. The latest `window` latent frames stay as they
are. Every older latent frame i is pooled over s x s cells of its grid with ``s = S[i mod 18]``; nothing is pooled over time.
The paper leaves the operator, the place and the positions open; here:

- keys (after QK-norm, **before** RoPE) and values are averaged over each cell when their latent frame leaves the window;
- a pooled token sits at the centre of its cell on the full grid, at its true time index;
- partial cells at the border average what they have (30x52 / 4 gives 8x13).

RELIC gives no rule beyond 20 s. Here the memory spans at most `horizon` latent frames: when it is full, the oldest pooled
latent frame after the start picture is dropped and time is re-indexed, so an hour costs what 20 s cost.

This is the policy ``relic``; `worldmodel.memories` has rivals behind the same interface.

At inference the queries are the chunk, the keys are everything in the memory and the chunk. In training a whole sequence goes through
at once, and `training_layout` says which latent frames each one sees, which is the same. Neither needs a mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.configs import RELIC_SCHEDULE, MemoryConfig  # noqa: F401 (both are imported from here)


def pool_cells(x: Tensor, factor: int) -> Tensor:
    """Mean over factor x factor cells of the grid: [B, T, h, w, *D] -> [B, T, ceil(h/factor) * ceil(w/factor), *D]"""
    b, t, h, w = x.shape[:4]
    if factor == 1:
        return x.flatten(2, 3)
    if h % factor == 0 and w % factor == 0:
        return x.unflatten(3, (-1, factor)).unflatten(2, (-1, factor)).mean((3, 5)).flatten(2, 3)
    flat = x.flatten(4).permute(0, 1, 4, 2, 3).flatten(0, 1)  # B*T D h w
    pooled = F.avg_pool2d(flat, factor, ceil_mode=True, count_include_pad=False)
    return pooled.flatten(2).transpose(1, 2).unflatten(0, (b, t)).unflatten(3, x.shape[4:])


@lru_cache(maxsize=64)
def cell_centres(grid: tuple[int, int], factor: int) -> Tensor:
    """Centres (y, x) of the pooled cells in full-grid coordinates: float64 [cells, 2], in the order of `pool_cells`"""
    axes = []
    for n in grid:
        starts = torch.arange(0, n, factor, dtype=torch.float64)
        ends = (starts + factor).clamp(max=n)
        axes.append((starts + ends - 1) / 2)
    return torch.cartesian_prod(*axes)


def token_positions(times: Tensor, grid: tuple[int, int], factor: int = 1) -> Tensor:
    """Positions (t, y, x) float64 [len(times) * cells, 3] of the tokens of latent frames at `times`"""
    centres = cell_centres(grid, factor)
    t = times.double().repeat_interleave(len(centres)).unsqueeze(1)
    return torch.cat([t, centres.repeat(len(times), 1)], dim=1)


@dataclass(frozen=True)
class TrainingLayout:
    """Who sees what when a whole sequence goes through at once.

    Keys are all T*N full-resolution tokens, followed by the pooled tokens of `pooled`: pairs (factor, latent frames).

    Attributes:
        times: int64 [T], when each latent frame of the input is.
        sees: bool [T, T + P], whether the tokens of a latent frame may look at those of another, or at one that is pooled.
        sizes: tokens of each of the T + P.
        pooled_positions: float64 [tokens of the P, 3].
    """

    times: Tensor
    sees: Tensor
    sizes: tuple[int, ...]
    pooled: tuple[tuple[int, Tensor], ...]
    pooled_positions: Tensor

    def pool(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Pooled tokens [B, P, ...] of x [B, T*N, ...]"""
        frames = x.unflatten(1, (-1, *grid))
        return (
            torch.cat([pool_cells(frames[:, index], factor).flatten(1, 2) for factor, index in self.pooled], dim=1)
            if self.pooled
            else x[:, :0]
        )

    @cached_property
    def mask(self) -> Tensor:
        """`sees` token by token: bool [T*N, keys]"""
        sizes = torch.tensor(self.sizes)
        return self.sees.repeat_interleave(sizes[: len(self.sees)], 0).repeat_interleave(sizes, 1)

    @cached_property
    def reads(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """How many tokens, one after the other, look at which of the T + P; so attention needs no mask, and leaves out what is unseen."""
        out: list[tuple[int, tuple[int, ...]]] = []
        for tokens, row in zip(self.sizes, self.sees, strict=False):
            seen = tuple(torch.nonzero(row).flatten().tolist())
            if out and out[-1][1] == seen:
                tokens += out.pop()[0]
            out.append((tokens, seen))
        return tuple(out)


@lru_cache(maxsize=16)
def training_layout(
    config: MemoryConfig, latents: int, grid: tuple[int, int], chunk: int, device: str = "cpu", noisy_blocks: int = 0
) -> TrainingLayout:
    """Visibility of a roll-out of `latents` latent frames in chunks of `chunk`, the first frame being a chunk of its own.

    Latent frame i of the chunk that starts at c sees the chunk, the `window` latent frames before c in full, and the
    older ones pooled: what the cached roll-out sees, key for key.

    `noisy_blocks` is for hybrid forcing (RELIC, section 4.4.1): the last `noisy_blocks` chunks are noisy, those before clean.
    A roll-out never pools what is not finished, so here a noisy chunk sees every earlier noisy chunk in full, inside the window
    or not; the clean ones it sees as a roll-out does. As long as the noisy chunks fit into the window nothing changes.
    """
    n = grid[0] * grid[1]
    times = torch.arange(latents)
    start = torch.where(times == 0, 0, 1 + (times - 1) // chunk * chunk)  # first latent frame of each one's chunk
    end = torch.where(times == 0, 1, start + chunk)
    starts = start.unique()
    if not 0 <= noisy_blocks <= len(starts):
        raise ValueError(f"{latents} latent frames in chunks of {chunk} are {len(starts)} blocks; noisy_blocks={noisy_blocks} is more.")
    if config.policy != "relic":
        raise ValueError(f"Training masks are RELIC's; policy {config.policy!r} is for roll-outs only.")
    first_noisy = int(starts[-noisy_blocks]) if noisy_blocks else latents
    both_noisy = (times >= first_noisy) & (times >= first_noisy)[:, None]
    full = ((times >= start[:, None] - config.window) | both_noisy) & (times < end[:, None])
    sees, sizes = [full], [n] * latents
    pooled, positions = [], []
    outside = [i for i in range(latents) if i < min(int(start[-1]) - config.window, first_noisy)]
    for factor in sorted({config.factor(i) for i in outside} - {0}):
        index = torch.tensor([i for i in outside if config.factor(i) == factor])
        cells = len(cell_centres(grid, factor))
        sees.append(index < start[:, None] - config.window)
        sizes += [cells] * len(index)
        pooled.append((factor, index.to(device)))
        positions.append(token_positions(index, grid, factor))
    positions = torch.cat(positions) if positions else torch.zeros(0, 3, dtype=torch.float64)
    return TrainingLayout(times, torch.cat(sees, 1), tuple(sizes), tuple(pooled), positions)


@lru_cache(maxsize=64)
def teacher_forcing_layout(config: MemoryConfig, latents: int, grid: tuple[int, int], chunk: int, device: str = "cpu") -> TrainingLayout:
    """The input is every latent frame twice: clean, then noisy. Each noisy chunk sees what a roll-out that went right would see:
    itself, and the clean latent frames before it through the memory. The clean half is `training_layout`'s.
    """
    clean = training_layout(config, latents, grid, chunk, device)
    full, pooled = clean.sees[:, :latents], clean.sees[:, latents:]
    index = (clean.times + chunk - 1) // chunk  # of each latent frame's chunk
    own = index[:, None] == index
    sees = torch.cat([torch.cat([full, torch.zeros_like(full), pooled], 1), torch.cat([full & ~own, own, pooled], 1)])
    return replace(clean, times=clean.times.repeat(2), sees=sees, sizes=clean.sizes[:latents] + clean.sizes)


def pairs(x: Tensor) -> Tensor:
    """Channels of x [..., head_dim] two by two as complex numbers [..., head_dim/2]: x itself, but for a copy where it is half precision"""
    x = x if x.dtype.itemsize >= 4 else x.float()
    x = x if x.stride(-1) == 1 else x.contiguous()
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def rotate_into(out: Tensor, x: Tensor, turn: Tensor) -> None:
    """Turn each pair of channels of x [..., N, head_dim] by `turn`, complex [N, head_dim/2], without a second copy: as
    `rotary.rotate`.
    """
    if out.dtype.itemsize >= 4:
        torch.mul(pairs(x), turn, out=pairs(out))
    else:
        out.copy_(torch.view_as_real(pairs(x) * turn).flatten(-2))


def in_range(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x, limited to what `dtype` can hold if that is float8: beyond it a cast may give NaN"""
    return x.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max) if dtype.itemsize == 1 else x


@dataclass
class _Entry:
    """One latent frame in the memory: where its tokens lie and when it was."""

    index: int
    factor: int
    tokens: int


class CompressedMemory:
    """Preallocated keys and values of every layer, in the order of time: pooled past first, window last.

    Buffers are [layers, B, heads, capacity, head_dim], so that attention reads each head in one piece. `look` is told where the
    camera will be; `context` gives each layer rotated keys and values with room for the chunk that is being denoised, and
    `remembered` says which latent frames those are. `put` takes the keys and values of the next latent frames layer by layer from
    the pass that makes them, and from `commit` on they count.
    """

    def __init__(
        self, config: MemoryConfig, layers: int, heads: int, head_dim: int, grid: tuple[int, int],
        batch: int = 1, chunk: int = 1, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        self.config, self.grid, self.chunk = config, grid, chunk
        self.tokens_per_latent = grid[0] * grid[1]
        self.capacity = self._capacity() + chunk * self.tokens_per_latent
        shape = (layers, batch, heads, self.capacity, head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)  # after QK-norm, before RoPE
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.narrow = dtype.itemsize == 1  # kept in float8: keys are turned when they are looked at
        self._rotated = None if self.narrow else torch.zeros(shape, device=device, dtype=dtype)
        self._turn: Tensor | None = None
        self._entries: list[_Entry] = []
        self._rotated_for: tuple | None = None
        self.count = 0
        """Latent frames written so far."""

    def _capacity(self) -> int:
        cfg, past = self.config, self.config.horizon
        costs = [cfg.tokens(i, self.grid) for i in range(max(len(cfg.schedule), 1))]
        most = max(sum(costs[(start + k) % len(costs)] for k in range(past)) for start in range(len(costs)))
        return most + (cfg.window + self.chunk + 1) * self.tokens_per_latent

    @property
    def num_tokens(self) -> int:
        return sum(e.tokens for e in self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of all buffers."""
        buffers = (self.keys, self.values, self._rotated)
        return sum(x.numel() * x.element_size() for x in buffers if x is not None)

    @property
    def time_offset(self) -> int:
        """What is subtracted from true time indices so that they stay within the horizon."""
        return max(0, self.count + self.chunk - self.config.horizon)

    def chunk_times(self, latents: int) -> Tensor:
        """Re-indexed times [latents] of the chunk that comes next."""
        return torch.arange(self.count, self.count + latents) - self.time_offset

    def look(self, poses: Tensor) -> None:
        """The chunk that comes next, and is denoised or written, is seen from `poses`: codes [B, t, 9] of each latent frame's last
        video frame. This memory does not mind; others choose by it (`worldmodel.memories`).
        """

    def remembered(self) -> list[int]:
        """The latent frames that the next chunk looks at, in the order of time."""
        return [e.index for e in self._entries]

    def entries(self) -> list[tuple[int, int, int]]:
        """The same with how much of each is left: (latent frame, pooling factor, tokens)."""
        return [(e.index, e.factor, e.tokens) for e in self._entries]

    def recallable(self) -> list[int]:
        """The latent frames that this or a later chunk may look at."""
        return self.remembered()

    def write(self, keys: list[Tensor], values: list[Tensor]) -> None:
        """Append the next latent frames: per layer [B, t*N, heads, head_dim], keys before RoPE."""
        for layer, (k, v) in enumerate(zip(keys, values, strict=True)):
            self.put(layer, k, v)
        self.commit(keys[0].shape[1] // self.tokens_per_latent)

    @torch.no_grad()
    def put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Lay down one layer of the next latent frames [B, t*N, heads, head_dim], keys before RoPE, in the room behind what is remembered:
        nothing looks at it before `commit`, and whatever is put there next takes its place.
        """
        at = self.num_tokens
        for buffer, new in ((self.keys, keys), (self.values, values)):
            buffer[layer, :, :, at : at + new.shape[1]] = in_range(new.transpose(1, 2), buffer.dtype)

    @torch.no_grad()
    def commit(self, latents: int) -> None:
        """What was put last, of every layer, is the next `latents` latent frames."""
        n = self.tokens_per_latent
        self._entries += [_Entry(self.count + i, 1, n) for i in range(latents)]
        self.count += latents
        self._compress()
        self._rotated_for = None

    def forget_newest(self, latents: int) -> None:
        """Drop the newest latent frames, of the window, so that they can be written anew."""
        if not 0 <= latents <= min(self.count, self.config.window):
            raise ValueError(f"The window has {min(self.count, self.config.window)} latent frames, it cannot give up {latents}.")
        self.count -= latents
        self._entries = [e for e in self._entries if e.index < self.count]
        self._rotated_for = None

    def _factor(self, index: int) -> int:
        """Pooling factor that latent frame `index` has now, a multiple of what it had before; 0: it is forgotten."""
        if index >= self.count - self.config.window:
            return 1
        too_old = 0 < index <= self.count - self.config.horizon + self.chunk  # the start picture never is
        return 0 if too_old else self.config.factor(index)

    def _compress(self) -> None:
        """Pool and forget by `_factor`, and close the gaps; neighbours that stay as they are move together."""
        kept: list[_Entry] = []
        moving: list[int] = []  # where tokens come from, where they go, and how many: not moved yet
        read = write = 0
        for entry in self._entries:
            source = read
            read += entry.tokens
            factor = self._factor(entry.index)
            if factor == 0:
                continue
            factor = max(factor, entry.factor)  # what was pooled stays so, also where the window is written anew
            tokens, further = self._tokens(factor), factor // entry.factor
            if further == 1 and moving and moving[0] + moving[2] == source:
                moving[2] += tokens
            else:
                self._move(moving)
                moving = [source, write, tokens] if further == 1 else []
            if further > 1:
                grid = tuple(-(-n // entry.factor) for n in self.grid)
                for buffer in (self.keys, self.values):
                    cells = buffer[:, :, :, source:read].flatten(0, 2).unflatten(1, (1, *grid))
                    cells = cells.float() if self.narrow else cells
                    pooled = pool_cells(cells, further).flatten(1, 2).unflatten(0, buffer.shape[:3])
                    buffer[:, :, :, write : write + tokens] = pooled
            kept.append(_Entry(entry.index, factor, tokens))
            write += tokens
        self._move(moving)
        self._entries = kept

    def _move(self, moving: list[int]) -> None:
        if not moving or moving[0] == moving[1]:
            return
        source, target, tokens = moving
        for buffer in (self.keys, self.values):
            for layer in buffer:
                layer[:, :, target : target + tokens] = layer[:, :, source : source + tokens].clone()

    def _tokens(self, factor: int) -> int:
        return -(-self.grid[0] // factor) * -(-self.grid[1] // factor)

    def positions(self) -> Tensor:
        """Positions (t, y, x) float64 [num_tokens, 3] of everything in the memory, time re-indexed.

        What is older than the horizon stands as late as those before it allow: the start picture at 0, the next at 1, ...
        """
        offset = self.time_offset
        times = [max(e.index - offset, rank) for rank, e in enumerate(self._entries)]
        parts = [token_positions(torch.tensor([t]), self.grid, e.factor) for t, e in zip(times, self._entries, strict=True)]
        return torch.cat(parts) if parts else torch.zeros(0, 3, dtype=torch.float64)

    @torch.no_grad()
    def context(self, rope: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What a block looks at, as arguments of `transformer.Visibility`: `keys` and `values` [layers, B, heads, capacity, head_dim] of
        which `filled` tokens count, and with a narrow memory `turn`, by which the keys have still to be turned; else they are turned.

        `rope(positions [N, 3])` gives cos + i sin, complex [N, head_dim/2]. The work is done once per chunk.
        """
        state = (self.count, self.time_offset)
        n = self.num_tokens
        if self._rotated_for != state and (n or self.narrow):
            turn = rope(self.positions()).to(self.keys.device)
            if self.narrow:
                self._turn = turn
            else:
                for keys, rotated in zip(self.keys, self._rotated, strict=True):
                    rotate_into(rotated[:, :, :n], keys[:, :, :n], turn)
        self._rotated_for = state
        return {"keys": self.keys if self.narrow else self._rotated, "values": self.values, "filled": n, "turn": self._turn}

    # -- state -------------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Tensor]:
        """Everything that changes, as tensors that share nothing with the memory."""
        n = self.num_tokens
        entries = torch.tensor([[e.index, e.factor, e.tokens] for e in self._entries], dtype=torch.int64).reshape(-1, 3)
        return {
            "keys": self.keys[:, :, :, :n].clone(), "values": self.values[:, :, :, :n].clone(),
            "entries": entries, "count": torch.tensor(self.count),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        entries = [_Entry(*map(int, row)) for row in state["entries"].tolist()]
        n = sum(e.tokens for e in entries)
        expected = (*self.keys.shape[:3], n, self.keys.shape[4])
        if tuple(state["keys"].shape) != expected or n > self.capacity:
            raise ValueError(
                f"This memory holds tokens of shape {expected}, the saved one {tuple(state['keys'].shape)}: another model made it."
            )
        self.keys[:, :, :, :n] = state["keys"]
        self.values[:, :, :, :n] = state["values"]
        self._entries, self.count, self._rotated_for = entries, int(state["count"]), None


class MemoryTeam:
    """The memories of several worlds whose next chunks go through the transformer together, one a sequence of the batch.

    They may differ in length and in what they hold; each stays in its own buffers.
    """

    def __init__(self, members: Sequence[CompressedMemory]) -> None:
        if any(m.keys.shape[1] != 1 for m in members):
            raise ValueError("Memories that are read together have a batch of 1 each.")
        self.members = tuple(members)

    def chunk_times(self, latents: int) -> list[tuple[int, ...]]:
        """Re-indexed times of the chunk that comes next, of each member."""
        return [tuple(m.chunk_times(latents).tolist()) for m in self.members]

    def put(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """As `CompressedMemory.put`, a row for each member."""
        for member, k, v in zip(self.members, keys.split(1), values.split(1), strict=True):
            member.put(layer, k, v)

    def commit(self, latents: int) -> None:
        for member in self.members:
            member.commit(latents)


def together(memories: Sequence[CompressedMemory]) -> CompressedMemory | MemoryTeam:
    """What the transformer takes for a batch of worlds with these memories."""
    return memories[0] if len(memories) == 1 else MemoryTeam(memories)
