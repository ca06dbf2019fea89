"""Recipes: one YAML file per published checkpoint, checked against dataclasses; unknown keys are refused."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from distill.autoencoder import AutoencoderRecipe
from distill.causal import CausalRecipe
from distill.self_forcing import SelfForcingRecipe
from distill.student_init import StudentInitRecipe
from distill.teacher import TeacherRecipe

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


NEEDS = {"causal": set(), "teacher": set(), "student_init": {"teacher"}, "self_forcing": {"teacher"}}
"""Stages that train a world model, and which ones each needs before it."""


@dataclass(frozen=True)
class Recipe:
    name: str = "tiny"
    stages: tuple[str, ...] = ("causal",)
    """In this order, after the autoencoder. RELIC's whole way is teacher, student_init, self_forcing; causal learns directly."""
    data: DataRecipe = field(default_factory=DataRecipe)
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    causal: CausalRecipe = field(default_factory=CausalRecipe)
    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    student_init: StudentInitRecipe = field(default_factory=StudentInitRecipe)
    self_forcing: SelfForcingRecipe = field(default_factory=SelfForcingRecipe)

    def __post_init__(self) -> None:
        for i, name in enumerate(self.stages):
            before = set(self.stages[:i])
            if name not in NEEDS:
                raise ValueError(f"There is no stage {name!r}; stages are {', '.join(NEEDS)}.")
            if missing := NEEDS[name] - before:
                raise ValueError(f"The stage {name} needs {', '.join(missing)} before it in `stages`.")
            if name == "self_forcing" and not before & {"causal", "student_init"}:
                raise ValueError("The stage self_forcing needs a generator to start from: student_init or causal before it in `stages`.")

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
