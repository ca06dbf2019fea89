"""Recipes: one YAML file per published checkpoint, checked against dataclasses; unknown keys are refused.

Nothing here imports torch, so that what is wrong with a recipe is said at once; `distill.checks` looks at the files of a run.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from distill.stage_recipes import (
    STRIDE,
    AutoencoderRecipe,
    CausalRecipe,
    DataRecipe,
    DepthRecipe,
    SelfForcingRecipe,
    StudentInitRecipe,
    TeacherRecipe,
)  # fmt: skip
from worldmodel.configs import TransformerConfig
from worldmodel.runtime import PRECISIONS

FOLDER = Path(__file__).parent / "recipes"
NEEDS = {"causal": set(), "teacher": set(), "student_init": {"teacher"}, "self_forcing": {"teacher"}}
"""Stages that train a world model, and which ones each needs before it."""


@dataclass(frozen=True)
class Recipe:
    name: str = "tiny"
    stages: tuple[str, ...] = ("causal",)
    """In this order, after the autoencoder and its depth. RELIC's whole way is teacher, student_init, self_forcing; causal learns
    directly."""
    precision: str = "auto"
    """Of matrix products in training: weights (float32), bfloat16, or auto, which is that on CUDA and on CPUs with AMX or AVX512-BF16."""
    data: DataRecipe = field(default_factory=DataRecipe)
    autoencoder: AutoencoderRecipe = field(default_factory=AutoencoderRecipe)
    depth: DepthRecipe = field(default_factory=DepthRecipe)
    causal: CausalRecipe = field(default_factory=CausalRecipe)
    teacher: TeacherRecipe = field(default_factory=TeacherRecipe)
    student_init: StudentInitRecipe = field(default_factory=StudentInitRecipe)
    self_forcing: SelfForcingRecipe = field(default_factory=SelfForcingRecipe)

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError(f"`stages` names at least one of {', '.join(NEEDS)}.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"`precision` is one of {', '.join(PRECISIONS)}, got {self.precision!r}.")
        for i, name in enumerate(self.stages):
            before = set(self.stages[:i])
            if name not in NEEDS:
                raise ValueError(f"There is no stage {name!r}; stages are {', '.join(NEEDS)}.")
            if missing := NEEDS[name] - before:
                raise ValueError(f"The stage {name} needs {', '.join(missing)} before it in `stages`.")
            if name == "self_forcing" and not before & {"causal", "student_init"}:
                raise ValueError("The stage self_forcing needs a generator to start from: student_init or causal before it in `stages`.")
        for name in self.stages:
            if (longest := self.longest(name)) > self.data.latents:
                raise ValueError(
                    f"The stage {name} goes up to {longest} latent frames, but data.frames={self.data.frames} are {self.data.latents}: "
                    f"data.frames={1 + STRIDE * (longest - 1)} would do."
                )

    def longest(self, stage: str) -> int:
        """Latent frames of the longest sequence of a stage."""
        section = getattr(self, stage)
        return section.latents if stage == "student_init" else max(latents for _, latents, _ in section.curriculum)

    def transformer(self, stage: str, **defaults: Any) -> TransformerConfig:
        """Of the model that a stage trains. The student is the teacher's copy, the generator the student's or causal's."""
        source = {"student_init": "teacher", "self_forcing": "teacher" if "student_init" in self.stages else "causal"}.get(stage, stage)
        return TransformerConfig(**defaults | getattr(self, source).transformer)

    def same_weights(self, stage: str, other: str) -> bool:
        """Whether the models of two stages have the same weights in number and shape, so that one may start from the other's."""
        plain = (dataclasses.replace(self.transformer(s), rope_original_latents=0, rope_extension=1.0) for s in (stage, other))
        return next(plain) == next(plain)

    @property
    def digest(self) -> str:
        """Short hash that names the recipe in logs."""
        return hashlib.sha256(OmegaConf.to_yaml(OmegaConf.structured(self)).encode()).hexdigest()[:12]

    @property
    def origin(self) -> dict[str, str]:
        """What the account of a slice says of its recipe (`distill.work`)."""
        return {"recipe": self.name, "digest": self.digest}


class RecipeError(ValueError):
    """A recipe that does not exist, or has a key or value that does not fit; the message says which."""


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """The recipe called `name` (or a path to a YAML file), with ``section.key=value`` overrides."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        near = difflib.get_close_matches(name, [p.stem for p in FOLDER.glob("*.yaml")], 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise RecipeError(f"There is no recipe {name!r}.{hint} Recipes are {known}, or a path to a YAML file.")
    if wrong := next((o for o in overrides or [] if "=" not in o), None):
        raise RecipeError(f"An override is KEY=VALUE, for example causal.steps=500, got {wrong!r}.")
    try:
        given = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(overrides or []))
        plain = OmegaConf.to_container(given, resolve=True)
        _refuse_unknown(plain, Recipe)
        for section, key in TRANSFORMERS:
            arguments = plain.get(section, {}).get(key, {})
            _refuse_unknown(arguments, TransformerConfig, f"{section}.{key}.")
            OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TransformerConfig), arguments))
        recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), given))
    except (OmegaConfBaseException, YAMLError, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None)
        first = str(error).splitlines()[0] if isinstance(error, OmegaConfBaseException) else " ".join(str(error).split())
        raise RecipeError(f"Recipe {name}: {key + ': ' if key else ''}{first}") from error
    return recipe


TRANSFORMERS = [(s, "transformer") for s in ("causal", "teacher", "student_init", "self_forcing")] + [("self_forcing", "score")]
"""Where a recipe has arguments of a transformer."""


def _refuse_unknown(given: Any, kind: type, prefix: str = "") -> None:
    """Refuse keys that the dataclass `kind` does not have, and values where it has a section; the nearest key is suggested."""
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    if not isinstance(given, Mapping):
        raise RecipeError(f"{prefix.rstrip('.') or 'it'} is a section with the keys {', '.join(known)}; got {given!r}.")
    for key, value in given.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(known)}."
            raise RecipeError(f"there is no key {prefix}{key}; {hint}")
        if dataclasses.is_dataclass(hints[key]):
            _refuse_unknown(value, hints[key], f"{prefix}{key}.")
