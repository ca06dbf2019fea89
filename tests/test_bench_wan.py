"""Benchmarks of Wan's shapes: a shape small enough for a test, through the command, and the plain loop against the engine."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from worldmodel import bench_wan
from worldmodel.cli import main
from worldmodel.configs import MemoryConfig
from worldmodel.plain_loop import PlainLoop
from worldmodel.runtime import RuntimeConfig

SCALE = 1 / 24


@pytest.fixture(scope="module")
def model():
    return bench_wan.random_model("wan-1.3b", SCALE, device="cpu")


def test_shapes():
    assert bench_wan.SHAPES["wan-14b"] == (40, 13824, 40)
    with torch.device("meta"):
        whole = bench_wan.CausalWorldTransformer(num_attention_heads=12, ffn_dim=8960, num_layers=30)
    assert 1.4e9 < sum(p.numel() for p in whole.parameters()) < 1.5e9
    with pytest.raises(ValueError, match="--scale"):
        bench_wan.random_model("wan-1.3b", 2)


def test_plain_loop_equals_the_engine_while_nothing_is_pooled(model):
    """The same roll-out, written twice: the memory that pools nothing and a cache that drops nothing."""
    whole = model.with_memory(MemoryConfig(window=9, horizon=80, schedule=(1,)))
    memory, stages = whole.new_memory(), bench_wan.Stages(whole)
    loop = PlainLoop(whole.transformer, whole.text.encode(""), whole.config.sampler, window=80)
    nothing = tuple(torch.zeros_like(x) for x in stages.camera)
    stages.camera = nothing
    for i in range(5):  # 15 latent frames: six have left the window
        made = stages.denoise(memory)
        stages.write(memory, made)
        plain = loop.step(stages.noise, torch.Generator().manual_seed(0))
        assert (made - plain).norm() <= 1e-4 * plain.norm(), i
    assert loop.num_tokens == memory.num_tokens and loop.count == memory.count == 15


def test_plain_loop_rolls_on(model):
    loop = bench_wan.filled_loop(model, model.text.encode(""), window=4, latents=9)
    before = loop.cache[0][0]
    loop.step(bench_wan.Stages(model).noise)
    tokens = loop.num_tokens // 4
    assert loop.count == 12 and loop.num_tokens == before.shape[1] == 4 * tokens
    assert torch.equal(loop.cache[0][0][:, :tokens], before[:, -tokens:])


def test_flops_of_a_pass_are_those_that_torch_counts(model):
    model = model.with_config(size=(96, 160))
    stages = bench_wan.Stages(model)
    memory = stages.memory(bench_wan.latents_of(model, 5))
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model.transformer(stages.noise, torch.zeros(1), stages.text, camera=stages.camera, memory=memory)
    flops, moved = bench_wan.pass_cost(model, memory)
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.12)  # embeddings are left out; here they are not small
    assert moved > 4 * sum(p.numel() for p in model.transformer.blocks.parameters())


def test_history_beyond_the_horizon_costs_nothing_more(model):
    stages = bench_wan.Stages(model)
    twenty, minutes = (stages.memory(bench_wan.latents_of(model, s)) for s in (20, 300))
    assert minutes.count == 1201 and minutes.num_bytes == twenty.num_bytes
    assert minutes.num_tokens <= 1.1 * twenty.num_tokens


@pytest.mark.parametrize("policy", ["relic", "age", "visible"])
def test_history_is_as_if_every_chunk_had_been_written(model, policy):
    """Also where what is forgotten by then was left out."""
    model = model.with_memory(MemoryConfig(window=9, horizon=24, policy=policy, budget=20 if policy == "visible" else 0))
    stages, whole = bench_wan.Stages(model), model.new_memory()
    for t in [1] + [3] * 31:
        stages._remember(whole, t)
    made = stages.memory(94)
    assert made.count == whole.count == 94 and made.entries() == whole.entries()
    assert made.chunk_times(3).equal(whole.chunk_times(3)) and made.positions().equal(whole.positions())


def test_the_command_prints_stages_and_roofline(capsys, tmp_path):
    options = ["--config", "wan-1.3b", "--scale", str(SCALE), "--chunks", "1", "--device", "cpu"]
    assert main(["bench", *options]) == 2 and "--random-weights" in capsys.readouterr().err
    out = tmp_path / "figures.json"
    assert main(["bench", *options, "--random-weights", "--history", "0", "5", "--kv", "float8", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    assert "kv=float8" in said and "Roofline at 5 s" in said and "First frames after" in said and "In use at most" in said
    rows = json.loads(out.read_text())["rows"]
    assert all(r["in_use"] > r["memory_mb"] * 2**20 for r in rows)
    assert [r["seconds"] for r in rows] == [0, 5] and all(0 < r["flops_used"] for r in rows)


def test_a_shape_that_does_not_fit_is_refused_before_it_is_made(capsys, monkeypatch):
    monkeypatch.setattr(bench_wan.fitting, "free_bytes", lambda device: 90 * 2**30)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: pytest.fail("weights are being drawn"))
    assert main(["bench", "--config", "wan-14b", "--random-weights", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "wan-14b needs 170.3 GiB" in said and "85.5 GiB free. What fits: --kv float8: 80.4 GiB." in said


def test_nothing_is_left_to_write_after_the_last_step():
    model = bench_wan.random_model("wan-1.3b", SCALE, device="cpu", runtime=RuntimeConfig(context="last_step"))
    stages, memory, passes = bench_wan.Stages(model), model.new_memory(), []
    model.transformer.register_forward_pre_hook(lambda *_: passes.append(1))
    stages.write(memory, stages.denoise(memory))
    assert len(passes) == model.config.sampler.steps and memory.count == model.config.chunk


def test_the_command_sets_ways_side_by_side(capsys):
    options = ["--config", "wan-1.3b", "--random-weights", "--side-by-side", "--scale", str(SCALE), "--chunks", "1", "--device", "cpu"]
    assert main(["bench", *options, "--history", "5"]) == 0
    said = capsys.readouterr().out
    assert "this engine" in said and "plain, 80 latents" in said and "plain, 21 latents" in said
