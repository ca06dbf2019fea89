"""One person's walk: held keys in, paced frames out, one world.

In lockstep mode the client sends each chunk's actions itself (`step`), and every frame of them arrives, in order and unpaced.

Three tasks share the event loop and never block it: `_step_loop` asks the engine for a chunk just in time, made with
the keys held at the moment when it starts; `_send_loop` encodes a frame when it is due and the client has credit for it; `_stats_loop`
reports once a second. A session outlives its connection: a client that comes back with the token goes on in the world. With autosave
the world outlives the session too, and even the server.
"""

from __future__ import annotations

import asyncio
import io
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from PIL import Image

from worldmodel.actions import Action
from worldmodel.engine import Engine, EngineFull, EngineStopped, Seat
from worldmodel.images import ImageError
from worldmodel.server import protocol as p
from worldmodel.server.adapt import Adaptation, Picture, resized
from worldmodel.server.branches import NotPossible
from worldmodel.server.controls import Controls
from worldmodel.server.files import Files
from worldmodel.server.metrics import ActionDelay, Metrics
from worldmodel.server.origin import Origin, read_world
from worldmodel.server.pacing import Credit, PlayoutClock, StepTime
from worldmodel.server.record import Record, memory_message
from worldmodel.server.settings import ServerSettings
from worldmodel.server.timeline import Thumbnails, encode

log = logging.getLogger(__name__)
_SEND_MARGIN_S = 0.005  # encoding and hand-over, on top of the model's step
MAX_ORDERS = 4
"""Rewinds, forks and switches that may wait."""
_RESUMED_FRAMES = 10_000  # more than are sent between two saves: frame numbers never go back


class Connection(Protocol):
    """Where messages go. Sending to a closed connection does nothing: the receiving side notices, and afterwards it is `gone`."""

    address: str

    @property
    def gone(self) -> bool: ...
    async def send(self, message: p.ServerMessage) -> None: ...
    async def send_frame(self, data: bytes) -> None: ...
    async def close(self, code: p.CloseCode | int) -> None: ...


@dataclass(frozen=True)
class _Frame:
    pixels: np.ndarray  # uint8 [H, W, 3]
    chunk: int
    seq: int
    flags: p.Flags
    info: p.ChunkInfo | None = None  # of the chunk that begins here
    number: int = 0  # once it was sent


class Session:
    """State of one visitor.

    Args:
        engine: Steps the worlds of its `model`, a `WorldModel` (or anything with its face).
        find_image: Upload id -> uint8 [H, W, 3], or None when it is unknown.
        files: Where downloads are put, and uploaded worlds are found.
        token: With it the visitor comes back; a new one by default.
        saved: The `WorldState` of an earlier session with this token, to go on in.
        metrics: What is observed goes there.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        find_image: Callable[[str], np.ndarray | None],
        files: Files,
        token: str | None = None,
        saved: Any = None,
        metrics: Metrics | None = None,
    ) -> None:
        model = engine.model
        self.id, self.token = secrets.token_hex(4), token or secrets.token_urlsafe(18)
        self.touched = time.monotonic()  # last time the visitor did something
        self.connection: Connection | None = None
        self._model, self._engine, self._settings, self._find_image, self._files = model, engine, settings, find_image, files
        self._rests = settings.rest_when_still and getattr(model, "static_scenes", False)
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._changed = asyncio.Event()
        self._born = time.monotonic()

        self._seat: Seat | None = None
        self._opening: Future | None = None
        first = next(iter(model.gallery), None)
        self._origin = Origin.in_gallery(first) if first else Origin(None, "", 0)
        self._reset: Origin | None = self._origin
        self._prompt = self._origin.prompt
        self._new_prompt: str | None = None
        self._speed, self._paused, self._quality = 1.0, False, settings.quality

        self._record = Record(engine, settings, files)
        self._branches = self._record.branches
        self._orders: deque[p.Rewind | p.Fork | p.Switch] = deque()
        self._first = self._memory_bytes = 0  # as the last chunk found them

        self._controls = Controls()
        self._credit = Credit(settings.window)
        self._clock = PlayoutClock(model.fps)
        self._adaptation = Adaptation()
        self._until_frames, self._step_time = StepTime(), StepTime()
        self._queue: deque[_Frame] = deque()
        self._lockstep, self._codec = False, "jpeg"
        self._steps: deque[p.Step] = deque()  # lockstep: asked for, not made
        self._step_seq = 0
        self._unacked: deque[_Frame] = deque()  # lockstep: sent, perhaps not arrived
        self._shown: _Frame | None = None
        self._frame = self._epoch = 0
        self._background: set[asyncio.Task] = set()
        self._sent_since = self._dropped = self._held_up = 0
        self._encode_s = self._ack_s = 0.0
        self._metrics = metrics or Metrics()
        self._delay = ActionDelay(self._metrics.action_to_send)
        self._saved = saved
        if saved is not None:
            self._recall(saved.note, saved.meta)

    # ---- the visitor comes, speaks, and goes --------------------------------------------------------------------------

    @property
    def thumbnails(self) -> Thumbnails:
        return self._record.thumbnails

    @property
    def thumbnail_key(self) -> str:
        """Who has it may see the thumbnails."""
        return self._record.key

    @property
    def cache_bytes(self) -> int:
        """Of this session's worlds; to be asked in the engine's thread."""
        world = self._seat.world if self._seat is not None else None
        return getattr(world, "num_bytes", 0) + self._branches.num_bytes

    async def attach(self, connection: Connection, hello: p.Hello) -> None:
        """Stream to `connection` from now on; an older one is told that it was replaced."""
        fresh = self._seat is None and self._opening is None and self._saved is None
        resumed, old = self._seat is not None or self._saved is not None, self.connection
        self.connection = None
        if old is not None:
            self._in_background(_dismiss(old, p.End(reason="replaced"), p.CloseCode.REPLACED))
        self._controls = Controls()
        self._delay.forget()
        self._credit = Credit(min(hello.window, self._settings.window))
        self._adaptation = Adaptation()
        height, width = self._model.size
        if self._lockstep != (hello.mode == "lockstep"):
            self._lockstep = not self._lockstep
            self._steps.clear(), self._unacked.clear()
        self._codec = hello.codec
        ready = p.Ready(
            session=self.id, resume=self.token, resumed=resumed, fps=float(self._model.fps), width=width, height=height,
            seq=self._step_seq, mode=hello.mode, codec=hello.codec, chunk=self._model.chunk_frames, window=self._credit.window,
            keys=dict(p.KEY_BINDINGS),
        )  # fmt: skip
        refusal = self._request_reset(hello) if fresh else None
        await connection.send(ready)
        if refusal is not None:
            await connection.send(refusal)
        await connection.send(self._state())
        if resumed and self._seat is not None:
            await connection.send(self._record.timeline(self._first))
        if self._lockstep:
            lost = [frame for frame in self._unacked if frame.number > hello.frame]
            self._unacked.clear()
            self._queue.extendleft(reversed(lost))
        else:
            self._queue = deque(replace(frame, seq=0) for frame in self._queue)  # the newcomer counts its messages from 1
            if self._shown is not None and (self._paused or not self._queue):
                self._queue.appendleft(replace(self._shown, seq=0, flags=p.Flags.KEY | p.Flags.RESET, info=None, number=0))
        self._clock.skip_to(time.monotonic())
        self.connection = connection
        self._touch()

    def detach(self, connection: Connection) -> bool:
        """The connection is gone: let go of every key and rest. False when another has replaced it already."""
        if connection is not self.connection:
            return False
        self.connection = None
        self._controls.release()
        self._changed.set()
        return True

    async def handle(self, message: p.ClientMessage) -> None:
        """Act on one message. Raises `ProtocolError` when it makes no sense now."""
        match message:
            case p.ActionMessage():
                if self._lockstep:
                    raise p.ProtocolError("Bad message: a lockstep world moves by step messages, not by action.")
                self._delay.arrived(message.seq)
                self._controls.update(message.seq, message.keys, message.look)
            case p.Step():
                self._ask(message)
            case p.Ack():
                self._acknowledge(message.frame)
                return
            case p.Ping():
                await self._send(p.Pong(t=message.t))
                return
            case p.Reset():
                refusal = self._request_reset(message)
                if refusal is not None:
                    await self._send(refusal)
            case p.Config():
                self._new_prompt = message.prompt if message.prompt is not None else self._new_prompt
                self._prompt = message.prompt if message.prompt is not None else self._prompt
                self._speed = message.speed or self._speed
                self._quality = message.quality or self._quality
                await self._send(self._state())
            case p.Rewind() | p.Fork() | p.Switch():
                if self._seat is None or len(self._orders) >= MAX_ORDERS:
                    await self._refuse("The world is still being made; try again in a moment.")
                else:
                    self._orders.append(message)
            case p.Discard():
                try:
                    self._branches.discard(message.branch)
                except NotPossible as error:
                    await self._refuse(str(error))
                await self._send(self._state())
            case p.Save():
                self._in_background(self._save(message.kind))
            case p.Ask():
                if message.about == "timeline":
                    await self._send(self._record.timeline(self._first))
                elif self._seat is not None:
                    self._in_background(self._tell_memory())
            case p.Pause():
                self._paused = True
                await self._send(self._state())
            case p.Resume():
                self._paused = False
                self._clock.skip_to(time.monotonic())
                await self._send(self._state())
            case _:
                raise p.ProtocolError(f"Bad message: {message.type} is not understood here.")
        self._touch()

    def expects(self, message: p.ClientMessage) -> bool:
        """Whether the server's own pace bounds how many of these come: acknowledgements of frames on their way, steps in lockstep."""
        if isinstance(message, p.Ack):
            return self._credit.awaits(message.frame)
        return self._lockstep and isinstance(message, p.Step)

    async def end(self, reason: str, code: p.CloseCode | int) -> None:
        """Tell the visitor why it is over and close the connection."""
        connection, self.connection = self.connection, None
        if connection is not None:
            await _dismiss(connection, p.End(reason=reason), code)

    async def run(self) -> None:
        """Play until cancelled. An exception of the model ends the connection, and is raised again."""
        try:
            async with asyncio.TaskGroup() as group:
                for loop in (self._step_loop, self._send_loop, self._stats_loop):
                    group.create_task(loop(), name=f"session-{self.id}-{loop.__name__}")
        except* EngineFull as full:
            refusal = p.Error(code="busy", message=str(full.exceptions[0]), retry_after_s=self._settings.busy_retry_s)
            await self._hang_up(refusal, p.CloseCode.BUSY)
            raise
        except* Exception:
            await self._hang_up(p.Error(code="engine", message="The model failed; the server's log says why."), p.CloseCode.ENGINE)
            raise
        finally:
            self._encoder.shutdown(wait=False)

    async def release(self, keep: bool) -> None:
        """Give the world's seat back; it is saved, if worlds are, or with `keep` false forgotten. Returns when that is done."""
        if self._seat is None and self._opening is not None:
            await asyncio.wait([asyncio.wrap_future(self._opening)])
            self._seat = None if self._opening.exception() else self._opening.result()
        if self._seat is not None:
            await asyncio.wrap_future(self._engine.close(self._seat, keep))

    async def _hang_up(self, message: p.ServerMessage, code: p.CloseCode) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            await _dismiss(connection, message, code)

    # ---- worlds -------------------------------------------------------------------------------------------------------

    def _request_reset(self, reset: p.Reset | p.Hello) -> p.Error | None:
        """Begin there as soon as may be, or say why not."""
        origin = self._origin
        if reset.gallery is not None:
            entry = next((entry for entry in self._model.gallery if entry.name == reset.gallery), None)
            if entry is None:
                return p.Error(code="not_found", message=f"There is no world called {reset.gallery!r} here.")
            origin = Origin.in_gallery(entry)
        elif reset.image is not None:
            picture = self._find_image(reset.image)
            if picture is None:
                return p.Error(code="not_found", message="That picture is not here any more; upload it again.")
            origin = Origin(Image.fromarray(picture), "", 0, image=reset.image)
        elif reset.world is not None:
            file = self._files.get(reset.world)
            if file is None:
                return p.Error(code="not_found", message="That world is not here any more; upload it again.")
            origin = Origin(None, "", 0, file=file.path)
        self._reset, self._saved = origin.changed(reset), None
        self._new_prompt, self._paused = None, False
        self._orders.clear()
        self._drop_frames()
        return None

    def _drop_frames(self) -> None:
        """What was made and asked for so far is not shown or made any more."""
        self._epoch += 1
        for waiting in (self._queue, self._steps, self._unacked):
            waiting.clear()

    async def _begin_world(self, origin: Origin) -> None:
        saved, self._saved = self._saved, None
        brought = origin.file is not None
        before = self._origin, self._prompt
        await self._send(self._state(loading=True))
        try:
            if brought:
                saved = await asyncio.to_thread(read_world, origin.file, self._model)
                origin = Origin.from_note(saved.note, saved.meta, self._model.gallery, self._model.size)
            self._origin = origin
            if self._new_prompt is None:  # else it came while this waited
                self._prompt = origin.prompt if saved is None else saved.meta["prompt"]
            if saved is not None:
                world = await self._seated(lambda: self._model.resume_world(saved, history=self._settings.history))
            else:
                start = dict(prompt=origin.prompt, seed=origin.seed, history=self._settings.history)
                world = await self._seated(lambda: self._model.start(origin.picture, **start))
            path = await asyncio.wrap_future(self._engine.call(lambda: world.path))
        except ImageError as error:
            self._origin, self._prompt = before
            await self._send(p.Error(code="image", message=str(error)))
        except EngineFull as error:
            if self._seat is None:
                raise
            self._origin, self._prompt = before  # the old world is still there
            await self._send(p.Error(code="busy", message=str(error), retry_after_s=self._settings.busy_retry_s))
        except Exception as error:
            if saved is None and not brought:
                raise
            log.warning("A saved world cannot go on%s: %r", "" if brought else "; it starts anew", error)
            if brought:
                self._origin, self._prompt = before
                await self._refuse(str(error) if isinstance(error, NotPossible) else "The file is no world that can go on here.")
            if self._seat is None:
                self._reset = self._reset or self._origin
        else:
            self._branches.restart()
            for at, pose in path[:-1]:
                self._record.remember(at, pose)
            self._record.remember(path[-1][0], path[-1][1], world.last_frame)
            if self._reset is None:
                await self._arrive(world)
        await self._send(self._state(loading=self._reset is not None))

    async def _arrive(self, world: Any) -> None:
        """Show where the visitor is now."""
        self._first = world.index - world.reach
        await self._send(self._record.timeline(self._first))
        seq = self._step_seq if self._lockstep else self._controls.seq
        self._queue.append(_Frame(world.last_frame, max(0, world.index - 1), seq, p.Flags.KEY | p.Flags.RESET))
        self._clock.skip_to(time.monotonic())

    async def _travel(self, order: p.Rewind | p.Fork | p.Switch) -> None:
        """Go back, branch, or change to another branch."""
        try:
            match order:
                case p.Rewind():
                    await self._branches.rewind(self._seat, order.at)
                case p.Fork():
                    await self._branches.fork(self._seat, order.at)
                case p.Switch():
                    await self._branches.switch(self._seat, order.branch)
        except NotPossible as error:
            await self._refuse(str(error))
        except EngineFull as error:
            await self._send(p.Error(code="busy", message=str(error), retry_after_s=self._settings.busy_retry_s))
        else:
            world, self._seat.changed = self._seat.world, True
            self._prompt, self._new_prompt = world.prompt, None
            self._drop_frames()
            await self._send(self._state())
            await self._arrive(world)

    async def _refuse(self, message: str) -> None:
        await self._send(p.Error(code="world", message=message))

    async def _tell_memory(self) -> None:
        try:
            await self._send(await asyncio.wrap_future(self._engine.call(lambda: memory_message(self._seat.world))))
        except (EngineStopped, AttributeError):  # the seat was given up meanwhile
            await self._refuse("This world has ended.")

    async def _save(self, kind: str) -> None:
        """Make a file while the walk goes on."""
        try:
            if self._seat is None:
                raise NotPossible("The world is still being made.")
            await self._send(await self._record.save(kind, self._seat, self._note, self._model.fps))
        except NotPossible as error:
            await self._refuse(str(error))

    async def _seated(self, make: Callable[[], Any]) -> Any:
        """The world that `make` gives, in this session's seat."""
        if self._seat is not None:
            return await asyncio.wrap_future(self._engine.replace(self._seat, make))
        self._opening = self._engine.open(make, exact=self._lockstep, token=self.token, note=self._note)
        self._seat = await asyncio.wrap_future(self._opening)
        return self._seat.world

    def _note(self) -> dict[str, Any]:
        """What is saved beside the world, called in the engine's thread."""
        return self._origin.note() | {"speed": self._speed, "frame": self._frame}

    def _recall(self, note: dict[str, Any], meta: dict[str, Any]) -> None:
        """Go on from `_note`."""
        self._origin = self._reset = Origin.from_note(note, meta, self._model.gallery, self._model.size)
        self._prompt, self._speed = meta["prompt"], note.get("speed", 1.0)
        self._frame = note.get("frame", 0) + _RESUMED_FRAMES

    def _state(self, loading: bool | None = None) -> p.WorldState:
        o = self._origin
        loading = self._seat is None or self._reset is not None if loading is None else loading
        return p.WorldState(
            gallery=o.gallery, image=o.image, prompt=self._prompt, seed=o.seed, speed=self._speed, paused=self._paused, loading=loading,
            branch=self._branches.current.number, branches=self._branches.told(),
        )  # fmt: skip

    # ---- the three loops ----------------------------------------------------------------------------------------------

    async def _step_loop(self) -> None:
        while True:
            await self._until(lambda: self._reset is not None or bool(self._orders) or self._may_step())
            if self._reset is not None:
                origin, self._reset = self._reset, None
                await self._begin_world(origin)
                self._changed.set()
                continue
            if self._orders:
                await self._travel(self._orders.popleft())
                self._changed.set()
                continue
            if self._lockstep:
                due = 0.0
            else:
                due = self._clock.start_by(len(self._queue), self._until_frames.cautious + _SEND_MARGIN_S)
            await self._play_chunk(max(due, time.monotonic()))

    async def _play_chunk(self, due: float) -> None:
        """One chunk, started when it is `due`, unless the visitor resets, goes back, pauses or leaves before that."""
        world, epoch, controls, seq = self._seat.world, self._epoch, self._controls, 0
        asked = self._steps[0] if self._lockstep else None

        def latch() -> list:  # in the engine's thread, when the chunk starts
            nonlocal seq
            seq, prompt, self._new_prompt = controls.seq, self._new_prompt, None
            if prompt is not None:
                world.prompt = prompt
            if asked is not None:
                seq = asked.seq
                return [Action.from_vector(vector) for vector in asked.actions]
            return controls.latch(self._model.chunk_frames, self._speed)

        step = self._engine.step(self._seat, latch, due)
        made, done = asyncio.wrap_future(step.chunk), asyncio.wrap_future(step.done)
        made.add_done_callback(lambda _: self._changed.set())
        try:
            await self._until(lambda: made.done() or self._reset is not None or bool(self._orders) or not self._may_step())
            if not made.done() and self._engine.cancel(step):
                return
            chunk = await made
            self._until_frames.update(time.monotonic() - due)
            if epoch == self._epoch:
                if asked is not None and asked in self._steps:
                    self._steps.remove(asked)
                self._enqueue(chunk, seq if asked is not None or controls is self._controls else 0, 1e3 * (time.monotonic() - due))
            self._first, self._memory_bytes = world.index - world.reach, world.memory_bytes
            self._metrics.step.observe(await done)  # the memory is written after the frames have left
        finally:
            made.cancel(), done.cancel()  # nobody asks them any more
        self._step_time.update(time.monotonic() - due)
        self._clock.set_pace(self._step_time.typical, self._model.chunk_frames)

    def _may_step(self) -> bool:
        awake = self.connection is not None and self._seat is not None and not self._paused
        if self._lockstep:
            return awake and bool(self._steps) and len(self._queue) < 2 * self._model.chunk_frames
        if self._rests and not self._controls.active and self._new_prompt is None:
            return False  # nothing moves here but the camera: who stands still sees a still picture
        return awake and not self._credit.stalled(time.monotonic(), self._settings.stall_s)

    def _ask(self, step: p.Step) -> None:
        frames = self._model.chunk_frames
        if not self._lockstep:
            raise p.ProtocolError("Bad message: step needs a hello with mode lockstep.")
        if step.seq != self._step_seq + 1:
            raise p.ProtocolError(f"Bad message: the next step has seq {self._step_seq + 1}, not {step.seq}.")
        if len(step.actions) != frames:
            raise p.ProtocolError(f"Bad message: a chunk has {frames} frames, and so many actions; got {len(step.actions)}.")
        if len(self._steps) >= p.MAX_PENDING_STEPS:
            raise p.ProtocolError(f"Bad message: at most {p.MAX_PENDING_STEPS} steps may wait; read frames first.")
        self._step_seq = step.seq
        self._delay.arrived(step.seq)
        self._steps.append(step)

    def _enqueue(self, chunk: Any, seq: int, made_ms: float) -> None:
        if not self._queue:
            self._clock.restart(time.monotonic())
        timings = {name: round(float(ms), 2) for name, ms in chunk.timings.items()}
        moment = self._record.remember(chunk.index + 1, chunk.camera_to_world[-1], *chunk.frames)
        info = p.ChunkInfo(
            chunk=chunk.index, action_seq=seq, frames=len(chunk.frames), made_ms=round(made_ms, 2), timings=timings, pose=moment.pose,
            thumbnail=self._record.address(moment),
        )  # fmt: skip
        for i, pixels in enumerate(chunk.frames):
            first = i == 0
            flags = p.Flags.KEY | (p.Flags.CHUNK_START if first else p.Flags.NONE)
            self._queue.append(_Frame(pixels, chunk.index, seq, flags, info if first else None))
        self._changed.set()

    async def _send_loop(self) -> None:
        while True:
            late = bool(self._queue) and not self._credit.available  # the link's fault, or its other end's
            await self._until(self._may_send)
            wait = self._clock.due - time.monotonic()
            if wait > 0 and not self._lockstep:
                await asyncio.sleep(wait)
                continue
            connection, credit, epoch = self.connection, self._credit, self._epoch
            skipped = self._dropped
            frame = self._next_frame()
            self._held_up += self._dropped - skipped if late else 0
            begun = time.perf_counter()
            height, width = frame.pixels.shape[:2]
            picture = self._adaptation.picture(self._quality, width, height)
            work = _encode, frame.pixels, self._codec, picture
            codec, payload = await asyncio.get_running_loop().run_in_executor(self._encoder, *work)
            encode_s = time.perf_counter() - begun
            self._encode_s += (encode_s - self._encode_s) / 8
            self._metrics.encode.observe(encode_s)
            if connection is not self.connection or epoch != self._epoch:
                continue
            if not frame.number:
                self._frame += 1
                frame = replace(frame, number=self._frame)
            self._shown, self._sent_since = frame, self._sent_since + 1
            now = time.monotonic()
            credit.sent(frame.number, now)
            flags = frame.flags | (p.Flags.REDUCED if picture.reduced else p.Flags.NONE)
            t_ms = int((now - self._born) * 1000)
            if frame.info is not None:
                await connection.send(frame.info)
            header = p.FrameHeader(frame.number, frame.seq, frame.chunk, t_ms, picture.width, picture.height, codec, flags)
            await connection.send_frame(p.pack_frame(header, payload))
            self._delay.sent(frame.seq)
            self._metrics.frames_sent.inc()
            self._metrics.bytes_sent.inc(p.HEADER.size + len(payload))

    def _may_send(self) -> bool:
        if not self._queue or self.connection is None or not self._credit.available:
            return False
        return not self._paused or p.Flags.RESET in self._queue[0].flags  # where one has come to is seen even so

    def _next_frame(self) -> _Frame:
        """The frame that is due. On a link too slow for all of them, late ones are skipped; their flags are kept. In lockstep none is:
        it has its number, and is kept until it was acknowledged.
        """
        frame = self._queue.popleft()
        if self._lockstep:
            if not frame.number:
                self._frame += 1
                frame = replace(frame, number=self._frame)
            self._unacked.append(frame)
            self._changed.set()  # there is room for another chunk
            return frame
        while self._queue and time.monotonic() - self._clock.due >= self._clock.period:
            self._clock.tick()
            self._dropped += 1
            self._metrics.frames_dropped.inc()
            newer = self._queue.popleft()
            frame = replace(newer, flags=newer.flags | frame.flags, info=newer.info or frame.info)
        self._clock.tick()
        return frame

    async def _stats_loop(self) -> None:
        since = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            now = time.monotonic()
            if not self._lockstep and self._codec == "jpeg":
                self._adaptation.second(self._sent_since, self._held_up)
            self._held_up = 0
            stats = p.Stats(
                fps=round(self._sent_since / (now - since), 1), step_ms=round(1e3 * self._step_time.typical, 1),
                encode_ms=round(1e3 * self._encode_s, 2), latency_ms=round(1e3 * self._ack_s, 1),
                quality=self._adaptation.picture(self._quality, *self._model.size).quality, dropped=self._dropped,
                first=self._first, memory_bytes=self._memory_bytes,
            )  # fmt: skip
            since, self._sent_since = now, 0
            await self._send(stats)

    # ---- small helpers ------------------------------------------------------------------------------------------------

    def _acknowledge(self, frame: int) -> None:
        if frame > self._frame:
            raise p.ProtocolError(f"Bad message: frame {frame} was acknowledged before it was sent.")
        while self._unacked and self._unacked[0].number <= frame:
            self._unacked.popleft()
        delay = self._credit.acknowledge(frame, time.monotonic())
        if delay is not None:
            self._ack_s += (delay - self._ack_s) / 8
        self._changed.set()

    def _touch(self) -> None:
        self.touched = time.monotonic()
        self._changed.set()

    async def _send(self, message: p.ServerMessage) -> None:
        if self.connection is not None:
            await self.connection.send(message)

    async def _until(self, ready: Callable[[], bool], timeout: float | None = None) -> None:
        """Wait until `ready()`, looked at again after every change, or until `timeout` seconds have passed."""
        try:
            async with asyncio.timeout(timeout):
                while not ready():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return

    def _in_background(self, work: Coroutine) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


async def _dismiss(connection: Connection, message: p.ServerMessage, code: p.CloseCode | int) -> None:
    await connection.send(message)
    await connection.close(code)


def _encode(pixels: np.ndarray, codec: str, picture: Picture) -> tuple[p.Codec, bytes]:
    if codec == "png":
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels)).save(out, "PNG", compress_level=1)
        return p.Codec.PNG, out.getvalue()
    return p.Codec.JPEG, encode(resized(pixels, picture), picture.quality)
