"""A Wan checkpoint and Wan's autoencoder go through distill.train: small random ones in the released layouts."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from test_convert import original_names

from distill.checks import check_run, wan_folder
from distill.dataset import Clip, read_clip, write_clip
from distill.plan import make_plan
from distill.recipe import RecipeError, load_recipe
from distill.stage_recipes import GENERATOR
from distill.train import embed_by_wan, train
from distill.trainer import Deadline, phase
from worldmodel.camera import integrate
from worldmodel.text import PromptCache, TextConfig
from worldmodel.transformer import CausalWorldTransformer

WAN = dict(num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=20, freq_dim=32, ffn_dim=64, num_layers=2)
MEAN, STD = [0.1, -0.2, 0.3, 0.0], [1.5, 0.7, 1.0, 2.0]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Posed clips that are not square, a Wan transformer as a file, its autoencoder in a folder, and embeddings of the captions."""
    folder = tmp_path_factory.mktemp("wan")
    rng = np.random.default_rng(0)
    actions = np.zeros((9, 13), np.float32)
    actions[0, 12] = actions[1:, 0] = 1
    for i in range(4):
        frames = rng.integers(0, 256, (9, 32, 64, 3), dtype=np.uint8)
        poses = integrate(actions).astype(np.float32)
        write_clip(folder / "clips" / f"clip{i}", Clip(frames, poses, np.array([1, 2, 0.5, 0.5], np.float32), actions, f"place {i}"))
    torch.manual_seed(0)
    save_file(original_names(WanTransformer3DModel(**WAN).state_dict()), folder / "wan.safetensors")
    vae = AutoencoderKLWan(base_dim=8, num_res_blocks=1, z_dim=4, dim_mult=[1, 2, 2, 2], latents_mean=MEAN, latents_std=STD)
    vae.save_pretrained(folder / "wan" / "vae")
    cache = PromptCache(TextConfig("umt5", 6, 20))
    for i in range(4):
        cache.add(f"place {i}", torch.randn(3, 20))
    cache.save(folder / "prompts.safetensors")
    transformer = "{num_attention_heads: 2, attention_head_dim: 24, in_channels: 4, out_channels: 4, text_dim: 20, freq_dim: 32, "
    transformer += "ffn_dim: 64, num_layers: 2, camera_dim: 8}"
    (folder / "small.yaml").write_text(
        f"name: small\ndata: {{folder: {folder / 'clips'}, wan: {folder / 'wan'}, frames: 9, size: 32, width: 64, held_out: 1}}\n"
        f"causal: {{transformer: {transformer}, curriculum: [[0.0, 3, 2]], steps: 1, optimiser: adamw, lr: 1.0e-9,\n"
        "  sampler: {steps: 1}, memory: {window: 2, horizon: 8}}\n"
    )
    return folder


def test_training_starts_from_wan_and_encodes_with_wan(place, tmp_path):
    recipe = load_recipe(str(place / "small.yaml"))
    args = (place / "wan.safetensors", place / "prompts.safetensors")
    check_run(recipe, tmp_path, *args)
    assert train(recipe, tmp_path, Deadline(5), torch.device("cpu"), *args)
    ours = CausalWorldTransformer.from_pretrained(tmp_path / "causal" / "model").state_dict()
    torch.manual_seed(0)
    theirs = WanTransformer3DModel(**WAN).state_dict()
    assert all((ours[k] - v).abs().max() < 1e-6 for k, v in theirs.items())  # one step of 1e-9
    assert all("action" in k or "pose" in k for k in ours.keys() - theirs.keys())
    assert not (tmp_path / "autoencoder").exists()

    # the walks hold what diffusers' encoder says, normalised
    vae = AutoencoderKLWan.from_pretrained(place / "wan" / "vae")
    walks = load_file(tmp_path / "walks" / "train" / "walks-00000.safetensors")
    assert walks["groups"].shape == (3, 3, 4, 4, 8)
    video = torch.from_numpy(read_clip(place / "clips" / "clip1").frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        raw = vae.encode(video).latent_dist.mode()[0]
    want = (raw - torch.tensor(MEAN).view(4, 1, 1, 1)) / torch.tensor(STD).view(4, 1, 1, 1)
    assert torch.allclose(walks["groups"][1].float(), want.transpose(0, 1), atol=5e-3)


def test_shapes_are_compared_under_the_original_names(place, tmp_path):
    for change, why in (("ffn_dim=48", "has ffn_dim=64"), ("num_layers=3", "has num_layers=2"), ("freq_dim=16", "has freq_dim=32")):
        recipe = load_recipe(str(place / "small.yaml"), [f"causal.transformer.{change}"])
        with pytest.raises(RecipeError, match=why):
            check_run(recipe, tmp_path, place / "wan.safetensors", place / "prompts.safetensors")
    strange = load_file(place / "wan.safetensors")
    strange["patch_embedding.weight"] = torch.zeros(48, 36, 1, 2, 2)
    save_file(strange, tmp_path / "i2v.safetensors")
    with pytest.raises(RecipeError, match="image-to-video"):
        check_run(load_recipe(str(place / "small.yaml")), tmp_path, tmp_path / "i2v.safetensors", place / "prompts.safetensors")
    with pytest.raises(RecipeError, match="captions' embeddings 4096"):
        check_run(load_recipe(str(place / "small.yaml")), tmp_path, place / "wan.safetensors")


def test_a_pipelines_folder_is_all_that_is_needed(place, tmp_path):
    recipe = load_recipe(str(place / "small.yaml"), ["data.wan=''"])
    assert wan_folder(recipe, place / "wan.safetensors") is None and wan_folder(recipe, place / "wan") == place / "wan"


def test_captions_are_embedded_once(monkeypatch, tmp_path):
    calls = []

    def run(self, text):
        calls.append(text)
        return torch.full((2, 4096), float(len(text)))

    monkeypatch.setattr("worldmodel.text.TextEncoder._run", run)
    known = tmp_path / "prompts.safetensors"
    first = embed_by_wan(["a", "bcd"], tmp_path, known)
    assert first.shape == (2, 512, 4096) and first[1, 1, 0] == 3 and not first[:, 2:].any() and len(calls) == 2
    assert torch.equal(embed_by_wan(["a", "bcd"], tmp_path, known), first) and len(calls) == 2


def test_the_published_recipes_say_relics_numbers(place):
    """Iterations and lengths as in the paper, and the plan of a recipe whose stages are RELIC's."""
    for name in ("wan-1.3b", "wan-14b"):
        recipe = load_recipe(name)
        assert recipe.stages == ("teacher", "student_init", "self_forcing")
        sf, teacher = recipe.self_forcing, recipe.teacher
        updates = [phase(sf.curriculum, s, sf.steps)[0] for s in range(sf.steps) if sf.turn(s) == GENERATOR]
        assert [updates.count(n) for n in (21, 41, 80)] == [250, 150, 150]
        lengths = [teacher.phase(s)[0] for s in range(teacher.steps)]
        assert [lengths.count(n) for n in (21, 41, 80)] == [5000, 1000, 4000]
        plan = make_plan(recipe, 8)
        assert plan.stages["teacher"] == 32 * plan.tokens == 32 * 124_800
        # float32 weights, gradients and two moments, of the generator an average too; the real score in bfloat16
        per_weight = [plan.held(m) * 8 / plan.parameters for m in ("generator", "real score", "fake score")]
        assert per_weight == pytest.approx([20, 2, 16])
