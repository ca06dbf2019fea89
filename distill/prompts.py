"""Whether prompts that name another hour or another season are followed: ``python -m distill.prompts --model tiny --out docs/results``.

Villages and castles of the gallery are drawn again at every hour, and villages in every season, with everything else as it was. What is
compared are mean colours of four bands of the picture, from sky to ground. Two questions:

- **From the prompt alone**: are the colours of the first picture nearer to the truth of the hour (season) in the prompt than to that of the
  others, and how far do they move? 1 would be as far as the truth does.
- **On the way**: a world begins with its own picture and prompt, and after a second the prompt changes. How far have the colours moved from
  those of the same walk under the old prompt towards the truth, three seconds later?

Writes ``prompts.json``, ``prompts.md`` and a sheet, ``prompts.jpg``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from distill.export import GALLERY
from distill.scenes import FOV, GALLERY_SEEDS, RESERVED_START, _world, castle, family_of, hours, start_pose, village
from distill.scenes.renderer import Renderer
from distill.scenes.walk import walk
from worldmodel.actions import Action, parse_script, to_array
from worldmodel.model import WorldModel
from worldmodel.tone import bands

SEASONS = ("blossom", "meadow", "autumn", "snow")
VIEWS = 6
"""Start views whose colours are a place's at an hour: a picture from the prompt alone is seen from nowhere in particular."""
SEEDS = (0, 1)
SCRIPTS = {"standing still": ".*64", "turning": "left*64", "walking": "w*64"}
CHANGED_AT = 16
"""Frames before the prompt changes."""


@dataclass(frozen=True)
class Place:
    """A gallery world in words: its seed, and its plan with another hour or season."""

    seed: int
    plan: village.Plan | castle.Plan

    @property
    def caption(self) -> str:
        return _module(self.seed).caption(self.plan)

    def turned(self, what: str, to: str) -> Place:
        """The same place at another "hour", or in another season ("biome")."""
        return replace(self, plan=replace(self.plan, **{what: to}))


def _module(seed: int):
    return {"village": village, "castle": castle}[family_of(seed)]


def places(families: Iterable[str] = ("village", "castle")) -> list[Place]:
    seeds = [seed for seed in GALLERY_SEEDS if family_of(seed) in families]
    return [Place(seed, _module(seed).GALLERY[seed // 4]) for seed in seeds]


@lru_cache(maxsize=4)
def renderer(place: Place, size: tuple[int, int]) -> Renderer:
    return Renderer(_module(place.seed).build_plan(np.random.default_rng(place.seed), place.plan), size, supersample=1, fov=FOV)


# -- from the prompt alone ---------------------------------------------------------------------------------------------------
def compare(made: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Colours made [P, K, S, ...] (places, kinds, seeds) and true [P, K, ...]: the share of pictures whose nearest truth of their place is
    their own kind's, how far colours move with the kind where the truth moves by 1, and their correlation.
    """
    kinds = made.shape[1]
    distance = np.square(made[:, :, :, None] - truth[:, None, None]).reshape(*made.shape[:3], kinds, -1).sum(-1)  # P K S K
    right = distance.argmin(-1) == np.arange(kinds)[None, :, None]
    there = np.broadcast_to(truth[:, :, None], made.shape)
    a, b = (x - x.mean(1, keepdims=True) for x in (made, there))
    moved, correlation = (a * b).sum() / (b * b).sum(), (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())
    return {
        "right": round(float(right.mean()), 3), "chance": round(1 / kinds, 3), "moved": round(float(moved), 3),
        "correlation": round(float(correlation), 3), "right of each": [round(float(x), 2) for x in right.mean((0, 2))],
    }  # fmt: skip


def from_prompt_alone(model: WorldModel, todo: list[Place], what: str, kinds: tuple[str, ...]) -> tuple[dict, list[np.ndarray]]:
    """Figures, and two rows for a sheet of every third place: truth above the model."""
    made, truth, rows = [], [], []
    for i, place in enumerate(tqdm(todo, desc=f"{what}, from the prompt alone", unit="place")):
        poses = [start_pose(place.seed, RESERVED_START + k) for k in range(VIEWS)]
        there = [[renderer(place.turned(what, kind), model.size).frame(pose) for pose in poses] for kind in kinds]
        here = [[model.start(None, place.turned(what, kind).caption, seed=seed, history=0).first_frame for seed in SEEDS] for kind in kinds]
        truth.append(bands(np.array(there)).mean(1))
        made.append(bands(np.array(here)))
        if i % 3 == 0:
            rows += [np.concatenate([views[0] for views in pictures], axis=1) for pictures in (there, here)]
    return compare(np.array(made), np.array(truth)) | {"kinds": list(kinds), "places": len(todo)}, rows


# -- on the way --------------------------------------------------------------------------------------------------------------
def on_the_way(model: WorldModel, place: Place, what: str, kind: str, script: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """By how much the last frame's colours change with the prompt, in the model and in truth, [2, BANDS, 3]; and four pictures, both truths
    and both of the model's.
    """
    start = GALLERY[place.seed][1]
    poses, actions = walk(_world(place.seed).space, start_pose(place.seed, start), to_array(parse_script(script)))
    entry, other, last = model.gallery[place.seed], place.turned(what, kind), []
    for prompt in (None, other.caption):
        world, frames = model.start(entry.image_path, entry.prompt, history=0), model.chunk_frames
        for t in range(1, len(actions), frames):
            if t == 1 + CHANGED_AT and prompt is not None:
                world.prompt = prompt
            world.step([Action.from_vector(a) for a in actions[t : t + frames]])
        last.append(world.last_frame)
    true = [renderer(p, model.size).frame(poses[-1]) for p in (place, other)]
    return np.stack([bands(new) - bands(old) for old, new in (last, true)]), [*true, *last]


def changes(model: WorldModel, todo: list[Place], what: str, kinds: tuple[str, str]) -> tuple[dict, list[np.ndarray]]:
    """Each place becomes the first of two kinds, or the second where it is the first already; colours of all of them together."""
    moved: dict[str, list[np.ndarray]] = {name: [] for name in SCRIPTS}
    rows = []
    for place in tqdm(todo, desc=f"{what}, on the way", unit="place"):
        kind = kinds[getattr(place.plan, what) == kinds[0]]
        strips = []
        for name, script in SCRIPTS.items():
            found, pictures = on_the_way(model, place, what, kind, script)
            moved[name].append(found)
            strips.append(pictures)
        rows.append(np.concatenate([p for pictures in strips[:2] for p in pictures], axis=1))
    shares = {name: np.sum([a * b for a, b in v]) / np.sum([b * b for _, b in v]) for name, v in moved.items()}
    return {"moved": {name: round(float(share), 3) for name, share in shares.items()}, "places": len(todo)}, rows


# -- report ------------------------------------------------------------------------------------------------------------------
def markdown(results: dict) -> str:
    names = {"hour": "hours", "biome": "seasons"}
    columns = ("places", "right", "by chance", "colours move", "correlation")
    out = ["| from the prompt alone | " + " | ".join(columns) + " |", "| --- |" + " ---: |" * len(columns)]
    for what, name in names.items():
        r = results["alone"][what]
        out.append(
            f"| {len(r['kinds'])} {name} | {r['places']} | {100 * r['right']:.0f} % | {100 * r['chance']:.0f} % | "
            f"{100 * r['moved']:.0f} % | {r['correlation']:.2f} |"
        )
    out += ["", "| prompt changed on the way | places | " + " | ".join(SCRIPTS) + " |", "| --- | ---: |" + " ---: |" * len(SCRIPTS)]
    for what, name in {"hour": "another hour", "biome": "another season"}.items():
        r = results["on the way"][what]
        out.append(f"| {name} | {r['places']} | " + " | ".join(f"{100 * r['moved'][s]:.1f} %" for s in SCRIPTS) + " |")
    return "\n".join(out) + "\n"


def _page(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of pictures, one below the other, padded with white"""
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.prompts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    model = WorldModel.from_pretrained(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    villages = places(["village"])
    results: dict = {"model": model.fingerprint, "steps": model.config.sampler.steps, "alone": {}, "on the way": {}}
    rows: list[np.ndarray] = []
    for what, todo, kinds in (("hour", places(), hours.HOURS), ("biome", villages, SEASONS)):
        results["alone"][what], more = from_prompt_alone(model, todo, what, kinds)
        rows += more
    some = [*villages[::2], *places(["castle"])[1::2]]
    for what, todo, kinds in (("hour", some, ("night", "day")), ("biome", villages, ("snow", "autumn"))):
        results["on the way"][what], more = changes(model, todo, what, kinds)
        rows += more[::3]
    page = Image.fromarray(_page(rows))
    page.resize((page.width * 3 // 4, page.height * 3 // 4), Image.Resampling.LANCZOS).save(args.out / "prompts.jpg", quality=85)
    (args.out / "prompts.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "prompts.md").write_text(text := markdown(results))
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
