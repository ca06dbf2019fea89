"""What a world keeps of what was: chunk by chunk, with snapshots from which going back starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from worldmodel.chunk import Past
from worldmodel.world_file import WorldError

SNAPSHOT_EVERY = 8  # chunks between two snapshots; those long ago are kept farther apart
MAX_SNAPSHOTS = 8


@dataclass(frozen=True)
class Snapshot:
    """Where going back starts from: the memory, the decoder's state and the last frame after some chunks, and which latent frames a later
    chunk may look at.
    """

    memory: dict[str, Tensor]
    decoder_state: Any
    recallable: frozenset[int]
    last_frame: np.ndarray


class History:
    """The start picture, the chunks since in the order of time, and `snapshots` by how many chunks there were.

    One can go back to chunk `base`, which is the start or has a snapshot, and everything since is kept whole. Of chunks before it the
    log of actions and prompts is kept, and the rest only of those, `held`, that the memory of the oldest snapshot may still look at.
    What one can go back is never less than `limit` chunks, and more by as much as snapshots are apart.

    Args:
        start: the start picture, a chunk of its own.
        chunk: latent frames in a chunk.
        limit: chunks that one can go back at least; None: all, 0: none.
    """

    def __init__(self, start: Past, chunk: int, limit: int | None) -> None:
        if limit is not None and limit < 0:
            raise WorldError(f"history is a number of chunks or None, got {limit}.")
        self.start, self.chunk, self.limit = start, chunk, limit
        self.chunks: list[Past] = []
        self.base = 0
        self.held: list[int] = []
        self.snapshots: dict[int, Snapshot] = {}

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int | slice) -> Past | list[Past]:
        return self.chunks[index]

    def __iter__(self) -> Iterator[Past]:
        return iter(self.chunks)

    @property
    def last(self) -> Past:
        """The last chunk, or the start picture."""
        return self.before(len(self.chunks))

    def before(self, index: int) -> Past:
        """The chunk before chunk `index`, or the start picture."""
        return self.chunks[index - 1] if index else self.start

    def chunk_of(self, latent: int) -> tuple[Past, int]:
        """The chunk that a latent frame is in, and which of its own it is; the start picture's is 0."""
        return (self.chunks[(latent - 1) // self.chunk], (latent - 1) % self.chunk) if latent else (self.start, 0)

    def latent_frame(self, latent: int) -> tuple[Tensor, np.ndarray, Tensor | None]:
        """A latent frame [1, C, 1, h, w], and pose [4, 4] and inverse depth [1, 1, k, l] of its last video frame."""
        past, k = self.chunk_of(latent)
        return past.latent_frame(k)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensors of all that is kept."""
        kept = [x for s in self.snapshots.values() for x in s.memory.values()]
        for past in (self.start, *self.chunks):
            kept += [x for x in (past.latents, past.inverse_depth, past.last_step and past.last_step.latents) if x is not None]
        return sum(x.numel() * x.element_size() for x in kept)

    # -- going on, and back ------------------------------------------------------------------------------------------------
    def append(self, past: Past) -> None:
        self.chunks.append(past)

    @property
    def wants_snapshot(self) -> bool:
        """Whether one should be taken now."""
        return len(self.chunks) % SNAPSHOT_EVERY == 0 and self.limit != 0

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """Of now. When there are many, the older the sparser: going back to between two replays the chunks from the one before."""
        self.snapshots[len(self.chunks)] = snapshot
        at = [a for a in sorted(self.snapshots) if a > self.base]
        while len(at) > MAX_SNAPSHOTS:
            age = {a: at[-1] - a + SNAPSHOT_EVERY for a in at}
            gaps = {b: (c - a) / age[b] for a, b, c in zip([self.base, *at[:-2]], at[:-1], at[1:], strict=True)}
            out = min(gaps, key=gaps.get)
            del self.snapshots[out]
            at.remove(out)

    def let_go(self, recallable: Callable[[], Iterable[int]]) -> None:
        """Drop what lies beyond `limit`; `recallable` tells which latent frames the memory may look at from now on."""
        now = len(self.chunks)
        if self.limit is None:
            return
        base = now if self.limit == 0 else self.newest_snapshot(now - self.limit)
        if base <= self.base:
            return
        known = [*self.held, *range(self.base, base)]
        self.held = self.looked_at(known, frozenset(recallable()) if self.limit == 0 else self.snapshots[base].recallable)
        for i in {*known} - {*self.held}:
            self.chunks[i] = replace(self.chunks[i], latents=None, poses=None, inverse_depth=None, last_step=None)
        self.base = base
        self.snapshots = {at: s for at, s in self.snapshots.items() if at >= base}

    def newest_snapshot(self, until: int) -> int:
        """How many chunks there were with the newest snapshot of at most `until`; 0 if there is none: the start."""
        return max((at for at in self.snapshots if at <= until), default=0)

    def looked_at(self, chunks: list[int], recallable: frozenset[int]) -> list[int]:
        """Those of `chunks` that have any of the latent frames `recallable`."""
        return [i for i in chunks if not recallable.isdisjoint(range(1 + i * self.chunk, 1 + (i + 1) * self.chunk))]

    def forget_after(self, chunks: int) -> None:
        """Only the first `chunks` have been."""
        del self.chunks[chunks:]
        self.snapshots = {at: s for at, s in self.snapshots.items() if at <= chunks}

    def fork(self) -> History:
        """A copy that grows on its own; what is in it is shared."""
        other = History(self.start, self.chunk, self.limit)
        other.chunks, other.base, other.held, other.snapshots = [*self.chunks], self.base, [*self.held], {**self.snapshots}
        return other
