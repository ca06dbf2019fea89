"""Wan checkpoints, in whatever way they were saved, as a `CausalWorldTransformer`.

Parameter names of the class are diffusers'; checkpoints with the original Wan names go through diffusers' own conversion.
The shapes of the tensors decide the config, and RELIC's parts start as the class initialises them: a loaded model equals
Wan until it is trained.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file
from torch import Tensor, nn

from worldmodel.transformer import CausalWorldTransformer

HEAD_DIM = 128
"""Width of one head in every released Wan model."""

_NESTED = ("generator_ema", "generator", "model", "state_dict")
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "module.", "model.")
_CAMERA = ("action_encoder", "pose_encoder", "action_proj", "pose_proj")
_WEIGHTS = "diffusion_pytorch_model.safetensors"


def clean_prefixes(state_dict: dict[str, Any]) -> dict[str, Tensor]:
    """The transformer's tensors under their own names.

    Picks the generator out of a training checkpoint (its average before the live weights), and strips what FSDP,
    activation checkpointing, `torch.compile` and wrapping modules put in front of names.
    """
    for key in _NESTED:
        if isinstance(state_dict.get(key), dict):
            return clean_prefixes(state_dict[key])
    out = {}
    for name, tensor in state_dict.items():
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        out[name] = tensor
    return out


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, a .pt/.pth checkpoint (tensors only), or a folder of (sharded) safetensors."""
    path = Path(path)
    if path.is_dir():
        index = path / f"{_WEIGHTS}.index.json"
        files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [_WEIGHTS]
        if not (path / files[0]).exists():
            raise FileNotFoundError(f"{path} holds no transformer: {files[0]} is not there.")
        return {name: tensor for file in files for name, tensor in load_file(path / file).items()}
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {path}: give a folder, a .safetensors file or a .pt file that is on this machine.")
    if path.suffix == ".safetensors":
        return load_file(path)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and is not opened: save its weights as safetensors where it was made.") from error
    return clean_prefixes(loaded)


def config_from_tensors(tensors: dict[str, Tensor], **overrides: Any) -> dict[str, Any]:
    """Arguments of `CausalWorldTransformer` of tensors under diffusers' names; heads are dim / 128 unless overridden."""
    shape = {name: tuple(t.shape) for name, t in tensors.items()}
    try:
        dim, in_channels, *patch = shape["patch_embedding.weight"]
        config = {
            "patch_size": tuple(patch),
            "in_channels": in_channels,
            "out_channels": shape["proj_out.weight"][0] // (patch[0] * patch[1] * patch[2]),
            "text_dim": shape["condition_embedder.text_embedder.linear_1.weight"][1],
            "freq_dim": shape["condition_embedder.time_embedder.linear_1.weight"][1],
            "ffn_dim": shape["blocks.0.ffn.net.0.proj.weight"][0],
            "num_layers": 1 + max(int(n.split(".")[1]) for n in shape if n.startswith("blocks.")),
            "cross_attn_norm": "blocks.0.norm2.weight" in shape,
        }
    except (KeyError, ValueError) as error:
        raise ValueError(f"This is no Wan transformer: {error.args[0]} is not in the checkpoint.") from error
    heads, head_dim = overrides.pop("num_attention_heads", None), overrides.pop("attention_head_dim", None)
    head_dim = head_dim or (dim // heads if heads else HEAD_DIM)
    heads = heads or dim // head_dim
    if heads * head_dim != dim:
        raise ValueError(f"The width is {dim}, which is not {heads or 1} heads of {head_dim}: give num_attention_heads.")
    config |= {"num_attention_heads": heads, "attention_head_dim": head_dim}
    if "action_encoder.0.weight" in shape:
        config["camera_dim"] = shape["action_encoder.0.weight"][0]
    return config | overrides


def load_wan_transformer(path: str | Path, torch_dtype: torch.dtype = torch.float32, **overrides: Any) -> CausalWorldTransformer:
    """`CausalWorldTransformer` with the weights of a Wan transformer, in evaluation mode.

    Args:
        path: a diffusers folder (the transformer's, or a pipeline's with one in it), a folder or .safetensors file with the
            original Wan names, or a .pt checkpoint of Self-Forcing, CausVid and their relatives.
        torch_dtype: of the weights; what the class keeps in float32 stays float32.
        overrides: arguments of `CausalWorldTransformer` that shapes do not tell, or not rightly (`num_attention_heads`).

    Raises:
        FileNotFoundError, ValueError: nothing there, or not a text-to-video Wan transformer; the message says what is wrong.
    """
    path = Path(path)
    if (path / "transformer").is_dir():
        path = path / "transformer"
    tensors = clean_prefixes(read_tensors(path))
    if any(".self_attn." in name for name in tensors):
        tensors = convert_wan_transformer_to_diffusers(tensors)
    stated = json.loads((path / "config.json").read_text()) if (path / "config.json").exists() else {}
    known = {key: stated[key] for key in ("num_attention_heads", "attention_head_dim", "eps") if key in stated}
    config = config_from_tensors(tensors, **known | overrides)
    with torch.device("meta"):
        model = CausalWorldTransformer(**config)
    _refuse_strangers(path, model, tensors)

    float32 = set(model._keep_in_fp32_modules)
    dtypes = {name: torch.float32 if float32 & set(name.split(".")) else torch_dtype for name in model.state_dict()}
    model.load_state_dict({name: t.to(dtypes[name]) for name, t in tensors.items()}, strict=False, assign=True)
    start_camera_parts(model, (n for n in dtypes if n not in tensors), torch_dtype)
    return model.requires_grad_(True).eval()


def start_camera_parts(model: CausalWorldTransformer, names: Iterable[str], dtype: torch.dtype) -> None:
    """Give RELIC's layers among the parameters `names`, still without memory, the values that the class starts them with."""
    for name in sorted({n.rpartition(".")[0] for n in names}):
        layer: nn.Linear = model.get_submodule(name).to_empty(device="cpu").to(dtype)
        layer.reset_parameters()
        if name.endswith(("action_proj", "pose_proj")):  # the blocks' own projections start at zero
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)


def _refuse_strangers(path: Path, model: CausalWorldTransformer, tensors: dict[str, Tensor]) -> None:
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    missing = [n for n in wanted if n not in tensors and not any(part in n.split(".") for part in _CAMERA)]
    unexpected = [n for n in tensors if n not in wanted]
    different = [n for n in tensors if n in wanted and tuple(tensors[n].shape) != wanted[n]]
    if any("add_k_proj" in n or "image_embedder" in n for n in unexpected):
        raise ValueError(
            f"{path} is an image-to-video Wan transformer: the start picture goes into the sequence here, use a text-to-video one."
        )
    for names, what in ((missing, "lacks"), (unexpected, "also holds"), (different, "has another shape for")):
        if names:
            raise ValueError(
                f"{path} {what} {len(names)} tensors, beginning with {sorted(names)[0]}: it is not a Wan transformer of this config."
            )
