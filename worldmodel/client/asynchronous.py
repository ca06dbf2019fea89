"""What one can do in a world on a server, for ``async with``, ``async for`` and ``await``. `worldmodel.client.blocking` is made of it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.actions import Action, as_actions, parse_script
from worldmodel.client.connection import Connection, Options
from worldmodel.client.frames import Frame
from worldmodel.client.http_routes import Picture, WorldFile
from worldmodel.server import protocol as p

_AHEAD = 2  # steps sent before their frames came


def connect_async(url: str, **options: Any) -> AsyncRemoteWorld:
    """A world on the server at `url`, for ``async with``; the options are those of `worldmodel.client.connect`."""
    return AsyncRemoteWorld(url, **options)


class KnownWorld:
    """What is known of a world on a server without asking it."""

    _connection: Connection

    @property
    def url(self) -> str:
        """The server's address; of several behind one address the one that has this world, as soon as that is known."""
        return self._connection.http.url

    @property
    def token(self) -> str:
        """Secret with which this world is found again: ``connect(world.url, resume=world.token)``."""
        return self._connection.token

    @property
    def ready(self) -> p.Ready:
        """What the server said of itself at the beginning."""
        return self._connection.ready

    @property
    def state(self) -> p.WorldState | None:
        """The newest that the server told of the world: prompt, seed, branches and more."""
        return self._connection.state

    @property
    def stats(self) -> p.Stats | None:
        return self._connection.stats

    @property
    def first_frame(self) -> Frame | None:
        """The start picture as the server shows it; None in a world that was resumed."""
        return self._connection.first_frame


class AsyncRemoteWorld(KnownWorld):
    """A world on a server, made by `connect_async`; see there."""

    def __init__(self, url: str, **options: Any) -> None:
        self._connection = Connection(url, Options(**options))

    async def __aenter__(self) -> AsyncRemoteWorld:
        await self._connection.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- lockstep ----------------------------------------------------------------------------------------------------------
    async def play(self, actions: str | np.ndarray | Iterable[Action], speed: float = 1.0) -> AsyncIterator[Frame]:
        """Frames of a script (``"w*16 w+left*8"``), an array [T, 13] or any iterable of actions, which is read as the world goes on.

        The last chunk is filled up by standing still. Raises `ClientError`.
        """
        self._only("lockstep", "play")
        if isinstance(actions, str):
            actions = parse_script(actions, speed)
        source = iter(as_actions(actions) if isinstance(actions, np.ndarray) else actions)
        asked: deque[int] = deque()
        while True:
            while len(asked) < _AHEAD:
                batch = list(islice(source, self.ready.chunk))
                if not batch:
                    break
                batch += [Action.idle()] * (self.ready.chunk - len(batch))
                asked.append(await self._connection.step(batch))
            if not asked:
                return
            for _ in range(self.ready.chunk):
                yield await self._connection.next_frame(lambda new: new.header.action_seq >= asked[0] and not new.is_first)
            asked.popleft()

    async def step(self, actions: str | Action | np.ndarray | Iterable[Action]) -> list[Frame]:
        """The frames of a few actions, or of one action held for a chunk."""
        return [frame async for frame in self.play([actions] * self.ready.chunk if isinstance(actions, Action) else actions)]

    # -- realtime ----------------------------------------------------------------------------------------------------------
    async def hold(self, *keys: str, look: tuple[float, float] = (0.0, 0.0)) -> int:
        """Hold these keys (`KeyboardEvent.code`s: ``"KeyW"``, ``"ArrowLeft"``) from now on and no others; `look` turns the view once,
        degrees right and down. Returns the number that the first frame with it bears as `action_seq`.
        """
        self._only("realtime", "hold")
        unknown = [key for key in keys if key not in self.ready.keys]
        if unknown:
            raise ValueError(f"The server knows no key {unknown[0]!r}; it has {', '.join(self.ready.keys)}.")
        return await self._connection.hold(keys, look)

    async def newest(self) -> Frame:
        """The newest frame, as soon as there is one that was not taken yet."""
        self._only("realtime", "newest")
        return await self._connection.next_frame(lambda _: True)

    async def frames(self) -> AsyncIterator[Frame]:
        """`newest` for ever."""
        while True:
            yield await self.newest()

    def _only(self, mode: str, method: str) -> None:
        if self._connection.options.mode != mode:
            raise ValueError(f"{method} needs connect(..., mode={mode!r}).")

    # -- both --------------------------------------------------------------------------------------------------------------
    async def reset(self, image: Picture | None = None, prompt: str | None = None, seed: int | None = None) -> Frame:
        """Start anew, from `image` or from where this world began. Returns the start picture; raises `Refused` when that cannot be."""
        start = await self._connection.http.beginning(image)
        self._connection.first_frame = await self._connection.go(p.Reset(**start, prompt=prompt, seed=seed))
        return self.first_frame

    async def load(self, world: WorldFile) -> Frame:
        """Go on in a saved world, given as a file or its content; raises `Refused` when the server's model cannot."""
        return await self._connection.go(p.Reset(**await self._connection.http.saved_world(world)))

    async def config(self, prompt: str | None = None, speed: float | None = None, quality: int | None = None) -> None:
        """Change the prompt, the speed of held keys, or the JPEG quality, from the next chunk on."""
        await self._connection.send(p.Config(prompt=prompt, speed=speed, quality=quality))

    async def rewind(self, at: int) -> Frame:
        """Go back to when `at` chunks were made; what came after is forgotten. Returns what was seen then; raises `Refused`."""
        return await self._connection.go(p.Rewind(at=at))

    async def fork(self, at: int | None = None) -> Frame:
        """Keep the world as it is as a branch and go on in a copy, from `at` if that is given; `state.branch` is its number then."""
        return await self._connection.go(p.Fork(at=at))

    async def switch(self, branch: int) -> Frame:
        """Go on in another of `state.branches`; returns what is seen there."""
        return await self._connection.go(p.Switch(branch=branch))

    async def discard(self, branch: int) -> None:
        """Forget a branch that one is not in."""
        await self._connection.ask(p.Discard(branch=branch), p.WorldState)

    async def timeline(self) -> p.Timeline:
        """The moments to which one can go back."""
        return await self._connection.ask(p.Ask(about="timeline"), p.Timeline)

    async def memory(self) -> p.Memory:
        """What the next chunk looks back at."""
        return await self._connection.ask(p.Ask(about="memory"), p.Memory)

    async def save(self, path: str | Path) -> Path:
        """Write the world to a file, which `WorldModel.load_world` and ``connect(url, world=path)`` open."""
        return await self._save("world", path)

    async def save_video(self, path: str | Path) -> Path:
        """Write an mp4 of what the server still has of this branch's frames."""
        return await self._save("video", path)

    async def _save(self, kind: str, path: str | Path) -> Path:
        patience_s = max(120.0, self._connection.options.timeout_s)
        saved = await self._connection.ask(p.Save(kind=kind), p.Saved, patience_s)
        return await self._connection.http.download(saved.url, path)

    async def pause(self) -> None:
        """No frame leaves and no chunk is begun until `resume`."""
        await self._connection.send(p.Pause())

    async def resume(self) -> None:
        await self._connection.send(p.Resume())

    async def close(self, keep: bool = False) -> None:
        """Leave. The place is free at once and the world forgotten; with `keep` it stays for the server's grace period."""
        await self._connection.close(keep)
