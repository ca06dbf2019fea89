"""Several servers behind one address: who is sent where, and, where Ray is installed, that a replica that dies comes back with worlds."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from fake_model import FakeModel
from serving import free_port, running

from worldmodel.autosave import AutosaveConfig
from worldmodel.client import ClientError, Denied, connect
from worldmodel.server.app import create_app
from worldmodel.server.config import ServeConfig
from worldmodel.server.entrance import Vacancy, entrance
from worldmodel.server.settings import ServerSettings

HERE = Path(__file__).parent
TOKEN = "sixteen letters or more"


class Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


def get(host, path="/", method="GET"):
    try:
        with urllib.request.build_opener(Stay).open(urllib.request.Request(f"http://{host}{path}", method=method), timeout=10) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


@pytest.fixture
def street(tmp_path):
    """Two servers of the double and the entrance before them, in one process: host, and their lobbies."""
    houses = [create_app(FakeModel(tmp_path, size=(32, 48), step_s=0.01), ServerSettings(worlds=1, line=1)) for _ in range(2)]

    async def ask(i):
        return Vacancy.of(houses[i].state.lobby)

    app = entrance(2, ask)
    for i, house in enumerate(houses):
        app.mount(f"/r/{i}", house)
    with running(app) as host:
        yield host, [house.state.lobby for house in houses]


def test_newcomers_spread_and_each_visit_stays_where_it_began(street, tmp_path):
    host, lobbies = street
    with connect(host, seed=1) as first, connect(f"http://{host}/", seed=2) as second:
        assert sorted(world.url for world in (first, second)) == [f"http://{host}/r/0", f"http://{host}/r/1"]
        assert [lobby.admission.occupied for lobby in lobbies] == [1, 1]
        for world in (first, second):
            assert len(list(world.play("w*8"))) == 8
            assert world.save_video(tmp_path / "seen.mp4").stat().st_size > 0  # a download
            picture = world.reset(image=FakeModel(tmp_path).gallery[1].image_path.read_bytes())  # an upload
            assert picture.pixels.shape == (32, 48, 3)
        assert json.loads(get(host, "/healthz")[2]) == {"ok": True, "occupied": True}
        with connect(first.url, resume=first.token) as again:
            assert again.ready.resumed and again.url == first.url
    assert json.loads(get(host, "/healthz")[2]) == {"ok": True, "occupied": False}


def test_nobody_is_sent_to_a_server_that_stops(street):
    host, lobbies = street
    lobbies[0].stopping = True
    for method in ("GET", "HEAD"):
        assert {get(host, method=method)[1]["Location"] for _ in range(8)} == {"r/1/"}
    assert get(host, "/readyz")[::2] == (200, '{"ready":true}')
    lobbies[1].stopping = True
    assert get(host)[0] == 503 and get(host)[1]["Retry-After"] and get(host, "/readyz")[0] == 503


def test_a_server_that_does_not_answer_is_passed_over(monkeypatch):
    monkeypatch.setattr("worldmodel.server.entrance.ANSWER_S", 0.05)

    async def ask(i):
        if i == 0:
            await asyncio.sleep(60)
        if i == 1:
            raise ConnectionError("it has died")
        return Vacancy(here={2: 3, 3: 1, 4: 0}[i], occupied=i == 4, ready=True)

    with running(entrance(5, ask)) as host:
        assert get(host)[1]["Location"] == "r/3/", "not the silent, the dead, the fuller or the full one"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray's own
def test_replicas_share_cores_and_save_apart(tmp_path):
    pytest.importorskip("ray")
    from worldmodel.server.ray_app import shares

    config = ServeConfig(server=ServerSettings(autosave=AutosaveConfig(tmp_path)))
    own = shares(replace(config, model=replace(config.model, device="cpu")), 3)
    assert [c.server.autosave.folder for c in own] == [tmp_path / f"replica-{i}" for i in range(3)]
    assert all(c.model.threads >= 1 for c in own)
    with pytest.raises(ValueError, match="as many GPUs"):
        shares(replace(config, model=replace(config.model, device="cuda")), 1000)


@pytest.fixture
def town(tmp_path):
    """`worldmodel serve --replicas 2` with the packaged model: the process, and where it listens."""
    pytest.importorskip("ray")
    port, config = free_port(), tmp_path / "server.toml"
    config.write_text(f'[listen]\nport = {port}\n[server]\nworlds = 2\n[autosave]\nfolder = "{tmp_path / "worlds"}"\nevery_s = 0\n')
    command = [sys.executable, "-W", "ignore", "-m", "worldmodel.cli", "serve", "--config", str(config), "--replicas", "2"]
    with (tmp_path / "out").open("w+") as out:
        environment = os.environ | {"WORLDMODEL_ACCESS_TOKEN": TOKEN}
        server = psutil.Popen(command, cwd=HERE.parent, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            deadline = time.monotonic() + 300
            while "Ready:" not in (tmp_path / "out").read_text():
                assert server.poll() is None and time.monotonic() < deadline, (tmp_path / "out").read_text()[-3000:]
                time.sleep(0.2)
            yield server, f"127.0.0.1:{port}"
        finally:
            left = [server, *server.children(recursive=True)] if server.is_running() else []
            for process in left:
                process.kill()


@pytest.mark.slow
def test_ray_starts_a_dead_replica_again_and_sigterm_saves_worlds(town, tmp_path):
    server, host = town
    with pytest.raises(Denied):
        connect(host)
    with connect(host, seed=1, access_token=TOKEN) as first, connect(host, seed=2, access_token=TOKEN) as second:
        assert {first.url, second.url} == {f"http://{host}/r/0", f"http://{host}/r/1"}
        assert len(list(first.play("w*16"))) == len(list(second.play("w*16"))) == 16
        name = f"replica-{first.url[-1]}"
        folder = tmp_path / "worlds" / name
        while not list(folder.glob("*.world")):
            time.sleep(0.1)
        begun = [p for p in server.children(recursive=True) if f"world-{first.url[-1]}" in " ".join(p.cmdline())]
        assert len(begun) == 1
        begun[0].kill()
        assert len(list(second.play("w*16"))) == 16, "the other is not disturbed"
        deadline = time.monotonic() + 200
        while True:
            try:
                again = connect(first.url, resume=first.token, mode="realtime", access_token=TOKEN)
                break
            except ClientError:
                assert time.monotonic() < deadline, "the replica did not come back"
                time.sleep(0.5)
        with again:
            assert again.ready.resumed and again.newest().chunk >= 1
            others = server.children(recursive=True)
            before = {path: path.stat().st_mtime_ns for path in (tmp_path / "worlds").glob("*/*.world")}
            again.hold("KeyW"), list(second.play("w*8")), again.newest()
            server.send_signal(signal.SIGTERM)
            assert server.wait(timeout=120) == 0
        assert len(before) == 2 and all(path.stat().st_mtime_ns > when for path, when in before.items())
        assert not psutil.wait_procs(others, timeout=30)[1], "no process is left"
