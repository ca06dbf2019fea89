"""The Python client against a live server with the double: lockstep, realtime, drops, and every kind of no."""

import asyncio
import socket as sockets
import threading
import time

import numpy as np
import pytest
from fake_model import FakeModel
from PIL import Image
from serving import Client, free_port, running

from worldmodel.actions import Action, parse_script
from worldmodel.client import ClientError, ConnectionLost, Ended, Refused, ServerFull, WrongVersion, connect, connect_async
from worldmodel.server import protocol as p
from worldmodel.server.app import create_app
from worldmodel.server.settings import ServerSettings

SCRIPT = "w*8 w+left*8 d*6 up*3"


@pytest.fixture
def model(tmp_path):
    return FakeModel(tmp_path, size=(32, 48), step_s=0.01)


@pytest.fixture
def host(model):
    with running(create_app(model, ServerSettings(worlds=2, grace_s=2.0, busy_retry_s=0.2))) as host:
        yield host


def alone(tmp_path, script, **start):
    """What a model of its own makes of the script: uint8 [T, H, W, 3], the last chunk filled up by standing still."""
    (tmp_path / "alone").mkdir(exist_ok=True)
    model = FakeModel(tmp_path / "alone", size=(32, 48), step_s=0.0)
    world = model.start(start.pop("image", None), **start)
    actions = parse_script(script)
    actions += [Action.idle()] * (-len(actions) % 4)
    return np.concatenate([world.step(actions[i : i + 4]).frames for i in range(0, len(actions), 4)])


class Relay:
    """A TCP relay whose connections can be cut."""

    def __init__(self, host):
        self.target = (host.split(":")[0], int(host.split(":")[1]))
        self.listener = sockets.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.open, self.count, self.closed_until = [], 0, 0.0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            if time.monotonic() < self.closed_until:
                near.close()
                continue
            far = sockets.create_connection(self.target)
            self.open += [near, far]
            self.count += 1
            for a, b in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    @staticmethod
    def _pump(a, b):
        try:
            while data := a.recv(65536):
                b.sendall(data)
        except OSError:
            pass
        for s in (a, b):
            try:
                s.shutdown(sockets.SHUT_RDWR)
            except OSError:
                pass

    def cut(self, for_s=0.0):
        self.closed_until = time.monotonic() + for_s
        for s in self.open:
            try:
                s.shutdown(sockets.SHUT_RDWR)
            except OSError:
                pass
        self.open.clear()


def test_lockstep_frames_are_the_models_own(host, model, tmp_path):
    with connect(f"http://{host}", image="dusk", seed=3) as world:
        entry = next(e for e in model.gallery if e.name == "dusk")
        assert world.state is None or world.state.gallery == "dusk"
        assert (world.first_frame.pixels == model.worlds[0].first_frame).all() and len(model.worlds) == 1
        frames = list(world.play(SCRIPT))
        assert world.state.prompt == entry.prompt and world.state.seed == 3
        want = alone(tmp_path, SCRIPT, image=entry.image_path)
        assert (np.stack([f.pixels for f in frames]) == want).all() and len(want) == 28
        assert [f.number for f in frames] == list(range(2, 30))
        assert [f.chunk for f in frames] == [i // 4 for i in range(28)]
        assert [f.action_seq for f in frames] == [1 + i // 4 for i in range(28)]
        assert all(f.made_ms > 0 for f in frames)
        assert len(world.step(Action.from_keys({"KeyW"}))) == 4


def test_lockstep_is_not_held_back_by_the_limit_of_messages(model):
    model.step_s = 0.0
    with running(create_app(model, ServerSettings(messages_per_s=5))) as host, connect(host) as world:
        assert sum(1 for _ in world.play("w*48")) == 48


def test_a_generator_left_early_does_not_confuse_the_next(host, model, tmp_path):
    with connect(host, prompt="a place") as world:
        for frame in world.play("w*40"):
            if frame.chunk == 1:
                break
        world.step("a*4")
        assert model.worlds[0].log[-4:] == parse_script("a*4")
        first = world.reset(seed=5)
        assert (first.pixels == model.worlds[1].first_frame).all()
        assert (np.stack([f.pixels for f in world.play("d*8")]) == alone(tmp_path, "d*8")).all()
        assert model.worlds[1].seed == 5 and model.worlds[1].prompt == "a place"


def test_own_pictures_and_what_the_server_will_not_start(host, model):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 48, 3), dtype=np.uint8))
    with connect(host, image=picture) as world:
        assert (world.first_frame.pixels == np.asarray(picture)).all()
        with pytest.raises(Refused, match="no world called"):
            world.reset(image="atlantis")
        assert len(world.step("w*4")) == 4, "the world stays"
        with pytest.raises(Refused, match="not a JPEG"):
            world.reset(image=b"GIF89a")
        with pytest.raises(ValueError, match="realtime"):
            world.hold("KeyW")
    with pytest.raises(Refused, match="no world called"):
        connect(host, image="atlantis")


def test_realtime_holds_keys_and_takes_the_newest(host, model):
    with connect(host, mode="realtime") as world:
        seq = world.hold("ArrowRight")
        frames = [world.newest() for _ in range(3)]
        while frames[-1].action_seq < seq:
            frames.append(world.newest())
        time.sleep(0.5)  # frames go on arriving, and are passed over
        late = world.newest()
        assert late.number > frames[-1].number + 3 and late.pixels.shape == (32, 48, 3)
        assert model.worlds[0].log[-1] == Action.from_names(["pan_right"])
        with pytest.raises(ValueError, match="KeyQ"):
            world.hold("KeyQ")


def test_async_is_the_same(host, tmp_path):
    async def walk():
        async with connect_async(host) as world:
            frames = [frame async for frame in world.play("w*8")]
            more = await world.step("left*4")
        async with connect_async(host, mode="realtime") as world:
            await world.hold("KeyW")
            async for frame in world.frames():
                if frame.action_seq:
                    break
        return np.stack([f.pixels for f in frames + more])

    assert (asyncio.run(walk()) == alone(tmp_path, "w*8 left*4")).all()


def test_a_dropped_socket_resumes_and_no_frame_is_lost_or_made_twice(host, model, tmp_path):
    relay = Relay(host)
    with connect(relay.host) as world:
        pixels, token = [], world.token
        for frame in world.play(SCRIPT):
            if frame.number in (6, 7, 20):
                relay.cut()
            pixels.append(frame.pixels)
        assert (np.stack(pixels) == alone(tmp_path, SCRIPT)).all()
        assert relay.count >= 3 and world.token == token and len(model.worlds) == 1
        assert len(model.worlds[0].log) == 28
    relay.listener.close()


def test_a_dropped_realtime_socket_goes_on_holding(host, model):
    relay = Relay(host)
    with connect(relay.host, mode="realtime") as world:
        world.hold("KeyD")
        number = world.newest().number
        relay.cut()
        while relay.count < 2 or model.worlds[0].log[-1].is_static:
            number, before = world.newest().number, number
            assert number > before
        assert len(model.worlds) == 1
    relay.listener.close()


def test_a_world_that_the_server_gave_up_is_told(model):
    with running(create_app(model, ServerSettings(grace_s=0.05))) as host:
        relay = Relay(host)
        with connect(relay.host) as world:
            world.step("w*4")
            relay.cut(for_s=0.4)
            with pytest.raises(ConnectionLost, match="not kept"):
                world.step("w*4")
        relay.listener.close()
        with connect(host, wait_s=2.0) as world, pytest.raises(ServerFull) as full:
            assert len(world.step("w*4")) == 4
            connect(host)
        assert full.value.retry_after_s > 0


def test_resume_by_token_after_leaving(host, model):
    world = connect(host)
    world.step("w*4")
    world.close(keep=True)
    with connect(host, resume=world.token) as again:
        assert again.ready.resumed and again.ready.seq == 1 and again.first_frame is None
        again.step("a*4")
        assert len(model.worlds) == 1 and model.worlds[0].log == parse_script("w*4 a*4")


def test_failures_are_said(host, model, monkeypatch):
    with pytest.raises(ConnectionLost, match="No world server"):
        connect(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ValueError, match="address"):
        connect("ftp://here")
    with connect(host) as world:
        model.fail_next = True
        with pytest.raises(Ended, match="model failed"):
            world.step("w*4")
        with pytest.raises(ClientError):
            world.step("w*4")
    honest = p.Hello.model_dump_json
    monkeypatch.setattr(p.Hello, "model_dump_json", lambda self: honest(self).replace('"proto":1', '"proto":7'))
    with pytest.raises(WrongVersion, match="protocol 1, not 7"):
        connect(host)


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([p.Step(seq=2, actions=[[0.0] * 13] * 4)], "next step has seq 1"),
        ([p.Step(seq=1, actions=[[0.0] * 13] * 3)], "a chunk has 4 frames"),
        ([p.ActionMessage(seq=1, keys=[])], "step messages"),
        ([p.Pause()] + [p.Step(seq=i, actions=[[0.0] * 13] * 4) for i in range(1, 10)], "at most 8 steps"),
    ],
)
def test_lockstep_rules_are_kept_by_the_server(host, messages, says):
    with Client(host, hello=False) as client:
        client.send(p.Hello(proto=1, mode="lockstep"))
        client.expect(p.Ready)
        for message in messages:
            client.send(message)
        assert says in client.expect(p.Error).message


def test_going_back_branching_and_files(model, host, tmp_path):
    with connect(host, image="snow") as world:
        first = world.step("w*16 left*8")
        seen = world.rewind(2)
        assert (seen.pixels == first[7].pixels).all() and world.timeline().at == 2
        again = world.step("w*8 left*8")
        assert all((a.pixels == b.pixels).all() for a, b in zip(again, first[8:24], strict=True))
        trunk = world.state.branch
        world.fork(1)
        assert world.state.branch != trunk and world.timeline().at == 1
        world.step("d*4")
        back = world.switch(trunk)
        assert (back.pixels == again[-1].pixels).all()
        with pytest.raises(Refused, match="no further"):
            world.rewind(99)
        world.discard(next(b.branch for b in world.state.branches if b.branch != trunk))
        assert [b.branch for b in world.state.branches] == [trunk]
        assert world.memory().tokens == 10
        assert world.save_video(tmp_path / "seen.mp4").stat().st_size > 1000
        (tmp_path / "broken.world").write_bytes(b"nothing")
        with pytest.raises(Refused, match="not a readable world file"):
            world.load(tmp_path / "broken.world")
        assert (world.step("w*4")[-1].pixels != again[-1].pixels).any(), "and the world is still there"
