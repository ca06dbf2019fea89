"""One who walks: holds a key, another after a while, acknowledges every frame, and notes when what came. Frames are not decoded."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from worldmodel.server import protocol as p
from worldmodel.trials.server import TrialError

KEYS = ("KeyW", "KeyA", "KeyS", "KeyD", "ArrowLeft", "ArrowRight")


@dataclass
class Seen:
    """What a visitor saw in some time."""

    seconds: float = 0.0
    frames: int = 0
    latencies: list[float] = field(default_factory=list)  # from an action until the first frame with it, seconds

    @property
    def fps(self) -> float:
        return self.frames / self.seconds if self.seconds else 0.0


class Visitor:
    """``async with Visitor(url) as visitor: await visitor.walk(10)``"""

    def __init__(self, url: str, seed: int = 0, **hello: Any) -> None:
        self._url = url.replace("http", "ws", 1) + "/api/v1/stream"
        self._hello = {"mode": "realtime"} | hello
        self._random = random.Random(seed)
        self._seq = self._shown = 0
        self._asked: dict[int, float] = {}
        self._changed = asyncio.Event()
        self._socket: ClientConnection
        self._reader: asyncio.Task
        self.messages: list[p.ServerMessage] = []  # but stats, and those of each chunk
        self.chunk = -1
        self.quality = 0
        self.size = (0, 0)
        self.seen = Seen()

    async def __aenter__(self) -> Visitor:
        self._socket = await connect(self._url, subprotocols=[p.SUBPROTOCOL], compression=None, max_size=2**26, open_timeout=30)
        await self.say(p.Hello(proto=p.PROTOCOL, **self._hello))
        self._reader = asyncio.create_task(self._read())
        await self.until(lambda: self.seen.frames > 0 or self._reader.done(), 120)
        if self._reader.done():
            await self.drop()
            raise TrialError(f"A visitor was not let in: {self.messages[-1:]}")
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.say(p.Bye())
        except ConnectionClosed:
            pass
        await self.drop()

    async def drop(self) -> None:
        """Go without a word."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await self._socket.close()

    async def say(self, message: p.ClientMessage) -> None:
        await self._socket.send(message.model_dump_json())

    @property
    def ready(self) -> p.Ready:
        return next(m for m in self.messages if isinstance(m, p.Ready))

    async def until(self, ready: Any, timeout_s: float) -> bool:
        """Whether it came true in that time."""
        try:
            async with asyncio.timeout(timeout_s):
                while not ready():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def ask(self, question: p.ClientMessage, kind: type, timeout_s: float = 60.0) -> Any:
        """The next message of that kind, or an error."""
        before = len(self.messages)
        await self.say(question)
        found: list = []

        def came() -> bool:
            found[:] = [m for m in self.messages[before:] if isinstance(m, kind | p.Error)]
            return bool(found) or self._reader.done()

        await self.until(came, timeout_s)
        if not found:
            raise TrialError(f"No answer to {question.type}.")
        return found[0]

    async def walk(self, seconds: float, every_s: float = 0.7) -> Seen:
        """What was seen meanwhile. Raises `TrialError` when the server ends it."""
        self.seen = seen = Seen()
        self._asked.clear()
        begun = time.monotonic()
        while (left := seconds - (time.monotonic() - begun)) > 0:
            self._seq += 1
            self._asked[self._seq] = time.monotonic()
            try:
                await self.say(p.ActionMessage(seq=self._seq, keys=[self._random.choice(KEYS)]))
            except ConnectionClosed:
                raise TrialError(f"A walk was ended: {self.messages[-1:]}") from None
            await asyncio.sleep(min(left, every_s * self._random.uniform(0.7, 1.3)))
        seen.seconds = time.monotonic() - begun
        return seen

    async def _read(self) -> None:
        try:
            async for data in self._socket:
                if isinstance(data, str):
                    message = p.parse_server(data)
                    if isinstance(message, p.Stats):
                        self.quality = message.quality
                    elif not isinstance(message, p.ChunkInfo):
                        self.messages.append(message)
                else:
                    header, _ = p.unpack_frame(data)
                    now = time.monotonic()
                    self.seen.frames += 1
                    self.chunk, self.size = header.chunk, (header.width, header.height)
                    for seq in [seq for seq in self._asked if seq <= header.action_seq]:
                        self.seen.latencies.append(now - self._asked.pop(seq))
                    await self.say(p.Ack(frame=header.frame))
                self._changed.set()
        except ConnectionClosed:
            pass
        finally:
            self._changed.set()
