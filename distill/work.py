"""What training costs: hardware, seconds, samples and FLOPs of every slice of a stage, for the ledger (`distill.ledger`).

FLOPs are those of `torch.utils.flop_counter.FlopCounterMode`: a multiplication and an addition are two, in matrix products,
convolutions and attention, of real training steps: forward, backward and optimiser, in all processes. What is looked up, normalised or
added element by element is not counted. Steps of one shape cost the same, so the first of each shape in a run is counted and stands for
the others; counting changes no number. The peak to compare with is the best of a few products of float32 matrices on the same machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from distill.flops import ON_CPU

_WHOLE = {torch.ops.aten.silu_backward.default: lambda *_, **__: 0}
"""What the counter would take apart, and so round in another way, unless it knows it."""


class Step(NamedTuple):
    """What a training step works on: sequences of so many latent frames, and a name for whatever else decides what it costs."""

    sequences: int = 0
    latents: int = 0
    kind: str = ""

    def __str__(self) -> str:
        return f"{self.sequences}x{self.latents} {self.kind}".strip()


def flop_counter() -> FlopCounterMode:
    """Counts FLOPs of what runs inside it; attention over a mask counts whole."""
    return FlopCounterMode(display=False, custom_mapping=ON_CPU | _WHOLE)


def processor() -> str:
    """Name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def hardware(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """What a slice ran on, `processes` times."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {"device": name, "threads": torch.get_num_threads(), "processes": processes, "torch": torch.__version__}


def gemm_peak(device: torch.device) -> float:
    """FLOP/s of a product of two float32 matrices: the best of five, within a second; measured once a process."""
    return _gemm_peak(str(device), torch.get_num_threads())


@lru_cache
def _gemm_peak(device: str, threads: int) -> float:
    n = 8192 if device.startswith("cuda") else 1536
    a, b = (torch.full((n, n), x, device=device) for x in (0.5, 2.0))
    best = float("inf")
    for _ in range(6):  # the first one warms up, and hardly ever is the best
        started = time.perf_counter()
        c = a @ b
        float(c[0, 0])  # waits for a GPU
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Short hash of a transformer's weights as float16, in which models are exported.

    So a stage's model, its export, and what starts from it have the same; of an export it is that in `WorldModel.fingerprint`.
    """
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().half().float().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


class Work:
    """The account of one stage: `slices`, a list of plain dictionaries, the last one being the slice that runs.

    It goes into the checkpoint, so that it tells of the steps that are in the weights and of no others; ``work.jsonl`` is a copy.

    Attributes:
        origin: what is written into every slice: the recipe, and what its weights started from.
    """

    def __init__(self, device: torch.device, processes: int = 1) -> None:
        self.device, self.processes = device, processes
        self.origin: dict[str, Any] = {}
        self.slices: list[dict[str, Any]] = []
        self._known: dict[str, int] = {}  # FLOPs of a step of each shape, in one process

    def begin(self, step: int) -> None:
        """A slice begins, before step number `step`."""
        self.slices = [s for s in self.slices if s["steps"][0] < s["steps"][1]]  # in some nothing was done
        alike = [s for s in self.slices if s.get("digest") == self.origin.get("digest")]
        self._known = {shape: flops for s in alike for shape, flops in s["step_flops"].items()}
        amounts = {"steps": [step, step], "seconds": 0.0, "sequences": 0, "latent_frames": 0, "flops": 0, "step_flops": {}}
        where = hardware(self.device, self.processes) | {"gemm": self.processes * gemm_peak(self.device)}
        self.slices.append(amounts | self.origin | {"hardware": where})

    @contextmanager
    def step(self, what: Step) -> Iterator[None]:
        """Around one training step, which is booked when it is through."""
        shape, now = str(what), self.slices[-1]
        counter = None if shape in self._known else flop_counter()
        started = time.perf_counter()
        with counter or nullcontext():
            yield
        seconds = time.perf_counter() - started
        if counter is not None:
            self._known[shape] = now["step_flops"][shape] = counter.get_total_flops()
        now["steps"] = [now["steps"][0], now["steps"][1] + 1]
        now["seconds"] += seconds
        now["sequences"] += what.sequences
        now["latent_frames"] += what.sequences * what.latents
        now["flops"] += self.processes * self._known[shape]

    @property
    def flops(self) -> int:
        """All FLOPs so far."""
        return sum(s["flops"] for s in self.slices)

    def write(self, path: Path) -> None:
        part = path.with_suffix(".part")
        part.write_text("".join(json.dumps(s) + "\n" for s in self.slices))
        os.replace(part, path)
