"""Clients and links that do what they should not: nonsense, resets, silence, a trickle."""

from __future__ import annotations

import asyncio
import random
import socket
import struct

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from worldmodel.server import protocol as p
from worldmodel.trials.fuzz import Fuzzer
from worldmodel.trials.report import Report, percentile
from worldmodel.trials.server import Server, slow_link
from worldmodel.trials.visitor import Visitor

EXPECTED = {1007, 1009, 4400, 4426, 4429} | {401, 413, 422, 200}
"""Close codes, and answers to POSTs (a ticket is given to everybody where no token is asked for)."""
HANDSHAKE = (
    b"GET /api/v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


async def malformed(server: Server, report: Report, count: int) -> None:
    """Half of the messages are the first of a connection, half are said in the middle of a walk, after valid ones."""
    closes: dict[int, int] = {}

    async def outside(fuzzer: Fuzzer) -> None:
        for _ in range(count // 8):
            await _say(server, [fuzzer.malformed()], closes)

    async def inside(fuzzer: Fuzzer) -> None:
        token = None
        for _ in range(count // 8):
            words = [fuzzer.valid_text() for _ in range(3)] + [fuzzer.malformed()]
            token = await _say(server, words, closes, walking=True, resume=token)

    await asyncio.gather(*(outside(Fuzzer(i)) for i in range(4)), *(inside(Fuzzer(100 + i)) for i in range(4)))
    for path in ("api/v1/images", "api/v1/worlds", "api/v1/stream/http", "api/v1/sessions"):
        for i in range(20):
            status, _ = await server.get(path, random.Random(i).randbytes(1 + 997 * i))
            closes[status] = closes.get(status, 0) + 1
    odd = {code: n for code, n in closes.items() if code not in EXPECTED}
    told = ", ".join(f"{code}: {n}" for code, n in sorted(closes.items()))
    report.add(f"{sum(closes.values())} malformed messages", "first words, in the middle of walks, bodies of POSTs", told, "nothing")
    report.claims.append((f"malformed messages end their own connection and nothing else{f' (odd: {odd})' if odd else ''}", not odd))


async def _say(server: Server, words: list[str | bytes], closes: dict[int, int], walking: bool = False, resume: str | None = None):
    """Say words on one connection, in a walk after a hello; how it was closed is counted, and the token to resume with returned."""
    code = 0  # it was not closed
    try:
        async with connect(server.url.replace("http", "ws", 1) + "/api/v1/stream", compression=None, open_timeout=60, close_timeout=5) as s:
            async with asyncio.timeout(60):
                if walking:
                    await s.send(p.Hello(proto=p.PROTOCOL, resume=resume).model_dump_json())
                    while not isinstance(message := p.read_server(await s.recv()), p.Ready):
                        pass
                    resume = message.resume
                for word in words:
                    await s.send(word)
                while True:
                    await s.recv()
    except ConnectionClosed as closed:
        code = closed.rcvd.code if closed.rcvd is not None else 1006
    except TimeoutError:
        pass
    except (OSError, InvalidHandshake):
        code = 1006
    closes[code] = closes.get(code, 0) + 1
    return resume


async def abrupt(server: Server, report: Report, count: int) -> None:
    """Reset connections: in the handshake, in the middle of hello, after it, while frames come."""

    async def one(i: int) -> None:
        r = random.Random(i)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stage, hello = i % 4, _masked(p.Hello(proto=p.PROTOCOL).model_dump_json())
        said = (HANDSHAKE[: r.randrange(1, len(HANDSHAKE))], HANDSHAKE + hello[: len(hello) // 2], HANDSHAKE + hello, HANDSHAKE + hello)
        writer.write(said[stage])
        try:
            await writer.drain()
            async with asyncio.timeout(r.uniform(0.0, 1.5)):
                while stage == 3 and await reader.read(4096):
                    pass
        except (TimeoutError, OSError):
            pass
        writer.transport.abort()

    for i in range(0, count, 8):
        await asyncio.gather(*(one(k) for k in range(i, min(count, i + 8))))
    report.add(f"{count} abrupt disconnects", "TCP resets, 8 at a time, from handshake to play", "all places were free again", "nothing")


async def unread(server: Server, report: Report, seconds: float) -> None:
    """One says hello and never reads; another walks meanwhile."""
    before = server.rss
    deaf = socket.create_connection(("127.0.0.1", server.port))
    try:
        async with Visitor(server.url) as visitor:
            deaf.sendall(HANDSHAKE + _masked(p.Hello(proto=p.PROTOCOL, window=16).model_dump_json()))
            seen = await visitor.walk(seconds)
    finally:
        deaf.close()
    found = f"the other walked at {seen.fps:.1f} frames/s; the process grew by {(server.rss - before) / 2**20:.0f} MB with both worlds"
    report.add("a client that stops reading", f"{seconds:.0f} s", found, "its own frames")
    report.claims.append(("somebody who reads nothing does not stop others", seen.fps > 4))


async def slow(server: Server, report: Report, bits_per_s: float, seconds: float) -> None:
    async with slow_link(server, bits_per_s) as url, Visitor(url) as visitor:
        await visitor.walk(seconds)  # quality finds its place
        seen = await visitor.walk(seconds)
        waits = [1000 * t for t in seen.latencies]
        found = (
            f"{seen.fps:.1f} frames/s, latency p50 {percentile(waits, 50):.0f} ms, p95 {percentile(waits, 95):.0f} ms, "
            f"JPEG quality {visitor.quality}, {visitor.size[0]}x{visitor.size[1]} pixels"
        )
    link = f"a link of {bits_per_s / 1e6:g} Mbit/s"
    report.add(link, f"throttled both ways, {2 * seconds:.0f} s", found, "frames that were late")
    report.claims.append((f"frames go on coming over {link}", seen.fps > 2))


def _masked(text: str) -> bytes:
    """A text frame of a WebSocket client; the mask is zeros."""
    data = text.encode()
    length = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0xFE]) + struct.pack(">H", len(data))
    return b"\x81" + length + bytes(4) + data
