"""The ledger as a page and a plot: ``python -m distill.ledger``."""

from __future__ import annotations

import os
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from distill.ledger import cumulative
from distill.suite_measures import bootstrap

Lines = list[dict[str, Any]]
FEWEST = 3
COLUMNS = 2  # of panels in the plot
HEAD = """# The ledger

Every run behind weights that were kept: what it cost, what it measures, and the command that goes on from there. The data are
[ledger.jsonl]({data}); this page and the plot are written from it by `python -m distill.ledger`, and

```
python -m distill.ledger add RUN --model FOLDER --eval RESULTS/results.json
```

adds the line of a run of `distill.train`, whose slices keep account of themselves (`work.jsonl` in each stage's folder). FLOPs are
those of matrix products, convolutions and attention in training steps, optimiser included, as torch's `FlopCounterMode` counts them;
rendering, encoding and evaluation are not in it. *Of the peak* is what training achieved a second over a product of large float32
matrices on that machine. *Behind it* are the FLOPs of a run and of all that it came from, each once. PSNR compares within one measure
only.

![Quality against the FLOPs behind it]({plot})
"""


def _cell(line: dict[str, Any], key: str, form: str = "") -> str:
    value = line[key]
    return f"– ({line['why'][key]})" if value is None else format(value, form)


def _table(head: list[str], rows: list[list[str]], words: int = 1) -> list[str]:
    """A table whose first `words` columns are words and the others numbers."""
    align = ["---"] * words + ["---:"] * (len(head) - words)
    return ["| " + " | ".join(head) + " |", "| " + " | ".join(align) + " |", *("| " + " | ".join(r) + " |" for r in rows), ""]


def flops(value: float | None) -> str:
    """In units of 10^12: 1.3 P is 1,300."""
    return "–" if value is None else f"{value / 1e12:,.3g}" if value < 1e14 else f"{value / 1e12:,.0f}"


def share(line: dict[str, Any]) -> str:
    """Achieved FLOP/s over the peak's."""
    if not line["flops"] or not line["minutes"] or not line["gemm"]:
        return "–"
    return f"{line['flops'] / (60 * line['minutes'] * line['gemm']):.0%}"


def measured(lines: Lines) -> dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """(line, quality) of each measure, in the order of the ledger."""
    found: dict[str, list] = {}
    for line in lines:
        for quality in line["quality"]:
            found.setdefault(quality["measure"], []).append((line, quality))
    return found


def nearest(lines: Lines, run: str, measure: str) -> dict[str, Any] | None:
    """The quality of the nearest ancestor with the same measure: of its parents, then of theirs."""
    by_name = {x["run"]: x for x in lines} | {x["weights"]: x for x in lines if x["weights"]}
    todo, seen = list(by_name[run]["from"]), set()
    while todo:
        line = by_name.get(todo.pop(0))
        if line is None or line["run"] in seen:
            continue
        seen.add(line["run"])
        found = next((q for q in line["quality"] if q["measure"] == measure), None)
        if found is not None:
            return found | {"run": line["run"]}
        todo += line["from"]
    return None


def change(quality: dict[str, Any], before: dict[str, Any] | None) -> str:
    """Difference in PSNR to an earlier model, over the scenes of both if they are the same: mean and 95 % interval."""
    if before is None:
        return "–"
    name, scenes = before["run"], quality["scenes"]
    if scenes and scenes.keys() == before["scenes"].keys():
        mean, low, high = bootstrap({int(k): [v - before["scenes"][k]] for k, v in scenes.items()})
        return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}] ({name})" if low is not None else f"{mean:+.2f} ({name})"
    return f"{quality['psnr'] - before['psnr']:+.2f} ({name})"


def markdown(lines: Lines, data: str, plot: str, root: str, notes: str) -> str:
    """The page; `root` leads from its folder to the repository's."""
    out = [HEAD.format(data=data, plot=plot)]
    for measure, rows in measured(lines).items():
        extra = list(dict.fromkeys(k for _, q in rows for k in q["figures"]))
        table = []
        for line, q in rows:
            behind = [cumulative(lines, line["run"], key) for key in ("flops", "minutes")]
            before = nearest(lines, line["run"], measure)
            earlier = before and cumulative(lines, before["run"])
            times = f"{behind[0] / earlier:.2f}" if behind[0] and earlier else "–"
            figures = [_figure(q["figures"].get(k)) for k in extra]
            table.append([line["run"], flops(behind[0]), "–" if behind[1] is None else f"{behind[1]:,.0f}", times, f"**{q['psnr']:.2f}**",
                          change(q, before), *figures, f"`{q['source']}`"])  # fmt: skip
        out += [f"## Quality: {measure}", ""]
        head = ["weights of", "TFLOP behind it", "minutes behind it", "times its ancestor's FLOPs", "PSNR, dB", "since its ancestor"]
        out += _table([*head, *extra, "source"], table)
    if notes:
        out += [notes]
    out += ["## Cost", ""]
    table = []
    for x in lines:
        origin = ", ".join(x["from"]) or "nothing"
        recipe = _cell(x, "recipe") + (f" `{x['digest']}`" if x["digest"] else f" ({x['why']['digest']})" if x["recipe"] else "")
        sheet = f"[sheet]({root}/{x['sheet']})" if x["sheet"] else _cell(x, "sheet")
        amounts = [_cell(x, "steps", ","), _cell(x, "minutes", ".0f"), _cell(x, "sequences", ","), _cell(x, "latent_frames", ",")]
        total = flops(x["flops"]) if x["flops"] is not None else _cell(x, "flops")
        table.append([x["run"], x["day"], origin, recipe, _cell(x, "hardware"), sheet, _cell(x, "counted"), *amounts, total, share(x)])
    head = ["run", "day", "from", "recipe", "hardware", "sheet", "FLOPs counted", "steps", "minutes", "sequences", "latent frames", "TFLOP",
            "of the peak"]  # fmt: skip
    out += _table(head, table, words=7)
    out += ["## Go on", "", "From any of these weights, with one command:", ""]
    kept = [x for x in lines if x["weights"]]
    out += _table(["weights of", "digest", "command"], [[x["run"], f"`{x['weights']}`", _command(x)] for x in kept], words=3)
    lost = [f"{x['run']} ({x['why']['weights']})" for x in lines if not x["weights"]]
    return "\n".join(out + ([f"No weights: {', '.join(lost)}.", ""] if lost else []))


def _figure(value: Any) -> str:
    if value is None or value == [None] * 3:
        return "–"
    if isinstance(value, list):
        return f"{value[0]:.2f}" + ("" if value[1] is None else f" [{value[1]:.2f}, {value[2]:.2f}]")
    return f"{value:.2f}"


def _command(line: dict[str, Any]) -> str:
    return _cell(line, "go on") if line["go on"] is None else f"`{line['go on']}`"


def plot(lines: Lines, path: Path) -> None:
    """PSNR against the FLOPs behind it, each model joined to its nearest ancestor, and held-out curves.

    A panel for each measure of at least three models, since fewer tell nothing of a trend; measures are never mixed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {}
    for measure, rows in measured(lines).items():
        found = {line["run"]: (cumulative(lines, line["run"]), q) for line, q in rows}
        found = {run: (x / 1e12, q) for run, (x, q) in found.items() if x}
        if len(found) >= FEWEST:
            panels[measure] = found
    curves = [x for x in lines if x["curve"] and cumulative(lines, x["run"]) is not None]
    count = max(1, len(panels) + bool(curves))
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    figure = Figure(figsize=(9 * columns, 5.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for empty in axes[count:]:
        empty.remove()
    del axes[count:]
    for axis, (measure, found) in zip(axes, panels.items(), strict=False):
        for k, (run, (x, q)) in enumerate(found.items()):
            before = nearest(lines, run, measure)
            text = run
            if before is not None and before["run"] in found:
                there, than = found[before["run"]]
                axis.plot([there, x], [than["psnr"], q["psnr"]], color="0.6", zorder=1)
                text += "\n" + change(q, before).partition(" (")[0]
            axis.plot(x, q["psnr"], "o", color="C0", zorder=2)
            same = [other["psnr"] for budget, other in found.values() if budget == x]
            above = q["psnr"] == max(same) if len(same) > 1 else k % 2 == 0  # neighbours get out of each other's way
            axis.annotate(text, (x, q["psnr"]), xytext=(0, 9 if above else -9), textcoords="offset points", fontsize=8, ha="center",
                          va="bottom" if above else "top")  # fmt: skip
        still = [q["figures"]["still picture"] for _, q in found.values() if "still picture" in q["figures"]]
        if still:
            axis.axhline(still[-1], color="0.4", linestyle=":", linewidth=1)
            axis.annotate("still picture", (0.01, still[-1]), xycoords=("axes fraction", "data"), va="bottom", fontsize=8, color="0.4")
        axis.set(title=textwrap.fill(f"{measure}: PSNR to truth, dB; change since the ancestor [95 %]", 80))
        axis.margins(y=0.15)
    if curves:
        for x in curves:
            before = cumulative(lines, x["run"]) - x["flops"]
            axes[-1].plot([(before + f) / 1e12 for f, _ in x["curve"]], [v for _, v in x["curve"]], "o-", label=x["run"])
        axes[-1].set(title="while training, on held-out walks of each run's own data: PSNR to truth, dB")
        axes[-1].legend()
    for axis in axes:
        axis.set_xscale("log", base=2)
        budgets = [float(x) for line in axis.lines if line.get_marker() == "o" for x in line.get_xdata()] or [1.0]
        least, most = min(budgets), max(budgets)
        marks = [least * 2**k for k in range(2 + int(np.log2(most / least)))]
        axis.set_xticks(marks, [f"{x:,.0f}" for x in marks])
        axis.minorticks_off()
        axis.set_xlim(least / 1.2, 1.2 * max(most, 1.3 * least))
        axis.set_xlabel("TFLOP of training behind the weights; each mark is twice the one before")
        axis.grid(axis="x", color="0.9")
    figure.savefig(path, dpi=100)


def write_page(lines: Lines, page: Path, picture: Path) -> None:
    """Write `page` and `picture`; notes of one's own, beside the ledger in ``<name>-notes.md``, go into the page."""
    plot(lines, picture)
    notes = picture.with_name(picture.stem + "-notes.md")
    root = Path(os.path.relpath(page.parents[1], page.parent)).as_posix()
    here = Path(os.path.relpath(picture, page.parent)).as_posix()
    data = here.removesuffix(".png") + ".jsonl"
    page.write_text(markdown(lines, data, here, root, notes.read_text() if notes.exists() else ""))
