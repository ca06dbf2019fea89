"""What a person can do: 13 action magnitudes, the keys that press them, and scripts of held keys.

An action is RELIC's vector of 13 non-negative magnitudes for one video frame (arXiv 2512.04040, section 3.3): six
translations in units of the world's typical step, six rotations in units of `ROTATION_UNIT_DEG`, and `static`, which is 1
exactly when nothing else is. Several may be active at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

ACTION_NAMES = (
    "dolly_in", "dolly_out", "truck_left", "truck_right", "pedestal_up", "pedestal_down",
    "tilt_up", "tilt_down", "pan_left", "pan_right", "roll_cw", "roll_ccw",
    "static",
)  # fmt: skip
NUM_ACTIONS = len(ACTION_NAMES)
STATIC = ACTION_NAMES.index("static")

ROTATION_UNIT_DEG = 1.25
"""Degrees per frame that a rotation magnitude of 1.0 turns the camera (20 degrees a second at 16 frames a second)."""

KEY_BINDINGS: dict[str, str] = {
    "KeyW": "dolly_in", "KeyS": "dolly_out", "KeyA": "truck_left", "KeyD": "truck_right",
    "KeyR": "pedestal_up", "KeyF": "pedestal_down",
    "ArrowUp": "tilt_up", "ArrowDown": "tilt_down", "ArrowLeft": "pan_left", "ArrowRight": "pan_right",
    "KeyI": "tilt_up", "KeyK": "tilt_down", "KeyJ": "pan_left", "KeyL": "pan_right",
    "KeyO": "roll_cw", "KeyU": "roll_ccw",
}  # fmt: skip
"""W3C `KeyboardEvent.code` -> action name."""

SCRIPT_KEYS: dict[str, str] = {
    **{code[3:].lower(): name for code, name in KEY_BINDINGS.items() if code.startswith("Key")},
    **{code[5:].lower(): name for code, name in KEY_BINDINGS.items() if code.startswith("Arrow")},
}
"""Short key names used in scripts (`w`, `left`, ...) -> action name; action names themselves are understood too."""

IDLE_TERMS = frozenset({".", "none", "static"})
MAX_SCRIPT_FRAMES = 16 * 3600


class ActionError(ValueError):
    """An unknown key, a malformed script, or a vector that is no action. The message says what would be right."""


@dataclass(frozen=True)
class Action:
    """One frame's action: 13 non-negative magnitudes in the order of `ACTION_NAMES`."""

    magnitudes: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.magnitudes) != NUM_ACTIONS:
            raise ActionError(f"An action has {NUM_ACTIONS} magnitudes ({', '.join(ACTION_NAMES)}), got {len(self.magnitudes)}.")
        if not all(np.isfinite(m) and m >= 0 for m in self.magnitudes):
            raise ActionError(f"Action magnitudes are finite and not negative, got {self.magnitudes}.")

    @classmethod
    def from_names(cls, names: Iterable[str], speed: float = 1.0) -> Action:
        """Action with each named entry at `speed`; opposite directions cancel; nothing left gives `static`."""
        vector = np.zeros(NUM_ACTIONS)
        for name in set(names):
            if name not in ACTION_NAMES:
                raise ActionError(f"Unknown action {name!r}. Actions are {', '.join(ACTION_NAMES)}.")
            vector[ACTION_NAMES.index(name)] = speed
        return cls.from_vector(vector)

    @classmethod
    def from_keys(cls, keys: Iterable[str], speed: float = 1.0) -> Action:
        """Action of the held keys, given as W3C `event.code` strings such as ``{"KeyW", "ArrowLeft"}``."""
        keys = set(keys)
        unknown = sorted(keys - KEY_BINDINGS.keys())
        if unknown:
            raise ActionError(f"Unknown key {unknown[0]!r}. Bound keys are {', '.join(KEY_BINDINGS)}.")
        return cls.from_names((KEY_BINDINGS[key] for key in keys), speed)

    @classmethod
    def from_vector(cls, vector: Sequence[float] | np.ndarray) -> Action:
        """Canonical action of 13 magnitudes: opposite directions cancel, `static` is set when nothing else is."""
        v = np.asarray(vector, dtype=np.float64).reshape(-1)
        action = cls(tuple(float(x) for x in v))  # validates
        pairs = np.asarray(action.magnitudes[:STATIC]).reshape(-1, 2)
        pairs = np.maximum(pairs - pairs[:, ::-1], 0.0)
        moving = pairs.reshape(-1)
        return cls((*map(float, moving), 0.0 if moving.any() else 1.0))

    @classmethod
    def idle(cls) -> Action:
        return cls((*([0.0] * STATIC), 1.0))

    @property
    def is_static(self) -> bool:
        return not any(self.magnitudes[:STATIC])

    def opposite(self) -> Action:
        """The action with every direction reversed (left for right, in for out, ...)."""
        pairs = np.asarray(self.magnitudes[:STATIC]).reshape(-1, 2)[:, ::-1]
        return Action((*map(float, pairs.reshape(-1)), self.magnitudes[STATIC]))

    def to_vector(self) -> np.ndarray:
        """float32 [13]"""
        return np.asarray(self.magnitudes, dtype=np.float32)


def parse_script(script: str, speed: float = 1.0) -> list[Action]:
    """Actions, one per frame, of a script of held keys.

    A script is a sequence of terms ``keys*frames`` separated by spaces; keys are joined by ``+``; a lone ``.`` (or
    ``none``) holds nothing. ``"w*16 w+left*8 .*4"`` walks for a second, walks and turns for half, stands for a quarter.
    """
    actions: list[Action] = []
    for term in script.split():
        keys, star, count = term.partition("*")
        if star and not (count.isdecimal() and len(count) < 10):
            raise ActionError(f"Bad script term {term!r}: write keys*frames, for example w+left*8.")
        frames = int(count) if star else 1
        if len(actions) + frames > MAX_SCRIPT_FRAMES:
            raise ActionError(f"The script is longer than {MAX_SCRIPT_FRAMES} frames (one hour at 16 frames a second).")
        names = []
        for key in keys.lower().split("+"):
            if key in IDLE_TERMS:
                continue
            if key in SCRIPT_KEYS:
                names.append(SCRIPT_KEYS[key])
            elif key in ACTION_NAMES:
                names.append(key)
            else:
                raise ActionError(f"Unknown key {key!r} in script term {term!r}. Keys are {', '.join(SCRIPT_KEYS)} and '.' for none.")
        actions.extend([Action.from_names(names, speed)] * frames)
    if not actions:
        raise ActionError("The script is empty: write terms such as w*16 left*8.")
    return actions


def as_actions(actions: str | np.ndarray | Iterable[Action]) -> list[Action]:
    """A list of `Action` from a script, an array [T, 13], or an iterable of actions."""
    if isinstance(actions, str):
        return parse_script(actions)
    return [a if isinstance(a, Action) else Action.from_vector(a) for a in actions]


def to_array(actions: Iterable[Action]) -> np.ndarray:
    """float32 [T, 13]"""
    return np.asarray([a.magnitudes for a in actions], dtype=np.float32).reshape(-1, NUM_ACTIONS)
