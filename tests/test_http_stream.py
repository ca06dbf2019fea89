"""The stream over plain HTTP: the same conversation without a WebSocket."""

import json
import time
from http.client import HTTPConnection

import pytest
import simplejpeg
from fake_model import FakeModel
from serving import running

from worldmodel.server import protocol as p
from worldmodel.server.app import create_app
from worldmodel.server.http_stream import FRAME, RECORD
from worldmodel.server.settings import ServerSettings


class Stream:
    """One long answer, read record by record, and POSTs."""

    def __init__(self, host, hello):
        self.host, self.connection = host, HTTPConnection(host, timeout=10)
        self.connection.request("POST", "/api/v1/stream/http", hello if isinstance(hello, str) else hello.model_dump_json())
        self.answer = self.connection.getresponse()
        self.messages, self.frames = [], []

    def read(self):
        """The next record: a dict or a frame; None at the end."""
        head = self.answer.read(RECORD.size)
        if not head:
            return None
        kind, length = RECORD.unpack(head)
        data = self.answer.read(length)
        if kind == FRAME:
            self.frames.append(p.unpack_frame(data))
            return self.frames[-1]
        self.messages.append(json.loads(data))
        return self.messages[-1]

    def until(self, wanted, timeout=10.0):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            record = self.read()
            assert record is not None, f"the stream ended: {self.messages[-2:]}"
            if isinstance(record, tuple):
                self.say(p.Ack(frame=record[0].frame))
            if wanted(record):
                return record
        raise AssertionError("it did not come")

    def say(self, *messages):
        connection = HTTPConnection(self.host, timeout=10)
        body = "\n".join(m if isinstance(m, str) else m.model_dump_json() for m in messages)
        connection.request("POST", f"/api/v1/stream/http/{self.messages[0]['channel']}", body)
        status = connection.getresponse().status
        connection.close()
        return status


@pytest.fixture
def model(tmp_path):
    return FakeModel(tmp_path, size=(32, 48))


@pytest.fixture
def host(model):
    with running(create_app(model, ServerSettings(grace_s=0.3, messages_per_s=200))) as host:
        yield host


def test_the_same_world_over_http(host, model):
    stream = Stream(host, p.Hello(proto=p.PROTOCOL))
    assert stream.answer.status == 200 and stream.answer.headers["Cache-Control"] == "no-store"
    assert stream.read()["type"] == "channel"
    ready = stream.until(lambda r: isinstance(r, dict) and r["type"] == "ready")
    header, picture = stream.until(lambda r: isinstance(r, tuple))
    assert header.flags & p.Flags.RESET and simplejpeg.decode_jpeg(picture).shape == (32, 48, 3)
    assert stream.say(p.ActionMessage(seq=1, keys=["KeyW"]), p.Ping(t=3.0)) == 204
    assert stream.until(lambda r: isinstance(r, dict) and r["type"] == "pong")["t"] == 3.0
    stream.until(lambda r: isinstance(r, tuple) and r[0].action_seq == 1)
    assert any(a.magnitudes[0] for a in model.worlds[0].log)
    stream.connection.close()  # and back again
    again = Stream(host, p.Hello(proto=p.PROTOCOL, resume=ready["resume"]))
    assert again.read() and again.until(lambda r: isinstance(r, dict) and r["type"] == "ready")["resumed"]
    assert again.say(p.Bye()) == 204
    while (record := again.read()) is not None:
        last = record
    assert last == {"type": "closed", "code": 1000}
    assert again.say(p.Ping(t=1.0)) == 404


def test_who_leaves_without_a_word_leaves_a_place(host, model):
    Stream(host, p.Hello(proto=p.PROTOCOL)).connection.close()
    deadline = time.monotonic() + 10
    while True:
        stream = Stream(host, p.Hello(proto=p.PROTOCOL))
        stream.read()
        if stream.read()["type"] == "ready":
            break
        assert time.monotonic() < deadline, "the place of one who is gone was not freed"
        time.sleep(0.2)
    stream.connection.close()


def test_refusals(host, model):
    stream = Stream(host, '{"type":"fly"}')
    assert [stream.read()["type"] for _ in range(3)] == ["channel", "error", "closed"] and stream.read() is None
    assert stream.messages[-1]["code"] == p.CloseCode.BAD_MESSAGE
    stream = Stream(host, p.Hello(proto=p.PROTOCOL))
    stream.read()
    assert stream.say(*["{}"] * 200) == 429 and stream.say("x" * 70_000) == 413 and stream.say(b"\xff\xfe".decode("latin1")) == 204
    while (record := stream.read()) is not None:
        last = record
    assert last["code"] == p.CloseCode.BAD_MESSAGE
    with running(create_app(model, ServerSettings(access_token="sixteen characters or more"))) as guarded:
        stream = Stream(guarded, p.Hello(proto=p.PROTOCOL))
        assert [stream.read()["type"] for _ in range(3)] == ["channel", "error", "closed"] and stream.messages[1]["code"] == "denied"
    for path in ("/api/v1/stream/http", "/api/v1/stream/http/x"):
        connection = HTTPConnection(host, timeout=10)
        connection.request("POST", path, "{}", {"Origin": "http://evil.example"})
        assert connection.getresponse().status == 403
