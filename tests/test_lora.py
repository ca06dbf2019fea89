"""LoRAs in every way in which they are saved, merged: the layers compute what Wan with the LoRA beside it computes."""

import json

import pytest
import torch
import wan_files
from safetensors.torch import save_file
from test_convert import original_names

from worldmodel.convert import WanCheckpoint
from worldmodel.lora import Lora, merge_lora

TARGETS = ("blocks.0.attn1.to_q", "blocks.1.attn2.to_out.0", "blocks.1.ffn.net.0.proj")
RANK, ALPHA, STRENGTH = 3, 6.0, 0.5


def matrices():
    g = torch.Generator().manual_seed(0)
    modules = dict(wan_files.transformer().named_modules())
    return {
        n: (torch.randn(RANK, modules[n].in_features, generator=g), torch.randn(modules[n].out_features, RANK, generator=g))
        for n in TARGETS
    }


def write(style, folder):
    made = matrices()
    original = {n: next(iter(original_names({f"{n}.weight": torch.zeros(1)}))).removesuffix(".weight") for n in made}
    out = {}
    for name, (down, up) in made.items():
        if style == "diffusers":
            out |= {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
        elif style == "peft":
            out |= {f"base_model.model.{name}.lora_A.default.weight": down, f"base_model.model.{name}.lora_B.default.weight": up}
        elif style == "original":
            name = f"diffusion_model.{original[name]}"
            out |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}
        else:
            name = "lora_unet_" + original[name].replace(".", "_")
            out |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(ALPHA)}
    if style == "diffusers":
        metadata = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": ALPHA, "transformer.r": RANK})}
        save_file(out, folder / "pytorch_lora_weights.safetensors", metadata)
        return folder
    if style == "peft":
        (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": ALPHA, "r": RANK}))
        save_file(out, folder / "adapter_model.safetensors")
        return folder
    save_file(out, folder / "lora.safetensors")
    return folder / "lora.safetensors"


@torch.no_grad()
@pytest.mark.parametrize("style", ["diffusers", "peft", "original", "kohya"])
def test_merged_equals_beside(style, tmp_path):
    wan = wan_files.transformer()
    wan.save_pretrained(tmp_path / "wan")
    x, text, t = torch.randn(1, 4, 2, 4, 4), torch.randn(1, 5, 24), torch.tensor([700.0])
    plain = wan(x, t, text, return_dict=False)[0]
    modules = dict(wan.named_modules())
    for name, (down, up) in matrices().items():  # the LoRA beside the layer: y + strength * alpha / rank * B A x
        modules[name].register_forward_hook(lambda m, args, y, a=down, b=up: y + STRENGTH * ALPHA / RANK * args[0] @ a.T @ b.T)
    want = wan(x, t, text, return_dict=False)[0]
    assert (want - plain).abs().max() > 0.01
    (tmp_path / "lora").mkdir()
    model = WanCheckpoint(tmp_path / "wan", camera_dim=8).load(loras=[Lora(write(style, tmp_path / "lora"), STRENGTH)])
    assert (model(x, t, text) - want).abs().max() <= 1e-5 * want.abs().max()


def test_differences_of_biases_and_whole_weights_are_added(tmp_path):
    tensors = {k: v.clone() for k, v in wan_files.transformer().state_dict().items()}
    before = {k: v.clone() for k, v in tensors.items()}
    made = {"diffusion_model.blocks.0.self_attn.k.diff_b": torch.ones(48), "diffusion_model.blocks.0.norm3.diff": torch.ones(48)}
    save_file(made, tmp_path / "l.safetensors")
    assert merge_lora(tensors, Lora(tmp_path / "l.safetensors", 2.0)) == 2
    changed = {k for k in tensors if not torch.equal(tensors[k], before[k])}
    assert changed == {"blocks.0.attn1.to_k.bias", "blocks.0.norm2.weight"}
    assert all(torch.allclose(tensors[k], before[k] + 2) for k in changed)


def test_what_does_not_fit_is_refused(tmp_path):
    def refused(match, tensors):
        save_file(tensors, tmp_path / "l.safetensors")
        with pytest.raises(ValueError, match=match):
            merge_lora(wan_files.transformer().state_dict(), Lora(tmp_path / "l.safetensors"))

    name = "transformer.blocks.0.attn1.to_q"
    refused("only one of the two matrices of blocks.0.attn1.to_q", {f"{name}.lora_A.weight": torch.zeros(2, 48)})
    refused("another shape there", {f"{name}.lora_A.weight": torch.zeros(2, 99), f"{name}.lora_B.weight": torch.zeros(48, 2)})
    refused("another shape there", {f"{name}.lora_A.weight": torch.zeros(2, 48), f"{name}.lora_B.weight": torch.zeros(48, 3)})
    wrong = {
        "transformer.blocks.9.attn1.to_q.lora_A.weight": torch.zeros(2, 48),
        "transformer.blocks.9.attn1.to_q.lora_B.weight": torch.zeros(48, 2),
    }
    refused("a LoRA of another model: it changes blocks.9.attn1.to_q", wrong)
    refused("not a LoRA that can be merged: x is no part of one", {"x": torch.zeros(1)})
    (tmp_path / "many").mkdir()
    for i in range(2):
        save_file({"x": torch.zeros(1)}, tmp_path / "many" / f"{i}.safetensors")
    with pytest.raises(ValueError, match="holds 2 LoRA files"):
        merge_lora({}, Lora(tmp_path / "many"))
