"""The table and the plots of ``worldmodel eval``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from distill import action_following, suite_features
from distill.suite_measures import GAPS, bootstrap

_VISITS = ("own psnr", "own ssim", "truth psnr", "truth ssim", "own features", "truth features")
_SEEN = ("share", "own psnr", "given share", "given psnr")  # of what came back after a gap


def _by_scene(records: list[dict], value) -> dict[int, list[float]]:
    """`value(record)` (a list of numbers) gathered by scene"""
    found: dict[int, list[float]] = {}
    for r in records:
        found.setdefault(r["seed"], []).extend(value(r))
    return found


def psnr_by_scene(records: list[dict]) -> dict[str, float]:
    """By seed, the mean PSNR over the seconds that all walks have: what two models can be compared by, scene by scene."""
    seconds = min(len(r["psnr"]) for r in records)
    return {str(seed): round(float(np.mean(v)), 3) for seed, v in sorted(_by_scene(records, lambda r: r["psnr"][:seconds]).items())}


def summary(records: list[dict]) -> dict:
    """One line of the table; every figure is [mean, low, high] over scenes, costs are medians."""
    seconds = max(len(r["psnr"]) for r in records)
    turns = [e for r in records for e in r["turns"]]
    out: dict = {"psnr": [bootstrap(_by_scene(records, lambda r, s=s: r["psnr"][s : s + 1])) for s in range(seconds)]}
    out["drift"] = {
        name: [bootstrap(_by_scene(records, lambda r, s=s, c=c: [abs(np.array(row)[list(c)]).mean() for row in r["drift"][s : s + 1]]))
               for s in range(seconds)]
        for name, c in (("luma mean", (0,)), ("chroma mean", (1, 2)), ("luma contrast", (3,)), ("chroma contrast", (4, 5)))
    }  # fmt: skip
    out["revisit"] = {
        str(gap): {
            what: bootstrap(_by_scene(records, lambda r, g=str(gap), i=i: _entry(r["revisit"], g, i)))
            for i, what in enumerate(_VISITS)
        }
        for gap in GAPS
        if any(str(gap) in r["revisit"] for r in records)
    }
    out["seen"] = {
        kind: {what: bootstrap(_by_scene(records, lambda r, k=kind, i=i: _entry(r["seen"], k, i))) for i, what in enumerate(names)}
        for kind, names in (*((k, ("share", "psnr")) for k in ("given", "invented", "new")), *((str(g), _SEEN) for g in GAPS))
        if any(kind in r["seen"] for r in records)
    }
    out["action error"] = bootstrap(_by_scene(records, lambda r: [e for e in r["turns"] if e is not None]))
    out["no estimate"] = round(sum(e is None for e in turns) / len(turns), 3) if turns else None
    out["follow"] = action_following.summary(records, bootstrap)
    if "costs" in records[0]:
        rows: dict[float, list] = {}
        for r in records:
            for second, *cost in r["costs"]:
                rows.setdefault(float(np.ceil(second)), []).append(cost)
        out["costs"] = [[s, *(_median([c[i] for c in costs]) for i in range(3))] for s, costs in sorted(rows.items())]
    if "ceiling" in records[0]:
        out["ceiling"] = [bootstrap(_by_scene(records, lambda r, s=s: r["ceiling"][s : s + 1])) for s in range(seconds)]
    return out


def _entry(found: dict[str, list], key: str, i: int) -> list[float]:
    """The one number at found[key][i], or none"""
    return [found[key][i]] if key in found and found[key][i] is not None else []


def _median(values: list) -> float | None:
    values = [v for v in values if v is not None]
    return round(float(np.median(values)), 2) if values else None


def _cell(value: list[float | None], form: str = ".2f") -> str:
    if value[0] is None:
        return "–"
    return format(value[0], form) + ("" if value[1] is None else f" [{value[1]:{form}}, {value[2]:{form}}]")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1), *("| " + " | ".join(r) + " |" for r in rows), ""]


def markdown(results: dict) -> str:
    lines, model = results["lines"], results["lines"]["model"]
    seconds = len(model["psnr"])
    shown = [s for s in (1, 2, 3, 5, 10, 20, 60, 120, 180, 240, 300) if s <= seconds]
    out = [f"Model `{results['model']}` (`{results['identity']}`), suite {results['suite']}, {results['walks']} scenes. "
           "Mean over scenes [95 % bootstrap interval]; definitions in docs/evaluation.md.", ""]  # fmt: skip
    rows = [[name, *(_cell(line["psnr"][s - 1]) for s in shown), _cell(line["action error"], ".1f"), _percent(line["no estimate"])]
            for name, line in lines.items()]  # fmt: skip
    if "ceiling" in model:
        rows.insert(1, ["autoencoder", *(_cell(model["ceiling"][s - 1]) for s in shown), "–", "–"])
    out += _table(["line", *(f"PSNR, second {s}" for s in shown), "action error °/s", "no estimate"], rows)
    out += action_following.tables({name: line["follow"] for name, line in lines.items()}, _cell, _table)
    for gap in model["revisit"]:
        rows = [[name, *(_cell(line["revisit"][gap][k], ".2f" if "psnr" in k else ".3f") for k in _VISITS)] for name, line in lines.items()]
        out += _table([f"revisit after {gap} s", "PSNR to own first visit", "SSIM", "PSNR to truth", "SSIM",
                       "features: to own first visit", "to truth"], rows)  # fmt: skip
    out += _seen_tables(lines)
    out += _frechet_table(results)
    kinds = list(model["drift"])
    rows = [[name, *(_cell(line["drift"][k][-1], ".1f") for k in kinds)] for name, line in lines.items()]
    out += _table([f"drift, second {seconds}, grey levels", *kinds], rows)
    minutes = range(seconds // 60)
    if minutes:
        rows = [[name, *(f"{np.mean([v[0] for v in line['drift'][k][60 * m : 60 * m + 60]]):.1f}" for k in kinds for m in minutes)]
                for name, line in lines.items()]  # fmt: skip
        out += _table(["drift by minute, grey levels", *(f"{k}, minute {m + 1}" for k in kinds for m in minutes)], rows)
    form = [[f"{c[0]:g}", *("–" if v is None else f"{v:.10g}" for v in c[1:])] for c in model["costs"] if c[0] in shown]
    out += _table(["length, s", "ms a chunk", "memory, bytes", "memory, tokens"], form)
    return "\n".join(out)


def _seen_tables(lines: dict) -> list[str]:
    kinds = [k for k in ("given", "invented", "new") if k in lines["model"]["seen"]]
    names = {"given": "in the start picture", "invented": "not in it", "new": "in no frame before"}
    shares = [f"{names[k]} ({_percent(lines['model']['seen'][k]['share'][0])})" for k in kinds]
    rows = [[name, *(_cell(line["seen"][k]["psnr"]) for k in kinds)] for name, line in lines.items()]
    out = _table(["PSNR to truth of what was", *shares], rows)
    for gap in (str(g) for g in GAPS if str(g) in lines["model"]["seen"]):
        share, given = (_percent(lines["model"]["seen"][gap][k][0]) for k in ("share", "given share"))
        rows = [[name, *(_cell(line["seen"][gap][k]) for k in ("own psnr", "given psnr"))] for name, line in lines.items()]
        head = [f"back in view after {gap} s", f"PSNR to own earlier view ({share})", f"PSNR to truth, start picture ({given})"]
        out += _table(head, rows)
    return out


def _frechet_table(results: dict) -> list[str]:
    lines = results["lines"]
    windows = list(lines["model"]["frechet"])
    if not windows:
        missing = "" if suite_features.installed() else f" They need {suite_features.NEEDS}: install it and run the same command again."
        return [f"Fréchet and feature distances: –.{missing}", ""]
    rows = [[name, *(_cell(line["frechet"][w], ".1f") for w in windows)] for name, line in lines.items() if name != "truth"]
    rows += [[name, *(_cell(of[w], ".1f") for w in windows)] for name, of in results["frechet"].items()]
    return _table(["Fréchet distance to truth", *(f"seconds {w}" for w in windows)], rows)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}" if value >= 0.01 else f"{value:.1%}"


def plots(results: dict, path: Path) -> None:
    """Four panels: PSNR and drift over time, revisits over the gap, milliseconds a chunk."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    (first, revisit), (drift, cost) = figure.subplots(2, 2)
    for name, line in results["lines"].items():
        if name != "truth":
            first.plot(range(1, 1 + len(line["psnr"])), [v[0] for v in line["psnr"]], label=name)
            revisit.plot([int(g) for g in line["revisit"]], [v["truth psnr"][0] for v in line["revisit"].values()], "o-", label=name)
    model = results["lines"]["model"]
    if "ceiling" in model:
        first.plot(range(1, 1 + len(model["ceiling"])), [v[0] for v in model["ceiling"]], "--", label="autoencoder")
    for name, values in model["drift"].items():
        drift.plot(range(1, 1 + len(values)), [v[0] for v in values], label=name)
    cost.plot([c[0] for c in model["costs"]], [c[1] for c in model["costs"]], label="model")
    for axes, title, x in ((first, "PSNR to truth, dB", "second"), (revisit, "revisit: PSNR to truth, dB", "gap, s"),
                           (drift, "model's drift, grey levels", "second"), (cost, "ms a chunk", "length, s")):  # fmt: skip
        axes.set(title=title, xlabel=x)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
