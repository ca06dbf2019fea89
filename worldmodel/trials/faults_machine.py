"""What the machine does to a server that saves worlds: kills it, moves its clock, runs out of disk."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import time

from worldmodel.server import protocol as p
from worldmodel.trials.report import Report
from worldmodel.trials.server import Server
from worldmodel.trials.visitor import Visitor

SLACK_S = 4.0
"""Of play that may be lost with a kill: two seconds between saves, and what was being written."""


async def killed(server: Server, report: Report, seconds: float) -> None:
    visitor = await Visitor(server.url).__aenter__()
    await visitor.walk(seconds)
    ready, chunk = visitor.ready, visitor.chunk
    server.kill()
    await visitor.drop()
    begun = time.monotonic()
    await server.start()
    back_s = time.monotonic() - begun
    async with Visitor(server.url, resume=ready.resume) as again:
        resumed, lost = again.ready.resumed, chunk - again.chunk
        await again.walk(2.0)
    lost_s = lost * ready.chunk / ready.fps
    how = f"after {seconds:.0f} s of play, saved every two"
    report.add("kill -9 and restart", how, f"the world went on; up again in {back_s:.1f} s", f"{lost} chunks, {lost_s:.2f} s of play")
    report.claims.append((f"after kill -9 a world goes on and has lost at most {SLACK_S:g} s of play", resumed and lost_s <= SLACK_S))


async def clock_jumps(server: Server, report: Report, seconds: float) -> None:
    visitor = await Visitor(server.url).__aenter__()
    seen = await visitor.walk(seconds)
    await visitor.drop()
    await server.emptied()  # the grace period is over: the world is on the disk
    async with Visitor(server.url, resume=visitor.ready.resume) as again:
        resumed = again.ready.resumed
    lost = "nothing; a jump of more than seven days would let saved worlds expire"
    report.add("clock jumps", "by up to a day, back and forth, every second", f"{seen.fps:.1f} frames/s; the saved world went on", lost)
    report.claims.append(("a wall clock that jumps stops nothing, and saved worlds stay", resumed and seen.fps > 4))


async def disk_full(server: Server, report: Report, seconds: float) -> None:
    """From some moment on no file of the server may have more than 100 kB."""
    visitor = await Visitor(server.url).__aenter__()
    await visitor.walk(seconds)
    _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (100_000, hard))
    await visitor.walk(1.0)
    before = _saved(server)
    seen = await visitor.walk(max(seconds, 6.0))
    answer = await visitor.ask(p.Save(kind="world"), p.Saved)
    after, chunk = _saved(server), visitor.chunk
    told = "was not saved" in server.log.read_text()
    server.kill()
    await visitor.drop()
    await asyncio.sleep(0)
    await server.start()
    async with Visitor(server.url, resume=visitor.ready.resume) as again:
        resumed, lost = again.ready.resumed, chunk - again.chunk
    found = f"{seen.fps:.1f} frames/s; what was saved before is as it was, and went on; a download was refused with a reason"
    lost_s = lost * visitor.ready.chunk / visitor.ready.fps
    report.add("disk full", "nothing can be written any more; kill -9 after that", found, f"what was played since then, {lost_s:.1f} s")
    refused = isinstance(answer, p.Error) and answer.code == "world"
    holds = resumed and told and refused and before == after and len(before) == 1 and seen.fps > 4
    report.claims.append(("a full disk stops nobody, loses nothing that was saved, and is told in the log", holds))


def _saved(server: Server) -> dict[str, str]:
    """Saved worlds and a hash of each; half-written files too, for there should be none."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((server.folder / "worlds").iterdir())}
