"""What a trial found, as Markdown."""

from __future__ import annotations

import os
import platform
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np


@dataclass
class Report:
    """A table, sentences below it, and what should hold: (sentence, whether it does)."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    claims: list[tuple[str, bool]] = field(default_factory=list)
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    began: float = field(default_factory=time.monotonic)

    @property
    def passed(self) -> bool:
        return all(holds for _, holds in self.claims)

    def add(self, *cells: object) -> None:
        self.rows.append(cells)
        print(f"{self.title}: {' | '.join(map(str, cells))}", file=sys.stderr, flush=True)

    def markdown(self) -> str:
        lines = [" | ".join(self.columns), " | ".join("---" for _ in self.columns), *(" | ".join(map(str, row)) for row in self.rows)]
        conditions = (
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
            f"torch {version('torch')}; load of the machine before the start {self.load_before:.1f}, {time.monotonic() - self.began:.0f} s"
        )
        claims = [f"- {'yes' if holds else '**no**'}: {sentence}" for sentence, holds in self.claims]
        parts = [f"### {self.title}", conditions, "\n".join(f"| {line} |" for line in lines), "\n".join(claims), "\n".join(self.notes)]
        return "\n\n".join(part for part in parts if part)


def percentile(values: list[float], q: float) -> float:
    """NaN when there are none."""
    return float(np.percentile(values, q)) if values else float("nan")
