"""The stream over plain HTTP, where something on the way refuses WebSockets: what the server says is one long answer, what the client says
are POSTs. Messages, frames and rules are those of the WebSocket.

The answer is a sequence of records: kind (u8), length (u32, little-endian), and so many bytes. Kind 1 is a JSON message, 2 a binary frame.
The first record is ``{"type": "channel", "channel": ...}``, the last ``{"type": "closed", "code": ...}``.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import WebSocketDisconnect

from worldmodel.server import protocol as p

RECORD = struct.Struct("<BI")
JSON, FRAME = 1, 2
MAX_BODY = 65_536
_AHEAD = 64
"""Records, or messages, that may wait in one direction."""


class HttpStream:
    """`outbox.Connection` over one answer and many requests."""

    def __init__(self, address: str, send_timeout_s: float) -> None:
        self.channel, self.address = secrets.token_urlsafe(24), address
        self._send_timeout_s = send_timeout_s
        self._out: asyncio.Queue[bytes | None] = asyncio.Queue(_AHEAD)
        self._in: asyncio.Queue[str | None] = asyncio.Queue(_AHEAD)
        self._dead = False

    @property
    def gone(self) -> bool:
        return self._dead

    async def send(self, message: p.ServerMessage) -> None:
        await self._put(JSON, message.model_dump_json().encode())

    async def send_frame(self, data: bytes) -> None:
        await self._put(FRAME, data)

    async def close(self, code: p.CloseCode | int) -> None:
        await self._put(JSON, json.dumps({"type": "closed", "code": int(code)}).encode())
        self.drop()

    def drop(self) -> None:
        """The client is gone, or has been told that it is over."""
        self._dead = True
        for queue in (self._out, self._in):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(None)

    async def receive(self) -> p.ClientMessage:
        """Next message. Raises `ProtocolError` or `WebSocketDisconnect`."""
        text = await self._in.get()
        if text is None:
            raise WebSocketDisconnect(1006)
        return p.parse_client(text)

    def take(self, body: bytes) -> bool:
        """Messages that a client has posted, one a line; False when there are more than are read."""
        lines = [line for line in body.decode("utf-8", "replace").splitlines() if line.strip()]
        if self._in.qsize() + len(lines) >= _AHEAD:
            return False
        for line in lines:
            self._in.put_nowait(line)
        return True

    async def records(self, serve: Callable[[HttpStream], Awaitable[None]]) -> AsyncIterator[bytes]:
        """The answer's body, while `serve` talks to the client."""
        first = json.dumps({"type": "channel", "channel": self.channel}).encode()
        serving = asyncio.create_task(serve(self))
        try:
            yield RECORD.pack(JSON, len(first)) + first
            while (record := await self._out.get()) is not None:
                yield record
        finally:
            if not self._dead:
                self.drop()
            await asyncio.shield(serving)

    async def _put(self, kind: int, data: bytes) -> None:
        if self._dead:
            return
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await self._out.put(RECORD.pack(kind, len(data)) + data)
        except TimeoutError:  # nobody reads
            self.drop()
