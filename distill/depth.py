"""How far away what a picture shows is: trains an autoencoder's `PictureDepth`, for camera views.

Pictures with exact depth are cheap, unlike video: random walks through many scenes, one picture in eight. They are seen as a
remembered picture would be: through the linear code most of the time (where depth is looked for in averages over several pixels the
code leaves no trace, so there they are not), blurred some of the time, since a model's own pictures are soft, recoloured and mirrored.
The loss is the absolute error of ``log(1/z + FAR)``, of it and of its differences between neighbours, so that edges come out as edges.

    python -m distill.depth --model worldmodel/weights/tiny --out runs/depth --minutes 20     # the same command goes on

writes ``runs/depth/model``, the model's autoencoder with the depth that was learned.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from distill.optim import Optimisers, adamw
from distill.precision import autocast
from distill.scenes import GALLERY_SEEDS, RESERVED_START, check_trainable, depth_maps, start_pose
from distill.scenes.dataset import one_thread_each, start_worker
from distill.stage_recipes import DepthRecipe
from distill.trainer import Trainer, generator
from distill.work import Step
from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.depth import FAR, FINEST, PictureDepth

WALK, EVERY = 96, 8
"""Frames of a walk, and of how many one is kept."""


# -- pictures --------------------------------------------------------------------------------------------------------------
def pictures_of_scene(seed: int, walks: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, H, W, 3] along random walks in a scene, and inverse depth float16 [N, H/2, W/2] in 1/steps."""
    from distill.scenes import _world
    from distill.scenes.trajectories import KINDS, random_script
    from distill.scenes.walk import walk
    from worldmodel.actions import to_array

    world, (height, width) = _world(seed), size
    draw = world.renderer.at(size, supersample=2)
    frames, depths = [], []
    for k in range(walks):
        rng = np.random.default_rng([77, seed, k])
        start = int(rng.integers(RESERVED_START))
        check_trainable(seed, start)
        kind = KINDS[int(rng.integers(len(KINDS)))]
        poses, _ = walk(world.space, start_pose(seed, start), to_array(random_script(rng, WALK, 1.0, kind, (1.0, 1.0))))
        poses = poses[int(rng.integers(EVERY)) :: EVERY]
        frames += [draw.frame(pose) for pose in poses]
        near = world.scene.step / depth_maps(seed, poses, size)
        depths.append(near.reshape(len(poses), height // FINEST, FINEST, width // FINEST, FINEST).mean((2, 4)).astype(np.float16))
    return np.stack(frames), np.concatenate(depths)


def _write_scene(path: Path, seed: int, walks: int, size: tuple[int, int]) -> None:
    frames, depth = pictures_of_scene(seed, walks, size)
    part = path.with_suffix(".part.npz")
    np.savez(part, frames=frames, depth=depth)
    part.rename(path)


def render_pictures(recipe: DepthRecipe, folder: Path, size: tuple[int, int]) -> None:
    """A file for each scene of the recipe under `folder`; those that are there are kept. Gallery worlds get more walks.

    `size` is that of the model's pictures; these are as depth is looked for in them, `recipe.pool` times smaller.
    """
    size = (size[0] // recipe.pool, size[1] // recipe.pool)
    folder.mkdir(parents=True, exist_ok=True)
    todo = [s for s in recipe.scenes if not (folder / f"{s:06d}.npz").exists()]
    if not todo:
        return
    walks = (recipe.walks, recipe.gallery_walks)
    with one_thread_each(), ProcessPoolExecutor(recipe.workers, multiprocessing.get_context("spawn"), initializer=start_worker) as workers:
        jobs = [workers.submit(_write_scene, folder / f"{s:06d}.npz", s, walks[s in GALLERY_SEEDS], size) for s in todo]
        try:
            for job in tqdm(as_completed(jobs), total=len(jobs), desc="pictures with depth", unit="scene"):
                job.result()
        finally:
            workers.shutdown(cancel_futures=True)


def load_pictures(recipe: DepthRecipe, folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(pictures uint8 [N, H, W, 3], inverse depth float16 [N, H/2, W/2]) to train on, and of every tenth scene, held out."""
    parts = [s for k, s in enumerate(recipe.scenes) if k % 10 != 9], recipe.scenes[9::10]
    if not all(parts):
        raise ValueError("Depth is measured on every tenth scene: give depth.seeds at least ten.")
    return tuple(tuple(_together([folder / f"{s:06d}.npz" for s in seeds], name) for name in ("frames", "depth")) for seeds in parts)


def _together(files: list[Path], name: str) -> Tensor:
    """What files hold under a name, one of them in memory at a time"""
    counts = []
    for file in files:
        with np.load(file) as data:
            counts.append(len(data["depth"]))  # the smaller of the two
    out, filled = None, 0
    for file, count in zip(files, counts, strict=True):
        with np.load(file) as data:
            rows = torch.from_numpy(data[name])
        out = rows.new_empty(sum(counts), *rows.shape[1:]) if out is None else out
        out[filled : filled + count] = rows
        filled += count
    return out


def to_pictures(frames: Tensor) -> Tensor:
    """uint8 [N, H, W, 3] -> [N, 3, H, W] in -1..1"""
    return frames.movedim(-1, 1).float() / 127.5 - 1


# -- training --------------------------------------------------------------------------------------------------------------
def depth_loss(found: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The loss, and the mean absolute error alone, of logarithms ``log(1/z + FAR)`` [N, h, w]."""
    error = found - truth
    steps = [(error[..., k:] - error[..., :-k]).abs().mean() + (error[..., k:, :] - error[..., :-k, :]).abs().mean() for k in (1, 4)]
    absolute = error.abs().mean()
    return absolute + 0.25 * sum(steps), absolute


class DepthStage:
    """Trains the depth of `autoencoder`; the rest of it stays as it is."""

    def __init__(
        self, recipe: DepthRecipe, folder: Path, autoencoder: TinyAutoencoder, trained: tuple[Tensor, Tensor],
        held_out: tuple[Tensor, Tensor], device: torch.device,
    ) -> None:  # fmt: skip
        self.recipe, self.folder, self.trained, self.held_out, self.device = recipe, Path(folder), trained, held_out, device
        torch.manual_seed(recipe.seed)
        self.autoencoder = autoencoder.to(device).requires_grad_(False)
        self.model = PictureDepth(tuple(recipe.widths), recipe.pool).to(device)
        if autoencoder.depth is not None and autoencoder.depth.widths == self.model.widths:
            self.model.load_state_dict(autoencoder.depth.state_dict())
        optimiser = Optimisers(adamw(self.model.parameters(), recipe.lr, 0.01, (0.9, 0.98)))
        self.trainer = Trainer(
            "depth", self.folder, self.model, optimiser, self.loss, steps=recipe.steps, warmup=100, decay=1.0, ema=0.999,
            sample=self.sample, shape=self.shape,
        )  # fmt: skip

    def shape(self, step: int) -> Step:
        """Pictures, which are no latent frames; it matters whether they go through the code."""
        return Step(self.recipe.batch, 0, "coded" if self._begin(step)[1] else "plain")

    def _begin(self, step: int) -> tuple[torch.Generator, bool, Tensor, Tensor]:
        """The generator of a step, whether its pictures are coded, which rows they are, and three chances, drawn from it."""
        rng = generator(self.recipe.seed, step)
        rows, chance = torch.randint(len(self.trained[0]), (self.recipe.batch,), generator=rng), torch.rand(3, generator=rng)
        return rng, bool(self.recipe.pool == 1 and chance[0] < 0.7), rows, chance

    @torch.no_grad()
    def coded(self, pictures: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] through the linear code, as they are remembered"""
        still = pictures.unsqueeze(2).expand(-1, -1, self.autoencoder.temporal_stride, -1, -1)
        return self.autoencoder.last_picture(self.autoencoder.encode(still, grouped=True)[:, :, 0])

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        r, (rng, coded, rows, chance) = self.recipe, self._begin(step)
        x, near = to_pictures(self.trained[0][rows]).to(self.device), self.trained[1][rows].float().to(self.device)
        if coded:
            x = self.coded(x)
        if chance[1] < 0.3:
            coarse = int(torch.randint(2, 5, (), generator=rng))
            x = F.interpolate(F.avg_pool2d(x, coarse, ceil_mode=True), x.shape[-2:], mode="bilinear")
        if chance[2] < 0.5:
            x, near = x.flip(-1), near.flip(-1)
        gain = 1 + 0.15 * torch.randn(r.batch, 3, 1, 1, generator=rng).to(x)
        x = ((x + 1) * gain - 1 + 0.1 * torch.randn(r.batch, 1, 1, 1, generator=rng).to(x)).clamp(-1, 1)
        with autocast(self.device):
            found = self.model.logarithm(x.contiguous(memory_format=torch.channels_last))
        loss, error = depth_loss(found.float().squeeze(1), torch.log(near + FAR))
        return loss, {"error": float(error.detach())}

    @torch.no_grad()
    def sample(self, folder: Path) -> dict[str, Any]:
        """Mean absolute error of the logarithm on held-out scenes, and a sheet: picture, truth, what was found."""
        pictures = (to_pictures(x).to(self.device) for x in self.held_out[0].split(64))
        found = torch.cat([self.model.logarithm(self.coded(x) if self.recipe.pool == 1 else x).cpu() for x in pictures])[:, 0]
        found, truth = (found.exp() - FAR).clamp_min(0), self.held_out[1].float()
        pick = torch.linspace(0, len(found) - 1, min(12, len(found))).long()
        grey = [np.uint8(255 * (x[pick] / 0.1).clamp(0, 1).sqrt()).repeat(FINEST, 1).repeat(FINEST, 2) for x in (truth, found)]
        rows = [self.held_out[0][pick].numpy(), *(g[..., None].repeat(3, -1) for g in grey)]
        Image.fromarray(np.concatenate([np.concatenate(list(r), 1) for r in rows])).save(folder / f"sheet-{self.trainer.step:06d}.png")
        return {"error": round(float(((found + FAR).log() - (truth + FAR).log()).abs().mean()), 4)}

    def finish(self) -> TinyAutoencoder:
        """The autoencoder with the averaged weights of what was learned."""
        learned = copy.deepcopy(self.model)
        learned.load_state_dict(self.trainer.ema.weights)
        return self.autoencoder.with_depth(learned).to(self.device).eval()


def train_depth(
    recipe: DepthRecipe, folder: Path, autoencoder: TinyAutoencoder, size: tuple[int, int], deadline: Any, device: torch.device,
    origin: dict[str, str] | None = None,
) -> DepthStage:  # fmt: skip
    """Render what is missing and train until done or the deadline; `origin` goes into the account (`distill.work`)."""
    render_pictures(recipe, folder / "pictures", size)
    stage = DepthStage(recipe, folder, autoencoder, *load_pictures(recipe, folder / "pictures"), device)
    stage.trainer.work.origin = origin or {}
    stage.trainer.run(deadline)
    return stage


def main(argv: list[str] | None = None) -> int:
    from distill.recipe import RecipeError, load_recipe
    from distill.trainer import Deadline
    from worldmodel.loading import find_model
    from worldmodel.model import ModelError

    parser = argparse.ArgumentParser(
        prog="python -m distill.depth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", help="world model whose autoencoder gets the depth")
    parser.add_argument("--recipe", default="tiny", help="its section `depth`, and `data.size`")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the same folder goes on")
    parser.add_argument("--minutes", type=float, default=9.0, help="length of this slice")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, for example depth.steps=500")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        recipe = load_recipe(args.recipe, args.set)
        autoencoder = TinyAutoencoder.from_pretrained(find_model(args.model) / "autoencoder", torch_dtype=torch.float32)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        size = (recipe.data.size, recipe.data.size)
        stage = train_depth(recipe.depth, args.out, autoencoder, size, Deadline(args.minutes), device, recipe.origin)
    except (RecipeError, ModelError, ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nStopped and saved. The same command goes on.\n")
    stage.finish().save_pretrained(args.out / "model")
    print(f"{args.out / 'model'}: {stage.trainer.step} of {recipe.depth.steps} steps")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
