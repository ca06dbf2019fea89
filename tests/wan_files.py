"""Small random Wan models in the layouts in which Wan is published; names of the original layout are written from its model code."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import save_file
from test_convert import original_names
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

WORDS = ["<pad>", "</s>", "<unk>", *"a snowy village at dusk red castle".split()]
WAN = dict(num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=24, freq_dim=32, ffn_dim=64, num_layers=2)
SIZE = (32, 48)


def tokenizer() -> PreTrainedTokenizerFast:
    """Words, ending every text as T5's does"""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def umt5() -> UMT5EncoderModel:
    torch.manual_seed(0)
    config = UMT5Config(vocab_size=len(WORDS), d_model=24, d_kv=6, d_ff=32, num_layers=2, num_heads=4)
    return UMT5EncoderModel(config).eval()


def vae() -> AutoencoderKLWan:
    torch.manual_seed(1)
    statistics = dict(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)  # a file of tensors alone cannot tell others
    return AutoencoderKLWan(base_dim=8, z_dim=4, **statistics).eval()


def transformer() -> WanTransformer3DModel:
    torch.manual_seed(2)
    return WanTransformer3DModel(**WAN).eval()


def pipeline() -> WanPipeline:
    return WanPipeline(tokenizer(), umt5(), vae(), FlowMatchEulerDiscreteScheduler(shift=5.0), transformer())


def original_vae(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    top = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    layer = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6", "conv_shortcut": "shortcut"}
    out = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        module = top.get(module, module)
        module = module.replace(".conv_in", ".conv1").replace(".norm_out", ".head.0").replace(".conv_out", ".head.2")
        module = module.replace(".mid_block.attentions.0", ".middle.1")
        module = re.sub(r"\.mid_block\.resnets\.(\d)", lambda m: f".middle.{2 * int(m[1])}", module)
        module = re.sub(r"\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: f".upsamples.{4 * int(m[1]) + int(m[2])}", module)
        module = re.sub(r"\.up_blocks\.(\d)\.upsamplers\.0", lambda m: f".upsamples.{4 * int(m[1]) + 3}", module)
        module = module.replace(".down_blocks.", ".downsamples.")
        if ".middle." in module or ".upsamples." in module or ".downsamples." in module:
            head, _, last = module.rpartition(".")
            module = f"{head}.{layer.get(last, last)}"
        out[f"{module}.{leaf}"] = tensor
    return out


def original_umt5(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    names = {
        "SelfAttention.relative_attention_bias": "pos_embedding.embedding", "0.layer_norm": "norm1", "1.layer_norm": "norm2",
        "DenseReluDense.wi_0": "ffn.gate.0", "DenseReluDense.wi_1": "ffn.fc1", "DenseReluDense.wo": "ffn.fc2",
    } | {f"SelfAttention.{x}": f"attn.{x}" for x in "qkvo"}  # fmt: skip
    out = {"token_embedding.weight": tensors["shared.weight"], "norm.weight": tensors["encoder.final_layer_norm.weight"]}
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"encoder\.block\.(\d+)\.layer\.(.+)\.weight", name):
            inner = found[2] if "layer_norm" in found[2] else found[2][2:]
            out[f"blocks.{found[1]}.{names[inner]}.weight"] = tensor
    return out


def write_diffusers(folder: Path) -> Path:
    pipeline().save_pretrained(folder)
    return folder


def write_original(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"_class_name": "WanModel", "dim": 48, "num_heads": 2, "num_layers": 2, "model_type": "t2v"}')
    save_file(original_names(transformer().state_dict()), folder / "diffusion_pytorch_model.safetensors")
    torch.save(original_vae(vae().state_dict()), folder / "Wan2.1_VAE.pth")
    torch.save(original_umt5(umt5().state_dict()), folder / "models_t5_umt5-xxl-enc-bf16.pth")
    tokenizer().save_pretrained(folder / "google" / "umt5-xxl")
    return folder


def write_self_forcing(path: Path) -> Path:
    names = {f"model.{k}": v for k, v in original_names(transformer().state_dict()).items()}
    torch.save({"generator": {k: torch.zeros_like(v) for k, v in names.items()}, "generator_ema": names, "step": 600}, path)
    return path
