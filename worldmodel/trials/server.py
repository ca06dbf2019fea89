"""The server under test, in a process of its own, and a link to it that is as slow as one says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path


class TrialError(RuntimeError):
    """The server does not do what any trial needs."""


class Server:
    """``worldmodel serve`` on a free port of the loopback. `entry` is the module that is run."""

    def __init__(self, config: dict[str, dict], model: str, entry: str = "worldmodel.cli") -> None:
        self._entry = entry
        self._folder = tempfile.TemporaryDirectory(prefix="worldmodel-trial-")
        self.folder = Path(self._folder.name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        sections = {"model": {"name": model}, "listen": {"port": self.port}, "log": {"format": "json", "level": "INFO"}} | config
        if "autosave" in sections:
            sections["autosave"] = sections["autosave"] | {"folder": str(self.folder / sections["autosave"]["folder"])}
        text = "\n".join(f"[{name}]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in table.items()) for name, table in sections.items())
        self._config = self.folder / "server.toml"
        self._config.write_text(text)
        self.log = self.folder / "log.jsonl"
        self.process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self, timeout_s: float = 600.0) -> None:
        with self.log.open("ab") as log:
            command = [sys.executable, "-W", "ignore", "-m", self._entry, "serve", "--config", str(self._config)]
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + timeout_s
        while await self.status("readyz") != 200:
            if not self.alive or time.monotonic() > deadline:
                raise TrialError(f"The server did not start: {self.log.read_text()[-500:]}")
            await asyncio.sleep(0.1)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.alive:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()
            return -9

    def close(self) -> None:
        if self.alive:
            self.kill()
        self._folder.cleanup()

    @property
    def rss(self) -> int:
        """Bytes of the process that are in memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def faults_in_log(self) -> list[str]:
        """Errors and tracebacks; warnings are not."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line]
        return [line for line in lines if '"level": "ERROR"' in line or '"traceback"' in line or not line.startswith("{")]

    async def get(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body; a POST with a body. Status 0: nobody answers."""

        def ask() -> tuple[int, bytes]:
            try:
                with urllib.request.urlopen(urllib.request.Request(f"{self.url}/{path}", data=body), timeout=30) as answer:  # noqa: S310
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                with error:
                    return error.code, error.read()
            except OSError:
                return 0, b""

        return await asyncio.to_thread(ask)

    async def status(self, path: str) -> int:
        return (await self.get(path))[0]

    async def metric(self, name: str) -> float:
        """A gauge or counter of /metrics."""
        text = (await self.get("metrics"))[1].decode()
        return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} ")), float("nan"))

    async def emptied(self, timeout_s: float = 20.0) -> bool:
        """Whether no world lives any more."""
        deadline = time.monotonic() + timeout_s
        while await self.metric("worldmodel_worlds"):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.1)
        return True


@contextlib.asynccontextmanager
async def running(model: str, entry: str = "worldmodel.cli", **config: dict) -> AsyncIterator[Server]:
    """A started server with these sections of the config."""
    server = Server(config, model, entry)
    try:
        await server.start()
        yield server
    finally:
        server.close()


@contextlib.asynccontextmanager
async def slow_link(server: Server, bits_per_s: float) -> AsyncIterator[str]:
    """An address from which everything reaches the server, and comes back, at most so fast; its buffers hold a tenth of a second."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        piece = max(256, int(bits_per_s / 8 / 50))
        due = time.monotonic()
        try:
            while data := await reader.read(piece):
                due = max(due, time.monotonic()) + 8 * len(data) / bits_per_s
                await asyncio.sleep(due - time.monotonic())
                writer.write(data)
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            pass
        writer.close()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        small = socket.socket()
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, max(4096, int(bits_per_s / 80)))
        small.setblocking(False)
        await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", server.port))
        far_reader, far_writer = await asyncio.open_connection(sock=small, limit=8192)
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    proxy = await asyncio.start_server(connected, "127.0.0.1", 0, limit=8192)
    try:
        yield f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
    finally:
        proxy.close()
