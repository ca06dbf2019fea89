"""Two processes do what one does: losses, clipped gradients, weights, checkpoints."""

import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.causal import CausalRecipe, noise_levels
from distill.checkpoint import load_checkpoint, strip_prefix, with_prefix
from distill.optim import build_optimisers
from distill.parallel import Ranks, clip_gradients, distributed, export_state, gather_full, load_full, load_state, parallelise, save_state
from distill.trainer import EMA, generator
from worldmodel.memory import MemoryConfig, training_layout
from worldmodel.transformer import CausalWorldTransformer

CONFIG = dict(
    patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=10, freq_dim=16, ffn_dim=31,
    num_layers=2, camera_dim=7, rope_theta=100.0,
)  # fmt: skip
RECIPE = CausalRecipe(memory=MemoryConfig(window=2, horizon=20))
STEPS, CUT, BATCH, LATENTS = 5, 3, 4, 5


def build(ranks, optimiser, seed=0):
    torch.manual_seed(seed)
    model = CausalWorldTransformer(**CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(seed + p.numel())) * 0.1)
    parallelise(model, ranks).train()
    return model, build_optimisers(model, optimiser, 0.02, 3e-3, 0.01, inside="blocks"), EMA(model, 0.9)


def loss_of(model, ranks, step):
    """As in `CausalStage.loss`, on this process's rows of the global batch."""
    rng = generator(0, step)
    clean = torch.randn(BATCH, 4, LATENTS, 4, 4, generator=rng)
    sigma, counted = noise_levels(RECIPE, BATCH, LATENTS, rng)
    noise, text = torch.randn(clean.shape, generator=rng), torch.randn(BATCH, 6, 10, generator=rng)
    frames = 1 + 4 * (LATENTS - 1)
    actions, poses = torch.rand(BATCH, frames, 13, generator=rng), torch.randn(BATCH, frames, 9, generator=rng)
    level, mine = sigma[:, None, :, None, None], ranks.share(BATCH)
    noisy = (1 - level) * clean + level * noise
    layout = training_layout(RECIPE.memory, LATENTS, (4, 4), 1)
    kv = text[mine]
    camera = None
    if step % 2:  # encoders called by themselves, as a roll-out does
        kv, camera = model.encode_text(kv), model.encode_camera(actions[mine], poses[mine])
    out = model(noisy[mine], 1000 * sigma[mine], kv, actions[mine], poses[mine], camera=camera, layout=layout)
    error = (out - (noise - clean)[mine]).square().mean((1, 3, 4))
    return ranks.world * (error * counted[mine]).sum() / counted.sum()


def train(model, optimisers, ema, ranks, steps):
    curve = []
    for step in steps:
        loss = loss_of(model, ranks, step)
        loss.backward()
        norm = clip_gradients(model.parameters(), 0.5)
        optimisers.step(1.0)
        ema.update(model, step)
        curve.append([ranks.mean(loss), norm])
    return curve


def state_of(model, optimisers, ema):
    return with_prefix("model", model.state_dict()) | with_prefix("ema", ema.weights) | with_prefix("optimiser", optimisers.state_tensors())


def resume(folder, ranks, optimiser):
    """Train on from a checkpoint with a model that began elsewhere."""
    model, optimisers, ema = build(ranks, optimiser, seed=9)
    tensors, meta = load_state(folder, model, optimisers)
    model.load_state_dict(strip_prefix("model", tensors))
    ema.weights = strip_prefix("ema", tensors)
    optimisers.load_state_tensors(strip_prefix("optimiser", tensors))
    return train(model, optimisers, ema, ranks, range(meta["step"], STEPS))


def run(folder: Path, ranks, optimiser):
    """Everything one group of processes does; what it found goes to `folder`."""
    model, optimisers, ema = build(ranks, optimiser)
    curve = train(model, optimisers, ema, ranks, range(CUT))
    save_state(folder / "checkpoint", state_of(model, optimisers, ema), {"step": CUT}, ranks)
    averaged = gather_full(ema.weights, ranks)
    curve += train(model, optimisers, ema, ranks, range(CUT, STEPS))
    full = gather_full(model.state_dict(), ranks)
    other, *_ = build(ranks, optimiser, seed=4)
    load_full(other, full, ranks)
    again = gather_full(other.state_dict(), ranks)
    resumed = resume(folder / "checkpoint", ranks, optimiser)
    if ranks.main:
        assert all(torch.equal(full[k], again[k]) for k in full)
        save_file(full, folder / "full.safetensors")
        save_file(averaged, folder / "ema.safetensors")
        (folder / "curves.json").write_text(json.dumps({"curve": curve, "resumed": resumed}))


def main(root: Path):
    torch.set_num_threads(1)
    with distributed("cpu") as ranks:
        warnings.simplefilter("ignore")  # FSDP warns of every module that returns a view
        for optimiser in ("adamw", "muon"):
            (root / optimiser).mkdir(exist_ok=True)
            run(root / optimiser, ranks, optimiser)
        if (root / "one" / "checkpoint").exists():  # written by one process, read by two
            resumed = resume(root / "one" / "checkpoint", ranks, "muon")
            if ranks.main:
                (root / "one" / "resumed.json").write_text(json.dumps(resumed))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the same training by one process, here, and by two."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for optimiser in ("adamw", "muon"):
        (one / optimiser).mkdir()
        run(one / optimiser, Ranks(), optimiser)
    (two / "one").symlink_to(one / "muon")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    here = Path(__file__).parent
    path = os.pathsep.join([str(here.parent), str(here), os.environ.get("PYTHONPATH", "")])
    base = os.environ | dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", OMP_NUM_THREADS="1", PYTHONPATH=path)
    command = [sys.executable, "-c", f"import pathlib, test_parallel; test_parallel.main(pathlib.Path({str(two)!r}))"]
    workers = [
        subprocess.Popen(command, env=base | dict(RANK=str(r), LOCAL_RANK=str(r)), stderr=subprocess.PIPE, text=True) for r in (0, 1)
    ]
    try:
        errors = [w.communicate(timeout=900)[1] for w in workers]
    finally:
        for w in workers:
            w.kill()
    assert all(w.returncode == 0 for w in workers), "\n".join(errors)[-6000:]
    return one, two


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_two_processes_follow_the_curve_of_one(runs, optimiser):
    one, two = (json.loads((folder / optimiser / "curves.json").read_text()) for folder in runs)
    want, got = torch.tensor(one["curve"]), torch.tensor(two["curve"])
    assert want.shape == (STEPS, 2) and (want[:, 1] > 0.5).all()  # clipping did something
    assert want[0, 0] != want[1, 0]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    for name in ("full", "ema"):
        a, b = (load_file(folder / optimiser / f"{name}.safetensors") for folder in runs)
        assert a.keys() == b.keys()
        assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-4


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_run_goes_on_from_its_checkpoint(runs, optimiser):
    for folder in runs:
        curves = json.loads((folder / optimiser / "curves.json").read_text())
        torch.testing.assert_close(torch.tensor(curves["resumed"]), torch.tensor(curves["curve"][CUT:]), rtol=1e-6, atol=0)


def test_checkpoints_pass_between_numbers_of_processes(runs):
    one, two = runs
    want = json.loads((one / "muon" / "curves.json").read_text())["curve"][CUT:]
    for got in (json.loads((two / "one" / "resumed.json").read_text()), resume(two / "muon" / "checkpoint", Ranks(), "muon")):
        torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=1e-4, atol=0)


def test_sharded_checkpoints_hold_no_pickle_and_export(runs, tmp_path):
    one, two = runs
    files = sorted(p.name for p in (two / "adamw" / "checkpoint").iterdir())
    assert len(files) == 3 and all(f.endswith((".safetensors", ".json")) for f in files)
    export_state(two / "adamw" / "checkpoint", CONFIG, tmp_path / "out")
    back = CausalWorldTransformer.from_pretrained(tmp_path / "out").state_dict()
    want = load_file(two / "adamw" / "ema.safetensors")
    assert back.keys() == want.keys() and all(torch.equal(back[k], want[k]) for k in want)
    single = export_state(one / "adamw" / "checkpoint", tmp_path / "out" / "config.json", tmp_path / "single", weights="model")
    stored = strip_prefix("model", load_checkpoint(one / "adamw" / "checkpoint")[0])
    assert all(torch.equal(v, stored[k]) for k, v in single.state_dict().items())
    with pytest.raises(ValueError, match="are not of this config"):
        export_state(two / "adamw" / "checkpoint", CONFIG | {"num_layers": 3}, tmp_path / "no")
    with pytest.raises(FileNotFoundError):
        export_state(tmp_path / "nothing", CONFIG, tmp_path / "no")


def test_shares_cover_the_batch_once():
    rows = [torch.arange(12)[Ranks(r, 4).share(12)] for r in range(4)]
    assert torch.equal(torch.cat(rows), torch.arange(12))
    with pytest.raises(ValueError, match="multiple of 4"):
        Ranks(0, 4).share(6)


def test_clipping_is_torchs():
    g = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(4, 3)), torch.nn.Parameter(torch.zeros(5))]
    for p in params:
        p.grad = torch.randn(p.shape, generator=g)
    flat = torch.cat([p.grad.flatten() for p in params])
    assert clip_gradients(params, 0.1) == pytest.approx(float(flat.norm()))
    assert torch.allclose(torch.cat([p.grad.flatten() for p in params]), 0.1 * flat / flat.norm(), atol=1e-6)
