"""Whether a model fits onto a device, told before anything is loaded: from configs and the shapes in files, and what would fit instead.

Weights, the memory of one world and the decoder's state are counted exactly, on modules without storage; working space is an estimate
from the largest tensors of a pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from worldmodel.autoencoder import VideoAutoencoder
from worldmodel.memory import MemoryConfig
from worldmodel.model import ModelError
from worldmodel.runtime import RuntimeConfig
from worldmodel.transformer import CausalWorldTransformer

GIB = 2**30
SPARE = 0.05  # of the device, for what the allocator cannot use
OFFLOADED_LAYERS = 3  # that are on the device at once: the one that runs, and those on their way
PASS_FACTOR = 4  # largest tensors of a decoder's pass that are alive at once


class TooLargeError(ModelError):
    """A model that does not fit onto its device; the message says what would."""


@dataclass(frozen=True)
class Wish:
    """A model as it is to be loaded: transformer and autoencoder without storage, `text` the encoder's bytes on the device."""

    transformer: CausalWorldTransformer
    autoencoder: VideoAutoencoder
    memory: MemoryConfig
    size: tuple[int, int]
    chunk: int
    dtype: torch.dtype
    text: int = 0
    text_length: int = 512
    runtime: RuntimeConfig = RuntimeConfig()


@dataclass(frozen=True)
class Need:
    """Bytes on the device, with one world."""

    weights: int
    text: int
    memory: int
    decoder: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.text + self.memory + self.decoder + self.working

    def __str__(self) -> str:
        parts = {name: getattr(self, name) for name in ("weights", "text", "memory", "decoder", "working")}
        return f"{gib(self.total)} (" + ", ".join(f"{name} {gib(n)}" for name, n in parts.items() if n) + ")"


def gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"


def free_bytes(device: torch.device) -> int:
    """What the device has left now."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def need(wish: Wish) -> Need:
    """Bytes that `wish` takes."""
    transformer, (height, width), size = wish.transformer, wish.size, wish.dtype.itemsize
    stride = wish.autoencoder.spatial_stride
    latent = height // stride, width // stride
    encoder = getattr(wish.autoencoder, "start_encoder", None)
    others = sum(_weights(part, wish.dtype) for part in (wish.autoencoder, encoder) if part is not None)
    weights = others + (_weights(transformer, wish.dtype) if wish.runtime.offload == "off" else OFFLOADED_LAYERS * _largest_layer(wish))
    transformer.memory_dtype = torch.float8_e4m3fn if wish.runtime.kv == "float8" else None
    heads, head_dim = transformer.config.num_attention_heads, transformer.config.attention_head_dim
    with torch.device("meta"):
        memory = transformer.new_memory(wish.memory, latent, chunk=wish.chunk)
    of_memory = sum(x.numel() * (size if x.dtype == transformer.dtype else x.element_size()) for x in buffers(memory))
    tokens = wish.chunk * latent[0] * latent[1] // (transformer.config.patch_size[1] * transformer.config.patch_size[2])
    dim = heads * head_dim
    per_token = dim * (8 * size + 4 * 4) + 2 * transformer.config.ffn_dim * size  # queries to outputs, norms in float32, feed-forward
    working = tokens * per_token
    working += 2 * len(transformer.blocks) * wish.text_length * dim * size  # keys and values of the prompt
    state, largest = _decoder(wish.autoencoder, latent)
    return Need(weights, wish.text, of_memory, state * size, max(working, PASS_FACTOR * largest * size))


def buffers(memory: object) -> Iterable[torch.Tensor]:
    """The tensors that a memory keeps"""
    return (x for x in vars(memory).values() if isinstance(x, torch.Tensor))


def check(wish: Wish, device: torch.device, name: str, options: Iterable[tuple[str, Wish]] = ()) -> None:
    """Raise `TooLargeError` if `wish` does not fit, with those of `options` (what to write, and what is wished then) that do."""
    free, wanted = int(free_bytes(device) * (1 - SPARE)), need(wish)
    if wanted.total <= free:
        return
    tried = [(text, need(other)) for text, other in options]
    fitting = [f"{text}: {gib(n.total)}" for text, n in tried if n.total <= free]
    if fitting:
        what = "What fits: " + "; ".join(fitting) + "."
    elif tried:
        text, least = min(tried, key=lambda t: t[1].total)
        what = (
            f"The least that it can do with is {gib(least.total)} ({text}), which is not there either: a smaller model or a larger device."
        )
    else:
        what = "Use a smaller model or a larger device."
    raise TooLargeError(f"{name} needs {wanted} and {device} has {gib(free)} free. {what}")


def _largest_layer(wish: Wish) -> int:
    return max(p.numel() for p in wish.transformer.parameters()) * wish.dtype.itemsize


def _weights(module: object, dtype: torch.dtype) -> int:
    """Bytes of parameters and buffers at `dtype`, what the class keeps in float32 in float32"""
    module = getattr(module, "vae", module)
    float32 = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    return sum(t.numel() * (4 if float32 & set(name.split(".")) else dtype.itemsize) for name, t in module.state_dict().items())


class _Largest(TorchDispatchMode):
    """Numbers in the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else (out,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@torch.no_grad()
def _decoder(autoencoder: VideoAutoencoder, latent: tuple[int, int]) -> tuple[int, int]:
    """Numbers in a stream's state, and in the largest tensor on the way; nothing is computed, as the weights have no storage"""
    state, largest = None, _Largest()
    for _ in range(2):  # the state has its size after the second latent frame
        piece = torch.empty(1, autoencoder.latent_channels, 1, *latent, device="meta")
        with largest:
            _, state = autoencoder.decode_chunk(piece, state)
    kept = [state] if isinstance(state, torch.Tensor) else [x for x in state if isinstance(x, torch.Tensor)]
    return sum(x.numel() for x in kept), largest.numel


def table() -> str:
    """What the released sizes of Wan need with each memory and decoder: Markdown."""
    from diffusers import AutoencoderKLWan

    from worldmodel.autoencoder import WanAutoencoder
    from worldmodel.tiny_decoder import TinyWanDecoder

    names = ("weights", "memory", "decoder", "working", "total")
    rows = ["| model | memory | decoder | weights | memory | decoder | working | in all |", "| --- " * 3 + "| ---: " * 5 + "|"]
    memories = {"the last 21 latent frames": MemoryConfig(window=18, schedule=(), horizon=21), "RELIC's, 20 s": MemoryConfig()}
    with torch.device("meta"):
        sizes = {"1.3B": dict(num_attention_heads=12, num_layers=30, ffn_dim=8960), "14B": {}}
        decoders = {"Wan's": WanAutoencoder(AutoencoderKLWan()), "tiny": TinyWanDecoder()}
        for size, arguments in sizes.items():
            transformer = CausalWorldTransformer(**arguments)
            for (memory, config), (decoder, autoencoder) in itertools.product(memories.items(), decoders.items()):
                counted = need(Wish(transformer, autoencoder, config, (480, 832), 3, torch.bfloat16))
                figures = " | ".join(f"{getattr(counted, name) / GIB:.1f}" for name in names)
                rows.append(f"| {size} | {memory} | {decoder} | {figures} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(), end="")
