"""Who may walk: as many visitors at once as there are places, a line for others, and a place kept for a while for one whose connection
dropped.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from worldmodel.admission import Admission, AdmissionConfig, Refused, Ticket
from worldmodel.engine import Engine, EngineConfig, EngineFull, EngineStopped
from worldmodel.server import protocol as p
from worldmodel.server.files import Files
from worldmodel.server.metrics import Metrics
from worldmodel.server.outbox import Connection
from worldmodel.server.session import Session
from worldmodel.server.settings import ServerSettings
from worldmodel.server.timeline import Thumbnails
from worldmodel.server.uploads import Upload

log = logging.getLogger(__name__)


class Busy(Exception):
    """There is no place; ask again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Stopping(Exception):
    """The server stops and lets nobody in."""


class Gone(Exception):
    """The visitor left while waiting in line."""


@dataclass(eq=False)
class _Visit:
    """A session and its place."""

    session: Session
    ticket: Ticket
    task: asyncio.Task | None = None
    expiry: asyncio.TimerHandle | None = None


class Lobby:
    """Owns the engine and the sessions. Nobody who walks within the limits has to go for a newcomer."""

    def __init__(self, model: Any, settings: ServerSettings, find_image: Callable[[str], Upload | None], files: Files) -> None:
        self._settings, self._find_image, self._files = settings, find_image, files
        self.metrics = Metrics()
        self.stopping = False
        self._autosave = None
        if settings.autosave is not None:
            from worldmodel.autosave import Autosave  # with torch, which a server of doubles does without

            self._autosave = Autosave(settings.autosave)
        self.engine = Engine(model, EngineConfig(worlds=settings.worlds, batch=settings.batch), self._autosave)
        self.admission = Admission(
            AdmissionConfig(
                settings.worlds, settings.line, settings.time_limit_s, settings.idle_s, settings.places_each, settings.busy_retry_s
            )
        )
        self._visits: list[_Visit] = []
        self._leaving: dict[asyncio.Task, str] = {}  # worlds that are being saved or forgotten, by the token of their session
        self._lock = asyncio.Lock()
        self._moved = asyncio.Event()  # set, and made anew, whenever the line may have moved

    @property
    def occupied(self) -> bool:
        """Whether a newcomer would be refused."""
        return self.admission.full

    async def enter(self, hello: p.Hello, connection: Connection) -> Session:
        """The visitor's session, new or resumed, attached to `connection`, when it is their turn. Raises `Busy` when there is no place and
        none in line, `Stopping`, and `Gone`.
        """
        ticket = None
        try:
            while True:
                async with self._lock:
                    if self.stopping:
                        raise Stopping
                    visit = self._find(hello.resume)
                    if visit is None and ticket is None:
                        ticket = await self._admit(connection.address)
                    if visit is not None or ticket.admitted:
                        if visit is None:
                            visit, ticket = await self._new_visit(hello, ticket), None
                        self._keep(visit)
                        await visit.session.attach(connection, hello)
                        return visit.session
                await self._wait(ticket, connection)
        finally:
            if ticket is not None:
                self._leave_line(ticket)

    async def _new_visit(self, hello: p.Hello, ticket: Ticket) -> _Visit:
        saved = None
        if hello.resume and self._autosave is not None:
            await asyncio.gather(*(task for task, token in self._leaving.items() if token == hello.resume))
            saved = await asyncio.to_thread(self._autosave.load, hello.resume, self.engine.model)
        token = hello.resume if saved is not None else None
        visit = _Visit(Session(self.engine, self._settings, self._find_image, self._files, token, saved, self.metrics), ticket)
        self._visits.append(visit)
        log.info("enter", extra={"session": visit.session.id, "mode": hello.mode, "resumed": saved is not None, "here": len(self._visits)})
        visit.task = asyncio.create_task(self._run(visit))
        return visit

    async def _wait(self, ticket: Ticket, connection: Connection) -> None:
        """Until it is the visitor's turn, or the lobby has to be looked at again; who waits is told the place in line."""
        now = time.monotonic()
        visit = self._overdue(now)
        if visit is not None and not ticket.admitted:
            await self._send_away(visit)
        if ticket.admitted:
            return
        if connection.gone:
            raise Gone
        eta_s = self.admission.wait_s(ticket, now)
        await connection.send(
            p.Queued(position=self.admission.position(ticket), of=self.admission.waiting, eta_s=None if eta_s is None else round(eta_s, 1))
        )
        try:
            await asyncio.wait_for(self._moved.wait(), timeout=1.0)
        except TimeoutError:
            pass

    def _leave_line(self, ticket: Ticket) -> None:
        self.admission.leave(ticket, time.monotonic())
        self._line_moved()

    def _line_moved(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    def leave(self, session: Session, connection: Connection, for_good: bool) -> None:
        """The connection closed. The place is kept for the grace period, or freed at once when the visitor said bye."""
        visit = next((v for v in self._visits if v.session is session), None)
        if not session.detach(connection) or visit is None:
            return
        if for_good:
            self._free(visit, keep=False)
        else:
            visit.expiry = asyncio.get_running_loop().call_later(self._settings.grace_s, self._free, visit)

    async def close(self) -> None:
        """End all walks because the server stops: nobody new comes in, and worlds are saved. May be called again."""
        self.stopping = True
        self._line_moved()
        visits = list(self._visits)
        await asyncio.gather(*(visit.session.end("shutdown", 1012) for visit in visits))
        for visit in visits:
            self._free(visit)
        await asyncio.gather(*self._leaving)
        await asyncio.to_thread(self.engine.stop)

    async def measure(self) -> bytes:
        """The metrics now, as text."""
        m, sizes = self.metrics, list(self.engine.batch_sizes)
        m.worlds.set(self.engine.worlds)
        m.room.set(min(self._settings.worlds, self.engine.room))
        m.waiting.set(self.admission.waiting)
        m.batch_size.set(sum(sizes) / len(sizes) if sizes else 0)
        if self._visits and not self.stopping:
            sessions = [visit.session for visit in self._visits]
            asked = self.engine.call(lambda: sum(session.cache_bytes for session in sessions))
            try:
                m.cache_bytes.set(await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(asked)), timeout=2.0))
            except (TimeoutError, EngineStopped):
                pass  # a long step: the last figure stays
        else:
            m.cache_bytes.set(0)
        return m.render()

    def thumbnails(self, key: str) -> Thumbnails | None:
        """Those of the session that has this key."""
        known = (v.session for v in self._visits)
        return next((s.thumbnails for s in known if secrets.compare_digest(key.encode(), s.thumbnail_key.encode())), None)

    def _find(self, token: str | None) -> _Visit | None:
        if not token:
            return None
        return next((v for v in self._visits if secrets.compare_digest(token.encode(), v.session.token.encode())), None)

    async def _admit(self, address: str) -> Ticket:
        """A place, or one in line."""
        now = time.monotonic()
        self.admission.places = min(self._settings.worlds, self.engine.room)  # less when memory ran out
        try:
            return self.admission.ask(now, address)
        except Refused as refused:
            visit = self._overdue(now) if not self.admission.waiting else None
            if visit is None:
                raise Busy(*self._refusal(str(refused))) from None
        await self._send_away(visit)
        try:
            return self.admission.ask(time.monotonic(), address)
        except Refused as refused:
            raise Busy(*self._refusal(str(refused))) from None

    async def _send_away(self, visit: _Visit) -> None:
        await visit.session.end("idle", p.CloseCode.IDLE)
        self._free(visit)

    def _overdue(self, now: float) -> _Visit | None:
        """Who makes room for a newcomer: who is here and touches nothing, or has walked long enough."""
        for visit in self._visits:
            self.admission.touch(visit.ticket, visit.session.touched if visit.session.connection is not None else now)
        tickets = [ticket for ticket, _ in self.admission.overdue(now, waiting=1)]
        return next((v for v in self._visits if v.ticket in tickets), None)

    def _refusal(self, message: str) -> tuple[str, float]:
        if self._settings.worlds == 1 and message.startswith("All places"):
            message = "Someone else is walking here; try again in a moment."
        ends = [visit.expiry.when() for visit in self._visits if visit.expiry is not None]
        if not ends:
            return message, self._settings.busy_retry_s
        return message, max(0.5, round(min(ends) - asyncio.get_running_loop().time() + 0.5, 1))

    @staticmethod
    def _keep(visit: _Visit) -> None:
        if visit.expiry is not None:
            visit.expiry.cancel()
            visit.expiry = None

    def _free(self, visit: _Visit, keep: bool = True) -> None:
        if visit not in self._visits:
            return
        self._keep(visit)
        self._visits.remove(visit)
        stayed_s = round(time.monotonic() - (visit.ticket.since or 0.0), 1)
        log.info("leave", extra={"session": visit.session.id, "stayed_s": stayed_s, "kept": keep, "here": len(self._visits)})
        self._leave_line(visit.ticket)
        if visit.task is not None:
            visit.task.cancel()
        leaving = asyncio.create_task(visit.session.release(keep))
        self._leaving[leaving] = visit.session.token
        leaving.add_done_callback(self._leaving.pop)

    async def _run(self, visit: _Visit) -> None:
        try:
            await visit.session.run()
        except* EngineFull:
            self._free(visit)
        except* Exception as failures:
            for failure in failures.exceptions:
                log.error("A walk ended by an error.", exc_info=failure)
            self._free(visit)
