"""When a frame may leave and when the next chunk must start: credit, step times, and the play-out clock."""

from __future__ import annotations

import statistics
from collections import deque


class Credit:
    """At most `window` frames on their way. Acknowledgements are cumulative; nothing else bounds the delay of a slow link."""

    def __init__(self, window: int) -> None:
        self.window = window
        self.last_sent = 0
        self._sent: deque[tuple[int, float]] = deque()  # frame number, time sent

    @property
    def available(self) -> bool:
        return len(self._sent) < self.window

    def sent(self, frame: int, now: float) -> None:
        self._sent.append((frame, now))
        self.last_sent = frame

    def awaits(self, frame: int) -> bool:
        """Whether acknowledging `frame` would give any credit back."""
        return bool(self._sent) and self._sent[0][0] <= frame

    def acknowledge(self, frame: int, now: float) -> float | None:
        """Delay in seconds of the newest frame that this acknowledges, or None when it is old news."""
        delay = None
        while self._sent and self._sent[0][0] <= frame:
            delay = now - self._sent.popleft()[1]
        return delay

    def stalled(self, now: float, limit_s: float) -> bool:
        """Whether the oldest frame on its way has waited longer than `limit_s`."""
        return bool(self._sent) and now - self._sent[0][1] > limit_s


class StepTime:
    """How long steps take, from the last few: a first step that warms things up, or one hiccup, is soon forgotten."""

    def __init__(self, window: int = 8) -> None:
        self._recent: deque[float] = deque(maxlen=window)

    def update(self, seconds: float) -> None:
        self._recent.append(seconds)

    @property
    def typical(self) -> float:
        """The (low) median; 0 before the first step."""
        return statistics.median_low(self._recent) if self._recent else 0.0

    @property
    def cautious(self) -> float:
        """A time that the next step will rarely exceed: the second longest of the last few; 0 before the first step."""
        return sorted(self._recent)[-2:][0] if self._recent else 0.0


class PlayoutClock:
    """Times at which frames are due, one `period` apart.

    The period is the model's, or longer when the model is slower than real time: then a chunk is spread over the time
    that the next one takes, so that motion stays even.
    """

    def __init__(self, fps: float) -> None:
        self._fps = fps
        self.period = 1.0 / fps
        self._last = float("-inf")  # when the last frame was due

    def set_pace(self, step_s: float, frames: int) -> None:
        """Adapt the period to a model that takes `step_s` for `frames` frames."""
        self.period = max(1.0 / self._fps, step_s / frames)

    @property
    def due(self) -> float:
        """When the next frame is due."""
        return self._last + self.period

    def tick(self) -> None:
        """The frame that was due has left or was dropped."""
        self._last = self.due

    def restart(self, now: float) -> None:
        """A frame is due at once: the first of a world, or one after the queue ran dry."""
        self._last = max(self._last, now - self.period)

    def skip_to(self, now: float) -> None:
        """A frame is due at once and what came before is forgotten (start of a world, end of a pause)."""
        self._last = now - self.period

    def start_by(self, queued: int, step_s: float) -> float:
        """When the next step must begin so that its first frame is ready when the `queued` ones have been shown."""
        return self._last + self.period * (queued + 1) - step_s
