"""A world on a server, from Python: the other end of docs/protocol.md.

    with connect("http://127.0.0.1:7860", image="red canyon") as world:
        for frame in world.play("w*32 left*8"):
            frame.pixels                            # uint8 [H, W, 3]

In ``lockstep`` mode (the default) the world moves when you say so, and every frame of it arrives, in order. In ``realtime`` mode it goes on
by itself: `hold` keys, and take the `newest` frame. `connect_async` gives the same with ``async with``, ``async for`` and ``await``.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from PIL import Image
from websockets.asyncio.client import ClientConnection
from websockets.asyncio.client import connect as _open_socket
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from worldmodel.actions import Action, as_actions, parse_script
from worldmodel.server import protocol as p

_AHEAD = 2  # steps sent before their frames came
_MAX_MESSAGE = 2**26
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 5.0


class ClientError(RuntimeError):
    """The server said no, or is not there. One clear sentence."""


class ServerFull(ClientError):
    """All places are taken; ask again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Denied(ClientError):
    """The access token was refused, or the server asks for one."""


class WrongVersion(ClientError):
    """Client and server speak different versions of the protocol."""


class Refused(ClientError):
    """The server understood and did not do it: no such world, a picture that it cannot use, a message that makes no sense."""


class Ended(ClientError):
    """The server ended the visit: somebody else waited, the world went on elsewhere, the model failed."""


class ConnectionLost(ClientError):
    """The server cannot be reached, or has lost this world."""


@dataclass(frozen=True)
class Frame:
    """One picture. `action_seq` is the newest message that had a say in it, `made_ms` and `timings` are milliseconds of its chunk."""

    pixels: np.ndarray  # uint8 [H, W, 3]
    number: int
    chunk: int
    action_seq: int
    made_ms: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Raw:
    header: p.FrameHeader
    payload: bytes
    info: p.ChunkInfo | None

    def decode(self) -> Frame:
        with Image.open(io.BytesIO(self.payload), formats=("JPEG", "PNG")) as image:
            pixels = np.array(image.convert("RGB"))
        h, info = self.header, self.info
        return Frame(pixels, h.frame, h.chunk, h.action_seq, info.made_ms if info else 0.0, dict(info.timings) if info else {})


class AsyncRemoteWorld:
    """A world on a server, made by `connect_async`; see there."""

    def __init__(
        self,
        url: str,
        *,
        image: str | Path | bytes | Image.Image | None = None,
        world: str | Path | bytes | None = None,
        prompt: str | None = None,
        seed: int | None = None,
        mode: str = "lockstep",
        codec: str | None = None,
        access_token: str | None = None,
        resume: str | None = None,
        window: int = 3,
        wait_s: float = 0.0,
        timeout_s: float = 60.0,
        reconnect_s: float = 10.0,
    ) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https", "ws", "wss") or not parts.netloc:
            raise ValueError(f"Give the server's address, for example http://127.0.0.1:7860, got {url!r}.")
        if mode not in ("lockstep", "realtime"):
            raise ValueError(f"mode is lockstep or realtime, got {mode!r}.")
        self.url = urlunsplit(("https" if parts.scheme in ("https", "wss") else "http", parts.netloc, parts.path.rstrip("/"), "", ""))
        """The server's address; of several behind one address the one that has this world, as soon as that is known."""
        self._image, self._world, self._prompt, self._seed, self._access_token = image, world, prompt, seed, access_token
        self._mode, self._codec = mode, codec or ("png" if mode == "lockstep" else "jpeg")
        self._window, self._wait_s, self._timeout_s, self._reconnect_s = window, wait_s, timeout_s, reconnect_s

        self.token = resume
        """Secret with which this world is found again: ``connect(world.url, resume=world.token)``."""
        self.ready: p.Ready | None = None
        self.state: p.WorldState | None = None
        self.stats: p.Stats | None = None
        self.first_frame: Frame | None = None
        """The start picture as the server shows it; None in a world that was resumed."""
        self._socket: ClientConnection | None = None
        self._reader: asyncio.Task | None = None
        self._changed = asyncio.Event()
        self._arrived: deque[_Raw] = deque()  # in realtime the newest only
        self._newest = 0
        self._info: p.ChunkInfo | None = None
        self._seq = 0
        self._steps: deque[p.Step] = deque()  # that may not have arrived
        self._reset: p.Reset | p.Rewind | p.Fork | p.Switch | None = None  # whose first picture did not come yet
        self._held: tuple[str, ...] = ()
        self._refusal: ClientError | None = None  # for the next call
        self._failure: ClientError | None = None  # for all calls from now on
        self._error: p.Error | None = None
        self._end: p.End | None = None
        self._answers: dict[type, p.ServerMessage] = {}  # the newest of each kind that `_ask` waits for

    async def __aenter__(self) -> AsyncRemoteWorld:
        await self._start()
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
                asked.append(await self._step(batch))
            if not asked:
                return
            for _ in range(self.ready.chunk):
                yield await self._next_frame(lambda h: h.action_seq >= asked[0] and not h.flags & p.Flags.RESET)
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
        self._held = keys
        self._seq += 1
        await self._send(p.ActionMessage(seq=self._seq, keys=list(keys), look=look))
        return self._seq

    async def newest(self) -> Frame:
        """The newest frame, as soon as there is one that was not taken yet."""
        self._only("realtime", "newest")
        return await self._next_frame(lambda _: True)

    async def frames(self) -> AsyncIterator[Frame]:
        """`newest` for ever."""
        while True:
            yield await self.newest()

    # -- both --------------------------------------------------------------------------------------------------------------
    async def reset(
        self, image: str | Path | bytes | Image.Image | None = None, prompt: str | None = None, seed: int | None = None
    ) -> Frame:
        """Start anew, from `image` or from where this world began. Returns the start picture; raises `Refused` when that cannot be."""
        start = await self._start_from(image)
        self.first_frame = await self._go(p.Reset(**start, prompt=prompt, seed=seed))
        return self.first_frame

    async def load(self, world: str | Path | bytes) -> Frame:
        """Go on in a saved world, given as a file or its content; raises `Refused` when the server's model cannot."""
        return await self._go(p.Reset(world=await self._upload_world(world)))

    async def config(self, prompt: str | None = None, speed: float | None = None, quality: int | None = None) -> None:
        """Change the prompt, the speed of held keys, or the JPEG quality, from the next chunk on."""
        await self._send(p.Config(prompt=prompt, speed=speed, quality=quality))

    async def rewind(self, at: int) -> Frame:
        """Go back to when `at` chunks were made; what came after is forgotten. Returns what was seen then; raises `Refused`."""
        return await self._go(p.Rewind(at=at))

    async def fork(self, at: int | None = None) -> Frame:
        """Keep the world as it is as a branch and go on in a copy, from `at` if that is given; `state.branch` is its number then."""
        return await self._go(p.Fork(at=at))

    async def switch(self, branch: int) -> Frame:
        """Go on in another of `state.branches`; returns what is seen there."""
        return await self._go(p.Switch(branch=branch))

    async def discard(self, branch: int) -> None:
        """Forget a branch that one is not in."""
        await self._ask(p.Discard(branch=branch), p.WorldState)

    async def timeline(self) -> p.Timeline:
        """The moments to which one can go back."""
        return await self._ask(p.Ask(about="timeline"), p.Timeline)

    async def memory(self) -> p.Memory:
        """What the next chunk looks back at."""
        return await self._ask(p.Ask(about="memory"), p.Memory)

    async def save(self, path: str | Path) -> Path:
        """Write the world to a file, which `WorldModel.load_world` and ``connect(url, world=path)`` open."""
        return await self._download("world", path)

    async def save_video(self, path: str | Path) -> Path:
        """Write an mp4 of what the server still has of this branch's frames."""
        return await self._download("video", path)

    async def pause(self) -> None:
        await self._send(p.Pause())

    async def resume(self) -> None:
        await self._send(p.Resume())

    async def close(self, keep: bool = False) -> None:
        """Leave. The place is free at once and the world forgotten; with `keep` it stays for the server's grace period."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        if self._socket is not None:
            if not keep:
                try:
                    await self._socket.send(p.Bye().model_dump_json())
                except ConnectionClosed:
                    pass
            await self._socket.close()
        self._failure = self._failure or ConnectionLost("This connection was closed.")

    # -- the connection ----------------------------------------------------------------------------------------------------
    async def _start(self) -> None:
        self.url = await asyncio.to_thread(_one_of_several, self.url, self._timeout_s)
        fresh = self.token is None and self._world is not None
        start = {"world": await self._upload_world(self._world)} if fresh else await self._start_from(self._image)
        deadline = time.monotonic() + self._wait_s
        while True:
            try:
                await self._greet(**start, prompt=self._prompt, seed=self._seed)
                break
            except ServerFull as full:
                if time.monotonic() + full.retry_after_s > deadline:
                    raise
                await asyncio.sleep(full.retry_after_s)
        self._reader = asyncio.create_task(self._read())
        if self._mode == "lockstep":
            self._seq = self.ready.seq
        if not self.ready.resumed:
            try:
                self.first_frame = await self._next_frame(lambda h: bool(h.flags & p.Flags.RESET))
            except BaseException:
                await self.close()
                raise

    async def _greet(self, **start: Any) -> None:
        """Connect and say hello; `ready` is the answer."""
        ticket = None
        if self._access_token is not None:
            ticket = (await self._post("api/v1/sessions", b""))["ticket"]
        self._error = self._end = None
        try:
            socket = await _open_socket(
                f"ws{self.url.removeprefix('http')}/api/v1/stream", subprotocols=[p.SUBPROTOCOL], compression=None, max_size=_MAX_MESSAGE,
                open_timeout=self._timeout_s, close_timeout=1,
            )  # fmt: skip
        except InvalidStatus as error:
            status = error.response.status_code
            raise (Denied if status in (401, 403) else ConnectionLost)(f"{self.url} answered {status} to the stream.") from None
        except (OSError, TimeoutError, InvalidHandshake) as error:
            raise ConnectionLost(f"No world server answers at {self.url} ({error}).") from None
        give_up = time.monotonic() + self._wait_s
        hello = p.Hello(
            proto=p.PROTOCOL, ticket=ticket, resume=self.token, frame=self._newest, mode=self._mode, codec=self._codec,
            window=self._window, **start,
        )  # fmt: skip
        try:
            async with asyncio.timeout(self._timeout_s) as patience:
                await socket.send(hello.model_dump_json())
                while True:
                    message = _message(await socket.recv())
                    if isinstance(message, p.Ready):
                        break
                    if isinstance(message, p.Queued):
                        if time.monotonic() > give_up:
                            raise ServerFull(f"Place {message.position} of {message.of} in line; wait longer with wait_s.", 4.0)
                        patience.reschedule(asyncio.get_running_loop().time() + self._timeout_s)
                    self._error = message if isinstance(message, p.Error) else self._error
        except ConnectionClosed as closed:
            raise self._reason(closed) or ConnectionLost(f"{self.url} closed the connection.") from None
        except TimeoutError:
            await socket.close()
            raise ConnectionLost(f"{self.url} did not answer hello.") from None
        except BaseException:
            await socket.close()
            raise
        self._socket, self.ready, self.token = socket, message, message.resume

    async def _read(self) -> None:
        """Take what arrives, and come back after drops, until it is over."""
        try:
            while True:
                try:
                    while True:
                        await self._receive(await self._socket.recv())
                except ConnectionClosed as closed:
                    reason = self._reason(closed)
                    if reason is not None:
                        raise reason from None
                await self._come_back()
        except ClientError as error:
            self._failure = error
        except p.ProtocolError as error:
            self._failure = WrongVersion(f"The server sent what this client does not understand: {error}")
        finally:
            self._failure = self._failure or ConnectionLost("This connection was closed.")
            self._changed.set()

    async def _receive(self, data: str | bytes) -> None:
        if isinstance(data, bytes):
            header, payload = p.unpack_frame(data)
            if header.frame <= self._newest:
                return
            self._newest = header.frame
            info = self._info if self._info is not None and self._info.chunk == header.chunk else None
            if self._mode == "realtime":
                if self._reset is None or not any(raw.header.flags & p.Flags.RESET for raw in self._arrived):
                    self._arrived.clear()
                await self._tell(p.Ack(frame=header.frame))
            self._arrived.append(_Raw(header, payload, info))
            while self._steps and self._steps[0].seq < header.action_seq:
                self._steps.popleft()
        message = None if isinstance(data, bytes) else _message(data)
        self._answers[type(message)] = message
        match message:
            case p.ChunkInfo():
                self._info = message
            case p.WorldState():
                self.state = message
            case p.Stats():
                self.stats = message
            case p.End():
                self._end = message
            case p.Error():
                self._error = message
                if message.code in ("not_found", "image", "world", "busy"):
                    self._refusal, self._reset = self._as_exception(message), None
        self._changed.set()

    async def _come_back(self) -> None:
        deadline, delay, session = time.monotonic() + self._reconnect_s, _FIRST_DELAY_S, self.ready.session
        while True:
            try:
                await self._greet()
                break
            except (ConnectionLost, ServerFull) as error:
                if time.monotonic() + delay > deadline:
                    raise ConnectionLost(f"The connection dropped and could not be made again: {error}") from None
                await asyncio.sleep(delay)
                delay = min(_LONGEST_DELAY_S, 2 * delay)
        if not self.ready.resumed or (self._mode == "lockstep" and self.ready.session != session):
            await self._tell(p.Bye())
            raise ConnectionLost("The connection dropped, and the server has not kept the world as it was.")
        if isinstance(self._reset, p.Fork | p.Switch):
            self._refusal = ConnectionLost("The connection dropped on the way to another branch; `state` says where you are now.")
        elif self._reset is not None:
            await self._tell(self._reset)
        if self._mode == "lockstep":
            for step in list(self._steps):
                if step.seq > self.ready.seq:
                    await self._tell(step)
        else:
            self._seq = 1
            await self._tell(p.ActionMessage(seq=1, keys=list(self._held)))

    def _reason(self, closed: ConnectionClosed) -> ClientError | None:
        """Why it is over; None when it is worth coming back."""
        code = closed.rcvd.code if closed.rcvd is not None else 1006
        if self._error is not None and code >= 4400:
            return self._as_exception(self._error)
        if code == p.CloseCode.BAD_MESSAGE:
            return Refused("The server refused a message.")
        if code == 1009:
            return Refused("A message was too large for the server.")
        if code in (p.CloseCode.IDLE, p.CloseCode.REPLACED):
            idle = code == p.CloseCode.IDLE
            return Ended("Somebody else was waiting for the place." if idle else "This world goes on in another connection.")
        if code == p.CloseCode.BUSY:
            return ServerFull("All places are taken.", 4.0)
        if code >= 4000:
            return Ended(f"The server ended the connection (code {code}).")
        return None

    @staticmethod
    def _as_exception(error: p.Error) -> ClientError:
        if error.code == "busy":
            return ServerFull(error.message, error.retry_after_s or 4.0)
        kinds = {"denied": Denied, "version": WrongVersion, "engine": Ended}
        return kinds.get(error.code, Refused)(error.message)

    # -- small helpers -----------------------------------------------------------------------------------------------------
    async def _step(self, actions: list[Action]) -> int:
        self._seq += 1
        step = p.Step(seq=self._seq, actions=[list(map(float, action.magnitudes)) for action in actions])
        self._steps.append(step)
        await self._send(step)
        return self._seq

    async def _go(self, order: p.Reset | p.Rewind | p.Fork | p.Switch) -> Frame:
        """Be elsewhere; the first picture there."""
        self._arrived.clear(), self._steps.clear()
        self._reset = order
        try:
            await self._send(order)
            return await self._next_frame(lambda h: bool(h.flags & p.Flags.RESET))
        finally:
            self._reset = None

    async def _ask(self, question: p.ClientMessage, kind: type, timeout_s: float | None = None) -> Any:
        """The answer of that kind."""
        self._answers.pop(kind, None)
        await self._send(question)
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                while kind not in self._answers:
                    self._raise_refusal()
                    if self._failure is not None:
                        raise self._failure
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ConnectionLost(f"The server did not answer {question.type}.") from None
        return self._answers.pop(kind)

    async def _download(self, kind: str, path: str | Path) -> Path:
        saved = await self._ask(p.Save(kind=kind), p.Saved, timeout_s=max(120.0, self._timeout_s))
        body, path = await self._request(saved.url), Path(path)
        part = path.with_name(path.name + ".part")
        try:
            await asyncio.to_thread(part.write_bytes, body)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    async def _upload_world(self, world: str | Path | bytes) -> str:
        body = world if isinstance(world, bytes) else await asyncio.to_thread(Path(world).read_bytes)
        return (await self._post("api/v1/worlds", body))["id"]

    async def _next_frame(self, wanted: Any) -> Frame:
        """The next frame that is wanted; those before it are passed over."""
        try:
            async with asyncio.timeout(self._timeout_s):
                while True:
                    self._raise_refusal()
                    while self._arrived:
                        raw = self._arrived.popleft()
                        if self._mode == "lockstep":
                            await self._tell(p.Ack(frame=raw.header.frame))
                        if wanted(raw.header):
                            return raw.decode()
                    if self._failure is not None:
                        raise self._failure
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise ConnectionLost(f"No frame came within {self._timeout_s:g} s.") from None

    def _raise_refusal(self) -> None:
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal

    async def _send(self, message: p.ClientMessage) -> None:
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

    def _only(self, mode: str, method: str) -> None:
        if self._mode != mode:
            raise ValueError(f"{method} needs connect(..., mode={mode!r}).")

    async def _start_from(self, image: str | Path | bytes | Image.Image | None) -> dict[str, str]:
        """Fields that say so: a picture is uploaded, any other string is a gallery world's name."""
        if image is None or self.token is not None and self.ready is None:
            return {}
        if isinstance(image, str) and not Path(image).is_file():
            return {"gallery": image}
        if isinstance(image, Image.Image):
            out = io.BytesIO()
            image.convert("RGB").save(out, "PNG")
            body = out.getvalue()
        else:
            body = image if isinstance(image, bytes) else Path(image).read_bytes()
        return {"image": (await self._post("api/v1/images", body))["id"]}

    async def _post(self, path: str, body: bytes) -> dict[str, Any]:
        try:
            return json.loads(await self._request(path, body))
        except ValueError as error:
            raise ConnectionLost(f"{self.url} is no world server ({error}).") from None

    async def _request(self, path: str, body: bytes | None = None) -> bytes:
        """POST with a body, else GET."""
        headers = {"Content-Type": "application/octet-stream"}
        if self._access_token is not None:
            headers["Authorization"] = f"Bearer {self._access_token}"
        request = urllib.request.Request(f"{self.url}/{path}", data=body, headers=headers)

        def send() -> bytes:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:  # noqa: S310 (http or https, checked above)
                return answer.read()

        try:
            return await asyncio.to_thread(send)
        except urllib.error.HTTPError as error:
            with error:
                says = _error_text(error.read()) or f"{self.url} answered {error.code}."
            raise (Denied if error.code in (401, 403) else Refused)(says) from None
        except OSError as error:
            raise ConnectionLost(f"No world server answers at {self.url} ({error}).") from None


class RemoteWorld:
    """A world on a server, made by `connect`; the same as `AsyncRemoteWorld` without ``await``. The connection lives in a thread of its
    own, so frames go on arriving while the program does something else.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._world = AsyncRemoteWorld(url, **options)
        self._thread = threading.Thread(target=self._loop.run_forever, name="worldmodel-client", daemon=True)
        self._thread.start()
        try:
            self._do(self._world._start())
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> RemoteWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def ready(self) -> p.Ready:
        return self._world.ready

    @property
    def state(self) -> p.WorldState | None:
        return self._world.state

    @property
    def stats(self) -> p.Stats | None:
        return self._world.stats

    @property
    def url(self) -> str:
        return self._world.url

    @property
    def token(self) -> str:
        return self._world.token

    @property
    def first_frame(self) -> Frame | None:
        return self._world.first_frame

    def play(self, actions: str | np.ndarray | Iterable[Action], speed: float = 1.0) -> Iterator[Frame]:
        """See `AsyncRemoteWorld.play`."""
        yield from self._each(self._world.play(actions, speed))

    def step(self, actions: str | Action | np.ndarray | Iterable[Action]) -> list[Frame]:
        return self._do(self._world.step(actions))

    def hold(self, *keys: str, look: tuple[float, float] = (0.0, 0.0)) -> int:
        """See `AsyncRemoteWorld.hold`."""
        return self._do(self._world.hold(*keys, look=look))

    def newest(self) -> Frame:
        return self._do(self._world.newest())

    def frames(self) -> Iterator[Frame]:
        yield from self._each(self._world.frames())

    def reset(self, image: str | Path | bytes | Image.Image | None = None, prompt: str | None = None, seed: int | None = None) -> Frame:
        """See `AsyncRemoteWorld.reset`."""
        return self._do(self._world.reset(image, prompt, seed))

    def config(self, prompt: str | None = None, speed: float | None = None, quality: int | None = None) -> None:
        self._do(self._world.config(prompt, speed, quality))

    def rewind(self, at: int) -> Frame:
        """See `AsyncRemoteWorld.rewind`; so for the others."""
        return self._do(self._world.rewind(at))

    def fork(self, at: int | None = None) -> Frame:
        return self._do(self._world.fork(at))

    def switch(self, branch: int) -> Frame:
        return self._do(self._world.switch(branch))

    def discard(self, branch: int) -> None:
        self._do(self._world.discard(branch))

    def timeline(self) -> p.Timeline:
        return self._do(self._world.timeline())

    def memory(self) -> p.Memory:
        return self._do(self._world.memory())

    def save(self, path: str | Path) -> Path:
        return self._do(self._world.save(path))

    def save_video(self, path: str | Path) -> Path:
        return self._do(self._world.save_video(path))

    def load(self, world: str | Path | bytes) -> Frame:
        return self._do(self._world.load(world))

    def pause(self) -> None:
        self._do(self._world.pause())

    def resume(self) -> None:
        self._do(self._world.resume())

    def close(self, keep: bool = False) -> None:
        """See `AsyncRemoteWorld.close`."""
        if not self._loop.is_closed():
            self._do(self._world.close(keep))
            self._stop()

    def _do(self, work: Coroutine) -> Any:
        if self._loop.is_closed():
            work.close()
            raise ConnectionLost("This connection was closed.")
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


def connect_async(url: str, **options: Any) -> AsyncRemoteWorld:
    """The same for ``async with``; see `connect`."""
    return AsyncRemoteWorld(url, **options)


class _Stay(urllib.request.HTTPRedirectHandler):
    """Tells where one is sent instead of going there."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _one_of_several(url: str, timeout_s: float) -> str:
    """Where to walk: `url`, or the one that its ``/`` sends to, ``r/0/``, where several servers share the address (`server.entrance`)."""
    try:
        urllib.request.build_opener(_Stay).open(urllib.request.Request(f"{url}/", method="HEAD"), timeout=timeout_s).close()
    except urllib.error.HTTPError as error:
        with error:
            place = re.fullmatch(r"(r/\d+)/", error.headers.get("Location", ""))
        if place:
            return f"{url}/{place[1]}"
    except (OSError, HTTPException) as error:
        raise ConnectionLost(f"No world server answers at {url} ({error}).") from None
    return url


def _message(data: str | bytes) -> p.ServerMessage | None:
    return p.read_server(data) if isinstance(data, str) else None


def _error_text(body: bytes) -> str | None:
    try:
        return json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return None
