"""The file of a world: named tensors and a description, as safetensors. `World.state` fills one, `World.load` reads it.

Format 5: `memory.*` now; `actions` [1 + frames, 13], everything done; `held` [n], the chunks whose latents are still known;
`latents` [1, C, 1 + n * t, h, w], `poses` [1 + n * F, 4, 4] and, for models with camera views,
`inverse_depth` [1, 1 + n * t, k, l], the start picture's and theirs. `reused` [m] are those of them of which the memory has what the
last denoising step computed (`RuntimeConfig.context`), `last_steps` [1, C, m * t, h, w] and `timesteps` [m] what that was given; so a
world may be opened under either setting, and every chunk is written again as it was written first. One can go back to chunk `base`:
`base.memory.*`, where it differs from now's, and `decoder.*` and `base_frame`, the decoder's state and what is
seen there, unless that is the start. Latents of a model that computes in float32 are float16, and so is
inverse depth (`chunk.as_kept`).
Format 4 had them in float32, and what comes from such a file stays so: its memory was made of those numbers. Format 3 had no `reused`,
format 2 no `inverse_depth`, format 1 held every chunk from the start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from worldmodel.actions import NUM_ACTIONS
from worldmodel.chunk import LastStep, Past

if TYPE_CHECKING:
    from worldmodel.model import WorldModel

FILE_FORMAT = 5
READABLE = (1, 2, 3, 4, 5)


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

    def pasts(self, model: WorldModel, depth_of: Callable[[Tensor], Tensor | None]) -> list[Past]:
        """The chunks in the order of time, of those not held the log alone; `depth_of(latents)` is asked where the file has none."""
        t, frames, to = model.config.chunk, model.chunk_frames, model.device
        actions, prompts, prompt = self.tensors["actions"].numpy(), dict(self.meta["prompts"]), self.meta["start_prompt"]
        pasts: list[Past] = []
        for i in range((len(actions) - 1) // frames):
            prompt = prompts.get(i, prompt)
            pasts.append(Past(None, actions[1 + i * frames : 1 + (i + 1) * frames], None, prompt))
        for k, i in enumerate(self.tensors["held"].tolist()):
            rows = slice(1 + k * t, 1 + (k + 1) * t)
            latents = self.tensors["latents"][:, :, rows].to(to, copy=True)  # else all of them would live as long as one
            kept = "inverse_depth" in self.tensors
            depth = self.tensors["inverse_depth"][:, rows].to(to, copy=True) if kept else depth_of(latents)
            poses = self.tensors["poses"][1 + k * frames : 1 + (k + 1) * frames].numpy()
            pasts[i] = replace(pasts[i], latents=latents, poses=poses, inverse_depth=depth)
        for k, i in enumerate(self.tensors["reused"].tolist() if "reused" in self.tensors else ()):
            given = self.tensors["last_steps"][:, :, k * t : (k + 1) * t].to(to, copy=True)
            pasts[i] = replace(pasts[i], last_step=LastStep(given, float(self.tensors["timesteps"][k])))
        return pasts

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
        if not isinstance(meta, dict):
            raise WorldError(f"{path} is not a readable world file (no description).")
        if meta.get("format") not in READABLE:
            raise WorldError(f"{path} has world format {meta.get('format')!r}; this version reads 1 to {FILE_FORMAT}.")
        if meta.get("model") != model.fingerprint:
            raise WorldError(f"{path} was made by another model ({meta.get('model')}, not {model.fingerprint}); load that model first.")
        policy = meta.get("memory", "relic")
        if policy != model.config.memory.policy:
            raise WorldError(f"{path} has a memory of policy {policy!r}, this model one of {model.config.memory.policy!r}.")
        try:
            if meta["format"] == 1:
                meta["base"] = 0
                tensors["held"] = torch.arange((tensors["latents"].shape[2] - 1) // model.config.chunk)
            problem = _problem(tensors, meta, model)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            raise WorldError(f"{path} is not a readable world file ({problem}).")
        return cls(tensors, meta, note if isinstance(note, dict) else {})


def _problem(tensors: dict[str, Tensor], meta: dict[str, Any], model: WorldModel) -> str | None:
    """What in a file cannot be, since it may be anybody's: a world must not fail, or show nonsense, long after it was opened."""
    latents, poses, actions, held = (tensors[name] for name in ("latents", "poses", "actions", "held"))
    chunks, rest = divmod(len(actions) - 1, model.chunk_frames)
    channels, height, width = model.latent_shape
    for prompt in (meta["prompt"], meta["start_prompt"], *(prompt for _, prompt in meta["prompts"])):
        model.check_prompt(prompt)
    if rest or actions.shape[1:] != (NUM_ACTIONS,) or held.dim() != 1:
        return "the actions are not of whole chunks"
    if latents.shape != (1, channels, 1 + len(held) * model.config.chunk, height, width):
        return f"latents of shape {tuple(latents.shape)}"
    if "inverse_depth" in tensors and tensors["inverse_depth"].shape[:2] != (1, latents.shape[2]):
        return f"inverse depth of shape {tuple(tensors['inverse_depth'].shape)}"
    if poses.shape != (1 + len(held) * model.chunk_frames, 4, 4):
        return f"poses of shape {tuple(poses.shape)}"
    if type(meta["seed"]) is not int or type(meta["base"]) is not int or not 0 <= meta["base"] <= chunks:
        return "seed or base is no such number"
    known = held.tolist()
    if known != sorted(set(known)) or (known and not 0 <= known[0] <= known[-1] < chunks) or not {*range(meta["base"], chunks)} <= {*known}:
        return "chunks are missing"
    if "reused" in tensors:
        reused, last = tensors["reused"].tolist(), tensors["last_steps"]
        if reused != sorted({*reused} & {*known}) or last.shape != (1, channels, len(reused) * model.config.chunk, height, width):
            return "last steps of no such chunks"
        if tensors["timesteps"].shape != (len(reused),) or not ((tensors["timesteps"] >= 0) & (tensors["timesteps"] <= 1000)).all():
            return "no such timesteps"
    if not all(x.float().isfinite().all() for x in tensors.values() if x.is_floating_point()):
        return "numbers that are not finite"
    return None


def pack_pasts(start: Past, held: dict[int, Past]) -> dict[str, Tensor]:
    """What `WorldState.pasts` reads, but for the log of actions: of the start picture and of chunks by their number."""
    known = [start, *held.values()]
    tensors = {
        "latents": torch.cat([p.latents for p in known], dim=2), "poses": torch.from_numpy(np.concatenate([p.poses for p in known])),
        "held": torch.tensor([*held], dtype=torch.int64),
    }  # fmt: skip
    if start.inverse_depth is not None:
        tensors["inverse_depth"] = torch.cat([p.inverse_depth for p in known], dim=1)
    if reused := {i: p.last_step for i, p in held.items() if p.last_step is not None}:
        tensors["reused"] = torch.tensor([*reused], dtype=torch.int64)
        tensors["last_steps"] = torch.cat([last.latents for last in reused.values()], dim=2)
        tensors["timesteps"] = torch.tensor([last.timestep for last in reused.values()], dtype=torch.float64)
    return tensors


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
