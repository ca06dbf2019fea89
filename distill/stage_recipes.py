"""What each section of a recipe may say: one small frozen dataclass a stage, which refuses numbers out of range.

Nothing here imports torch; the stages' own modules import their recipe from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from worldmodel.configs import MemoryConfig, SamplerConfig

if TYPE_CHECKING:
    from distill.rollout import RollOutConfig
    from worldmodel.autoencoder import VideoAutoencoder

STRIDE, PATCH = 4, 16  # video frames a latent frame; pixels a latent of the small autoencoder
GENERATOR, FAKE = 0, 1  # order of self-forcing's optimisers


def _check(
    section: str, recipe: Any, at_least: Mapping[int, tuple[str, ...]], above_zero: tuple[str, ...] = (), share: tuple[str, ...] = ()
) -> None:
    """Refuse numbers out of range, by their full names."""
    rules = [(name, lambda v, low=low: v >= low, f"{low} or more") for low, names in at_least.items() for name in names]
    rules += [(name, lambda v: v > 0, "above 0") for name in above_zero]
    rules += [(name, lambda v: 0 <= v <= 1, "in 0..1") for name in share]
    for name, fits, what in rules:
        if not fits(getattr(recipe, name)):
            raise ValueError(f"{section}.{name} is {what}, got {getattr(recipe, name)}.")
    if getattr(recipe, "optimiser", "muon") not in ("muon", "adamw"):
        raise ValueError(f"{section}.optimiser is 'muon' or 'adamw', got {recipe.optimiser!r}.")


def _check_curriculum(section: str, curriculum: tuple[tuple[float, int, int], ...]) -> None:
    try:
        phases = [(float(share), int(latents), int(batch)) for share, latents, batch in curriculum]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{section}.curriculum is a list of [share of the steps, latent frames, batch], got {curriculum}.") from error
    shares = [share for share, *_ in phases]
    if not shares or shares[0] != 0 or sorted(set(shares)) != shares or shares[-1] >= 1:
        raise ValueError(f"{section}.curriculum begins at a share of 0.0 and its shares grow, below 1; got {shares}.")
    for _, latents, batch in phases:
        if latents < 2 or batch < 1:
            raise ValueError(f"{section}.curriculum has 2 latent frames or more and a batch of 1 or more; got {latents} and {batch}.")


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
    width: int = 0  # pixels, where `size` is the height alone; 0: square, as rendered clips are
    folder: str = ""  # a folder of posed clips of one's own (`distill.importers`) to train on; nothing is rendered then
    palindrome: float = 0.0  # share of the training clips encoded as walks there and back
    wan: str = ""  # folder of Wan 2.1 in diffusers' layout: its vae/ encodes the clips, text_encoder/ and tokenizer/ the captions
    balance: float = 0.0  # how much windows with rare actions are preferred in drawing; 0: not at all

    def __post_init__(self) -> None:
        _check(
            "data",
            self,
            at_least={1: ("held_out", "workers", "clips"), 2: ("autoencoder_clips",), 0: ("balance",)},
            share=("level", "palindrome"),
        )
        if self.frames < 5 or self.frames % STRIDE != 1:
            near = max(5, 1 + STRIDE * round((self.frames - 1) / STRIDE))
            raise ValueError(f"data.frames is 1 + 4k (5, 9, 13, ...), got {self.frames}; {near} would do.")
        for name in ("size", "width"):
            if (pixels := getattr(self, name)) % PATCH or pixels < (PATCH if name == "size" else 0):
                near = max(PATCH, PATCH * round(pixels / PATCH))
                raise ValueError(f"data.{name} is a multiple of {PATCH}, got {pixels}; {near} would do.")
        if self.clips < self.held_out + 2:
            raise ValueError(
                f"data.clips={self.clips} leaves nothing to train on: data.held_out={self.held_out} needs at least {self.held_out + 2}."
            )
        if not self.folder and self.autoencoder_clips > self.clips:
            raise ValueError(f"data.autoencoder_clips={self.autoencoder_clips} is more than data.clips={self.clips}.")

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.size, self.width or self.size

    @property
    def latents(self) -> int:
        """Latent frames of a clip."""
        return 1 + (self.frames - 1) // STRIDE


@dataclass(frozen=True)
class AutoencoderRecipe:
    latent_channels: int = 384
    decoder_widths: tuple[int, ...] = (96, 160)  # of the network that decodes beside the linear code; none: `steps` are 0
    steps: int = 1500
    batch: int = 4  # clips a step
    groups: int = 4  # latent frames of each, the first being a single frame
    optimiser: str = "muon"
    lr: float = 0.02
    adam_lr: float = 1e-3
    weight_decay: float = 0.0
    l1: float = 0.5
    latent_noise: float = 0.03  # in units of each channel's standard deviation
    seed: int = 0

    def __post_init__(self) -> None:
        zeros = ("steps", "weight_decay", "l1", "latent_noise")
        _check("autoencoder", self, at_least={1: ("latent_channels", "batch", "groups"), 0: zeros}, above_zero=("lr", "adam_lr"))
        if len(self.decoder_widths) not in (0, 2):
            raise ValueError(f"autoencoder.decoder_widths are two numbers, or none, got {list(self.decoder_widths)}.")
        if self.steps and not self.decoder_widths:
            raise ValueError("autoencoder.steps train the network that decoder_widths describe: without one they are 0.")


@dataclass(frozen=True)
class DepthRecipe:
    """Of the autoencoder's depth, which camera views need; trained where the transformer has `view_focal`."""

    seeds: str = "0-623"
    walks: int = 4  # through each scene
    gallery_walks: int = 60  # through each of the gallery's
    widths: tuple[int, ...] = (48, 80, 128)
    pool: int = 1  # pixels and axis that are averaged before depth is looked for
    steps: int = 3000
    batch: int = 32
    lr: float = 2e-3
    workers: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        _check("depth", self, at_least={1: ("walks", "gallery_walks", "pool", "batch", "workers"), 0: ("steps",)}, above_zero=("lr",))

    @property
    def scenes(self) -> tuple[int, ...]:
        from distill.scenes.__main__ import parse_seeds

        return parse_seeds(self.seeds)


@dataclass(frozen=True)
class CausalRecipe:
    transformer: dict[str, Any] = field(default_factory=dict)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    chunk: int = 1
    steps: int = 3000
    curriculum: tuple[tuple[float, int, int], ...] = ((0.0, 6, 8), (0.5, 8, 6), (0.85, 16, 3))
    """(share of the steps from which it holds, latent frames, batch)"""
    optimiser: str = "muon"
    lr: float = 0.02
    adam_lr: float = 1e-3
    weight_decay: float = 0.01
    ema: float = 0.998
    pure_noise: float = 0.5  # probability that a target is nothing but noise, where every roll-out begins
    context_noise: float = 0.1  # context is noisy up to this level half of the time
    first_weight: float = 0.05  # of the first latent frame as a target: the start picture from the prompt alone
    pixel_weight: float = 0.5  # 0: all latent channels count the same in the loss; 1: as much as they change the picture
    text_dropout: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        _check(
            "causal",
            self,
            at_least={1: ("chunk",), 0: ("steps", "weight_decay", "first_weight", "pixel_weight")},
            above_zero=("lr", "adam_lr"),
            share=("ema", "pure_noise", "context_noise", "text_dropout"),
        )
        _check_curriculum("causal", self.curriculum)


@dataclass(frozen=True)
class TeacherRecipe:
    transformer: dict[str, Any] = field(default_factory=dict)
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(steps=20))  # its shift is the training's as well
    steps: int = 10_000
    curriculum: tuple[tuple[float, int, int], ...] = ((0.0, 21, 8), (0.5, 41, 4), (0.6, 80, 2))
    """(share of the steps from which it holds, latent frames, batch): 5 s, 10 s and 20 s in the paper's shares"""
    optimiser: str = "muon"
    lr: float = 0.02
    adam_lr: float = 1e-3
    weight_decay: float = 0.01
    ema: float = 0.998
    first_clean: float = 0.95  # probability that the first latent frame is the start picture
    pixel_weight: float = 0.0  # as in the causal stage
    text_dropout: float = 0.1
    guidance: float = 3.0  # of the samples; 1: none
    seed: int = 0

    def __post_init__(self) -> None:
        _check(
            "teacher",
            self,
            at_least={0: ("steps", "weight_decay", "guidance")},
            above_zero=("lr", "adam_lr"),
            share=("ema", "first_clean", "text_dropout", "pixel_weight"),
        )
        _check_curriculum("teacher", self.curriculum)

    def phase(self, step: int) -> tuple[int, int]:
        """Latent frames and batch at a step."""
        return next((n, b) for at, n, b in reversed(self.curriculum) if step >= at * self.steps)


@dataclass(frozen=True)
class StudentInitRecipe:
    transformer: dict[str, Any] = field(default_factory=dict)  # not needed when the stage is given the teacher itself
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)  # the student's noise levels, from here to inference
    chunk: int = 1
    blocks: int = 21  # of a whole sequence; the first is the start picture, so there are 1 + chunk (blocks - 1) latent frames
    noisy_blocks: int = 3
    trajectories: int = 1024
    trajectory_steps: int = 48
    shard: int = 8  # trajectories in a file, which go through the teacher together
    guidance: float = 3.0  # of the teacher
    pixel_weight: float = 0.0  # as in the causal stage
    steps: int = 3000
    batch: int = 8
    optimiser: str = "muon"
    lr: float = 0.02
    adam_lr: float = 1e-3
    weight_decay: float = 0.01
    ema: float = 0.998
    seed: int = 0

    def __post_init__(self) -> None:
        ones = ("chunk", "noisy_blocks", "trajectories", "trajectory_steps", "shard", "batch")
        zeros = ("steps", "weight_decay", "guidance")
        _check("student_init", self, at_least={1: ones, 0: zeros}, above_zero=("lr", "adam_lr"), share=("ema", "pixel_weight"))
        if not 1 <= self.noisy_blocks < self.blocks:
            raise ValueError(f"student_init: noisy_blocks is 1 to blocks - 1, got noisy_blocks={self.noisy_blocks}, blocks={self.blocks}.")
        if self.trajectory_steps % self.sampler.steps:
            raise ValueError(
                f"The student's {self.sampler.steps} noise levels have to lie on the trajectory: "
                f"make trajectory_steps={self.trajectory_steps} a multiple of sampler.steps."
            )

    @property
    def latents(self) -> int:
        """Latent frames of a whole sequence."""
        return self.latents_of(self.blocks)

    def latents_of(self, blocks: int) -> int:
        return 1 + self.chunk * (blocks - 1)

    @property
    def trajectory_sampler(self) -> SamplerConfig:
        """Follows the flow: every `trajectory_steps / sampler.steps`-th noise level of it is one of the student's."""
        return replace(self.sampler, steps=self.trajectory_steps, stochastic=False)


@dataclass(frozen=True)
class SelfForcingRecipe:
    """Defaults are Self-Forcing's where RELIC gives none; the learning rates are those of a 1.3B model."""

    transformer: dict[str, Any] = field(default_factory=dict)  # not needed when the stage is given models
    score: dict[str, Any] = field(default_factory=dict)
    """What differs from `transformer` in the real and the fake score, for example their size."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    sampler: SamplerConfig = field(default_factory=lambda: SamplerConfig(steps=4, shift=5.0, stochastic=True))
    chunk: int = 1
    steps: int = 3300
    """Steps of either: `critic_per_generator` of the fake score, then one of the generator; 3300 are RELIC's 550 generator steps."""
    curriculum: tuple[tuple[float, int, int], ...] = ((0.0, 21, 4), (0.455, 40, 2), (0.727, 80, 1))
    """(share of the steps from which it holds, latent frames, batch); RELIC's 250, 150, 150 generator steps of 5, 10, 20 s"""
    critic_per_generator: int = 5
    lr: float = 2e-6
    critic_lr: float = 4e-7
    betas: tuple[float, float] = (0.0, 0.999)
    weight_decay: float = 0.01
    clip: float = 10.0
    warmup: int = 50
    ema: float = 0.99  # counts generator steps
    regression: float = 0.0
    """Weight of the way to the walk's own latents beside the difference of scores. Not RELIC's: it needs walks whose every frame
    follows from start picture, prompt and poses, as in worlds where nothing moves."""
    pixel_weight: float = 0.0  # of the regression, as in the causal stage
    guidance: float = 3.0  # on the real score: cond + guidance (cond - uncond)
    clamp: tuple[float, float] = (20.0, 980.0)  # timesteps at which the scores are compared
    replay: bool = True  # False: one graph over all blocks, the same gradient
    seed: int = 0

    def __post_init__(self) -> None:
        zeros = ("steps", "weight_decay", "warmup", "guidance", "regression")
        _check(
            "self_forcing",
            self,
            at_least={1: ("chunk", "critic_per_generator"), 0: zeros},
            above_zero=("lr", "critic_lr", "clip"),
            share=("ema", "pixel_weight"),
        )
        _check_curriculum("self_forcing", self.curriculum)
        low, high = self.clamp
        if not 0 < low <= high <= 1000:
            raise ValueError(f"self_forcing.clamp is two timesteps in 0..1000, the lower first, got {list(self.clamp)}.")
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"self_forcing.betas are below 1, got {list(self.betas)}.")

    def roll_out(self, autoencoder: VideoAutoencoder) -> RollOutConfig:
        from distill.rollout import RollOutConfig

        return RollOutConfig(self.memory, self.sampler, self.chunk, autoencoder)

    def turn(self, step: int) -> int:
        """Which optimiser steps: the fake score's `critic_per_generator` times, then the generator's once."""
        return GENERATOR if step % (self.critic_per_generator + 1) == self.critic_per_generator else FAKE
