"""The whole run in time slices: ``python -m distill.train tiny --out DIR --minutes 9``.

Renders or reuses the data, trains the stage that is due, saves, and stops by itself; the same command goes on from there.
Everything lies under DIR: ``data/`` (posed clips, unless the recipe names a `data.folder`), ``autoencoder/``, ``walks/`` (encoded
clips) and a folder for each of the recipe's `stages`; from the first slice of one that can be played (causal, student_init,
self_forcing) `distill.export` makes what `WorldModel.from_pretrained` loads.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from distill.checks import check_run, clip_files, is_model, wan_folder
from distill.dataset import read_clip
from distill.recipe import Recipe, RecipeError, load_recipe
from distill.scenes.dataset import missing

if TYPE_CHECKING:  # torch takes seconds to import: what is wrong with a recipe is said before
    import torch

    from distill.latents import Walks
    from distill.parallel import Ranks
    from distill.trainer import Deadline
    from worldmodel.autoencoder import VideoAutoencoder
    from worldmodel.transformer import CausalWorldTransformer


class Renderer:
    """Worker processes that render what is missing, beside the training."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        d = recipe.data
        self.folder, self.clips = folder, d.clips
        self.process = None
        self.needed = not d.folder
        if self.needed and missing(folder, d.clips):
            command = [sys.executable, "-m", "distill.scenes", "--out", str(folder), "--seeds", d.seeds, "--clips", str(d.clips)]
            command += ["--frames", str(d.frames), "--size", str(d.size), "--level", str(d.level), "--workers", str(d.workers)]
            self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def wait_for(self, clips: int, deadline: Deadline) -> bool:
        """Wait until clips 1..`clips` are there; False at the deadline."""
        todo = len(missing(self.folder, clips)) if self.needed else 0
        if not todo:
            return True
        with tqdm(total=clips, initial=clips - todo, desc="render", unit="clip") as bar:
            while left := len(missing(self.folder, clips)):
                bar.update(clips - left - bar.n)
                if deadline.passed:
                    return False
                if self.process is None or self.process.poll() is not None:
                    raise RuntimeError(f"Rendering stopped with {left} clips missing in {self.folder}: python -m distill.scenes tells why.")
                time.sleep(1)
        return True

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


def frame_pool(clips: list[Path], cache: Path) -> np.ndarray:
    """Frames uint8 [N, F, H, W, 3] of clips, decoded once into a memory-mapped file."""
    path = cache / f"frames-1-{len(clips) + 1}.npy"
    if not path.exists():
        first = read_clip(clips[0]).frames
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        pool = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(clips), *first.shape))
        for i, stem in enumerate(tqdm(clips, desc="decode", unit="clip", mininterval=5)):
            pool[i] = read_clip(stem).frames
        pool.flush()
        part.rename(path)
    return np.load(path, mmap_mode="r")


PROMPTS = Path(__file__).parents[1] / "prompts.safetensors"  # lies there in a bundle (`distill.bundle`)


def embed_prompts(prompts: list[str], known: Path | None = None) -> torch.Tensor:
    """float32 [P, L, D]; a prompt that the cache `known` (default: the bundle's) has needs no language model."""
    from worldmodel.text import PromptCache, TextEncoder

    known = known or (PROMPTS if PROMPTS.exists() else None)
    return TextEncoder(cache=None if known is None else PromptCache.load(known)).encode(prompts)


def load_autoencoder(out: Path, wan: Path | None, device: torch.device) -> VideoAutoencoder:
    """The run's own autoencoder, or Wan's from the vae/ of a folder in diffusers' layout."""
    import torch
    from diffusers import AutoencoderKLWan

    from worldmodel.autoencoder import TinyAutoencoder, WanAutoencoder

    if wan is None:
        return TinyAutoencoder.from_pretrained(out / "autoencoder" / "model").to(device).eval().requires_grad_(False)
    vae = AutoencoderKLWan.from_pretrained(wan, subfolder="vae", torch_dtype=torch.float32)
    return WanAutoencoder(vae.to(device).requires_grad_(False))


def embed_by_wan(prompts: list[str], folder: Path, known: Path) -> torch.Tensor:
    """float32 [P, L, 4096] by Wan's UMT5; kept in the file `known`, so that the encoder is loaded once a run."""
    import torch

    from worldmodel.text import PromptCache, TextConfig, TextEncoder

    cache = PromptCache.load(known) if known.exists() else None
    encoder = TextEncoder(TextConfig("umt5", 512, 4096), folder, cache, dtype=torch.bfloat16)
    if any(p not in encoder.cache for p in prompts):
        encoder.remember(prompts).save(known)
    return encoder.encode(prompts)


def start_weights(recipe: Recipe, start_from: Path) -> dict[str, torch.Tensor]:
    """Weights for the first stage: of a world model's transformer, or of a Wan checkpoint (`worldmodel.convert`).

    RELIC's action and pose layers, which a Wan checkpoint lacks, start as the class starts them: the model computes what Wan does.
    """
    import torch

    if is_model(start_from):
        from worldmodel.transformer import CausalWorldTransformer

        return CausalWorldTransformer.from_pretrained(start_from / "transformer", torch_dtype=torch.float32).state_dict()
    from worldmodel.convert import load_wan_transformer

    made = recipe.transformer(recipe.stages[0])
    heads = {"num_attention_heads": made.num_attention_heads, "attention_head_dim": made.attention_head_dim}
    return load_wan_transformer(start_from, **heads, camera_dim=made.camera_dim).state_dict()


def train(
    recipe: Recipe, out: Path, deadline: Deadline, device: torch.device, start_from: Path | None = None, prompts: Path | None = None,
    ranks: Ranks | None = None,
) -> bool:  # fmt: skip
    """One slice; returns whether the whole recipe is done.

    `start_from` is a model's folder: its autoencoder is used as it is, and the first stage starts from its transformer. Or it
    is a Wan checkpoint, for the transformer alone; with vae/ and text_encoder/ beside it these are used too, as by `data.wan`.
    `prompts` is a file of prompt embeddings (`worldmodel.text.PromptCache`). Of several processes the main one prepares the
    data while the others wait; all train the world models.
    """
    from distill.latents import load_walks
    from distill.parallel import ALONE
    from distill.precision import training_dtype

    ranks = replace(ranks or ALONE, dtype=training_dtype(recipe.precision, device))
    wan = wan_folder(recipe, start_from)
    embed = embed_prompts if prompts is None else partial(embed_prompts, known=prompts)
    if wan is not None and prompts is None:
        embed = partial(embed_by_wan, folder=wan, known=out / "prompts.safetensors")

    def main_part() -> bool:
        return prepare(recipe, out, deadline, device, start_from) and (ranks.world == 1 or write_text(out / "walks", embed))

    if not ranks.on_main(main_part):
        return False
    if ranks.world > 1:
        embed = partial(read_text, out / "walks")
    walks = load_walks(out / "walks" / "train", embed, recipe.data.balance)
    held_out = load_walks(out / "walks" / "held_out", embed)
    autoencoder = load_autoencoder(out, wan, device)
    init = None
    if start_from is not None and not (out / recipe.stages[0] / "checkpoint").exists():
        init = start_weights(recipe, start_from)
    return train_models(recipe, out, walks, held_out, autoencoder, deadline, device, init, ranks)


def write_text(folder: Path, embed: Callable[[list[str]], torch.Tensor]) -> bool:
    """Embed the captions of the walks in `folder` once, so that one process alone needs the language model; for `read_text`."""
    import torch
    from safetensors.torch import save_file

    from distill.latents import load_walks

    captions: list[str] = []
    for name in ("train", "held_out"):
        load_walks(folder / name, lambda prompts: captions.extend(prompts) or torch.zeros(len(prompts), 1, 1))
    captions = sorted(set(captions))
    save_file({"text": embed(captions).contiguous()}, folder / "text.safetensors", {"captions": json.dumps(captions)})
    return True


def read_text(folder: Path, prompts: list[str]) -> torch.Tensor:
    """What `write_text` embedded, float32 [P, L, D]."""
    from safetensors import safe_open

    with safe_open(folder / "text.safetensors", "pt") as f:
        captions, text = json.loads(f.metadata()["captions"]), f.get_tensor("text")
    return text[[captions.index(p) for p in prompts]]


def prepare(recipe: Recipe, out: Path, deadline: Deadline, device: torch.device, start_from: Path | None = None) -> bool:
    """Clips, the autoencoder, and the clips encoded by it; returns whether all are there. For one process."""
    import torch

    from distill.autoencoder import AutoencoderStage
    from distill.latents import encode_clips
    from worldmodel.autoencoder import TinyAutoencoder

    wan = wan_folder(recipe, start_from)
    d = recipe.data
    clips = clip_files(recipe, out)
    trained, held = range(len(clips) - d.held_out), range(len(clips) - d.held_out, len(clips))
    renderer = Renderer(out / "data", recipe)
    try:
        # 1. autoencoder: Wan's as it is, or a small one of our own
        done = out / "autoencoder" / "model"
        if wan is None:
            if start_from is not None and is_model(start_from) and not done.exists():
                TinyAutoencoder.from_pretrained(start_from / "autoencoder", torch_dtype=torch.float32).save_pretrained(done)
            if not done.exists():
                if not renderer.wait_for(d.autoencoder_clips, deadline):
                    return False
                pool = frame_pool(clips[: d.autoencoder_clips], out / "autoencoder")
                split = max(1, len(pool) // 20)
                stage = AutoencoderStage(recipe.autoencoder, out / "autoencoder", pool[:-split], pool[-split:], device)
                stage.trainer.work.origin = recipe.origin
                if not stage.trainer.run(deadline):
                    return False
                stage.finish()
            if any(recipe.transformer(name).view_focal for name in recipe.stages) and not add_depth(recipe, out, deadline, device):
                return False

        # 2. latents
        if not (out / "walks" / "done").exists():
            if not renderer.wait_for(d.clips, deadline):
                return False
            autoencoder = load_autoencoder(out, wan, device)
            for name, indices, turned in (("train", trained, d.palindrome), ("held_out", held, 0.0)):
                encode_clips(autoencoder, lambda i: read_clip(clips[i]), indices, out / "walks" / name, device, turned)
            (out / "walks" / "done").touch()
        return True
    finally:
        renderer.stop()


def add_depth(recipe: Recipe, out: Path, deadline: Deadline, device: torch.device) -> bool:
    """Give the run's autoencoder the depth that camera views need, if it has none; returns whether it has it.

    Pictures of clips of one's own have no depth to learn from, so there the packaged weights' is taken.
    """
    import torch

    from distill.depth import train_depth
    from worldmodel.autoencoder import TinyAutoencoder
    from worldmodel.loading import find_model

    folder = out / "autoencoder" / "model"
    autoencoder = TinyAutoencoder.from_pretrained(folder, torch_dtype=torch.float32)
    if autoencoder.depth is not None:
        return True
    if recipe.data.folder:
        known = TinyAutoencoder.from_pretrained(find_model("tiny") / "autoencoder", torch_dtype=torch.float32)
        made = autoencoder.with_depth(known.depth)
    else:
        stage = train_depth(recipe.depth, out / "depth", autoencoder, recipe.data.shape, deadline, device, recipe.origin)
        if not stage.trainer.done:
            return False
        made = stage.finish()
    made.save_pretrained(folder)
    return True


def train_models(
    recipe: Recipe, out: Path, walks: Walks, held_out: Walks, autoencoder: VideoAutoencoder, deadline: Deadline, device: torch.device,
    init: dict[str, torch.Tensor] | None = None, ranks: Ranks | None = None,
) -> bool:  # fmt: skip
    """The recipe's stages, one after the other; returns whether all are done. `init` are weights for the first."""
    from distill.causal import CausalStage
    from distill.parallel import ALONE
    from distill.self_forcing import SelfForcingStage
    from distill.student_init import StudentInitStage, make_trajectories
    from distill.teacher import TeacherStage
    from distill.work import weights_digest

    ranks = ranks or ALONE
    start = {} if init is None else {"from": weights_digest(init)}
    done: dict[str, CausalWorldTransformer] = {}
    for name in recipe.stages:
        section, common = getattr(recipe, name), (out / name, walks, held_out, autoencoder, device)
        if name == "causal":
            stage = CausalStage(section, *common, None if done else init, ranks)
        elif name == "teacher":
            weights = done["causal"].state_dict() if "causal" in done and recipe.same_weights("causal", "teacher") else None
            stage = TeacherStage(section, *common, weights if done else init, ranks)
        elif name == "student_init":
            if not make_trajectories(done["teacher"], walks, autoencoder, out / name / "trajectories", section, device, deadline, ranks):
                return False
            if ranks.world > 1:
                done["teacher"].to("cpu")  # each process had it whole; from here on the device holds shards
            stage = StudentInitStage(section, *common, done["teacher"], ranks)
        else:
            student = done.get("student_init") or done["causal"]
            stage = SelfForcingStage(section, *common, student, done["teacher"], ranks, out / "teacher")
        stage.trainer.work.origin = recipe.origin | (start if name == recipe.stages[0] else {})
        finished = stage.trainer.run(deadline)
        done[name] = stage.finish()
        del stage  # its memory, before the next one
        if not finished:
            return False
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="name of a recipe (tiny) or a path to a YAML file")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; the same folder goes on")
    parser.add_argument("--from", dest="start_from", type=Path, help="model to go on from (worldmodel/weights/tiny), or a Wan checkpoint")
    parser.add_argument("--prompts", type=Path, help="embeddings of the captions, for where no language model is (distill.bundle)")
    parser.add_argument("--minutes", type=float, default=9.0, help="length of this slice")
    parser.add_argument("--dry-run", action="store_true", help="print parameters, memory and FLOPs of distilling it, and stop")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs that the dry run plans for")
    parser.add_argument("--device", default="", help="default: cuda where there is one, else cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, for example causal.steps=500")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # being stopped saves, as Ctrl-C does
    try:
        recipe = load_recipe(args.recipe, args.set)
        if args.dry_run:
            from distill.plan import make_plan

            print(make_plan(recipe, args.gpus))
            return 0
        check_run(recipe, args.out, args.start_from, args.prompts)  # nothing above here has imported torch
        import torch

        from distill.parallel import distributed
        from distill.trainer import Deadline

        if args.threads:
            torch.set_num_threads(args.threads)
        with distributed(args.device) as ranks:
            done = train(recipe, args.out, Deadline(args.minutes), ranks.device, args.start_from, args.prompts, ranks)
    except (RecipeError, ValueError, OSError) as error:
        parser.exit(2, f"{error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "\nStopped and saved. The same command goes on.\n")
    if ranks.main:
        print("The recipe is done." if done else "The slice is over; the same command goes on.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
