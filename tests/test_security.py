"""Every refusal, against the running server: who may not come in, and what is too much."""

import io
import json
import struct
import time
import zlib
from http.client import HTTPConnection

import pytest
from fake_model import FakeModel
from PIL import Image
from serving import Client, running
from websockets.exceptions import ConnectionClosed, InvalidStatus

from worldmodel.client import Denied, connect
from worldmodel.server import protocol as p
from worldmodel.server.app import create_app
from worldmodel.server.settings import ServerSettings
from worldmodel.server.tickets import Tickets

TOKEN = "sixteen characters or more"


@pytest.fixture
def model(tmp_path):
    return FakeModel(tmp_path, size=(32, 48))


@pytest.fixture
def host(model):
    settings = ServerSettings(worlds=2, upload_bytes=200_000, messages_per_s=30, allowed_origins=("https://ok.example",))
    with running(create_app(model, settings)) as host:
        yield host


def ask(host, method, path, body=None, **headers):
    connection = HTTPConnection(host, timeout=10)
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    status, data = answer.status, answer.read()
    connection.close()
    return status, data


def closed(client):
    with pytest.raises(ConnectionClosed) as caught:
        client.pump(timeout=5.0)
        pytest.fail("the server kept the connection")
    return caught.value.rcvd.code


def png(width, height):
    """A PNG of few bytes whatever its size, all of one colour."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# -- who ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:1", "https://ok.example.evil.example", "null", "file://"])
def test_other_sites_pages_are_refused_before_the_socket_opens(host, origin):
    with pytest.raises(InvalidStatus) as refused:
        Client(host, origin=origin)
    assert refused.value.response.status_code == 403
    for path in ("/api/v1/images", "/api/v1/worlds", "/api/v1/sessions"):
        assert ask(host, "POST", path, b"x", Origin=origin)[0] == 403


def test_own_and_allowed_pages_come_in(host):
    for origin in (f"http://{host}", "https://ok.example"):
        with Client(host, origin=origin) as client:
            client.expect(p.Ready)
            client.send(p.Bye())


def test_with_an_access_token_a_ticket_is_good_once(model):
    with running(create_app(model, ServerSettings(access_token=TOKEN))) as host:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}):
            for path in ("/api/v1/sessions", "/api/v1/images", "/api/v1/worlds"):
                assert ask(host, "POST", path, b"", **headers)[0] == 401
            assert ask(host, "GET", "/metrics", **headers)[0] == 401
        status, body = ask(host, "POST", "/api/v1/sessions", b"", Authorization=f"Bearer {TOKEN}")
        ticket = json.loads(body)["ticket"]
        assert status == 200 and json.loads(body)["expires_in_s"] == 60
        for bad in (None, "guessed", TOKEN):
            with Client(host, hello=False) as client:
                client.send(p.Hello(proto=1, ticket=bad))
                assert client.expect(p.Error).code == "denied" and closed(client) == p.CloseCode.DENIED
        with Client(host, hello=False) as client:
            client.send(p.Hello(proto=1, ticket=ticket))
            token = client.expect(p.Ready).resume
        with Client(host, hello=False) as client:
            client.send(p.Hello(proto=1, ticket=ticket, resume=token))
            assert client.expect(p.Error).code == "denied", "not a second time, not even with the session's own token"
        with connect(host, access_token=TOKEN, resume=token) as world:
            assert world.ready.resumed and len(world.step("w*4")) == 4
        for wrong in (None, "not this one, surely"):
            with pytest.raises(Denied, match="access token"):
                connect(host, access_token=wrong)
        assert len(model.worlds) == 1


def test_tickets_expire_and_are_bounded():
    tickets = Tickets(seconds=0.05, limit=2)
    first, second, third = (tickets.issue() for _ in range(3))
    assert not tickets.take(first) and tickets.take(second) and not tickets.take(second)
    time.sleep(0.06)
    assert not tickets.take(third) and not tickets.take(None)


def test_a_short_access_token_is_refused():
    with pytest.raises(ValueError, match="16 characters"):
        ServerSettings(access_token="secret")


# -- what --------------------------------------------------------------------------------------------------------------------
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pictures_are_judged_by_their_header_not_by_their_bytes(host):
    bomb = png(12000, 12000)
    assert len(bomb) < 100_000
    status, body = ask(host, "POST", "/api/v1/images", bomb)
    assert status == 422 and "too large" in json.loads(body)["error"]
    status, body = ask(host, "POST", "/api/v1/images", png(9000, 20))
    assert status == 422 and "8192" in json.loads(body)["error"]
    status, body = ask(host, "POST", "/api/v1/images", png(64, 48)[:-30])
    assert status == 422 and "damaged" in json.loads(body)["error"]
    frames = [Image.new("RGB", (64, 48), c) for c in ("red", "blue")]
    out = io.BytesIO()
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    status, body = ask(host, "POST", "/api/v1/images", out.getvalue())
    assert status == 422 and "animation" in json.loads(body)["error"]
    assert ask(host, "POST", "/api/v1/images", b"<svg/>")[0] == 422
    assert ask(host, "POST", "/api/v1/images", bytes(200_001))[0] == 413
    assert ask(host, "POST", "/api/v1/images", png(64, 48))[0] == 200


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (json.dumps({"type": "config", "prompt": "x" * 1001}), "prompt"),
        (json.dumps({"type": "reset", "prompt": "x" * 1001}), "prompt"),
        (json.dumps({"type": "action", "seq": 1, "keys": ["MetaLeft"]}), "unknown key 'MetaLeft'"),
        (json.dumps({"type": "action", "seq": 1, "keys": ["KeyW"] * 100}), "keys"),
        (json.dumps({"type": "action", "seq": 1, "keys": [], "admin": True}), "admin"),
        (json.dumps({"type": "ack", "frame": 4_000_000_000}), "before it was sent"),
        (json.dumps({"type": "eval"}), "eval"),
        ("[" * 5000, "Bad message"),
    ],
)
def test_what_is_not_in_the_protocol_ends_the_connection(host, text, says):
    with Client(host) as client:
        client.expect(p.Ready)
        client.ack = False  # the connection may be closed by then
        client.send(text)
        error = client.expect(p.Error)
        assert error.code == "bad_message" and says in error.message and closed(client) == p.CloseCode.BAD_MESSAGE


def test_a_prompt_of_full_length_passes(host, model):
    with Client(host) as client:
        client.send(p.Config(prompt="x" * 1000))
        assert client.pump(lambda c: any(isinstance(m, p.WorldState) and len(m.prompt) == 1000 for m in c.messages))


@pytest.mark.parametrize("early", [True, False])
def test_large_messages_close_the_connection(host, early):
    with Client(host, hello=not early) as client:
        if not early:
            client.expect(p.Ready)
        client.ack = False
        client.send(json.dumps({"type": "config", "prompt": "x" * 70_000}))
        assert closed(client) == 1009


@pytest.mark.parametrize("message", [p.Ping(t=0.0), p.Ack(frame=0), p.ActionMessage(seq=1, keys=[])])
def test_floods_are_cut_off_and_the_server_goes_on(host, message):
    with Client(host) as client:
        client.expect(p.Ready)
        client.ack = False
        for _ in range(200):
            try:
                client.send(message)
            except ConnectionClosed:
                break
        assert client.expect(p.Error).code == "rate" and closed(client) == p.CloseCode.BUSY
    assert ask(host, "GET", "/readyz")[0] == 200
