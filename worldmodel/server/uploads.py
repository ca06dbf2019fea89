"""Uploaded start pictures, kept for a while under names that nobody can guess."""

from __future__ import annotations

import secrets
from collections import OrderedDict

import numpy as np


class Uploads:
    """The newest `limit` uploads, each already cut to the model's size: uint8 [H, W, 3]."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pictures: OrderedDict[str, np.ndarray] = OrderedDict()

    def add(self, picture_HW3: np.ndarray) -> str:
        name = secrets.token_urlsafe(16)
        self._pictures[name] = picture_HW3
        while len(self._pictures) > self._limit:
            self._pictures.popitem(last=False)
        return name

    def get(self, name: str) -> np.ndarray | None:
        if name in self._pictures:
            self._pictures.move_to_end(name)
        return self._pictures.get(name)
