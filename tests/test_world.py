"""What a person relies on: the same again, back, apart, and from a file."""

import numpy as np
import pytest
import torch
from small import picture, small_model

import worldmodel.history as history_module
from worldmodel.actions import Action, ActionError, parse_script
from worldmodel.batch import write_together
from worldmodel.camera import integrate
from worldmodel.images import ImageError
from worldmodel.memory import MemoryConfig
from worldmodel.model import CONFIG_NAME, ModelError, WorldModel
from worldmodel.world import WorldError

SCRIPT = "w*8 left*12 w+d*8 .*4 r+up*12"


@pytest.fixture(scope="module")
def model():
    return small_model()


def play(world, script=SCRIPT):
    return list(world.stream(script))


def frames(chunks):
    return np.concatenate([c.frames for c in chunks])


def test_chunks_have_the_promised_shapes(model):
    world = model.start(picture(), "a village", seed=1)
    assert world.first_frame.shape == (64, 64, 3) and world.first_frame.dtype == np.uint8
    chunks = play(world)
    assert [c.index for c in chunks] == list(range(11))
    for c in chunks:
        assert c.frames.shape == (4, 64, 64, 3) and c.frames.dtype == np.uint8
        assert c.camera_to_world.shape == (4, 4, 4) and c.camera_to_world.dtype == np.float32
        assert c.actions.shape == (4, 13) and {"denoise", "decode", "memory"} <= c.timings.keys()
    want = integrate(np.stack([a.to_vector() for a in parse_script(SCRIPT)]))
    assert np.allclose(np.concatenate([c.camera_to_world for c in chunks]), want, atol=1e-5)
    assert len(world.actions) == 45 and world.seconds == pytest.approx(11 / 4)


@pytest.mark.parametrize("chunk", [1, 2])
def test_same_inputs_same_frames(chunk):
    model = small_model(chunk=chunk)
    a, b = (frames(play(model.start(picture(), "a village", seed=4))) for _ in range(2))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, frames(play(model.start(picture(), "a village", seed=5))))
    assert not np.array_equal(a, frames(play(model.start(picture(1), "a village", seed=4))))
    assert not np.array_equal(a, frames(play(model.start(picture(), "a desert", seed=4))))


def test_actions_change_what_follows_and_only_that(model):
    a, b = (frames(play(model.start(picture(), "", seed=0), s)) for s in ("w*8 left*8", "w*8 right*8"))
    assert np.array_equal(a[:8], b[:8])
    assert not np.array_equal(a[8:], b[8:])


def test_without_a_picture_the_prompt_makes_one(model):
    village, desert = model.start(None, "a village"), model.start(None, "a desert")
    assert village.first_frame.shape == (64, 64, 3)
    assert not np.array_equal(village.first_frame, desert.first_frame)


@pytest.mark.parametrize("chunks", [1, 5, 11])
def test_rewind_is_exact(model, monkeypatch, chunks):
    monkeypatch.setattr(history_module, "SNAPSHOT_EVERY", 3)
    monkeypatch.setattr(history_module, "MAX_SNAPSHOTS", 2)
    world = model.start(picture(), "a village", seed=2)
    first = play(world)
    world.rewind(chunks)
    assert world.index == 11 - chunks
    again = [world.step(c.actions) for c in first[11 - chunks :]]
    assert np.array_equal(frames(again), frames(first[11 - chunks :]))
    assert len(world._history.snapshots) <= 2
    with pytest.raises(WorldError, match="cannot go back"):
        world.rewind(12)


def test_rewind_across_a_change_of_prompt(model):
    world = model.start(picture(), "a village", seed=2)
    play(world, "w*12")
    world.prompt = "a desert"
    after = play(world, "w*12")
    world.rewind(4)
    assert world.prompt == "a village"
    play(world, "w*4")
    world.prompt = "a desert"
    assert np.array_equal(frames(play(world, "w*12")), frames(after))


@pytest.mark.parametrize("policy", ["relic", "visible", "retrieval"])
def test_a_new_prompt_holds_for_what_is_in_the_window_too(policy, monkeypatch):
    """The window's keys and values are those that a pass under the new prompt gives; older ones stay; and all of it comes back exactly."""
    monkeypatch.setattr(history_module, "SNAPSHOT_EVERY", 3)
    model = small_model(memory=MemoryConfig(2, horizon=7, policy=policy))
    world = model.start(picture(), "a village", seed=2)
    play(world, "w*20")
    before = world.fork()
    world.prompt = "a desert"
    world.plan(Action.idle())
    old, new = before.memory, world.memory
    n = old.tokens_per_latent
    assert old.remembered() == new.remembered() and old.count == new.count
    keep = old.num_tokens - 2 * n
    assert torch.equal(old.values[..., :keep, :], new.values[..., :keep, :]), "what has left the window stays"
    assert not torch.allclose(old.values[1:, ..., keep : old.num_tokens, :], new.values[1:, ..., keep : old.num_tokens, :])
    by_hand = before.fork()
    by_hand.memory.forget_newest(2)
    for past in by_hand._history[-2:]:
        write_together(model, [by_hand.memory], [past], [model.encode_prompt("a desert")])
    assert torch.equal(by_hand.memory.values[..., : old.num_tokens, :], new.values[..., : old.num_tokens, :])
    after = frames(play(world, "left*16"))
    world.rewind(3)
    assert np.array_equal(frames(play(world, "left*12")), after[4:]), "going back to the middle of it"
    world.rewind(5)
    assert world.prompt == "a village"


def test_a_new_prompt_in_the_first_moments_holds_for_the_start_picture_too(model):
    world, other = model.start(picture(), "a village"), model.start(picture(), "a desert")
    world.prompt = "a desert"
    world.plan(Action.idle())
    assert torch.equal(world.memory.values, other.memory.values)


def test_forks_live_apart(model):
    world = model.start(picture(), "a village", seed=2)
    play(world, "w*12")
    fork = world.fork()
    left, right = play(world, "left*8"), play(fork, "right*8")
    assert not np.array_equal(frames(left), frames(right))
    world.rewind(2)
    assert np.array_equal(frames(play(world, "right*8")), frames(right))


def test_save_and_load_go_on_exactly(model, tmp_path):
    world = model.start(picture(), "a village", seed=2)
    play(world)
    world.prompt = "a desert"
    play(world, "w*4")
    world.save(tmp_path / "there.world")
    assert [p.name for p in tmp_path.iterdir()] == ["there.world"]
    loaded = model.load_world(tmp_path / "there.world")
    assert loaded.prompt == "a desert" and loaded.index == world.index
    assert np.array_equal(loaded.first_frame, world.first_frame)
    assert np.array_equal(frames(play(loaded, "w*8")), frames(play(world, "w*8")))
    for w in (world, loaded):
        w.rewind(6)
    assert np.array_equal(frames(play(loaded, "d*8")), frames(play(world, "d*8")))


def test_unreadable_world_files_say_so(model, tmp_path):
    world = model.start(picture(), "a village")
    path = tmp_path / "a.world"
    world.save(path)
    (tmp_path / "cut.world").write_bytes(path.read_bytes()[:200])
    (tmp_path / "text.world").write_text("hello")
    for name in ("cut.world", "text.world", "missing.world"):
        with pytest.raises(WorldError, match="not a readable world file"):
            model.load_world(tmp_path / name)
    with pytest.raises(WorldError, match="another model"):
        small_model(seed=9).load_world(path)
    with pytest.raises(WorldError, match="could not be saved"):
        world.save(tmp_path / "no" / "such" / "folder.world")
    assert np.array_equal(world.step(Action.idle()).frames, model.load_world(path).step(Action.idle()).frames)  # nothing was lost


def test_bad_actions_and_pictures_leave_the_world_as_it_was(model):
    world = model.start(picture(), "a village", seed=2)
    with pytest.raises(ActionError, match="Unknown key"):
        world.step(Action.from_keys({"KeyQ"}))
    with pytest.raises(ActionError, match="1 to 4 actions"):
        world.step("w*5")
    with pytest.raises(ImageError):
        model.start(b"no picture", "a village")
    with pytest.raises(ModelError, match="at most"):
        world.prompt = "x" * 2000
    assert world.index == 0 and world.prompt == "a village"


def test_long_play_costs_no_more(model):
    world = model.start(picture(), "", seed=0)
    tokens = []
    for _ in range(60):
        world.step(Action.from_keys({"KeyW"}))
        tokens.append(world.memory_tokens)
    assert tokens[24:42] == tokens[42:60]  # the schedule's 18 factors, over and over


def test_models_survive_their_folder(tmp_path):
    model = small_model(memory=MemoryConfig(window=2, horizon=9))
    model.save_pretrained(tmp_path / "m", dtype=torch.float32)
    loaded = WorldModel(*_parts(tmp_path / "m", model))
    assert loaded.config == model.config and loaded.fingerprint == model.fingerprint
    a, b = (frames(play(m.start(picture(), "a village"), "w*8")) for m in (model, loaded))
    assert np.array_equal(a, b)


def _parts(folder, model):
    loaded = WorldModel.from_pretrained(folder)
    return loaded.transformer, loaded.autoencoder, model.text, loaded.config


def test_broken_checkpoints_say_what_is_broken(tmp_path):
    from safetensors.torch import load_file, save_file

    small_model().save_pretrained(tmp_path / "m")
    weights = next((tmp_path / "m" / "transformer").glob("*.safetensors"))
    tensors = load_file(weights)
    dropped = dict(tensors)
    del dropped["blocks.0.attn1.to_q.weight"]
    save_file(dropped, weights, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="blocks.0.attn1.to_q.weight is missing"):
        WorldModel.from_pretrained(tmp_path / "m")
    weights.write_bytes(b"junk")
    with pytest.raises(ModelError, match="cannot be loaded"):
        WorldModel.from_pretrained(tmp_path / "m")
    (tmp_path / "m" / CONFIG_NAME).write_text("{")
    with pytest.raises(ModelError, match="not a readable model description"):
        WorldModel.from_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="There is no model 'nothing'"):
        WorldModel.from_pretrained("nothing")
