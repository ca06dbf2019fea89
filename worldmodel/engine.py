"""Many worlds on one model: one thread steps those that are due, as one batch.

Each world has a `Seat`. Who plays it asks for the next chunk as soon as the last one is done and says when it is `due`: the engine
starts it then, just in time, and reads the held keys at that very moment (`latch`). Worlds that are due about the same time go
together. The frames are handed over before the memory is written, so encoding and sending overlap with the engine's work.

When there is more to do than time, whoever was served longest ago goes first: all worlds slow down alike and none starves. A batch
that fails is stepped world by world, so only the world at fault ends; a world that does not fit into memory any more is refused
(`EngineFull`) and the others stay.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from worldmodel.heap import limit_arenas, tidy, trim_heap

log = logging.getLogger(__name__)
TIDY_AFTER_S = 1.0
"""After so long without work, when worlds have ended, what they left is looked for (`tidy`)."""


class EngineFull(Exception):
    """There is no room for another world. One clear sentence."""


class EngineStopped(RuntimeError):
    """The engine, or this world's seat, was closed before the work was done."""


@dataclass(frozen=True)
class EngineConfig:
    """`worlds` at once at most, `batch` of them stepped together at most (0: all).

    A world joins a batch up to `early` times the usual duration of a step before it is due: what would be due before the step ends would
    else have to wait for that end. For the same reason a batch waits up to `gather_s` seconds for the worlds of the last one to ask again;
    without it, some that are always a moment too late could go apart from the others for ever.
    """

    worlds: int = 8
    batch: int = 0
    early: float = 1.0
    gather_s: float = 0.005

    def __post_init__(self) -> None:
        if self.worlds < 1 or min(self.batch, self.early, self.gather_s) < 0:
            raise ValueError("An engine has worlds of 1 or more, and batch, early and gather_s of 0 or more.")


@dataclass(eq=False)
class Seat:
    """One world in the engine. `exact`: always stepped alone, so that its frames are bit for bit those of `World.step`."""

    world: Any
    exact: bool = False
    token: str | None = None  # under which it is saved
    note: Callable[[], dict] = dict  # what is saved with it
    served: float = 0.0  # when its last step began
    saved: float = 0.0
    changed: bool = False
    closed: bool = False
    saving: Future | None = None


def _future() -> Future:
    """One that its waiter cannot cancel, so that the engine can always answer."""
    future: Future = Future()
    future.set_running_or_notify_cancel()
    return future


def _when_done(first: Future | None, then: Future) -> None:
    """`then` is done when `first` is."""
    if first is None:
        then.set_result(None)
    else:
        first.add_done_callback(lambda _: then.set_result(None))


@dataclass(eq=False)
class Step:
    """A chunk that was asked for. `chunk` has the frames; `done` is when the memory is written and the next may be asked for."""

    seat: Seat
    latch: Callable[[], Any]
    due: float
    chunk: Future = field(default_factory=_future)
    done: Future = field(default_factory=_future)
    began: float = 0.0

    def fail(self, error: BaseException) -> None:
        for future in (self.chunk, self.done):
            if not future.done():
                future.set_exception(error)


class Engine:
    """Owns the one thread in which the model may run. All methods may be called from any thread; times are `time.monotonic`'s.

    Args:
        model: a `WorldModel`, or anything whose worlds have `generate` and `finalize`; its `generate_together` and
            `finalize_together` are used if it has them.
        autosave: where worlds whose seat has a token are saved (`worldmodel.autosave.Autosave`).
    """

    def __init__(self, model: Any, config: EngineConfig | None = None, autosave: Any = None) -> None:
        self.model, self.config, self.autosave = model, config or EngineConfig(), autosave
        self.room = self.config.worlds
        """Worlds that fit; less than the config's when memory ran out."""
        self.batch_sizes: deque[int] = deque(maxlen=256)
        self._durations: deque[float] = deque(maxlen=8)
        self._batch = self.config.batch or self.config.worlds
        self._seats: list[Seat] = []
        self._opening = 0
        self._steps: list[Step] = []
        self._last: list[Seat] = []  # the worlds of the last batch
        self._last_end = 0.0
        self._left = False  # whether worlds have ended since `tidy`
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._wake = threading.Condition()
        self._stopping = False
        limit_arenas()  # before the first of the server's threads
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="autosave")
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)  # started by the first work

    # -- from any thread ---------------------------------------------------------------------------------------------------
    @property
    def worlds(self) -> int:
        return sum(not seat.closed for seat in self._seats) + self._opening

    @property
    def step_s(self) -> float:
        """What a batch usually takes, frames and memory; 0 before the first."""
        return sorted(self._durations)[(len(self._durations) - 1) // 2] if self._durations else 0.0

    def open(self, make: Callable[[], Any], *, exact: bool = False, token: str | None = None, note: Callable[[], dict] = dict) -> Future:
        """A `Seat` for the world that `make()` gives, called in the engine's thread. The future raises what `make` raises, and
        `EngineFull` when there is no room or no memory for it.
        """
        future = _future()
        with self._wake:
            if self.worlds >= self.room:
                future.set_exception(EngineFull(f"All {self.room} worlds that fit here are taken; try again when one has ended."))
                return future
            self._opening += 1
        return self._submit(lambda: self._open(make, exact, token, note), future)

    def replace(self, seat: Seat, make: Callable[[], Any]) -> Future:
        """Another world in the same seat; when making it fails, the seat keeps the one it has."""

        def work() -> Any:
            world = self._make(make)
            seat.world, seat.changed, seat.saved, self._left = world, True, 0.0, True
            trim_heap()
            return world

        return self._submit(work, _future())

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
        """`function(*args)` in the engine's thread, between two steps: for whatever else touches a world or the model."""
        return self._submit(lambda: function(*args, **kwargs), _future())

    def step(self, seat: Seat, latch: Callable[[], Any], due: float = 0.0) -> Step:
        """Ask for the next chunk, to be started when it is `due`; `latch()` gives its actions, and is called at that moment, in the
        engine's thread. One at a time for each seat.
        """
        step = Step(seat, latch, due)
        with self._wake:
            if seat.closed or self._stopping:
                step.fail(EngineStopped("This world was closed."))
                return step
            if any(other.seat is seat for other in self._steps):
                raise ValueError("This world's last chunk is not done yet; ask for one at a time.")
            self._steps.append(step)
            self._wake.notify()
        return step

    def cancel(self, step: Step) -> bool:
        """Take a step back that has not begun; False when it has."""
        with self._wake:
            if step not in self._steps or step.began:
                return False
            self._steps.remove(step)
        step.fail(EngineStopped("This step was taken back."))
        return True

    def close(self, seat: Seat, keep: bool = True) -> Future:
        """Give the seat up; its place is free at once, and its steps that have not begun fail. A world with a token is saved, or without
        `keep` what was saved of it goes; the future is done when that is on the disk.
        """
        with self._wake:
            seat.closed = True
            dropped = [step for step in self._steps if step.seat is seat and not step.began]
            self._steps = [step for step in self._steps if step not in dropped]
        for step in dropped:
            step.fail(EngineStopped("This world was closed."))
        on_disk = _future()
        left = self._submit(lambda: self._close(seat, keep), _future())
        left.add_done_callback(lambda left: _when_done(None if left.exception() else left.result(), on_disk))
        return on_disk

    def stop(self) -> None:
        """Save every world that has a token, and end. Work that has not begun fails with `EngineStopped`."""
        for seat in list(self._seats):
            self.close(seat)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._saver.shutdown(wait=True)

    def _submit(self, work: Callable[[], Any], future: Future) -> Future:
        with self._wake:
            if self._stopping:
                future.set_exception(EngineStopped("The engine has stopped."))
                return future
            self._calls.append((work, future))
            if self._thread.ident is None:
                self._thread.start()
            self._wake.notify()
        return future

    # -- the engine's thread -----------------------------------------------------------------------------------------------
    def _run(self) -> None:
        while True:
            call = batch = None  # worlds that are gone are not held while this waits
            with self._wake:
                while not (self._calls or self._stopping or self._chosen(time.monotonic())):
                    if not self._wake.wait(self._until_due()) and self._left and not self._steps:
                        self._left = False
                        self._calls.append((tidy, _future()))
                call = self._calls.popleft() if self._calls else None
                if call is None and self._stopping:
                    break
                batch = self._chosen(time.monotonic())
                for step in batch:
                    step.began = time.monotonic()
            if call is not None:
                self._answer(*call)  # one between two batches, so that neither waits for ever
            if batch:
                self._play(batch)
        for step in self._steps:
            step.fail(EngineStopped("The engine has stopped."))

    def _until_due(self) -> float | None:
        """How long to wait when nothing else happens, seconds."""
        if not self._steps:
            return TIDY_AFTER_S if self._left else None
        now = time.monotonic()
        due = min(step.due for step in self._steps)
        return max(0.0, (due if due > now else self._last_end + self.config.gather_s) - now)

    def _chosen(self, now: float) -> list[Step]:
        """The next batch: empty while nothing is due, or others may come along in a moment; who was served longest ago first."""
        if not any(step.due <= now for step in self._steps):
            return []
        asking = {id(step.seat) for step in self._steps}
        if now < self._last_end + self.config.gather_s and any(id(s) not in asking and not s.closed for s in self._last):
            return []
        soon = now + self.config.early * self.step_s
        due = sorted((step for step in self._steps if step.due <= soon), key=lambda step: (step.seat.served, step.due))
        if due[0].seat.exact:
            return due[:1]
        return [step for step in due if not step.seat.exact][: self._batch]

    @staticmethod
    def _answer(work: Callable[[], Any], future: Future) -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001 (it is raised where the future is waited for)
            future.set_exception(error)

    def _play(self, batch: list[Step]) -> None:
        began = time.monotonic()
        ready: list[tuple[Step, Any]] = []
        for step in batch:
            step.began = step.seat.served = began
            try:
                ready.append((step, step.latch()))
            except Exception as error:
                self._end(step, error)
        made = self._together(ready, self._generate)
        for (step, _), chunk in made:
            step.chunk.set_result(chunk)  # the frames leave
        for (step, _), _ in self._together([(step, None) for (step, _), _ in made], self._finalize):
            with self._wake:
                self._steps.remove(step)
            step.seat.changed = True
            step.done.set_result(time.monotonic() - began)
        self._last, self._last_end = [step.seat for step in batch], time.monotonic()
        self._durations.append(time.monotonic() - began)
        self.batch_sizes.append(len(batch))
        for step in batch:
            self._autosave(step.seat)

    def _together(self, items: list[tuple[Step, Any]], work: Callable[[list], Sequence]) -> list[tuple[tuple[Step, Any], Any]]:
        """`work` on all items at once; if that fails, in halves, so that only those fail that fail alone."""
        if not items:
            return []
        half = len(items) // 2
        try:
            return list(zip(items, work(items), strict=True))
        except Exception as error:
            out_of_memory = is_out_of_memory(error)
            if half:
                log.warning("A batch of %d worlds failed (%s); they are stepped in smaller ones.", len(items), error)
            else:
                self._end(items[0][0], error)
        if out_of_memory:  # here, where the error and the tensors of its frames are gone
            free_memory()
            self._batch = max(1, min(self._batch, half))
        if not half:
            return []
        return self._together(items[:half], work) + self._together(items[half:], work)

    def _generate(self, items: list[tuple[Step, Any]]) -> Sequence[Any]:
        worlds, actions = [step.seat.world for step, _ in items], [actions for _, actions in items]
        together = getattr(self.model, "generate_together", None)
        if together is not None and len(worlds) > 1:
            return together(worlds, actions)
        return [world.generate(action) for world, action in zip(worlds, actions, strict=True)]

    def _finalize(self, items: list[tuple[Step, Any]]) -> Sequence[Any]:
        worlds = [step.seat.world for step, _ in items]
        together = getattr(self.model, "finalize_together", None)
        if together is not None and len(worlds) > 1:
            together(worlds)
        else:
            for world in worlds:
                world.finalize()
        return worlds

    def _end(self, step: Step, error: Exception) -> None:
        with self._wake:
            self._steps.remove(step)
        step.fail(error)

    # -- seats -------------------------------------------------------------------------------------------------------------
    def _open(self, make: Callable[[], Any], exact: bool, token: str | None, note: Callable[[], dict]) -> Seat:
        try:
            seat = Seat(self._make(make), exact, token, note, saved=time.monotonic())
            self._seats.append(seat)
        finally:
            with self._wake:
                self._opening -= 1
        return seat

    def _make(self, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            message = str(error)
        free_memory()  # here, where the error and the tensors of its frames are gone
        self.room = max(1, len(self._seats))
        log.warning("No memory for another world beside %d: %s", len(self._seats), message)
        raise EngineFull(f"There is no memory for another world; {len(self._seats)} live here. Try again when one has ended.")

    def _close(self, seat: Seat, keep: bool) -> Future | None:
        """What the saver still has to do."""
        if seat not in self._seats:
            return None
        self._seats.remove(seat)
        self._last = [other for other in self._last if other is not seat]
        if keep and seat.changed:
            self._save(seat)
        elif not keep and seat.token is not None and self.autosave is not None:
            seat.saving = self._saver.submit(self.autosave.forget, seat.token)  # after what is being written
        seat.world, self._left = None, True
        trim_heap()
        return seat.saving

    def _autosave(self, seat: Seat) -> None:
        if self.autosave is not None and seat.changed and time.monotonic() - seat.saved >= self.autosave.config.every_s:
            self._save(seat)

    def _save(self, seat: Seat) -> None:
        """Take the state here, write it in the saver's thread; one write of a world at a time."""
        if self.autosave is None or seat.token is None or not hasattr(seat.world, "state"):
            return
        if seat.saving is not None and not seat.saving.done():
            if not seat.closed:
                return  # the disk is slow: the next step asks again
            seat.saving.exception()
        try:
            state = seat.world.state(history=0, note=seat.note())
        except Exception:
            log.exception("A world could not be saved.")
            return
        seat.saved, seat.changed = time.monotonic(), False
        seat.saving = self._saver.submit(self._write, seat.token, state)

    def _write(self, token: str, state: Any) -> None:
        try:
            self.autosave.save(token, state)
        except Exception as error:  # what was saved before is still there, and play goes on
            log.warning("A world was not saved: %s", error)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device or the machine has no memory left; PyTorch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(s in str(error) for s in ("can't allocate memory", "not enough memory", "out of memory"))


def free_memory() -> None:
    """Give cached device memory back, so that what still lives can use it."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
