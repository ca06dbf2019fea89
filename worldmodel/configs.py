"""Configs that recipes and models share, importable without torch, so that a wrong recipe is refused at once.

They belong to `worldmodel.memory`, `worldmodel.sampling` and `worldmodel.transformer`, and the first two are imported from there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from worldmodel.actions import NUM_ACTIONS
from worldmodel.camera import POSE_CODE_DIM

if TYPE_CHECKING:
    from diffusers import FlowMatchEulerDiscreteScheduler

RELIC_SCHEDULE = (1, 4, 2, 4, 4, 4, 2, 4, 4, 2, 4, 4, 4, 2, 4, 4, 2, 4)
"""Per-axis pooling factor of latent frame i, repeated every 18 latent frames."""
MEMORY_POLICIES = ("relic", "age", "retrieval", "visible")
"""What becomes of latent frames that leave the window: `worldmodel.memory` and `worldmodel.memories`."""
MEMORY_NAMES = ("relic", "window", "full", "age", "retrieval", "visible")
"""Memories that `MemoryConfig.named` makes: the policies, RELIC's with nothing but the window, and RELIC's without pooling."""
AGE_FACTORS = (1, 2, 4)
"""Per-axis pooling factors of policy ``age``: of the window, of twice as many latent frames before it, of everything older."""


@dataclass(frozen=True)
class MemoryConfig:
    """`window` latent frames at full resolution, older ones pooled by `schedule`; at most `horizon` latent frames in all.

    ``schedule=()`` forgets what leaves the window (the window-only rival); ``schedule=(1,)`` compresses nothing.

    `policy` says what becomes of latent frames that leave the window, `budget` how many tokens besides the window the policies
    ``retrieval`` and ``visible`` may have (0: as many as RELIC's schedule has at most). See `worldmodel.memories`.
    """

    window: int = 8
    schedule: tuple[int, ...] = RELIC_SCHEDULE
    horizon: int = 80
    policy: str = "relic"
    budget: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedule", tuple(self.schedule))
        if self.policy not in MEMORY_POLICIES:
            raise ValueError(f"A memory's policy is one of {', '.join(MEMORY_POLICIES)}, got {self.policy!r}.")
        if self.policy != "relic" and not self.schedule:
            raise ValueError(f"Only policy 'relic' has an empty schedule (the window alone); policy {self.policy!r} needs one.")
        if self.budget < 0:
            raise ValueError(f"A memory's budget is a number of tokens, or 0 for RELIC's own, got {self.budget}.")
        if self.window < 1 or self.horizon <= self.window:
            raise ValueError(f"A memory has window >= 1 and horizon > window, got window={self.window}, horizon={self.horizon}.")
        if any(s < 1 for s in self.schedule):
            raise ValueError(f"Pooling factors are 1 or more, got {self.schedule}.")

    def factor(self, index: int) -> int:
        """Pooling factor of latent frame `index` once it has left the window; 0 means forgotten."""
        return self.schedule[index % len(self.schedule)] if self.schedule else 0

    def tokens(self, index: int, grid: tuple[int, int]) -> int:
        s = self.factor(index)
        return -(-grid[0] // s) * -(-grid[1] // s) if s else 0

    def remembers(self, index: Any, count: int, chunk: int = 1) -> Any:
        """Which of the latent frames `index`, an array or tensor, a memory still holds when `count` are written: bool, of its shape."""
        if self.uses_poses:
            raise ValueError(f"What a memory of policy {self.policy!r} holds depends on the camera's poses: ask the memory (`remembered`).")
        past = (index == 0) | (index > count - self.horizon + chunk)
        return (index < count) & ((index >= count - self.window) | (past & bool(self.schedule)))

    @property
    def uses_poses(self) -> bool:
        """Whether what the memory holds depends on where the camera is."""
        return self.policy in ("retrieval", "visible")

    def past_budget(self, grid: tuple[int, int], chunk: int = 1) -> int:
        """Most tokens that ``retrieval`` and ``visible`` have besides the window: `budget`, or RELIC's most within the horizon."""
        if self.budget:
            return self.budget
        costs = [-(-grid[0] // s) * -(-grid[1] // s) for s in RELIC_SCHEDULE]
        past = max(self.horizon - chunk - self.window - 1, 0)  # and the start picture
        return costs[0] + max(sum(costs[(start + k) % len(costs)] for k in range(past)) for start in range(len(costs)))

    def window_only(self) -> MemoryConfig:
        return replace(self, schedule=(), policy="relic")

    def named(self, name: str) -> MemoryConfig:
        """A memory of another kind with this one's window, horizon and budget; `name` is one of `MEMORY_NAMES`."""
        if name not in MEMORY_NAMES:
            raise ValueError(f"There is no memory {name!r}; there are {', '.join(MEMORY_NAMES)}.")
        schedule = {"window": (), "full": (1,)}.get(name, RELIC_SCHEDULE)
        return replace(self, schedule=schedule, policy=name if name in MEMORY_POLICIES else "relic")


@dataclass(frozen=True)
class SamplerConfig:
    """`steps` evenly spaced noise levels from 1, warped by the timestep shift; 4 steps, shift 5: 1, .9375, .8333, .625.

    `stochastic` re-noises each prediction afresh (as Self-Forcing does) instead of following the flow.
    """

    steps: int = 4
    shift: float = 5.0
    stochastic: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"denoising steps are 1 or more, got {self.steps}.")
        if self.shift <= 0:
            raise ValueError(f"The timestep shift is above 0, got {self.shift}.")

    def with_steps(self, steps: int) -> SamplerConfig:
        return replace(self, steps=steps)

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler(shift=self.shift, stochastic_sampling=self.stochastic)
        scheduler.set_timesteps(sigmas=[1 - i / self.steps for i in range(self.steps)])
        return scheduler


@dataclass(frozen=True)
class TransformerConfig:
    """The arguments of `worldmodel.transformer.CausalWorldTransformer` and their defaults, for checks before it is imported."""

    patch_size: tuple[int, int, int] = (1, 2, 2)
    num_attention_heads: int = 40
    attention_head_dim: int = 128
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    ffn_dim: int = 13824
    num_layers: int = 40
    cross_attn_norm: bool = True
    eps: float = 1e-6
    camera_dim: int = 256
    action_dim: int = NUM_ACTIONS
    pose_dim: int = POSE_CODE_DIM
    pose_scale: float = 1 / 16
    temporal_stride: int = 4
    rope_theta: float = 10000.0
    rope_original_latents: int = 0
    rope_extension: float = 1.0
    prediction_type: str = "velocity"
    view_focal: float = 0.0
    view_pictures: int = 1
    ray_focal: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        sizes = ("num_attention_heads", "attention_head_dim", "num_layers", "in_channels", "out_channels")
        for name in (*sizes, "text_dim", "freq_dim", "ffn_dim", "camera_dim", "view_pictures"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is 1 or more, got {getattr(self, name)}.")
        if self.attention_head_dim % 2:
            raise ValueError(f"attention_head_dim is even, for the rotary embedding, got {self.attention_head_dim}.")
        if len(self.patch_size) != 3 or self.patch_size[0] != 1 or min(self.patch_size) < 1:
            raise ValueError(f"patch_size is [1, height, width], so that time stays causal, got {list(self.patch_size)}.")
        if self.prediction_type not in ("velocity", "sample"):
            raise ValueError(f"prediction_type is 'velocity' or 'sample', got {self.prediction_type!r}.")
        if self.view_focal and self.prediction_type != "sample":
            raise ValueError("view_focal needs prediction_type='sample'.")

    @property
    def width(self) -> int:
        return self.num_attention_heads * self.attention_head_dim
