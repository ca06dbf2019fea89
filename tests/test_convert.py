"""Every way in which Wan checkpoints are saved loads into the causal class and computes what diffusers' Wan computes."""

import json

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import save_file

from worldmodel.convert import clean_prefixes, load_wan_transformer
from worldmodel.transformer import CausalWorldTransformer

WAN = dict(num_attention_heads=2, attention_head_dim=24, in_channels=6, out_channels=4, text_dim=20, freq_dim=32, ffn_dim=64, num_layers=2)
HEADS = dict(num_attention_heads=2)

# diffusers' name -> original Wan name, written from the released model code
TOP = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "patch_embedding": "patch_embedding",
    "proj_out": "head.head",
}
BLOCK = {"norm2": "norm3", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"} | {
    f"{ours}.{a}": f"{theirs}.{b}"
    for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn"))
    for a, b in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"), ("norm_q", "norm_q"), ("norm_k", "norm_k"))
}


def original_names(tensors):
    out = {}
    for name, tensor in tensors.items():
        if name == "scale_shift_table":
            out["head.modulation"] = tensor
        elif name.startswith("blocks."):
            _, index, inner = name.split(".", 2)
            module, _, leaf = inner.rpartition(".")
            out[f"blocks.{index}." + ("modulation" if inner == "scale_shift_table" else f"{BLOCK[module]}.{leaf}")] = tensor
        else:
            module, _, leaf = name.rpartition(".")
            out[f"{TOP[module]}.{leaf}"] = tensor
    return out


@pytest.fixture(scope="module")
def wan():
    torch.manual_seed(0)
    model = WanTransformer3DModel(**WAN)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    return model.eval()


def write(style, wan, folder):
    """Save the model in a style; returns the path to load."""
    tensors = {k: v.clone() for k, v in wan.state_dict().items()}
    original = original_names(tensors)
    if style == "diffusers":
        wan.save_pretrained(folder)
    elif style == "diffusers sharded":
        wan.save_pretrained(folder, max_shard_size="60KB")
        assert len(list(folder.glob("*.safetensors"))) > 1
    elif style == "pipeline folder":
        wan.save_pretrained(folder / "transformer")
    elif style == "original":
        save_file(original, folder / "wan.safetensors")
    elif style == "original sharded":
        half = len(original) // 2
        files = [dict(list(original.items())[:half]), dict(list(original.items())[half:])]
        for i, part in enumerate(files):
            save_file(part, folder / f"diffusion_pytorch_model-{i}.safetensors")
        weight_map = {k: f"diffusion_pytorch_model-{i}.safetensors" for i, part in enumerate(files) for k in part}
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    elif style == "inside a larger program":
        save_file({f"model.diffusion_model.{k}": v for k, v in original.items()}, folder / "wan.safetensors")
    elif style == "self-forcing":
        wrong = {f"model.{k}": torch.zeros_like(v) for k, v in original.items()}
        torch.save({"generator": wrong, "generator_ema": {f"model.{k}": v for k, v in original.items()}}, folder / "wan.pt")
    elif style == "fsdp average":
        names = {
            k: "model._fsdp_wrapped_module." + k.replace("blocks.1.", "blocks.1._fsdp_wrapped_module._checkpoint_wrapped_module.")
            for k in original
        }
        torch.save({"generator": {names[k]: v for k, v in original.items()}}, folder / "wan.pt")
    elif style == "compiled":
        torch.save({"model": {f"_orig_mod.{k}": v for k, v in tensors.items()}}, folder / "wan.pt")
    inside = [p for p in folder.iterdir() if p.name in ("wan.safetensors", "wan.pt")]
    return inside[0] if inside else folder


STYLES = (
    "diffusers", "diffusers sharded", "pipeline folder", "original", "original sharded", "inside a larger program",
    "self-forcing", "fsdp average", "compiled",
)  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("style", STYLES)
def test_every_style_computes_what_wan_computes(wan, tmp_path, style):
    model = load_wan_transformer(write(style, wan, tmp_path), camera_dim=16, **HEADS)
    g = torch.Generator().manual_seed(1)
    x, text, t = torch.randn(2, 6, 3, 8, 8, generator=g), torch.randn(2, 7, 20, generator=g), torch.tensor([900.0, 30.0])
    actions, poses = torch.rand(2, 9, 13, generator=g), torch.randn(2, 9, 9, generator=g)
    want = wan(x, t, text, return_dict=False)[0]
    assert (model(x, t, text, actions, poses) - want).abs().max() <= 1e-5 * want.abs().max()
    assert not any(p.is_meta for p in model.parameters()) and all(p.requires_grad for p in model.parameters())


def test_camera_parts_start_as_the_class_starts_them(wan, tmp_path):
    model = load_wan_transformer(write("original", wan, tmp_path), camera_dim=16, **HEADS)
    assert all(not p.any() for b in model.blocks for layer in (b.action_proj, b.pose_proj) for p in layer.parameters())
    weight = model.pose_encoder[0].weight.detach()
    bound = weight.shape[1] ** -0.5  # nn.Linear: uniform in +-1/sqrt(inputs)
    assert weight.abs().max() <= bound and float(weight.std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_a_trained_model_of_our_own_comes_back(tmp_path):
    torch.manual_seed(2)
    ours = CausalWorldTransformer(**WAN, camera_dim=8, pose_scale=0.5, rope_original_latents=21, rope_extension=4.0)
    torch.nn.init.normal_(ours.blocks[0].pose_proj.weight)
    ours.save_pretrained(tmp_path)
    back = load_wan_transformer(tmp_path)  # the folder states the heads
    assert {k: v for k, v in back.config.items() if k[0] != "_"} == {k: v for k, v in ours.config.items() if k[0] != "_"}
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), back.state_dict().values(), strict=True))


def test_half_precision_keeps_in_float32_what_the_class_keeps(wan, tmp_path):
    model = load_wan_transformer(write("original", wan, tmp_path), torch_dtype=torch.bfloat16, **HEADS)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    assert kinds["blocks.0.attn1.to_q.weight"] == kinds["pose_encoder.0.weight"] == torch.bfloat16
    assert kinds["blocks.0.scale_shift_table"] == kinds["blocks.0.norm2.weight"] == torch.float32


def test_heads_come_from_the_width(tmp_path):
    small = dict(WAN, num_attention_heads=1, attention_head_dim=128, num_layers=1)
    save_file(original_names(WanTransformer3DModel(**small).state_dict()), tmp_path / "w.safetensors")
    assert load_wan_transformer(tmp_path / "w.safetensors").config.num_attention_heads == 1


def test_what_does_not_fit_is_refused_in_one_sentence(wan, tmp_path):
    tensors = original_names({k: v.clone() for k, v in wan.state_dict().items()})

    def load(changed):
        save_file(changed, tmp_path / "w.safetensors")
        return load_wan_transformer(tmp_path / "w.safetensors", **HEADS)

    with pytest.raises(ValueError, match="lacks 1 tensors, beginning with blocks.1.attn1.to_v.bias"):
        load({k: v for k, v in tensors.items() if k != "blocks.1.self_attn.v.bias"})
    with pytest.raises(ValueError, match="also holds 1 tensors, beginning with strange"):
        load(tensors | {"strange": torch.zeros(1)})
    with pytest.raises(ValueError, match="another shape for 1 tensors"):
        load(tensors | {"blocks.0.ffn.2.bias": torch.zeros(3)})
    with pytest.raises(ValueError, match="image-to-video"):
        load(tensors | {"blocks.0.cross_attn.k_img.weight": torch.zeros(48, 48)})
    with pytest.raises(ValueError, match="no Wan transformer"):
        load({"something.weight": torch.zeros(2)})
    with pytest.raises(FileNotFoundError, match="There is no checkpoint"):
        load_wan_transformer(tmp_path / "nothing.pt")
    with pytest.raises(ValueError, match="give num_attention_heads"):
        load_wan_transformer(write("original", wan, tmp_path))
    torch.save({"generator": tensors, "trainer": pytest.approx}, tmp_path / "code.pt")
    with pytest.raises(ValueError, match="more than tensors"):
        load_wan_transformer(tmp_path / "code.pt")


def test_prefixes():
    names = ["model.diffusion_model.head.head.weight", "module.model._fsdp_wrapped_module.head.head.weight", "_orig_mod.head.head.weight"]
    for name in names:
        assert list(clean_prefixes({"model": {name: torch.zeros(1)}})) == ["head.head.weight"]
    assert list(clean_prefixes({"critic": {"a": 1}, "generator": {"model.b": torch.zeros(1)}})) == ["b"]
