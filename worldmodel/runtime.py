"""How a model is run, apart from what it is: number formats, compilation, kernels, where weights lie. Every default runs anywhere.

`RuntimeConfig` is given to `WorldModel.from_pretrained(..., runtime=...)`, or to `apply_runtime` for a transformer alone. What each
switch costs in quality and gains in speed: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from worldmodel.transformer import CausalWorldTransformer

PRECISIONS = ("weights", "bfloat16", "auto")
COMPILE = ("off", "blocks", "graphs")
KV = ("same", "float8")
LINEARS = ("same", "int8", "float8")
OFFLOAD = ("off", "layers")
CONTEXT = ("clean", "last_step")


class RuntimeSwitchError(RuntimeError):
    """A switch that cannot be used here. One sentence, which says what to do."""


@dataclass(frozen=True)
class RuntimeConfig:
    """Switches of how a model runs.

    Args:
        precision: of matrix products and attention inside the blocks, and of the memory; norms, RoPE, modulation, what goes from block
            to block, camera geometry, sampler and decoder stay as the weights are. ``weights``: all as loaded; ``bfloat16``;
            ``auto``: bfloat16 on CUDA and on CPUs with AMX or AVX512-BF16, as loaded elsewhere.
        compile: ``blocks`` compiles what a block does before and after self-attention (shapes are static there, so that a growing memory
            compiles nothing anew); ``graphs`` also records it as CUDA graphs. The first chunk then takes a minute or more.
        attention: a backend of diffusers' dispatcher, such as ``native``, ``_native_cudnn``, ``flash``, ``_flash_3`` or ``sage``; None: its
            default.
        kv: ``float8`` keeps the memory's keys and values in FP8 E4M3, as RELIC does, a third of the room of bfloat16 or a sixth of
            float32: turned keys are then not kept beside plain ones. Attention computes in the blocks' precision.
        linears: ``int8`` or ``float8`` quantises the weights of the blocks' linear layers by torchao (``pip install worldmodel[quant]``).
        overlap: the frames are decoded, on CUDA on a stream of their own, while the clean-context pass writes the memory, and in
            `World.stream(..., ahead=True)` while the next chunk is denoised.
        offload: ``layers`` keeps weights in main memory and brings each layer to the device when it runs (diffusers' group offload).
        context: what the memory gets of a chunk: ``clean``, keys and values of one more pass over its finished latents, as RELIC does and
            models are trained; ``last_step``, those which the last denoising step computed from noisy ones, and that pass is left out.
    """

    precision: str = "weights"
    compile: str = "off"
    attention: str | None = None
    kv: str = "same"
    linears: str = "same"
    overlap: bool = False
    offload: str = "off"
    context: str = "clean"

    def __post_init__(self) -> None:
        choices = {
            "precision": PRECISIONS, "compile": COMPILE, "kv": KV, "linears": LINEARS, "offload": OFFLOAD, "context": CONTEXT,
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.offload != "off" and self.linears != "same":
            raise ValueError("Offloaded layers are not quantised: choose offload or linears.")

    def weights_device(self, device: torch.device) -> torch.device | str:
        """Where the weights of a transformer that runs on `device` are loaded."""
        return device if self.offload == "off" else "cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The switches as options of a command."""
    group = parser.add_argument_group("how it runs (docs/benchmarks.md)")
    default = RuntimeConfig()
    group.add_argument("--precision", choices=PRECISIONS, default=default.precision, help="of the blocks' matrix products")
    group.add_argument("--compile", choices=COMPILE, default=default.compile, help="compile the blocks; graphs: also as CUDA graphs")
    group.add_argument("--attention", metavar="BACKEND", help="native, _native_cudnn, flash, _flash_3, sage, ... (diffusers' names)")
    group.add_argument("--kv", choices=KV, default=default.kv, help="how the memory keeps keys and values")
    group.add_argument("--linears", choices=LINEARS, default=default.linears, help="quantise linear layers (needs torchao)")
    group.add_argument("--overlap", action="store_true", help="write the memory while frames are decoded")
    group.add_argument("--offload", choices=OFFLOAD, default=default.offload, help="layers: weights stay in main memory until they run")
    group.add_argument("--context", choices=CONTEXT, default=default.context, help="last_step: write the memory without a clean pass")


def from_arguments(args: argparse.Namespace) -> RuntimeConfig:
    return RuntimeConfig(**{f.name: getattr(args, f.name) for f in fields(RuntimeConfig)})


def apply_runtime(model: CausalWorldTransformer, runtime: RuntimeConfig, device: torch.device | str | None = None) -> None:
    """Make `model` run as `runtime` says, on `device` (default: where it is). Once, before its first memory is made.

    Raises:
        RuntimeSwitchError: what a switch needs is not here.
    """
    import torch

    device = torch.device(device or model.device)
    if runtime.precision != "weights":
        _set_precision(model, runtime.precision, device)
    if runtime.attention is not None:
        _set_attention(model, runtime.attention, device)
    if runtime.kv == "float8":
        model.memory_dtype = torch.float8_e4m3fn
    if runtime.linears != "same":
        _quantise(model, runtime.linears)
    if runtime.offload == "layers":
        options = {"use_stream": True, "record_stream": True} if device.type == "cuda" else {}
        model.enable_group_offload(onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level", **options)
    if runtime.compile != "off":
        _compile(model, runtime.compile, device)


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products of matrices are faster in bfloat16 there: CUDA, and CPUs that have instructions for them."""
    import torch

    if device.type == "cpu":
        can = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(can.get("amx_bf16") or can.get("avx512_bf16"))
    return device.type == "cuda"


def _set_precision(model: CausalWorldTransformer, precision: str, device: torch.device) -> None:
    import torch

    if precision == "auto" and not fast_bfloat16(device):
        return
    for block in model.blocks:
        for module in block.modules():
            if isinstance(module, torch.nn.Linear):
                module.to(torch.bfloat16)
    model.compute_dtype = torch.bfloat16


def _set_attention(model: CausalWorldTransformer, name: str, device: torch.device) -> None:
    """Choose a backend, and try it on the spot: what is missing should be said now and not in the middle of a world."""
    import torch
    from diffusers.models.attention_dispatch import AttentionBackendName, _check_attention_backend_requirements, dispatch_attention_fn

    try:
        backend = AttentionBackendName(name)
    except ValueError:
        names = ", ".join(b.value for b in AttentionBackendName)
        raise RuntimeSwitchError(f"There is no attention backend {name!r}; diffusers has {names}.") from None
    dtype = model.compute_dtype or model.dtype
    x = torch.zeros(1, 8, model.config.num_attention_heads, model.config.attention_head_dim, device=device, dtype=dtype)
    try:
        _check_attention_backend_requirements(backend)
        with torch.no_grad():
            dispatch_attention_fn(x, x, x, backend=backend)
    except Exception as error:  # each kernel library has errors of its own
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise RuntimeSwitchError(f"The attention backend {name!r} does not run here on {device} in {dtype}: {why[0]}") from error
    for block in model.blocks:
        block.attn1.backend = block.attn2.backend = backend


def _quantise(model: CausalWorldTransformer, kind: str) -> None:
    try:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise RuntimeSwitchError("Quantised linear layers need torchao: pip install worldmodel[quant].") from error
    for block in model.blocks:
        quantize_(block, Int8WeightOnlyConfig() if kind == "int8" else Float8WeightOnlyConfig())


def _compile(model: CausalWorldTransformer, kind: str, device: torch.device) -> None:
    import torch

    if kind == "graphs" and device.type != "cuda":
        raise RuntimeSwitchError(f"CUDA graphs need CUDA, this model is on {device}: choose compile='blocks'.")
    if device.type == "cpu":
        _need_compiler()
    mode = "reduce-overhead" if kind == "graphs" else None
    if kind == "graphs":  # what the last pass returned may be overwritten now
        model.register_forward_pre_hook(lambda *_: torch.compiler.cudagraph_mark_step_begin())

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, mode=mode, dynamic=False)

    for block in model.blocks:
        block.before, block.after = compiled(block.before), compiled(block.after)


def _need_compiler() -> None:
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(map(shutil.which, wanted)):
        missing = " or ".join(wanted)
        raise RuntimeSwitchError(f"Compiling for the CPU needs a C++ compiler, and there is no {missing}: install g++ or set CXX.")
