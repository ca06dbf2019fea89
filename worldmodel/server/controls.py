"""What is held down right now, turned into one chunk's actions: the latest state wins, and no tap is lost."""

from __future__ import annotations

import threading

import numpy as np

from worldmodel.actions import ACTION_NAMES, KEY_BINDINGS, ROTATION_UNIT_DEG, STATIC, Action

MAX_LOOK = 2.0
"""Largest rotation magnitude that mouse movement may give a frame (2.5 degrees)."""

_PAN_RIGHT, _PAN_LEFT = ACTION_NAMES.index("pan_right"), ACTION_NAMES.index("pan_left")
_TILT_DOWN, _TILT_UP = ACTION_NAMES.index("tilt_down"), ACTION_NAMES.index("tilt_up")


def _opposite(name: str) -> str:
    return ACTION_NAMES[ACTION_NAMES.index(name) ^ 1]


class Controls:
    """Held keys and pending mouse look of one person; `update` on every message, `latch` at the start of every chunk, which may be in
    another thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.seq = 0
        self.held: frozenset[str] = frozenset()
        self._tapped: dict[str, None] = {}  # in order of pressing
        self._look_deg = np.zeros(2)  # right, down

    def update(self, seq: int, keys: list[str], look: tuple[float, float] = (0.0, 0.0)) -> None:
        """The newest message: everything that is held, and degrees the view was turned since the message before."""
        with self._lock:
            for key in keys:
                if key not in self.held:
                    self._tapped.pop(key, None)
                    self._tapped[key] = None
            self.held, self.seq = frozenset(keys), seq
            self._look_deg += look

    def release(self) -> None:
        """Nothing is held any more (the connection is gone)."""
        with self._lock:
            self.held = frozenset()
            self._tapped.clear()
            self._look_deg[:] = 0

    @property
    def active(self) -> bool:
        """Whether the next latch would do anything."""
        return bool(self.held or self._tapped or self._look_deg.any())

    def latch(self, frames: int, speed: float = 1.0) -> list[Action]:
        """Actions of the next `frames` frames.

        Keys held now act; keys pressed and let go since the last latch act too, for these frames, unless a later key
        says the opposite. Mouse look is spread evenly over the frames, at most `MAX_LOOK` a frame; what is beyond waits
        for the next chunk, and what is beyond that is dropped.
        """
        budget = MAX_LOOK * ROTATION_UNIT_DEG * frames
        with self._lock:
            names = {KEY_BINDINGS[key] for key in self.held}
            for key in reversed(self._tapped):
                name = KEY_BINDINGS[key]
                if key not in self.held and _opposite(name) not in names:
                    names.add(name)
            self._tapped.clear()
            look = np.clip(self._look_deg, -budget, budget)
            self._look_deg = np.clip(self._look_deg - look, -budget, budget)
        right, down = look / (ROTATION_UNIT_DEG * frames)

        vector = np.asarray(Action.from_names(names, speed).magnitudes)
        vector[STATIC] = 0.0
        vector[_PAN_RIGHT if right > 0 else _PAN_LEFT] += abs(right)
        vector[_TILT_DOWN if down > 0 else _TILT_UP] += abs(down)
        return [Action.from_vector(vector)] * frames
