"""Worlds that outlive the process: a folder of world files, bounded in number and bytes.

Each world is found again by a token that only its visitor knows; the file's name is a hash of it, so that who sees the folder cannot
take a world over. A file is written aside and renamed, and older ones go only after that: a full disk or a kill at any moment leaves
everything that was there.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from worldmodel.world_file import WorldError, WorldState

if TYPE_CHECKING:
    from worldmodel.model import WorldModel

log = logging.getLogger(__name__)
ABANDONED_S = 600.0
"""A half-written file this old belongs to a process that is gone."""


@dataclass(frozen=True)
class AutosaveConfig:
    """Where and how much. `every_s` seconds of play between two saves of a world; files untouched for `keep_s` seconds go."""

    folder: Path
    every_s: float = 20.0
    max_worlds: int = 64
    max_bytes: int = 4 * 2**30
    keep_s: float = 7 * 24 * 3600.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if self.max_worlds < 1 or self.max_bytes < 1 or self.every_s < 0 or self.keep_s <= 0:
            raise ValueError("Autosave needs max_worlds and max_bytes of 1 or more, every_s of 0 or more and keep_s above 0.")


class Autosave:
    """The folder. Safe to use from several threads of one process."""

    def __init__(self, config: AutosaveConfig) -> None:
        self.config = config
        self._lock = threading.Lock()
        try:
            config.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorldError(f"Worlds cannot be saved in {config.folder} ({error.strerror}); choose another folder.") from error
        for part in config.folder.glob("*.world.part"):
            if time.time() - part.stat().st_mtime > ABANDONED_S:
                part.unlink(missing_ok=True)
        self._trim()

    def path(self, token: str) -> Path:
        return self.config.folder / f"{hashlib.sha256(token.encode()).hexdigest()[:40]}.world"

    def save(self, token: str, state: WorldState) -> None:
        """Write a world in place of what `token` had before; then the oldest others go, if there are too many.

        Raises `WorldError` when it cannot be written; what was there stays.
        """
        size = state.num_bytes
        if size > self.config.max_bytes:
            raise WorldError(f"The world has {size} bytes and all saved ones may have {self.config.max_bytes}; raise max_bytes.")
        with self._lock:
            state.save(self.path(token))
            self._trim(keep=self.path(token))

    def load(self, token: str, model: WorldModel) -> WorldState | None:
        """The saved world of `token`; None when there is none, or it is of another model (that is logged)."""
        path = self.path(token)
        with self._lock:
            if not path.exists():
                return None
            try:
                state = WorldState.load(path, model)
                path.touch()
            except (WorldError, OSError) as error:
                log.warning("A saved world cannot go on: %s", error)
                return None
        return state

    def forget(self, token: str) -> None:
        with self._lock:
            self.path(token).unlink(missing_ok=True)

    def files(self) -> list[Path]:
        """World files, the one untouched for longest first."""
        return sorted(self.config.folder.glob("*.world"), key=lambda path: path.stat().st_mtime)

    def _trim(self, keep: Path | None = None) -> None:
        files = [(path, path.stat()) for path in self.files()]
        total, count = sum(stat.st_size for _, stat in files), len(files)
        for path, stat in files:
            expired = time.time() - stat.st_mtime > self.config.keep_s
            if path == keep or not (expired or count > self.config.max_worlds or total > self.config.max_bytes):
                continue
            path.unlink(missing_ok=True)
            total, count = total - stat.st_size, count - 1
