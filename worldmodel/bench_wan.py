"""How fast models of Wan's shapes are here, with random weights: per stage, against the chip's peak, and against a plain loop.

Random weights cost what trained ones cost. `scale` shrinks width, depth and both sides of the picture alike, so that a shape can be run
where the whole one does not fit; its figures are those of the small shape and say nothing about the whole one's frames a second.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import psutil
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from worldmodel import bench, fitting
from worldmodel.actions import Action, to_array
from worldmodel.autoencoder import WanAutoencoder
from worldmodel.batch import encode_camera
from worldmodel.configs import MemoryConfig, SamplerConfig
from worldmodel.memory import CompressedMemory
from worldmodel.model import ModelConfig, WorldModel
from worldmodel.plain_loop import PlainLoop
from worldmodel.runtime import RuntimeConfig, apply_runtime
from worldmodel.sampling import denoise_and_keep
from worldmodel.text import PromptCache, TextConfig, TextEncoder
from worldmodel.transformer import CausalWorldTransformer

SHAPES = {"wan-1.3b": (12, 8960, 30), "wan-14b": (40, 13824, 40)}
"""Heads, width of the feed-forward layer, and blocks."""
SIZE, HEAD_DIM, TEXT, VAE_WIDTH = (480, 832), 128, (512, 4096), 96
PUBLISHED_WINDOW = 21
"""Latent frames that Self-Forcing's cache has."""


def random_model(
    name: str, scale: float = 1.0, device: str | None = None, runtime: RuntimeConfig | None = None, memory: str | None = None
) -> WorldModel:
    """A model of shape `name` in `SHAPES` as recipes/wan-1.3b.yaml plays it, with random weights; bfloat16 on CUDA."""
    if not 0 < scale <= 1:
        raise ValueError(f"--scale is above 0 and at most 1, got {scale:g}.")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if where.type == "cuda" else torch.float32
    heads, ffn, layers = (max(1, round(n * scale)) for n in SHAPES[name])
    size = tuple(max(32, 16 * round(n * scale / 16)) for n in SIZE)
    length, dim = (max(16, round(n * scale)) for n in TEXT)
    runtime, memory_config = runtime or RuntimeConfig(), MemoryConfig(window=9, horizon=80)
    memory_config = memory_config.named(memory) if memory else memory_config

    def made(device: torch.device | str) -> tuple[AutoencoderKLWan, CausalWorldTransformer]:
        with torch.device(device):
            vae = AutoencoderKLWan(base_dim=max(8, 8 * round(VAE_WIDTH * scale / 8)))
        with torch.device(device if device == "meta" else runtime.weights_device(where)):
            shape = dict(num_attention_heads=heads, attention_head_dim=HEAD_DIM, ffn_dim=ffn, num_layers=layers, text_dim=dim)
            return vae, CausalWorldTransformer(**shape)

    vae, transformer = made("meta")
    _check(fitting.Wish(transformer, WanAutoencoder(vae), memory_config, size, 3, dtype, 0, length, runtime), where, name)
    torch.manual_seed(0)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # so that nothing of a large shape is ever there in float32
    try:
        vae, transformer = made(where)
    finally:
        torch.set_default_dtype(usual)
    for part, parameter in transformer.named_parameters():
        if any(kept in part for kept in transformer._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    apply_runtime(transformer, runtime, where)
    config = ModelConfig(
        name=f"{name}-random", size=size, chunk=3, memory=memory_config,
        sampler=SamplerConfig(steps=4, stochastic=True), text=TextConfig("umt5", length, dim),
    )  # fmt: skip
    cache = PromptCache(config.text)
    cache.add("", torch.randn(length, dim, generator=torch.Generator().manual_seed(1)))
    return WorldModel(transformer, WanAutoencoder(vae), TextEncoder(config.text, cache=cache), config, runtime=runtime)


def _check(wish: fitting.Wish, device: torch.device, name: str) -> None:
    """Raise `TooLargeError` for a shape that does not fit, with the options of the command that would make it."""
    narrow = {"--kv float8": replace(wish, runtime=replace(wish.runtime, kv="float8"))} if wish.runtime.kv == "same" else {}
    least = replace(wish.runtime, kv="float8", linears="same", offload="layers")
    on_gpu = {"--kv float8 --offload layers": replace(wish, runtime=least)} if device.type != "cpu" else {}
    ways = narrow | {"--memory window": replace(wish, memory=wish.memory.named("window"))} | on_gpu
    fitting.check(wish, device, name, [*ways.items()])


def describe(model: WorldModel) -> str:
    """One line: shape, place and switches."""
    c = model.transformer.config
    tokens = int(np.prod(model.transformer.grid(model.latent_shape[1:])))
    millions = sum(p.numel() for p in model.transformer.parameters()) / 1e6
    where = torch.cuda.get_device_name(model.device) if model.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    switches = [f"{k}={v}" for k, v in asdict(model.runtime).items() if v != getattr(RuntimeConfig(), k)]
    how = ", ".join(switches) or "no switches"
    return (
        f"{model.config.name}: {c.num_layers} blocks, {c.num_attention_heads} heads of {c.attention_head_dim}, feed-forward {c.ffn_dim}, "
        f"{millions:.0f} M parameters in {model.dtype}; {model.size[0]}x{model.size[1]}, {tokens} tokens a latent frame, chunks of "
        f"{model.config.chunk}, {model.config.sampler.steps} steps, memory {model.config.memory.policy}; {where}; {how}"
    )


# -- the stages of a chunk --------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class WanRow(bench.Row):
    """`Row`, and: ms from a start picture to its first frames, bytes in use at most (on CUDA those allocated there, else the process's),
    and how the denoising passes compare with the chip's peaks.
    """

    first_frame: float
    in_use: int
    flops: float  # of one pass
    bytes: float  # of weights, keys and values that one pass reads
    peak_flops: float
    peak_bytes: float
    passes: int

    @property
    def flops_used(self) -> float:
        """Achieved over peak."""
        return self.passes * self.flops / (self.denoise / 1000) / self.peak_flops

    @property
    def bytes_used(self) -> float:
        return self.passes * self.bytes / (self.denoise / 1000) / self.peak_bytes


class Stages:
    """The stages of a chunk, one by one, each waited for."""

    def __init__(self, model: WorldModel) -> None:
        self.model, chunk = model, model.config.chunk
        self.text = model.encode_prompt("")
        frames = chunk * model.autoencoder.temporal_stride
        self.camera = encode_camera(model, [to_array([Action.idle()] * frames)], [np.tile(np.eye(4), (frames, 1, 1))])
        self.noise = self._noise(chunk)
        self.decoder_state = None
        self.reuse = model.runtime.context == "last_step"

    def _noise(self, latents: int) -> Tensor:
        c, h, w = self.model.latent_shape
        return torch.randn(1, c, latents, h, w, generator=torch.Generator().manual_seed(0)).to(self.model.device, self.model.dtype)

    def timed(self, work: Callable[[], object]) -> tuple[float, object]:
        """Seconds until the device is done, and the result."""
        started = time.perf_counter()
        result = work()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter() - started, result

    def memory(self, latents: int) -> CompressedMemory:
        """A memory of `latents` latent frames of random keys and values, the first one alone, the others in chunks.

        Memories that forget by age are not given what they would have forgotten by then, but for the start picture: they count on.
        """
        model, memory = self.model, self.model.new_memory()
        chunk, horizon = model.config.chunk, model.config.memory.horizon
        self._remember(memory, 1)
        if model.config.memory.policy in ("relic", "age"):
            gone = max(0, latents - 1 - horizon) // chunk
            memory.load_state_dict(memory.state_dict() | {"count": torch.tensor(1 + gone * chunk)})
        while memory.count < latents:
            self._remember(memory, chunk)
        return memory

    def _remember(self, memory: CompressedMemory, t: int) -> None:
        """Write `t` latent frames of random keys and values."""
        blocks, dtype = len(self.model.transformer.blocks), self.model.transformer.compute_dtype or self.model.dtype
        memory.look(torch.zeros(1, t, 9))
        heads, head_dim = memory.keys.shape[2], memory.keys.shape[4]
        new = torch.randn(1, t * memory.tokens_per_latent, heads, head_dim, device=self.model.device, dtype=dtype)
        memory.write([new] * blocks, [new] * blocks)

    def denoise(self, memory: CompressedMemory) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        memory.look(torch.zeros(1, self.model.config.chunk, 9))
        model = self.model
        return denoise_and_keep(
            model.transformer, self.noise, self.text, self.camera, memory, model.config.sampler, [generator], keep=self.reuse
        )[0]  # fmt: skip

    @torch.no_grad()
    def write(self, memory: CompressedMemory, latents: Tensor) -> None:
        if self.reuse:
            memory.commit(latents.shape[2])
            return
        time = torch.zeros(1, device=self.model.device)
        self.model.transformer(latents, time, self.text, camera=self.camera, memory=memory, write=True)

    def decode(self, latents: Tensor) -> np.ndarray:
        video, self.decoder_state = self.model.autoencoder.decode_chunk(latents, self.decoder_state)
        return self.model.to_frames(video)


def latents_of(model: WorldModel, seconds: float) -> int:
    """Latent frames of so much history, the start picture's besides."""
    return 1 + round(seconds * model.fps / model.autoencoder.temporal_stride)


def measure(
    model: WorldModel, seconds: Sequence[float], chunks: int = 24, progress: Callable[[str], None] = lambda _: None
) -> list[WanRow]:
    """The rows of the table: medians of `chunks` chunks after so many `seconds` of history, which keeps growing as they are written."""
    stages, rows = Stages(model), []
    progress("first frames")
    first, _ = stages.timed(lambda: model.start(np.zeros((*model.size, 3), dtype=np.uint8)).generate(Action.idle()))
    gemm, copy = peaks(model.device, model.transformer.compute_dtype or model.dtype)
    for at in seconds:
        if model.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(model.device)
        memory = stages.memory(latents_of(model, at))
        tokens, times = memory.num_tokens, []
        for i in range(2 + chunks):
            progress(f"{at:g} s of history, chunk {i + 1} of {2 + chunks}")
            denoising, latents = stages.timed(lambda memory=memory: stages.denoise(memory))
            decoding, frames = stages.timed(lambda latents=latents: stages.decode(latents))
            encoding, _ = stages.timed(lambda frames=frames: bench.encode_jpeg(frames))
            writing, _ = stages.timed(lambda memory=memory, latents=latents: stages.write(memory, latents))
            if i >= 2:
                times.append((denoising, writing, decoding, encoding))
        totals, visible = [sum(t) for t in times], [t[0] + t[2] + t[3] for t in times]
        ms = [1000 * statistics.median(column) for column in zip(*times, strict=True)]
        total = statistics.median(totals)
        in_use = torch.cuda.max_memory_allocated(model.device) if model.device.type == "cuda" else psutil.Process().memory_info().rss
        flops, moved = pass_cost(model, memory)
        rows.append(
            WanRow(
                at, *ms, 1000 * total, 1000 * float(np.percentile(totals, 95)), model.chunk_frames / total,
                1000 * bench.key_to_frame(model, total, visible), tokens, memory.num_bytes / 2**20,
                1000 * first, in_use, flops, moved, gemm, copy, model.config.sampler.steps,
            )
        )  # fmt: skip
    return rows


def pass_cost(model: WorldModel, memory: CompressedMemory) -> tuple[float, float]:
    """Floating-point operations of one denoising pass, and bytes of the blocks' weights, keys and values that it reads.

    Products of matrices in the blocks only: the rest is some thousandths.
    """
    c, blocks = model.transformer.config, model.transformer.blocks
    width = c.num_attention_heads * c.attention_head_dim
    queries = model.config.chunk * memory.tokens_per_latent
    keys, text = memory.num_tokens + queries, model.config.text.length
    linear = 2 * queries * (6 * width**2 + 2 * width * c.ffn_dim)
    attention = 4 * queries * (keys + text) * width
    weights = sum(p.numel() * p.element_size() for p in blocks.parameters())
    kept = 2 * len(blocks) * (memory.num_tokens + text) * width * memory.keys.element_size()
    return len(blocks) * float(linear + attention), float(weights + kept)


def peaks(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """What this chip does at best: FLOP/s of a large product of matrices, bytes/s of a large copy (read and written)."""
    cuda = device.type == "cuda"
    n, count = (8192, 2**30) if cuda else (1536, 2**26)
    a = torch.randn(n, n, device=device, dtype=dtype)
    x = torch.empty(count, device=device, dtype=torch.uint8)
    y = torch.zeros_like(x)

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(6):
            started = time.perf_counter()
            work()
            if cuda:
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - started)
        return min(times)

    return 2 * n**3 / best(lambda: a @ a), 2 * count / best(lambda: x.copy_(y))


def table(rows: Sequence[WanRow]) -> str:
    """Markdown: the stages, and a line of what the chip could do for each."""
    first, in_use = rows[0].first_frame, max(r.in_use for r in rows)
    cost = f"First frames after {first:.0f} ms. In use at most {in_use / 2**20:.0f} MiB, weights included."
    lines = [bench.table(list(rows)), "", cost, ""]
    for r in rows:
        lines.append(
            f"Roofline at {r.seconds:g} s: a pass is {r.flops / 1e9:.1f} GFLOP and reads {r.bytes / 2**20:.0f} MiB; "
            f"{100 * r.flops_used:.0f} % of {r.peak_flops / 1e9:.0f} GFLOP/s, {100 * r.bytes_used:.0f} % of {r.peak_bytes / 1e9:.1f} GB/s."
        )
    return "\n".join(lines)


# -- against a plain loop ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SideRow:
    """After `seconds` of history: latent frames a second, and MiB of keys and values, of one way to roll out."""

    way: str
    seconds: float
    latents_per_second: float
    memory_mb: float
    tokens: int


def side_by_side(
    model: WorldModel, seconds: Sequence[float], chunks: int = 6, progress: Callable[[str], None] = lambda _: None
) -> list[SideRow]:
    """Denoising and the clean pass of this engine and of `PlainLoop`, with the same weights, in turns, so that what else the machine
    does hits all alike. The plain loop remembers as many latent frames as the engine, and once more as many as Self-Forcing's.
    """
    stages, horizon, chunk = Stages(model), model.config.memory.horizon, model.config.chunk
    embeddings = model.text.encode("").to(model.device, model.dtype)
    rows = []
    for at in seconds:
        history = latents_of(model, at)
        memory = stages.memory(history)
        plain = {f"plain, {n} latents": filled_loop(model, embeddings, n, history) for n in (horizon, PUBLISHED_WINDOW)}

        def engine(memory: CompressedMemory = memory) -> None:
            stages.write(memory, stages.denoise(memory))

        ways: dict[str, Callable[[], object]] = {"this engine": engine}
        ways |= {name: lambda loop=loop: loop.step(stages.noise, torch.Generator().manual_seed(0)) for name, loop in plain.items()}
        times: dict[str, list[float]] = {name: [] for name in ways}
        for i in range(1 + chunks):
            progress(f"{at:g} s of history, chunk {i + 1} of {1 + chunks}")
            for name, step in ways.items():
                taken, _ = stages.timed(step)
                times[name] += [taken] if i else []
        for name in ways:
            holder = plain.get(name, memory)
            rate = chunk / statistics.median(times[name])
            rows.append(SideRow(name, at, rate, holder.num_bytes / 2**20, holder.num_tokens))
    return rows


def filled_loop(model: WorldModel, embeddings: Tensor, window: int, latents: int) -> PlainLoop:
    """A plain loop with `latents` latent frames of random history."""
    loop = PlainLoop(model.transformer, embeddings, model.config.sampler, window)
    tokens = int(np.prod(model.transformer.grid(model.latent_shape[1:]))) * min(latents, window)
    c, dtype = model.transformer.config, model.transformer.compute_dtype or model.dtype
    shape = (1, tokens, c.num_attention_heads, c.attention_head_dim)
    made = [torch.randn(shape, device=model.device, dtype=dtype) for _ in range(2)]
    loop.cache = [tuple(x.clone() for x in made) for _ in model.transformer.blocks]
    loop.count = latents
    return loop


def side_by_side_table(rows: Sequence[SideRow]) -> str:
    """Markdown."""
    head = "| history s | | latents/s | this engine's gain | keys and values MiB | tokens |"
    lines = [head, "| ---: | --- | ---: | ---: | ---: | ---: |"]
    ours = {r.seconds: r.latents_per_second for r in rows if r.way == "this engine"}
    for r in rows:
        gain = "" if r.way == "this engine" else f"{ours[r.seconds] / r.latents_per_second:.2f}x"
        lines.append(f"| {r.seconds:g} | {r.way} | {r.latents_per_second:.2f} | {gain} | {r.memory_mb:.1f} | {r.tokens} |")
    return "\n".join(lines)


def report(model: WorldModel, rows: Sequence[WanRow | SideRow]) -> dict:
    """Everything measured, for JSON."""
    derived = [{"flops_used": r.flops_used, "bytes_used": r.bytes_used} if isinstance(r, WanRow) else {} for r in rows]
    return {"model": describe(model), "rows": [asdict(r) | d for r, d in zip(rows, derived, strict=True)]}
