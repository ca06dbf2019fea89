"""A world on a server, from Python: the other end of docs/protocol.md.

    from worldmodel.client import connect

    with connect("http://127.0.0.1:7860", image="red canyon") as world:
        for frame in world.play("w*32 left*8"):
            frame.pixels                            # uint8 [H, W, 3]

In ``lockstep`` mode (the default) the world moves when you say so, and every frame of it arrives, in order. In ``realtime`` mode it goes on
by itself: `hold` keys, and take the `newest` frame. `connect_async` gives the same with ``async with``, ``async for`` and ``await``.

Import from here; `__all__` is all that is public. Read in this order: `errors` (every kind of no), `frames` (what arrives), `http_routes`
(uploads and downloads), `connection` (the socket: hello, frames, coming back after drops), `asynchronous` (what one can do in a world, on
top of these) and `blocking` (the same without ``await``).
"""

from worldmodel.client.asynchronous import AsyncRemoteWorld, connect_async
from worldmodel.client.blocking import RemoteWorld, connect
from worldmodel.client.errors import ClientError, ConnectionLost, Denied, Ended, Refused, ServerFull, WrongVersion
from worldmodel.client.frames import Frame

__all__ = [
    "AsyncRemoteWorld",
    "ClientError",
    "ConnectionLost",
    "Denied",
    "Ended",
    "Frame",
    "Refused",
    "RemoteWorld",
    "ServerFull",
    "WrongVersion",
    "connect",
    "connect_async",
]
