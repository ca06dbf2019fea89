"""What a run would cost before it is started: ``python -m distill.plan wan-14b --gpus 8``.

Counts parameters on the meta device, memory per GPU of distilling a generator from a frozen real score with a trained fake
score (three models of one size, every weight sharded over all GPUs, one video per GPU), and FLOPs per step.

Activations. Per block a forward pass keeps for the backward pass, of L tokens of width D and a feed-forward width F, in
bytes, b being those of the compute dtype (4: float32, 2: bfloat16)::

    full(L) = L (10 b D + 12 * 4 D + 2 b F)

Ten L x D tensors in the compute dtype: inputs of the five groups of linear layers, queries, keys and values of
self-attention, queries of cross-attention, the output that is gated. Twelve in float32: inputs of the three layer norms,
outputs of two, output of the feed-forward, and two for each of three RMS norms (fused RMS norms keep less). And the
feed-forward before and after its activation. Keys and values of M text tokens are kept in any case,
``text = M D (2 b + 2 * 4)`` a block. So, of N blocks::

    without checkpointing   N (full(L) + text)
    with checkpointing      N (b L D + text) + full(L)        every block's input, and one block being recomputed
    with replay             the same, L being the tokens of one chunk instead of the whole video (RELIC, section 4.4.2)

Memory of a masked pass over a whole sequence (the mask, [L, keys] in each layer) is not in it, nor are fragmentation and
communication buffers: leave a tenth free.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import torch

from distill.recipe import Recipe, RecipeError, load_recipe
from worldmodel.memory import CompressedMemory, MemoryConfig
from worldmodel.text import TextConfig
from worldmodel.transformer import CausalWorldTransformer

GIB = 2**30
WAN_CHANNELS, WAN_STRIDE, WAN_TEXT = 16, 8, 512


def activation_bytes(tokens: int, dim: int, ffn_dim: int, layers: int, text: int = 0, size: int = 2, checkpointing: bool = False) -> int:
    """Bytes kept for the backward pass of `layers` blocks, by the formula above; `size` is that of the compute dtype."""
    full = tokens * (10 * size * dim + 48 * dim + 2 * size * ffn_dim)
    kept = text * dim * (2 * size + 8)
    return layers * (size * tokens * dim + kept) + full if checkpointing else layers * (full + kept)


def forward_flops(config: Any, tokens: int, keys: int, text: int = 0) -> float:
    """Multiplications and additions of one forward pass of `tokens` queries that look at `keys` keys, text encoded before.

    Two per weight and token, four per query, key and channel in attention.
    """
    dim = config.num_attention_heads * config.attention_head_dim
    patch = config.patch_size[1] * config.patch_size[2]
    block = 2 * tokens * (6 * dim**2 + 2 * dim * config.ffn_dim) + 4 * tokens * (keys + text) * dim
    return config.num_layers * block + 2 * tokens * dim * patch * (config.in_channels + config.out_channels)


def seen_tokens(memory: MemoryConfig, count: int, grid: tuple[int, int]) -> int:
    """Tokens in the memory after `count` latent frames."""
    window = min(count, memory.window)
    return window * grid[0] * grid[1] + sum(memory.tokens(i, grid) for i in range(count - window))


@dataclass(frozen=True)
class Plan:
    """One distillation step of a recipe; bytes are per GPU."""

    parameters: int
    camera_parameters: int
    gpus: int
    latents: int
    chunk: int
    latent_tokens: int
    stages: dict[str, int]
    memory: dict[str, float]
    activations: dict[str, float]
    flops: dict[str, float]

    @property
    def tokens(self) -> int:
        """Tokens of one video."""
        return self.latents * self.latent_tokens

    def held(self, model: str) -> float:
        """Bytes of a model ("generator", "real score", "fake score"): its weights and what its training keeps beside them."""
        return sum(v for k, v in self.memory.items() if k.partition(": ")[2].startswith(model))

    @property
    def total(self) -> float:
        """Bytes with checkpointing and replay; generator and fake score hold activations one after the other."""
        at_once = max(self.activations[k] for k in ("generator, replay and checkpointing", "fake score, checkpointing"))
        return sum(self.memory.values()) + at_once

    def __str__(self) -> str:
        def rows(title: str, values: dict[str, float], unit: float, name: str) -> list[str]:
            return [title, *(f"  {k:<44}{v / unit:12,.2f} {name}" for k, v in values.items())]

        head = [
            f"parameters of each of three models  {self.parameters / 1e9:.3f} B, of which camera {self.camera_parameters / 1e9:.3f} B",
            f"tokens of a video                   {self.latents} latents x {self.latent_tokens:,} = {self.tokens:,}",
            f"tokens of a step                    {self.gpus} GPUs, one video each: {self.gpus * self.tokens:,}",
            *(f"  of the stage {name:<21} {tokens:,} in a batch of its longest clips" for name, tokens in self.stages.items()),
        ]
        models = {name: self.held(name) for name in ("generator", "real score", "fake score")}
        parts = rows("the three models, all that is kept of each, per GPU", models, GIB, "GiB")
        parts += rows("memory per GPU", self.memory, GIB, "GiB")
        parts += rows("activations per GPU", self.activations, GIB, "GiB")
        total = [f"  {'all, with replay and checkpointing':<44}{self.total / GIB:12,.2f} GiB"]
        return "\n".join(head + parts + total + rows("FLOPs of a step on each GPU", self.flops, 1e15, "PFLOP"))


def geometry(recipe: Recipe) -> tuple[dict[str, Any], tuple[int, int], int]:
    """Arguments of the transformer, latent size (h, w) and text tokens of a recipe."""
    text, stride, channels = TextConfig(), 16, recipe.autoencoder.latent_channels
    given = getattr(recipe, "teacher" if "teacher" in recipe.stages else "causal").transformer
    if given.get("in_channels") == WAN_CHANNELS:
        return dict(given), tuple(x // WAN_STRIDE for x in recipe.data.shape), WAN_TEXT
    latent = tuple(x // stride for x in recipe.data.shape)
    return {"in_channels": channels, "out_channels": channels, "text_dim": text.dim} | given, latent, text.length


def step_tokens(recipe: Recipe, latent_tokens: int) -> dict[str, int]:
    """Tokens in the batch of a step of each of the recipe's stages, where its clips are longest."""
    out = {}
    for name in recipe.stages:
        r = getattr(recipe, name)
        batch = r.batch if name == "student_init" else max(r.curriculum, key=lambda phase: phase[1])[2]
        out[name] = batch * recipe.longest(name) * latent_tokens
    return out


def count_parameters(arguments: dict[str, Any]) -> tuple[CausalWorldTransformer, int, int]:
    """The model on the meta device, its parameters, and those of RELIC's camera parts among them."""
    with torch.device("meta"):
        model = CausalWorldTransformer(**arguments)
    camera = ("action_", "pose_")
    ours = sum(p.numel() for n, p in model.named_parameters() if any(part.startswith(camera) for part in n.split(".")))
    return model, sum(p.numel() for p in model.parameters()), ours


def make_plan(recipe: Recipe, gpus: int, latents: int | None = None) -> Plan:
    """Cost of one generator update and of the updates of the fake score that go with it (Self-Forcing: 5)."""
    r = recipe.self_forcing if "self_forcing" in recipe.stages else recipe.causal
    critic_steps, optimiser = recipe.self_forcing.critic_per_generator, getattr(r, "optimiser", "adamw")
    latents = r.memory.horizon if latents is None else latents
    if gpus < 1 or latents < 2:
        raise ValueError(f"A plan is for 1 GPU or more and 2 latents or more, got {gpus} and {latents}.")
    arguments, latent_size, text = geometry(recipe)
    model, parameters, camera = count_parameters(arguments)
    c, grid = model.config, model.grid(latent_size)
    dim, n = c.num_attention_heads * c.attention_head_dim, grid[0] * grid[1]
    size = 2  # bfloat16
    block = sum(p.numel() for p in model.blocks[0].parameters())
    outside = parameters - block * c.num_layers

    # 1. Memory: masters, gradients and averages in float32, frozen weights in bfloat16, two blocks gathered at a time
    states = parameters + outside if optimiser == "muon" else 2 * parameters
    cache = CompressedMemory(
        replace(r.memory, horizon=max(latents, r.memory.window + 1)), c.num_layers, c.num_attention_heads, c.attention_head_dim, grid,
        chunk=r.chunk, device="meta", dtype=torch.bfloat16,
    )  # fmt: skip
    memory = {
        "weights: generator": 4 * parameters / gpus,
        "weights: real score, frozen": 2 * parameters / gpus,
        "weights: fake score": 4 * parameters / gpus,
        "weights gathered for use": 2 * (3 * outside + 2 * block) if gpus > 1 else 0.0,
        "gradients: generator": 4 * parameters / gpus,
        "gradients: fake score": 4 * parameters / gpus,
        f"optimiser states ({optimiser}): generator": 4 * states / gpus,
        f"optimiser states ({optimiser}): fake score": 4 * states / gpus,
        "average of weights (EMA): generator": 4 * parameters / gpus,
        "KV cache of the roll-out": cache.num_bytes,
    }
    shape = dict(dim=dim, ffn_dim=c.ffn_dim, layers=c.num_layers, text=text, size=size)
    activations = {
        "generator, whole video": activation_bytes(latents * n, **shape),
        "generator, whole video, checkpointing": activation_bytes(latents * n, **shape, checkpointing=True),
        "generator, replay": activation_bytes(r.chunk * n, **shape),
        "generator, replay and checkpointing": activation_bytes(r.chunk * n, **shape, checkpointing=True),
        "fake score": activation_bytes(latents * n, **shape),
        "fake score, checkpointing": activation_bytes(latents * n, **shape, checkpointing=True),
    }

    # 2. FLOPs: each chunk is denoised in some steps and then written clean; backward is two forwards, recomputing one more
    once = sum(
        forward_flops(c, (end - start) * n, (end - start) * n + seen_tokens(r.memory, start, grid), text)
        for start, end in _chunks(latents, r.chunk)
    )
    roll_out = (r.sampler.steps + 1) * once
    whole = forward_flops(c, latents * n, latents * n, text)
    flops = {
        f"roll-out, {r.sampler.steps} denoising steps + clean pass": roll_out,
        "real score, with and without text": 2 * whole,
        "fake score": whole,
        "replay: forward, recompute, backward": 4 * once,
        "generator update": roll_out + 3 * whole + 4 * once,
        "fake score update, with its own roll-out": roll_out + 4 * whole,
        f"generator update + {critic_steps} of the fake score": roll_out + 3 * whole + 4 * once + critic_steps * (roll_out + 4 * whole),
    }
    return Plan(parameters, camera, gpus, latents, r.chunk, n, step_tokens(recipe, n), memory, activations, flops)


def _chunks(latents: int, chunk: int) -> list[tuple[int, int]]:
    """Start and end of every chunk after the start picture."""
    return [(i, min(i + chunk, latents)) for i in range(1, latents, chunk)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m distill.plan", description="Parameters, memory and FLOPs of distilling a recipe, before it is started."
    )
    parser.add_argument("recipe", help="name of a recipe (tiny, wan-1.3b, wan-14b) or a path to a YAML file")
    parser.add_argument("--gpus", type=int, default=8, help="GPUs that share the weights")
    parser.add_argument("--latents", type=int, help="latent frames of a video (default: the memory's horizon)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides, for example causal.chunk=1")
    args = parser.parse_args(argv)
    try:
        plan = make_plan(load_recipe(args.recipe, args.set), args.gpus, args.latents)
    except (RecipeError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    print(plan)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
