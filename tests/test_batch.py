"""Several worlds in one batch: as stepping each alone, and a failure changes nothing."""

import numpy as np
import pytest
import torch
from small import picture, small_model
from viewing import with_views

from worldmodel.batch import finalize_together, generate_together, step_together
from worldmodel.camera_view import CameraView
from worldmodel.memory import MemoryConfig, MemoryTeam
from worldmodel.model import WorldModel

SCRIPTS = ("w*4", "left*4", "d+up*4", ".*4", "right*4", "s*4")


def worlds_of(model, lengths=(0, 1, 5, 12)):
    """Worlds of different pictures, prompts, seeds and lengths."""
    worlds = []
    for i, length in enumerate(lengths):
        world = model.start(picture(i), ("a village", "a desert")[i % 2], seed=i)
        for k in range(length):
            world.step(SCRIPTS[(i + k) % len(SCRIPTS)])
        worlds.append(world)
    return worlds


def step(worlds, k, together):
    actions = [SCRIPTS[(i + k) % len(SCRIPTS)] for i in range(len(worlds))]
    if together:
        return [c.frames for c in step_together(worlds, actions)]
    return [w.step(a).frames for w, a in zip(worlds, actions, strict=True)]


@pytest.mark.parametrize("policy", ["relic", "age", "retrieval", "visible"])
@pytest.mark.parametrize("chunk", [1, 2])
def test_together_equals_alone_but_for_rounding(policy, chunk):
    """Of weights that nobody trained, which make much of little: what lies on an edge of float16 is kept apart. Those shipped: below."""
    model = with_views(memory=MemoryConfig(2, horizon=7, policy=policy), chunk=chunk)
    alone, batch = worlds_of(model, (0, 1, 6)), worlds_of(model, (0, 1, 6))
    for k in range(3):
        for a, b in zip(step(alone, k, False), step(batch, k, True), strict=True):
            assert np.abs(a.astype(int) - b).max() <= 2
    for a, b in zip(alone, batch, strict=True):
        assert a.index == b.index and a.memory.remembered() == b.memory.remembered() and np.array_equal(a.actions, b.actions)


def test_in_double_precision_there_is_no_difference():
    """So nothing but rounding tells them apart: no world sees another's past, text, noise or pictures."""
    model = with_views(torch.float64)
    alone, batch = worlds_of(model), worlds_of(model)
    for k in range(4):
        for a, b in zip(step(alone, k, False), step(batch, k, True), strict=True):
            assert np.array_equal(a, b)
    for a, b in zip(alone, batch, strict=True):
        assert torch.allclose(a.last_latents, b.last_latents, atol=1e-10, rtol=0)
        assert all(torch.allclose(x, y, atol=1e-10, rtol=0) for x, y in zip(*(w.memory.state_dict().values() for w in (a, b)), strict=True))


def test_the_shipped_weights_together_and_alone():
    """The frames of the whole stack; the packaged model is the one that people see."""
    model = WorldModel.from_pretrained("tiny", device="cpu")
    pairs = [[model.start(g.image_path, g.prompt, seed=i) for i, g in enumerate(model.gallery[:2])] for _ in range(2)]
    for pair in pairs:
        pair[1].step("left*4")
    for k in range(2):
        for a, b in zip(step(pairs[0], k, False), step(pairs[1], k, True), strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1


def test_one_world_alone_is_a_batch_of_one():
    model = with_views()
    (alone,), (batch,) = worlds_of(model, (3,)), worlds_of(model, (3,))
    for k in range(3):
        assert np.array_equal(step([alone], k, False)[0], step([batch], k, True)[0])


def test_a_stochastic_sampler_gives_the_same_again():
    model = with_views()
    torch.manual_seed(1)
    (first,) = step(worlds_of(model, (2,)), 0, False)
    torch.manual_seed(2)
    assert np.array_equal(first, step(worlds_of(model, (2,)), 0, False)[0])


@pytest.mark.parametrize("stage", ["transformer", "decode", "frames"])
def test_a_failed_batch_changes_no_world(monkeypatch, stage):
    model = with_views()
    alone, batch = worlds_of(model, (0, 4)), worlds_of(model, (0, 4))
    parts = {"transformer": (model.transformer.blocks[1], "forward"), "decode": (model.autoencoder, "decode_chunk")}
    owner, name = (parts | {"frames": (model, "to_pixels")})[stage]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, _fail)
        with pytest.raises(torch.OutOfMemoryError):
            generate_together(batch, SCRIPTS[:2])
    assert [w.pending for w in batch] == [None, None]
    for a, b in zip(step(alone, 0, False), step(batch, 0, True), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1


def test_a_failed_clean_pass_writes_nothing_twice(monkeypatch):
    """The first world's memory is written when the second one's fails: on the next try only the second is."""
    model = with_views()
    alone, batch = worlds_of(model, (1, 4)), worlds_of(model, (1, 4))
    generate_together(batch, SCRIPTS[:2])
    with monkeypatch.context() as patch:
        patch.setattr(batch[1].memory, "commit", _fail)
        with pytest.raises(torch.OutOfMemoryError):
            finalize_together(batch)
    step(alone, 0, False)
    finalize_together(batch)
    for a, b in zip(alone, batch, strict=True):
        assert a.index == b.index and a.memory.count == b.memory.count
    for a, b in zip(step(alone, 1, False), step(batch, 1, True), strict=True):
        assert np.abs(a.astype(int) - b).max() <= 1


def _fail(*_, **__):
    raise torch.OutOfMemoryError("told to fail")


def test_what_cannot_be_stepped_together_is_refused():
    model = with_views()
    a, b = worlds_of(model, (0, 0))
    with pytest.raises(ValueError, match="in this batch twice"):
        step_together([a, a], ["w*4", "w*4"])
    with pytest.raises(ValueError, match="one model"):
        step_together([a, small_model().start(picture())], ["w*4", "w*4"])
    with pytest.raises(ValueError, match="batch of 1"):
        MemoryTeam([model.transformer.new_memory(model.config.memory, (4, 4), batch=2)])
    assert a.index == b.index == 0


def test_views_of_different_numbers_of_pictures_are_joined():
    model = with_views()
    plans = [w.plan("left*4") for w in worlds_of(model, (0, 5))]
    joined = CameraView.together([p.view for p in plans])
    latents = torch.randn(2, 8, 4, 4)
    for i, plan in enumerate(plans):
        assert torch.equal(joined.frames[i : i + 1], plan.view.frames) and torch.equal(joined.known[i : i + 1], plan.view.known)
        assert torch.allclose(joined.depth_of(latents)[i], plan.view.depth_of(latents[i : i + 1])[0], atol=1e-6)
