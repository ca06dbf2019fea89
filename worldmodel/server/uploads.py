"""Uploaded start pictures, kept for a while under names that nobody can guess."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.images import load_start_image


def notice_of(model: Any, picture: Any) -> str | None:
    """What the model says of a visitor's own picture, if anything; not for the event loop, it takes milliseconds."""
    judge = getattr(model, "familiarity", None)
    found = None if judge is None or picture is None else judge(picture)
    return None if found is None else found.notice


@dataclass(frozen=True)
class Upload:
    """A picture cut to the model's size, uint8 [H, W, 3], and what its owner is to be told of it."""

    picture: np.ndarray
    notice: str | None = None

    @classmethod
    def of(cls, data: bytes, model: Any) -> Upload:
        """Of a file's content; raises ImageError. Not for the event loop."""
        picture = load_start_image(data, model.size)
        return cls(picture, notice_of(model, picture))


class Uploads:
    """The newest `limit` uploads."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._uploads: OrderedDict[str, Upload] = OrderedDict()

    def add(self, upload: Upload) -> str:
        name = secrets.token_urlsafe(16)
        self._uploads[name] = upload
        while len(self._uploads) > self._limit:
            self._uploads.popitem(last=False)
        return name

    def get(self, name: str) -> Upload | None:
        if name in self._uploads:
            self._uploads.move_to_end(name)
        return self._uploads.get(name)
