"""A world on a server for programs without ``await``: each call waits until `worldmodel.client.asynchronous` has done it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from worldmodel.actions import Action
from worldmodel.client.asynchronous import AsyncRemoteWorld, KnownWorld
from worldmodel.client.errors import ConnectionLost
from worldmodel.client.frames import Frame

P, T = ParamSpec("P"), TypeVar("T")


def connect(url: str, **options: Any) -> RemoteWorld:
    """A world on the server at `url` (``http://127.0.0.1:7860``), to be used as a context manager.

    Args:
        image: start picture (file, its content, or a PIL image), or the name of a gallery world; default: the first gallery world.
        world: a saved world to go on in, as a file or its content, instead of `image`, `prompt` and `seed`.
        prompt, seed: of the world; default: the gallery world's prompt, and 0.
        mode: ``"lockstep"`` (`play`, `step`) or ``"realtime"`` (`hold`, `newest`, `frames`).
        codec: ``"png"`` (lossless, default in lockstep) or ``"jpeg"``.
        access_token: where the server asks for one.
        resume: the `token` of an earlier connection, to go on in its world; give its `url` too, where several servers share an address.
        window: frames on their way at most.
        wait_s: how long to wait for a place on a full server.
        timeout_s: for a connection, and for a frame.
        reconnect_s: how long to try to come back after a drop; the server keeps a world for its grace period, 10 s by default.

    Raises:
        ServerFull, Denied, WrongVersion, Refused, Ended, ConnectionLost: all of them `ClientError`.
    """
    return RemoteWorld(url, **options)


def _waiting_for(method: Callable[Concatenate[AsyncRemoteWorld, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[RemoteWorld, P], T]:
    """The same method, arguments and docstring included, that returns when it is done."""

    @wraps(method)
    def call(self: RemoteWorld, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._do(method(self._world, *args, **kwargs))

    return call


class RemoteWorld(KnownWorld):
    """A world on a server, made by `connect`; the same as `AsyncRemoteWorld` without ``await``. The connection lives in a thread of its
    own, so frames go on arriving while the program does something else.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._world = AsyncRemoteWorld(url, **options)
        self._connection = self._world._connection
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="worldmodel-client", daemon=True)
        self._thread.start()
        try:
            self._do(self._world.__aenter__())
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> RemoteWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def play(self, actions: str | np.ndarray | Iterable[Action], speed: float = 1.0) -> Iterator[Frame]:
        """See `AsyncRemoteWorld.play`."""
        yield from self._each(self._world.play(actions, speed))

    def frames(self) -> Iterator[Frame]:
        """See `AsyncRemoteWorld.frames`."""
        yield from self._each(self._world.frames())

    step = _waiting_for(AsyncRemoteWorld.step)
    hold = _waiting_for(AsyncRemoteWorld.hold)
    newest = _waiting_for(AsyncRemoteWorld.newest)
    reset = _waiting_for(AsyncRemoteWorld.reset)
    load = _waiting_for(AsyncRemoteWorld.load)
    config = _waiting_for(AsyncRemoteWorld.config)
    rewind = _waiting_for(AsyncRemoteWorld.rewind)
    fork = _waiting_for(AsyncRemoteWorld.fork)
    switch = _waiting_for(AsyncRemoteWorld.switch)
    discard = _waiting_for(AsyncRemoteWorld.discard)
    timeline = _waiting_for(AsyncRemoteWorld.timeline)
    memory = _waiting_for(AsyncRemoteWorld.memory)
    save = _waiting_for(AsyncRemoteWorld.save)
    save_video = _waiting_for(AsyncRemoteWorld.save_video)
    pause = _waiting_for(AsyncRemoteWorld.pause)
    resume = _waiting_for(AsyncRemoteWorld.resume)

    def close(self, keep: bool = False) -> None:
        """See `AsyncRemoteWorld.close`."""
        if not self._loop.is_closed():
            self._do(self._world.close(keep))
            self._stop()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise ConnectionLost
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _each(self, frames: AsyncIterator[Frame]) -> Iterator[Frame]:
        async def following() -> Frame | None:
            return await anext(frames, None)

        while (frame := self._do(following())) is not None:
            yield frame

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
