"""The trials' parts, a few of each, against a server with the double; `worldmodel check` does them in earnest."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from fake_model import FakeModel
from serving import running

from worldmodel.server import protocol as p
from worldmodel.server.app import create_app
from worldmodel.server.settings import ServerSettings
from worldmodel.trials import faults_network, load
from worldmodel.trials.report import Report
from worldmodel.trials.server import Server, slow_link
from worldmodel.trials.visitor import Visitor


class Here(Server):
    """A server that runs already, in this process."""

    def __init__(self, host):
        super().__init__({}, "tiny")
        self.port = int(host.split(":")[1])

    rss = 0


@pytest.fixture
def server(tmp_path):
    settings = ServerSettings(worlds=4, line=4, grace_s=0.3, busy_retry_s=0.2, history=20)
    with running(create_app(FakeModel(tmp_path, size=(32, 48), step_s=0.01), settings)) as host:
        yield Here(host)


def run(trial):
    """In a thread of its own: a browser of other tests may keep a loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, trial).result()


def test_malformed_messages_and_resets_leave_nothing(server):
    async def trial():
        report = Report("Faults", ("what", "how", "found", "lost"))
        await faults_network.malformed(server, report, 160)
        await faults_network.abrupt(server, report, 16)
        assert await server.emptied(10.0)
        assert report.passed, report.markdown()
        assert "240 malformed messages" in report.markdown()

    run(trial())


def test_who_walks_notes_frames_and_latencies_and_all_get_alike(server):
    walks = run(load._walks(server, 3, 0.5, 3.0))
    assert all(2 < seen.fps < 20 and seen.latencies and max(seen.latencies) < 3 for seen in walks)


def test_a_thin_link_gets_smaller_pictures(server):
    async def trial():
        async with slow_link(server, 60e3) as url, Visitor(url) as visitor:
            await visitor.walk(8.0)
            seen = await visitor.walk(3.0)
            assert seen.frames > 3 and visitor.quality < 85
            error = await visitor.ask(p.Rewind(at=9999), p.Timeline)
            assert error.code == "world"

    run(trial())
