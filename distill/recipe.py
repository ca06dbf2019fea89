"""Recipes: one YAML file per published checkpoint, checked against dataclasses; unknown keys are refused."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.autoencoder import AutoencoderRecipe
from distill.causal import CausalRecipe

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class DataRecipe:
    seeds: str = "0-23"
    clips: int = 1200
    held_out: int = 48  # the last clips, never trained on, shown at the end of every slice
    frames: int = 81
    size: int = 128
    level: float = 1.0
    autoencoder_clips: int = 480  # clips whose frames the autoencoder trains on; it starts when these are rendered
    workers: int = 2
    folder: str = ""  # a folder of posed clips of one's own (`distill.importers`) to train on; nothing is rendered then
    palindrome: float = 0.0  # share of the training clips encoded as walks there and back
    balance: float = 0.0  # how much windows with rare actions are preferred in drawing; 0: not at all


@dataclass(frozen=True)
class Recipe:
    name: str = "tiny"
    data: DataRecipe = field(default_factory=DataRecipe)
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    causal: CausalRecipe = field(default_factory=CausalRecipe)

    @property
    def digest(self) -> str:
        """Short hash that names the recipe in logs."""
        return hashlib.sha256(OmegaConf.to_yaml(OmegaConf.structured(self)).encode()).hexdigest()[:12]


class RecipeError(ValueError):
    """A recipe that does not exist, or has a key or value that does not fit; the message says which."""


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe called `name` (or a path to a YAML file), with ``section.key=value`` overrides."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise RecipeError(f"There is no recipe {name!r}. Recipes are {known}, or a path to a YAML file.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Recipe), OmegaConf.load(path), OmegaConf.from_dotlist(overrides or []))
        recipe = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise RecipeError(f"Recipe {name}: {str(error).splitlines()[0]} (key {getattr(error, 'full_key', '?')})") from error
    return recipe
