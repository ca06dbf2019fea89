"""An exported folder in a process without worldmodel: plain diffusers opens it and makes the same frames."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import wan_files
from PIL import Image
from small import picture, small_model
from test_tiny_decoder import published
from transformers import BertConfig, BertModel

from worldmodel.cli import main
from worldmodel.export import export
from worldmodel.memory import MemoryConfig
from worldmodel.model import ModelError, WorldModel
from worldmodel.single_file import single_file
from worldmodel.text import TextConfig, TextEncoder

SCRIPT = "w*12 left*12"
ALONE = """
import sys
sys.modules["worldmodel"] = None  # importing it fails
import numpy as np
from diffusers import DiffusionPipeline
for folder in sys.argv[1:]:
    try:
        DiffusionPipeline.from_pretrained(folder)
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    made = pipe("a snowy castle", image=f"{folder}/start.png", actions="w*12 left*12", seed=5, output_type="np")
    world = pipe.world_model.start(f"{folder}/start.png", "a snowy castle", seed=5)
    first = world.step("w*4").frames
    pictures = pipe("a castle", actions="w*1", num_inference_steps=1, return_dict=False)[0]
    assert pictures[0].size == made.frames.shape[2:0:-1] and world.fork().index == 1
    np.savez(f"{folder}/seen.npz", frames=made.frames, poses=made.camera_to_world, first=first)
"""


def played(model):
    world = model.start(picture(), "a snowy castle", seed=5)
    return np.concatenate([world.first_frame[None], *(c.frames for c in world.stream(SCRIPT))])


def alike(a, b):
    """Whether pictures differ by what products of matrices differ whose factors lie elsewhere in memory: a grey level, in few places."""
    apart = np.abs(a.astype(int) - b.astype(int))
    return a.shape == b.shape and apart.max() <= 1 and (apart > 0).mean() < 1e-3


@pytest.fixture(scope="module")
def wan_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    wan_files.write_diffusers(folder / "wan")
    torch.save(published(4), folder / "taew2_1.pth")
    model = WorldModel.from_wan(
        folder / "wan", tiny_decoder=folder / "taew2_1.pth", size=wan_files.SIZE, text=TextConfig("umt5", 8, 24),
        transformer=dict(camera_dim=8), memory=MemoryConfig(window=2, horizon=12), chunk=1,
    )  # fmt: skip
    for block in model.transformer.blocks:
        torch.nn.init.normal_(block.action_proj.weight)
        torch.nn.init.normal_(block.pose_proj.weight)
    model.text.dtype = torch.float32
    return model


@pytest.fixture(scope="module")
def own_model():
    """With an autoencoder of our own and a sentence encoder"""
    model = small_model()
    torch.manual_seed(0)
    sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=len(wan_files.WORDS))
    model.text = TextEncoder.of_modules(model.config.text, wan_files.tokenizer(), BertModel(BertConfig(**sizes), add_pooling_layer=False))
    return model


@pytest.fixture(scope="module")
def hub(wan_model, own_model, tmp_path_factory):
    """Both exported, and opened in a process that has diffusers alone."""
    root = tmp_path_factory.mktemp("hub")
    for name, model in (("wan", wan_model), ("own", own_model)):
        export(model, root / name)
        Image.fromarray(picture()).save(root / name / "start.png")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_MODULES_CACHE": str(root / "code"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ALONE, str(root / "wan"), str(root / "own")]
    done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return root


def test_a_wan_student_plays_in_plain_diffusers(wan_model, hub):
    seen = np.load(hub / "wan" / "seen.npz")
    assert alike(seen["frames"], played(wan_model)) and seen["poses"].shape == (25, 4, 4)
    assert alike(seen["first"], wan_model.start(picture(), "a snowy castle", seed=5).step("w*4").frames)
    back = WorldModel.from_pretrained(hub / "wan")
    back.text.dtype = torch.float32
    assert back.fingerprint == wan_model.fingerprint and np.array_equal(played(back), seen["frames"])
    text = (hub / "wan" / "README.md").read_text()
    assert "trust_remote_code=True" in text and f"{wan_files.SIZE[0]}x{wan_files.SIZE[1]}" in text
    with pytest.raises(ModelError, match="is not empty"):
        export(wan_model, hub / "wan")


def test_a_model_with_an_autoencoder_of_our_own_does_too(own_model, hub):
    seen = np.load(hub / "own" / "seen.npz")["frames"]
    assert alike(seen, played(own_model)) and np.array_equal(seen, played(WorldModel.from_pretrained(hub / "own")))


def test_the_command_starts_a_student_from_wan(tmp_path, capsys):
    wan_files.write_original(tmp_path / "wan")
    arguments = ["export", "--wan", str(tmp_path / "wan"), "--size", "32", "48", "--dtype", "float32", "--out", str(tmp_path / "out")]
    assert main(arguments) == 0 and "trust_remote_code" in capsys.readouterr().out
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKLWan"] and index["text_encoder"] == ["transformers", "UMT5EncoderModel"]
    model = WorldModel.from_pretrained(tmp_path / "out")
    assert model.size == (32, 48) and model.start(prompt="a castle").step("w").frames.shape == (12, 32, 48, 3)
    assert main(arguments) == 2 and "is not empty" in capsys.readouterr().err
    assert main(["export", "--lora", "x", "--out", str(tmp_path / "new")]) == 2 and "go with --wan" in capsys.readouterr().err


def test_without_a_text_encoder_there_is_nothing_to_export(wan_model, tmp_path):
    parts = wan_model.transformer, wan_model.autoencoder, TextEncoder(wan_model.config.text), wan_model.config
    with pytest.raises(ModelError, match="needs its text encoder"):
        export(WorldModel(*parts), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_modules_with_the_same_names_cannot_go_into_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr("worldmodel.single_file.PACKAGE", tmp_path)
    (tmp_path / "a.py").write_text("from worldmodel.b import g\n\n\ndef f():\n    return g()\n")
    (tmp_path / "b.py").write_text("from __future__ import annotations\n\n\ndef g():\n    return 7\n")
    made: dict = {}
    exec(single_file(("a",), "x"), made)  # noqa: S102
    assert made["f"]() == 7
    (tmp_path / "a.py").write_text("def f():\n    from worldmodel.b import (\n        g,\n    )\n\n    return g()\n")
    made = {}
    exec(single_file(("a",), "x"), made)  # noqa: S102
    with pytest.raises(ImportError, match="needs worldmodel itself"):
        made["f"]()
    (tmp_path / "a.py").write_text("from worldmodel.b import g\n\n\ndef f():\n    return g()\n")
    (tmp_path / "b.py").write_text("def f():\n    pass\n\n\ng = f\n")
    with pytest.raises(ValueError, match="b.py and a.py both define f"):
        single_file(("a",), "x")
    (tmp_path / "a.py").write_text("from worldmodel.b import g as h\n")
    with pytest.raises(ValueError, match="line 1: imports under another name"):
        single_file(("a",), "x")
