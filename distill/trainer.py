"""The one small trainer that every stage shares: steps, schedule, EMA, log, checkpoints, resume, time slices.

A stage gives a loss for a step number; everything random in it comes from (seed, step), so a run that was interrupted and
resumed equals one that was not.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from distill.checkpoint import strip_prefix, with_prefix
from distill.curves import plot_log
from distill.optim import Optimisers
from distill.parallel import ALONE, Ranks, clip_gradients, finite, load_state, postponed_signals, save_state
from distill.work import Step, Work

SAVE_SECONDS = 120.0
SAMPLE_STEPS = 500  # a sheet of samples after so many steps, and at the end of every slice


class Deadline:
    """When the slice ends."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    @property
    def passed(self) -> bool:
        return time.monotonic() > self.end

    @property
    def seconds_left(self) -> float:
        return max(0.0, self.end - time.monotonic())


def schedule(step: int, total: int, warmup: int, decay: float) -> float:
    """Warm-up, constant, then linear to zero over the last `decay` share of the steps."""
    up = min(1.0, (step + 1) / max(1, warmup))
    down = min(1.0, (total - step) / max(1.0, decay * total))
    return max(0.0, min(up, down))


def phase(curriculum: Sequence[tuple[float, int, int]], step: int, steps: int) -> tuple[int, int]:
    """Latent frames and batch at a step, of a curriculum of (share of the steps from which it holds, latent frames, batch)."""
    return next((latents, batch) for share, latents, batch in reversed(curriculum) if step >= share * steps)


class EMA:
    """Exponential moving average of the weights, quick at the start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        keep = min(self.decay, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.weights[name].lerp_(value, 1 - keep)
            else:
                self.weights[name].copy_(value)


class Trainer:
    """Trains `model` for `steps` steps in `folder`, a slice at a time.

    Args:
        model: what is trained and stored; a `ModuleDict` of several networks will do.
        loss: `loss(step) -> (scalar tensor, {name: float})`; a loss without a graph has done its own backward pass.
        turn: `turn(step)` is the index of the one optimiser that steps (default: all step). Then the averaged weights follow
            the steps of optimiser 0.
        averaged: the part of the model whose weights are averaged (default: all of it).
        shape: `shape(step)` is what a step works on, for the account of its cost (`work`); equal ones must cost the same FLOPs.
        sample: called with the folder every `SAMPLE_STEPS` steps and at the end of every slice, with the averaged weights in the model.
        ranks: the processes that train, `model` being sharded over them (`parallel.parallelise`). All take every step, save and
            sample together; the main one alone keeps the log, what `sample` draws and the numbers it returns.
    """

    def __init__(
        self, name: str, folder: Path, model: nn.Module, optimisers: Optimisers, loss: Callable[[int], tuple[Tensor, dict[str, float]]],
        *, steps: int, warmup: int = 50, decay: float = 0.3, ema: float = 0.998, clip: float = 1.0,
        sample: Callable[[Path], dict[str, Any] | None] | None = None,
        turn: Callable[[int], int] | None = None, averaged: nn.Module | None = None, shape: Callable[[int], Step] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.name, self.folder, self.model, self.optimisers, self.loss = name, Path(folder), model, optimisers, loss
        self.steps, self.warmup, self.decay, self.clip, self.sample = steps, warmup, decay, clip, sample
        self.turn, self.averaged = turn, model if averaged is None else averaged
        self.shape = shape or (lambda _: Step())
        self.ranks = ranks
        self.work = Work(next(model.parameters()).device, ranks.world)
        self.ema = EMA(self.averaged, ema)
        self.step, self.seconds = 0, 0.0
        self.folder.mkdir(parents=True, exist_ok=True)
        self._resume()

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def run(self, deadline: Deadline) -> bool:
        """Train until done or the deadline; returns whether the stage is done. Ctrl-C saves first, unless in the middle of an update.

        Several processes stop after the same step, as soon as the deadline of any has passed or any was interrupted.
        """
        if self.done:
            return True
        with postponed_signals(self.ranks) as signals:
            self._train(deadline, signals)
        if self.sample is not None:
            self.sample_now()
        return self.done

    def _train(self, deadline: Deadline, signals: list[int]) -> None:
        ranks = self.ranks
        self.model.train()
        self.optimisers.zero_grad()  # an interrupted step may have left some
        self.work.begin(self.step)
        started, saved = time.monotonic(), time.monotonic()
        before = self.seconds
        bar = tqdm(total=self.steps, initial=self.step, desc=self.name, unit="step", mininterval=5, disable=not ranks.main)
        log = (self.folder / "log.jsonl").open("a", buffering=1) if ranks.main else None
        recent: list[tuple[Tensor, dict[str, float]]] = []
        whole = True  # False while weights, average and step number do not belong together
        agreed = ranks.world == 1  # whether all processes save; one that fails alone must not wait for the others
        try:
            while True:
                over, interrupted, due = ranks.any(deadline.passed, bool(signals), time.monotonic() - saved > SAVE_SECONDS)
                if self.done or over or interrupted:
                    agreed = True
                    break
                if due:
                    self.save()
                    saved = time.monotonic()
                with self.work.step(self.shape(self.step)):
                    loss, numbers = self.loss(self.step)
                    if loss.requires_grad:
                        loss.backward()
                    norm = clip_gradients(self.model.parameters(), self.clip)
                    if not math.isfinite(norm):
                        raise FloatingPointError(
                            f"{self.name}: the gradient is not finite at step {self.step}; the last checkpoint is kept."
                        )
                    turn = None if self.turn is None else self.turn(self.step)
                    whole = False
                    self.optimisers.step(schedule(self.step, self.steps, self.warmup, self.decay), turn)
                    if not turn:
                        self.ema.update(self.averaged, self.step)
                self.step += 1
                whole = True
                self.seconds = before + time.monotonic() - started
                recent.append((loss.detach(), numbers))
                if self.step % 10 == 0 or self.done:  # means since the last row
                    value = ranks.mean(torch.stack([x for x, _ in recent]).mean())
                    seen = {k: [x[k] for _, x in recent if k in x] for k in numbers}
                    numbers = {k: ranks.mean(torch.tensor(v, dtype=torch.float64).mean()) for k, v in seen.items()}
                    recent.clear()
                    row = {"step": self.step, "seconds": round(self.seconds, 1), "loss": round(value, 5), "grad": round(norm, 4)}
                    if log is not None:
                        log.write(json.dumps(row | {k: round(v, 5) for k, v in numbers.items()}) + "\n")
                    bar.set_postfix(loss=f"{value:.4f}", **{k: f"{v:.3f}" for k, v in numbers.items()}, refresh=False)
                bar.update()
                if self.sample is not None and self.step % SAMPLE_STEPS == 0 and not self.done:
                    self.sample_now()
        finally:
            bar.close()
            if log is not None:
                log.close()
            if agreed and whole and finite(self.model.parameters(), ranks):
                self.save()
        if interrupted:
            raise KeyboardInterrupt

    def sample_now(self) -> None:
        live = {k: v.clone() for k, v in self.averaged.state_dict().items()}
        self.averaged.load_state_dict(self.ema.weights)
        self.model.eval()
        try:
            if self.ranks.main:
                numbers = self.sample(self.folder)
            else:  # takes part in every forward pass of sharded weights; what it draws is not kept
                with tempfile.TemporaryDirectory() as folder:
                    numbers = self.sample(Path(folder)) and None
            if numbers:
                with (self.folder / "slices.jsonl").open("a") as f:
                    row = {"step": self.step, "seconds": round(self.seconds, 1), "flops": self.work.flops}
                    f.write(json.dumps(row | numbers) + "\n")
                plot_log(self.folder, self.name)
        finally:
            self.averaged.load_state_dict(live)
            self.model.train()

    # -- checkpoints -------------------------------------------------------------------------------------------------------
    def save(self) -> None:
        tensors = (
            with_prefix("model", self.model.state_dict())
            | with_prefix("ema", self.ema.weights)
            | with_prefix("optimiser", self.optimisers.state_tensors())
        )
        meta = {"step": self.step, "seconds": self.seconds, "work": self.work.slices}
        save_state(self.folder / "checkpoint", tensors, meta, self.ranks)
        if self.ranks.main:
            self.work.write(self.folder / "work.jsonl")

    def _resume(self) -> None:
        found = load_state(self.folder / "checkpoint", self.model, self.optimisers, self.averaged)
        if found is None:
            return
        tensors, meta = found
        try:
            self.model.load_state_dict(strip_prefix("model", tensors))
        except RuntimeError as error:
            raise ValueError(f"{self.name}: the checkpoint in {self.folder} is of another shape; use another --out. ({error})") from error
        device = next(self.model.parameters()).device
        self.ema.weights = {k: v.to(device) for k, v in strip_prefix("ema", tensors).items()}
        self.optimisers.load_state_tensors(strip_prefix("optimiser", tensors))
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])
        self.work.slices = meta.get("work", [])  # checkpoints from before there was an account have none


def generator(seed: int, step: int) -> torch.Generator:
    """The random generator of one step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) & 0x7FFF_FFFF_FFFF_FFFF)
