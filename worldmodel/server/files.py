"""Files that a visitor takes home or brings along: worlds and videos, in a folder of this process, found by an id that nobody can guess.

No name from outside ever becomes part of a path: an id is looked up in a table. What is too old, or too much, goes.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path


class FileTooLarge(ValueError):
    """The file alone is more than all files may be. One clear sentence."""


@dataclass(frozen=True)
class StoredFile:
    """`name` is what a browser saves it as."""

    path: Path
    name: str
    media_type: str
    size: int
    expires: float  # time.monotonic


class Files:
    """At most `limit` files and `limit_bytes` bytes, each for `seconds`; the oldest goes first. Used from the event loop."""

    def __init__(self, seconds: float, limit: int, limit_bytes: int) -> None:
        self._seconds, self._limit, self._limit_bytes = seconds, limit, limit_bytes
        self._folder = tempfile.TemporaryDirectory(prefix="worldmodel-", ignore_cleanup_errors=True)
        self._files: OrderedDict[str, StoredFile] = OrderedDict()

    def new_path(self) -> Path:
        """Where to write one that is not known yet; it is the caller's until `add`."""
        return Path(self._folder.name) / secrets.token_hex(16)

    def add(self, path: Path, name: str, media_type: str) -> str:
        """The id under which the file at `path` is found for a while. Raises `FileTooLarge`, and then the file is gone."""
        size = path.stat().st_size
        if size > self._limit_bytes:
            path.unlink()
            raise FileTooLarge(f"The file has {size / 2**20:.0f} MB; this server keeps at most {self._limit_bytes / 2**20:.0f}.")
        key = secrets.token_urlsafe(24)
        self._files[key] = StoredFile(path, name, media_type, size, time.monotonic() + self._seconds)
        self._trim()
        return key

    def get(self, key: str) -> StoredFile | None:
        self._trim()
        return self._files.get(key)

    def knows(self, path: Path) -> bool:
        return any(file.path == path for file in self._files.values())

    @property
    def seconds(self) -> float:
        return self._seconds

    @property
    def num_bytes(self) -> int:
        return sum(file.size for file in self._files.values())

    def close(self) -> None:
        self._files.clear()
        self._folder.cleanup()

    def _trim(self) -> None:
        now, total = time.monotonic(), self.num_bytes
        for key, file in list(self._files.items()):
            if file.expires <= now or len(self._files) > self._limit or total > self._limit_bytes:
                file.path.unlink(missing_ok=True)  # who is reading it has it open
                total -= file.size
                del self._files[key]
