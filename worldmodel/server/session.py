"""One person's walk: held keys in, paced frames out, one world.

In lockstep mode the client sends each chunk's actions itself (`step`), and every frame of them arrives, in order and unpaced.

Three tasks share the event loop and never block it: `_step_loop` asks the engine for a chunk just in time, made with
the keys held at the moment when it starts; the `Outbox` encodes a frame when it is due and the client has credit for it; `_stats_loop`
reports once a second. A session outlives its connection: a client that comes back with the token goes on in the world. With autosave
the world outlives the session too, and even the server.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from PIL import Image

from worldmodel.actions import Action
from worldmodel.engine import Engine, EngineFull, EngineStopped, Seat
from worldmodel.images import ImageError
from worldmodel.server import protocol as p
from worldmodel.server.branches import NotPossible
from worldmodel.server.controls import Controls
from worldmodel.server.files import Files
from worldmodel.server.metrics import Metrics
from worldmodel.server.origin import Origin, depth_of_start, read_world
from worldmodel.server.outbox import Bell, Connection, Outbox, dismiss
from worldmodel.server.pacing import StepTime
from worldmodel.server.record import Record, memory_message
from worldmodel.server.settings import ServerSettings
from worldmodel.server.timeline import Thumbnails
from worldmodel.server.uploads import Upload, notice_of

log = logging.getLogger(__name__)
_SEND_MARGIN_S = 0.005  # encoding and hand-over, on top of the model's step
MAX_ORDERS = 4
"""Rewinds, forks and switches that may wait."""
_RESUMED_FRAMES = 10_000  # more than are sent between two saves: frame numbers never go back


class Session:
    """State of one visitor.

    Args:
        engine: Steps the worlds of its `model`, a `WorldModel` (or anything with its face).
        find_image: Upload id -> what was uploaded, or None when it is unknown.
        files: Where downloads are put, and uploaded worlds are found.
        token: With it the visitor comes back; a new one by default.
        saved: The `WorldState` of an earlier session with this token, to go on in.
        metrics: What is observed goes there.
    """

    def __init__(
        self,
        engine: Engine,
        settings: ServerSettings,
        find_image: Callable[[str], Upload | None],
        files: Files,
        token: str | None = None,
        saved: Any = None,
        metrics: Metrics | None = None,
    ) -> None:
        model = engine.model
        self.id, self.token = secrets.token_hex(4), token or secrets.token_urlsafe(18)
        self.touched = time.monotonic()  # last time the visitor did something
        self._model, self._engine, self._settings, self._find_image, self._files = model, engine, settings, find_image, files
        self._rests = settings.rest_when_still and getattr(model, "static_scenes", False)
        self._metrics = metrics or Metrics()
        self._bell = Bell()
        self._out = Outbox(model.fps, model.size, settings.quality, settings.window, self._metrics, self._bell)

        self._seat: Seat | None = None
        self._opening: Future | None = None
        first = next(iter(model.gallery), None)
        self._origin = Origin.in_gallery(first) if first else Origin(None, "", 0)
        self._reset: Origin | None = self._origin
        self._prompt = self._origin.prompt
        self._new_prompt: str | None = None
        self._speed = 1.0

        self._record = Record(engine, settings, files)
        self._branches = self._record.branches
        self._orders: deque[p.Rewind | p.Fork | p.Switch] = deque()
        self._first = self._memory_bytes = 0  # as the last chunk found them

        self._controls = Controls()
        self._until_frames, self._step_time = StepTime(), StepTime()
        self._steps: deque[p.Step] = deque()  # lockstep: asked for, not made
        self._step_seq = 0
        self._background: set[asyncio.Task] = set()
        self._saved = saved
        if saved is not None:
            self._recall(saved.note, saved.meta)

    # ---- the visitor comes, speaks, and goes --------------------------------------------------------------------------

    @property
    def connection(self) -> Connection | None:
        """Where it is shown now."""
        return self._out.connection

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
        resumed, old = self._seat is not None or self._saved is not None, self._out.connection
        self._out.connection = None
        if old is not None:
            self._in_background(dismiss(old, p.End(reason="replaced"), p.CloseCode.REPLACED))
        self._controls = Controls()
        if self._out.lockstep != (hello.mode == "lockstep"):
            self._steps.clear()
        window = self._out.renew(hello)
        height, width = self._model.size
        refusal = self._request_reset(hello) if fresh else None
        ready = p.Ready(
            session=self.id, resume=self.token, resumed=resumed, fps=float(self._model.fps), width=width, height=height,
            seq=self._step_seq, mode=hello.mode, codec=hello.codec, chunk=self._model.chunk_frames, window=window,
            keys=dict(p.KEY_BINDINGS), notice=self._coming.notice,
        )  # fmt: skip
        await connection.send(ready)
        if refusal is not None:
            await connection.send(refusal)
        await connection.send(self._state())
        if resumed and self._seat is not None:
            await connection.send(self._record.timeline(self._first))
        self._out.open(connection, hello.frame)
        self._touch()

    def detach(self, connection: Connection) -> bool:
        """The connection is gone: let go of every key and rest. False when another has replaced it already."""
        if connection is not self._out.connection:
            return False
        self._out.connection = None
        self._controls.release()
        self._bell.ring()
        return True

    async def handle(self, message: p.ClientMessage) -> None:
        """Act on one message. Raises `ProtocolError` when it makes no sense now."""
        match message:
            case p.ActionMessage():
                if self._out.lockstep:
                    raise p.ProtocolError("Bad message: a lockstep world moves by step messages, not by action.")
                self._out.delay.arrived(message.seq)
                self._controls.update(message.seq, message.keys, message.look)
            case p.Step():
                self._ask(message)
            case p.Ack():
                self._out.acknowledge(message.frame)
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
                self._out.quality = message.quality or self._out.quality
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
                self._out.paused = True
                await self._send(self._state())
            case p.Resume():
                self._out.paused = False
                self._out.clock.skip_to(time.monotonic())
                await self._send(self._state())
            case _:
                raise p.ProtocolError(f"Bad message: {message.type} is not understood here.")
        self._touch()

    def expects(self, message: p.ClientMessage) -> bool:
        """Whether the server's own pace bounds how many of these come: acknowledgements of frames on their way, steps in lockstep."""
        if isinstance(message, p.Ack):
            return self._out.awaits(message.frame)
        return self._out.lockstep and isinstance(message, p.Step)

    async def end(self, reason: str, code: p.CloseCode | int) -> None:
        """Tell the visitor why it is over and close the connection."""
        await self._out.hang_up(p.End(reason=reason), code)

    async def run(self) -> None:
        """Play until cancelled. An exception of the model ends the connection, and is raised again."""
        try:
            async with asyncio.TaskGroup() as group:
                for loop in (self._step_loop, self._out.run, self._stats_loop):
                    group.create_task(loop(), name=f"session-{self.id}-{loop.__name__}")
        except* EngineFull as full:
            refusal = p.Error(code="busy", message=str(full.exceptions[0]), retry_after_s=self._settings.busy_retry_s)
            await self._out.hang_up(refusal, p.CloseCode.BUSY)
            raise
        except* Exception:
            await self._out.hang_up(p.Error(code="engine", message="The model failed; the server's log says why."), p.CloseCode.ENGINE)
            raise

    async def release(self, keep: bool) -> None:
        """Give the world's seat back; it is saved, if worlds are, or with `keep` false forgotten. Returns when that is done."""
        if self._seat is None and self._opening is not None:
            await asyncio.wait([asyncio.wrap_future(self._opening)])
            self._seat = None if self._opening.exception() else self._opening.result()
        if self._seat is not None:
            await asyncio.wrap_future(self._engine.close(self._seat, keep))
        self._branches.restart()  # whatever still holds the session holds no world

    # ---- worlds -------------------------------------------------------------------------------------------------------

    @property
    def _coming(self) -> Origin:
        """Where the world began that is walked in, or that is being made."""
        return self._reset or self._origin

    def _request_reset(self, reset: p.Reset | p.Hello) -> p.Error | None:
        """Begin there as soon as may be, or say why not."""
        origin = self._origin
        if reset.gallery is not None:
            entry = next((entry for entry in self._model.gallery if entry.name == reset.gallery), None)
            if entry is None:
                return p.Error(code="not_found", message=f"There is no world called {reset.gallery!r} here.")
            origin = Origin.in_gallery(entry)
        elif reset.image is not None:
            upload = self._find_image(reset.image)
            if upload is None:
                return p.Error(code="not_found", message="That picture is not here any more; upload it again.")
            origin = Origin(Image.fromarray(upload.picture), "", 0, image=reset.image, notice=upload.notice)
        elif reset.world is not None:
            file = self._files.get(reset.world)
            if file is None:
                return p.Error(code="not_found", message="That world is not here any more; upload it again.")
            origin = Origin(None, "", 0, file=file.path)
        self._reset, self._saved = origin.changed(reset), None
        self._new_prompt, self._out.paused = None, False
        self._orders.clear()
        self._drop_frames()
        return None

    def _drop_frames(self) -> None:
        """What was made and asked for so far is not shown or made any more."""
        self._out.drop()
        self._steps.clear()

    async def _begin_world(self, origin: Origin) -> None:
        saved, self._saved = self._saved, None
        brought = origin.file is not None
        before = self._origin, self._prompt
        if not brought:
            self._origin = origin
        await self._send(self._state(loading=True))
        try:
            if brought:
                saved = await asyncio.to_thread(read_world, origin.file, self._model)
                origin = Origin.from_note(saved.note, saved.meta, self._model.gallery, self._model.size)
            if saved is not None and origin.gallery is None:
                origin = replace(origin, notice=await asyncio.to_thread(notice_of, self._model, origin.picture))
            self._origin = origin
            if self._new_prompt is None:  # else it came while this waited
                self._prompt = origin.prompt if saved is None else saved.meta["prompt"]
            if saved is not None:
                world = await self._seated(lambda: self._model.resume_world(saved, history=self._settings.history))
            else:
                start = dict(prompt=origin.prompt, seed=origin.seed, history=self._settings.history)
                start |= await asyncio.to_thread(depth_of_start, self._model, origin.picture)
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
        self._out.arrive(world.last_frame, max(0, world.index - 1), self._step_seq if self._out.lockstep else self._controls.seq)

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
        self._opening = self._engine.open(make, exact=self._out.lockstep, token=self.token, note=self._note)
        self._seat = await asyncio.wrap_future(self._opening)
        return self._seat.world

    def _note(self) -> dict[str, Any]:
        """What is saved beside the world, called in the engine's thread."""
        return self._origin.note() | {"speed": self._speed, "frame": self._out.number}

    def _recall(self, note: dict[str, Any], meta: dict[str, Any]) -> None:
        """Go on from `_note`."""
        self._origin = self._reset = Origin.from_note(note, meta, self._model.gallery, self._model.size)
        self._prompt, self._speed = meta["prompt"], note.get("speed", 1.0)
        self._out.number = note.get("frame", 0) + _RESUMED_FRAMES

    def _state(self, loading: bool | None = None) -> p.WorldState:
        o = self._origin
        loading = self._seat is None or self._reset is not None if loading is None else loading
        return p.WorldState(
            gallery=o.gallery, image=o.image, prompt=self._prompt, seed=o.seed, speed=self._speed, paused=self._out.paused, loading=loading,
            branch=self._branches.current.number, branches=self._branches.told(), notice=self._coming.notice,
        )  # fmt: skip

    # ---- the three loops ----------------------------------------------------------------------------------------------

    async def _step_loop(self) -> None:
        while True:
            await self._bell.until(lambda: self._reset is not None or bool(self._orders) or self._may_step())
            if self._reset is not None:
                origin, self._reset = self._reset, None
                await self._begin_world(origin)
                self._bell.ring()
                continue
            if self._orders:
                await self._travel(self._orders.popleft())
                self._bell.ring()
                continue
            if self._out.lockstep:
                due = 0.0
            else:
                due = self._out.clock.start_by(len(self._out), self._until_frames.cautious + _SEND_MARGIN_S)
            await self._play_chunk(max(due, time.monotonic()))

    async def _play_chunk(self, due: float) -> None:
        """One chunk, started when it is `due`, unless the visitor resets, goes back, pauses or leaves before that."""
        world, epoch, controls, seq = self._seat.world, self._out.epoch, self._controls, 0
        asked = self._steps[0] if self._out.lockstep else None

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
        made.add_done_callback(lambda _: self._bell.ring())
        try:
            await self._bell.until(lambda: made.done() or self._reset is not None or bool(self._orders) or not self._may_step())
            if not made.done() and self._engine.cancel(step):
                return
            chunk = await made
            self._until_frames.update(time.monotonic() - due)
            if epoch == self._out.epoch:
                if asked is not None and asked in self._steps:
                    self._steps.remove(asked)
                self._enqueue(chunk, seq if asked is not None or controls is self._controls else 0, 1e3 * (time.monotonic() - due))
            self._first, self._memory_bytes = world.index - world.reach, world.memory_bytes
            self._metrics.step.observe(await done)  # the memory is written after the frames have left
        finally:
            made.cancel(), done.cancel()  # nobody asks them any more
        self._step_time.update(time.monotonic() - due)
        self._out.clock.set_pace(self._step_time.typical, self._model.chunk_frames)

    def _may_step(self) -> bool:
        awake = self.connection is not None and self._seat is not None and not self._out.paused
        if self._out.lockstep:
            return awake and bool(self._steps) and len(self._out) < 2 * self._model.chunk_frames
        if self._rests and not self._controls.active and self._new_prompt is None:
            return False  # nothing moves here but the camera: who stands still sees a still picture
        return awake and not self._out.stalled(self._settings.stall_s)

    def _ask(self, step: p.Step) -> None:
        frames = self._model.chunk_frames
        if not self._out.lockstep:
            raise p.ProtocolError("Bad message: step needs a hello with mode lockstep.")
        if step.seq != self._step_seq + 1:
            raise p.ProtocolError(f"Bad message: the next step has seq {self._step_seq + 1}, not {step.seq}.")
        if len(step.actions) != frames:
            raise p.ProtocolError(f"Bad message: a chunk has {frames} frames, and so many actions; got {len(step.actions)}.")
        if len(self._steps) >= p.MAX_PENDING_STEPS:
            raise p.ProtocolError(f"Bad message: at most {p.MAX_PENDING_STEPS} steps may wait; read frames first.")
        self._step_seq = step.seq
        self._out.delay.arrived(step.seq)
        self._steps.append(step)

    def _enqueue(self, chunk: Any, seq: int, made_ms: float) -> None:
        timings = {name: round(float(ms), 2) for name, ms in chunk.timings.items()}
        moment = self._record.remember(chunk.index + 1, chunk.camera_to_world[-1], *chunk.frames)
        info = p.ChunkInfo(
            chunk=chunk.index, action_seq=seq, frames=len(chunk.frames), made_ms=round(made_ms, 2), timings=timings, pose=moment.pose,
            thumbnail=self._record.address(moment),
        )  # fmt: skip
        self._out.put(chunk.frames, seq, info)

    async def _stats_loop(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            now = self._out.second()
            stats = p.Stats(
                fps=now.fps, step_ms=round(1e3 * self._step_time.typical, 1), encode_ms=now.encode_ms, latency_ms=now.latency_ms,
                quality=now.quality, dropped=now.dropped, first=self._first, memory_bytes=self._memory_bytes,
            )  # fmt: skip
            await self._send(stats)

    # ---- small helpers ------------------------------------------------------------------------------------------------

    def _touch(self) -> None:
        self.touched = time.monotonic()
        self._bell.ring()

    async def _send(self, message: p.ServerMessage) -> None:
        await self._out.send(message)

    def _in_background(self, work: Coroutine) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
