"""The worlds of one visitor: the one that is walked in, in the engine's seat, and branches of it that are kept aside."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worldmodel.engine import Engine, EngineFull, Seat, is_out_of_memory
from worldmodel.server import protocol as p
from worldmodel.server.timeline import Timeline

_DONE = object()


class NotPossible(ValueError):
    """What was asked cannot be done with this world. One clear sentence; nothing has changed."""


@dataclass(eq=False)
class Branch:
    """`world` is its world while another branch is walked in."""

    number: int
    timeline: Timeline
    parent: int | None = None
    at: int = 0
    world: Any = None


class Branches:
    """Going back, branching and changing between branches. Methods that touch worlds do it in the engine's thread, in pieces that let
    other worlds step in between; nobody steps this one meanwhile.
    """

    def __init__(self, engine: Engine, new_timeline: Callable[[], Timeline], limit: int) -> None:
        self._engine, self._new_timeline, self._limit = engine, new_timeline, limit
        self._numbers = 0
        self.current = Branch(0, new_timeline())
        self._kept: dict[int, Branch] = {}

    @property
    def num_bytes(self) -> int:
        """Of the worlds that are kept aside; to be asked in the engine's thread."""
        return sum(getattr(branch.world, "num_bytes", 0) for branch in list(self._kept.values()))

    def told(self) -> list[p.Branch]:
        """For the client, oldest first."""
        every = sorted([self.current, *self._kept.values()], key=lambda branch: branch.number)
        return [p.Branch(branch=b.number, parent=b.parent, at=b.at) for b in every]

    def restart(self) -> None:
        """Another world: branches of the old one go."""
        self._kept.clear()
        self._numbers += 1
        self.current = Branch(self._numbers, self._new_timeline())

    async def rewind(self, seat: Seat, at: int) -> None:
        self._check_reach(seat.world, at)
        await self._go_back(seat.world, at)
        self.current.timeline.cut(at)

    async def fork(self, seat: Seat, at: int | None) -> None:
        """Go on in a copy; raises `EngineFull` when there is no memory for it."""
        here = seat.world
        if len(self._kept) >= self._limit:
            raise NotPossible(f"A world has at most {self._limit} branches beside the one that you are in; discard one first.")
        at = here.index if at is None else at
        self._check_reach(here, at)
        other = await asyncio.wrap_future(self._engine.replace(seat, here.fork))
        try:
            await self._go_back(other, at)
        except BaseException:
            self._engine.replace(seat, lambda: here)
            raise
        left, timeline = self.current, self.current.timeline.fork()
        timeline.cut(at)
        left.world = here
        self._kept[left.number] = left
        self._numbers += 1
        self.current = Branch(self._numbers, timeline, left.number, at)

    async def switch(self, seat: Seat, number: int) -> None:
        branch = self._find(number)
        here = seat.world
        await asyncio.wrap_future(self._engine.replace(seat, lambda: branch.world))
        left, self.current = self.current, self._kept.pop(number)
        left.world, branch.world = here, None
        self._kept[left.number] = left

    def discard(self, number: int) -> None:
        self._find(number)
        del self._kept[number]

    def _find(self, number: int) -> Branch:
        if number == self.current.number:
            raise NotPossible(f"You are in branch {number} already.")
        if number not in self._kept:
            raise NotPossible(f"This world has no branch {number}.")
        return self._kept[number]

    @staticmethod
    def _check_reach(world: Any, at: int) -> None:
        first = world.index - world.reach
        if not first <= at <= world.index:
            raise NotPossible(f"This world has {world.index} chunks; one can go back to {first} and no further, not to {at}.")

    async def _go_back(self, world: Any, at: int) -> None:
        pieces = world.rewinding(world.index - at)
        try:
            while await asyncio.wrap_future(self._engine.call(next, pieces, _DONE)) is not _DONE:
                pass
        except Exception as error:
            if is_out_of_memory(error):
                raise EngineFull("There is no memory left to go back with; try again when another world has ended.") from None
            raise
