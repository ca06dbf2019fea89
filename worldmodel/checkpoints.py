"""Tensors from files: safetensors, sharded folders, and `.pt`/`.pth` opened as tensors only, never as code."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

WEIGHTS = "diffusion_pytorch_model.safetensors"

_NESTED = ("generator_ema", "generator", "model", "state_dict")
_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "module.", "model.")


def clean_prefixes(state_dict: dict[str, Any]) -> dict[str, Tensor]:
    """The transformer's tensors under their own names.

    Picks the generator out of a training checkpoint (its average before the live weights), leaves out what is no tensor, and strips
    what FSDP, activation checkpointing, `torch.compile` and wrapping modules put in front of names.
    """
    for key in _NESTED:
        if isinstance(state_dict.get(key), dict):
            return clean_prefixes(state_dict[key])
    out = {}
    for name, tensor in state_dict.items():
        if not isinstance(tensor, Tensor):
            continue
        for wrapper in _WRAPPERS:
            name = name.replace(wrapper, "")
        for prefix in _PREFIXES:
            name = name.removeprefix(prefix)
        out[name] = tensor
    return out


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, a .pt/.pth checkpoint, or a folder of (sharded) safetensors, read as they are used.

    Raises:
        FileNotFoundError: the file, or a shard that the folder's index names, is not there.
        ValueError: cut short, no such file at all, or holding more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        return {name: tensor for file in _shards(path) for name, tensor in read_tensors(file).items()}
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {path}: give a folder, a .safetensors file or a .pt file that is on this machine.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(_unreadable(path, "safetensors file")) from error
    if path.suffix not in (".pt", ".pth", ".bin", ".ckpt"):
        raise ValueError(f"{path} is no checkpoint: those end in .safetensors, .pt, .pth, .bin or .ckpt.")
    try:
        return clean_prefixes(_load_tensors_only(path))
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} holds more than tensors and is not opened: save its weights as safetensors where it was made.") from error
    except (RuntimeError, EOFError) as error:
        raise ValueError(_unreadable(path, "checkpoint of torch")) from error


def count_numbers(path: Path) -> int:
    """How many numbers a file of tensors holds; of a .safetensors file only the head is read."""
    if path.suffix != ".safetensors":
        return sum(t.numel() for t in read_tensors(path).values())
    try:
        with safe_open(str(path), "pt") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(_unreadable(path, "safetensors file")) from error


def _load_tensors_only(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap can only be used" not in str(error):
            raise
        return torch.load(path, map_location="cpu", weights_only=True)  # the format from before torch 1.6


def _unreadable(path: Path, kind: str) -> str:
    return f"{path} is not a readable {kind} ({path.stat().st_size:,} bytes): it may have been cut short, so fetch it again."


def _shards(folder: Path) -> list[Path]:
    index = folder / f"{WEIGHTS}.index.json"
    if index.exists():
        try:
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"{index} is not a readable list of shards: fetch it again.") from error
    else:
        files = [WEIGHTS]
    missing = [file for file in files if not (folder / file).exists()]
    if missing and len(files) == 1:
        others = sorted(p.name for p in folder.iterdir() if p.suffix in (".safetensors", ".pt", ".pth"))
        hint = f" If it is {others[0]}, give the path of that file." if others else ""
        raise FileNotFoundError(f"{folder} holds no transformer: {files[0]} is not there.{hint}")
    if missing:
        raise FileNotFoundError(f"{folder} lacks {len(missing)} of {len(files)} shards, beginning with {missing[0]}: fetch the rest.")
    return [folder / file for file in files]
