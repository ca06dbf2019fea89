"""Less to send over a slow link: first a lower JPEG quality, then a smaller picture; back up when the link has kept up for a while."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

LADDER = ((1.0, 1.0), (0.8, 1.0), (0.62, 1.0), (0.45, 1.0), (0.45, 0.75), (0.45, 0.5))
"""Quality and size, as parts of what was asked for."""
MIN_QUALITY, MIN_SIDE = 20, 32
SKIPPED = 0.1
"""One step down after a second in which more of the frames were skipped than this."""
PATIENCE_S, LONGEST_PATIENCE_S = 5, 80


@dataclass(frozen=True)
class Picture:
    """How a frame is sent."""

    quality: int
    width: int
    height: int
    reduced: bool


class Adaptation:
    """Call `second` once a second. A step up that turns out too much is tried again only after twice as long."""

    def __init__(self) -> None:
        self.level = 0
        self._good, self._since_up = 0, LONGEST_PATIENCE_S
        self._patience = PATIENCE_S

    def second(self, sent: int, skipped: int) -> None:
        """How many frames left in the last second, and how many were skipped because the link was not ready for them."""
        if not sent and not skipped:
            return
        self._since_up += 1
        if skipped > SKIPPED * (sent + skipped):
            if self._since_up <= 2:
                self._patience = min(LONGEST_PATIENCE_S, 2 * self._patience)
            self.level, self._good = min(self.level + 1, len(LADDER) - 1), 0
            return
        self._good += 1
        if self.level and self._good >= self._patience:
            self.level, self._good, self._since_up = self.level - 1, 0, 0
        elif not self.level and self._good >= self._patience:
            self._patience = PATIENCE_S

    def picture(self, quality: int, width: int, height: int) -> Picture:
        """What becomes of a frame of that size for which `quality` was asked."""
        part, size = LADDER[self.level]
        if not self.level:
            return Picture(quality, width, height, False)
        size = max(size, min(1.0, MIN_SIDE / min(width, height)))
        return Picture(max(min(quality, MIN_QUALITY), round(quality * part)), round(width * size), round(height * size), True)


def resized(pixels: np.ndarray, picture: Picture) -> np.ndarray:
    if pixels.shape[:2] == (picture.height, picture.width):
        return pixels
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((picture.width, picture.height), Image.Resampling.BOX))
