"""The account of training: FLOPs against a count by hand, every kind of step once, nothing changed by counting."""

import json
from contextlib import nullcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from distilling import TRANSFORMER, interrupt, synthetic_walks
from safetensors import safe_open
from small import small_model

from distill.autoencoder import AutoencoderRecipe, AutoencoderStage
from distill.causal import CausalRecipe, CausalStage
from distill.checkpoint import load_checkpoint
from distill.depth import DepthRecipe, DepthStage
from distill.optim import Optimisers, adamw, build_optimisers
from distill.plan import forward_flops
from distill.self_forcing import SelfForcingRecipe, SelfForcingStage
from distill.student_init import StudentInitRecipe, StudentInitStage, make_trajectories
from distill.teacher import TeacherRecipe, TeacherStage
from distill.trainer import Deadline, Trainer, generator
from distill.work import Step, Work, flop_counter, gemm_peak, hardware, weights_digest
from worldmodel.memory import MemoryConfig
from worldmodel.sampling import SamplerConfig

CPU = torch.device("cpu")
MEMORY, FEW = MemoryConfig(window=2, horizon=20), SamplerConfig(2, stochastic=True)


def linear(tokens, inside, outside, first=False):
    """FLOPs forward and backward: two a weight and token each way, the gradient of the input left out where the layer is the first."""
    return 2 * tokens * inside * outside * (2 if first else 3)


def attention(heads, queries, keys, width):
    """Scores and mixing forward; backward the scores again, and the gradients of scores, values, queries and keys."""
    return heads * 2 * queries * keys * width * (2 + 5)


def step_by_hand(batch, latents, passes, keys, text=6):
    """FLOPs of a step of the transformer of `distilling.TRANSFORMER` on 4x4 latents of 8 channels, without the optimiser.

    `passes` is how often every latent frame goes through; `keys` how many tokens a query meets in self-attention, on average.
    """
    d, ffn, freq, camera, layers = 24, 32, 16, 8, 2
    tokens, frames = 16 * latents * passes, latents * passes
    n = batch * tokens
    total = linear(n, 8, d, first=True) + linear(n, d, 8)  # patches in, latents out
    total += linear(batch * text, 16, d, first=True) + linear(batch * text, d, d)
    total += linear(batch * frames, freq, d, first=True) + linear(batch * frames, d, d) + linear(batch * frames, d, 6 * d)
    for inside in (4 * 13, 4 * 9):  # codes of actions and poses, of each latent frame once
        total += linear(batch * latents, inside, camera, first=True) + linear(batch * latents, camera, camera)
    block = 4 * linear(n, d, d) + 2 * linear(n, d, d) + 2 * linear(batch * text, d, d) + 2 * linear(n, d, ffn)
    block += linear(batch * frames, camera, d) + linear(batch * frames, camera, 2 * d)
    block += batch * (attention(2, tokens, keys, 12) + attention(2, tokens, text, 12))
    return total + layers * block


def stages(folder, **more):
    walks, autoencoder = synthetic_walks(), small_model().autoencoder
    common = (walks, walks, autoencoder, CPU)
    curriculum = ((0.0, 3, 2), (0.5, 5, 1))
    causal = CausalRecipe(transformer=TRANSFORMER | more, memory=MEMORY, sampler=FEW, steps=4, curriculum=curriculum, optimiser="adamw")
    teacher = TeacherRecipe(transformer=TRANSFORMER | more, sampler=FEW, steps=4, curriculum=curriculum, optimiser="adamw")
    return CausalStage(causal, folder / "causal", *common), TeacherStage(teacher, folder / "teacher", *common)


class After:
    """A deadline that passes after so many steps."""

    def __init__(self, steps):
        self.left = steps

    @property
    def passed(self):
        self.left -= 1
        return self.left < 0


def counted(stage, step):
    with flop_counter() as counter:
        stage.loss(step)[0].backward()
    return counter.get_total_flops()


def test_a_step_is_what_the_hand_counts(tmp_path):
    causal, teacher = stages(tmp_path)
    for step, latents, batch in ((0, 3, 2), (2, 5, 1)):
        assert counted(teacher, step) == step_by_hand(batch, latents, 1, 16 * latents)
        # every latent frame twice, each meeting itself, the window before it, and what is left of those that have left it
        meets = [16 * (1 + min(i, MEMORY.window)) for i in range(latents)]
        meets = [n + sum((-(-4 // MEMORY.factor(j))) ** 2 for j in range(i - MEMORY.window)) for i, n in enumerate(meets)]
        assert counted(causal, step) == step_by_hand(batch, latents, 2, Fraction(sum(meets), latents))


def test_three_forward_passes_of_the_plan_are_a_step_within_six_percent(tmp_path):
    """`plan.forward_flops` leaves out what is computed once a latent frame or prompt, here for only 16 tokens a latent frame."""
    _, teacher = stages(tmp_path, num_attention_heads=4, attention_head_dim=24, ffn_dim=256)
    for step, latents, batch in ((0, 3, 2), (2, 5, 1)):
        planned = 3 * batch * forward_flops(teacher.model.config, 16 * latents, 16 * latents, 6)
        assert planned == pytest.approx(counted(teacher, step), rel=0.06) and planned < counted(teacher, step)


def gradients(stage, step, under):
    stage.model.zero_grad()
    with under:
        stage.loss(step)[0].backward()
    return {n: p.grad.clone() for n, p in stage.model.named_parameters() if p.grad is not None}


def test_counting_changes_no_number(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (3, 9, 32, 32, 3), dtype=np.uint8)
    pictures = torch.from_numpy(frames[:, 0]), torch.rand(3, 16, 16)
    recipes = AutoencoderRecipe(latent_channels=8, batch=2, groups=2), DepthRecipe(widths=(8, 8, 8), batch=2)
    causal, teacher = stages(tmp_path, view_focal=0.7)
    for stage in (
        causal, teacher, AutoencoderStage(recipes[0], tmp_path, frames, frames, CPU),
        DepthStage(recipes[1], tmp_path, small_model().autoencoder, pictures, pictures, CPU),
    ):  # fmt: skip
        plain, under = (gradients(stage, 2, how) for how in (nullcontext(), flop_counter()))
        assert plain and plain.keys() == under.keys() and all(torch.equal(plain[n], under[n]) for n in plain)


def test_shapes_that_are_known_are_not_counted_again(tmp_path):
    whole, _ = stages(tmp_path / "whole")
    assert whole.trainer.run(Deadline(1))
    for steps in (1, 2, 9):  # the first slice meets one of two shapes, the second ends between two steps of the other
        cut, _ = stages(tmp_path / "cut")
        assert cut.trainer.run(After(steps)) == (steps == 9)
    assert [list(s["step_flops"]) for s in cut.trainer.work.slices] == [["2x3"], ["1x5"], []]
    assert cut.trainer.work.flops == whole.trainer.work.flops
    assert all(map(torch.equal, whole.model.parameters(), cut.model.parameters()))


def toy(folder, steps=7, odd=9):
    """Even steps multiply matrices 4x5x6, odd ones 4x5x9 as well; the loss is of the first."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 6, bias=False)

    def loss(step):
        x = torch.randn(4, 5, generator=generator(0, step))
        if step % 2:
            x @ torch.ones(5, odd)
        return model(x).square().mean(), {}

    optimisers = Optimisers(adamw(model.parameters(), 1e-3, 0.0, (0.9, 0.99)))
    return Trainer("toy", folder, model, optimisers, loss, steps=steps, shape=lambda step: Step(4, 3, ("even", "odd")[step % 2]))


EVEN, ODD = 2 * (2 * 4 * 5 * 6), 2 * (2 * 4 * 5 * 6) + 2 * 4 * 5 * 9  # forward and the weight's gradient


def test_slices_add_up_also_after_an_interruption(tmp_path):
    first = toy(tmp_path)
    first.work.origin = {"recipe": "toy", "digest": "0123", "from": "abcd"}
    interrupt(first, at=3)
    assert not toy(tmp_path).run(Deadline(0))  # a slice in which nothing is done leaves no line
    last = toy(tmp_path)
    assert last.run(Deadline(1))
    rows = [json.loads(line) for line in (tmp_path / "work.jsonl").read_text().splitlines()]
    assert rows == last.work.slices == load_checkpoint(tmp_path / "checkpoint")[1]["work"]
    assert [r["steps"] for r in rows] == [[0, 3], [3, 7]]
    assert [r["flops"] for r in rows] == [2 * EVEN + ODD, 2 * EVEN + 2 * ODD] and last.work.flops == sum(r["flops"] for r in rows)
    assert [(r["sequences"], r["latent_frames"]) for r in rows] == [(12, 36), (16, 48)]
    assert rows[0]["from"] == "abcd" and "from" not in rows[1]
    assert rows[0]["hardware"].items() >= hardware(CPU).items() and rows[0]["hardware"]["gemm"] == gemm_peak(CPU) > 0
    assert all(0 < r["seconds"] <= last.seconds for r in rows)


def test_several_processes_do_several_times_the_work():
    work = Work(CPU, processes=3)
    work.begin(5)
    with work.step(Step(6, 2)):
        torch.ones(4, 5) @ torch.ones(5, 6)
    assert work.flops == 3 * 240 and work.slices[0]["sequences"] == 6 and work.slices[0]["steps"] == [5, 6]


def test_a_checkpoint_without_an_account_goes_on(tmp_path):
    whole = toy(tmp_path, steps=4)
    whole.run(Deadline(1))
    state = tmp_path / "checkpoint" / "state.json"
    state.write_text(json.dumps({k: v for k, v in json.loads(state.read_text()).items() if k != "work"}))
    on = toy(tmp_path, steps=6)
    assert on.work.slices == [] and on.run(Deadline(1))
    assert [s["steps"] for s in on.work.slices] == [[4, 6]]


def test_steps_of_one_shape_cost_the_same(tmp_path):
    """Self-forcing's depend on whose turn it is and on the exit step, the student's on its blocks."""
    walks, autoencoder = synthetic_walks(), small_model().autoencoder
    weights = small_model(1).transformer
    sampler = SamplerConfig(3, stochastic=True)
    forced = SelfForcingRecipe(memory=MEMORY, sampler=sampler, steps=40, curriculum=((0.0, 3, 1),), critic_per_generator=1)
    forced = SelfForcingStage(forced, tmp_path / "forced", walks, walks, autoencoder, CPU, weights, weights)
    student = StudentInitRecipe(
        memory=MEMORY, sampler=FEW, blocks=4, noisy_blocks=2, trajectories=3, trajectory_steps=2, shard=2, guidance=1.0, batch=1
    )
    assert make_trajectories(weights, walks, autoencoder, tmp_path / "student" / "trajectories", student, CPU)
    shards = []
    for path in sorted((tmp_path / "student" / "trajectories").glob("*.safetensors")):
        with safe_open(path, "pt") as f:
            shards.append(json.loads(f.metadata()["work"]))
    assert [s["sequences"] for s in shards] == [2, 1] and shards[0]["flops"] == 2 * shards[1]["flops"] > 0
    student = StudentInitStage(student, tmp_path / "student", walks, walks, autoencoder, CPU, weights)
    for stage, kinds in ((forced, 6), (student, 2)):
        found = {}
        for step in range(24):
            with flop_counter() as counter:
                loss = stage.trainer.loss(step)[0]
                if loss.requires_grad:
                    loss.backward()
            found.setdefault(stage.trainer.shape(step), set()).add(counter.get_total_flops())
        assert len(found) == kinds and all(len(flops) == 1 for flops in found.values())
        assert len(set.union(*found.values())) == kinds
        if stage is forced:  # one more exit step is one more pass
            for turn in ("fake", "generator"):
                a, b, c = (found[Step(1, 3, f"{turn}, exit {e}")].pop() for e in range(3))
                assert c - b == b - a > 0


def test_muon_counts_as_well(tmp_path):
    """Five rounds of three products of matrices for a square weight."""
    work, model = Work(CPU), torch.nn.Linear(8, 8)
    optimisers = build_optimisers(model, "muon", 0.01, 0.01, 0.0)
    work.begin(0)
    model.weight.grad = torch.randn(8, 8)
    with work.step(Step()):
        optimisers.step(1.0)
    assert work.flops == 5 * 3 * 2 * 8**3


def test_a_digest_is_that_of_the_export(tmp_path):
    model = small_model()
    digest = weights_digest(model.transformer.state_dict())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.fingerprint == f"small-{digest}" == f"small-{weights_digest(again.transformer.state_dict())}"
    with torch.no_grad():
        model.transformer.proj_out.bias[0] += 1
    assert weights_digest(model.transformer.state_dict()) != digest
