"""Limits and waiting times of the server, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worldmodel.autosave import AutosaveConfig


@dataclass(frozen=True)
class ServerSettings:
    """Everything an operator may want to change. Times are seconds, sizes bytes."""

    worlds: int = 1
    """Visitors who walk at once, each in a world of their own; those that are due are stepped as one batch."""
    batch: int = 0
    """Worlds stepped together at most; 0: all that are due, 1: one after the other."""
    line: int = 0
    """Visitors who may wait in line when all places are taken; others are refused."""
    places_each: int = 0
    """Worlds, and places in line, that one address may have; 0: no limit."""
    time_limit_s: float = 0.0
    """A visitor who has walked this long makes room, if somebody else is waiting; 0: no limit."""
    history: int = 480
    """Chunks that a world can go back at least. With the packaged model 480 are two minutes, for 284 MB in all (`World.num_bytes`)."""
    branches: int = 3
    """Branches that a visitor may keep beside the one walked in; each costs a memory, and what it does not share of the past."""
    recording_bytes: int = 64 * 2**20
    """Frames kept of each branch, as JPEG, to make a video of."""
    files_kept: int = 64
    """Worlds and videos made to be downloaded, and uploaded worlds; of all of them together at most `files_bytes`."""
    files_bytes: int = 2 * 2**30
    file_s: float = 1800.0
    """How long such a file is there."""
    world_bytes: int = 256 * 2**20
    """Of an uploaded world."""
    autosave: AutosaveConfig | None = None
    """Where worlds are saved, so that a visitor goes on in theirs after the grace period or a restart of the server; None: nowhere."""
    window: int = 3
    """Frames that may be on their way without an acknowledgement; more only adds delay."""
    quality: int = 85
    """JPEG quality of streamed frames."""
    grace_s: float = 10.0
    """How long a dropped visitor's world is kept for the same resume token."""
    busy_retry_s: float = 4.0
    """When a visitor who found the place taken should ask again."""
    idle_s: float = 180.0
    """A visitor who touches nothing this long makes room, if somebody else is waiting."""
    stall_s: float = 1.0
    """The model rests when no frame was acknowledged for this long (a hidden tab, a dead link)."""
    rest_when_still: bool = False
    """Do not step a model of static scenes while its visitor does nothing: a still picture stays as it is, and costs nothing."""
    hello_s: float = 10.0
    """A socket that does not say hello by then is closed."""
    messages_per_s: float = 120.0
    """Sustained rate of client messages; bursts of twice that pass."""
    upload_bytes: int = 10 * 1024 * 1024
    uploads_kept: int = 32
    access_token: str | None = None
    """A secret without which nobody gets a ticket (and, with this set, nobody enters without one); None: everybody may enter."""
    ticket_s: float = 60.0
    """How long a ticket is good for."""
    allowed_origins: tuple[str, ...] = ()
    """Origins besides the server's own that may open a stream, for example ``https://example.org``."""

    def __post_init__(self) -> None:
        if self.worlds < 1 or min(self.history, self.branches, self.batch, self.line, self.places_each, self.time_limit_s) < 0:
            raise ValueError("worlds is 1 or more; history, branches, batch, line, places_each and time_limit_s are 0 or more.")
        if self.access_token is not None and len(self.access_token) < 16:
            raise ValueError("access_token has 16 characters or more; `openssl rand -hex 16` makes one.")
        if not 1 <= self.window <= 16:
            raise ValueError(f"window is 1 to 16 frames, got {self.window}.")
        if not 1 <= self.quality <= 95:
            raise ValueError(f"quality is 1 to 95, got {self.quality}.")
