"""What another prompt does to the colours of what was seen before. Not RELIC's; for models with a camera view.

A camera view shows pictures as they were made, so on its own a place would stay in the light in which it was first seen, whatever the
prompt says now. The model knows what light a prompt means: from the prompt alone it makes a picture that has its colours, if little else.
So when the prompt changes, remembered pictures are shown as they would look if their colours had moved as these pictures' do: each colour v
in 0..1 becomes v^g, which leaves black and white where they are and takes the old mean to the new one. g differs by channel and by how
far up one looks (sky and ground change differently), and the change takes a second, as if the light did.

A *tone* is float32 [BANDS, 3]: log(-log(mean)) of the colours of horizontal bands, so that a difference of tones is a log of g.
"""

from __future__ import annotations

import numpy as np

BANDS = 4
"""Horizontal bands of a picture, from its top on."""
TOLD = 1.5
"""By how much more colours move than in the pictures from prompts alone, which are all a little like the mean of everything."""
FOLLOWS = 0.3
"""Share of what is left to change that a chunk changes."""
ARRIVED = 1e-3
"""What is less far from where it goes is there."""
DARKEST, LIGHTEST = 0.02, 0.98


def bands(frames: np.ndarray) -> np.ndarray:
    """Mean colours float64 [..., BANDS, 3] of uint8 [..., H, W, 3], from top to bottom, in 0..1; H is a multiple of `BANDS`"""
    *many, height, width, _ = frames.shape
    return frames.reshape(*many, BANDS, height // BANDS, width, 3).mean((-3, -2)) / 255


def tone_of(frame: np.ndarray) -> np.ndarray:
    """Tone float32 [BANDS, 3] of a picture uint8 [H, W, 3]"""
    return np.log(-np.log(bands(frame).clip(DARKEST, LIGHTEST))).astype(np.float32)


def next_tone(tone: np.ndarray | None, aim: np.ndarray) -> np.ndarray | None:
    """The tone of the next chunk after one of `tone`, on the way to `aim`; None is the first prompt's own, 0.

    Once it is there it is the same array each time.
    """
    before = np.zeros_like(aim) if tone is None else tone
    left = aim - before
    if np.abs(left).max() >= ARRIVED:
        return before + FOLLOWS * left
    if not aim.any():
        return None
    return tone if np.array_equal(aim, before) else aim


def changes_to(tone: np.ndarray | None, tones: list[np.ndarray | None]) -> np.ndarray | None:
    """By how much pictures of `tones` change under `tone`: float32 [S, BANDS, 3], or None where all have it already"""
    if all(t is tone for t in tones):
        return None
    level = np.zeros((BANDS, 3), np.float32)
    return np.stack([(level if tone is None else tone) - (level if t is None else t) for t in tones])
