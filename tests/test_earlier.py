"""Earlier weights run with the code of their own time: a stand-in for that code, which prints, answers and breaks."""

import numpy as np
import pytest

from distill.earlier import EarlierModel
from distill.suite import check_model, identity_of
from worldmodel.actions import Action

ACTIONS = """
class Action:
    @staticmethod
    def from_vector(v):
        return v
"""
MODEL = """
import numpy as np
class World:
    def __init__(self, image, prompt, seed):
        print("a word on standard output")
        self.first_frame = image + len(prompt) + seed
        self.chunks = 0
    def step(self, actions):
        self.chunks += 1
        if actions[0][0] > 1:
            raise RuntimeError("no such action")
        frames = np.full((len(actions), 8, 8, 3), self.chunks, dtype=np.uint8)
        frames[:, 0, 0, 0] = [round(10 * a[0]) for a in actions]
        return type("Chunk", (), {"frames": frames})
class WorldModel:
    fps, chunk_frames, fingerprint = 16, 4, "tiny-0123"
    config = type("Config", (), {"size": (8, 8), "sampler": type("Sampler", (), {"steps": 2})})
    @classmethod
    def from_pretrained(cls, name):
        assert name == "tiny"
        print("loading")
        return cls()
    def start(self, image, prompt, seed):
        return World(image, prompt, seed)
"""


def test_an_earlier_model_answers_through_its_process(tmp_path):
    with pytest.raises(ValueError, match="has no worldmodel/"):
        EarlierModel(tmp_path)
    package = tmp_path / "worldmodel"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "actions.py").write_text(ACTIONS)
    (package / "model.py").write_text(MODEL)
    model = EarlierModel(tmp_path)
    check_model(model)
    assert (model.size, model.chunk_frames, model.fps) == ((8, 8), 4, 16) and identity_of(model, "x") == "tiny-0123-2"
    image = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    world = model.start(image, "abc", 4)
    assert np.array_equal(world.first_frame, image + 7)
    forward = Action.from_keys({"KeyW"}).to_vector()
    for chunk in (1, 2):
        frames = world.step([Action.from_vector(k / 4 * forward) for k in range(4)]).frames
        assert frames.shape == (4, 8, 8, 3) and frames.dtype == np.uint8 and frames[0, 1, 1, 1] == chunk
        assert frames[:, 0, 0, 0].tolist() == [round(10 * k / 4 * forward[0]) for k in range(4)]
    assert model.start(image, "", 0).step([Action.idle()]).frames[0, 1, 1, 1] == 1  # a world of its own
    model.close()
    broken = EarlierModel(tmp_path)
    world = broken.start(image, "", 0)
    with pytest.raises(RuntimeError, match="ended with code 1"):
        world.step([type("Mad", (), {"to_vector": lambda self: 2 * np.ones(13)})()])
