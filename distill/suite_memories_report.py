"""The tables and pictures of ``worldmodel eval --memories``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from distill.suite_measures import bootstrap
from distill.suite_memories import SHEET_SCENES, strip_path
from distill.suite_report import _cell, _table

MEASURES = ("own psnr", "own ssim", "truth psnr", "truth ssim", "own features", "truth features")  # as `revisits` gives them


def summary(records: list[dict], memories: list[str]) -> dict:
    """By memory, walk and gap: each measure, and PSNR to truth less the window's in the same scene, as [mean, low, high]."""
    found: dict = {}
    window = {(r["walk"], r["seed"]): r["revisit"] for r in records if r["memory"] == "window"}
    for memory in memories:
        mine = [r for r in records if r["memory"] == memory]
        found[memory] = {"scenes": len({r["seed"] for r in mine}), "tokens": max(r["tokens"] for r in mine), "walks": {}}
        for walk in dict.fromkeys(r["walk"] for r in mine):
            rows = [r for r in mine if r["walk"] == walk]
            gaps = sorted({g for r in rows for g in r["revisit"]}, key=int)
            found[memory]["walks"][walk] = {g: _measures([r for r in rows if g in r["revisit"]], g, window) for g in gaps}
        found[memory]["revisit"] = {
            name: bootstrap(_by_scene(mine, lambda r, w=walks: [v[2] for v in r["revisit"].values()] if r["walk"] in w else []))
            for name, walks in (("up to 20 s", ("turn back",)), ("40 s", ("40 s later",)))
        }
    return found


def _by_scene(records: list[dict], value) -> dict[int, list[float]]:
    return {seed: [v for r in records if r["seed"] == seed for v in value(r)] for seed in sorted({r["seed"] for r in records})}


def _measures(rows: list[dict], gap: str, window: dict) -> dict:
    out: dict = {"scenes": len(rows)}
    for i, name in enumerate(MEASURES):
        values = {r["seed"]: [r["revisit"][gap][i]] for r in rows if len(r["revisit"][gap]) > i and r["revisit"][gap][i] is not None}
        out[name] = bootstrap(values)
    out["gain"] = bootstrap({r["seed"]: [r["revisit"][gap][2] - window[r["walk"], r["seed"]][gap][2]] for r in rows})
    return out


def markdown(results: dict) -> str:
    memories, costs = results["memories"], results["costs"]
    seconds = next(iter(costs.values()))["seconds"]
    out = [
        f"Model `{results['model']}` (`{results['identity']}`), {results['steps']} denoising steps, {results['scenes']} unseen scenes. "
        "Mean over scenes [95 % bootstrap interval]; definitions in docs/evaluation.md.", "",
    ]  # fmt: skip
    rows = [
        [name, f"{costs[name]['tokens']}", f"{costs[name]['bytes'] / 2**20:.1f}", f"{costs[name]['ms']:.0f}",
         _cell(m["revisit"]["up to 20 s"]), _cell(m["revisit"]["40 s"])]
        for name, m in memories.items()
    ]  # fmt: skip
    head = ["memory", f"tokens after {seconds:.0f} s", "MiB", "ms a chunk", "revisit within 20 s, PSNR to truth", "after 40 s"]
    out += _table(head, rows)
    for walk, (shown, played) in results["walks"].items():
        gaps = next(iter(memories.values()))["walks"][walk]
        what = f"shown `{' '.join(shown.split())}`, played `{played}`" if shown else f"played `{played}`, nothing shown"
        scenes = ", ".join(f"{g} s in {row['scenes']}" for g, row in gaps.items())
        out += [f"**{walk}**: {what}. Scenes: {scenes}.", ""]
        if shown:
            columns = [(g, kind) for g in gaps for kind in ("truth psnr", "gain")]
            heads = [f"PSNR to truth, {g} s" if kind != "gain" else "less the window's" for g, kind in columns]
        else:
            columns = [(g, kind) for g in gaps for kind in ("own psnr", "truth psnr")]
            heads = [f"PSNR to {'own first visit' if kind == 'own psnr' else 'truth'}, {g} s" for g, kind in columns]
        out += _table(["memory", *heads], [[name, *(_cell(m["walks"][walk][g][k]) for g, k in columns)] for name, m in memories.items()])
        features = [] if next(iter(gaps.values()))["truth features"][0] is None else ["truth features"]
        kinds = [(g, k) for g in gaps for k in ("truth ssim", *features)]
        heads = [f"{'SSIM' if 'ssim' in k else 'feature distance'} to {k.split()[0]}, {g} s" for g, k in kinds]
        out += _table(["memory", *heads], [[n, *(_cell(m["walks"][walk][g][k], ".3f") for g, k in kinds)] for n, m in memories.items()])
    return "\n".join(out)


def pareto(results: dict, path: Path) -> None:
    """Revisit quality against tokens, within 20 s and after 40 s; what no other memory beats in both is joined by a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, which in zip(figure.subplots(1, 2), ("up to 20 s", "40 s"), strict=True):
        points = []
        for name, memory in results["memories"].items():
            mean, low, high = memory["revisit"][which]
            tokens = results["costs"][name]["tokens"]
            error = None if low is None else [[max(0.0, mean - low)], [max(0.0, high - mean)]]
            axes.errorbar([tokens], [mean], yerr=error, fmt="o", capsize=3)
            axes.annotate(name, (tokens, mean), textcoords="offset points", xytext=(6, 5), fontsize=8)
            points.append((tokens, mean))
        front = pareto_front(points)
        axes.plot(*zip(*front, strict=True), "--", color="grey", linewidth=1)
        axes.set(title=f"revisit {which}: PSNR to truth, dB (95 %)", xlabel="tokens that attention reads")
    figure.savefig(path, dpi=110)


def pareto_front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (cost, quality) those than which none is both as cheap and better, by cost"""
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda p: (p[0], -p[1])):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front


def sheet(records: list[dict], memories: list[str], out: Path) -> None:
    """A picture for each walk: the truth of the first scenes, and each memory's video below it."""
    for walk in dict.fromkeys(r["walk"] for r in records):
        rows = []
        for seed in sorted({r["seed"] for r in records})[:SHEET_SCENES]:
            paths = [strip_path(out, m, walk, seed) for m in memories]
            strips = [np.asarray(Image.open(p)) for p in paths if p.exists()]
            if strips:
                half = len(strips[0]) // 2
                rows += [strips[0][:half], *(s[half:] for s in strips)]
        if rows:
            Image.fromarray(np.concatenate(rows)).save(out / f"sheet-{walk.replace(' ', '-')}.png")
