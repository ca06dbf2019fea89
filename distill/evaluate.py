"""How good a model is on views that were kept from training: ``python -m distill.evaluate --model tiny --out docs/results``.

Writes ``results.json``, ``table.md`` and sheets (truth above the model). Two sets, apart: gallery worlds from reserved
start views, and worlds that were never seen. Three lines for scale beside the model: the autoencoder's ceiling, the start
picture standing still (and blurred), and the same model under opposite actions. With ``--places`` it measures instead what the depth
beside the gallery's start pictures is worth, and writes ``places.json`` and ``places.jpg`` (truth, depth as the model tells, as given).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from distill.autoencoder import psnr, to_frames, to_video
from distill.dataset import Clip
from distill.export import GALLERY
from distill.scenes import GALLERY_SEEDS, RESERVED_SEED, RESERVED_START, family_of, render
from worldmodel.actions import Action
from worldmodel.model import WorldModel

SCRIPTS = (
    "w*48", "left*48", "right*48", "s*48", "a*48", "d*48", "w+left*48", "w+right*48", "w*24 right*24",
    "up*16 left*32", "r*24 w*24", "o*12 w*36", "left*16 w*32", "a+left*48", "d+w*24 left*24", "down*12 f+w*12 right*24",
)  # fmt: skip
"""Three seconds each, over all keys; world n takes scripts n, n + 7, ... in turn."""
REVISITS = {"5 s": "left*40 right*40", "8 s": "left*64 right*64", "out and back, 6 s": "w*48 s*48"}
PLACES = ("w*48", "w*24 right*12 w*12")
BLURS = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Case:
    seed: int
    start: int
    script: str


def cases(seeds: Iterable[int], per_seed: int, first_start: int) -> list[Case]:
    return [Case(s, first_start + k, SCRIPTS[(i + 7 * k) % len(SCRIPTS)]) for i, s in enumerate(seeds) for k in range(per_seed)]


def roll_out(
    model: WorldModel, clip: Clip, actions: list[Action] | None = None, chunk_ms: list[float] | None = None, start: Path | None = None
) -> np.ndarray:
    """uint8 [T, H, W, 3]: the model's walk from the clip's first frame (or a picture's file) under its actions (or others).

    What each chunk took, in milliseconds, is appended to `chunk_ms`.
    """
    wanted = [Action.from_vector(a) for a in clip.actions[1:]] if actions is None else actions
    world = model.start(clip.frames[0] if start is None else start, clip.caption, seed=0)
    frames = [world.first_frame[None]]
    for chunk in world.stream(wanted):
        frames.append(chunk.frames)
        if chunk_ms is not None:
            chunk_ms.append(sum(chunk.timings.values()))
    return np.concatenate(frames)[: len(clip)]


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values [N]; NaN for a single one."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


@torch.no_grad()
def ceiling(model: WorldModel, clip: Clip) -> np.ndarray:
    """The clip through the autoencoder and back."""
    length = (len(clip) - 1) // 4 * 4 + 1
    video = to_video(clip.frames[None, :length]).to(model.device, model.dtype)
    return to_frames(model.autoencoder.decode(model.autoencoder.encode(video)))[0]


def evaluate_walks(model: WorldModel, todo: list[Case], title: str) -> tuple[dict, list[tuple[np.ndarray, np.ndarray]]]:
    """PSNR per second of every line, and (truth, model) pairs for a sheet."""
    lines: dict[str, list[np.ndarray]] = {}
    pairs = []
    for case in tqdm(todo, desc=title, unit="walk"):
        clip = render(case.seed, case.script, start=case.start, size=model.size)
        truth = clip.frames
        opposite = [Action.from_vector(a).opposite() for a in clip.actions[1:]]
        still = np.broadcast_to(truth[:1], truth.shape)
        videos = {
            "model": roll_out(model, clip),
            "opposite actions": roll_out(model, clip, opposite),
            "still picture": still,
            "ceiling": ceiling(model, clip),
        }
        blurred = [np.broadcast_to(cv2.GaussianBlur(truth[0], (0, 0), s)[None], truth.shape) for s in BLURS]
        videos["blurred still"] = max(blurred, key=lambda v: float(psnr(truth, v)[1:].mean()))
        for name, video in videos.items():
            lines.setdefault(name, []).append(psnr(truth[1 : len(video)], video[1:]))
        pairs.append((truth, videos["model"]))
    fps = model.fps
    result = {}
    for name, scores in lines.items():
        s = np.stack(scores)
        result[name] = {
            "per second": [round(float(s[:, t : t + fps].mean()), 2) for t in range(0, s.shape[1], fps)],
            "mean": round(float(s.mean()), 2),
        }
        result[name]["standard error"] = round(standard_error(s.mean(1)), 2)
    return result, pairs


def evaluate_revisits(model: WorldModel, seeds: Iterable[int], first_start: int) -> tuple[dict, list[np.ndarray]]:
    """Turn away and come back, with the memory and with the window alone: PSNR of the last frames against the truth."""
    window = model.with_memory(model.config.memory.window_only())
    table, strips = {}, []
    for name, script in REVISITS.items():
        scores: dict[str, list[float]] = {"memory": [], "window only": [], "ceiling": []}
        for i, seed in enumerate(tqdm(list(seeds), desc=f"revisit {name}", unit="walk")):
            clip = render(seed, script, start=first_start, size=model.size)
            with_memory, without, best = roll_out(model, clip), roll_out(window, clip), ceiling(model, clip)
            for key, video in (("memory", with_memory), ("window only", without), ("ceiling", best)):
                scores[key].append(float(psnr(clip.frames[-4:], video[-4:]).mean()))
            if i < 6:
                away = len(clip) // 2
                strips.append(np.concatenate([clip.frames[0], with_memory[away], with_memory[-1], without[away], without[-1]], axis=1))
        table[name] = {"script": script} | {k: round(float(np.mean(v)), 2) for k, v in scores.items()}
    return table, strips


def evaluate_places(model: WorldModel) -> tuple[dict, list[np.ndarray]]:
    """Walks in the gallery's places, with depth as the model tells it of their pictures alone and as it is beside them: mean PSNR, the gain
    with its standard error over places, and strips of the walks straight on."""
    table, strips = {}, []
    for script in PLACES:
        scores = []
        for seed, (_, start), place in zip(tqdm(GALLERY_SEEDS, desc=script, unit="place"), GALLERY, model.gallery, strict=True):
            clip = render(seed, script, start=start, size=model.size)
            walks = roll_out(model, clip), roll_out(model, clip, start=place.image_path)
            scores.append([float(psnr(clip.frames[1:], walk[1:]).mean()) for walk in walks])
            if script == PLACES[0] and seed % 3 == 0:
                strips += [np.concatenate([video[t] for t in (0, 12, 24, 36, 47)], axis=1) for video in (clip.frames, *walks)]
        told, given = np.array(scores).T
        gain = given - told
        figures = {"as told": told.mean(), "as given": given.mean(), "gain": gain.mean(), "standard error": standard_error(gain)}
        table[script] = {name: round(float(value), 2) for name, value in figures.items()}
    return table, strips


def sheet(pairs: list[tuple[np.ndarray, np.ndarray]], columns: int = 7) -> np.ndarray:
    """Truth above model, one pair of rows a walk."""
    at = np.linspace(0, len(pairs[0][0]) - 1, columns).astype(int)
    return np.concatenate([np.concatenate([video[t] for t in at], axis=1) for pair in pairs for video in pair])


def markdown(results: dict) -> str:
    out = [f"Model `{results['model']}`, {results['steps']} denoising steps. PSNR in dB against rendered truth.", ""]
    out += [
        f"Autoencoder on reserved views of the gallery worlds: **{results['autoencoder']['psnr']} dB** "
        f"({results['autoencoder']['frames']} frames).",
        "",
    ]
    for name in ("gallery worlds, reserved views", "unseen worlds"):
        lines = results[name]
        seconds = len(lines["model"]["per second"])
        out += [f"**{name}** ({results['walks'][name]} walks of 3 s)", ""]
        out += [
            "| line | " + " | ".join(f"second {i + 1}" for i in range(seconds)) + " | mean | ± |",
            "| --- |" + " ---: |" * (seconds + 2),
        ]
        for line in ("ceiling", "model", "opposite actions", "still picture", "blurred still"):
            row = lines[line]
            out.append(
                f"| {line} | " + " | ".join(f"{v:.2f}" for v in row["per second"]) + f" | {row['mean']:.2f} | {row['standard error']:.2f} |"
            )
        out.append("")
    out += [
        "**Turn away and come back, gallery worlds** (last quarter second)",
        "",
        "| walk | script | memory | window only | ceiling |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    out += [
        f"| {k} | `{r['script']}` | {r['memory']:.2f} | {r['window only']:.2f} | {r['ceiling']:.2f} |"
        for k, r in results["revisit"].items()
    ]
    return "\n".join(out) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's)")
    parser.add_argument("--per-world", type=int, default=2, help="walks per gallery world")
    parser.add_argument("--unseen", type=int, default=32, help="unseen worlds")
    parser.add_argument("--places", action="store_true", help="what the depth beside the gallery's pictures is worth, and nothing else")
    args = parser.parse_args(argv)
    model = WorldModel.from_pretrained(args.model)
    model = model if args.steps is None else model.with_steps(args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.places:
        if len(model.gallery) != len(GALLERY):
            parser.exit(2, "--places is for models with the gallery of the rendered worlds.\n")
        table, strips = evaluate_places(model)
        (args.out / "places.json").write_text(json.dumps(table, indent=1) + "\n")
        Image.fromarray(np.concatenate(strips)).save(args.out / "places.jpg", quality=85)
        print(json.dumps(table, indent=1))
        return 0

    known = cases(GALLERY_SEEDS, args.per_world, RESERVED_START)
    scores = []
    for case in tqdm(known, desc="autoencoder", unit="clip"):
        clip = render(case.seed, case.script, start=case.start + 100, size=model.size)
        scores.append(psnr(clip.frames, ceiling(model, clip)))
    results = {"model": model.fingerprint, "steps": model.config.sampler.steps, "walks": {}}
    results["autoencoder"] = {"psnr": round(float(np.concatenate(scores).mean()), 2), "frames": int(sum(map(len, scores)))}
    unseen = cases(range(RESERVED_SEED, RESERVED_SEED + args.unseen), 1, 0)
    for name, todo in (("gallery worlds, reserved views", known), ("unseen worlds", unseen)):
        results["walks"][name] = len(todo)
        results[name], pairs = evaluate_walks(model, todo, name)
        by_family = {family_of(c.seed): p for c, p in zip(reversed(todo), reversed(pairs), strict=True)}
        chosen = [*by_family.values(), *pairs[len(pairs) // 2 : len(pairs) // 2 + 4]]
        Image.fromarray(sheet(chosen)).save(args.out / f"{name.split(' ')[0].rstrip(',')}.jpg", quality=88)
    results["revisit"], strips = evaluate_revisits(model, list(GALLERY_SEEDS)[:12], RESERVED_START + 50)
    Image.fromarray(np.concatenate(strips)).save(args.out / "revisit.jpg", quality=88)
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (args.out / "table.md").write_text(markdown(results))
    print(markdown(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
