"""Self-forcing keeps the trainer's promises: resume equals uninterrupted, little is lost, only the generator is averaged."""

from types import SimpleNamespace

import pytest
import torch
from distilling import TRANSFORMER, synthetic_walks
from small import small_model

import distill.self_forcing
import distill.trainer
from distill.dmd import Condition
from distill.rollout import roll_out
from distill.self_forcing import FAKE, GENERATOR, SelfForcingRecipe, SelfForcingStage
from distill.trainer import Deadline, generator, phase
from worldmodel.camera_view import ViewBlend
from worldmodel.memory import MemoryConfig
from worldmodel.sampling import SamplerConfig


def make_stage(folder, view=False, teachers=None, **changes):
    recipe = SelfForcingRecipe(
        **dict(
            transformer=TRANSFORMER, memory=MemoryConfig(window=2, horizon=20), sampler=SamplerConfig(2, 5.0, True), steps=9,
            curriculum=((0.0, 4, 2), (0.5, 6, 1)), critic_per_generator=2, lr=1e-3, critic_lr=1e-3, warmup=1,
        ) | changes
    )  # fmt: skip
    start, teacher = small_model(0), small_model(1)
    weights = [m.transformer.state_dict() for m in (start, teacher)]
    if view:
        torch.manual_seed(0)
        blend = ViewBlend(24, 8)
        for p in blend.parameters():
            torch.nn.init.normal_(p, std=0.1)
        weights = [w | {f"view_blend.{k}": v for k, v in blend.state_dict().items()} for w in weights]
    return SelfForcingStage(
        recipe, folder, synthetic_walks(), synthetic_walks(), start.autoencoder, torch.device("cpu"),
        *weights, teachers=teachers,
    )  # fmt: skip


def test_regression_adds_the_way_to_the_walk(tmp_path, monkeypatch):
    """With equal scores nothing but the regression is left: its gradient is that of the mean squared error of the roll-out."""
    monkeypatch.setattr(distill.self_forcing, "score_difference", lambda x, *_: torch.zeros_like(x))
    stage = make_stage(tmp_path, regression=2.0, critic_per_generator=1, sampler=SamplerConfig(1), pixel_weight=0.5)
    stage.generator.zero_grad()
    loss, _ = stage.loss(1)
    got = {k: p.grad.clone() for k, p in stage.generator.named_parameters() if p.grad is not None}
    rng = generator(stage.recipe.seed, 1)
    walk = stage.walks.draw(2, 4, rng)
    torch.randint(1, (), generator=rng)
    seed = int(torch.randint(2**31, (), generator=rng))
    condition = Condition(walk["text"], walk["actions"], walk["poses"])
    stage.generator.zero_grad()
    played = roll_out(stage.generator, walk["latents"][:, :, :1], condition, stage.recipe.roll_out(None), seed, 0, graph=True)
    gain = stage.autoencoder.channel_gain
    weight = (gain / gain.mean()).view(1, -1, 1, 1, 1)
    (2.0 * 0.5 * (weight * (played.latents - walk["latents"]).square()).mean()).backward()
    for k, p in stage.generator.named_parameters():
        if p.grad is not None:
            assert torch.allclose(got[k], p.grad, atol=1e-6), k


def test_each_length_is_scored_by_the_teacher_of_that_length(tmp_path):
    stage = make_stage(tmp_path / "run", teachers=tmp_path)
    for seed, name, extension in ((5, "model-004", 1.0), (6, "model", 1.5)):
        teacher = small_model(seed).transformer
        teacher.set_rope_extension(extension, 4).save_pretrained(tmp_path / name)
    for step, seed, extension in ((0, 5, 1.0), (8, 6, 1.5), (2, 5, 1.0)):  # walks of 4, 6 and 4 latent frames
        fake = {k: v.clone() for k, v in stage.fake.state_dict().items()}
        stage.loss(step)
        want = small_model(seed).transformer.state_dict()
        assert all(torch.equal(v, want[k]) for k, v in stage.real.state_dict().items())
        assert stage.real.rope.extension == stage.fake.rope.extension == extension
        assert not any(p.requires_grad for p in stage.real.parameters())
        assert all(torch.equal(v, fake[k]) for k, v in stage.fake.state_dict().items())


def test_the_scores_are_shown_the_start_picture(tmp_path):
    stage = make_stage(tmp_path, transformer=TRANSFORMER | dict(view_focal=0.7), view=True)
    for step in (0, 2):  # the fake score's turn, the generator's
        stage.trainer.model.zero_grad()
        loss, _ = stage.loss(step)
        if loss.requires_grad:
            loss.backward()
        moved = stage.fake if step == 0 else stage.generator
        assert moved.view_blend.gate.weight.grad.abs().max() > 0


def all_weights(stage):
    return {**stage.trainer.model.state_dict(), **{f"ema.{k}": v for k, v in stage.trainer.ema.weights.items()}}


def stop_at(stage, step):
    real = stage.trainer.loss

    def loss(at):
        if at == step:
            real(at)  # leaves gradients behind, as an interrupted step would
            raise KeyboardInterrupt
        return real(at)

    stage.trainer.loss = loss


def test_resume_equals_uninterrupted(tmp_path):
    whole = make_stage(tmp_path / "whole")
    assert whole.trainer.run(Deadline(2))
    first = make_stage(tmp_path / "cut")
    stop_at(first, 5)  # a generator step, in the second phase
    with pytest.raises(KeyboardInterrupt):
        first.trainer.run(Deadline(2))
    second = make_stage(tmp_path / "cut")
    assert second.trainer.step == 5
    assert second.trainer.run(Deadline(2))
    want, got = all_weights(whole), all_weights(second)
    assert all(torch.equal(want[k], got[k]) for k in want)
    again = make_stage(tmp_path / "cut")  # of the finished run: both optimisers' states came back too
    a, b = whole.trainer.optimisers.state_tensors(), again.trainer.optimisers.state_tensors()
    assert {k.split(".")[0] for k in a} == {"0", "1"} and all(torch.equal(a[k], b[k]) for k in a)
    finished = again.finish()
    assert (tmp_path / "cut" / "model" / "config.json").exists()
    assert all(torch.equal(v, again.trainer.ema.weights[k]) for k, v in finished.state_dict().items())
    assert list((tmp_path / "cut").glob("sheet-000009.png"))


def test_a_killed_run_loses_one_interval_at_most(tmp_path, monkeypatch):
    """Steps of 50 s on a made clock, checkpoints every 120 s, and a death that saves nothing."""
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(distill.trainer, "time", clock)
    stage = make_stage(tmp_path)
    real, save, saved_at = stage.trainer.loss, stage.trainer.save, []

    def loss(step):
        if step == 7:
            stage.trainer.save = lambda: None
            raise KeyboardInterrupt
        clock.now += 50
        return real(step)

    def timed():
        saved_at.append(clock.now)
        save()

    stage.trainer.loss, stage.trainer.save = loss, timed
    with pytest.raises(KeyboardInterrupt):
        stage.trainer.run(Deadline(1000))
    assert saved_at == [150, 300]
    assert make_stage(tmp_path).trainer.step == 6


def test_an_update_cut_in_the_middle_is_not_saved(tmp_path):
    stage = make_stage(tmp_path)
    step, count = stage.trainer.optimisers.step, iter(range(9))

    def cut(factor, turn):
        step(factor, turn)
        if next(count) == 2:
            raise KeyboardInterrupt  # the generator has moved, its average and the step number have not
        stage.trainer.save()

    stage.trainer.optimisers.step = cut
    with pytest.raises(KeyboardInterrupt):
        stage.trainer.run(Deadline(2))
    again = make_stage(tmp_path)
    assert all(torch.equal(v, again.trainer.ema.weights[k]) for k, v in again.generator.state_dict().items())


def test_whose_turn_it_is(tmp_path):
    """The fake score's turn leaves the generator and its average alone, the generator's turn the fake score; the teacher never moves."""
    stage = make_stage(tmp_path, steps=3)
    recipe = stage.recipe
    assert [recipe.turn(s) for s in range(6)] == [FAKE, FAKE, GENERATOR] * 2
    before, teacher = {k: v.clone() for k, v in all_weights(stage).items()}, {k: v.clone() for k, v in stage.real.state_dict().items()}
    assert all(torch.equal(before[f"fake.{k}"], v) for k, v in teacher.items())  # the fake score starts as the teacher

    def moved(prefix):
        return any(not torch.equal(before[k], v) for k, v in all_weights(stage).items() if k.startswith(prefix))

    stop_at(stage, 2)
    with pytest.raises(KeyboardInterrupt):
        stage.trainer.run(Deadline(2))
    assert moved("fake.") and not moved("generator.") and not moved("ema.")
    before = {k: v.clone() for k, v in all_weights(stage).items()}
    stage = make_stage(tmp_path, steps=3)
    stage.trainer.run(Deadline(2))
    assert moved("generator.") and moved("ema.") and not moved("fake.")
    assert all(torch.equal(teacher[k], v) for k, v in stage.real.state_dict().items())


def test_replay_and_full_graph_train_alike(tmp_path):
    stages = [make_stage(tmp_path / str(replay), replay=replay) for replay in (True, False)]
    losses = [float(stage.loss(2)[0]) for stage in stages]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    a, b = (torch.cat([p.grad.flatten() for p in stage.generator.parameters()]) for stage in stages)
    assert (a - b).norm() <= 1e-5 * b.norm() and b.norm() > 0
    assert all(p.grad is None for stage in stages for p in (*stage.fake.parameters(), *stage.real.parameters()))


def test_a_larger_teacher_and_refusals(tmp_path):
    with pytest.raises(ValueError, match="of the score do not fit"):
        make_stage(tmp_path, score={"num_layers": 3})
    with pytest.raises(ValueError, match="1 or more"):
        SelfForcingRecipe(critic_per_generator=0)
    recipe = SelfForcingRecipe()
    horizon = [phase(recipe.curriculum, s, recipe.steps)[0] for s in range(5, recipe.steps, 6)]
    assert [horizon.count(n) for n in (21, 40, 80)] == [250, 150, 150]  # RELIC's generator steps of 5, 10 and 20 s
