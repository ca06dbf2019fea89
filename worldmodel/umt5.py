"""Wan's original UMT5 encoder (`models_t5_umt5-xxl-enc-bf16.pth`) as transformers' `UMT5EncoderModel`: the same layers, other names."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import UMT5Config, UMT5EncoderModel

from worldmodel.checkpoints import read_tensors

PATTERN = "models_t5_*"
TOKENIZER = Path("google") / "umt5-xxl"

_TOP = {"token_embedding.weight": "shared.weight", "norm.weight": "encoder.final_layer_norm.weight"}
_LAYER = {
    "norm1": "layer.0.layer_norm", "attn.q": "layer.0.SelfAttention.q", "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v", "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias", "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0", "ffn.fc1": "layer.1.DenseReluDense.wi_1", "ffn.fc2": "layer.1.DenseReluDense.wo",
}  # fmt: skip


def find_original_umt5(folder: Path) -> Path | None:
    """The encoder's file in a folder of Wan's original layout"""
    return next(iter(sorted(folder.glob(PATTERN))), None)


def load_umt5(folder: Path, weights: Path, dtype: torch.dtype) -> UMT5EncoderModel:
    """The encoder of a folder in Wan's layout, or of `weights` in transformers'"""
    if (original := find_original_umt5(folder)) is not None:
        return load_original_umt5(original, dtype)
    return UMT5EncoderModel.from_pretrained(weights, local_files_only=True, dtype=dtype)


def load_original_umt5(path: Path, dtype: torch.dtype) -> UMT5EncoderModel:
    """The encoder in a file of Wan's original layout; ValueError if it is none."""
    tensors = {_renamed(name, path): tensor for name, tensor in read_tensors(path).items()}
    try:
        vocabulary, width = tensors["shared.weight"].shape
        buckets, heads = tensors["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape
        inner, hidden = (tensors[f"encoder.block.0.layer.{n}.weight"].shape[0] for n in ("0.SelfAttention.q", "1.DenseReluDense.wi_0"))
    except KeyError as error:
        raise ValueError(f"{path} is no UMT5 encoder of Wan's: {error.args[0]} is not in it.") from error
    config = UMT5Config(
        vocab_size=vocabulary, d_model=width, d_kv=inner // heads, d_ff=hidden, num_heads=heads,
        num_layers=1 + max(int(n.split(".")[2]) for n in tensors if n.startswith("encoder.block.")), relative_attention_num_buckets=buckets,
    )  # fmt: skip
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"]
    with torch.device("meta"):
        model = UMT5EncoderModel(config)
    missing, unknown = model.load_state_dict({name: t.to(dtype) for name, t in tensors.items()}, strict=False, assign=True)
    if missing or unknown:
        raise ValueError(
            f"{path} is no UMT5 encoder of Wan's: {len(missing) + len(unknown)} tensors differ, first {[*missing, *unknown][0]}."
        )
    model.tie_weights()
    return model.eval()


def _renamed(name: str, path: Path) -> str:
    if name in _TOP:
        return _TOP[name]
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)\.weight", name)
    if found is None or found[2] not in _LAYER:
        raise ValueError(f"{path} is no UMT5 encoder of Wan's: it holds {name}.")
    return f"encoder.block.{found[1]}.{_LAYER[found[2]]}.weight"


def find_tokenizer(folder: Path) -> Path:
    """Where the tokenizer is, in diffusers' or Wan's layout, or in the folder itself"""
    return next((folder / name for name in (Path("tokenizer"), TOKENIZER) if (folder / name).is_dir()), folder)
