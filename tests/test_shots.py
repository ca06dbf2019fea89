"""Remembered pictures for camera views: decoded once, alone, and never another one's."""

import numpy as np
import torch
from small import picture, small_model

from worldmodel import shots
from worldmodel.shots import Shots


def test_each_is_decoded_once_and_alone(monkeypatch):
    model = small_model(view_focal=0.7)
    asked = []
    decode = model.autoencoder.last_picture
    monkeypatch.setattr(model.autoencoder, "last_picture", lambda latents: asked.append(latents) or decode(latents))
    world = model.start(picture(), seed=1)
    for _ in world.stream("w*40 left*20"):
        pass
    assert all(len(latents) == 1 for latents in asked)
    start = world._history.start.latents[:, :, 0].float()
    assert sum(torch.equal(latents, start) for latents in asked) == 2, "for its depth, and once for all the views that show it"
    past = world._history.last
    assert torch.equal(world._shots(past, 0), decode(past.latents[:, :, 0].float())[0])


def test_old_ones_are_let_go_and_forks_are_apart(monkeypatch):
    monkeypatch.setattr(shots, "KEPT", 2)
    model = small_model(view_focal=0.7)
    world = model.start(picture(), seed=1)
    for _ in world.stream("w*12"):
        pass
    pasts, mine = [*world._history], Shots(model.autoencoder, model.dtype)
    first = mine(pasts[0], 0)
    other = mine.fork()
    assert other(pasts[0], 0) is first and mine.num_bytes == 3 * 64 * 64 * 4
    other(pasts[1], 0), other(pasts[2], 0)
    assert other(pasts[0], 0) is not first and torch.equal(other(pasts[0], 0), first) and mine(pasts[0], 0) is first
    assert other.num_bytes == 2 * mine.num_bytes


def test_what_was_taken_back_is_not_seen_again():
    model = small_model(view_focal=0.7)
    world, other = (model.start(picture(), seed=1) for _ in range(2))
    for _ in world.stream("w*4 left*20"):
        pass
    world.rewind(5)
    frames = [np.concatenate([chunk.frames for chunk in w.stream(script)]) for w, script in ((world, "a*24"), (other, "w*4 a*24"))]
    assert np.array_equal(frames[0], frames[1][4:])
