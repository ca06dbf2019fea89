"""Two processes that share the heads of one model make what one process makes."""

import socket

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from small import picture, small_model

from worldmodel import Action
from worldmodel.batch import step_together
from worldmodel.head_parallel import share_heads
from worldmodel.runtime import RuntimeConfig

SCRIPT = "w*8 w+left*12 d*8 up*8 s+right*12"  # 12 chunks: the memory pools and forgets
WAYS = {
    "plain": RuntimeConfig(),
    "bfloat16 and FP8": RuntimeConfig(precision="bfloat16", kv="float8"),
    "last step": RuntimeConfig(context="last_step"),
}


def walk(model):
    """Latents of a walk, of a replay after going back, and frames of two worlds stepped together."""
    world = model.start(picture(), "a snowy village", seed=3)
    latents = [world.last_latents.clone() for _ in world.stream(SCRIPT)]
    kept = world.memory_bytes
    world.rewind(2)
    replayed = [world.last_latents.clone() for _ in world.stream("s+right*8")]
    other = model.start(picture(1), "a village", seed=4)
    chunks = step_together([world, other], [Action.from_keys({"KeyW"}), Action.idle()])
    frames = torch.from_numpy(np.stack([c.frames for c in chunks]))
    return {"latents": torch.cat(latents, 2), "replayed": torch.cat(replayed, 2), "frames": frames, "kept": torch.tensor(kept)}


def process(rank, port, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        for name, runtime in WAYS.items():
            model = small_model(chunk=1).use_runtime(runtime)
            share_heads(model.transformer, mesh)
            save_file(walk(model), folder / f"{name}-{rank}.safetensors")
        odd = small_model()
        odd.transformer.register_to_config(num_attention_heads=3)
        with pytest.raises(ValueError, match="3 heads cannot be shared by 2 processes; numbers that fit: 1, 3"):
            share_heads(odd.transformer, mesh)
        with pytest.raises(ValueError, match="15 tokens here, which 2 processes cannot share"):
            model.transformer.ranks.split(torch.zeros(1, 15, 4), 1)
    finally:
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(process, (port, folder), nprocs=2)
    return {name: [load_file(folder / f"{name}-{rank}.safetensors") for rank in range(2)] for name in WAYS}


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_equal_one(shared, name):
    first, second = shared[name]
    assert all(torch.equal(first[k], second[k]) for k in first)  # both show the same
    alone = walk(small_model(chunk=1).use_runtime(WAYS[name]))
    bound = 1e-2 if name == "bfloat16 and FP8" else 1e-5
    for key in ("latents", "replayed"):
        assert (first[key] - alone[key]).norm() <= bound * alone[key].norm()
    grey = 4 if name == "bfloat16 and FP8" else 1  # how many levels a hundredth of the latents is depends on the processor's rounding
    assert (first["frames"].int() - alone["frames"].int()).abs().max() <= grey
    assert 2 * first["kept"] == alone["kept"]  # each remembers its own heads


def test_replay_after_going_back_is_exact(shared):
    for ranks in shared.values():
        assert torch.equal(ranks[0]["replayed"], ranks[0]["latents"][:, :, -2:])
