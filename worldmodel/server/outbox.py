"""What one visitor is sent: frames when they are due and there is credit for them, encoded as small as the link asks for.

In realtime late frames are skipped. In lockstep none is: each is kept until it was acknowledged, and sent again to one who comes back.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from worldmodel.server import protocol as p
from worldmodel.server.adapt import Adaptation, Picture, resized
from worldmodel.server.metrics import ActionDelay, Metrics
from worldmodel.server.pacing import Credit, PlayoutClock
from worldmodel.server.timeline import encode


class Connection(Protocol):
    """Where messages go. Sending to a closed connection does nothing: the receiving side notices, and afterwards it is `gone`."""

    address: str

    @property
    def gone(self) -> bool: ...
    async def send(self, message: p.ServerMessage) -> None: ...
    async def send_frame(self, data: bytes) -> None: ...
    async def close(self, code: p.CloseCode | int) -> None: ...


class Bell:
    """Rung when something changed; who waits for something looks again then."""

    def __init__(self) -> None:
        self._rung = asyncio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def until(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self._rung.clear()
            await self._rung.wait()


@dataclass(frozen=True)
class Frame:
    pixels: np.ndarray  # uint8 [H, W, 3]
    chunk: int
    seq: int
    flags: p.Flags
    info: p.ChunkInfo | None = None  # of the chunk that begins here
    number: int = 0  # once it was sent


@dataclass(frozen=True)
class Second:
    """What was sent since the last one."""

    fps: float
    encode_ms: float
    latency_ms: float
    quality: int
    dropped: int  # so far


class Outbox:
    """Frames of one session on their way.

    Args:
        fps: At which they are shown, or as fast as the model makes them, if that is less.
        size: (height, width) of frames.
        quality: Of JPEGs, on a link that takes it.
        window: Frames that may be on their way unacknowledged, at most.
        bell: Rung when there is room for more frames.
    """

    def __init__(self, fps: float, size: tuple[int, int], quality: int, window: int, metrics: Metrics, bell: Bell) -> None:
        self.connection: Connection | None = None
        self.clock = PlayoutClock(fps)
        self.delay = ActionDelay(metrics.action_to_send)
        self.quality, self.paused, self.lockstep = quality, False, False
        self.number = 0
        """Of the frame that was sent last."""
        self.epoch = 0
        """What was made in an earlier one is not sent any more."""
        self._size, self._window, self._metrics, self._bell = size, window, metrics, bell
        self._codec = "jpeg"
        self._credit, self._adaptation = Credit(window), Adaptation()
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._queue: deque[Frame] = deque()
        self._unacked: deque[Frame] = deque()  # lockstep: sent, perhaps not arrived
        self._shown: Frame | None = None
        self._born = self._since = time.monotonic()
        self._sent = self._dropped = self._held_up = 0
        self._encode_s = self._ack_s = 0.0

    # ---- the visitor --------------------------------------------------------------------------------------------------

    def renew(self, hello: p.Hello) -> int:
        """Whoever comes now has shown nothing, and acknowledges anew. Returns how many frames may be on their way."""
        self.delay.forget()
        self._credit = Credit(min(hello.window, self._window))
        self._adaptation = Adaptation()
        self._codec = hello.codec
        if self.lockstep != (hello.mode == "lockstep"):
            self.lockstep = not self.lockstep
            self._unacked.clear()
        return self._credit.window

    def open(self, connection: Connection, seen: int) -> None:
        """Send to `connection` from now on; in lockstep what came after frame `seen` once more."""
        if self.lockstep:
            lost = [frame for frame in self._unacked if frame.number > seen]
            self._unacked.clear()
            self._queue.extendleft(reversed(lost))
        else:
            self._queue = deque(replace(frame, seq=0) for frame in self._queue)  # the newcomer counts its messages from 1
            if self._shown is not None and (self.paused or not self._queue):
                self._queue.appendleft(replace(self._shown, seq=0, flags=p.Flags.KEY | p.Flags.RESET, info=None, number=0))
        self.clock.skip_to(time.monotonic())
        self.connection = connection

    def acknowledge(self, frame: int) -> None:
        if frame > self.number:
            raise p.ProtocolError(f"Bad message: frame {frame} was acknowledged before it was sent.")
        while self._unacked and self._unacked[0].number <= frame:
            self._unacked.popleft()
        delay = self._credit.acknowledge(frame, time.monotonic())
        if delay is not None:
            self._ack_s += (delay - self._ack_s) / 8
        self._bell.ring()

    def awaits(self, frame: int) -> bool:
        """Whether acknowledging `frame` would give any credit back."""
        return self._credit.awaits(frame)

    def stalled(self, limit_s: float) -> bool:
        """Whether the visitor has acknowledged nothing for so long."""
        return self._credit.stalled(time.monotonic(), limit_s)

    async def send(self, message: p.ServerMessage) -> None:
        if self.connection is not None:
            await self.connection.send(message)

    async def hang_up(self, message: p.ServerMessage, code: p.CloseCode | int) -> None:
        """Say why it is over, and close the connection."""
        connection, self.connection = self.connection, None
        if connection is not None:
            await dismiss(connection, message, code)

    # ---- frames -------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Frames that wait."""
        return len(self._queue)

    def drop(self) -> None:
        """What was made so far is not shown any more."""
        self.epoch += 1
        self._queue.clear(), self._unacked.clear()

    def arrive(self, pixels: np.ndarray, chunk: int, seq: int) -> None:
        """Show a picture [H, W, 3] of another place, at once and even in a pause."""
        self._queue.append(Frame(pixels, chunk, seq, p.Flags.KEY | p.Flags.RESET))
        self.clock.skip_to(time.monotonic())
        self._bell.ring()

    def put(self, frames: np.ndarray, seq: int, info: p.ChunkInfo) -> None:
        """Send the frames [T, H, W, 3] of a chunk when they are due."""
        if not self._queue:
            self.clock.restart(time.monotonic())
        for i, pixels in enumerate(frames):
            flags = p.Flags.KEY | (p.Flags.NONE if i else p.Flags.CHUNK_START)
            self._queue.append(Frame(pixels, info.chunk, seq, flags, None if i else info))
        self._bell.ring()

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            while True:
                await self._send_next()
        finally:
            self._encoder.shutdown(wait=False)

    async def _send_next(self) -> None:
        late = bool(self._queue) and not self._credit.available  # the link's fault, or its other end's
        await self._bell.until(self._may_send)
        wait = self.clock.due - time.monotonic()
        if wait > 0 and not self.lockstep:
            await asyncio.sleep(wait)
            return
        connection, credit, epoch, skipped = self.connection, self._credit, self.epoch, self._dropped
        frame = self._next_frame()
        self._held_up += self._dropped - skipped if late else 0
        begun = time.perf_counter()
        height, width = frame.pixels.shape[:2]
        picture = self._adaptation.picture(self.quality, width, height)
        work = _encode, frame.pixels, self._codec, picture
        codec, payload = await asyncio.get_running_loop().run_in_executor(self._encoder, *work)
        encode_s = time.perf_counter() - begun
        self._encode_s += (encode_s - self._encode_s) / 8
        self._metrics.encode.observe(encode_s)
        if connection is not self.connection or epoch != self.epoch:
            return
        if not frame.number:
            frame = self._numbered(frame)
        self._shown, self._sent = frame, self._sent + 1
        now = time.monotonic()
        credit.sent(frame.number, now)
        flags = frame.flags | (p.Flags.REDUCED if picture.reduced else p.Flags.NONE)
        t_ms = int((now - self._born) * 1000)
        if frame.info is not None:
            await connection.send(frame.info)
        header = p.FrameHeader(frame.number, frame.seq, frame.chunk, t_ms, picture.width, picture.height, codec, flags)
        await connection.send_frame(p.pack_frame(header, payload))
        self.delay.sent(frame.seq)
        self._metrics.frames_sent.inc()
        self._metrics.bytes_sent.inc(p.HEADER.size + len(payload))

    def _may_send(self) -> bool:
        if not self._queue or self.connection is None or not self._credit.available:
            return False
        return not self.paused or p.Flags.RESET in self._queue[0].flags  # where one has come to is seen even so

    def _next_frame(self) -> Frame:
        """The frame that is due. On a link too slow for all of them, late ones are skipped; their flags are kept. In lockstep none is:
        it has its number, and is kept until it was acknowledged.
        """
        frame = self._queue.popleft()
        if self.lockstep:
            frame = frame if frame.number else self._numbered(frame)
            self._unacked.append(frame)
            self._bell.ring()  # there is room for another chunk
            return frame
        while self._queue and time.monotonic() - self.clock.due >= self.clock.period:
            self.clock.tick()
            self._dropped += 1
            self._metrics.frames_dropped.inc()
            newer = self._queue.popleft()
            frame = replace(newer, flags=newer.flags | frame.flags, info=newer.info or frame.info)
        self.clock.tick()
        return frame

    def _numbered(self, frame: Frame) -> Frame:
        self.number += 1
        return replace(frame, number=self.number)

    def second(self) -> Second:
        """To be asked once a second: what was sent since, by which the quality is adapted."""
        now = time.monotonic()
        if not self.lockstep and self._codec == "jpeg":
            self._adaptation.second(self._sent, self._held_up)
        fps = self._sent / (now - self._since) if now > self._since else 0.0
        self._since, self._sent, self._held_up = now, 0, 0
        quality = self._adaptation.picture(self.quality, *self._size[::-1]).quality
        return Second(round(fps, 1), round(1e3 * self._encode_s, 2), round(1e3 * self._ack_s, 1), quality, self._dropped)


async def dismiss(connection: Connection, message: p.ServerMessage, code: p.CloseCode | int) -> None:
    await connection.send(message)
    await connection.close(code)


def _encode(pixels: np.ndarray, codec: str, picture: Picture) -> tuple[p.Codec, bytes]:
    if codec == "png":
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", compress_level=1)
        return p.Codec.PNG, out.getvalue()
    return p.Codec.JPEG, encode(resized(pixels, picture), picture.quality)
