"""The file of a world: named tensors and a description, as safetensors. `World.state` fills one, `World.load` reads it.

Format 3: `memory.*` now; `actions` [1 + frames, 13], everything done; `held` [n], the chunks whose latents are still known;
`latents` [1, C, 1 + n * t, h, w], `poses` [1 + n * F, 4, 4] and, for models with camera views,
`inverse_depth` [1, 1 + n * t, k, l], the start picture's and theirs. One can go back to chunk `base`:
`base.memory.*`, where it differs from now's, and `decoder.*` and `base_frame`, the decoder's state and what is
seen there, unless that is the start.
Format 2 had no `inverse_depth`, format 1 held every chunk from the start.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from worldmodel.model import WorldModel

FILE_FORMAT = 3
READABLE = (1, 2, 3)


class WorldError(ValueError):
    """Something was asked of a world that it cannot do, or a file is no world of this model. One clear sentence."""


@dataclass(frozen=True)
class WorldState:
    """Everything of a world at one moment; it shares nothing that changes, so another thread may write it to a file.

    `meta` describes it, `note` (JSON) is whatever a caller wants to find again.
    """

    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    note: dict[str, Any] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """About the size of the file."""
        return sum(x.numel() * x.element_size() for x in self.tensors.values())

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors ``name.*``, without that prefix."""
        return {k.removeprefix(f"{name}."): v for k, v in self.tensors.items() if k.startswith(f"{name}.")}

    def save(self, path: str | Path) -> None:
        """Write it aside first, then rename: a full disk or a crash loses nothing that was there. Raises `WorldError`."""
        path = Path(path)
        part = path.with_name(path.name + ".part")
        description = {"world": json.dumps(self.meta), "note": json.dumps(self.note)}
        try:
            save_file({k: v.cpu().contiguous() for k, v in self.tensors.items()}, part, metadata=description)
            with part.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(part, path)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise WorldError(f"The world could not be saved to {path}: {error}") from error

    @classmethod
    def load(cls, path: str | Path, model: WorldModel) -> WorldState:
        """What `save` wrote; raises `WorldError` when it is no world of this model."""
        try:
            with safe_open(str(path), "pt") as f:
                described = f.metadata() or {}
                meta, note = json.loads(described["world"]), json.loads(described.get("note", "{}"))
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise WorldError(f"{path} is not a readable world file ({type(error).__name__}).") from error
        if meta.get("format") not in READABLE:
            raise WorldError(f"{path} has world format {meta.get('format')!r}; this version reads formats 1 and 2.")
        if meta["model"] != model.fingerprint:
            raise WorldError(f"{path} was made by another model ({meta['model']}, not {model.fingerprint}); load that model first.")
        policy = meta.get("memory", "relic")
        if policy != model.config.memory.policy:
            raise WorldError(f"{path} has a memory of policy {policy!r}, this model one of {model.config.memory.policy!r}.")
        if meta["format"] == 1:
            meta["base"] = 0
            tensors["held"] = torch.arange((tensors["latents"].shape[2] - 1) // model.config.chunk)
        return cls(tensors, meta, note)


def pack(state: Any) -> dict[str, Tensor]:
    """A decoder's state as tensors: None, a tensor, or a list of tensors, Nones and texts (`autoencoder.WanAutoencoder`)."""
    if state is None:
        return {}
    if isinstance(state, Tensor):
        return {"all": state}
    texts = {f"{i:03d}.text": torch.tensor(list(x.encode()), dtype=torch.uint8) for i, x in enumerate(state) if isinstance(x, str)}
    return {"length": torch.tensor(len(state))} | {f"{i:03d}": x for i, x in enumerate(state) if isinstance(x, Tensor)} | texts


def unpack(tensors: dict[str, Tensor], device: torch.device) -> Any:
    """The inverse of `pack`."""
    if not tensors:
        return None
    if "all" in tensors:
        return tensors["all"].to(device)
    state: list[Any] = [None] * int(tensors["length"])
    for name, x in tensors.items():
        index, _, kind = name.partition(".")
        if index != "length":
            state[int(index)] = bytes(x.tolist()).decode() if kind == "text" else x.to(device)
    return state
