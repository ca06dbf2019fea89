"""Saved worlds: bounded, whole or not at all, and still there after a full disk and a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small import picture, small_model

from worldmodel.autosave import ABANDONED_S, Autosave, AutosaveConfig
from worldmodel.world_file import WorldError

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def state(model):
    world = model.start(picture(), "a village", seed=2, history=0)
    world.step("w*4")
    return world.state(history=0, note={"gallery": "snow"})


def names(store):
    return {p.name for p in store.config.folder.iterdir()}


def test_a_world_goes_on_under_its_token(model, tmp_path):
    store, world = Autosave(AutosaveConfig(tmp_path / "new" / "folder")), model.start(picture(), "a village", seed=2)
    for k in range(3):
        world.step("left*4")
        store.save("a secret", world.state(history=0, note={"step": k}))
    found = Autosave(store.config).load("a secret", model)  # another process
    assert found.note == {"step": 2} and len(store.files()) == 1
    assert np.array_equal(world.from_state(model, found).step("w*4").frames, world.step("w*4").frames)
    assert store.load("another", model) is None and "secret" not in store.files()[0].name
    store.forget("a secret")
    assert store.load("a secret", model) is None and not names(store)


def test_number_and_bytes_are_bounded_and_the_oldest_go(state, tmp_path):
    store = Autosave(AutosaveConfig(tmp_path, max_worlds=3))
    for k in range(5):
        store.save(f"token {k}", state)
        os.utime(store.path(f"token {k}"), (k + time.time() - 100, k + time.time() - 100))
    assert store.files() == [store.path(f"token {k}") for k in (2, 3, 4)]
    size = store.files()[0].stat().st_size
    small = Autosave(AutosaveConfig(tmp_path, max_bytes=2 * size + 10))
    assert small.files() == [store.path(f"token {k}") for k in (3, 4)]
    small.save("token 9", state)
    assert small.files() == [store.path(f"token {k}") for k in (4, 9)]
    with pytest.raises(WorldError, match="raise max_bytes"):
        Autosave(AutosaveConfig(tmp_path / "tiny", max_bytes=1000)).save("a", state)
    assert not names(Autosave(AutosaveConfig(tmp_path / "tiny", max_bytes=1000)))


def test_old_worlds_and_abandoned_halves_go(state, tmp_path):
    store = Autosave(AutosaveConfig(tmp_path, keep_s=1000.0))
    store.save("old", state)
    store.save("new", state)
    (tmp_path / "x.world.part").write_bytes(b"half")
    (tmp_path / "y.world.part").write_bytes(b"half of one that is being written")
    (tmp_path / "notes.txt").write_text("not ours")
    os.utime(store.path("old"), (0, time.time() - 2000))
    os.utime(tmp_path / "x.world.part", (0, time.time() - ABANDONED_S - 10))
    assert names(Autosave(store.config)) == {store.path("new").name, "y.world.part", "notes.txt"}


def test_worlds_of_another_model_and_broken_files_are_no_worlds(model, state, tmp_path, caplog):
    store = Autosave(AutosaveConfig(tmp_path))
    store.save("a", state)
    assert store.load("a", small_model(seed=9)) is None and "another model" in caplog.text
    store.path("a").write_bytes(b"broken")
    assert store.load("a", model) is None and "not a readable" in caplog.text


FULL_DISK = """
import resource, sys
sys.path[:0] = [{here!r}]
from small import picture, small_model
from worldmodel.autosave import Autosave, AutosaveConfig
from worldmodel.world_file import WorldError
model = small_model()
store, world = Autosave(AutosaveConfig({folder!r})), model.start(picture(), "a village", seed=2)
store.save("a", world.state(history=0))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
world.step("w*4")
try:
    store.save("a", world.state(history=0))
except WorldError as error:
    print("refused:", error)
found = store.load("a", model)
print(len(found.tensors["actions"]), len(list(store.config.folder.iterdir())))
"""


def test_a_full_disk_loses_nothing(tmp_path):
    """Files may not grow beyond 4 kB in this process, as if the disk were full."""
    code = FULL_DISK.format(here=str(HERE), folder=str(tmp_path))
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120, cwd=HERE.parent)
    refused, found = run.stdout.splitlines()
    assert "could not be saved" in refused and found == "1 1"  # the start picture's action alone: the world saved before


KILLED = """
import sys
sys.path[:0] = [{here!r}]
from small import picture, small_model
from worldmodel.autosave import Autosave, AutosaveConfig
model = small_model()
store, world = Autosave(AutosaveConfig({folder!r})), model.start(picture(), "a village", seed=2)
while True:
    world.step("w*4")
    store.save("a", world.state(history=0))
    print(world.index, flush=True)
"""


def test_a_world_survives_kill_minus_9(model, tmp_path):
    code = KILLED.format(here=str(HERE), folder=str(tmp_path))
    run = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.PIPE, text=True, cwd=HERE.parent)
    try:
        for line in run.stdout:
            if int(line) == 7:
                break
    finally:
        run.send_signal(signal.SIGKILL)
        rest = [int(line) for line in run.stdout]
        run.wait()
    found = Autosave(AutosaveConfig(tmp_path)).load("a", model)
    saved = (len(found.tensors["actions"]) - 1) // 4
    assert saved in {(rest or [7])[-1], (rest or [7])[-1] + 1}
    world, again = model.start(picture(), "a village", seed=2), model.start(picture(), "a village", seed=2).from_state(model, found)
    for _ in range(saved):
        world.step("w*4")
    assert np.array_equal(world.step("left*4").frames, again.step("left*4").frames)
