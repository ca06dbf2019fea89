"""A run's weights as a model that ships: ``python -m distill.export RUN --out worldmodel/weights/tiny``.

Writes transformer and autoencoder as float16 safetensors, the model's description, the embeddings of the prompts that it was
trained on, and a gallery of start pictures: of the rendered worlds, with their depth, or of held-out clips where the recipe has a
`data.folder`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from distill.checks import clip_files
from distill.dataset import read_clip
from distill.recipe import Recipe, RecipeError, load_recipe
from distill.scenes import GALLERY_SEEDS, build_scene, family_of, render
from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.text import TextEncoder
from worldmodel.transformer import CausalWorldTransformer

GALLERY = (
    ("meadow village", 0), ("grey castle", 3), ("red and yellow rooms", 7), ("yellow desert", 4),
    ("autumn village", 5), ("sandstone palace", 0), ("night rooms", 3), ("red canyon", 7),
    ("blossom village", 1), ("marble ruin", 7), ("golden rooms", 2), ("green island", 2),
    ("snowy village", 3), ("dark castle", 6), ("pink dusk rooms", 3), ("ice shore", 4),
    ("pine forest", 7), ("ice castle", 1), ("dawn rooms", 6), ("savanna", 4),
    ("lakeside village", 1), ("jungle ruin", 1), ("cloudy rooms", 1), ("violet dunes", 5),
)  # fmt: skip
"""Name and start view of each gallery world, in the order of their seeds."""


DEPTH_PIXELS = 4
"""Pixels of a start picture, per place and axis of the depth beside it."""


def write_gallery(folder: Path, size: tuple[int, int]) -> list[str]:
    """Start pictures, how near what they show is (`worldmodel.images`), and gallery.json; returns the prompts."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for seed, (name, start) in zip(GALLERY_SEEDS, GALLERY, strict=True):
        clip = render(seed, np.zeros((0, 13)), start, size, depth=True)
        image = f"{name.replace(' ', '-')}.png"
        Image.fromarray(clip.frames[0]).save(folder / image, optimize=True)
        near = (1 / clip.depth[0]).reshape(size[0] // DEPTH_PIXELS, DEPTH_PIXELS, size[1] // DEPTH_PIXELS, DEPTH_PIXELS).mean((1, 3))
        Image.fromarray(np.uint16(65535 * near / near.max())).save((folder / image).with_suffix(".depth.png"), optimize=True)
        entries.append({"name": name, "family": family_of(seed), "prompt": clip.caption, "image": image, "seed": seed, "start": start})
    (folder / "gallery.json").write_text(json.dumps(entries, indent=1) + "\n")
    return [e["prompt"] for e in entries]


def write_clip_gallery(folder: Path, clips: list[Path]) -> list[str]:
    """The same from the first frames of posed clips; their files' names are the places' names."""
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for stem in clips:
        clip = read_clip(stem)
        Image.fromarray(clip.frames[0]).save(folder / f"{stem.name}.png", optimize=True)
        entries.append({"name": stem.name, "family": "clips", "prompt": clip.caption, "image": f"{stem.name}.png"})
    (folder / "gallery.json").write_text(json.dumps(entries, indent=1) + "\n")
    return [e["prompt"] for e in entries]


def playable_stage(recipe: Recipe, run: Path, wanted: str | None = None) -> str:
    """The last of the recipe's stages that left a causal model in the run's folder, or the one that is wanted."""
    there = [name for name in recipe.stages if name != "teacher" and (run / name / "model").exists()]
    if not there:
        raise FileNotFoundError(f"{run} has no model that can be played yet: go on with distill.train.")
    if wanted is not None and wanted not in there:
        raise RecipeError(f"{run} has no model of a stage {wanted!r} that can be played; there are {', '.join(there)}.")
    return wanted or there[-1]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a training run")
    parser.add_argument("--recipe", default="tiny", help="the recipe of the run: a name or a path to a YAML file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stage", help="stage whose model is written, for example causal (default: the last that left one)")
    parser.add_argument("--steps", type=int, help="denoising steps that the model plays with by default (default: the recipe's)")
    args = parser.parse_args(argv)
    try:
        recipe = load_recipe(args.recipe)
        stage = playable_stage(recipe, args.run, args.stage)
        if not (args.run / "autoencoder" / "model").exists():
            raise RecipeError(f"{args.run} has no autoencoder of its own: models with Wan's are not exported yet.")
        transformer = CausalWorldTransformer.from_pretrained(args.run / stage / "model")
        autoencoder = TinyAutoencoder.from_pretrained(args.run / "autoencoder" / "model")
        size, made = recipe.data.shape, getattr(recipe, stage)
        sampler = made.sampler if args.steps is None else made.sampler.with_steps(args.steps)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    config = ModelConfig(recipe.name, size, 16, made.chunk, made.memory, sampler)
    encoder = TextEncoder(config.text)
    WorldModel(transformer, autoencoder, encoder, config).save_pretrained(args.out)
    if recipe.data.folder:
        held_out = clip_files(recipe, args.run)[-max(1, recipe.data.held_out) :]
        prompts = sorted(set(write_clip_gallery(args.out / "gallery", held_out[: len(GALLERY)])))
    else:
        prompts = sorted({*write_gallery(args.out / "gallery", size), *(build_scene(s).caption for s in GALLERY_SEEDS)})
    encoder.remember(prompts).save(args.out / "prompts.safetensors")
    total = sum(f.stat().st_size for f in args.out.rglob("*.safetensors"))
    print(f"{args.out}: {total / 1e6:.1f} MB of weights")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
