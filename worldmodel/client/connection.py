"""The connection to one world: hello and waiting for a place, what is sent and what arrives, and coming back after a drop.

It knows the protocol (docs/protocol.md) and nothing of what one does in a world; that is `worldmodel.client.asynchronous`.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as open_socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from worldmodel.actions import Action
from worldmodel.client.errors import (
    ClientError,
    ConnectionLost,
    ServerFull,
    WrongVersion,
    from_close,
    from_message,
    kind_of_status,
    unreachable,
)
from worldmodel.client.frames import Arrived, Frame
from worldmodel.client.http_routes import HttpRoutes, Picture, WorldFile
from worldmodel.server import protocol as p

_MAX_MESSAGE = 2**26
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 5.0

Journey = p.Reset | p.Rewind | p.Fork | p.Switch
"""Messages after which one is elsewhere: the next picture is the first one there."""


@dataclass(frozen=True)
class Options:
    """The arguments of `worldmodel.client.connect`, which says what each is."""

    image: Picture | None = None
    world: WorldFile | None = None
    prompt: str | None = None
    seed: int | None = None
    mode: str = "lockstep"
    codec: str | None = None
    access_token: str | None = None
    resume: str | None = None
    window: int = 3
    wait_s: float = 0.0
    timeout_s: float = 60.0
    reconnect_s: float = 10.0

    def __post_init__(self) -> None:
        if self.mode not in ("lockstep", "realtime"):
            raise ValueError(f"mode is lockstep or realtime, got {self.mode!r}.")

    @property
    def lockstep(self) -> bool:
        return self.mode == "lockstep"


class Connection:
    """One world on the server at `url`, as it is known here. Between `start` and `close` a task takes what arrives."""

    def __init__(self, url: str, options: Options) -> None:
        self.http = HttpRoutes(url, options.access_token, options.timeout_s)
        self.options = options
        self.token = options.resume
        self.ready: p.Ready | None = None
        self.state: p.WorldState | None = None
        self.stats: p.Stats | None = None
        self.first_frame: Frame | None = None
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task | None = None
        self._changed = asyncio.Event()
        self._arrived: deque[Arrived] = deque()  # in realtime the newest only
        self._newest = 0
        self._info: p.ChunkInfo | None = None
        self._seq = 0
        self._steps: deque[p.Step] = deque()  # that may not have arrived
        self._journey: Journey | None = None  # whose first picture did not come yet
        self._held: tuple[str, ...] = ()
        self._refusal: ClientError | None = None  # for the next call
        self._failure: ClientError | None = None  # for all calls from now on
        self._error: p.Error | None = None
        self._answers: dict[type, p.ServerMessage] = {}  # the newest of each kind that `ask` waits for

    # -- from hello to close -----------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Find the server, wait for a place, and for the first picture of a world that begins."""
        await self.http.choose_one()
        options, start = self.options, {}
        if options.resume is None:
            start = await (self.http.beginning(options.image) if options.world is None else self.http.saved_world(options.world))
        deadline = time.monotonic() + options.wait_s
        while True:
            try:
                await self._greet(**start, prompt=options.prompt, seed=options.seed)
                break
            except ServerFull as full:
                if time.monotonic() + full.retry_after_s > deadline:
                    raise
                await asyncio.sleep(full.retry_after_s)
        self._reader = asyncio.create_task(self._read())
        if options.lockstep:
            self._seq = self.ready.seq
        if not self.ready.resumed:
            try:
                self.first_frame = await self.next_frame(lambda arrived: arrived.is_first)
            except BaseException:
                await self.close()
                raise

    async def close(self, keep: bool = False) -> None:
        """See `AsyncRemoteWorld.close`."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._socket is not None:
            if not keep:
                await self._tell(p.Bye())
            await self._socket.close()
        self._failure = self._failure or ConnectionLost()

    async def _greet(self, **start: Any) -> None:
        """Connect and say hello; `ready` is the answer."""
        url, options = self.http.url, self.options
        ticket = await self.http.ticket()
        self._error = None
        try:
            socket = await open_socket(
                f"ws{url.removeprefix('http')}/api/v1/stream", subprotocols=[p.SUBPROTOCOL], compression=None, max_size=_MAX_MESSAGE,
                open_timeout=options.timeout_s, close_timeout=1,
            )  # fmt: skip
        except InvalidStatus as error:
            status = error.response.status_code
            raise kind_of_status(status, ConnectionLost)(f"{url} answered {status} to the stream.") from None
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise unreachable(url, error) from None
        give_up = time.monotonic() + options.wait_s
        hello = p.Hello(
            proto=p.PROTOCOL, ticket=ticket, resume=self.token, frame=self._newest, mode=options.mode,
            codec=options.codec or ("png" if options.lockstep else "jpeg"), window=options.window, **start,
        )  # fmt: skip
        try:
            async with asyncio.timeout(options.timeout_s) as patience:
                await socket.send(hello.model_dump_json())
                while True:
                    data = await socket.recv()
                    message = p.read_server(data) if isinstance(data, str) else None
                    if isinstance(message, p.Ready):
                        break
                    if isinstance(message, p.Queued):
                        if time.monotonic() > give_up:
                            raise ServerFull(f"Place {message.position} of {message.of} in line; wait longer with wait_s.")
                        patience.reschedule(asyncio.get_running_loop().time() + options.timeout_s)
                    self._error = message if isinstance(message, p.Error) else self._error
        except ConnectionClosed as closed:
            raise from_close(closed, self._error) or ConnectionLost(f"{url} closed the connection.") from None
        except TimeoutError:
            await socket.close()
            raise ConnectionLost(f"{url} did not answer hello.") from None
        except BaseException:
            await socket.close()
            raise
        self._socket, self.ready, self.token = socket, message, message.resume

    async def _come_back(self) -> None:
        """Connect again and say what may not have arrived."""
        deadline, delay, session = time.monotonic() + self.options.reconnect_s, _FIRST_DELAY_S, self.ready.session
        while True:
            try:
                await self._greet()
                break
            except (ConnectionLost, ServerFull) as error:
                if time.monotonic() + delay > deadline:
                    raise ConnectionLost(f"The connection dropped and could not be made again: {error}") from None
                await asyncio.sleep(delay)
                delay = min(_LONGEST_DELAY_S, 2 * delay)
        if not self.ready.resumed or (self.options.lockstep and self.ready.session != session):
            await self._tell(p.Bye())
            raise ConnectionLost("The connection dropped, and the server has not kept the world as it was.")
        if isinstance(self._journey, p.Fork | p.Switch):
            self._refusal = ConnectionLost("The connection dropped on the way to another branch; `state` says where you are now.")
        elif self._journey is not None:
            await self._tell(self._journey)
        if self.options.lockstep:
            for step in list(self._steps):
                if step.seq > self.ready.seq:
                    await self._tell(step)
        else:
            self._seq = 1
            await self._tell(p.ActionMessage(seq=1, keys=list(self._held)))

    # -- what arrives ------------------------------------------------------------------------------------------------------
    async def _read(self) -> None:
        """Take what arrives, and come back after drops, until it is over."""
        try:
            while True:
                try:
                    while True:
                        await self._receive(await self._socket.recv())
                except ConnectionClosed as closed:
                    reason = from_close(closed, self._error)
                    if reason is not None:
                        raise reason from None
                await self._come_back()
        except ClientError as error:
            self._failure = error
        except p.ProtocolError as error:
            self._failure = WrongVersion(f"The server sent what this client does not understand: {error}")
        finally:
            self._failure = self._failure or ConnectionLost()
            self._changed.set()

    async def _receive(self, data: str | bytes) -> None:
        if isinstance(data, str):
            self._receive_message(p.read_server(data))
        else:
            await self._receive_frame(*p.unpack_frame(data))

    async def _receive_frame(self, header: p.FrameHeader, payload: bytes) -> None:
        if header.frame <= self._newest:
            return
        self._newest = header.frame
        info = self._info if self._info is not None and self._info.chunk == header.chunk else None
        if not self.options.lockstep:
            if self._journey is None or not any(arrived.is_first for arrived in self._arrived):
                self._arrived.clear()
            await self._tell(p.Ack(frame=header.frame))
        self._arrived.append(Arrived(header, payload, info))
        while self._steps and self._steps[0].seq < header.action_seq:
            self._steps.popleft()
        self._changed.set()

    def _receive_message(self, message: p.ServerMessage | None) -> None:
        self._answers[type(message)] = message
        match message:
            case p.ChunkInfo():
                self._info = message
            case p.WorldState():
                self.state = message
            case p.Stats():
                self.stats = message
            case p.Error():
                self._error = message
                if message.code in ("not_found", "image", "world", "busy"):
                    self._refusal, self._journey = from_message(message), None
        self._changed.set()

    async def next_frame(self, wanted: Callable[[Arrived], bool]) -> Frame:
        """The next frame that is wanted; those before it are passed over."""
        try:
            async with asyncio.timeout(self.options.timeout_s):
                while True:
                    self._raise_refusal()
                    while self._arrived:
                        arrived = self._arrived.popleft()
                        if self.options.lockstep:
                            await self._tell(p.Ack(frame=arrived.header.frame))
                        if wanted(arrived):
                            return arrived.decode()
                    await self._something_new()
        except TimeoutError:
            raise ConnectionLost(f"No frame came within {self.options.timeout_s:g} s.") from None

    async def _something_new(self) -> None:
        """Wait until something arrives. Raises `ClientError` when it is over."""
        if self._failure is not None:
            raise self._failure
        self._changed.clear()
        await self._changed.wait()

    def _raise_refusal(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal

    # -- what is sent ------------------------------------------------------------------------------------------------------
    async def send(self, message: p.ClientMessage) -> None:
        """Send now, or with the rest after coming back. Raises `ClientError` when it is over."""
        if self._failure is not None:
            raise self._failure
        if self._socket is None:
            raise ConnectionLost("Not connected: use the client as a context manager.")
        await self._tell(message)

    async def _tell(self, message: p.ClientMessage) -> None:
        try:
            await self._socket.send(message.model_dump_json())
        except ConnectionClosed:
            pass  # the reader comes back, and says again what has to be said

    async def step(self, actions: Iterable[Action]) -> int:
        """Ask for a chunk; its frames bear the number returned, or a later one, as `action_seq`."""
        self._seq += 1
        step = p.Step(seq=self._seq, actions=[list(map(float, action.magnitudes)) for action in actions])
        self._steps.append(step)
        await self.send(step)
        return self._seq

    async def hold(self, keys: tuple[str, ...], look: tuple[float, float]) -> int:
        """See `AsyncRemoteWorld.hold`."""
        self._held = keys
        self._seq += 1
        await self.send(p.ActionMessage(seq=self._seq, keys=list(keys), look=look))
        return self._seq

    async def go(self, journey: Journey) -> Frame:
        """Be elsewhere; the first picture there."""
        self._arrived.clear(), self._steps.clear()
        self._journey = journey
        try:
            await self.send(journey)
            return await self.next_frame(lambda arrived: arrived.is_first)
        finally:
            self._journey = None

    async def ask(self, question: p.ClientMessage, kind: type, timeout_s: float | None = None) -> Any:
        """The answer of that kind."""
        self._answers.pop(kind, None)
        await self.send(question)
        try:
            async with asyncio.timeout(timeout_s or self.options.timeout_s):
                while kind not in self._answers:
                    self._raise_refusal()
                    await self._something_new()
        except TimeoutError:
            raise ConnectionLost(f"The server did not answer {question.type}.") from None
        return self._answers.pop(kind)
