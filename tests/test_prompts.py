"""What is measured of prompts that name another hour or season, on worlds that follow them and on worlds that do not."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("panda3d")

from distill.prompts import SCRIPTS, changes, compare, markdown, on_the_way, places, renderer  # noqa: E402
from distill.scenes import _world, hours, start_pose, village  # noqa: E402
from worldmodel.tone import BANDS, bands  # noqa: E402

SIZE = (32, 32)


def test_colours_of_bands():
    picture = np.zeros((2, 8, 6, 3), np.uint8)
    picture[1, 2:4, :, 1] = 51
    found = bands(picture)
    assert found.shape == (2, BANDS, 3) and found.sum() == pytest.approx(0.2) and found[1, 1, 1] == pytest.approx(0.2)


def test_following_is_one_and_ignoring_is_none():
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=(3, 4, BANDS, 3))
    made = np.repeat(truth[:, :, None], 2, 2)
    follows = compare(made, truth)
    assert (follows["right"], follows["moved"], follows["correlation"]) == (1, 1, 1) and follows["chance"] == 0.25
    middle = made.mean(1, keepdims=True)
    half = compare(middle + 0.5 * (made - middle), truth)
    assert half["moved"] == 0.5 and half["correlation"] == 1
    swapped = compare(made[:, [1, 0, 2, 3]], truth)
    assert swapped["right"] == 0.5 and swapped["right of each"] == [0, 0, 1, 1]
    assert abs(compare(np.repeat(made[:, :1], 4, 1) + rng.normal(0, 1e-6, made.shape), truth)["moved"]) < 1e-3


def test_a_place_at_its_own_hour_is_the_gallerys_and_darker_at_night():
    place = places()[0]
    assert place.caption == _world(0).scene.caption
    pose, size = start_pose(0, 0), (64, 64)
    own = renderer(place, size).frame(pose)
    np.testing.assert_array_equal(own, _world(0).renderer.at(size, supersample=1).frame(pose))
    night = renderer(place.turned("hour", "night"), size).frame(pose)
    assert night.mean() < own.mean() - 30
    assert place.turned("hour", "night").caption == place.caption.replace("on a clear day", hours.WORDS["night"])
    assert place.turned("biome", "snow").caption.startswith("A snowy village")
    assert village.build(np.random.default_rng(1000)).caption == _world(1000).scene.caption, "others are as they were"


class Painter:
    """A model that shows the last pose's truth under the prompt that it has, or under the one that it began with."""

    size, chunk_frames = SIZE, 4

    def __init__(self, obeys: bool) -> None:
        self.obeys, self.gallery = obeys, {p.seed: SimpleNamespace(image_path=p.seed, prompt=p.caption) for p in places()}

    def start(self, image, prompt, history):
        place = next(p for p in places() if p.seed == image)
        return PaintedWorld(self, place, prompt)


class PaintedWorld:
    def __init__(self, model, place, prompt) -> None:
        self.model, self.place, self.prompt, self.first, self.steps = model, place, prompt, prompt, 0

    def step(self, actions) -> None:
        assert len(actions) == 4
        self.steps += 1

    @property
    def last_frame(self):
        from distill.export import GALLERY
        from distill.scenes.walk import walk
        from worldmodel.actions import parse_script, to_array

        prompt = self.prompt if self.model.obeys else self.first
        known = {p.caption: p for p in (self.place, self.place.turned("hour", "night"))}
        assert self.steps == 16
        start = start_pose(self.place.seed, GALLERY[self.place.seed][1])
        poses, _ = walk(_world(self.place.seed).space, start, to_array(parse_script(SCRIPTS["turning"])))
        return renderer(known[prompt], SIZE).frame(poses[-1])


def test_a_change_on_the_way_is_measured_against_the_old_prompt():
    place = places()[0]
    for obeys, wanted in ((True, 1.0), (False, 0.0)):
        (found, true), pictures = on_the_way(Painter(obeys), place, "hour", "night", SCRIPTS["turning"])
        np.testing.assert_allclose(found, wanted * true)
        assert true.mean() < -0.1 and len(pictures) == 4 and pictures[1].mean() < pictures[0].mean()


def test_a_place_becomes_what_it_is_not(monkeypatch):
    asked = []

    def half(model, place, what, kind, script):
        """Half of the truth, and nothing where the truth is small and nothing follows."""
        asked.append(kind)
        true = np.full((BANDS, 3), 0.4 if place is day else 0.001)
        return np.stack([true / 2 if place is day else 0 * true, true]), [np.zeros((2, 2, 3))] * 4

    day, night = places()[0], places()[0].turned("hour", "night")
    monkeypatch.setattr("distill.prompts.on_the_way", half)
    found, rows = changes(None, [day, night], "hour", ("night", "day"))
    assert asked == ["night"] * 3 + ["day"] * 3 and set(found["moved"].values()) == {0.5} and len(rows) == 2
    alone = {"kinds": ["a", "b"], "places": 2, "right": 0.5, "chance": 0.5, "moved": 0.25, "correlation": 0.125}
    text = markdown({"alone": {"hour": alone, "biome": alone}, "on the way": {"hour": found, "biome": found}})
    assert "| 2 hours | 2 | 50 % | 50 % | 25 % | 0.12 |" in text and "| another season | 2 | 50.0 % | 50.0 % | 50.0 % |" in text
