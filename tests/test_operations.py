"""What an operator relies on: health, readiness, metrics, and a SIGTERM after which every world is on the disk."""

import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from fake_model import FakeModel, FakeWorld
from prometheus_client.parser import text_string_to_metric_families
from serving import Client, free_port, running
from websockets.exceptions import ConnectionClosed

from worldmodel.client import connect
from worldmodel.server import protocol as p
from worldmodel.server.app import create_app
from worldmodel.server.settings import ServerSettings

HERE = Path(__file__).parent


class SavedState:
    def __init__(self, actions):
        self.text, self.num_bytes = json.dumps({"actions": actions}), 100

    def save(self, path):
        path.write_text(self.text)


class SavingWorld(FakeWorld):
    num_bytes = 12345

    def state(self, history=None, note=None):
        return SavedState(len(self.log))


class SavingModel(FakeModel):
    def start(self, *args, **kwargs):
        world = super().start(*args, **kwargs)
        world.__class__ = SavingWorld
        return world


def get(host, path):
    try:
        with urllib.request.urlopen(f"http://{host}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(host):
    families = text_string_to_metric_families(get(host, "/metrics")[1])
    return {s.name if not s.labels.get("reason") else f"{s.name} {s.labels['reason']}": s.value for f in families for s in f.samples}


def eventually(host, **want):
    """Samples once these are reached: what was just sent is counted a moment later."""
    deadline = time.monotonic() + 10
    while True:
        found = samples(host)
        if all(found[f"worldmodel_{name}"] == value for name, value in want.items()) or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def test_metrics_count_what_was_played(tmp_path):
    with running(create_app(SavingModel(tmp_path, size=(32, 48), step_s=0.02), ServerSettings(worlds=2))) as host:
        before = samples(host)
        assert before["worldmodel_worlds"] == before["worldmodel_frames_sent_total"] == before["worldmodel_cache_bytes"] == 0
        with connect(host) as world:
            frames = list(world.play("w*12"))
            after = eventually(host, frames_sent_total=13, step_seconds_count=3, batch_size=1)
        assert after["worldmodel_frames_sent_total"] == 1 + len(frames) == 13
        assert after["worldmodel_step_seconds_count"] == 3 and after["worldmodel_step_seconds_sum"] >= 3 * 0.02
        assert after["worldmodel_encode_seconds_count"] == 13 and after["worldmodel_frame_bytes_sent_total"] > 13 * 32
        assert 1 <= after["worldmodel_action_to_send_seconds_count"] <= 3
        assert (after["worldmodel_worlds"], after["worldmodel_worlds_room"], after["worldmodel_batch_size"]) == (1, 2, 1)
        assert after["worldmodel_cache_bytes"] == SavingWorld.num_bytes and after["worldmodel_queue"] == 0
        assert after["worldmodel_frames_dropped_total"] == 0
        with Client(host, hello=False) as client:
            client.send("x")
            client.expect(p.Error)
        assert samples(host)["worldmodel_refused_total bad_message"] == 1


def test_ready_until_it_stops(tmp_path):
    app = create_app(FakeModel(tmp_path, size=(32, 48)))
    with running(app) as host:
        assert get(host, "/healthz")[0] == 200 and get(host, "/readyz") == (200, '{"ready":true}')
        app.state.lobby.stopping = True
        assert get(host, "/healthz")[0] == 200 and get(host, "/readyz") == (503, '{"ready":false}')
        with Client(host) as client:
            assert client.expect(p.End).reason == "shutdown"


SERVER = """
import sys
sys.path[:0] = [{here!r}, {root!r}]
import app
from test_operations import SavingModel
app.load_model = lambda *_: SavingModel({folder!r}, size=(32, 48))
sys.exit(app.main(["--port", "{port}", "--save-worlds", {folder!r} + "/worlds"]))
"""


def test_sigterm_saves_worlds_and_exits_cleanly(tmp_path):
    port = free_port()
    code = SERVER.format(here=str(HERE), root=str(HERE.parent), folder=str(tmp_path), port=port)
    server = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                client = Client(f"127.0.0.1:{port}")
                break
            except (OSError, TimeoutError, EOFError):
                assert server.poll() is None and time.monotonic() < deadline, "the server did not start"
                time.sleep(0.2)
        with client:
            client.hold("KeyD")
            client.play(9, timeout=30)
            chunk = client.frames[-1][0].chunk
            server.send_signal(signal.SIGTERM)
            client.ack = False
            assert client.expect(p.End, timeout=30).reason == "shutdown"
            with pytest.raises(ConnectionClosed) as closed:
                client.pump(timeout=10)
            assert closed.value.rcvd.code == 1012
        assert server.wait(timeout=60) == 0
    finally:
        server.kill()
        output = server.communicate()[0]
    assert output.startswith("Loading the model 'tiny' ...\nLoaded in ") and "48 x 32 pixels" in output and output.endswith("Stopped.\n")
    (saved,) = (tmp_path / "worlds").glob("*.world")
    assert json.loads(saved.read_text())["actions"] >= 4 * (chunk + 1), "everything that was shown was saved"
