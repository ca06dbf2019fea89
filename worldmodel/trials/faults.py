"""What goes wrong in the world outside, done to a running server: it goes on, no world is left over, and what is lost is stated."""

from __future__ import annotations

from worldmodel.trials import faults_machine, faults_network
from worldmodel.trials.report import Report
from worldmodel.trials.server import Server, running
from worldmodel.trials.visitor import Visitor

SERVER = {"worlds": 4, "line": 4, "grace_s": 1.0, "busy_retry_s": 0.5, "history": 64}
SAVE_EVERY_S = 2.0


async def run(model: str, short: bool = False) -> Report:
    report = Report("Faults", ("what", "how", "found", "lost"))
    messages, drops, seconds = (400, 20, 6.0) if short else (10_000, 200, 20.0)
    async with running(model, server=SERVER) as server:
        network = faults_network
        await network.malformed(server, report, messages)
        await _still_well(server, report)
        await network.abrupt(server, report, drops)
        await _still_well(server, report)
        await network.unread(server, report, 2 * seconds)
        await _still_well(server, report)
        for rate in (4e6, 0.15e6):
            await network.slow(server, report, rate, seconds)
            await _still_well(server, report)
        _ended_well(server, report)
    for trial, entry in (
        (faults_machine.killed, "worldmodel.cli"),
        (faults_machine.clock_jumps, "worldmodel.trials.jumping_clock"),
        (faults_machine.disk_full, "worldmodel.cli"),
    ):
        async with running(model, entry, server=SERVER, autosave={"folder": "worlds", "every_s": SAVE_EVERY_S}) as server:
            await trial(server, report, seconds)
            await _still_well(server, report)
            _ended_well(server, report)
    return report


async def _still_well(server: Server, report: Report) -> None:
    """It lives, no world is left over, and the next visitor walks."""
    emptied = server.alive and await server.emptied(40.0)
    walks = False
    if server.alive:
        async with Visitor(server.url) as visitor:
            walks = (await visitor.walk(2.0)).frames > 4
    report.claims.append((f"after {report.rows[-1][0]}: alive, no world left over, the next visitor walks", emptied and walks))


def _ended_well(server: Server, report: Report) -> None:
    faults, code = server.faults_in_log(), server.stop()
    first = f", but {len(faults)} errors in its log: {faults[0][:200]}" if faults else " and no error in its log"
    report.claims.append((f"the server stopped with exit code {code}{first}", not faults and code == 0))
