"""Many minutes of coming and going: whether memory grows, and whether those who come late wait longer."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass

import numpy as np
from websockets.exceptions import ConnectionClosed

from worldmodel.engine import TIDY_AFTER_S
from worldmodel.server import protocol as p
from worldmodel.trials.report import Report, percentile
from worldmodel.trials.server import Server, TrialError, running
from worldmodel.trials.visitor import Visitor

VISITORS = 3
"""At a time, on a server with one place less: somebody always waits in line."""
GROWTH, SLOWER = 0.02, 1.2


@dataclass
class _Walk:
    """Some seconds of a visit: frames and seconds of play, waits from an action to its frame."""

    frames: int
    seconds: float
    latencies: list[float]


async def run(model: str, short: bool = False) -> Report:
    report = Report("Soak", ("minutes", "walks", "frames/s in all", "latency p50, p95 (ms)", "memory, median (MB)", "empty again (MB)"))
    minutes, window_s, warm = (1.5, 15.0, 2) if short else (12.0, 60.0, 3)
    settings = {"worlds": VISITORS - 1, "line": 4, "grace_s": 2.0, "history": 64, "branches": 1, "files_kept": 4}
    async with running(model, server=settings, autosave={"folder": "worlds", "every_s": 5.0, "max_worlds": 8}) as server:
        empty, tails = [], []
        emptied = True
        for k in range(round(60 * minutes / window_s)):
            walks: list[_Walk] = []
            sizes: list[int] = []
            ends = time.monotonic() + window_s
            await asyncio.gather(*(_come_and_go(server, i, ends, walks) for i in range(VISITORS)), _weigh(server, ends, sizes))
            waits = [1000 * t for walk in walks for t in walk.latencies]
            tails.append(percentile(waits, 95))
            emptied = await server.emptied(30.0) and emptied
            await asyncio.sleep(3 * TIDY_AFTER_S)
            empty.append(server.rss)
            rate = sum(walk.frames for walk in walks) / window_s
            waited = f"{percentile(waits, 50):.0f}, {percentile(waits, 95):.0f}"
            row = f"{k * window_s / 60:g} to {(k + 1) * window_s / 60:g}"
            report.add(row, len(walks), f"{rate:.1f}", waited, f"{np.median(sizes) / 2**20:.0f}", f"{empty[-1] / 2**20:.0f}")
        faults, code = server.faults_in_log(), server.stop()
    early, late = slice(warm, warm + 3), slice(-3, None)
    growth = float(np.median(empty[late]) / np.median(empty[early]) - 1)
    slower = float(np.nanmedian(tails[late]) / np.nanmedian(tails[early]))
    report.notes.append(
        f"Visits of 5 to 40 s by {VISITORS} at a time in {VISITORS - 1} places: they walk, rewind, branch, start anew, save, and leave "
        "with a bye or without a word; in every row they mean to do the same, so that rows compare. After each row all have left, so "
        "that its last figure counts no world; while they walk, memory follows how many worlds and branches there are."
    )
    report.claims.append((f"empty memory grows by less than {GROWTH:.0%} after {warm} rows of warming up ({growth:+.1%})", growth < GROWTH))
    report.claims.append((f"p95 latency at the end is at most {SLOWER} times that after warming up ({slower:.2f})", slower <= SLOWER))
    report.claims.append((f"no world left over after any row, no error in the log, exit code {code}", emptied and not faults and code == 0))
    return report


async def _come_and_go(server: Server, seed: int, ends: float, walks: list[_Walk]) -> None:
    """One visit after the other until it is over."""
    r = random.Random(seed)
    while (left := ends - time.monotonic()) > 3:
        try:
            visitor = await Visitor(server.url, seed=r.randrange(2**31)).__aenter__()
        except (TrialError, OSError):
            await asyncio.sleep(0.5)
            continue
        stay = min(left, r.uniform(5, 40))
        while stay > 0:
            part = min(stay, r.uniform(3, 8))
            seen = await visitor.walk(part)
            walks.append(_Walk(seen.frames, seen.seconds, seen.latencies))
            stay -= part
            if stay > 0:
                await visitor.say(_deed(r, visitor))
        if r.random() < 0.5:
            try:
                await visitor.say(p.Bye())
            except ConnectionClosed:
                pass
        await visitor.drop()


def _deed(r: random.Random, visitor: Visitor) -> p.ClientMessage:
    """Something else than walking."""
    back = p.Rewind(at=max(0, visitor.chunk - r.randrange(1, 20)))
    return r.choice([back, back, p.Fork(at=back.at), p.Reset(), p.Save(kind=r.choice(["world", "video"])), p.Config(prompt="snow at dusk")])


async def _weigh(server: Server, ends: float, sizes: list[int]) -> None:
    while time.monotonic() < ends:
        sizes.append(server.rss)
        await asyncio.sleep(1.0)
