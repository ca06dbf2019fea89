"""What is wrong with a recipe, its data or its weights ends a run in one sentence, before torch is imported."""

import dataclasses
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distilling import TRANSFORMER
from safetensors.torch import save_file

from distill.causal import CausalStage
from distill.checkpoint import save_checkpoint, with_prefix
from distill.checks import check_run, folder_shapes, read_header, transformer_facts
from distill.recipe import Recipe, RecipeError, load_recipe
from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.configs import MemoryConfig, SamplerConfig, TransformerConfig
from worldmodel.transformer import CausalWorldTransformer

ROOT = Path(__file__).parents[1]
OURS = dict(TRANSFORMER, in_channels=8, out_channels=8, text_dim=384)

DRIVER = """
import sys
from distill.train import main
for line in sys.stdin.read().splitlines():
    try:
        main(line.split("|"))
    except SystemExit as stop:
        print(stop.code, "torch" in sys.modules, flush=True)
        print("---", file=sys.stderr, flush=True)
"""


def small_recipe(folder, **changes):
    """A recipe of the size of the tests' transformer, on a folder of clips; returns its path."""
    transformer = {k: list(v) if isinstance(v, tuple) else v for k, v in TRANSFORMER.items()} | changes
    text = {
        "name": "small", "data": {"folder": str(folder / "clips"), "frames": 9, "size": 64, "held_out": 1},
        "autoencoder": {"latent_channels": 8, "groups": 2},
        "causal": {"transformer": transformer, "curriculum": [[0.0, 3, 1]]},
    }  # fmt: skip
    path = folder / f"small-{len(changes)}.yaml"
    path.write_text(json.dumps(text))  # JSON is YAML
    return path


def clip(folder, name, frames=9, size=64, width=None):
    """The description of a clip and empty files for the rest: nothing else is read before training."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"num_frames": frames, "height": size, "width": width or size}))
    for ending in (".mp4", ".npy", ".camera.npz"):
        (folder / f"{name}{ending}").touch()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Clips, a run with a checkpoint, and a model to start from, all of one shape."""
    folder = tmp_path_factory.mktemp("place")
    for i in range(4):
        clip(folder / "clips", f"clip{i}")
        clip(folder / "long", f"clip{i}", frames=13)
        clip(folder / "wide", f"clip{i}", 317, 480, 832)
    (folder / "none").mkdir()
    torch.manual_seed(0)
    model = CausalWorldTransformer(**OURS)
    TinyAutoencoder(8, (8, 8), 8, 1).save_pretrained(folder / "model" / "autoencoder")
    model.save_pretrained(folder / "model" / "transformer")
    save_checkpoint(folder / "run" / "causal" / "checkpoint", with_prefix("model", model.state_dict()), {"step": 1}, shard_bytes=2000)
    save_file(CausalWorldTransformer(**OURS | {"ffn_dim": 48}).state_dict(), folder / "other.safetensors")
    return folder


def test_every_mistake_is_one_line_and_without_torch(place):
    recipe, wide = small_recipe(place), small_recipe(place, ffn_dim=64)
    run = f"--out|{place / 'new'}"
    cases = [
        (f"tinny|{run}", "There is no recipe 'tinny'. Did you mean tiny?"),
        (f"tiny|{run}|--set|causal.stepz=7", "no key causal.stepz; did you mean causal.steps?"),
        (f"tiny|{run}|--set|causal.transformer.num_layer=7", "did you mean causal.transformer.num_layers?"),
        (f"tiny|{run}|--set|causal.steps=many", "causal.steps: Value 'many'"),
        (f"tiny|{run}|--set|causal.steps=-1", "causal.steps is 0 or more, got -1."),
        (f"tiny|{run}|--set|autoencoder.batch=0", "autoencoder.batch is 1 or more, got 0."),
        (f"tiny|{run}|--set|data.frames=80", "data.frames is 1 + 4k (5, 9, 13, ...), got 80; 81 would do."),
        (f"tiny|{run}|--set|data.size=120", "data.size is a multiple of 16, got 120; 128 would do."),
        (f"tiny|{run}|--set|causal.curriculum=[[0.0,42,1]]", "42 latent frames, but data.frames=121 are 31: data.frames=165 would do."),
        (f"tiny|{run}|--set|causal.curriculum=[[0.0,5,0]]", "a batch of 1 or more; got 5 and 0."),
        (f"tiny-relic|{run}|--set|student_init.noisy_blocks=21", "noisy_blocks is 1 to blocks - 1, got noisy_blocks=21"),
        (f"tiny|{run}|--set|data.seeds=1000000", "reserved"),
        (f"tiny|{run}|--set|data.seeds=all", "seeds are numbers and ranges"),
        (f"tiny|{run}|--set|data.folder={place / 'absent'}", "There is no folder"),
        (f"{recipe}|{run}|--set|data.folder={place / 'none'}", "has 0 clips; data.held_out=1 needs at least 3."),
        (f"{recipe}|{run}|--set|data.folder={place / 'long'}", "has 13 frames of 64x64, not data.frames=9 of data.size=64."),
        (f"{recipe}|{run}|--set|data.size=128", "has 9 frames of 64x64, not data.frames=9 of data.size=128."),
        (f"{recipe}|{run}|--from|{place / 'absent'}", "(--from)."),
        (f"{recipe}|{run}|--from|{place / 'none'}", "(--from) holds no transformer"),
        (f"{wide}|{run}|--from|{place / 'model'}", "has ffn_dim=32, the stage causal of the recipe 64: change one of them."),
        (f"{recipe}|{run}|--from|{place / 'other.safetensors'}", "has ffn_dim=48, the stage causal of the recipe 32"),
        (f"{wide}|--out|{place / 'run'}", "has ffn_dim=32, the stage causal of the recipe 64: use another --out."),
        (f"{recipe}|{run}|--prompts|{place / 'other.safetensors'}", "is not a prompt cache"),
        (f"wan-1.3b|{run}", "data.width needs clips of that size in data.folder."),
        (f"wan-1.3b|{run}|--set|data.folder={place / 'wide'}|data.held_out=2", "the autoencoder 384 channels: set data.wan to a folder"),
        (f"wan-1.3b|{run}|--set|data.folder={place / 'wide'}|data.held_out=2|data.wan={place}", "has no vae/config.json"),
    ]  # fmt: skip
    lines = "\n".join(line for line, _ in cases)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=lines, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines() == ["2 False"] * len(cases)
    said = done.stderr.split("---\n")[:-1]
    for text, (line, want) in zip(said, cases, strict=True):
        assert text.count("\n") == 1 and want in text, (line, text)
    assert not (place / "new").exists()


def test_what_fits_passes(place):
    recipe = load_recipe(str(small_recipe(place)))
    check_run(recipe, place / "run")
    check_run(recipe, place / "new", place / "model")


def test_a_command_of_its_own_stops_with_two(tmp_path):
    command = [sys.executable, "-m", "distill.train", "tiny", "--out", str(tmp_path), "--set", "causal.step=3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and "did you mean causal.steps?" in done.stderr


def test_headers_say_what_the_tensors_are(place, tmp_path):
    """Pieces of cut tensors are put together, and the shapes give back the arguments."""
    want = {f"model.{k}": tuple(v.shape) for k, v in CausalWorldTransformer(**OURS).state_dict().items()}
    assert folder_shapes(place / "run" / "causal" / "checkpoint") == want
    facts = transformer_facts(want)
    assert facts.pop("width") == OURS["num_attention_heads"] * OURS["attention_head_dim"]
    assert facts == {k: OURS[k] for k in facts}
    assert set(facts) >= {"num_layers", "ffn_dim", "patch_size", "camera_dim", "text_dim", "freq_dim"}
    (tmp_path / "no.safetensors").write_bytes(b"this is text and nothing else")
    with pytest.raises(RecipeError, match="no safetensors file"):
        read_header(tmp_path / "no.safetensors")


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"num_layers": 1}, "num_layers=2"), ({"camera_dim": 4}, "camera_dim=8"), ({"freq_dim": 32}, "freq_dim=16"),
        ({"attention_head_dim": 24}, "attention_head_dim=24, the stage causal of the recipe 48"),
        ({"num_attention_heads": 1, "attention_head_dim": 24}, "num_attention_heads=2"),
        ({"prediction_type": "velocity"}, "prediction_type=sample"), ({"text_dim": 16}, "captions"),
        ({"in_channels": 4}, "the autoencoder 8"),
    ],
)  # fmt: skip
def test_every_argument_is_compared(place, change, found):
    recipe = load_recipe(str(small_recipe(place, **change)))
    with pytest.raises(RecipeError, match=found):
        check_run(recipe, place / "new", place / "model")


def test_walks_of_another_size_are_refused(place, tmp_path):
    recipe = load_recipe(str(small_recipe(place)))
    (tmp_path / "walks" / "train").mkdir(parents=True)
    save_file({"groups": torch.zeros(2, 3, 8, 4, 4)}, tmp_path / "walks" / "train" / "walks-00000.safetensors")
    check_run(recipe, tmp_path)
    save_file({"groups": torch.zeros(2, 3, 8, 2, 2)}, tmp_path / "walks" / "train" / "walks-00001.safetensors")
    with pytest.raises(RecipeError, match=r"latents \[3, 8, 2, 2\], the recipe makes \[3, 8, 4, 4\]"):
        check_run(recipe, tmp_path)


def test_the_shared_configs_are_the_classes_own():
    """The torch-free copy of the transformer's arguments has not fallen behind; the other configs are imported from where they belong."""
    theirs = {n: p.default for n, p in inspect.signature(CausalWorldTransformer.__init__).parameters.items() if n != "self"}
    assert {f.name: f.default for f in dataclasses.fields(TransformerConfig)} == theirs
    import worldmodel.memory
    import worldmodel.sampling

    assert worldmodel.memory.MemoryConfig is MemoryConfig and worldmodel.sampling.SamplerConfig is SamplerConfig
    assert inspect.signature(CausalStage).parameters["recipe"].annotation == "CausalRecipe"
    assert Recipe().transformer("causal", text_dim=7).text_dim == 7


def test_a_teacher_of_the_causal_models_shape_starts_from_it():
    recipe = load_recipe("tiny")
    assert recipe.same_weights("causal", "teacher")  # though its rotary embedding can be extended
    assert not load_recipe("tiny", ["teacher.transformer.num_layers=8"]).same_weights("causal", "teacher")
