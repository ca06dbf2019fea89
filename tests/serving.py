"""Helpers of the server's tests: a server in a thread on a free port, and a small blocking client."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress

import uvicorn
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from worldmodel.server import protocol as p
from worldmodel.server.app import UVICORN_OPTIONS


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def running(app, port: int | None = None):
    """Serve `app` in a thread; yields ``host:port``."""
    port = port or free_port()
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", **UVICORN_OPTIONS))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 20
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive(), "the server did not stop"


class Client:
    """Blocking client: `messages` and `frames` collect what `pump` reads; painting is pretended by acknowledging."""

    def __init__(self, host: str, *, resume: str | None = None, hello: bool = True, origin: str | None = None, ack: bool = True) -> None:
        self._stack = ExitStack()
        opening = connect(f"ws://{host}/api/v1/stream", subprotocols=[p.SUBPROTOCOL], origin=origin, open_timeout=5, close_timeout=1)
        self.socket = self._stack.enter_context(opening)
        self.messages: list[p.ServerMessage] = []
        self.frames: list[tuple[p.FrameHeader, bytes]] = []
        self.ack, self._seq = ack, 0
        if hello:
            self.send(p.Hello(proto=p.PROTOCOL, resume=resume))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def send(self, message: p.ClientMessage | str) -> None:
        self.socket.send(message if isinstance(message, str) else message.model_dump_json())

    def hold(self, *keys: str, look: tuple[float, float] = (0.0, 0.0)) -> int:
        self._seq += 1
        self.send(p.ActionMessage(seq=self._seq, keys=list(keys), look=look))
        return self._seq

    def pump(self, until=None, timeout: float = 5.0) -> bool:
        """Read until `until(self)` holds (True) or `timeout` seconds passed (False). Raises `ConnectionClosed`."""
        deadline = time.monotonic() + timeout
        while until is None or not until(self):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            try:
                data = self.socket.recv(timeout=left)
            except TimeoutError:
                return False
            if isinstance(data, str):
                self.messages.append(p.parse_server(data))
                continue
            self.frames.append(p.unpack_frame(data))
            if self.ack:
                with suppress(ConnectionClosed):  # by the server, whose last words are still to be read
                    self.send(p.Ack(frame=self.frames[-1][0].frame))
        return True

    def expect(self, kind: type, timeout: float = 5.0):
        """The next message of `kind` from now on."""
        seen = len(self.messages)
        assert self.pump(lambda c: any(isinstance(m, kind) for m in c.messages[seen:]), timeout), f"no {kind.__name__} came"
        return next(m for m in self.messages[seen:] if isinstance(m, kind))

    def play(self, frames: int, timeout: float = 5.0) -> list[tuple[p.FrameHeader, bytes]]:
        """The next `frames` frames from now on."""
        seen = len(self.frames)
        assert self.pump(lambda c: len(c.frames) >= seen + frames, timeout), f"only {len(self.frames) - seen} frames came"
        return self.frames[seen:]
