"""Wan checkpoints, in whatever way they were saved, as a `CausalWorldTransformer`.

Parameter names of the class are diffusers'; checkpoints with the original Wan names go through diffusers' own conversion.
The shapes of the tensors decide the config, and RELIC's parts start as the class initialises them: a loaded model equals
Wan until it is trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from torch import Tensor, nn

from worldmodel.checkpoints import clean_prefixes, read_tensors
from worldmodel.lora import Lora, merge_lora
from worldmodel.transformer import CausalWorldTransformer

HEAD_DIM = 128
"""Width of one head in every released Wan model."""

_CAMERA = ("action_encoder", "pose_encoder", "action_proj", "pose_proj")


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


class WanCheckpoint:
    """A Wan transformer on disk: its tensors under diffusers' names, not yet read, and the config that their shapes tell.

    Args:
        path: a diffusers folder (the transformer's, or a pipeline's with one in it), a folder or .safetensors file with the
            original Wan names, or a .pt checkpoint of Self-Forcing, CausVid and their relatives.
        overrides: arguments of `CausalWorldTransformer` that shapes do not tell, or not rightly (`num_attention_heads`).

    Raises:
        FileNotFoundError, ValueError: nothing there, or not a text-to-video Wan transformer; the message says what is wrong.
    """

    def __init__(self, path: str | Path, **overrides: Any) -> None:
        path = Path(path)
        self.path = path / "transformer" if (path / "transformer").is_dir() else path
        tensors = clean_prefixes(read_tensors(self.path))
        if any(".self_attn." in name for name in tensors):
            tensors = convert_wan_transformer_to_diffusers(tensors)
        stated = _stated_config(self.path)
        ours = stated.get("_class_name") == CausalWorldTransformer.__name__
        keys = signature(CausalWorldTransformer.__init__).parameters if ours else ("num_attention_heads", "attention_head_dim", "eps")
        known = {key: tuple(stated[key]) if isinstance(stated[key], list) else stated[key] for key in keys if key in stated}
        self.tensors, self.config = tensors, config_from_tensors(tensors, **known | overrides)
        _refuse_strangers(self.path, self.empty(), tensors)

    @property
    def has_camera(self) -> bool:
        """Whether it was trained with actions and poses."""
        return "action_encoder.0.weight" in self.tensors

    def empty(self) -> CausalWorldTransformer:
        """The transformer without memory for its weights"""
        with torch.device("meta"):
            return CausalWorldTransformer(**self.config)

    def load(self, torch_dtype: torch.dtype = torch.float32, loras: Iterable[Lora] = (), device: str | torch.device = "cpu"):
        """The `CausalWorldTransformer`, with LoRAs merged, in evaluation mode; what the class keeps in float32 stays float32."""
        model = self.empty()
        for lora in loras:
            merge_lora(self.tensors, lora)
        float32 = set(model._keep_in_fp32_modules)
        dtypes = {name: torch.float32 if float32 & set(name.split(".")) else torch_dtype for name in model.state_dict()}
        model.load_state_dict({n: t.to(device, dtypes[n]) for n, t in self.tensors.items()}, strict=False, assign=True)
        start_camera_parts(model, (n for n in dtypes if n not in self.tensors), torch_dtype, device)
        return model.requires_grad_(True).eval()


def load_wan_transformer(path: str | Path, torch_dtype: torch.dtype = torch.float32, **overrides: Any) -> CausalWorldTransformer:
    """`CausalWorldTransformer` with the weights of a Wan transformer; as `WanCheckpoint`."""
    return WanCheckpoint(path, **overrides).load(torch_dtype)


def _stated_config(folder: Path) -> dict[str, Any]:
    """config.json beside the weights, under diffusers' names where it is Wan's original one"""
    try:
        stated = json.loads((folder / "config.json").read_text()) if (folder / "config.json").exists() else {}
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'} is not readable JSON: fetch it again.") from error
    return {"num_attention_heads" if key == "num_heads" else key: value for key, value in stated.items()}


def start_camera_parts(model: CausalWorldTransformer, names: Iterable[str], dtype: torch.dtype, device: str | torch.device = "cpu") -> None:
    """Give RELIC's layers among the parameters `names`, still without memory, the values that the class starts them with."""
    for name in sorted({n.rpartition(".")[0] for n in names}):
        layer: nn.Linear = model.get_submodule(name).to_empty(device=device).to(dtype)
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
