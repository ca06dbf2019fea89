"""Frames -> H.264 in mp4 that browsers play."""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np


def write_mp4(path: str | Path, frames: Iterable[np.ndarray], fps: float, scale: int = 1, crf: int = 18) -> int:
    """Encode uint8 [H, W, 3] frames as they come; returns how many. The file appears when it is complete.

    `scale` repeats pixels, so that small worlds can be watched.
    """
    import av

    if scale < 1:
        raise ValueError(f"scale is 1 or more, got {scale}.")
    path = Path(path)
    part = path.with_name(path.name + ".part")
    count = 0
    try:
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream(
                "libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": str(crf), "preset": "fast"}
            )
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                picture = np.ascontiguousarray(np.repeat(np.repeat(frame, scale, 0), scale, 1))
                if count == 0:
                    stream.height, stream.width = picture.shape[:2]
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                count += 1
            if count:
                container.mux(stream.encode())
        if not count:
            raise ValueError("There are no frames to write.")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return count
