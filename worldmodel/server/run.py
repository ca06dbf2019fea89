"""Running the application so that it stops well: on SIGTERM or Ctrl-C nobody new comes in, worlds are saved, sockets are closed."""

from __future__ import annotations

import signal
import socket
from typing import Any

import uvicorn


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, taken before the model is loaded, so that a taken port is known at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)  # a second process could bind until somebody listens
    except OSError as error:
        listener.close()
        raise SystemExit(f"Cannot listen on {host} port {port} ({error.strerror}). Choose another with --port {port + 1}.") from None
    return listener


def address(listener: socket.socket) -> str:
    """What to open in a browser on this machine."""
    host, port = listener.getsockname()[:2]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"


class DrainingServer(uvicorn.Server):
    """Drains what `create_app` made while the listener still answers, so that ``/readyz`` can say 503 meanwhile."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.config.app.state.lobby.close()
        await super().shutdown(sockets)


class AnnouncingServer(DrainingServer):
    """Says where the page is once it answers."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"Ready: {address(sockets[0])}  (Ctrl-C stops)", flush=True)


def run(server: uvicorn.Server, sockets: list[socket.socket] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C, and return when everything is saved. In the main thread."""

    def stop(*_: Any) -> None:  # before the server listens to signals, and once more after it has stopped
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        server.run(sockets=sockets)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
