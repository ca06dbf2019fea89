"""Messages, frames, held keys and pacing: everything of the server that needs no socket."""

import math
import struct

import pytest

from worldmodel.actions import ACTION_NAMES, ROTATION_UNIT_DEG
from worldmodel.server import protocol as p
from worldmodel.server.controls import MAX_LOOK, Controls
from worldmodel.server.pacing import Credit, PlayoutClock, StepTime


def magnitudes(action):
    return {name: round(m, 6) for name, m in zip(ACTION_NAMES, action.magnitudes, strict=True) if m}


@pytest.mark.parametrize(
    "message",
    [
        p.Hello(proto=1, resume="token", window=2),
        p.ActionMessage(seq=17, keys=["KeyW", "ArrowLeft"], look=(1.5, -2.0)),
        p.Hello(proto=1, ticket="t", mode="lockstep", codec="png", frame=9, image="x", seed=7),
        p.Step(seq=1, actions=[[0.0] * 12 + [1.0]]),
        p.Ack(frame=1041),
        p.Reset(gallery="meadow", prompt="a meadow", seed=7),
        p.Config(speed=1.5, quality=70, prompt=""),
        p.Reset(world="id"),
        p.Rewind(at=3),
        p.Fork(),
        p.Fork(at=0),
        p.Switch(branch=2),
        p.Discard(branch=2),
        p.Save(kind="video"),
        p.Ask(about="memory"),
        p.Pause(),
        p.Resume(),
        p.Ping(t=1.0),
        p.Bye(),
    ],
)
def test_client_messages_survive_the_wire(message):
    assert p.parse_client(message.model_dump_json()) == message


@pytest.mark.parametrize(
    "message",
    [
        p.Ready(session="s", resume="r", resumed=False, fps=16.0, width=128, height=96, chunk=4, window=3, keys={"KeyW": "dolly_in"}),
        p.WorldState(gallery="meadow", image=None, prompt="", seed=0, speed=1.0, paused=False),
        p.ChunkInfo(chunk=3, action_seq=17, frames=4, made_ms=180.5, timings={"denoise": 120.0}, pose=[0.0] * 12),
        p.Stats(fps=16.0, step_ms=120.0, encode_ms=0.3, latency_ms=20.0, quality=85, dropped=0),
        p.Error(code="busy", message="Someone else is walking here.", retry_after_s=4.0),
        p.Queued(position=1, of=2, eta_s=30.0),
        p.Timeline(branch=1, at=1, first=0, moments=[p.Moment(at=1, pose=[0.5] * 12, thumbnail="api/v1/thumbnails/k/1")]),
        p.Memory(at=1, tokens=64, bytes=1024, tiles=[p.Tile(latent=1, at=1, factor=4, tokens=4, pose=[0.0] * 12)]),
        p.Saved(kind="world", url="api/v1/files/k", name="world.world", bytes=9, expires_in_s=60.0),
        p.End(reason="idle"),
        p.Pong(t=1.0),
    ],
)
def test_server_messages_survive_the_wire(message):
    assert p.parse_server(message.model_dump_json()) == message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Invalid JSON"),
        ("[]", "Bad message"),
        ("{}", "type"),
        ('{"type": "fly"}', "fly"),
        ('{"type": "hello", "proto": 2}', "protocol 1"),
        ('{"type": "hello", "proto": 2, "shape": "round"}', "protocol 1"),
        ('{"type": "hello", "proto": "1"}', "proto"),
        ('{"type": "hello", "proto": 1, "gallery": "a", "image": "b"}', "give one of"),
        ('{"type": "step", "seq": 1, "actions": [[1.0]]}', "actions"),
        ('{"type": "step", "seq": 1, "actions": [[-1, 0,0,0,0,0,0,0,0,0,0,0,0]]}', "actions"),
        ('{"type": "hello", "proto": 1, "admin": true}', "admin"),
        ('{"type": "action", "seq": 1}', "keys"),
        ('{"type": "action", "seq": -1, "keys": []}', "seq"),
        ('{"type": "action", "seq": 1, "keys": "KeyW"}', "keys"),
        ('{"type": "action", "seq": 1, "keys": ["KeyQ"]}', "unknown key 'KeyQ'"),
        ('{"type": "action", "seq": 1, "keys": [], "look": [1]}', "look"),
        ('{"type": "action", "seq": 1, "keys": [], "look": [NaN, 0]}', "look"),
        ('{"type": "ack", "frame": 1.5}', "frame"),
        ('{"type": "ack", "frame": 99999999999}', "frame"),
        ('{"type": "reset", "gallery": "a", "image": "b"}', "give one of"),
        ('{"type": "reset", "world": "a", "image": "b"}', "give one of"),
        ('{"type": "reset", "world": "a", "seed": 1}', "its own prompt and seed"),
        ('{"type": "rewind", "at": -1}', "at"),
        ('{"type": "save", "kind": "disk"}', "kind"),
        ('{"type": "config", "speed": 9}', "speed"),
        ('{"type": "config", "prompt": "%s"}' % ("x" * 1001), "prompt"),
        ('{"type": "ping", "t": "now"}', "t"),
    ],
)
def test_bad_messages_are_refused_with_a_reason(text, says):
    with pytest.raises(p.ProtocolError, match=says):
        p.parse_client(text)


def test_frame_layout_is_the_documented_one():
    header = p.FrameHeader(frame=7, action_seq=3, chunk=2, t_ms=1234, width=256, height=128, flags=p.Flags.KEY | p.Flags.RESET)
    data = p.pack_frame(header, b"jpeg")
    assert data[:4] == b"WMF1" and data[4:8] == bytes([1, 1, 5, 32]) and data[32:] == b"jpeg"
    assert struct.unpack_from("<IIIIHHI", data, 8) == (7, 3, 2, 1234, 256, 128, 4)
    assert p.unpack_frame(data) == (header, b"jpeg")


@pytest.mark.parametrize(
    "damage", [lambda d: d[:31], lambda d: d[:-1], lambda d: d + b"x", lambda d: b"JUNK" + d[4:], lambda d: d[:5] + b"\x09" + d[6:]]
)
def test_damaged_frames_are_refused(damage):
    data = p.pack_frame(p.FrameHeader(1, 0, 0, 0, 8, 8), b"jpeg")
    with pytest.raises(p.ProtocolError):
        p.unpack_frame(damage(data))
    with pytest.raises(p.ProtocolError, match="out of range"):
        p.pack_frame(p.FrameHeader(1, 0, 0, 0, 70000, 8), b"")


def test_held_keys_act_until_released_and_speed_scales_them():
    controls = Controls()
    controls.update(1, ["KeyW", "ArrowLeft"])
    for _ in range(2):
        actions = controls.latch(4, speed=1.5)
        assert len(actions) == 4 and magnitudes(actions[0]) == {"dolly_in": 1.5, "pan_left": 1.5}
    controls.update(2, [])
    assert controls.latch(4)[0].is_static


def test_a_tap_between_two_chunks_counts_for_one():
    controls = Controls()
    controls.update(1, ["KeyW"])
    controls.update(2, [])
    assert magnitudes(controls.latch(4)[0]) == {"dolly_in": 1.0}
    assert controls.latch(4)[0].is_static


def test_a_tap_does_not_cancel_what_is_held_after_it():
    controls = Controls()
    controls.update(1, ["KeyA"])
    controls.update(2, ["KeyD"])
    assert magnitudes(controls.latch(4)[0]) == {"truck_right": 1.0}
    controls.update(3, [])
    controls.update(4, ["KeyD"])
    controls.update(5, ["KeyA"])
    controls.update(6, [])
    assert magnitudes(controls.latch(4)[0]) == {"truck_left": 1.0}, "of two opposite taps the later one wins"


def test_release_forgets_taps_and_look():
    controls = Controls()
    controls.update(1, ["KeyW"], (5.0, 5.0))
    controls.release()
    assert controls.latch(4)[0].is_static


def test_mouse_look_is_spread_over_the_chunk_and_capped():
    controls = Controls()
    controls.update(1, ["KeyW"], (3.0, 0.0))
    controls.update(2, ["KeyW"], (2.0, -2.5))
    found = magnitudes(controls.latch(4)[0])
    assert found == {"dolly_in": 1.0, "pan_right": 5.0 / 4 / ROTATION_UNIT_DEG, "tilt_up": 2.5 / 4 / ROTATION_UNIT_DEG}
    assert magnitudes(controls.latch(4)[0]) == {"dolly_in": 1.0}
    controls.update(3, [], (-300.0, 0.0))
    turned = [magnitudes(controls.latch(4)[0]).get("pan_left", 0.0) for _ in range(3)]
    assert turned == [MAX_LOOK, MAX_LOOK, 0.0], "a wild flick turns for two chunks, no longer"


def test_look_adds_to_the_keys_speed():
    controls = Controls()
    controls.update(1, ["ArrowRight"], (-5.0, 0.0))
    assert controls.latch(4)[0].is_static, "5 degrees left against 4 frames of 1.25 right"


def test_credit_window_is_cumulative():
    credit = Credit(3)
    for frame in (1, 2, 3):
        assert credit.available
        credit.sent(frame, now=frame / 10)
    assert not credit.available and not credit.stalled(1.0, 1.0) and credit.stalled(1.2, 1.0)
    assert credit.acknowledge(2, now=1.0) == pytest.approx(0.8)
    assert credit.available and credit.acknowledge(2, now=2.0) is None
    credit.sent(4, 2.0)
    credit.sent(5, 2.0)
    assert not credit.available


def test_step_time_forgets_hiccups():
    estimate = StepTime()
    assert estimate.typical == estimate.cautious == 0.0
    estimate.update(3.0)  # the first step loads and compiles
    assert estimate.typical == estimate.cautious == 3.0
    estimate.update(0.1)
    assert estimate.typical == estimate.cautious == 0.1
    for seconds in (0.11, 0.1, 0.2, 0.1, 0.21, 0.1, 0.1):
        estimate.update(seconds)
    assert estimate.typical == 0.1 and estimate.cautious == 0.2


def test_playout_clock_paces_and_starts_the_next_step_just_in_time():
    clock = PlayoutClock(16)
    clock.skip_to(10.0)
    assert clock.due == pytest.approx(10.0)
    clock.tick()
    assert clock.due == pytest.approx(10.0625)
    assert clock.start_by(queued=3, step_s=0.1) == pytest.approx(10.0 + 4 * 0.0625 - 0.1)
    clock.restart(11.0)
    assert clock.due == pytest.approx(11.0), "after the queue ran dry the next frame is due at once"
    clock.set_pace(0.5, 4)
    assert clock.period == pytest.approx(0.125), "a slow model's frames are spread evenly"
    clock.set_pace(0.1, 4)
    assert math.isclose(clock.period, 1 / 16)
