"""One training run on many devices: fully sharded weights, shares of the global batch, sharded checkpoints.

Started by ``torchrun`` or ``accelerate launch``, every process draws the same global batch from (seed, step) and works on
its own rows, so N processes follow the loss curve of one. FSDP averages gradients over processes, so a loss that is a sum
over rows divided by a weight W of the **global** batch (known to all, since all draw it) is written::

    rows = ranks.share(batch)
    loss = ranks.world * error[rows].sum() / W        # its mean over processes is the loss of the global batch

Weights, gradients, averages and optimiser states are sharded over all processes (torch FSDP2); matrix products run in
bfloat16 on CUDA. Checkpoints are written by every process at once (torch DCP, safetensors files) and read by any number.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from distill.checkpoint import load_checkpoint, save_checkpoint
from distill.optim import Optimisers
from distill.precision import multiply_in
from worldmodel.transformer import CausalWorldTransformer

PATIENCE = timedelta(days=14)  # how long processes wait for one that renders, encodes or embeds


@dataclass(frozen=True)
class Ranks:
    """This process among all of them; the default is a run of one process.

    `dtype` is that of matrix products, by default bfloat16 where several processes train on CUDA; `patient` a group of CPU processes that
    wait for `PATIENCE`.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype | None = None
    patient: Any = field(default=None, repr=False, compare=False)

    @property
    def main(self) -> bool:
        """Whether this process writes logs, samples and models."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """Rows of a global batch that are this process's; ValueError if they do not come out even."""
        if batch % self.world:
            raise ValueError(f"A batch of {batch} does not split over {self.world} processes: make it a multiple of {self.world}.")
        mine = batch // self.world
        return slice(self.rank * mine, (self.rank + 1) * mine)

    def mean(self, value: Tensor) -> float:
        """Mean of a scalar over processes; every process has to call it."""
        value = value.detach().to(self.device, torch.float64 if self.device.type == "cpu" else torch.float32, copy=True)
        if self.world > 1:
            dist.all_reduce(value)
        return float(value) / self.world

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Of each flag, whether it is set in any process: the same answer everywhere. Every process has to call it."""
        if self.world == 1:
            return flags
        agreed = torch.tensor(flags, dtype=torch.uint8)
        pending = dist.all_reduce(agreed, dist.ReduceOp.MAX, group=self.patient, async_op=True)
        while not pending.is_completed():  # Python's signal handlers run meanwhile
            time.sleep(0.001)
        pending.wait()
        return tuple(agreed.bool().tolist())

    def on_main(self, work: Callable[[], bool | None]) -> bool:
        """Do `work` in the main process while the others wait, however long it takes; its answer everywhere (None: True)."""
        answer = torch.zeros(1, dtype=torch.uint8)
        if self.main:
            answer[0] = work() in (None, True)
        if self.world > 1:
            pending = dist.broadcast(answer, 0, group=self.patient, async_op=True)
            while not pending.is_completed():
                time.sleep(0.05)
            pending.wait()
        return bool(answer)

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


ALONE = Ranks()


@contextmanager
def distributed(device: str | None = None) -> Iterator[Ranks]:
    """The `Ranks` of this process, from what ``torchrun`` or ``accelerate launch`` put into the environment.

    NCCL on CUDA, Gloo on the CPU; without WORLD_SIZE, or when it is 1, nothing is started.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cuda = torch.device(kind).type == "cuda"
    rank, world, local = (int(os.environ.get(k, d)) for k, d in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    where = torch.device("cuda", local) if cuda and world > 1 else torch.device(kind)
    if world == 1:
        yield Ranks(device=where)
        return
    if where.type == "cuda":
        torch.cuda.set_device(where)
        dist.init_process_group("nccl", device_id=where)
    else:
        dist.init_process_group("gloo")
    try:
        yield Ranks(rank, world, where, patient=dist.new_group(backend="gloo", timeout=PATIENCE))
    finally:
        dist.destroy_process_group()


@contextmanager
def postponed_signals(ranks: Ranks) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM as a list that grows, instead of exceptions, so that processes can agree on when to stop.

    One process is left alone: the list stays empty.
    """
    caught: list[int] = []
    if ranks.world == 1:
        yield caught
        return
    before = {s: signal.signal(s, lambda number, _: caught.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


# -- the model ----------------------------------------------------------------------------------------------------------------
def parallelise(
    model: CausalWorldTransformer, ranks: Ranks, checkpointing: bool = True, dtype: torch.dtype | None = None
) -> CausalWorldTransformer:
    """Put `model` on this process's device, sharded over all processes, recomputing blocks in the backward pass.

    Call it before optimisers and averages are made. Every process has to hold the same weights; a model on the meta device
    gets memory but no values (then `load_full`). `dtype` is that of matrix products, by default `ranks.dtype`; weights that
    are trained stay as they are, and so do predictions.
    """
    if checkpointing:
        model.enable_gradient_checkpointing()
    if ranks.world == 1:
        return model.to_empty(device=ranks.device) if _is_meta(model) else model.to(ranks.device)
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # some return views; nothing here works on them in place
    dtype = dtype or ranks.dtype or (torch.bfloat16 if ranks.device.type == "cuda" else None)
    # Inputs are cast by `_cast_inputs`: a timestep of 937.5 and the angles of RoPE do not survive bfloat16.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=dtype and torch.float32, cast_forward_inputs=False)
    whole = replace(policy, output_dtype=dtype and torch.float32)
    mesh = dist.init_device_mesh(ranks.device.type, (ranks.world,))
    options = dict(mesh=mesh, mp_policy=policy)
    entrances: list[nn.Module] = [model.condition_embedder.text_embedder, model.action_encoder, model.pose_encoder]
    for module in entrances:  # called by encode_text and encode_camera, also outside of forward
        fully_shard(module, **options)
    for block in model.blocks:
        fully_shard([block.attn2.to_k, block.attn2.to_v, block.attn2.norm_k], **options)  # likewise
        fully_shard(block, **options)
    # Given back after every forward pass, also without autograd, so that steps and norms never see stale whole weights.
    fully_shard(model, **options | dict(mp_policy=whole, reshard_after_forward=True))
    if _is_meta(model):
        model.to_empty(device=ranks.device)
    model._get_fsdp_state()._lazy_init()  # the model is the root, also when encode_text runs before the first forward
    if dtype is not None:
        for module in (model, *entrances):
            module.register_forward_pre_hook(_cast_inputs(dtype), with_kwargs=True, prepend=True)
        model.compute_dtype = dtype  # that of a memory's keys and values
    return model


def place(model: CausalWorldTransformer, ranks: Ranks, device: torch.device) -> CausalWorldTransformer:
    """`model` ready to be trained: sharded over several processes, or on the device of one."""
    if ranks.world > 1:
        return parallelise(model, ranks)
    model = model.to(device)
    return model if ranks.dtype in (None, model.dtype) else multiply_in(model, ranks.dtype)


def _is_meta(model: nn.Module) -> bool:
    return any(p.is_meta for p in model.parameters())


def _cast_inputs(dtype: torch.dtype):
    """A hook that casts floating inputs to `dtype`, all but the timestep."""

    def cast(x: Any) -> Any:
        return tree_map_only(Tensor, lambda t: t.to(dtype) if t.is_floating_point() else t, x)

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        args = tuple(a if i == 1 else cast(a) for i, a in enumerate(args))
        return args, {k: v if k == "timestep" else cast(v) for k, v in kwargs.items()}

    return hook


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale gradients down to a total norm of `max_norm`, sharded or not; returns the norm before. Collective."""
    parameters = list(parameters)
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return float(norm)


def finite(parameters: Iterable[Tensor], ranks: Ranks) -> bool:
    """Whether all numbers are finite, in all processes. Collective."""
    mine = (p.detach().to_local() if isinstance(p, DTensor) else p.detach() for p in parameters)
    return not ranks.any(not all(bool(p.isfinite().all()) for p in mine))[0]


def gather_full(tensors: dict[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors on the CPU of the main process, of a sharded state dict; empty elsewhere. Collective."""
    out = {}
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if ranks.main:
            out[name] = whole.detach().cpu().clone()
    return out


def load_full(model: nn.Module, tensors: dict[str, Tensor], ranks: Ranks) -> None:
    """Whole tensors, which only the main process has to hold, into a sharded model. Collective."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=ranks.world > 1)
    set_model_state_dict(model, dict(tensors), options=options)  # it replaces entries


def save_model(model: CausalWorldTransformer, weights: dict[str, Tensor], folder: Path, ranks: Ranks) -> None:
    """Save whole `weights`, sharded as `model` is, as a folder that `from_pretrained` loads. Collective."""
    full = gather_full(weights, ranks)

    def write() -> None:
        with torch.device("meta"):
            plain = CausalWorldTransformer.from_config(model.config)
        plain.load_state_dict(full, assign=True)
        plain.eval().save_pretrained(folder)

    ranks.on_main(write)


def finish_model(model: CausalWorldTransformer, weights: dict[str, Tensor], folder: Path, ranks: Ranks) -> CausalWorldTransformer:
    """`model` with `weights`, saved under `folder`; of several processes, each gets it whole on its CPU. Collective."""
    if ranks.world > 1:
        save_model(model, weights, folder, ranks)
        return CausalWorldTransformer.from_pretrained(folder, torch_dtype=torch.float32).eval()
    model.load_state_dict(weights)
    model.eval()
    model.save_pretrained(folder)
    return model


# -- checkpoints --------------------------------------------------------------------------------------------------------------
def save_state(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any], ranks: Ranks) -> None:
    """`checkpoint.save_checkpoint` for any number of processes: each writes its shards. An interrupted save leaves the old one."""
    folder = Path(folder)
    if not any(isinstance(t, DTensor) for t in tensors.values()):
        if ranks.main:
            save_checkpoint(folder, tensors, meta)
        ranks.wait()
        return
    import torch.distributed.checkpoint as dcp

    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if ranks.main:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
    ranks.wait()
    with torch.no_grad():
        state = {name: tensor.detach() for name, tensor in tensors.items()}
        dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(str(fresh), save_distributed=True))
    ranks.wait()
    if ranks.main:
        (fresh / "state.json").write_text(json.dumps(meta | {"sharded": True}, indent=1))
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(fresh, folder)
        shutil.rmtree(old, ignore_errors=True)
    ranks.wait()


def load_state(
    folder: Path, model: nn.Module, optimisers: Optimisers | None = None, averaged: nn.Module | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """`checkpoint.load_checkpoint` for any number of processes, whatever number wrote it; None when there is none.

    Tensors under ``model.``, ``ema.`` and ``optimiser.`` come sharded as the parameters of `model`, of `averaged` (default:
    `model`) and of `optimisers` are.
    """
    folder = Path(folder)
    found = next((f for f in (folder, folder.with_name(folder.name + ".old")) if (f / "state.json").exists()), None)
    if found is None:
        return None
    meta = json.loads((found / "state.json").read_text())
    known = {f"model.{k}": v for k, v in model.state_dict().items()}
    known |= {f"ema.{k}": v for k, v in (model if averaged is None else averaged).state_dict().items()}
    for i, optimiser in enumerate(optimisers.all if optimisers is not None else ()):
        params = [p for g in optimiser.param_groups for p in g["params"]]
        known |= {f"optimiser.{i}.{j}": p.detach() for j, p in enumerate(params)}

    def like(name: str, shape: torch.Size) -> Tensor | None:
        """The tensor of this run that the stored tensor `name` belongs to and is sharded as."""
        tensor = known.get(".".join(name.split(".")[:3]) if name.startswith("optimiser.") else name)
        return tensor if tensor is not None and tensor.shape == torch.Size(shape) else None

    if not meta.pop("sharded", False):
        tensors, meta = load_checkpoint(folder)
        return {name: _as(like(name, t.shape), t) for name, t in tensors.items()}, meta
    import torch.distributed.checkpoint as dcp

    stored = dcp.HuggingFaceStorageReader(str(found)).read_metadata().state_dict_metadata
    tensors = {}
    for name, info in stored.items():
        alike = like(name, info.size)
        if alike is not None:
            tensors[name] = torch.zeros_like(alike, dtype=info.properties.dtype)
        elif optimisers is not None or not name.startswith("optimiser."):
            tensors[name] = torch.zeros(info.size, dtype=info.properties.dtype)
    alone = not (dist.is_available() and dist.is_initialized())
    dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(found)), no_dist=alone)
    return tensors, meta


def _as(like: Tensor | None, whole: Tensor) -> Tensor:
    if isinstance(like, DTensor):
        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return whole


def export_state(folder: Path, config: dict[str, Any] | str | Path, out: Path, weights: str = "ema") -> CausalWorldTransformer:
    """A checkpoint of either kind as a folder that `CausalWorldTransformer.from_pretrained` loads; one process does it.

    `config` holds the arguments of the class, or is the path of its config.json; `weights` is "ema" or "model".
    """
    if not isinstance(config, dict):
        config = json.loads(Path(config).read_text())
    config = {k: v for k, v in dict(config).items() if not k.startswith("_")}
    with torch.device("meta"):
        model = CausalWorldTransformer(**config)
    model.to_empty(device="cpu")
    found = load_state(folder, model)
    if found is None:
        raise FileNotFoundError(f"There is no checkpoint in {folder}.")
    mine = {name.partition(".")[2]: t for name, t in found[0].items() if name.startswith(weights + ".")}
    try:
        model.load_state_dict(mine, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"The {weights} weights in {folder} are not of this config: give the config that the run was made with."
        ) from error
    model.eval().save_pretrained(out)
    return model
