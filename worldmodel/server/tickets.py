"""One-use tickets: a browser cannot put a header on a WebSocket, so it shows the access token once and says a ticket in `hello`."""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict


class Tickets:
    """At most `limit` unused tickets, each good for `seconds`; the oldest goes first."""

    def __init__(self, seconds: float, limit: int = 1024) -> None:
        self._seconds, self._limit = seconds, limit
        self._open: OrderedDict[str, float] = OrderedDict()

    def issue(self) -> str:
        ticket = secrets.token_urlsafe(24)
        self._open[ticket] = time.monotonic() + self._seconds
        while len(self._open) > self._limit:
            self._open.popitem(last=False)
        return ticket

    def take(self, ticket: str | None) -> bool:
        """Whether it is good; it is not a second time."""
        return ticket is not None and self._open.pop(ticket, 0.0) > time.monotonic()
