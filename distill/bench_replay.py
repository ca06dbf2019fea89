"""What replayed back-propagation saves: ``python -m distill.bench_replay``, a Markdown table.

One generator gradient (roll-out and backward pass, the scores left out) by replay and by one graph over all blocks, each in a
process of its own. Activations are the bytes of all distinct storages that autograd keeps for the backward pass, at their
highest, weights not counted; RSS is how much the process's peak memory grew.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import resource
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.dmd import Condition
from distill.recipe import RecipeError, load_recipe
from distill.replay import full_graph_backward, replay_backward
from distill.rollout import RollOutConfig, roll_out
from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.camera import integrate, pose_code
from worldmodel.sampling import SamplerConfig
from worldmodel.text import TextConfig
from worldmodel.transformer import CausalWorldTransformer


class SavedBytes:
    """Counts what autograd keeps while the context is open: bytes of distinct storages now, and at their highest."""

    def __init__(self, *not_counted: Tensor) -> None:
        self.weights = {x.untyped_storage().data_ptr() for x in not_counted}
        self.holders: Counter[int] = Counter()
        self.now = self.peak = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept.tensor)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> _Kept:
        return _Kept(self, tensor.detach())

    def add(self, storage: torch.UntypedStorage, holders: int) -> None:
        address = storage.data_ptr()
        if address in self.weights:
            return
        before = self.holders[address] > 0
        self.holders[address] += holders
        after = self.holders[address] > 0
        self.now += (after - before) * storage.nbytes()
        self.peak = max(self.peak, self.now)


class _Kept:
    """A tensor that autograd keeps; counted as long as it lives."""

    def __init__(self, counter: SavedBytes, tensor: Tensor) -> None:
        self.counter, self.tensor = counter, tensor
        counter.add(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.counter.add(self.tensor.untyped_storage(), -1)


@dataclass(frozen=True)
class Case:
    """One measurement: a model's shape, how it plays, and how the gradient is taken."""

    transformer: dict[str, Any]
    config: RollOutConfig
    latents: int
    grid: int
    batch: int
    replay: bool
    threads: int


@dataclass(frozen=True)
class Row:
    saved: int  # bytes
    rss: int  # bytes
    seconds: float


def measure(case: Case) -> Row:
    """Peak memory and time of one generator gradient."""
    torch.set_num_threads(case.threads)
    torch.manual_seed(0)
    model = CausalWorldTransformer(**case.transformer)
    channels, frames = model.config.in_channels, 1 + 4 * (case.latents - 1)
    text = torch.randn(case.batch, TextConfig().length, model.config.text_dim)
    actions = torch.rand(case.batch, frames, 13)
    poses = torch.from_numpy(np.stack([pose_code(integrate(a.numpy())) for a in actions]))
    condition = Condition(text, actions, poses)
    autoencoder = TinyAutoencoder(channels, depth_widths=(48, 80, 128)).requires_grad_(False)  # of the camera view, if the model has one
    config = replace(case.config, autoencoder=autoencoder)
    start = torch.randn(case.batch, channels, 1, case.grid, case.grid)
    difference = torch.randn(case.batch, channels, case.latents, case.grid, case.grid)
    roll_out(model, start, Condition(text, actions[:, :5], poses[:, :5]), config, seed=0)  # warm-up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    with SavedBytes(*model.parameters(), *autoencoder.parameters(), *autoencoder.buffers()) as saved:
        played = roll_out(model, start, condition, config, seed=1, graph=not case.replay)
        if case.replay:
            replay_backward(model, played, difference)
        else:
            full_graph_backward(played, difference)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Row(saved.peak, (after - before) * 1024, seconds)


def table(latents: list[int], rows: list[tuple[Row, Row]]) -> str:
    """Markdown of (full graph, replay) rows."""
    lines = [
        "| latent frames | activations: full graph | replay | ratio | RSS: full graph | replay | time: full graph | replay |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for n, (full, replay) in zip(latents, rows, strict=True):
        sizes = [f"{x / 2**20:,.1f} MiB" for x in (full.saved, replay.saved)]
        rss = [f"{x / 2**20:,.0f} MiB" for x in (full.rss, replay.rss)]
        ratio = f"{full.saved / max(1, replay.saved):.1f}x"
        cells = [str(n), *sizes, ratio, *rss, f"{full.seconds:.2f} s", f"{replay.seconds:.2f} s"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.bench_replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="tiny", help="recipe whose causal model is measured")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, for example causal.transformer.num_layers=2")
    parser.add_argument("--latents", type=int, nargs="+", default=[21, 40, 80], help="lengths; 21, 40 and 80 are 5, 10 and 20 s")
    parser.add_argument("--grid", type=int, default=8, help="height and width of a latent frame (8: 128x128 pixels)")
    parser.add_argument("--steps", type=int, default=4, help="denoising steps; every block exits at the last")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args(argv)
    try:
        recipe = load_recipe(args.recipe, args.set)
    except RecipeError as error:
        parser.exit(2, f"{error}\n")
    causal, channels = recipe.causal if "causal" in recipe.stages else recipe.self_forcing, recipe.autoencoder.latent_channels
    made = recipe.transformer(recipe.stages[-1], in_channels=channels, out_channels=channels, text_dim=TextConfig().dim)
    transformer = dataclasses.asdict(made)
    config = RollOutConfig(causal.memory, SamplerConfig(args.steps, causal.sampler.shift, stochastic=True), causal.chunk)
    cases = [Case(transformer, config, n, args.grid, args.batch, replay, args.threads) for n in args.latents for replay in (False, True)]
    rows = []
    for case in tqdm(cases, desc="measure", unit="gradient"):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
            rows.append(alone.submit(measure, case).result())
    print(table(args.latents, list(zip(rows[::2], rows[1::2], strict=True))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
