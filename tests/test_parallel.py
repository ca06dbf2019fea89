"""Two processes do what one does: losses, clipped gradients, weights, checkpoints."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from distilling import TRANSFORMER, synthetic_walks
from safetensors.torch import load_file, save_file
from small import small_model

from distill.causal import CausalRecipe, CausalStage, noise_levels
from distill.checkpoint import load_checkpoint, strip_prefix, with_prefix
from distill.optim import build_optimisers
from distill.parallel import Ranks, clip_gradients, distributed, export_state, gather_full, load_full, load_state, parallelise, save_state
from distill.recipe import Recipe
from distill.self_forcing import SelfForcingRecipe, SelfForcingStage
from distill.student_init import StudentInitRecipe
from distill.teacher import TeacherRecipe
from distill.train import read_text, train_models, write_text
from distill.trainer import EMA, Deadline, Trainer, generator
from worldmodel.memory import MemoryConfig, training_layout
from worldmodel.sampling import SamplerConfig
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


# -- the real stages ----------------------------------------------------------------------------------------------------------
MEMORY, FEW = MemoryConfig(window=2, horizon=20), SamplerConfig(2, stochastic=True)
WHOLE_WAY = Recipe(
    stages=("causal", "teacher", "student_init", "self_forcing"),
    causal=CausalRecipe(TRANSFORMER | {"view_focal": 0.7}, MEMORY, FEW, steps=4, curriculum=((0.0, 3, 4), (0.5, 4, 2))),
    teacher=TeacherRecipe(
        TRANSFORMER | {"view_focal": 0.7}, SamplerConfig(2), steps=4, curriculum=((0.0, 3, 4), (0.5, 4, 2)), first_clean=0.5,
    ),
    student_init=StudentInitRecipe(
        memory=MEMORY, sampler=FEW, blocks=4, noisy_blocks=2, trajectories=3, trajectory_steps=2, shard=1, steps=2, batch=2,
    ),
    self_forcing=SelfForcingRecipe(
        memory=MEMORY, sampler=FEW, steps=4, curriculum=((0.0, 3, 4), (0.5, 4, 2)), critic_per_generator=1, lr=1e-3, critic_lr=1e-3,
        warmup=1,
    ),
)  # fmt: skip


class EarlyInTheLast:
    """A deadline that passes at the third look, and in the last process alone."""

    def __init__(self, ranks):
        self.looks, self.last = 0, ranks.rank == ranks.world - 1

    @property
    def passed(self):
        self.looks += 1
        return self.last and self.looks == 3


def curves_of(work):
    """Losses [step, value] of every stage that trains during `work()`, of the global batch."""
    curves, real = {}, Trainer._train

    def recorded(self, deadline, signals):
        loss = self.loss

        def wrapped(step):
            value, numbers = loss(step)
            curves.setdefault(self.name, []).append([step, self.ranks.mean(value)])
            return value, numbers

        self.loss = wrapped
        real(self, deadline, signals)

    Trainer._train = recorded
    try:
        work()
    finally:
        Trainer._train = real
    return curves


def flat_depth():
    """An autoencoder to which all is equally far away: convolutions round as their batch is, and a point of a camera view that lies on the
    edge of a place would fall into one or the other."""
    made = small_model().autoencoder
    torch.nn.init.zeros_(made.depth.edges[-1].weight)
    return made


def train_stages(folder: Path, ranks, recipe=WHOLE_WAY, deadline=None):
    walks = synthetic_walks(clips=3, latents=4)
    deadline = Deadline(9) if deadline is None else deadline
    return train_models(recipe, folder, walks, walks, flat_depth(), deadline, ranks.device, None, ranks)


def run_stages(folder: Path, ranks):
    """Two slices: the first is over after two steps of the first stage, and leaves a copy of it."""

    def slices():
        assert not train_stages(folder, ranks, deadline=EarlyInTheLast(ranks))
        if ranks.main:
            shutil.copytree(folder / "causal", folder / "half")
            shutil.copytree(folder / "causal", folder / "stopped")
        assert train_stages(folder, ranks)

    curves = curves_of(slices)
    if ranks.main:
        (folder / "curves.json").write_text(json.dumps(curves))


def run_stopped(folder: Path, ranks):
    """One of the processes gets a SIGTERM at step 2; both stop after it, and save."""
    walks = synthetic_walks(clips=3, latents=4)
    args = (WHOLE_WAY.causal, folder, walks, walks, small_model().autoencoder, ranks.device, None, ranks)
    trainer = CausalStage(*args).trainer
    loss = trainer.loss

    def killing(step):
        if ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(step)

    trainer.loss = killing
    try:
        trainer.run(Deadline(9))
        raise AssertionError("It went on after a SIGTERM.")
    except KeyboardInterrupt:
        assert trainer.step == CausalStage(*args).trainer.step == 3


def run_bfloat16(folder: Path, ranks):
    """Losses of the first stage and of self-forcing, with matrix products in bfloat16."""
    ranks = replace(ranks, dtype=torch.bfloat16)
    walks, autoencoder = synthetic_walks(clips=3, latents=4), small_model().autoencoder
    args = (walks, walks, autoencoder, ranks.device)
    causal = CausalStage(WHOLE_WAY.causal, folder / "a", *args, None, ranks)
    weights = small_model(1).transformer
    forced = SelfForcingStage(WHOLE_WAY.self_forcing, folder / "b", *args, weights, weights, ranks)
    losses = {"causal": [], "self_forcing": []}
    for name, stage in (("causal", causal), ("self_forcing", forced)):
        for step in (0, 1):
            loss = stage.loss(step)[0]
            losses[name].append(ranks.mean(loss))
    if ranks.main:
        (folder / "bfloat16.json").write_text(json.dumps(losses))


def main(root: Path):
    torch.set_num_threads(1)
    with distributed("cpu") as ranks:
        (root / "stages").mkdir(exist_ok=True)
        run_stages(root / "stages", ranks)
        run_stopped(root / "stages" / "stopped", ranks)
        (root / "bfloat16").mkdir(exist_ok=True)
        run_bfloat16(root / "bfloat16", ranks)
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
    run_stages(one / "stages", Ranks())
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


@pytest.mark.parametrize("stage", WHOLE_WAY.stages)
def test_two_processes_train_a_stage_as_one_does(runs, stage):
    want, got = (torch.tensor(json.loads((folder / "stages" / "curves.json").read_text())[stage]) for folder in runs)
    steps = getattr(WHOLE_WAY, stage).steps
    assert want[:, 0].tolist() == got[:, 0].tolist() == list(range(steps))  # nothing left out or done twice, over both slices
    # what is rolled out is rounded as its batch is, and a point of a camera view, spread over several places, may then fall beside its own
    rounded = stage == "self_forcing"
    torch.testing.assert_close(got[:, 1], want[:, 1], rtol=0.1 if rounded else 1e-5, atol=1e-5 if rounded else 0)
    assert want[0, 1] != want[1, 1]
    for model in ("model", *(["model-003"] if stage == "teacher" else [])):
        a, b = (CausalWorldTransformer.from_pretrained(folder / "stages" / stage / model) for folder in runs)
        assert {**a.config, "_name_or_path": ""} == {**b.config, "_name_or_path": ""}
        apart = max(float((x - y).detach().abs().max()) for x, y in zip(a.parameters(), b.parameters(), strict=True))
        assert apart < (5e-3 if rounded else 1e-4)
    kept = [sorted(p.name for p in (folder / "stages" / stage).iterdir()) for folder in runs]
    assert kept[0] == kept[1] and any(n.startswith("sheet-") for n in kept[0])
    rows = [(folder / "stages" / stage / "slices.jsonl").read_text().splitlines() for folder in runs]
    assert len(rows[0]) == len(rows[1])
    assert json.loads(rows[0][-1])["true"] == pytest.approx(json.loads(rows[1][-1])["true"], abs=0.1)  # a roll-out's


def test_one_process_goes_on_where_two_stopped(runs, tmp_path):
    one, two = runs
    shutil.copytree(two / "stages" / "half", tmp_path / "causal")
    want = json.loads((one / "stages" / "curves.json").read_text())["causal"][2:]
    got = curves_of(lambda: train_stages(tmp_path, Ranks(), replace(WHOLE_WAY, stages=("causal",))))["causal"]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(want), rtol=1e-5, atol=0)


def test_sharded_in_bfloat16_is_near(runs, tmp_path):
    """Losses of one process in float32; bfloat16 has 8 bits."""
    walks, autoencoder = synthetic_walks(clips=3, latents=4), small_model().autoencoder
    args = (walks, walks, autoencoder, torch.device("cpu"))
    weights = small_model(1).transformer
    stages = {
        "causal": CausalStage(WHOLE_WAY.causal, tmp_path / "a", *args),
        "self_forcing": SelfForcingStage(WHOLE_WAY.self_forcing, tmp_path / "b", *args, weights, weights),
    }
    for name, got in json.loads((runs[1] / "bfloat16" / "bfloat16.json").read_text()).items():
        want = [float(stages[name].loss(step)[0].detach()) for step in (0, 1)]
        assert got == pytest.approx(want, rel=2e-2) and got != want


def test_refusals_before_anything_is_trained(tmp_path):
    walks = synthetic_walks()
    args = (tmp_path, walks, walks, small_model().autoencoder, torch.device("cpu"))
    with pytest.raises(ValueError, match="multiple of 4"):
        CausalStage(WHOLE_WAY.causal, *args, None, Ranks(0, 4))  # its last phase has a batch of 2
    with pytest.raises(ValueError, match="replay=true"):
        SelfForcingStage(replace(WHOLE_WAY.self_forcing, replay=False), *args, {}, {}, Ranks(0, 2))


def test_captions_are_embedded_once(tmp_path):
    asked = []

    def embed(prompts):
        asked.append(prompts)
        return torch.tensor([float(len(p)) for p in prompts]).view(-1, 1, 1)

    for name, captions in (("train", ["a", "ccc", "a"]), ("held_out", ["bb"])):
        (tmp_path / name).mkdir()
        rows = {k: torch.zeros(len(captions), 2) for k in ("groups", "stills", "actions", "poses")}
        save_file(rows, tmp_path / name / "walks-00000.safetensors", {"captions": "\n".join(captions)})
    write_text(tmp_path, embed)
    assert asked == [["a", "bb", "ccc"]]
    assert read_text(tmp_path, ["ccc", "a"]).flatten().tolist() == [3, 1]


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
