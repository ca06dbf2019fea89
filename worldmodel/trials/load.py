"""One to eight worlds at once: what each gets, and what stepping them together is worth."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

from worldmodel.trials.report import Report, percentile
from worldmodel.trials.server import Server, running
from worldmodel.trials.visitor import Seen, Visitor

WORLDS = (1, 2, 4, 8)


async def run(model: str, short: bool = False) -> Report:
    columns = "worlds", "stepped", "frames/s in all", "times one alone", "frames/s each", "most/fewest", "latency p50, p95 (ms)"
    report = Report("Load", columns)
    warm_s, seconds = (3.0, 8.0) if short else (8.0, 30.0)
    counts = WORLDS[:3] if short else WORLDS
    async with running(model, server={"worlds": 1}) as server:
        alone = await _flat_out(server, seconds)
    report.add(1, "flat out, unpaced", f"{alone:.1f}", "1.00", f"{alone:.1f}", "", "")
    totals: dict[tuple[str, int], float] = {}
    worst = 1.0
    for way, batch in (("together", 0), ("in turn", 1)):
        async with running(model, server={"worlds": max(counts), "batch": batch}) as server:
            for count in counts:
                if way == "in turn" and count == 1:
                    continue
                walks = await _walks(server, count, warm_s, seconds)
                rates = [seen.fps for seen in walks]
                totals[way, count] = sum(rates)
                fairness = max(rates) / max(min(rates), 1e-9)
                worst = max(worst, fairness)
                waits = [1000 * t for seen in walks for t in seen.latencies]
                each = f"{min(rates):.1f} to {max(rates):.1f}"
                waited = f"{percentile(waits, 50):.0f}, {percentile(waits, 95):.0f}"
                report.add(count, way, f"{sum(rates):.1f}", f"{sum(rates) / alone:.2f}", each, f"{fairness:.2f}", waited)
                if not await server.emptied():
                    report.claims.append((f"every world was gone after {count} visitors had left", False))
    most = max(counts)
    gains = ", ".join(f"{totals['together', n] / totals['in turn', n]:.2f} with {n}" for n in counts if n > 1)
    report.notes.append(f"Together makes so many times the frames of taking turns: {gains}.")
    report.notes.append("One world in real time is paced at the model's own rate; flat out is the same in lockstep, as fast as it goes.")
    report.claims.append((f"all get alike: the most frames over the fewest is at most 1.25 ({worst:.2f})", worst <= 1.25))
    gain = totals["together", most] / alone
    report.claims.append((f"{most} worlds together make 1.3 times the frames of one alone, flat out ({gain:.2f})", gain >= 1.3))
    return report


async def _walks(server: Server, count: int, warm_s: float, seconds: float) -> list[Seen]:
    async with AsyncExitStack() as stack:
        visitors = [await stack.enter_async_context(Visitor(server.url, seed=i)) for i in range(count)]
        await asyncio.gather(*(visitor.walk(warm_s) for visitor in visitors))
        return await asyncio.gather(*(visitor.walk(seconds) for visitor in visitors))


async def _flat_out(server: Server, seconds: float) -> float:
    """Frames a second of one world in lockstep."""
    from worldmodel.client import connect_async

    async with connect_async(server.url, codec="jpeg", window=16) as world:
        async for _ in world.play("w*16 left*16"):
            pass
        count, begun = 0, time.monotonic()
        while time.monotonic() - begun < seconds:
            async for _ in world.play("w*16 left*16"):
                count += 1
        return count / (time.monotonic() - begun)
