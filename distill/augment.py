"""Time-reverse augmentation (RELIC, arXiv 2512.04040, section 3): walk to a pivot, then the same way back.

It teaches that coming back shows what was there before. Latents stand for four frames each, so it happens on pixels, before
they are encoded (`distill.latents.encode_clips`). RELIC does not state how often it is used.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from distill.dataset import Clip
from worldmodel import camera


def random_pivot(length: int, rng: np.random.Generator) -> int:
    """Index of the frame at which a clip of `length` frames turns back, uniform over its second half."""
    return int(rng.integers(length // 2, length))


def palindrome(clip: Clip, pivot: int) -> Clip:
    """The clip up to frame `pivot` and back again, as long as it was.

    Poses are the mirrored frames' own. Actions of the way back are those that undo the way there: integrating them gives the
    poses. Raises ValueError where the pivot is not in the second half of the clip.
    """
    order = camera.palindrome(clip.camera_to_world, pivot)
    actions = clip.actions[order].copy()
    back = camera.integrate(clip.actions)[order[pivot:]]  # in steps, in float64: exact where stored poses are rounded
    actions[pivot + 1 :] = camera.actions_from_poses(back, step=1.0)[1:]
    return replace(clip, frames=clip.frames[order], camera_to_world=clip.camera_to_world[order], actions=actions)


def maybe_palindrome(clip: Clip, share: float, index: int) -> Clip:
    """A `share` of all clips as palindromes; whether and where this one turns depends on its `index` alone."""
    rng = np.random.default_rng([index, 0x9A11])
    return palindrome(clip, random_pivot(len(clip), rng)) if rng.uniform() < share else clip
