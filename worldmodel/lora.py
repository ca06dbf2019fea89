"""LoRAs for Wan, merged into the weights: ``W + strength * alpha / rank * B A`` (Hu et al., arXiv 2106.09685), and nothing is left to run.

Names are read as diffusers and PEFT save them (`transformer.blocks.0.attn1.to_q.lora_A.weight`, `base_model.model...`),
with the original Wan names (`diffusion_model.blocks.0.self_attn.q.lora_down.weight`) and as kohya's trainers do
(`lora_unet_blocks_0_self_attn_q.lora_down.weight`). Differences of whole weights and biases (`.diff`, `.diff_b`) are added.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors import safe_open
from torch import Tensor

from worldmodel.checkpoints import read_tensors

_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
_PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "model.")
_LEAVES = {
    "lora_A.weight": "down", "lora_A.default.weight": "down", "lora_down.weight": "down", "lora.down.weight": "down",
    "lora_B.weight": "up", "lora_B.default.weight": "up", "lora_up.weight": "up", "lora.up.weight": "up",
    "lora_B.bias": "bias", "lora_B.default.bias": "bias", "diff_b": "bias", "diff": "diff", "alpha": "alpha",
}  # fmt: skip
_KOHYA = re.compile(r"lora_unet_blocks_(\d+)_(?:(self_attn|cross_attn)_([qkvo])|ffn_([02]))$")


@dataclass(frozen=True)
class Lora:
    """A LoRA's file or folder, and by how much it counts."""

    path: str | Path
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Lora:
        """``path`` or ``path:strength``"""
        path, colon, strength = text.rpartition(":")
        try:
            return cls(path, float(strength)) if colon else cls(text)
        except ValueError:
            return cls(text)  # a colon in a path


def merge_lora(tensors: dict[str, Tensor], lora: Lora) -> int:
    """Add a LoRA to a transformer's tensors, in place under diffusers' names; returns how many layers it changed.

    Raises:
        ValueError: not a LoRA, or one of another model; the message names what does not fit.
    """
    path = _find(Path(lora.path))
    layers = _layers(read_tensors(path), path)
    default_alpha = _stated_alpha(path)
    for target, parts in layers.items():
        weight, bias = f"{target}.weight", f"{target}.bias"
        if weight not in tensors:
            raise ValueError(f"{path} is a LoRA of another model: it changes {target}, which this transformer does not have.")
        change = parts.get("diff")
        if "down" in parts or "up" in parts:
            if not {"down", "up"} <= parts.keys():
                raise ValueError(f"{path} has only one of the two matrices of {target}: the file is not complete.")
            down, up = parts["down"].float().flatten(1), parts["up"].float().flatten(1)
            rank = down.shape[0]
            alpha = parts["alpha"].item() if "alpha" in parts else (rank if default_alpha is None else default_alpha)
            change = alpha / rank * up @ down if up.shape[1] == rank else None
        for name, delta in ((weight, change), (bias, parts.get("bias"))):
            if delta is None and name == bias:
                continue
            if delta is None and "bias" in parts:
                continue
            old = tensors.get(name)
            if old is None or delta is None or delta.numel() != old.numel():
                raise ValueError(f"{path} does not fit: {target} is {tuple(tensors[weight].shape)} here and of another shape there.")
            tensors[name] = (old.float() + lora.strength * delta.float().view(old.shape)).to(old.dtype)
    return len(layers)


def _find(path: Path) -> Path:
    if path.is_dir():
        there = [path / name for name in _FILES if (path / name).exists()] or sorted(path.glob("*.safetensors"))
        if len(there) != 1:
            raise ValueError(f"{path} holds {len(there)} LoRA files: give the path of one.")
        return there[0]
    return path


def _layers(tensors: dict[str, Tensor], path: Path) -> dict[str, dict[str, Tensor]]:
    """By module under diffusers' names: the parts of its change."""
    found: dict[str, dict[str, Tensor]] = {}
    strange = []
    for name, tensor in tensors.items():
        leaf = next((leaf for leaf in _LEAVES if name.endswith(f".{leaf}")), None)
        if leaf is None:
            strange.append(name)
            continue
        found.setdefault(name.removesuffix(f".{leaf}"), {})[_LEAVES[leaf]] = tensor
    if strange or not found:
        what = f"{strange[0]} is no part of one" if strange else "it is empty"
        raise ValueError(f"{path} is not a LoRA that can be merged: {what}.")
    return {_module(name): parts for name, parts in found.items()}


def _module(name: str) -> str:
    """diffusers' name of a module of Wan's transformer"""
    if kohya := _KOHYA.match(name):
        block, attention, projection, layer = kohya.groups()
        name = f"blocks.{block}.{attention}.{projection}" if attention else f"blocks.{block}.ffn.{layer}"
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    if ".attn1." in name or ".attn2." in name or ".ffn.net." in name or name.startswith(("condition_embedder.", "proj_out")):
        return name
    return next(iter(convert_wan_transformer_to_diffusers({f"{name}.weight": torch.empty(0)}))).removesuffix(".weight")


def _stated_alpha(path: Path) -> float | None:
    """`lora_alpha` as PEFT states it in adapter_config.json beside the file, or diffusers in the file's metadata"""
    config = path.parent / "adapter_config.json"
    stated = json.loads(config.read_text()) if config.exists() else {}
    if path.suffix == ".safetensors":
        with safe_open(str(path), "pt") as file:
            metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        stated |= {key.removeprefix("transformer."): value for key, value in metadata.items()}
    alpha = stated.get("lora_alpha")
    return None if alpha is None else float(alpha)
