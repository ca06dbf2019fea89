"""Pictures of remembered latent frames, as camera views look them up: each is decoded once, not for every view that shows it."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor

from worldmodel.autoencoder import VideoAutoencoder
from worldmodel.chunk import Past

KEPT = 12
"""Pictures that are kept, those that were asked for last; a view asks for seven at most."""


class Shots:
    """The last pictures of one world's latent frames, whose `latents` never change.

    Each is decoded alone, so that its pixels do not depend on what else a view shows, to the last bit.
    """

    def __init__(self, autoencoder: VideoAutoencoder, dtype: torch.dtype) -> None:
        self._autoencoder, self._dtype = autoencoder, dtype
        self._kept: OrderedDict[tuple[int, int], tuple[Past, Tensor]] = OrderedDict()  # with what the number of `id` is of

    def __call__(self, past: Past, k: int) -> Tensor:
        """[3, H, W] in -1..1, of latent frame k of a chunk"""
        name = id(past), k
        if name not in self._kept:
            latent = past.latents[:, :, k].to(self._dtype)
            self._kept[name] = past, self._autoencoder.last_picture(latent)[0]
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        return self._kept[name][1]

    def fork(self) -> Shots:
        """A copy that grows on its own."""
        other = Shots(self._autoencoder, self._dtype)
        other._kept = self._kept.copy()
        return other

    @property
    def num_bytes(self) -> int:
        """Bytes of the pictures."""
        return sum(shot.numel() * shot.element_size() for _, shot in self._kept.values())
