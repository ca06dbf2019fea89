"""World models from Wan's checkpoints: every layout gives what diffusers computes, streams, and comes back from its own folder."""

import json

import numpy as np
import pytest
import torch
import wan_files
from small import picture
from test_tiny_decoder import published

from worldmodel.loading import find_model
from worldmodel.memory import MemoryConfig
from worldmodel.model import ModelError, WorldModel
from worldmodel.text import PromptCache, TextConfig, TextError

PROMPT = "a snowy village at dusk"
SMALL = dict(size=wan_files.SIZE, text=TextConfig("umt5", 8, 24), transformer=dict(camera_dim=8))
HEADS = SMALL | dict(transformer=dict(num_attention_heads=2, camera_dim=8))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    wan_files.write_diffusers(folder / "diffusers")
    wan_files.write_original(folder / "original")
    wan_files.write_self_forcing(folder / "self_forcing.pt")
    return folder


def load(style, place):
    if style == "self-forcing":
        return WorldModel.from_wan(place / "self_forcing.pt", parts=place / "diffusers", **HEADS)
    return WorldModel.from_wan(place / style, **SMALL)


@torch.no_grad()
def reference_start(pipeline, seed):
    """The first frame as diffusers' own parts make it: text, a block of three in four steps with fresh noise in between, decoder."""
    text = pipeline._get_t5_prompt_embeds(PROMPT, max_sequence_length=8)
    generator = torch.Generator().manual_seed(seed * 1_000_003)
    x = torch.randn(1, 4, 3, wan_files.SIZE[0] // 8, wan_files.SIZE[1] // 8, generator=generator)
    sigmas = [5 * s / (1 + 4 * s) for s in (1, 0.75, 0.5, 0.25)]
    for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        clean = x - sigma * pipeline.transformer(x, torch.tensor([1000 * sigma]), text, return_dict=False)[0]
        x = (1 - after) * clean + after * torch.randn(x.shape, generator=generator) if after else clean
    video = pipeline.vae.decode(x[:, :, :1]).sample[0, :, 0]
    return ((video.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize("style", ["diffusers", "original", "self-forcing"])
def test_every_layout_streams_text_to_video_as_it_is(place, style):
    model = load(style, place)
    assert model.config.memory == MemoryConfig(window=18, schedule=(), horizon=21) and model.chunk_frames == 12
    assert (model.config.sampler.steps, model.config.sampler.stochastic, model.config.static_scenes) == (4, True, False)
    model.text.dtype = torch.float32
    world = model.start(prompt=PROMPT, seed=3)
    expected = reference_start(wan_files.pipeline(), 3)
    assert np.abs(world.first_frame.astype(int) - expected).max() <= 1
    chunks = list(world.stream("w*24"))
    assert [c.frames.shape for c in chunks] == [(12, *wan_files.SIZE, 3)] * 2
    elsewhere = list(model.start(prompt=PROMPT, seed=3).stream("s+left*24"))
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(chunks, elsewhere, strict=True))  # no camera parts yet: keys do nothing


def test_a_picture_starts_it_too_and_is_what_wans_autoencoder_makes_of_it(place):
    model = load("diffusers", place)
    image = picture(size=wan_files.SIZE)
    video = torch.from_numpy(image).permute(2, 0, 1)[None, :, None].float() / 127.5 - 1
    with torch.no_grad():
        want = wan_files.vae().encode(video).latent_dist.mode()
    assert torch.allclose(model.encode_image(image), want, atol=1e-5)


def test_what_was_made_of_wan_comes_back_from_its_own_folder(place, tmp_path):
    torch.save(published(4), tmp_path / "taew2_1.pth")
    made = WorldModel.from_wan(place / "diffusers", tiny_decoder=tmp_path / "taew2_1.pth", **SMALL)
    torch.nn.init.normal_(made.transformer.blocks[0].action_proj.weight)
    cache = PromptCache(made.config.text)
    cache.add("a castle", torch.randn(3, 24))
    made.save_pretrained(tmp_path / "model", dtype=torch.float32)
    cache.save(tmp_path / "model" / "prompts.safetensors")
    made.text.cache = cache
    back = WorldModel.from_pretrained(tmp_path / "model")
    assert back.config == made.config and back.fingerprint == made.fingerprint
    frames = [model.start(picture(), "a castle").step("w").frames for model in (made, back)]
    assert np.array_equal(*frames)


def test_loras_change_what_is_made(place, tmp_path):
    from safetensors.torch import save_file

    tensors = {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.randn(3, 48),
        "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.randn(48, 3),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    plain, changed = (WorldModel.from_wan(place / "diffusers", loras=loras, **SMALL) for loras in ([], [tmp_path / "lora.safetensors"]))
    weights = [m.transformer.blocks[0].attn1.to_q.weight for m in (plain, changed)]
    delta = tensors["transformer.blocks.0.attn1.to_q.lora_B.weight"] @ tensors["transformer.blocks.0.attn1.to_q.lora_A.weight"]
    assert torch.allclose(weights[1] - weights[0], delta, atol=1e-5)


def test_a_newcomers_mistakes_have_clear_answers(place, tmp_path):
    def refused(match, checkpoint, **kwargs):
        with pytest.raises(ModelError, match=match):
            WorldModel.from_wan(checkpoint, **(HEADS | kwargs))

    with pytest.raises(ModelError, match="start one from it with WorldModel.from_wan"):
        WorldModel.from_pretrained(place / "diffusers")
    with pytest.raises(ModelError, match="start one from it with WorldModel.from_wan"):
        WorldModel.from_pretrained(place / "original")
    with pytest.raises(ModelError, match="is a file"):
        WorldModel.from_pretrained(place / "self_forcing.pt")
    (tmp_path / "outer" / "inner").mkdir(parents=True)
    (tmp_path / "outer" / "inner" / "world_model.json").write_text("{}")
    with pytest.raises(ModelError, match="There is one in .*inner"):
        WorldModel.from_pretrained(tmp_path / "outer")
    refused("There is no checkpoint .*nowhere.pt", tmp_path / "nowhere.pt")
    refused("There is no text encoder in .*give parts=", place / "self_forcing.pt")
    (tmp_path / "empty").mkdir()
    refused("holds no transformer", tmp_path / "empty")
    (tmp_path / "empty" / "student.pt").write_bytes(b"")
    refused("If it is student.pt, give the path", tmp_path / "empty")
    refused("known prompts in .*none.safetensors cannot be read", place / "diffusers", prompts=tmp_path / "none.safetensors")
    (tmp_path / "notes.txt").write_text("x")
    refused("is no checkpoint: those end in", tmp_path / "notes.txt")
    whole = (place / "self_forcing.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    refused("may have been cut short", tmp_path / "cut.pt", parts=place / "diffusers")
    whole = (place / "diffusers" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1000])
    refused("may have been cut short", tmp_path / "cut.safetensors", parts=place / "diffusers")
    refused("no argument|unexpected keyword", place / "diffusers", sizes=(1, 2))

    from diffusers import WanTransformer3DModel

    WanTransformer3DModel(**wan_files.WAN | dict(in_channels=9, num_layers=1)).save_pretrained(tmp_path / "i2v")
    refused("takes 9 channels, as image-to-video does", tmp_path / "i2v", parts=place / "diffusers")

    # parts that are another model's, or not there
    parts = tmp_path / "parts"
    wan_files.write_original(parts)
    (parts / "Wan2.1_VAE.pth").unlink()
    refused("no autoencoder in .*parts=.*tiny_decoder=", place / "self_forcing.pt", parts=parts)
    torch.save(wan_files.original_vae(wan_files.vae().state_dict()) | {"strange": torch.zeros(1)}, parts / "Wan2.1_VAE.pth")
    refused("not Wan 2.1's autoencoder: 1 tensors differ, first strange", place / "self_forcing.pt", parts=parts)
    torch.save(wan_files.original_vae(wan_files.vae().state_dict()), parts / "Wan2.1_VAE.pth")
    torch.save({"blocks.0.what.weight": torch.zeros(1)}, parts / "models_t5_umt5-xxl-enc-bf16.pth")
    model = WorldModel.from_wan(place / "self_forcing.pt", parts=parts, **HEADS)
    with pytest.raises(TextError, match="no UMT5 encoder of Wan's: it holds blocks.0.what.weight"):
        model.start(prompt="a castle")

    # our own folders
    model.save_pretrained(tmp_path / "own")
    weights = tmp_path / "own" / "transformer" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-500])
    with pytest.raises(ModelError, match="cannot be loaded"):
        WorldModel.from_pretrained(tmp_path / "own")
    weights.write_bytes(whole)
    with pytest.raises(TextError, match="needs folder=|text_encoder"):
        WorldModel.from_pretrained(tmp_path / "own").start(prompt="a castle")
    described = json.loads((tmp_path / "own" / "transformer" / "config.json").read_text())
    (tmp_path / "own" / "transformer" / "config.json").write_text(json.dumps(described | {"num_layers": 3}))
    with pytest.raises(ModelError, match="is missing"):
        WorldModel.from_pretrained(tmp_path / "own")
    (tmp_path / "own" / "transformer" / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        WorldModel.from_pretrained(tmp_path / "own")


def test_packaged_configs_do_not_say_where_they_were_made():
    configs = sorted(find_model("tiny").glob("*/config.json"))
    assert len(configs) == 2 and all("_name_or_path" not in path.read_text() for path in configs)
