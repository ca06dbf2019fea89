"""One connection from hello to close, over a WebSocket or over plain HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from worldmodel.server import protocol as p
from worldmodel.server.http_stream import MAX_BODY, HttpStream
from worldmodel.server.lobby import Busy, Gone, Lobby, Stopping
from worldmodel.server.session import Session
from worldmodel.server.settings import ServerSettings
from worldmodel.server.tickets import Tickets

log = logging.getLogger(__name__)
SEND_TIMEOUT_S = 5.0


class Socket:
    """`outbox.Connection` over a WebSocket, and the reading side with its rate limit."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._lock = asyncio.Lock()
        self._dead = False
        self.address = websocket.client.host if websocket.client else ""

    @property
    def gone(self) -> bool:
        return self._dead

    async def send(self, message: p.ServerMessage) -> None:
        await self._guarded(self._websocket.send_text, message.model_dump_json())

    async def send_frame(self, data: bytes) -> None:
        await self._guarded(self._websocket.send_bytes, data)

    async def close(self, code: p.CloseCode | int) -> None:
        await self._guarded(self._websocket.close, int(code))

    async def receive(self) -> p.ClientMessage:
        """Next message. Raises `ProtocolError` or `WebSocketDisconnect`."""
        event = await self._websocket.receive()
        if event["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(event.get("code", 1006))
        if event.get("text") is None:
            raise p.ProtocolError("Bad message: clients send JSON text, not binary frames.")
        if len(event["text"]) > MAX_BODY:  # uvicorn has closed before, but not where another server stands in front
            raise p.ProtocolError(f"Bad message: messages have at most {MAX_BODY} bytes.")
        return p.parse_client(event["text"])

    async def _guarded(self, send: Any, value: Any) -> None:
        """Send unless the socket is closed or takes nothing any more; `receive` reports that to whoever serves it."""
        if self._dead:
            return
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S), self._lock:
                await send(value)
        except (WebSocketDisconnect, RuntimeError, TimeoutError):
            self._dead = True


async def serve(connection: Socket | HttpStream, lobby: Lobby, settings: ServerSettings, tickets: Tickets) -> None:
    """One connection from hello to close."""

    async def refuse(error: p.Error, code: p.CloseCode) -> None:
        log.info("refused", extra={"reason": error.code, "why": error.message})
        lobby.metrics.refused.labels(error.code).inc()
        await connection.send(error)
        await connection.close(code)

    try:
        async with asyncio.timeout(settings.hello_s):
            hello = await connection.receive()
        if not isinstance(hello, p.Hello):
            raise p.ProtocolError(f"Bad message: say hello first, not {hello.type}.")
        if settings.access_token is not None and not tickets.take(hello.ticket):
            error = p.Error(code="denied", message="This server asks for its access token, or the ticket is used or too old.")
            return await refuse(error, p.CloseCode.DENIED)
        session = await lobby.enter(hello, connection)
    except p.VersionError as error:
        await refuse(p.Error(code="version", message=str(error)), p.CloseCode.VERSION)
    except p.ProtocolError as error:
        await refuse(p.Error(code="bad_message", message=str(error)), p.CloseCode.BAD_MESSAGE)
    except Busy as busy:
        await refuse(p.Error(code="busy", message=str(busy), retry_after_s=busy.retry_after_s), p.CloseCode.BUSY)
    except Stopping:
        await connection.send(p.End(reason="shutdown"))
        await connection.close(1012)
    except TimeoutError:
        await connection.close(p.CloseCode.BAD_MESSAGE)
    except (WebSocketDisconnect, Gone):
        return
    else:
        for_good = False
        try:
            for_good = await _listen(connection, session, settings, refuse)
        finally:
            lobby.leave(session, connection, for_good)


async def _listen(connection: Socket | HttpStream, session: Session, settings: ServerSettings, refuse: Callable) -> bool:
    """Hand messages to the session until the connection ends; True when the visitor said bye."""
    tokens, filled = 2 * settings.messages_per_s, time.monotonic()
    try:
        while True:
            message = await connection.receive()
            now = time.monotonic()
            tokens, filled = min(2 * settings.messages_per_s, tokens + (now - filled) * settings.messages_per_s), now
            if tokens < 1:
                error = p.Error(code="rate", message=f"More than {settings.messages_per_s:.0f} messages a second.")
                await refuse(error, p.CloseCode.BUSY)
                return False
            tokens -= 0 if session.expects(message) else 1
            if isinstance(message, p.Bye):
                await connection.close(1000)
                return True
            await session.handle(message)
    except p.ProtocolError as error:
        await refuse(p.Error(code="bad_message", message=str(error)), p.CloseCode.BAD_MESSAGE)
    except WebSocketDisconnect:
        return False
    return False
