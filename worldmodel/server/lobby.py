"""Who may walk: one visitor at a time, with a place kept for a while for one whose connection dropped."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from worldmodel.server import protocol as p
from worldmodel.server.session import Connection, Session
from worldmodel.server.settings import ServerSettings

log = logging.getLogger(__name__)


class Busy(Exception):
    """The place is taken; ask again after `retry_after_s`."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("Someone else is walking here; try again in a moment.")
        self.retry_after_s = retry_after_s


class Lobby:
    """Owns the model's thread and the one session that there may be."""

    def __init__(self, model: Any, settings: ServerSettings, find_image: Callable[[str], np.ndarray | None]) -> None:
        self._model, self._settings, self._find_image = model, settings, find_image
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._session: Session | None = None
        self._task: asyncio.Task | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._lock = asyncio.Lock()

    @property
    def occupied(self) -> bool:
        return self._session is not None

    async def enter(self, hello: p.Hello, connection: Connection) -> Session:
        """The visitor's session, new or resumed, attached to `connection`. Raises `Busy` when somebody else is here."""
        async with self._lock:
            session = self._session
            if session is not None and not (hello.resume and secrets.compare_digest(hello.resume.encode(), session.token.encode())):
                if session.connection is not None and time.monotonic() - session.touched > self._settings.idle_s:
                    await session.end("idle", p.CloseCode.IDLE)
                    self._free(session)
                else:
                    raise Busy(self._retry_after())
            if self._session is None:
                self._session = Session(self._model, self._settings, self._thread, self._find_image)
                self._task = asyncio.create_task(self._run(self._session))
            session = self._session
            self._keep()
            await session.attach(connection, hello)
            return session

    def leave(self, session: Session, connection: Connection, for_good: bool) -> None:
        """The connection closed. The place is kept for the grace period, or freed at once when the visitor said bye."""
        if not session.detach(connection) or session is not self._session:
            return
        if for_good:
            self._free(session)
        else:
            self._expiry = asyncio.get_running_loop().call_later(self._settings.grace_s, self._free, session)

    async def close(self) -> None:
        """End the walk because the server stops."""
        if self._session is not None:
            await self._session.end("shutdown", 1012)
            self._free(self._session)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _retry_after(self) -> float:
        if self._expiry is not None:
            return max(0.5, round(self._expiry.when() - asyncio.get_running_loop().time() + 0.5, 1))
        return self._settings.busy_retry_s

    def _keep(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _free(self, session: Session) -> None:
        if session is not self._session:
            return
        self._keep()
        self._session = None
        if self._task is not None:
            self._task.cancel()

    async def _run(self, session: Session) -> None:
        try:
            await session.run()
        except* Exception as failures:
            for failure in failures.exceptions:
                log.error("A walk ended by an error.", exc_info=failure)
            self._free(session)
