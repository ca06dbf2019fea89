"""Scripts of held keys for training walks: balanced over all actions, single and mixed, with deliberate returns.

A script is built from phrases of a few named kinds. Which action comes next is drawn against how often each was used, so
the shares stay even; pitch and roll are kept in bounds, so the camera never ends upside down.
"""

from __future__ import annotations

from functools import cache
from itertools import groupby

import numpy as np

from worldmodel.actions import ACTION_NAMES, NUM_ACTIONS, ROTATION_UNIT_DEG, STATIC, Action
from worldmodel.camera import motion_from_actions

KINDS = ("wander", "turn_and_back", "out_and_back", "palindrome", "loop", "look_around")
"""Kinds of scripts; all but `wander` come back to something seen before."""
MAX_TILT_DEG, MAX_ROLL_DEG = 30.0, 20.0
HOLD = (4, 32)  # frames that a key is held
_ORDER = (0, 8, 9, 1, STATIC, 2, 3, 6, 7, 4, 5, 10, 11)  # the order in which the curriculum adds actions
_EASY = 5  # of them at level 0: dolly, pan, static
_GROUPS = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6])  # opposites share a group and are never held together


def random_script(rng: np.random.Generator, frames: int, level: float = 1.0, kind: str | None = None, speed: tuple[float, float] = (1.0, 1.0)) -> list[Action]:
    """`frames` actions at 16 fps.

    Args:
        level: curriculum, 0 (pan, dolly, static; one key at a time) to 1 (all 13 actions, up to three at once).
        kind: one of `KINDS`; drawn if None.
        speed: range of magnitudes, one drawn per script.
    """
    if frames < 1 or not 0 <= level <= 1:
        raise ValueError(f"A script has at least one frame and a level in 0..1, got {frames} frames and level {level}.")
    if kind is None:
        kind = KINDS[0] if rng.uniform() < 0.4 else KINDS[1 + int(rng.integers(len(KINDS) - 1))]
    if kind not in KINDS:
        raise ValueError(f"Unknown kind of script {kind!r}. Kinds are {', '.join(KINDS)}.")
    writer = _Writer(rng, frames, level)
    while not writer.full:
        _PHRASES[kind](writer)
    scale = float(rng.uniform(*speed))
    return [_to_action(held, scale) for held in writer.held[:frames]]


def script_text(actions: list[Action]) -> str:
    """The script (`worldmodel.actions.parse_script`) of actions; magnitudes other than 1 are not expressed."""
    names = ["+".join(n for n, m in zip(ACTION_NAMES, a.magnitudes, strict=True) if m and n != "static") or "." for a in actions]
    return " ".join(f"{name}*{len(list(run))}" for name, run in groupby(names))


def _to_action(held: tuple[int, ...], speed: float) -> Action:
    return Action.from_names((ACTION_NAMES[i] for i in held), speed)


class _Writer:
    """A script in the making: the held actions of each frame, how often each was used, and where the camera looks.

    Rotations are about the camera's own axes, so panning while tilted also rolls: pitch and roll are read from the true
    orientation, not from sums of actions.
    """

    def __init__(self, rng: np.random.Generator, frames: int, level: float) -> None:
        self.rng, self.frames, self.level = rng, frames, level
        self.held: list[tuple[int, ...]] = []
        self.used = rng.uniform(0, 12, NUM_ACTIONS)  # where each script starts differs
        self.allowed = np.array(_ORDER[: _EASY + round(level * (NUM_ACTIONS - _EASY))])
        self.rotation = np.eye(3)  # camera-to-start, OpenCV axes; the start is level

    @property
    def full(self) -> bool:
        return len(self.held) >= self.frames

    def hold(self, actions: tuple[int, ...], count: int) -> int:
        """Hold actions for up to `count` frames, stopping where pitch or roll reach their bounds; returns the frames."""
        turn = _turn(actions)
        for n in range(count):
            rotation = self.rotation @ turn
            if turn is not _STILL and _tilted(rotation) > max(1.0, _tilted(self.rotation)):
                return n
            self.rotation = rotation
            self.held.append(actions)
            self.used[list(actions) or [STATIC]] += 1
        return count

    def length(self, low: int = HOLD[0], high: int = HOLD[1]) -> int:
        return int(round(np.exp(self.rng.uniform(np.log(low), np.log(high)))))

    def pick(self, among: np.ndarray | None = None, keys: int | None = None) -> tuple[int, ...]:
        """1-3 actions to hold at once, the least used preferred, none that would tilt or roll too far."""
        among = self.allowed if among is None else np.intersect1d(self.allowed, among)
        among = np.array([a for a in among if _tilted(self.rotation @ _turn((a,), HOLD[0])) <= 1.0 or a < 6], dtype=int)
        if keys is None:
            chance = self.level * np.array([0.0, 0.42, 0.22])
            keys = 1 + int(self.rng.choice(3, p=[1 - chance.sum(), *chance[1:]]))
        chosen: list[int] = []
        while len(chosen) < keys and len(among):
            weight = np.exp(-(self.used[among] - self.used[among].min()) / 8.0)
            action = int(self.rng.choice(among, p=weight / weight.sum()))
            if action == STATIC:
                break
            chosen.append(action)
            among = among[(_GROUPS[among] != _GROUPS[action]) & (among != STATIC)]
        return tuple(sorted(chosen))

    def back(self, since: int) -> None:
        """Retrace the frames from index `since` on: opposite actions in reverse order, which undoes them exactly when each
        frame moves in one way, and nearly so otherwise."""
        for actions, run in groupby(self.held[since:][::-1]):
            self.hold(tuple(sorted(_opposite(a) for a in actions)), len(list(run)))

    def level_out(self) -> None:
        """Steer back to an upright, level camera: first the roll, then the pitch."""
        for axis, positive, negative in ((1, 11, 10), (0, 7, 6)):
            angle = _pitch_and_roll(self.rotation)[axis]
            self.hold((positive if angle > 0 else negative,), round(abs(angle) / ROTATION_UNIT_DEG))


_STILL = np.eye(3)


@cache
def _turn(actions: tuple[int, ...], frames: int = 1) -> np.ndarray:
    """Rotation [3, 3] of the camera by some held actions."""
    if not any(6 <= a < 12 for a in actions):
        return _STILL
    vector = np.zeros((1, NUM_ACTIONS))
    vector[0, list(actions)] = 1.0
    return np.linalg.matrix_power(motion_from_actions(vector)[0, :3, :3], frames)


def _pitch_and_roll(rotation: np.ndarray) -> tuple[float, float]:
    """Degrees: upwards, and clockwise."""
    pitch = np.degrees(np.arcsin(np.clip(-rotation[1, 2], -1, 1)))
    return float(pitch), float(np.degrees(np.arctan2(rotation[1, 0], rotation[1, 1])))


def _tilted(rotation: np.ndarray) -> float:
    """Pitch or roll as a share of its bound, whichever is larger."""
    pitch, roll = _pitch_and_roll(rotation)
    return max(abs(pitch) / MAX_TILT_DEG, abs(roll) / MAX_ROLL_DEG)


def _opposite(action: int) -> int:
    return action if action == STATIC else action ^ 1


# -- phrases: each adds some frames ------------------------------------------------------------------------------------
def _wander(w: _Writer) -> None:
    if _tilted(w.rotation) > 0.4 and w.rng.uniform() < 0.5:
        w.level_out()
    else:
        w.hold(w.pick(), w.length())


def _pause(w: _Writer) -> None:
    if w.rng.uniform() < 0.4:
        w.hold((), w.length(2, 8))


def _turn_and_back(w: _Writer) -> None:
    """Look away, perhaps stand, look back."""
    since = len(w.held)
    w.hold(w.pick(np.arange(6, 12)), w.length(10, HOLD[1]))
    _pause(w)
    w.back(since)
    w.hold(w.pick(np.arange(6)), w.length(4, 12))


def _out_and_back(w: _Writer) -> None:
    """Go somewhere in a straight line and come back."""
    since = len(w.held)
    w.hold(w.pick(np.arange(6)), w.length(10, HOLD[1]))
    _pause(w)
    w.back(since)
    w.hold(w.pick(np.arange(6, 12)), w.length(4, 16))


def _palindrome(w: _Writer) -> None:
    """A few holds, then all of them backwards; fitted to end with the script where there is room."""
    since, budget = len(w.held), max((w.frames - len(w.held)) // 2, HOLD[0])
    while len(w.held) - since < budget:
        if not w.hold(w.pick(), min(w.length(), budget - (len(w.held) - since))):
            break
    w.back(since)


def _loop(w: _Writer) -> None:
    """Walk a polygon: equal sides and equal turns, so the path closes if there is time."""
    corners = int(w.rng.integers(3, 6))
    turn, side = round(360 / corners / ROTATION_UNIT_DEG), w.length(4, 14)
    way, ahead = int(w.rng.choice([8, 9])), int(w.rng.choice(w.allowed[np.isin(w.allowed, (0, 1, 2, 3))]))
    arc = w.rng.uniform() < 0.5 * w.level  # walk while turning, which is a circle
    for _ in range(corners):
        if w.full:
            break
        if arc:
            w.hold(tuple(sorted((ahead, way))), turn)
        else:
            w.hold((ahead,), side)
            w.hold((way,), turn)


def _look_around(w: _Writer) -> None:
    """Swing past the start to both sides and end where it began."""
    first = w.pick(np.arange(6, 12), keys=1)
    if not first:
        return _wander(w)
    count = w.length(6, 20)
    done = w.hold(first, count)
    other = tuple(_opposite(a) for a in first)
    beyond = w.hold(other, 2 * done) - done
    w.hold(first, max(beyond, 0))
    w.hold(w.pick(np.arange(6)), w.length(4, 16))


_PHRASES = {
    "wander": _wander, "turn_and_back": _turn_and_back, "out_and_back": _out_and_back, "palindrome": _palindrome, "loop": _loop,
    "look_around": _look_around,
}  # fmt: skip
