"""Running the application so that it stops well: on SIGTERM or Ctrl-C nobody new comes in, worlds are saved, sockets are closed."""

from __future__ import annotations

import signal
import socket
from typing import Any

import uvicorn


class DrainingServer(uvicorn.Server):
    """Drains what `create_app` made while the listener still answers, so that ``/readyz`` can say 503 meanwhile."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self.config.app.state.lobby.close()
        await super().shutdown(sockets)


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
