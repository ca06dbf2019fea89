"""Many worlds on one model: who goes when and with whom, what a failure costs, and what is saved. No test asks how fast it is."""

import asyncio
import gc
import threading
import time
import weakref
from collections import Counter

import numpy as np
import pytest
from small import picture
from viewing import with_views

from worldmodel.autosave import Autosave, AutosaveConfig
from worldmodel.engine import Engine, EngineConfig, EngineFull, EngineStopped, is_out_of_memory

SOON = 5.0  # seconds within which whatever is expected happens


class Counting:
    """A model whose worlds count their steps; `batches` has who was stepped together."""

    def __init__(self):
        self.batches, self.broken, self.most, self.hold = [], set(), 99, threading.Event()
        self.hold.set()

    def generate_together(self, worlds, actions):
        assert len(worlds) > 1 and threading.current_thread().name == "model"
        if len(worlds) > self.most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        if any(w.name in self.broken for w in worlds):
            raise ValueError("one of these is broken")
        self.batches.append([w.name for w in worlds])
        return [w.make(a) for w, a in zip(worlds, actions, strict=True)]

    def finalize_together(self, worlds):
        for world in worlds:
            world.finalize()


class CountingWorld:
    def __init__(self, model, name):
        self.model, self.name, self.index, self.finalized = model, name, 0, 0

    def make(self, actions):
        self.index += 1
        return (self.name, self.index, actions)

    def generate(self, actions):
        assert threading.current_thread().name == "model"
        if self.name in self.model.broken:
            raise ValueError(f"{self.name} is broken")
        self.model.batches.append([self.name])
        return self.make(actions)

    def finalize(self):
        assert self.model.hold.wait(SOON)
        self.finalized += 1


@pytest.fixture
def model():
    return Counting()


@pytest.fixture
def engine(model):
    engine = Engine(model, EngineConfig(worlds=8, early=0.0))
    yield engine
    model.hold.set()
    engine.stop()


def seats_of(engine, names, **kwargs):
    return [engine.open(lambda name=name: CountingWorld(engine.model, name), **kwargs).result(SOON) for name in names]


class paused:
    """The engine does nothing inside this block, so that what is asked for meanwhile is there at once."""

    def __init__(self, engine):
        self.engine, self.go, self.began = engine, threading.Event(), threading.Event()

    def __enter__(self):
        def wait():
            self.began.set()
            assert self.go.wait(SOON)

        self.done = self.engine.call(wait)
        assert self.began.wait(SOON)

    def __exit__(self, *_):
        self.go.set()
        self.done.result(SOON)


def test_worlds_that_are_due_go_together_with_the_newest_keys(engine, model):
    seats, keys = seats_of(engine, "abc"), {"a": "old", "b": "old", "c": "old"}
    with paused(engine):
        steps = [engine.step(s, lambda n=s.world.name: keys[n]) for s in seats]
        keys["b"] = "new"
    assert [s.chunk.result(SOON) for s in steps] == [("a", 1, "old"), ("b", 1, "new"), ("c", 1, "old")]
    assert model.batches == [["a", "b", "c"]] and [s.done.result(SOON) is not None for s in steps] == [True] * 3
    assert list(engine.batch_sizes) == [3] and engine.step_s > 0


def test_frames_leave_before_the_memory_is_written(engine, model):
    (seat,) = seats_of(engine, "a")
    model.hold.clear()
    step = engine.step(seat, lambda: "w")
    assert step.chunk.result(SOON) == ("a", 1, "w") and not step.done.done() and seat.world.finalized == 0
    with pytest.raises(ValueError, match="one at a time"):
        engine.step(seat, lambda: "w")
    model.hold.set()
    step.done.result(SOON)
    assert seat.world.finalized == 1


def test_a_step_waits_until_it_is_due(engine, model):
    early, late = seats_of(engine, "ab")
    waiting = engine.step(late, lambda: "later", due=time.monotonic() + 1000)
    engine.step(early, lambda: "now", due=time.monotonic() - 1).done.result(SOON)
    assert model.batches == [["a"]] and not waiting.chunk.done()
    assert engine.cancel(waiting)
    with pytest.raises(EngineStopped):
        waiting.chunk.result(SOON)
    soon = time.monotonic() + 0.05
    assert engine.step(late, lambda: "b", due=soon).done.result(SOON) is not None and time.monotonic() >= soon


def test_who_is_nearly_due_comes_along(model):
    engine = Engine(model, EngineConfig(early=1000.0))
    a, b = seats_of(engine, "ab")
    engine.step(a, lambda: 0).done.result(SOON)  # a step's usual length is known now
    engine._durations.append(1.0)
    engine._durations.append(1.0)
    with paused(engine):
        steps = [engine.step(a, lambda: 1), engine.step(b, lambda: 1, due=time.monotonic() + 60)]
    assert [s.chunk.result(SOON)[0] for s in steps] == ["a", "b"] and sorted(model.batches[-1]) == ["a", "b"]
    engine.stop()


def test_a_batch_waits_a_moment_for_the_worlds_of_the_last_one(model):
    """Else c, which came while a and b were stepped, would go alone for ever."""
    engine = Engine(model, EngineConfig(gather_s=SOON))
    a, b, c = seats_of(engine, "abc")
    with paused(engine):
        first = [engine.step(s, lambda: 0) for s in (a, b)]
    [s.done.result(SOON) for s in first]
    late = engine.step(c, lambda: 0)
    again = engine.step(a, lambda: 0)
    time.sleep(0.02)
    assert model.batches == [["a", "b"]] and not late.chunk.done()
    engine.step(b, lambda: 0).done.result(SOON)
    assert late.chunk.done() and again.chunk.done() and sorted(model.batches[-1]) == ["a", "b", "c"]
    engine.close(a)
    engine.close(b)
    assert engine.step(c, lambda: 0).done.result(SOON) is not None, "who has gone is not waited for"
    engine.stop()


@pytest.mark.parametrize("exact", [False, True])
def test_an_overloaded_engine_slows_all_alike(model, exact):
    """Seven worlds that always want the next chunk, three of them at a time, one of them perhaps always alone."""
    engine, rounds, over = Engine(model, EngineConfig(worlds=8, batch=3, early=0.0)), 40, threading.Event()

    def again(seat):
        if len(model.batches) < rounds:
            engine.step(seat, lambda: 0).done.add_done_callback(lambda _: again(seat))
        else:
            over.set()

    seats = seats_of(engine, "abcdef") + seats_of(engine, "g", exact=exact)
    with paused(engine):
        for seat in seats:
            again(seat)
    assert over.wait(SOON)
    engine.stop()
    counts = Counter(dict.fromkeys("abcdefg", 0))
    for batch in model.batches:
        counts.update(batch)
        assert max(counts.values()) - min(counts.values()) <= 1 and len(batch) <= 3
    if exact:
        assert all(batch == ["g"] for batch in model.batches if "g" in batch)


def test_only_the_world_at_fault_ends(engine, model, caplog):
    seats = seats_of(engine, "abcd")
    model.broken.add("c")
    with paused(engine):
        steps = [engine.step(s, lambda: 0) for s in seats]
    for step, name in zip(steps, "abcd", strict=True):
        if name == "c":
            with pytest.raises(ValueError, match="c is broken"):
                step.chunk.result(SOON)
            with pytest.raises(ValueError, match="c is broken"):
                step.done.result(SOON)
        else:
            assert step.chunk.result(SOON)[:2] == (name, 1)
            step.done.result(SOON)
    assert [s.world.finalized for s in seats] == [1, 1, 0, 1]
    bad = engine.step(seats[0], lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bad.done.result(SOON)
    engine.step(seats[0], lambda: 0).done.result(SOON)


def test_a_batch_that_does_not_fit_into_memory_is_made_smaller(engine, model):
    seats = seats_of(engine, "abcd")
    model.most = 2
    for _ in range(2):
        with paused(engine):
            steps = [engine.step(s, lambda: 0) for s in seats]
        for step in steps:
            step.done.result(SOON)
    assert [s.world.index for s in seats] == [2] * 4 and [len(b) for b in model.batches] == [2] * 4


def test_no_memory_refuses_the_next_world_and_keeps_the_others(engine, model):
    def too_large():
        raise MemoryError("told to fail")

    seats = seats_of(engine, "ab")
    with pytest.raises(EngineFull, match="no memory for another world; 2 live here"):
        engine.open(too_large).result(SOON)
    assert engine.room == 2 and engine.worlds == 2
    with pytest.raises(EngineFull, match="2 worlds that fit"):
        engine.open(lambda: CountingWorld(model, "c")).result(SOON)
    for seat in seats:
        engine.step(seat, lambda: 0).done.result(SOON)
    with pytest.raises(EngineFull):
        engine.replace(seats[0], too_large).result(SOON)
    assert seats[0].world.name == "a"
    engine.close(seats[0]).result(SOON)
    assert seats_of(engine, "d")[0].world.name == "d"
    assert is_out_of_memory(RuntimeError("CUDA out of memory. Tried")) and not is_out_of_memory(ValueError("out of memory"))


def test_a_full_engine_and_a_failed_start(model):
    engine = Engine(model, EngineConfig(worlds=1))
    with pytest.raises(KeyError):
        engine.open(lambda: {}["nothing"]).result(SOON)
    seats_of(engine, "a")
    with pytest.raises(EngineFull, match="taken"):
        engine.open(lambda: CountingWorld(model, "b")).result(SOON)
    engine.stop()
    with pytest.raises(EngineStopped):
        engine.call(print).result(SOON)


def test_closing_and_stopping_end_what_waits(model):
    engine = Engine(model, EngineConfig(early=0.0))
    a, b = seats_of(engine, "ab")
    far = time.monotonic() + 1000
    of_a, of_b = engine.step(a, lambda: 0, far), engine.step(b, lambda: 0, far)
    engine.close(a).result(SOON)
    with pytest.raises(EngineStopped):
        of_a.chunk.result(SOON)
    assert not of_b.chunk.done() and engine.worlds == 1
    with pytest.raises(EngineStopped):
        engine.step(a, lambda: 0).done.result(SOON)
    engine.stop()
    with pytest.raises(EngineStopped):
        of_b.done.result(SOON)


def test_a_waiter_that_gives_up_does_not_hurt_the_engine(engine, model):
    (seat,) = seats_of(engine, "a")

    async def give_up():
        model.hold.clear()
        step = engine.step(seat, lambda: 0)
        await asyncio.wrap_future(step.chunk)
        task = asyncio.create_task(_wait(step.done))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        model.hold.set()

    async def _wait(future):
        await asyncio.wrap_future(future)

    asyncio.run(give_up())
    deadline = time.monotonic() + SOON
    while seat.world.finalized == 0 and time.monotonic() < deadline:
        time.sleep(0.001)
    engine.call(lambda: None).result(SOON)
    assert engine.step(seat, lambda: 0).done.result(SOON) is not None


# -- with a real model -----------------------------------------------------------------------------------------------------
def test_real_worlds_together_and_one_exactly(tmp_path):
    model = with_views()
    store = Autosave(AutosaveConfig(tmp_path, every_s=0.0))
    engine = Engine(model, EngineConfig(early=0.0), store)
    alone = [model.start(picture(i), "a village", seed=i) for i in range(3)]
    seats = []
    for i in range(3):
        make = lambda i=i: model.start(picture(i), "a village", seed=i, history=0)  # noqa: E731
        seats.append(engine.open(make, exact=i == 2, token=f"token {i}", note=lambda i=i: {"number": i}).result(SOON))
    for script in ("w*4", "left*4", "d*4"):
        with paused(engine):
            steps = [engine.step(seat, lambda s=script: s) for seat in seats]
        for i, (step, world) in enumerate(zip(steps, alone, strict=True)):
            difference = np.abs(step.chunk.result(SOON).frames.astype(int) - world.step(script).frames).max()
            assert difference <= (0 if i == 2 else 1)
            step.done.result(SOON)
    assert set(engine.batch_sizes) == {1, 2}
    engine.close(seats[1], keep=False).result(SOON)
    engine.stop()
    assert len(store.files()) == 2 and store.load("token 1", model) is None
    state = store.load("token 2", model)
    world = alone[2].from_state(model, state)
    assert state.note == {"number": 2} and np.array_equal(world.step("w*4").frames, alone[2].step("w*4").frames)


def test_an_idle_engine_lets_go_of_worlds_in_cycles():
    class World:
        def generate(self, actions):
            return actions

        def finalize(self):
            pass

    engine = Engine(object(), EngineConfig(worlds=2))
    made = []

    def make():
        world = World()
        world.itself = world
        made.append(weakref.ref(world))
        return world

    gc.disable()
    try:
        seat = engine.open(make).result(SOON)
        engine.step(seat, lambda: []).done.result(SOON)
        engine.close(seat).result(SOON)
        deadline = time.monotonic() + SOON
        while made[0]() is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert made[0]() is None
    finally:
        gc.enable()
        engine.stop()
