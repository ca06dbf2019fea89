"""Short A/B runs at equal compute: ``python -m distill.ablate --out DIR [--only NAME ...] [--minutes M]``.

Every run starts from random weights on the same cached latents, with two seeds, and takes as many steps as its own step's counted FLOPs
(`distill.flops`) leave it of the base's; so wall time and other work on the machine do not matter. At the end it is measured on walks
that were held out of the data: PSNR of roll-outs of 3 s against the rendered frames. Each finished run is a line of DIR/runs.jsonl, the
same command goes on from there, and DIR/table.md has what there is so far. What is compared: `distill.ablations`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill.ablations import COMPARISONS, DATA_DRAW, PLAIN, SEEDS, Comparison, Variant, equal_steps, run_flops, table
from distill.autoencoder import AutoencoderStage, psnr, to_frames
from distill.causal import CausalStage
from distill.compare import read_records
from distill.dataset import read_clip
from distill.flops import count_flops
from distill.latents import Walks, encode_clips, load_walks, window_counts
from distill.parallel import ALONE
from distill.precision import training_dtype
from distill.rollout import RollOutConfig, play_held_out
from distill.scenes.__main__ import parse_seeds
from distill.scenes.dataset import Settings, clip_stem, missing, write_dataset
from distill.stage_recipes import DataRecipe
from distill.train import embed_prompts, frame_pool
from distill.trainer import Deadline, Trainer
from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.loading import find_model

SECONDS = 3  # of a roll-out
WARMUP = 20  # steps, of these short runs
CPU = torch.device("cpu")


# -- data ------------------------------------------------------------------------------------------------------------------
class Data:
    """Walks rendered and encoded once into `folder`, by the shipped autoencoder.

    Attributes:
        frames: uint8 [N, F, H, W, 3] of all clips, the last `held` of them held out.
        train, held_out: the encoded walks.
    """

    def __init__(self, folder: Path, recipe: DataRecipe) -> None:
        settings = Settings(parse_seeds(recipe.seeds), recipe.frames, recipe.size, recipe.level, draw=DATA_DRAW)
        todo = len(missing(folder / "data", recipe.clips))
        for _ in tqdm(write_dataset(folder / "data", settings, recipe.clips) if todo else (), "render", todo, unit="clip", mininterval=5):
            pass
        stems = [clip_stem(folder / "data", i + 1) for i in range(recipe.clips)]
        self.held, self.frames = recipe.held_out, frame_pool(stems, folder)
        shipped = find_model("tiny")
        known = TinyAutoencoder.from_pretrained(shipped / "autoencoder", torch_dtype=torch.float32)
        sharp = known.with_depth(known.depth.at_pool(1))  # pictures are small enough
        self.autoencoder = sharp.eval().requires_grad_(False)
        parts = {"train": range(recipe.clips - self.held), "held_out": range(recipe.clips - self.held, recipe.clips)}
        for name, indices in parts.items():
            encode_clips(self.autoencoder, lambda i: read_clip(stems[i]), indices, folder / "walks" / name, CPU)
        self.train, self.held_out = (
            load_walks(folder / "walks" / name, lambda prompts: embed_prompts(prompts, shipped / "prompts.safetensors")) for name in parts
        )

    def cut(self, channels: int) -> tuple[Walks, Walks, float]:
        """The walks in the strongest channels of the code alone, scaled to unit power again, and by what they were divided."""
        scale = float(self.train.groups[:, :, :channels].float().square().mean().sqrt())
        whole = float(self.train.groups.float().square().mean().sqrt())
        made = [
            replace(w, groups=w.groups[:, :, :channels] * (whole / scale), stills=w.stills[:, :, :channels] * (whole / scale))
            for w in (self.train, self.held_out)
        ]
        return *made, scale / whole


# -- what recipes have no key for ------------------------------------------------------------------------------------------
class EasyWindows(Walks):
    """The walks, of which only the half of the windows with the fewest different actions is drawn."""

    def _draw_windows(self, batch: int, latents: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        kinds = (window_counts(self.actions, latents) > 0).sum(-1)
        flat = kinds.flatten().argsort(stable=True)[: kinds.numel() // 2]
        pick = flat[torch.randint(len(flat), (batch,), generator=rng)]
        return pick // kinds.shape[1], pick % kinds.shape[1]


class EasyFirst(CausalStage):
    """The causal stage, the first half of whose steps draw easy windows."""

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        every = self.walks
        if 2 * step < self.recipe.steps:
            self.walks = EasyWindows(*(getattr(every, k) for k in ("groups", "stills", "actions", "poses", "prompt", "text")))
        try:
            return super().loss(step)
        finally:
            self.walks = every


class Layout(TinyAutoencoder):
    """A decoder whose network works at another number of pixels a place, or does not see the latent frame before."""

    def __init__(self, latent_channels: int, unshuffle: int, width: int, context: bool) -> None:
        super().__init__(latent_channels, (width, 160))
        self.unshuffle, self.context = unshuffle, context
        pixels, widths = 12 * unshuffle**2, {8: (width,), 4: (128, width), 2: (128, width, width)}[unshuffle]
        layers: list[nn.Module] = [nn.Conv2d(latent_channels * 2, 160, 1)]
        for before, after in zip((160, *widths), widths, strict=False):
            layers += [nn.Conv2d(before, after * 4, 1), nn.PixelShuffle(2), nn.SiLU()]
        self.refine_latents = nn.Sequential(*layers[:-1])
        self.refine_picture, self.refine_out = nn.Conv2d(pixels, width, 1), nn.Conv2d(width, pixels, 1)
        nn.init.zeros_(self.refine_out.weight)
        nn.init.zeros_(self.refine_out.bias)

    def decode_groups(self, latents: Tensor, previous: Tensor) -> Tensor:
        picture = self._synthesise(latents)
        x = self.refine_latents(torch.cat([latents, previous if self.context else latents], dim=1))
        x = x + self.refine_picture(nn.functional.pixel_unshuffle(picture, self.unshuffle))
        return picture + nn.functional.pixel_shuffle(self.refine_out(self.refine(x)), self.unshuffle)


def with_code(made: TinyAutoencoder, known: TinyAutoencoder, scale: float = 1.0) -> TinyAutoencoder:
    """`made` with the strongest of the other's channels; its latents are those divided by `scale`."""
    n = made.latent_channels
    with torch.no_grad():
        made.linear_encoder.weight.copy_(known.linear_encoder.weight[:n])
        made.linear_encoder.bias.copy_(known.linear_encoder.bias[:n])
        made.code_gain.copy_(known.code_gain[:n])
    made.set_latent_statistics(known.latents_mean[:, :n].flatten(), known.latents_std[:, :n].flatten() * scale)
    return made


# -- one run ---------------------------------------------------------------------------------------------------------------
def step_flops(trainer: Trainer, step: int) -> int:
    """Counted FLOPs of a training step, which changes the weights."""

    def take() -> None:
        trainer.loss(step)[0].backward()
        trainer.optimisers.step(1.0)

    return count_flops(take)


class Runs:
    """Makes the runs of one folder."""

    def __init__(self, folder: Path, data: Data, deadline: Deadline) -> None:
        self.folder, self.data, self.deadline = folder, data, deadline
        self._phases: dict[tuple[str, Variant], list[tuple[float, int]]] = {}

    def causal(self, variant: Variant, seed: int, steps: int, folder: Path) -> CausalStage:
        recipe, data = variant.recipe(seed), self.data
        walks, held_out, autoencoder = data.train, data.held_out, data.autoencoder
        if variant.channels:
            walks, held_out, scale = data.cut(variant.channels)
            made = with_code(TinyAutoencoder(variant.channels), autoencoder, scale)
            autoencoder = made.with_depth(autoencoder.depth).eval().requires_grad_(False)
        walks = replace(walks, balance=recipe.data.balance)
        kind = EasyFirst if variant.easy else CausalStage
        ranks = replace(ALONE, dtype=training_dtype(recipe.precision, CPU))
        return kind(replace(recipe.causal, steps=steps), folder, walks, held_out, autoencoder, CPU, ranks=ranks)

    def autoencoder(self, variant: Variant, seed: int, steps: int, folder: Path) -> AutoencoderStage:
        recipe, frames = replace(variant.recipe(seed).autoencoder, steps=steps), self.data.frames
        torch.manual_seed(seed)
        plain = Layout(recipe.latent_channels, variant.unshuffle, variant.width, variant.context)
        model = with_code(plain, self.data.autoencoder)
        held = self.data.held
        return AutoencoderStage(recipe, folder, frames[:-held], frames[-held:], CPU, model)

    def phases(self, kind: str, variant: Variant) -> list[tuple[float, int]]:
        """(share of the steps from which it holds, counted FLOPs of a step)"""
        key = (kind, replace(variant, label=""))
        if key not in self._phases:
            folder, steps = self.folder / "count", 1000
            stage = getattr(self, kind)(variant, 0, steps, folder)
            shares = [share for share, *_ in getattr(stage.recipe, "curriculum", [(0.0,)])]
            self._phases[key] = [(share, step_flops(stage.trainer, int(share * steps) + 1)) for share in shares]
            shutil.rmtree(folder)
        return self._phases[key]

    def budget(self, kind: str) -> int:
        """FLOPs that every run of this kind may use: the base's."""
        return run_flops(getattr(PLAIN.recipe(0), kind).steps, self.phases(kind, PLAIN))

    def run(self, kind: str, variant: Variant, seed: int) -> dict[str, Any] | None:
        """The record of a run; None where the deadline came first: then it goes on from there the next time."""
        phases = self.phases(kind, variant)
        steps, folder = equal_steps(self.budget(kind), phases), self.folder / "runs" / variant.key(kind, seed)
        stage = getattr(self, kind)(variant, seed, steps, folder)
        stage.trainer.sample = None  # measured at the end, by the same measure for all
        stage.trainer.warmup = WARMUP
        if not stage.trainer.run(self.deadline):
            return None
        stage.model.load_state_dict(stage.trainer.ema.weights)
        stage.model.eval()
        score = measure_causal(stage, self.data) if kind == "causal" else measure_autoencoder(stage)
        last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        shutil.rmtree(folder)
        flops = run_flops(steps, phases)
        return {"kind": kind, "seed": seed, "steps": steps, "gflops": round(flops / 1e9, 1), "loss": last["loss"]} | score


def measure_autoencoder(stage: AutoencoderStage) -> dict[str, float]:
    clips = stage.held_out
    return {"psnr": round(float(psnr(clips, stage.reconstruct(clips)).mean()), 3)}


@torch.no_grad()
def measure_causal(stage: CausalStage, data: Data) -> dict[str, float]:
    """PSNR of roll-outs against the rendered frames: true actions; opposite actions, on every second walk; of the still picture; and of
    `next_latents`."""
    frames, r = 1 + 16 * SECONDS, stage.recipe
    truth = data.frames[-data.held :, :frames]
    config = RollOutConfig(r.memory, r.sampler, r.chunk, stage.autoencoder)
    every, half = list(range(data.held)), list(range(0, data.held, 2))

    def score(picks: list[int], opposite: bool = False) -> float:
        latents = play_held_out(stage.model, stage.held_out, picks, frames, config, opposite)
        video = np.concatenate([to_frames(stage.autoencoder.decode(x)) for x in latents.split(4)])
        return round(float(psnr(truth[picks], video)[:, 1:].mean()), 3)

    still = psnr(truth, np.repeat(truth[:, :1], frames, axis=1))[:, 1:].mean()
    return {"true": score(every), "next": next_latents(stage), "opposite": score(half, True), "still": round(float(still), 3)}


@torch.no_grad()
def next_latents(stage: CausalStage, batches: int = 5) -> float:
    """PSNR of single latent frames made from pure noise and true context, on the same held-out windows under the same noise for all.

    The code is orthogonal, so the error of latents, each channel weighed by what it changes, is one of pixels, but for what the code leaves
    out. Where nothing but noise is given, a velocity is as wrong as the picture that it leads to.
    """
    size, gain = stage.autoencoder.linear_encoder.weight[0].numel(), stage.autoencoder.channel_gain
    kept = stage.recipe, stage.walks, stage.channel_weight
    stage.recipe = replace(
        stage.recipe, curriculum=((0.0, 6, 4),), context_noise=0.0, pure_noise=1.0, text_dropout=0.0, first_weight=0.0, seed=12345
    )
    stage.walks, stage.channel_weight = stage.held_out, gain.square().view(1, -1, 1, 1, 1) * len(gain) / size
    try:
        error = np.mean([float(CausalStage.loss(stage, step)[0]) for step in range(batches)])
    finally:
        stage.recipe, stage.walks, stage.channel_weight = kept
    return round(float(10 * np.log10(4 / error)), 3)


# -- all runs --------------------------------------------------------------------------------------------------------------
def compare(comparisons: Sequence[Comparison], folder: Path, make: Callable[[str, Variant, int], dict[str, Any] | None]) -> bool:
    """Make what `folder` has no line of yet, by `make(kind, variant, seed)`; whether all of it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    path, records = folder / "runs.jsonl", read_records(folder / "runs.jsonl")
    todo = [(c, v, seed) for c in comparisons for v in c.variants for seed in SEEDS]
    with tqdm(todo, "runs", unit="run", mininterval=5) as bar:
        for comparison, variant, seed in bar:
            key = variant.key(comparison.kind, seed)
            if key in records:
                continue
            bar.set_postfix_str(f"{comparison.name}: {variant.label}, seed {seed}")
            started = time.process_time()
            record = make(comparison.kind, variant, seed)
            if record is None:
                return False
            names = {"key": key, "comparison": comparison.name, "variant": variant.label, "overrides": variant.overrides}
            records[key] = names | record | {"cpu_seconds": round(time.process_time() - started)}
            with path.open("a") as lines:
                lines.write(json.dumps(records[key]) + "\n")
            (folder / "table.md").write_text(table(records))
    return True


def main(argv: list[str] | None = None) -> int:
    names = [c.name for c in COMPARISONS]
    parser = argparse.ArgumentParser(
        prog="python -m distill.ablate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the data and the runs; the same folder goes on")
    parser.add_argument("--only", nargs="*", default=names, choices=names, metavar="NAME", help=f"of {', '.join(map(repr, names))}")
    parser.add_argument("--minutes", type=float, default=9.0, help="length of this slice")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being stopped saves, as Ctrl-C does
    torch.set_num_threads(args.threads)
    chosen = [c for c in COMPARISONS if c.name in args.only]
    try:
        deadline = Deadline(args.minutes)
        runs = Runs(args.out, Data(args.out, PLAIN.recipe(0).data), deadline)
        done = compare(chosen, args.out, runs.run)
    except KeyboardInterrupt:
        parser.exit(130, "\nStopped and saved. The same command goes on.\n")
    print((args.out / "table.md").read_text() if (args.out / "table.md").exists() else "")
    print("All runs are there." if done else "The slice is over; the same command goes on.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
