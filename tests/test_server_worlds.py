"""Several visitors on one server, and worlds that outlive their session."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import simplejpeg
from fake_model import FakeModel
from serving import Client, free_port, running
from viewing import with_views
from websockets.exceptions import ConnectionClosed

from worldmodel.autosave import Autosave, AutosaveConfig
from worldmodel.model import WorldModel
from worldmodel.server import protocol as p
from worldmodel.server.app import create_app
from worldmodel.server.settings import ServerSettings

HERE = Path(__file__).parent


class TogetherModel(FakeModel):
    """Steps a batch in the time of one, or changes no world; `batches` has the sizes."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches, self.room = [], 99

    def start(self, *args, **kwargs):
        if len(self.worlds) >= self.room:
            raise MemoryError("told to fail")
        return super().start(*args, **kwargs)

    def generate_together(self, worlds, actions):
        if any("generate" in vars(w) for w in worlds):
            raise RuntimeError("one of these was told to fail")
        self.batches.append(len(worlds))
        step, self.step_s = self.step_s, 0.0
        try:
            chunks = [type(w).generate(w, a) for w, a in zip(worlds, actions, strict=True)]  # a test may replace one's in between
        finally:
            self.step_s = step
        time.sleep(step)
        return chunks


@pytest.fixture
def model(tmp_path):
    return TogetherModel(tmp_path, size=(32, 48))


def closed(client):
    with pytest.raises(ConnectionClosed) as caught:
        client.pump(timeout=5.0)
        pytest.fail("the server kept the connection")
    return caught.value.rcvd.code


def settings(**changes):
    return ServerSettings(**{"worlds": 3, "grace_s": 0.3, "busy_retry_s": 0.2, "stall_s": 5.0} | changes)


def test_visitors_walk_at_once_each_in_a_world_of_their_own(model):
    model.step_s = 0.15
    with running(create_app(model, settings())) as host, Client(host) as a, Client(host) as b, Client(host) as c:
        for client in (a, b, c):
            client.play(1)
        assert len({m.resume for client in (a, b, c) for m in client.messages if isinstance(m, p.Ready)}) == 3
        a.hold("KeyW")
        b.hold("ArrowLeft")
        for _ in range(12):
            for client in (a, b, c):
                client.play(2)
        with Client(host) as late:
            error = late.expect(p.Error)
            assert error.code == "busy" and "All places are taken" in error.message and closed(late) == p.CloseCode.BUSY
        logs = [w.log for w in model.worlds]
        assert len(logs) == 3 and max(map(len, logs)) - min(map(len, logs)) <= 2 * model.chunk_frames
        assert {action.magnitudes[0] for action in logs[0][-4:]} == {1.0} and all(a.is_static for a in logs[2])
        assert max(model.batches) == 3, "worlds that are due go together"
        b.send(p.Bye())
        assert closed(b) == 1000
        with Client(host) as late:
            late.play(3)


def test_one_worlds_failure_ends_one_walk(model):
    model.step_s = 0.1
    with running(create_app(model, settings(worlds=2))) as host, Client(host) as a, Client(host) as b:
        a.play(3)
        b.play(3)

        def fail(_):
            raise RuntimeError("told to fail")

        b.ack = False  # what it reads now may be older than the end
        model.worlds[1].generate = fail
        assert b.expect(p.Error).code == "engine" and closed(b) == p.CloseCode.ENGINE
        a.play(12)
        with Client(host) as c:
            c.play(3)


def test_no_memory_refuses_the_next_visitor_and_keeps_the_others(model):
    model.room = 2
    with running(create_app(model, settings())) as host, Client(host) as a, Client(host) as b:
        a.play(2)
        b.play(2)
        with Client(host) as c:
            error = c.expect(p.Error)
            assert error.code == "busy" and "no memory for another world" in error.message and error.retry_after_s
            assert closed(c) == p.CloseCode.BUSY
        with Client(host) as c:
            assert c.expect(p.Error).code == "busy" and closed(c) == p.CloseCode.BUSY, "now it is known that there are two places"
        a.play(8)
        b.send(p.Reset(gallery="snow"))
        error = b.expect(p.Error)
        assert error.code == "busy" and error.retry_after_s
        b.play(8)
        assert [m for m in b.messages if isinstance(m, p.WorldState)][-1].gallery == model.gallery[0].name
        model.room = 99
        b.send(p.Bye())
        closed(b)
        with Client(host) as c:
            c.play(2)


def test_who_has_walked_long_makes_room_for_one_who_waits(model):
    with running(create_app(model, settings(worlds=2, time_limit_s=0.5))) as host, Client(host) as a:
        a.play(12)
        with Client(host) as b:
            b.play(12)
            a.play(1)
            with Client(host) as c:
                c.expect(p.Ready)
                a.ack = False  # what it reads now may be older than the end
                assert a.expect(p.End).reason == "idle" and closed(a) == p.CloseCode.IDLE, "the longest here goes"
                b.play(4)
                c.play(4)


def test_two_visitors_of_the_packaged_model():
    model = WorldModel.from_pretrained("tiny", device="cpu")
    with running(create_app(model, settings(worlds=2))) as host, Client(host) as a, Client(host) as b:
        b.send(p.Reset(gallery=model.gallery[1].name))
        b.pump(lambda c: any(h.flags & p.Flags.RESET and h.frame > 1 for h, _ in c.frames), timeout=20)
        for client, key in ((a, "KeyW"), (b, "ArrowLeft")):
            client.hold(key)
        for client in (a, b):
            seen = len(client.frames)
            client.play(13, timeout=30)
            chunks = [h.chunk for h, _ in client.frames[seen + 1 :]]
            assert chunks == sorted(chunks) and chunks[-1] > chunks[0]
        shown = [simplejpeg.decode_jpeg(client.frames[-1][1]).astype(int) for client in (a, b)]
        assert shown[0].shape == (*model.size, 3) and abs(shown[0] - shown[1]).mean() > 5, "each sees their own world"


# -- worlds that survive ---------------------------------------------------------------------------------------------------
def saving(tmp_path, **changes):
    return settings(autosave=AutosaveConfig(tmp_path / "worlds", every_s=0.0), **changes)


def test_a_world_goes_on_after_its_session_and_after_the_server(tmp_path):
    model = with_views()
    with running(create_app(model, saving(tmp_path))) as host:
        with Client(host) as client:
            token = client.expect(p.Ready).resume
            client.send(p.Config(prompt="a desert", speed=2.0))
            client.hold("KeyW")
            client.play(9)
            last = client.frames[-1][0]
        time.sleep(0.8)  # the grace period passes
        with Client(host, resume=token) as client:
            assert client.expect(p.Ready).resumed
            header = client.play(6)[0][0]
            assert header.frame > last.frame and header.flags & p.Flags.RESET and client.frames[-1][0].chunk >= last.chunk
            state = [m for m in client.messages if isinstance(m, p.WorldState)][-1]
            assert state.prompt == "a desert" and state.speed == 2.0 and not state.loading
            chunk = client.frames[-1][0].chunk
    with running(create_app(model, saving(tmp_path))) as host:
        with Client(host, resume="guessed") as client:
            assert not client.expect(p.Ready).resumed
        with Client(host, resume=token) as client:
            assert client.expect(p.Ready).resumed
            assert client.play(6)[-1][0].chunk >= chunk
            client.send(p.Bye())
            assert closed(client) == 1000
        with Client(host, resume=token) as client:
            assert not client.expect(p.Ready).resumed, "who says bye leaves nothing"


def test_a_saved_world_that_cannot_go_on_starts_anew(tmp_path, caplog):
    model = with_views()
    options = saving(tmp_path)
    state = model.start(None, "a village").state(note={"prompt": "a village", "seed": 3})
    state.tensors["memory.keys"] = state.tensors["memory.keys"][..., :4].clone()
    Autosave(options.autosave).save("a token", state)
    with running(create_app(model, options)) as host, Client(host, resume="a token") as client:
        client.play(4)
        assert [m for m in client.messages if isinstance(m, p.WorldState)][-1].seed == 3
    assert "starts anew" in caplog.text


SERVER = """
import sys
sys.path[:0] = [{here!r}]
from pathlib import Path
import uvicorn
from test_server_worlds import saving, with_views
from worldmodel.server.app import UVICORN_OPTIONS, create_app
uvicorn.run(create_app(with_views(), saving(Path({folder!r}))), host="127.0.0.1", port={port}, log_level="error", **UVICORN_OPTIONS)
"""


def test_a_world_goes_on_after_kill_minus_9(tmp_path):
    port = free_port()
    code = SERVER.format(here=str(HERE), folder=str(tmp_path), port=port)
    server = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=HERE.parent)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                client = Client(f"127.0.0.1:{port}")
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.1)
        with client:
            token = client.expect(p.Ready).resume
            client.hold("KeyD")
            client.play(17, timeout=30)
            server.kill()
            chunk = client.frames[-1][0].chunk
    finally:
        server.kill()
        server.wait()
    store, model = Autosave(AutosaveConfig(tmp_path / "worlds")), with_views()
    saved = (len(store.load(token, model).tensors["actions"]) - 1) // 4
    assert saved >= chunk - 1, "at most what was being written is lost"
    with running(create_app(model, saving(tmp_path))) as host, Client(host, resume=token) as client:
        assert client.expect(p.Ready).resumed
        assert client.play(6)[-1][0].chunk >= saved


def first_answer(client):
    client.pump(lambda c: bool(c.messages), 5)
    return client.messages[0]


# -- a line ----------------------------------------------------------------------------------------------------------------
def test_who_waits_is_told_the_place_in_line_and_comes_in_turn(model):
    with running(create_app(model, settings(worlds=1, line=2))) as host, Client(host) as walking:
        walking.play(1)
        with Client(host) as second, Client(host) as leaves:
            assert second.expect(p.Queued).position == 1
            assert leaves.expect(p.Queued).position == 2
            with Client(host) as fourth:
                assert fourth.expect(p.Error).code == "busy" and closed(fourth) == p.CloseCode.BUSY
            leaves.socket.close()
            deadline = time.monotonic() + 20  # the server notices when it next tells the place in line
            while True:
                third = Client(host)
                if isinstance(first_answer(third), p.Queued):
                    break
                assert time.monotonic() < deadline, "who left makes room"
            with third:
                walking.send(p.Bye())
                second.expect(p.Ready)
                second.play(2)
                assert third.pump(lambda c: any(isinstance(m, p.Queued) and m.position == 1 for m in c.messages), 8)
                second.send(p.Bye())
                third.expect(p.Ready)
                third.play(2)


def test_one_address_has_so_many_worlds_at_most(model):
    with running(create_app(model, settings(places_each=1))) as host, Client(host) as first:
        first.play(1)
        with Client(host) as second:
            assert "1 worlds open" in second.expect(p.Error).message and closed(second) == p.CloseCode.BUSY
