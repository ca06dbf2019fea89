"""Checkpoints that survive anything: safetensors in shards, written aside and renamed into place."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SHARD_BYTES = 15_000_000


def save_checkpoint(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any], shard_bytes: int = SHARD_BYTES) -> None:
    """Write `tensors` in shards of at most `shard_bytes` and `meta` as JSON; an interrupted save leaves the old checkpoint."""
    folder = Path(folder)
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        rows = max(1, shard_bytes // max(1, tensor[:1].numel() * tensor.element_size())) if tensor.ndim else 1
        pieces = tensor.split(rows) if tensor.ndim and len(tensor) > rows else (tensor,)
        for i, piece in enumerate(pieces):
            key = name if len(pieces) == 1 else f"{name}#{i}"  # a tensor larger than a shard is cut along its first axis
            nbytes = piece.numel() * piece.element_size()
            if size + nbytes > shard_bytes and shards[-1]:
                shards.append({})
                size = 0
            shards[-1][key] = piece.clone()
            size += nbytes
    for i, shard in enumerate(shards):
        save_file(shard, fresh / f"part-{i:03d}.safetensors")
    (fresh / "state.json").write_text(json.dumps(meta, indent=1))
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(fresh, folder)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and meta, or None when there is no checkpoint. A save that was cut between its renames is completed."""
    folder = Path(folder)
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / "state.json").exists():
            break
    else:
        return None
    raw: dict[str, Tensor] = {}
    for shard in sorted(candidate.glob("part-*.safetensors")):
        raw.update(load_file(shard))
    tensors: dict[str, Tensor] = {}
    pieces: dict[str, dict[int, Tensor]] = {}
    for key, value in raw.items():
        name, cut, index = key.partition("#")
        if cut:
            pieces.setdefault(name, {})[int(index)] = value
        else:
            tensors[name] = value
    for name, parts in pieces.items():
        tensors[name] = torch.cat([parts[i] for i in sorted(parts)])
    return tensors, json.loads((candidate / "state.json").read_text())


def with_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{k}": v for k, v in tensors.items()}


def strip_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")}
