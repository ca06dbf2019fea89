"""Going back, branching, files and the timeline, over the wire of a running server."""

import io
import json
from http.client import HTTPConnection

import av
import numpy as np
import pytest
import simplejpeg
from fake_model import FakeModel
from PIL import Image
from serving import Client, running
from viewing import with_views

from worldmodel.server import protocol as p
from worldmodel.server.app import create_app
from worldmodel.server.settings import ServerSettings


def ask(host, method, path, body=None):
    connection = HTTPConnection(host, timeout=20)
    connection.request(method, f"/{path}", body)
    answer = connection.getresponse()
    status, data, headers = answer.status, answer.read(), answer.headers
    connection.close()
    return status, data, headers


@pytest.fixture
def model(tmp_path):
    return FakeModel(tmp_path, size=(64, 96))


@pytest.fixture
def host(model):
    with running(create_app(model, ServerSettings(history=40, branches=2, stall_s=5.0))) as host:
        yield host


def pixels(frame):
    return simplejpeg.decode_jpeg(frame[1]).astype(int)


def shown_again(client):
    """The first picture after going elsewhere."""
    seen = len(client.frames)
    assert client.pump(lambda c: any(h.flags & p.Flags.RESET for h, _ in c.frames[seen:]), 10), "nothing was shown again"
    return next(frame for frame in client.frames[seen:] if frame[0].flags & p.Flags.RESET)


def walk(client, key, chunks):
    """Make so many chunks under `key`, then stand still; the moment that it leads to."""
    client.hold(key)
    seen = len(client.messages)
    client.pump(lambda c: sum(isinstance(m, p.ChunkInfo) for m in c.messages[seen:]) >= chunks, 20)
    client.hold()
    client.send(p.Ask(about="timeline"))
    return client.expect(p.Timeline)


def test_rewind_shows_that_moment_and_forgets_what_came_after(host, model):
    with Client(host) as client:
        client.play(2)
        line = walk(client, "ArrowRight", 6)
        assert line.first == 0 and [m.at for m in line.moments] == list(range(line.at + 1)) and line.at >= 6
        client.send(p.Rewind(at=3))
        header, _ = frame = shown_again(client)
        assert header.chunk == 2
        line = [m for m in client.messages if isinstance(m, p.Timeline)][-1]
        assert line.at == 3 and len(line.moments) == 4
        world = model.worlds[0]
        small = simplejpeg.decode_jpeg(ask(host, "GET", line.moments[3].thumbnail)[1]).astype(int)
        assert small.shape == (64, 96, 3) and abs(small - pixels(frame)).mean() < 6, "the thumbnail shows it"
        client.pump(lambda c: c.frames[-1][0].chunk >= 4, 5)
        assert world.index >= 4 and len({m.chunk for m in client.messages if isinstance(m, p.ChunkInfo)}) < len(
            [m for m in client.messages if isinstance(m, p.ChunkInfo)]
        ), "chunk numbers are used again"
        client.send(p.Rewind(at=10_000))
        error = client.expect(p.Error)
        assert error.code == "world" and "no further" in error.message
        client.play(3)


def test_who_pauses_sees_where_they_have_come_to(host):
    with Client(host) as client:
        client.play(2)
        walk(client, "ArrowRight", 4)
        client.send(p.Pause())
        client.expect(p.WorldState)
        client.send(p.Rewind(at=1))
        gone_back = shown_again(client)
        assert gone_back[0].chunk == 0
        assert not client.pump(lambda c: c.frames[-1] is not gone_back, 0.5), "and nothing more"
        token = next(m for m in client.messages if isinstance(m, p.Ready)).resume
    with Client(host, resume=token) as client:
        assert abs(pixels(shown_again(client)) - pixels(gone_back)).mean() < 1, "after coming back too"


def test_branches_are_kept_changed_to_and_discarded(host):
    with Client(host) as client:
        client.play(2)
        walk(client, "ArrowRight", 5)
        first = [m for m in client.messages if isinstance(m, p.WorldState)][-1].branch
        client.send(p.Fork(at=2))
        state = client.expect(p.WorldState)
        assert state.branch != first
        assert [(b.branch, b.parent, b.at) for b in state.branches] == [(first, None, 0), (state.branch, first, 2)]
        forked = pixels(shown_again(client))
        walk(client, "ArrowLeft", 2)
        client.send(p.Switch(branch=first))
        assert client.expect(p.WorldState).branch == first
        back = shown_again(client)
        line = [m for m in client.messages if isinstance(m, p.Timeline)][-1]
        assert line.branch == first and line.at >= 5 and abs(pixels(back) - forked).mean() > 8, "it is where it was left"
        client.send(p.Fork())
        client.expect(p.WorldState)
        shown_again(client)
        client.send(p.Fork())
        error = client.expect(p.Error)
        assert error.code == "world" and "at most 2 branches" in error.message
        client.send(p.Discard(branch=first))
        assert first not in {b.branch for b in client.expect(p.WorldState).branches}
        client.send(p.Switch(branch=first))
        assert "no branch" in client.expect(p.Error).message
        client.send(p.Reset())
        shown_again(client)
        state = [m for m in client.messages if isinstance(m, p.WorldState)][-1]
        assert [b.branch for b in state.branches] == [state.branch], "a new world has no branches"


def test_a_video_of_what_was_seen(host):
    with Client(host) as client:
        line = walk(client, "ArrowRight", 6)
        client.send(p.Save(kind="video"))
        saved = client.expect(p.Saved, timeout=20)
        status, body, headers = ask(host, "GET", saved.url)
        assert status == 200 and len(body) == saved.bytes and headers["Content-Type"] == "video/mp4" and saved.expires_in_s > 60
        assert 'filename="world.mp4"' in headers["Content-Disposition"]
        with av.open(io.BytesIO(body)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) >= 1 + 4 * line.at - 4 and frames[0].shape == (320, 480, 3)
        assert abs(frames[-1].astype(int) - frames[0]).mean() > 5
        assert ask(host, "GET", saved.url[:-1] + "x")[0] == 404


def test_thumbnails_need_the_sessions_key(host):
    with Client(host) as client:
        line = walk(client, "KeyW", 1)
        address = line.moments[0].thumbnail
        assert ask(host, "GET", address)[0] == 200
        base, key, number = address.rsplit("/", 2)
        assert ask(host, "GET", f"{base}/{key}x/{number}")[0] == 404 and ask(host, "GET", f"{base}/{key}/9999")[0] == 404
        assert ask(host, "GET", f"{base}/%c3%bc/1")[0] == 404 and ask(host, "GET", f"{base}/{key}/..%2f1")[0] in (404, 422)
        client.send(p.Bye())


def test_a_file_is_gone_after_its_time(model):
    with running(create_app(model, ServerSettings(file_s=0.5))) as host, Client(host) as client:
        walk(client, "KeyW", 1)
        client.send(p.Save(kind="video"))
        saved = client.expect(p.Saved, timeout=20)
        client.pump(timeout=0.7)
        assert ask(host, "GET", saved.url)[0] == 404


def test_a_world_is_saved_opened_in_python_and_loaded_again(tmp_path):
    model = with_views()
    settings = ServerSettings(worlds=2, world_bytes=30_000_000, grace_s=0.2)
    with running(create_app(model, settings)) as host, Client(host, hello=False) as client:
        client.send(p.Hello(proto=p.PROTOCOL, codec="png"))
        client.send(p.Config(prompt="a desert"))
        walk(client, "KeyW", 4)
        client.send(p.Ask(about="memory"))
        memory = client.expect(p.Memory)
        assert memory.tiles[0].latent == memory.tiles[0].at == 0 and memory.tokens == sum(t.tokens for t in memory.tiles)
        assert {t.factor for t in memory.tiles} >= {1} and len(memory.tiles[-1].pose) == 12
        client.send(p.Save(kind="world"))
        saved = client.expect(p.Saved, timeout=20)
        status, body, _ = ask(host, "GET", saved.url)
        assert status == 200 and len(body) == saved.bytes
        (tmp_path / "a.world").write_bytes(body)
        here = model.load_world(tmp_path / "a.world")
        assert here.prompt == "a desert" and here.index >= 4

        status, answer, _ = ask(host, "POST", "api/v1/worlds", body)
        assert status == 200
        client.send(p.Reset(world=json.loads(answer)["id"]))
        header, _ = shown = shown_again(client)
        picture = np.asarray(Image.open(io.BytesIO(shown[1])))
        assert header.chunk == here.index - 1 and (picture == here.last_frame).all(), "it goes on where it was saved"
        line = [m for m in client.messages if isinstance(m, p.Timeline)][-1]
        assert line.at == here.index and len(line.moments) == here.index + 1
        assert line.moments[-1].thumbnail and line.moments[0].thumbnail is None
        state = [m for m in client.messages if isinstance(m, p.WorldState)][-1]
        assert state.prompt == "a desert"
        client.send(p.Rewind(at=1))
        assert shown_again(client)[0].chunk == 0

        for bad in (b"", b"not a world", body[:-1000], body.replace(b"format", b"farmat", 1)):
            status, answer, _ = ask(host, "POST", "api/v1/worlds", bad)
            assert status == 422 and "The file" in json.loads(answer)["error"], bad[:20]
        assert ask(host, "POST", "api/v1/worlds", bytes(30_000_001))[0] == 413
        client.send(p.Reset(world="nonsense"))
        assert client.expect(p.Error).code == "not_found"
        client.play(3)


def test_a_rewound_world_goes_on_as_it_would_have(tmp_path):
    """Over the wire in lockstep: the same actions after a rewind give the same pixels."""
    model = with_views()
    actions = [[0.5 if i == 0 else 0.0 for i in range(13)]] * model.chunk_frames

    with running(create_app(model, ServerSettings())) as host, Client(host, hello=False) as client:
        client.send(p.Hello(proto=p.PROTOCOL, mode="lockstep", codec="png"))
        client.play(1, timeout=20)
        for seq in (1, 2, 3):
            client.send(p.Step(seq=seq, actions=actions))
        first = client.play(3 * model.chunk_frames, timeout=30)
        client.send(p.Rewind(at=1))
        shown_again(client)
        client.send(p.Step(seq=4, actions=actions))
        again = client.play(model.chunk_frames, timeout=20)
        n = model.chunk_frames
        assert [f[1] for f in again] == [f[1] for f in first[n : 2 * n]]
        assert np.all([f[0].chunk == 1 for f in again])
