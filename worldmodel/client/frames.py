"""Pictures of a remote world: as they arrive, and as they are given out."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from worldmodel.server import protocol as p


@dataclass(frozen=True)
class Frame:
    """One picture. `action_seq` is the newest message that had a say in it, `made_ms` and `timings` are milliseconds of its chunk."""

    pixels: np.ndarray  # uint8 [H, W, 3]
    number: int
    chunk: int
    action_seq: int
    made_ms: float = 0.0
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Arrived:
    """A frame that nobody has asked for yet, not decoded; `info` is what the server said about its chunk."""

    header: p.FrameHeader
    payload: bytes
    info: p.ChunkInfo | None

    @property
    def is_first(self) -> bool:
        """Whether it is the first picture after a start, or after going elsewhere."""
        return bool(self.header.flags & p.Flags.RESET)

    def decode(self) -> Frame:
        with Image.open(io.BytesIO(self.payload), formats=("JPEG", "PNG")) as image:
            pixels = np.array(image.convert("RGB"))
        h, info = self.header, self.info
        return Frame(pixels, h.frame, h.chunk, h.action_seq, info.made_ms if info else 0.0, dict(info.timings) if info else {})
