"""``worldmodel eval``: a world model measured on worlds that training never saw, against their rendered truth.

Writes results.json, table.md, plots.png and sheet.png, and on wish the videos for VBench. Each walk goes into walks.jsonl as it
is done, so the same command goes on where it stopped. Any model can be measured through an adapter; docs/evaluation.md has an
example.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from distill import suite_features
from distill.autoencoder import psnr
from distill.compare import identity, read_records
from distill.dataset import Clip
from distill.evaluate import Case, ceiling
from distill.scenes import FPS, RESERVED_SEED, render
from distill.suite_measures import measure, per_second
from distill.suite_seen import Views, seen_again, views
from worldmodel.actions import Action
from worldmodel.model import WorldModel
from worldmodel.video import write_mp4

_MINUTE = "left*160 right*160 w*160 s*160 " + "w*8 left*72 " * 4  # turn away and back, out and back, a square
SUITES = {
    "quick": ("right*16 left*40 right*40", "w*16 w+left*16 d*16 right*16 s*16"),
    "full": (
        "right*16 left*160 right*160",  # turn away and back: gaps 2, 5, 10, 20 s, none of them at the start view
        "right*16 w*160 s*160",  # out and back
        "right*16 " + "w*8 left*72 " * 4,  # a square
        "w*48 left*24 a*24 up*8 right*48 down*8 w+right*48 d*24 s*40 w+left*48",
    ),
    "long": ("right*16 " + 5 * _MINUTE,),  # five minutes; where no wall is met, each shows the same
}
CALIBRATION = ("truth", "opposite actions", "still picture", "shuffled", "blurred", "another start")
BLUR = 1 / 64
"""Standard deviation of the blur of the line "blurred", of the picture's width."""
VERSION = 3  # counts up when a measure or a suite changes


class SuiteError(ValueError):
    """A model that cannot be measured, or something missing. One clear sentence."""


def load_adapter(where: str, name: str) -> Any:
    """The model that ``module:function`` makes when called with the model's name."""
    module, colon, function = where.partition(":")
    if not (module and colon and function):
        raise SuiteError(f"Write the adapter as module:function, got {where!r}.")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise SuiteError(f"The adapter {where!r} cannot be imported: {error}") from error
    return make(name)


def check_model(model: Any) -> None:
    if getattr(model, "fps", FPS) != FPS:
        raise SuiteError(f"The suite is at {FPS:.0f} frames a second, the model at {model.fps}.")
    missing = [what for what in ("start", "size", "chunk_frames") if not hasattr(model, what)]
    if missing:
        raise SuiteError(f"The model offers no {missing[0]!r}; docs/evaluation.md says what an adapter needs.")


def identity_of(model: Any, name: str) -> str:
    return identity(model) + f"-{model.config.sampler.steps}" if isinstance(model, WorldModel) else str(getattr(model, "fingerprint", name))


def cases_of(suite: str, walks: int) -> list[Case]:
    """Every script of a suite in `walks` unseen worlds; a larger count begins with those of a smaller."""
    return [Case(RESERVED_SEED + i, 0, script.strip()) for i in range(walks) for script in SUITES[suite]]


def roll_out(model: Any, clip: Clip) -> tuple[np.ndarray, list[list[float]]]:
    """The model's video uint8 [T, H, W, 3] of the clip's walk, and for each chunk [seconds so far, ms, bytes, tokens]."""
    actions = clip_actions(clip)
    world = model.start(clip.frames[0], clip.caption, 0)
    frames, costs, n = [np.asarray(getattr(world, "first_frame", clip.frames[0]))[None]], [], model.chunk_frames
    for t in range(0, len(actions), n):
        batch = actions[t : t + n]
        started = time.perf_counter()
        chunk = world.step(batch + [Action.idle()] * (n - len(batch)))
        took = 1000 * (time.perf_counter() - started)
        if chunk.frames.shape != (n, *clip.frames.shape[1:]) or chunk.frames.dtype != np.uint8:
            raise SuiteError(f"A chunk is uint8 {(n, *clip.frames.shape[1:])}, the model gave {chunk.frames.dtype} {chunk.frames.shape}.")
        frames.append(chunk.frames)
        costs.append([(t + n) / FPS, round(took, 2), getattr(world, "memory_bytes", None), getattr(world, "memory_tokens", None)])
    return np.concatenate(frames)[: len(clip)], costs


def clip_actions(clip: Clip) -> list[Action]:
    return [Action.from_vector(a) for a in clip.actions[1:]]


def control(name: str, clip: Clip) -> np.ndarray:
    """The video of a line that calibrates the measures."""
    if name == "opposite actions":
        wanted = [a.opposite() for a in clip_actions(clip)]
        return render(clip.seed, wanted, start=clip.start, size=clip.frames.shape[1:3]).frames
    if name == "another start":
        return render(clip.seed, clip_actions(clip), start=clip.start + 1, size=clip.frames.shape[1:3]).frames
    if name == "blurred":
        return np.stack([cv2.GaussianBlur(f, (0, 0), BLUR * f.shape[1]) for f in clip.frames])
    if name == "still picture":
        return np.broadcast_to(clip.frames[:1], clip.frames.shape)
    return clip.frames if name == "truth" else clip.frames[np.random.default_rng(0).permutation(len(clip))]


def vbench_path(folder: Path, number: int, prompt: str) -> Path:
    """``<prompt>-<number>.mp4``: the name that VBench reads a prompt from, as much of it as a file name takes"""
    name = "".join(c if c.isalnum() or c in " ,.'" else " " for c in prompt)
    return folder / f"{name.encode()[:180].decode(errors='ignore').strip()}-{number}.mp4"


def write_vbench(folder: Path, number: int, prompt: str, video: np.ndarray) -> None:
    """Write a walk's video and its whole prompt into ``prompts.json``, the --prompt_file of VBench's custom input."""
    folder.mkdir(parents=True, exist_ok=True)
    path, index = vbench_path(folder, number, prompt), folder / "prompts.json"
    write_mp4(path, video, FPS)
    prompts = json.loads(index.read_text()) if index.exists() else {}
    index.write_text(json.dumps(prompts | {path.name: prompt}, indent=1) + "\n")


def run(model: Any, name: str, suite: str, walks: int, out: Path, vbench: Path | None = None) -> dict[str, list[dict]]:
    """Records of the model and of the controls by line, leaving out what `out` has already.

    The model's videos go into the folder `vbench`; walks whose video is not there yet are made again.
    """
    check_model(model)
    (out / "strips").mkdir(parents=True, exist_ok=True)
    path = out / "walks.jsonl"
    known, who = read_records(path), identity_of(model, name)
    features = suite_features.NAME if suite_features.installed() else ""
    records: dict[str, list[dict]] = {line: [] for line in ("model", *CALIBRATION)}
    todo = cases_of(suite, walks)
    with tqdm(total=len(todo) * len(records), unit="walk", desc="eval") as bar:
        for number, case in enumerate(todo):
            clip: Clip | None = None
            seen: Views | None = None
            for line in records:
                what = (VERSION, features, line, who if line == "model" else "", list(model.size), case.seed, case.start, case.script)
                key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
                export = line == "model" and vbench is not None and not any(vbench.glob(f"*-{number}.mp4"))
                if key not in known or export:
                    clip = clip or render(case.seed, case.script, start=case.start, size=tuple(model.size))
                    record = {"key": key, "line": line, "seed": case.seed, "script": case.script}
                    if line == "model":
                        video, record["costs"] = roll_out(model, clip)
                        if isinstance(model, WorldModel):
                            best = ceiling(model, clip)
                            record["ceiling"] = per_second(psnr(clip.frames[1 : len(best)], best[1:]))
                            if features:
                                suite_features.save(out / "features", f"{key}-autoencoder", best)
                        at = np.linspace(0, len(clip) - 1, 8).astype(int)
                        rows = [np.concatenate([v[t] for t in at], axis=1) for v in (clip.frames, video)]
                        Image.fromarray(np.concatenate(rows)).save(out / "strips" / f"{key}.png")
                        if export:
                            write_vbench(vbench, number, clip.caption, video)
                    else:
                        video = control(line, clip)
                    seen = seen or views(clip)
                    known[key] = record | measure(video, clip) | {"seen": seen_again(video, seen)}
                    if features:
                        suite_features.save(out / "features", key, video)
                    with path.open("a") as file:
                        file.write(json.dumps(known[key]) + "\n")
                records[line].append(known[key])
                bar.update()
    return records


def evaluate(model: Any, name: str, suite: str, walks: int, out: Path, vbench: Path | None = None) -> dict:
    """Run a suite and write everything into `out`; returns what results.json holds."""
    from distill.suite_report import markdown, plots, psnr_by_scene, summary

    records = run(model, name, suite, walks, out, vbench)
    results = {"model": name, "identity": identity_of(model, name), "size": list(model.size), "suite": suite, "walks": walks}
    results["scripts"] = list(SUITES[suite])
    encoded = [{"key": f"{r['key']}-autoencoder", "seed": r["seed"]} for r in records["model"] if "ceiling" in r]
    frechet = suite_features.frechet_by_time(out / "features", records | ({"autoencoder": encoded} if encoded else {}))
    results["lines"] = {line: summary(rows) | {"frechet": frechet.get(line, {})} for line, rows in records.items()}
    results["frechet"] = {line: frechet[line] for line in ("autoencoder", suite_features.OTHER_WORLDS) if line in frechet}
    results["scenes"] = psnr_by_scene(records["model"])
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "table.md").write_text(markdown(results))
    strips = [np.asarray(Image.open(out / "strips" / f"{r['key']}.png")) for r in records["model"][:12]]
    Image.fromarray(np.concatenate(strips)).save(out / "sheet.png")
    plots(results, out / "plots.png")
    return results


def check_installed() -> None:
    for module, package in (("panda3d", "panda3d"), ("cv2", "opencv-python-headless"), ("matplotlib", "matplotlib")):
        if importlib.util.find_spec(module) is None:
            raise SuiteError(f"worldmodel eval needs {package}: install worldmodel[train,eval].")

