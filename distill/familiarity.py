"""What pictures a model's weights know, so that a person whose picture is unlike them can be told (`worldmodel.familiarity`).

Pictures of scenes of training are described, and pictures of other scenes say how far is far: one in a hundred of them is called
unfamiliar. Half of them are start views, half are seen on random walks, and some are softened or have been through JPEG, as pictures are
that people bring.

    python -m distill.familiarity --model worldmodel/weights/tiny --work runs/familiarity --table docs/weights

writes ``familiarity.safetensors`` into the model's folder, and into ``docs/weights`` a table and a sheet of
pictures of many kinds. ``--work`` keeps what was described, so that the same command goes on.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from tqdm import tqdm

from distill.autoencoder import psnr
from distill.dataset import read_clip, stems
from distill.odd_pictures import made_pictures, packaged_pictures
from distill.scenes import RESERVED_START, check_trainable, start_pose
from worldmodel.familiarity import NEARER, KnownPictures, picture_statistics
from worldmodel.images import load_start_image
from worldmodel.loading import find_model
from worldmodel.model import ModelError, WorldModel

TRAINED, UNSEEN = range(600), range(100_000, 100_400)
"""Scenes that are described, and scenes that calibrate; neither are those of evaluation."""
CHECKED = range(100_400, 100_424)
"""Scenes of the table: neither."""
AWAY_AND_BACK = "left*40 right*40"
PER_SCENE = 4
SIZE = (128, 128)
WALK = 64


# -- pictures --------------------------------------------------------------------------------------------------------------
def pictures_of_scene(seed: int) -> list[np.ndarray]:
    """`PER_SCENE` pictures uint8 [H, W, 3]: start views, and as many views on random walks."""
    from distill.scenes import _world
    from distill.scenes.trajectories import KINDS, random_script
    from distill.scenes.walk import walk
    from worldmodel.actions import to_array

    check_trainable(seed)
    world, rng = _world(seed), np.random.default_rng([99, seed])
    draw, out = world.renderer.at(SIZE, supersample=2), []
    for k in range(PER_SCENE):
        pose = start_pose(seed, int(rng.integers(RESERVED_START)))
        if k >= PER_SCENE // 2:
            kind = KINDS[int(rng.integers(len(KINDS)))]
            poses, _ = walk(world.space, pose, to_array(random_script(rng, WALK, 1.0, kind, (1.0, 1.0))))
            pose = poses[int(rng.integers(WALK // 4, len(poses)))]
        out.append(draw.frame(pose))
    return out


def through_jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


def softened(picture: np.ndarray, pixels: float) -> np.ndarray:
    return np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(pixels)))


def as_brought(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Most as they are, a quarter through JPEG, 15 in 100 softened."""
    chance = rng.uniform()
    if chance < 0.6:
        return picture
    return through_jpeg(picture, int(rng.integers(60, 96))) if chance < 0.85 else softened(picture, rng.uniform(0.4, 1.2))


def describe_scenes(seeds: Iterable[int], work: Path, title: str) -> np.ndarray:
    """Statistics [N, D] of pictures of scenes; what is in the folder `work` is not drawn again."""
    work.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in tqdm(seeds, desc=title, unit="scene"):
        file = work / f"{seed:06d}.npy"
        if not file.exists():
            rng = np.random.default_rng([98, seed])
            statistics = [picture_statistics(as_brought(picture, rng)) for picture in pictures_of_scene(seed)]
            part = file.with_suffix(".part.npy")
            np.save(part, np.stack(statistics))
            part.rename(file)
        rows.append(np.load(file))
    return np.concatenate(rows)


def describe_clips(clips: Iterable[Path], title: str) -> np.ndarray:
    """The same of the first, middle and last frames of posed clips on disk."""
    rows = []
    for k, stem in enumerate(tqdm(clips, desc=title, unit="clip")):
        rng, frames = np.random.default_rng([97, k]), read_clip(stem).frames
        rows += [picture_statistics(as_brought(frames[t], rng)) for t in (0, len(frames) // 2, -1)]
    return np.stack(rows)


# -- what is far -----------------------------------------------------------------------------------------------------------
def kinds_of_pictures(model: WorldModel) -> dict[str, list[np.ndarray]]:
    """Kind -> pictures uint8 [H, W, 3], from those that should be familiar to those that should not."""
    gallery = [load_start_image(place.image_path, model.size) for place in model.gallery]
    unseen = [pictures_of_scene(seed)[0] for seed in CHECKED]
    walks = []
    for place in model.gallery[::3]:
        *_, last = model.start(place.image_path, place.prompt).stream("w*16 left*16")
        walks.append(last.frames[-1])
    return {
        "gallery": gallery,
        "unseen scenes": unseen,
        "the same, JPEG of quality 75": [through_jpeg(picture, 75) for picture in unseen],
        "the same, softened by a pixel": [softened(picture, 1.0) for picture in unseen],
        "the model's own, after 2 s": walks,
        **packaged_pictures(model.size),
        **made_pictures(),
    }


def play(model: WorldModel, picture: np.ndarray) -> tuple[float, float]:
    """PSNR in dB against the picture: of the world's first frame, and of the last one after turning away and back."""
    world = model.start(picture, "")
    *_, last = world.stream(AWAY_AND_BACK)
    truth = np.array(Image.fromarray(picture).resize(model.size[::-1]))
    return tuple(float(np.mean(psnr(np.broadcast_to(truth, x.shape), x))) for x in (world.first_frame[None], last.frames[-1:]))


def table(model: WorldModel, kinds: dict[str, list[np.ndarray]], played: int = 6) -> str:
    """A row of Markdown for each kind; the first `played` of each are walked in."""
    head = "| pictures | | distance | nearer than it, of 100 unseen | called unfamiliar | start picture | turned away and back |"
    rows = [head, "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for kind, pictures in tqdm(kinds.items(), desc="kinds", unit="kind"):
        found = [model.familiarity(picture) for picture in pictures]
        near, far = min(f.distance for f in found), max(f.distance for f in found)
        share = 100 * float(np.median([f.nearer for f in found]))
        first, back = np.mean([play(model, picture) for picture in pictures[:played]], axis=0)
        unfamiliar = sum(not f.familiar for f in found)
        rows.append(f"| {kind} | {len(found)} | {near:.2f} to {far:.2f} | {share:.1f} | {unfamiliar} | {first:.1f} dB | {back:.1f} dB |")
    return "\n".join(rows) + "\n"


def sheet(model: WorldModel, kinds: dict[str, list[np.ndarray]], columns: int = 8) -> Image.Image:
    """A row for each kind, the nearest first; a red edge stands around what is called unfamiliar."""
    side = 96
    page = Image.new("RGB", (columns * side, len(kinds) * side), "white")
    for row, pictures in enumerate(kinds.values()):
        judged = sorted(((model.familiarity(p), k) for k, p in enumerate(pictures)), key=lambda pair: pair[0].distance)
        for column, (found, k) in enumerate(judged[:: max(1, len(judged) // columns)][:columns]):
            small = ImageOps.expand(Image.fromarray(pictures[k]).resize((side - 8,) * 2), 4, "white" if found.familiar else "red")
            page.paste(small, (column * side, row * side))
    return page


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.familiarity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="model into whose folder the file is written")
    parser.add_argument("--work", type=Path, default=Path("runs/familiarity"), help="folder of what was described; the same one goes on")
    parser.add_argument("--clips", type=Path, help="folder of posed clips instead of scenes; every fifth calibrates")
    parser.add_argument("--table", type=Path, metavar="FOLDER", help="also judge pictures of many kinds, and walk in some")
    args = parser.parse_args(argv)
    try:
        folder = find_model(args.model)
        if args.clips:
            clips = stems(args.clips)
            if len(clips) < 40:
                raise ValueError(f"{args.clips} has {len(clips)} clips; 40 at least say what is familiar.")
            trained = describe_clips([c for k, c in enumerate(clips) if k % 5 < 4], "clips of training")
            unseen = describe_clips(clips[4::5], "clips that calibrate")
        else:
            trained = describe_scenes(TRAINED, args.work, "scenes of training")
            unseen = describe_scenes(UNSEEN, args.work, "unseen scenes")
        known = KnownPictures.fit(trained, unseen)
        known.save(folder)
        print(f"{folder}: {len(trained)} pictures are known, {len(unseen)} others calibrate; 1 in {round(1 / (1 - NEARER))} is unfamiliar.")
        if args.table:
            args.table.mkdir(parents=True, exist_ok=True)
            model = WorldModel.from_pretrained(folder)
            kinds = kinds_of_pictures(model)
            sheet(model, kinds).save(args.table / "familiarity.jpg", quality=85)
            (args.table / "familiarity.md").write_text(text := table(model, kinds))
            print(text)
    except (ModelError, ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nStopped. The same command goes on.\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
