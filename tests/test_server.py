"""The served protocol with the double: a real server on a free port, a real WebSocket, frames decoded."""

import http.client
import io
import json
import time

import numpy as np
import pytest
import simplejpeg
from fake_model import FakeModel
from PIL import Image
from serving import Client, running
from websockets.exceptions import ConnectionClosed, InvalidStatus

from worldmodel.server import protocol as p
from worldmodel.server.app import create_app
from worldmodel.server.settings import ServerSettings

GRACE_S = 0.6


@pytest.fixture
def model(tmp_path):
    return FakeModel(tmp_path, size=(64, 96))


@pytest.fixture
def host(model):
    settings = ServerSettings(grace_s=GRACE_S, busy_retry_s=0.2, hello_s=1.0, upload_bytes=200_000, stall_s=0.5)
    with running(create_app(model, settings)) as host:
        yield host


def pixels(frame):
    return simplejpeg.decode_jpeg(frame[1])


def request(host, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(host, timeout=5)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def closed(client, timeout=5.0):
    """Close code of a connection that the server ends."""
    with pytest.raises(ConnectionClosed) as caught:
        client.pump(timeout=timeout)
        pytest.fail("the server kept the connection")
    return caught.value.rcvd.code if caught.value.rcvd else 1006


def test_hello_is_answered_and_the_first_frame_is_the_start_picture(host, model):
    with Client(host) as client:
        ready = client.expect(p.Ready)
        assert (ready.width, ready.height, ready.fps, ready.chunk, ready.window) == (96, 64, 16.0, 4, 3)
        assert ready.keys["KeyW"] == "dolly_in" and not ready.resumed
        header, _ = first = client.play(1)[0]
        assert header.flags & p.Flags.RESET and header.frame == 1 and (header.width, header.height) == (96, 64)
        assert abs(pixels(first).astype(int) - model.worlds[0].first_frame).mean() < 4
        assert client.socket.subprotocol == p.SUBPROTOCOL
        world = [m for m in client.messages if isinstance(m, p.WorldState)][-1]
        assert world.gallery == model.gallery[0].name and world.prompt == model.gallery[0].prompt


def test_held_keys_move_the_picture_and_idle_ones_do_not(host, model):
    with Client(host) as client:
        still = [pixels(f) for f in client.play(9)]
        assert abs(still[-1].astype(int) - still[1]).mean() < 1
        seq = client.hold("ArrowRight", "KeyW")
        client.pump(lambda c: c.frames[-1][0].action_seq == seq)
        moved = [pixels(f) for f in client.play(12)]
        assert abs(moved[-1].astype(int) - still[-1]).mean() > 8
        client.hold()
        client.play(10)
        assert client.frames[-1][0].action_seq == 2
        rest = [pixels(f) for f in client.play(4)]
        assert abs(rest[-1].astype(int) - rest[0]).mean() < 1
        numbers = [h.frame for h, _ in client.frames]
        assert numbers == list(range(1, len(numbers) + 1))


def test_a_tap_and_a_mouse_turn_reach_the_model(host, model):
    with Client(host) as client:
        client.play(6)
        client.hold("KeyW")
        client.hold()
        client.play(8)
        assert sum(a.magnitudes[0] for a in model.worlds[0].log) == pytest.approx(4.0), "one chunk of four frames"
        client.hold(look=(2.5, 0.0))
        client.play(8)
        assert sum(a.magnitudes[9] for a in model.worlds[0].log) == pytest.approx(2.0), "2.5 degrees are two units"


def test_frames_come_at_the_models_pace(host):
    with Client(host) as client:
        client.play(5)
        begun = time.monotonic()
        client.play(24)
        assert 24 / (time.monotonic() - begun) == pytest.approx(16, abs=1.6)
        stats = client.expect(p.Stats)
        assert stats.fps > 10 and stats.step_ms > 0 and stats.encode_ms > 0


def test_a_slow_model_is_spread_evenly(host, model):
    model.step_s = 0.4
    with Client(host) as client:
        client.play(17, timeout=10)
        times = []
        for _ in range(8):
            client.play(1)
            times.append(time.monotonic())
        gaps = np.diff(times)
        assert gaps.max() < 0.25 and gaps.mean() == pytest.approx(0.1, abs=0.03)


def test_no_more_than_the_window_is_sent_without_acknowledgement(host, model):
    with Client(host, ack=False) as client:
        client.expect(p.Ready)
        client.pump(timeout=0.8)
        assert [h.frame for h, _ in client.frames] == [1, 2, 3]
        client.pump(timeout=0.6)
        steps = model.worlds[0].index
        client.pump(timeout=0.6)
        assert len(client.frames) == 3 and model.worlds[0].index == steps, "the model rests while nobody looks"
        client.send(p.Ack(frame=1))
        assert client.play(1)[0][0].frame == 4
        assert not client.pump(lambda c: len(c.frames) > 4, timeout=0.4)
        client.ack = True
        client.send(p.Ack(frame=4))
        client.play(8)


def test_an_acknowledgement_of_the_future_is_refused(host):
    with Client(host, ack=False) as client:
        client.play(1)
        client.send(p.Ack(frame=1000))
        assert "before it was sent" in client.expect(p.Error).message
        assert closed(client) == p.CloseCode.BAD_MESSAGE


def test_reset_prompt_speed_and_seed(host, model):
    with Client(host) as client:
        client.play(2)
        client.send(p.Reset(gallery="snow", seed=5))
        client.pump(lambda c: len(model.worlds) == 2)
        client.pump(lambda c: c.frames[-1][0].flags & p.Flags.RESET and c.frames[-1][0].frame > 1)
        assert abs(pixels(client.frames[-1]).astype(int) - model.worlds[1].first_frame).mean() < 4
        assert model.worlds[1].seed == 5 and model.worlds[1].prompt == model.gallery[2].prompt
        client.send(p.Config(prompt="the same under a red sky", speed=2.0))
        client.hold("KeyW")
        client.play(12)
        assert model.worlds[1].prompt == "the same under a red sky" and model.worlds[1].log[-1].magnitudes[0] == 2.0
        state = [m for m in client.messages if isinstance(m, p.WorldState)][-1]
        assert (state.gallery, state.prompt, state.speed, state.seed) == ("snow", "the same under a red sky", 2.0, 5)
        client.send(p.Reset())
        client.pump(lambda c: len(model.worlds) == 3)
        assert model.worlds[2].seed == 5 and (model.worlds[2].first_frame == model.worlds[1].first_frame).all()
        client.send(p.Reset(gallery="atlantis"))
        assert client.expect(p.Error).code == "not_found"
        client.play(4)


def test_pause_stops_the_world_and_resume_goes_on(host, model):
    with Client(host) as client:
        client.play(6)
        client.send(p.Pause())
        assert client.expect(p.WorldState).paused
        client.pump(timeout=0.3)
        frames, steps = len(client.frames), model.worlds[0].index
        client.pump(timeout=0.5)
        assert len(client.frames) == frames and model.worlds[0].index == steps
        client.send(p.Resume())
        client.play(8)


def test_upload_then_walk_in_it(host, model):
    picture = io.BytesIO()
    Image.new("RGB", (200, 100), (200, 30, 40)).save(picture, "PNG")
    status, body, _ = request(host, "POST", "/api/v1/images", picture.getvalue())
    assert status == 200
    name = json.loads(body)["id"]
    with Client(host) as client:
        client.play(1)
        client.send(p.Reset(image=name, prompt="a red room"))
        client.pump(lambda c: len(model.worlds) == 2)
        assert (model.worlds[1].first_frame == (200, 30, 40)).all() and model.worlds[1].prompt == "a red room"
        client.send(p.Reset(image="guessed"))
        assert "upload it again" in client.expect(p.Error).message


def test_uploads_are_limited_and_errors_are_sentences(host):
    assert request(host, "POST", "/api/v1/images", b"x" * 300_000)[0] == 413
    status, body, _ = request(host, "POST", "/api/v1/images", b"not a picture")
    assert status == 422 and "not a JPEG" in json.loads(body)["error"]
    assert request(host, "POST", "/api/v1/images", b"", {"Origin": "http://evil.example"})[0] == 403


def test_gallery_and_thumbnails(host, model):
    entries = json.loads(request(host, "GET", "/api/v1/gallery")[1])
    assert [e["name"] for e in entries] == [e.name for e in model.gallery]
    status, body, headers = request(host, "GET", "/" + entries[0]["thumbnail"])
    assert status == 200 and headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(body)).size == (96, 96)
    for path in (
        "/api/v1/gallery/atlantis/thumbnail",
        "/api/v1/gallery/..%2f..%2fapp.py/thumbnail",
        "/wm-static/../app.py",
        "/wm-static/%2e%2e/app.py",
    ):
        assert request(host, "GET", path)[0] == 404
    assert json.loads(request(host, "GET", "/healthz")[1]) == {"ok": True, "occupied": False}


def test_a_second_visitor_is_told_politely_and_gets_in_later(host):
    with Client(host) as first:
        first.play(1)
        with Client(host) as second:
            error = second.expect(p.Error)
            assert error.code == "busy" and "try again" in error.message and error.retry_after_s == 0.2
            assert closed(second) == p.CloseCode.BUSY
        first.play(4)
    with Client(host) as third:
        assert 0.4 < third.expect(p.Error).retry_after_s <= GRACE_S + 0.5, "the place is kept for a moment"
    time.sleep(GRACE_S + 0.2)
    with Client(host) as fourth:
        assert not fourth.expect(p.Ready).resumed
        fourth.play(2)
        fourth.send(p.Bye())
        assert closed(fourth) == 1000
    with Client(host) as fifth:
        assert not fifth.expect(p.Ready).resumed, "bye frees the place at once"


def test_a_dropped_connection_goes_on_in_the_same_world(host, model):
    with Client(host) as client:
        token = client.expect(p.Ready).resume
        client.hold("ArrowRight")
        client.play(12)
        client.hold()
        client.pump(lambda c: c.frames[-1][0].action_seq == 2)
        client.play(3)
        client.hold("KeyW")
        before = client.frames[-1]
        start = client.frames[0]
    time.sleep(0.2)
    with Client(host, resume=token) as client:
        assert client.expect(p.Ready).resumed
        after = client.play(1)[0]
        assert len(model.worlds) == 1 and after[0].frame > before[0].frame
        assert abs(pixels(after).astype(int) - pixels(before)).mean() < 8 < abs(pixels(after).astype(int) - pixels(start)).mean()
        client.play(8)
        steps = len(model.worlds[0].log)
        client.play(8)
        assert all(a.is_static for a in model.worlds[0].log[steps:]), "the key is not held any more"
    time.sleep(GRACE_S + 0.3)
    with Client(host, resume=token) as client:
        assert not client.expect(p.Ready).resumed, "after the grace period the world is gone"


def test_the_same_visitor_in_a_new_window_replaces_the_old_one(host):
    with Client(host) as old:
        token = old.expect(p.Ready).resume
        old.play(2)
        with Client(host, resume=token) as new:
            assert new.expect(p.Ready).resumed
            old.ack = False  # what it reads now may be older than the end
            assert old.expect(p.End).reason == "replaced" and closed(old) == p.CloseCode.REPLACED
            new.play(6)


def test_an_idle_visitor_makes_room_for_one_who_waits(model):
    with running(create_app(model, ServerSettings(idle_s=0.5))) as host, Client(host) as idle:
        idle.play(12)
        with Client(host) as waiting:
            waiting.expect(p.Ready)
            idle.ack = False  # what it reads now may be older than the end
            assert idle.expect(p.End).reason == "idle" and closed(idle) == p.CloseCode.IDLE
            waiting.play(6)


@pytest.mark.parametrize(
    "text", ["{", '{"type":"fly"}', '{"type":"pause","x":1}', '{"type":"action","seq":1,"keys":["Tab"]}', '{"type":"hello","proto":1}']
)
def test_bad_messages_end_the_connection_not_the_server(host, text):
    with Client(host) as client:
        client.play(1)
        client.ack = False  # what it reads now may be older than the end
        client.send(text)
        error = client.expect(p.Error)
        assert error.code == "bad_message" and error.message.startswith("Bad message")
        assert closed(client) == p.CloseCode.BAD_MESSAGE
    assert request(host, "GET", "/healthz")[0] == 200


def test_strange_openings(host):
    for opening in ('{"type":"hello","proto":9}', '{"type":"hello","proto":0,"shape":"round"}'):
        with Client(host, hello=False) as client:
            client.send(opening)
            error = client.expect(p.Error)
            assert error.code == "version" and "speaks protocol 1" in error.message and closed(client) == p.CloseCode.VERSION
    for opening in ('{"type":"pause"}', '{"type":"hello"}', "x"):
        with Client(host, hello=False) as client:
            client.send(opening)
            assert client.expect(p.Error).code == "bad_message" and closed(client) == p.CloseCode.BAD_MESSAGE
    with Client(host, hello=False) as client:
        client.socket.send(b"\0\1")
        assert "JSON text" in client.expect(p.Error).message
    with Client(host, hello=False) as client:
        assert closed(client) == p.CloseCode.BAD_MESSAGE, "silence is not waited for for ever"
    with Client(host, hello=False) as client:
        client.send("x" * 100_000)
        assert closed(client) == 1009
    with Client(host) as client:
        client.play(3)


def test_a_flood_of_messages_is_cut_off(model):
    with running(create_app(model, ServerSettings(messages_per_s=20))) as host, Client(host) as client:
        client.play(1)
        for i in range(60):
            client.send(p.Ping(t=i))
        assert client.expect(p.Error).code == "rate" and closed(client) == p.CloseCode.BUSY


def test_other_sites_pages_are_refused(host):
    for origin in ("http://evil.example", "http://127.0.0.1:1", "null"):
        with pytest.raises(InvalidStatus) as refused:
            Client(host, origin=origin)
        assert refused.value.response.status_code == 403
    with Client(host, origin=f"http://{host}") as client:
        client.expect(p.Ready)


def test_a_failing_model_ends_the_walk_and_the_next_visitor_is_fine(host, model, caplog):
    with Client(host) as client:
        client.play(4)
        model.fail_next = True
        error = client.expect(p.Error)
        assert error.code == "engine" and "told to fail" not in error.message
        assert closed(client) == p.CloseCode.ENGINE
    assert "told to fail" in caplog.text
    with Client(host) as client:
        assert not client.expect(p.Ready).resumed
        client.play(6)


def test_the_event_loop_stays_free_while_the_model_works(host, model):
    model.step_s = 0.5
    with Client(host) as client:
        client.play(3)
        delays = []
        for i in range(20):
            sent = time.monotonic()
            client.send(p.Ping(t=i))
            client.expect(p.Pong)
            delays.append(time.monotonic() - sent)
        assert sorted(delays)[10] < 0.1


def test_a_still_world_rests_until_a_key_is_held(model):
    model.static_scenes = True
    with running(create_app(model, ServerSettings(rest_when_still=True))) as host, Client(host) as client:
        client.play(1)
        client.pump(timeout=0.7)
        assert len(client.frames) == 1
        client.hold("KeyW")
        client.play(6)
        client.hold()
        client.pump(timeout=1.0)  # what was under way comes to its end
        seen = len(client.frames)
        client.pump(timeout=0.7)
        assert len(client.frames) == seen
