"""What a visitor has seen and may take home: the timelines of their branches with thumbnails and frames, and files made of them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

import numpy as np

from worldmodel.engine import Engine, EngineStopped, Seat
from worldmodel.server import protocol as p
from worldmodel.server import timeline as tl
from worldmodel.server.branches import Branches, NotPossible
from worldmodel.server.exports import save_video, save_world
from worldmodel.server.files import Files
from worldmodel.server.settings import ServerSettings


class Record:
    """Of one session. `key` is a secret under which its thumbnails are fetched."""

    def __init__(self, engine: Engine, settings: ServerSettings, files: Files) -> None:
        self._engine, self._files = engine, files
        self.key = secrets.token_urlsafe(18)
        self.thumbnails = tl.Thumbnails(2 * (settings.history + 1))  # those of moments that were gone back from are in it for a while
        self.branches = Branches(engine, lambda: tl.Timeline(settings.history + 1, settings.recording_bytes), settings.branches)
        self._saving: set[str] = set()
        self._encoding: set[asyncio.Task] = set()

    def remember(self, at: int, pose: np.ndarray, *frames: np.ndarray) -> tl.Moment:
        """A moment of the branch that is walked in; its pictures, if there are any, are encoded aside."""
        timeline = self.branches.current.timeline
        moment = tl.Moment(at, tl.pose_numbers(pose), self.thumbnails.number() if frames else None)
        timeline.add(moment)

        def work() -> tuple[bytes, ...]:
            self.thumbnails.put(moment.thumbnail, tl.thumbnail(frames[-1]))
            return tuple(tl.encode(frame) for frame in frames)

        async def fill() -> None:
            timeline.fill(moment, await asyncio.to_thread(work))

        if frames:
            task = asyncio.create_task(fill())
            self._encoding.add(task)
            task.add_done_callback(self._encoding.discard)
        return moment

    def address(self, moment: tl.Moment) -> str | None:
        """Of its thumbnail."""
        return tl.address(self.key, moment.thumbnail)

    def timeline(self, first: int) -> p.Timeline:
        """Of the branch that is walked in, from the moment `first` on."""
        branch = self.branches.current
        return tl.as_message(branch.number, first, branch.timeline.moments, self.key)

    async def save(self, kind: str, seat: Seat, note: Callable[[], dict[str, Any]], fps: float) -> p.Saved:
        """Make a file while the walk goes on; one of a kind at a time. Raises `NotPossible`."""
        if kind in self._saving:
            raise NotPossible(f"A {kind} is being saved already.")
        self._saving.add(kind)
        try:
            if kind == "video":
                return await save_video(self.branches.current.timeline.recording(), fps, self._files)
            state = await asyncio.wrap_future(self._engine.call(lambda: seat.world.state(note=note())))
            return await save_world(state, self._files)
        except (EngineStopped, AttributeError):  # the seat was given up meanwhile, or its worlds cannot be saved
            raise NotPossible(f"This {kind} cannot be saved.") from None
        finally:
            self._saving.discard(kind)


def memory_message(world: Any) -> p.Memory:
    """What `world` remembers; in the engine's thread."""
    tiles = [p.Tile(latent=t.latent, at=t.at, factor=t.factor, tokens=t.tokens, pose=tl.pose_numbers(t.pose)) for t in world.tiles]
    return p.Memory(at=world.index, tokens=world.memory_tokens, bytes=world.memory_bytes, tiles=tiles)
