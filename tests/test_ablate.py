"""Short runs are compared at equal compute, what is done is not done again, and the table says what the figures say."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from distilling import synthetic_walks
from small import small_model

from distill.ablate import EasyWindows, Layout, Runs, compare, next_latents, step_flops, with_code
from distill.ablations import COMPARISONS, PLAIN, SEEDS, Comparison, Difference, Variant, equal_steps, run_flops, table
from distill.latents import window_counts
from distill.trainer import Deadline, generator
from worldmodel.autoencoder import TinyAutoencoder

SMALL = (
    "causal.transformer.num_attention_heads=2", "causal.transformer.attention_head_dim=12", "causal.transformer.num_layers=1",
    "causal.transformer.ffn_dim=24", "causal.transformer.camera_dim=8", "causal.transformer.view_focal=0", "causal.steps=6",
    "causal.curriculum=[[0.0,3,2],[0.5,4,1]]", "causal.memory.window=2", "causal.transformer.freq_dim=16",
)  # fmt: skip


@pytest.mark.parametrize("phases", [[(0.0, 7)], [(0.0, 7), (0.7, 13)], [(0.0, 13), (0.3, 2), (0.9, 40)]])
@pytest.mark.parametrize("budget", [1, 100, 1001, 12345])
def test_compute_is_equal_within_a_step(phases, budget):
    steps = equal_steps(budget, phases)
    assert steps >= 1
    if budget >= phases[0][1]:
        assert abs(run_flops(steps, phases) - budget) <= max(cost for _, cost in phases)


def test_a_run_costs_the_sum_of_its_steps():
    assert run_flops(10, [(0.0, 3), (0.7, 5)]) == 7 * 3 + 3 * 5
    assert equal_steps(run_flops(130, [(0.0, 3), (0.7, 5)]), [(0.0, 3), (0.7, 5)]) == 130


def test_every_variant_is_a_run_of_its_own_and_bases_are_shared():
    by_kind = {"causal": [], "autoencoder": []}
    for comparison in COMPARISONS:
        keys = [v.key(comparison.kind, seed) for v in comparison.variants for seed in SEEDS]
        assert len(set(keys)) == len(keys)
        by_kind[comparison.kind] += keys
    base = [PLAIN.key("causal", seed) for seed in SEEDS]
    assert sum(key in base for key in by_kind["causal"]) == 2 * sum(c.kind == "causal" for c in COMPARISONS)
    assert Variant("another name").key("causal", 0) == PLAIN.key("causal", 0) != PLAIN.key("autoencoder", 0)


def stand_in(kind, variant, seed):
    return {"kind": kind, "seed": seed, "steps": 10, "true": 20.0 + seed, "next": 22.0, "opposite": 12.0}


TWO = (Comparison("average of the weights", (Variant("base"), Variant("none", ("causal.ema=0",)))),)


def test_finished_runs_are_not_made_again(tmp_path):
    made = []

    def make(kind, variant, seed):
        made.append((variant.label, seed))
        return None if len(made) == 3 else stand_in(kind, variant, seed)

    assert not compare(TWO, tmp_path, make)  # the third came to the deadline
    assert made == [("base", 0), ("base", 1), ("none", 0)]
    with (tmp_path / "runs.jsonl").open("a") as lines:
        lines.write('{"key": "cut o')  # and one was killed while it wrote
    assert compare(TWO, tmp_path, make)
    assert made[3:] == [("none", 0), ("none", 1)]
    assert compare(TWO, tmp_path, make) and len(made) == 5
    assert [json.loads(line)["seed"] for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == [0, 1, 0, 1]
    assert "| none | 10 | 20.50 (20.00, 21.00) | +0.00 |" in (tmp_path / "table.md").read_text()


def test_a_difference_is_clear_beyond_the_spread_of_the_seeds():
    assert Difference((21.0, 21.4), (20.0, 20.2)).difference == pytest.approx(1.1)
    assert Difference((21.0, 21.4), (20.0, 20.2)).spread == pytest.approx(0.4)
    assert Difference((21.0, 21.4), (20.0, 20.2)).clear
    assert not Difference((21.0, 21.4), (20.0, 22.0)).clear
    assert Difference((18.0, 18.1), (20.0, 20.2)).clear  # worse can be clear too


def test_the_table_needs_all_seeds_and_marks_what_is_clear():
    base, other = TWO[0].variants
    rows = {base.key("causal", s): stand_in("causal", base, 0) | {"true": 20 + 0.1 * s} for s in SEEDS}
    assert table(rows, TWO) == "\n"
    rows[other.key("causal", 0)] = stand_in("causal", other, 0) | {"true": 18.0}
    assert table(rows, TWO) == "\n"
    rows[other.key("causal", 1)] = stand_in("causal", other, 1) | {"true": 18.2}
    got = table(rows, TWO).splitlines()
    assert len({line.count("|") for line in got}) == 1
    assert got[-1].startswith("| none | 10 | 18.10 (18.00, 18.20) | **-1.95** | 22.00 (22.00, 22.00) | +0.00 | 12.00")


def small_runs(tmp_path, minutes=1.0):
    walks = synthetic_walks(clips=4, latents=21)
    model = small_model().autoencoder
    frames = np.random.default_rng(0).integers(0, 255, (4, 81, 64, 64, 3), dtype=np.uint8)
    data = SimpleNamespace(held=2, frames=frames, autoencoder=model, train=walks, held_out=walks)
    return Runs(tmp_path, data, Deadline(minutes))


def test_a_run_stops_at_the_deadline_and_goes_on(tmp_path):
    variant = replace(PLAIN, overrides=SMALL)
    late, runs = small_runs(tmp_path, 0), small_runs(tmp_path)
    for some in (late, runs):
        some.budget = lambda kind, some=some: run_flops(6, some.phases(kind, variant))
    assert late.run("causal", variant, 0) is None
    assert (tmp_path / "runs" / variant.key("causal", 0) / "checkpoint").exists()
    record = runs.run("causal", variant, 0)
    assert record["steps"] == 6 and {"true", "next", "opposite", "still"} < set(record)
    assert not any((tmp_path / "runs").iterdir())
    wider = replace(variant, overrides=(*SMALL, "causal.transformer.ffn_dim=96"))
    phases = runs.phases("causal", wider)
    assert min(b for _, b in phases) > min(b for _, b in runs.phases("causal", variant))
    assert runs.run("causal", wider, 0)["steps"] == equal_steps(runs.budget("causal"), phases) < 6


def test_the_next_latent_frame_is_judged_in_pixels(tmp_path):
    """Against the pictures that the linear code makes of the latents, for a code whose channels are orthogonal; x and velocity alike."""
    runs = small_runs(tmp_path)
    code = runs.data.autoencoder
    with torch.no_grad():
        rows = torch.linalg.qr(torch.randn(3072, 8, generator=generator(0, 0)))[0].T
        scale = torch.linspace(1, 2, 8)
        code.linear_encoder.weight.copy_((rows / scale[:, None]).view_as(code.linear_encoder.weight))
        code.code_gain.copy_(scale**2)
    stages = [
        runs.causal(replace(PLAIN, overrides=(*SMALL, f"causal.transformer.prediction_type={kind}")), 0, 6, tmp_path / kind)
        for kind in ("sample", "velocity")
    ]
    for stage in stages:
        torch.nn.init.zeros_(stage.model.proj_out.weight)
        torch.nn.init.zeros_(stage.model.proj_out.bias)
    clean = []
    draw = runs.data.held_out.draw

    def seen(batch, latents, rng):
        walk = draw(batch, latents, rng)
        clean.append(walk["latents"][:, :, 1:].transpose(1, 2).flatten(0, 1))
        return walk

    stages[0].held_out = SimpleNamespace(draw=seen)
    got = next_latents(stages[0], batches=2)  # of a model that says 0
    pictures = code.linear_frames(torch.cat(clean)) - code.linear_frames(torch.zeros_like(torch.cat(clean)))
    assert got == pytest.approx(float(10 * torch.log10(4 / pictures.square().mean())), abs=1e-3)
    assert next_latents(stages[1], batches=2) < got  # says that all of the noise is left
    assert stages[0].recipe.seed == 0 and not torch.equal(stages[0].channel_weight, stages[0].channel_weight.flip(1))


def test_optimisers_are_counted(tmp_path):
    runs = small_runs(tmp_path)
    muon, adam = (replace(PLAIN, overrides=(*SMALL, f"causal.optimiser={name}")) for name in ("muon", "adamw"))
    stages = [runs.causal(v, 0, 6, tmp_path / str(i)) for i, v in enumerate((muon, adam))]
    assert step_flops(stages[0].trainer, 1) > step_flops(stages[1].trainer, 1) > 0


def test_easy_windows_hold_fewer_actions():
    walks = synthetic_walks(clips=4, latents=8)
    walks.actions.zero_()
    for n in range(4):
        walks.actions[n, :, : 1 + 2 * n] = 1.0  # clip n: 1, 3, 5, 7 actions
    easy = EasyWindows(*(getattr(walks, k) for k in ("groups", "stills", "actions", "poses", "prompt", "text")))
    which, start = easy._draw_windows(64, 3, generator(0, 0))
    assert set(which.tolist()) == {0, 1} and int(start.max()) <= window_counts(walks.actions, 3).shape[1] - 1


def test_layouts_start_as_the_linear_code_and_may_leave_out_the_latent_frame_before():
    known = small_model().autoencoder
    latents, before = torch.randn(2, 8, 4, 4), torch.randn(2, 8, 4, 4)
    for unshuffle, width in ((4, 8), (8, 8), (2, 4)):
        made = with_code(Layout(8, unshuffle, width, True), known)
        assert torch.equal(made.decode_groups(latents, before), made._synthesise(latents))
        torch.nn.init.normal_(made.refine_out.weight)
        assert not torch.equal(made.decode_groups(latents, before), made.decode_groups(latents, latents))
        made.context = False
        assert torch.equal(made.decode_groups(latents, before), made.decode_groups(latents, latents))


def test_a_cut_code_is_the_first_channels_of_the_whole_one():
    known, video = small_model().autoencoder, torch.rand(1, 3, 5, 32, 32) * 2 - 1
    cut = with_code(TinyAutoencoder(5), known, 2.0)
    torch.testing.assert_close(cut.encode(video), known.encode(video)[:, :5] / 2)
