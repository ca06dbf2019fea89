"""Colours go where the prompt's go, for what is up and down in the world, and everything still comes back exactly."""

import numpy as np
import pytest
import torch
from small import picture, small_model

from worldmodel.actions import as_actions, to_array
from worldmodel.camera import integrate, pose_code
from worldmodel.camera_view import toned
from worldmodel.tone import ARRIVED, BANDS, FOLLOWS, TOLD, next_tone, tone_of
from worldmodel.world import World

FOCAL = 0.7


def code(script):
    """Pose code [1, 9] after a script"""
    return torch.from_numpy(pose_code(integrate(to_array(as_actions(script)))[-1:])).float()


def plain(colours, size=64):
    """uint8 [size, size, 3] of even bands"""
    return np.repeat(np.asarray(colours, np.uint8), size // BANDS, 0)[:, None].repeat(size, 1)


OLD = [(200, 90, 60), (120, 130, 90), (60, 160, 100), (40, 80, 120)]
NEW = [(90, 110, 160), (100, 60, 100), (30, 120, 180), (120, 120, 40)]


def to_video(frame):
    return torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 127.5 - 1


def test_the_old_mean_becomes_the_new_one():
    """In the middle of each band; black and white stay."""
    change = torch.from_numpy(tone_of(plain(NEW)) - tone_of(plain(OLD)))[None]
    got = (toned(to_video(plain(OLD)), change, code(".*1"), FOCAL)[0] + 1) * 127.5
    for band, colour in enumerate(NEW):
        assert torch.allclose(got[:, 16 * band + 7 : 16 * band + 9, 31:33].mean((1, 2)), torch.tensor(colour).float(), atol=4)
    ends = to_video(plain([(0, 0, 0), (255, 255, 255)] * 2))
    assert torch.allclose(toned(ends, change, code(".*1"), FOCAL), ends, atol=0.05)


def test_nothing_changes_where_the_tone_does_not():
    pictures = torch.rand(2, 3, 32, 32) * 2 - 1
    change = torch.stack([torch.zeros(BANDS, 3), torch.ones(BANDS, 3)])
    got = toned(pictures, change, code(".*1").expand(2, 9), FOCAL)
    assert torch.equal(got[0], pictures[0]) and not torch.allclose(got[1], pictures[1], atol=0.1)
    assert toned(pictures, torch.zeros(2, BANDS, 3), code(".*1").expand(2, 9), FOCAL) is pictures


@pytest.mark.parametrize(("script", "row"), [("up*32", 60), ("down*32", 20)])
def test_bands_stay_where_they_are_in_the_world(script, row):
    """40 degrees up the picture ends above the horizon, 40 down it begins below it: all of it, or nothing, is of the upper bands."""
    grey = torch.zeros(1, 3, 64, 64)
    change = torch.zeros(1, BANDS, 3)
    change[:, :2] = 1.0  # what is above the horizon
    got = toned(grey, change, code(script), FOCAL)[0, 0, row]
    moved = (got - grey[0, 0, row]).abs() > 0.05
    assert moved.all() if script.startswith("up") else not moved.any()


def test_upside_down():
    change = torch.zeros(1, BANDS, 3)
    change[:, 0] = 1.0
    grey = torch.zeros(1, 3, 64, 64)
    level, turned = (toned(grey, change, code(s), FOCAL)[0] for s in (".*1", "o*144"))  # 144 * 1.25 degrees
    assert torch.allclose(level.flip(1, 2), turned, atol=1e-3) and level[0, 0, 0] < -0.1


def test_it_takes_a_second_and_arrives():
    aim = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
    tone, left = np.zeros_like(aim), []
    while not np.array_equal(tone, aim):
        tone = next_tone(tone, aim)
        left.append(np.abs(aim - tone).max())
        assert len(left) < 30
    assert left[0] == pytest.approx(1 - FOLLOWS) and left[3] < 0.3 and left[-1] == 0 < left[-2] < ARRIVED


# -- in a world ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model():
    return small_model(view_focal=FOCAL)


def step(world, times=1):
    return [world.step("left*2 w*2").frames for _ in range(times)]


def test_without_another_prompt_nothing_is_asked_of_it(model):
    known = dict(model._tones)
    world = model.start(picture(), "a village")
    step(world, 3)
    assert model._tones == known and all(past.tone is None for past in world._history)


def test_pictures_are_toned_towards_the_new_prompt(model, monkeypatch):
    world = model.start(picture(), "a village")
    step(world, 2)
    world.prompt = "a desert"
    seen = []
    view = World._view

    def watched(self, memory, poses, tone):
        seen.append(tone)
        return view(self, memory, poses, tone)

    monkeypatch.setattr(World, "_view", watched)
    step(world, 2)
    aim = TOLD * (model.tone("a desert") - model.tone("a village"))
    assert np.abs(aim).max() > 0.01
    first, second = (np.asarray(t) for t in seen[:2])
    assert np.allclose(first, FOLLOWS * aim, atol=1e-6) and np.allclose(second, first + FOLLOWS * (aim - first), atol=1e-6)
    assert np.array_equal(world._history[2].tone, first)


def test_back_under_the_first_prompt_pictures_are_as_they_were(model):
    world = model.start(picture(), "a village")
    world.prompt = "a desert"
    step(world, 2)
    world.prompt = "a village"
    step(world, 40)
    assert world._history[-1].tone is None


def test_rewinding_forking_saving_and_loading_stay_exact(model, tmp_path):
    world = model.start(picture(), "a village")
    step(world, 2)
    world.prompt = "a desert"
    step(world, 2)
    world.save(tmp_path / "there.world")
    other, loaded = world.fork(), model.load_world(tmp_path / "there.world")
    known = step(world, 3)
    world.prompt = "snow"
    step(world, 2)
    world.rewind(5)
    for again in (world, other, loaded):
        assert again.prompt == "a desert"
        assert all(np.array_equal(a, b) for a, b in zip(known, step(again, 3), strict=True))


def test_a_few_prompts_are_kept(model, monkeypatch):
    monkeypatch.setattr("worldmodel.model.MAX_TONES", 3)
    made = model.with_config()
    for k in range(5):
        assert made.tone(f"prompt {k}").shape == (BANDS, 3)
    assert list(made._tones) == ["prompt 2", "prompt 3", "prompt 4"]
    assert np.array_equal(made.tone("prompt 0"), model.tone("prompt 0"))
