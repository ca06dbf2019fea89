"""A stage's log as a picture: loss by step, and what the samples at the end of each slice measured."""

from __future__ import annotations

import json
from pathlib import Path


def _rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def plot_log(folder: Path, title: str) -> Path:
    """Write ``curves.png`` from ``log.jsonl`` and ``slices.jsonl`` in `folder`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    log, slices = _rows(folder / "log.jsonl"), _rows(folder / "slices.jsonl")
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), constrained_layout=True)
    losses = [k for k in ("generator", "fake") if log and k in log[-1]] or ["loss"]
    for key in losses:
        steps, loss = zip(*((r["step"], r[key]) for r in log if key in r), strict=True) if log else ((), ())
        left.plot(steps, loss, color="0.8", linewidth=0.8)
        window = max(1, len(loss) // 40)
        smooth = [sum(loss[max(0, i - window) : i + 1]) / (i + 1 - max(0, i - window)) for i in range(len(loss))]
        left.plot(steps, smooth, label=key)
    if len(losses) > 1:
        left.legend()
    left.set(title=f"{title}: loss", xlabel="step", yscale="log")
    measured = [k for k in (slices[-1] if slices else {}) if k not in ("step", "seconds", "flops")]
    for key in measured:
        right.plot([r["step"] for r in slices if key in r], [r[key] for r in slices if key in r], marker="o", label=key)
    right.set(title="held-out walks, PSNR in dB", xlabel="step")
    if measured:
        right.legend()
    figure.savefig(folder / "curves.png", dpi=100)
    plt.close(figure)
    return folder / "curves.png"
