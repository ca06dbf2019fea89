"""What `distill.ablate` compares: named comparisons over one base, which run is which, and the table of what came out.

The base is `recipes/tiny.yaml`'s causal stage at 128x128, where a token is one latent, with a narrower network and fewer steps. What is
compared is written out here too, so the table stays what it is when the recipe takes over what won. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache

from distill.recipe import Recipe, load_recipe

VERSION = 4  # counts up when a run or a measure changes, so that old lines are not mixed with new ones
SEEDS = (0, 1)
BASE = (
    "stages=[causal]", "precision=weights",
    "data.clips=120", "data.held_out=16", "data.frames=81", "data.size=128", "data.autoencoder_clips=120", "data.balance=0",
    "causal.transformer.num_attention_heads=4", "causal.transformer.attention_head_dim=32", "causal.transformer.ffn_dim=320",
    "causal.transformer.num_layers=4", "causal.transformer.prediction_type=sample", "causal.transformer.view_focal=0.714074",
    "causal.transformer.view_pictures=3", "causal.transformer.patch_size=[1,1,1]", "causal.sampler.steps=1", "causal.sampler.shift=5.0",
    "causal.pure_noise=0.5", "causal.optimiser=muon", "causal.lr=0.012", "causal.adam_lr=0.0015", "causal.ema=0.995",
    "causal.curriculum=[[0.0,6,2],[0.7,14,1]]", "causal.steps=100",
    "autoencoder.latent_channels=384", "autoencoder.decoder_widths=[96,160]", "autoencoder.optimiser=muon",
    "autoencoder.lr=0.02", "autoencoder.batch=2", "autoencoder.steps=120",
)  # fmt: skip
DATA_DRAW = 1  # other walks than those that the shipped autoencoder was trained on


@cache
def _recipe(overrides: tuple[str, ...], seed: int) -> Recipe:
    return load_recipe("tiny", [*BASE, *overrides, f"causal.seed={seed}", f"autoencoder.seed={seed}"])


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Attributes:
        overrides: of the recipe, on top of `BASE`.
        channels: how many of the code's channels the world model gets, the strongest first; 0: all.
        easy: whether the first half of the steps draws from the half of the windows with the fewest different actions.
        unshuffle, width, context: of the autoencoder's decoder: pixels a place and axis of its network, how wide that is, and whether it
            sees the latent frame before.
    """

    label: str
    overrides: tuple[str, ...] = ()
    channels: int = 0
    easy: bool = False
    unshuffle: int = 4
    width: int = 96
    context: bool = True

    def recipe(self, seed: int) -> Recipe:
        return _recipe(self.overrides, seed)

    def key(self, kind: str, seed: int) -> str:
        """Names a run by everything that makes it what it is, so runs that several comparisons share are made once."""
        recipe = self.recipe(seed)
        sections = [recipe.precision, asdict(recipe.data), asdict(getattr(recipe, kind))]
        what = [VERSION, kind, *sections, asdict(self) | {"label": "", "overrides": ()}]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Comparison:
    """Variants against the first of them; `kind` is the stage that they train."""

    name: str
    variants: tuple[Variant, ...]
    kind: str = "causal"


PLAIN = Variant("base")
COMPARISONS = (
    Comparison(
        "prediction",
        (
            Variant("x, no camera view", ("causal.transformer.view_focal=0",)),
            Variant("velocity, no camera view", ("causal.transformer.view_focal=0", "causal.transformer.prediction_type=velocity")),
            Variant("x, camera view"),
        ),
    ),
    Comparison("channels of the code", (Variant("384"), Variant("192", ("autoencoder.latent_channels=192",))), "autoencoder"),
    Comparison(
        "autoencoder's decoder",
        (
            Variant("4 pixels a place, latent frame before"),
            Variant("no latent frame before", context=False),
            Variant("8 pixels a place", unshuffle=8, width=192),
            Variant("2 pixels a place", unshuffle=2, width=48),
        ),
        "autoencoder",
    ),
    Comparison("timestep shift", (Variant("5"), Variant("1", ("causal.sampler.shift=1.0",)))),
    Comparison("tokens a latent frame", (Variant("64"), Variant("16", ("causal.transformer.patch_size=[1,2,2]",)))),
    Comparison("camera code", (Variant("RELIC's"), Variant("and a ray a token", ("causal.transformer.ray_focal=0.714074",)))),
    Comparison(
        "sequence length",
        (
            Variant("6, from 70 % on 14"),
            Variant("6 throughout", ("causal.curriculum=[[0.0,6,2]]",)),
            Variant("14 throughout", ("causal.curriculum=[[0.0,14,1]]",)),
        ),
    ),
    Comparison("average of the weights", (Variant("EMA"), Variant("none", ("causal.ema=0",)))),
    Comparison(
        "optimiser",
        (
            Variant("Muon, 0.012"),
            Variant("AdamW, 0.0015", ("causal.optimiser=adamw", "causal.lr=0.0015")),
        ),
    ),
    Comparison("channels of the world model", (Variant("384"), Variant("192", ("autoencoder.latent_channels=192",), channels=192))),
    Comparison(
        "actions",
        (
            Variant("all windows alike"),
            Variant("few actions first", easy=True),
            Variant("rare actions preferred", ("data.balance=1",)),
        ),
    ),
    Comparison(
        "autoencoder's optimiser",
        (Variant("Muon, 0.02"), Variant("AdamW, 0.002", ("autoencoder.optimiser=adamw", "autoencoder.lr=0.002"))),
        "autoencoder",
    ),
    Comparison("products of matrices", (Variant("float32"), Variant("bfloat16", ("precision=bfloat16",)))),
    Comparison(
        "share of pure noise", (Variant("half"), Variant("none", ("causal.pure_noise=0",)), Variant("all", ("causal.pure_noise=1",)))
    ),
)
"""In the order in which they are run."""


# -- equal compute ---------------------------------------------------------------------------------------------------------
def run_flops(steps: int, phases: Sequence[tuple[float, int]]) -> int:
    """FLOPs of a run whose steps cost what the last phase (share of the steps from which it holds, FLOPs of a step) says"""
    return sum(next(cost for share, cost in reversed(phases) if step >= share * steps) for step in range(steps))


def equal_steps(budget: int, phases: Sequence[tuple[float, int]]) -> int:
    """The number of steps, 1 or more, whose FLOPs come nearest to `budget`; within half of the dearest step of it, or of one step."""
    low, high = 1, 1 + budget // min(cost for _, cost in phases)
    while low < high:  # the least number that reaches the budget
        middle = (low + high) // 2
        low, high = (low, middle) if run_flops(middle, phases) >= budget else (middle + 1, high)
    return min((n for n in (low - 1, low) if n), key=lambda n: abs(run_flops(n, phases) - budget))


# -- the table -------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Difference:
    """A variant's figures [one a seed] beside those of the base."""

    values: tuple[float, ...]
    base: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    @property
    def difference(self) -> float:
        return self.mean - sum(self.base) / len(self.base)

    @property
    def spread(self) -> float:
        """The larger of the two ranges over seeds."""
        return max(max(x) - min(x) for x in (self.values, self.base))

    @property
    def clear(self) -> bool:
        return abs(self.difference) > self.spread


MEASURES = {
    "causal": {"true": "true actions", "next": "next latent frame", "opposite": "opposite actions"},
    "autoencoder": {"psnr": "reconstruction"},
}
"""Of a record: its key, and the column's head."""


def table(records: Mapping[str, Mapping], comparisons: Sequence[Comparison] = COMPARISONS) -> str:
    """Markdown of all comparisons whose runs are there, in dB; variants without all seeds are left out."""
    parts = []
    for comparison in comparisons:
        measures = MEASURES[comparison.kind]
        found = [(v, [records.get(v.key(comparison.kind, seed)) for seed in SEEDS]) for v in comparison.variants]
        found = [(v, rows) for v, rows in found if all(rows)]
        if len(found) < 2 or found[0][0] != comparison.variants[0]:
            continue
        heads = [comparison.name, "steps", *(f"{head} | difference" for head in measures.values())]
        lines = [f"| {' | '.join(heads)} |", "| --- | ---: |" + " --- | ---: |" * len(measures)]
        for variant, rows in found:
            cells = [variant.label, str(rows[0]["steps"])]
            for name in measures:
                d = Difference(tuple(r[name] for r in rows), tuple(r[name] for r in found[0][1]))
                cells.append(f"{d.mean:.2f} ({', '.join(f'{v:.2f}' for v in d.values)})")
                cells.append("" if variant is found[0][0] else f"**{d.difference:+.2f}**" if d.clear else f"{d.difference:+.2f}")
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"
