"""Who may have a world: places, a line with positions, and limits of time and idleness. Rules only: no thread, no clock of its own.

Nobody who plays within the limits has to go for a newcomer: a newcomer waits in line, or is refused when the line is full. Limits
hold only while somebody waits; an empty server sends nobody away.
"""

from __future__ import annotations

from dataclasses import dataclass


class Refused(Exception):
    """There is neither a place nor a place in line; ask again after `retry_after_s`."""

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class AdmissionConfig:
    """`places` worlds at once, `line` people waiting. `time_limit_s` and `idle_s` are seconds, 0: no limit; `group_places` is the most
    places and places in line that one group (an address, say) may have, 0: no limit.
    """

    places: int = 1
    line: int = 0
    time_limit_s: float = 0.0
    idle_s: float = 180.0
    group_places: int = 0
    retry_s: float = 4.0

    def __post_init__(self) -> None:
        if self.places < 1:
            raise ValueError(f"There is 1 place or more, got {self.places}.")
        if min(self.line, self.time_limit_s, self.idle_s, self.group_places) < 0:
            raise ValueError("line, time_limit_s, idle_s and group_places are 0 or more.")


class Ticket:
    """One visitor: in line, or with a place since `since`."""

    def __init__(self, group: str, now: float) -> None:
        self.group = group
        self.asked, self.touched = now, now
        self.since: float | None = None

    @property
    def admitted(self) -> bool:
        return self.since is not None


class Admission:
    """Call `advance` after anything that may free a place; it says who comes in. Times are seconds of one monotonic clock."""

    def __init__(self, config: AdmissionConfig) -> None:
        self.config = config
        self.places = config.places  # fewer when memory runs out
        self._in: list[Ticket] = []
        self._line: list[Ticket] = []

    @property
    def occupied(self) -> int:
        return len(self._in)

    @property
    def waiting(self) -> int:
        return len(self._line)

    @property
    def full(self) -> bool:
        return len(self._in) >= self.places

    def ask(self, now: float, group: str = "") -> Ticket:
        """A place, or one in line. Raises `Refused` when there is neither."""
        cfg = self.config
        if cfg.group_places and sum(t.group == group for t in (*self._in, *self._line)) >= cfg.group_places:
            raise Refused(f"You have {cfg.group_places} worlds open here, which is all that one visitor may have.", cfg.retry_s)
        if (self.full or self._line) and len(self._line) >= cfg.line:
            raise Refused("All places are taken; try again in a moment.", cfg.retry_s)
        ticket = Ticket(group, now)
        self._line.append(ticket)
        self.advance(now)
        return ticket

    def advance(self, now: float) -> list[Ticket]:
        """Those who get a place now, first come, first served."""
        free = max(0, self.places - len(self._in))
        entering, self._line = self._line[:free], self._line[free:]
        for ticket in entering:
            ticket.since = ticket.touched = now
            self._in.append(ticket)
        return entering

    def leave(self, ticket: Ticket, now: float) -> list[Ticket]:
        """A visitor goes, or gives up waiting; those who get a place now."""
        for group in (self._in, self._line):
            if ticket in group:
                group.remove(ticket)
        return self.advance(now)

    def touch(self, ticket: Ticket, now: float) -> None:
        """The visitor did something."""
        ticket.touched = now

    def position(self, ticket: Ticket) -> int:
        """Place in line from 1, or 0 for who has a place."""
        return 0 if ticket.admitted else self._line.index(ticket) + 1

    def wait_s(self, ticket: Ticket, now: float) -> float | None:
        """At most how long it is until a waiting visitor's turn by the time limit; None when nothing bounds it."""
        if ticket.admitted:
            return 0.0
        if not self.config.time_limit_s or not self._in:
            return None
        limit = self.config.time_limit_s
        ends = sorted(max(0.0, t.since + limit - now) for t in self._in)
        rounds, place = divmod(self.position(ticket) - 1, len(ends))
        return ends[place] + rounds * limit

    def overdue(self, now: float, waiting: int | None = None) -> list[tuple[Ticket, str]]:
        """Who has to go now, each with the reason ``time`` or ``idle``: not more than `waiting` (default: who is in line)."""
        cfg, out = self.config, []
        for ticket in self._in:
            if cfg.time_limit_s and now - ticket.since >= cfg.time_limit_s:
                out.append((ticket, "time"))
            elif cfg.idle_s and now - ticket.touched > cfg.idle_s:
                out.append((ticket, "idle"))
        out.sort(key=lambda pair: (pair[1] != "idle", pair[0].touched))  # who does nothing goes first, the longest idle before others
        return out[: len(self._line) if waiting is None else waiting]
