"""The teacher: its sampler against a closed-form flow, its noise, its curriculum, and that it learns and resumes."""

import numpy as np
import pytest
import torch
from distilling import TRANSFORMER, GaussianTeacher, synthetic_walks
from omegaconf import OmegaConf
from small import small_model

from distill.causal import CausalRecipe, CausalStage
from distill.teacher import TeacherRecipe, TeacherStage, sample_sequence, teacher_for
from distill.trainer import Deadline
from worldmodel.memory import MemoryConfig
from worldmodel.sampling import SamplerConfig
from worldmodel.transformer import CausalWorldTransformer

RECIPE = dict(transformer=TRANSFORMER, sampler=SamplerConfig(2), lr=0.01, adam_lr=3e-3, guidance=2.0)


def clips(batch=2, latents=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    frames = 1 + 4 * (latents - 1)
    return (
        torch.randn(batch, 8, latents, 4, 4, generator=g), torch.randn(batch, 6, 16, generator=g),
        torch.rand(batch, frames, 13, generator=g), torch.randn(batch, frames, 9, generator=g),
    )  # fmt: skip


@pytest.mark.parametrize("prediction_type", ["velocity", "sample"])
def test_sampler_follows_the_known_flow(prediction_type):
    model = GaussianTeacher(prediction_type=prediction_type)
    noise, text, actions, poses = clips()
    errors = []
    for steps in (48, 192):
        sampler = SamplerConfig(steps=steps, shift=5.0)
        states = sample_sequence(model, noise, text, actions, poses, sampler, trajectory=True)
        want = torch.stack([model.on_the_flow(noise, float(s)) for s in sampler.scheduler().sigmas])
        assert states.shape == want.shape == (steps + 1, *noise.shape)
        errors.append(float((states - want).abs().max()))
        assert torch.equal(states[-1], sample_sequence(model, noise, text, actions, poses, sampler))
    assert errors[0] < 0.06 * noise.abs().max() and errors[1] < 0.3 * errors[0]  # Euler: first order


def test_straight_flow_is_exact_in_any_number_of_steps():
    model = GaussianTeacher(std=0.0)
    noise, text, actions, poses = clips()
    for steps in (1, 3):
        assert (sample_sequence(model, noise, text, actions, poses, SamplerConfig(steps)) - 0.7).abs().max() < 1e-5


def test_start_picture_stays_clean():
    model, first = GaussianTeacher(), torch.randn(2, 8, 1, 4, 4)
    noise, text, actions, poses = clips()
    states = sample_sequence(model, noise, text, actions, poses, SamplerConfig(3), first, trajectory=True)
    assert (states[:, :, :, :1] == first).all()
    assert torch.equal(states[0][:, :, 1:], noise[:, :, 1:])
    levels = torch.stack(model.timesteps)  # steps B T
    assert (levels[:, :, 0] == 0).all() and (levels[:, :, 1:] == levels[:, :, 1:2]).all()
    assert torch.allclose(levels[:, 0, 1], 1000 * SamplerConfig(3).scheduler().sigmas[:3])


def test_guidance_pushes_away_from_the_zero_prompt():
    class Text(GaussianTeacher):
        def forward(self, x, timestep, text, *_, **__):
            return (0.25 + text.mean((1, 2)))[:, None, None, None, None].expand_as(x)

    noise, text, actions, poses = clips()
    c = text.mean((1, 2))[:, None, None, None, None]
    for guidance in (1.0, 3.0):
        got = sample_sequence(Text(), noise, text, actions, poses, SamplerConfig(4), guidance=guidance)
        assert torch.allclose(got, noise - 0.25 - guidance * c, atol=1e-5)  # a constant velocity, over a time of 1


def make_stage(folder, **changes):
    recipe = TeacherRecipe(**RECIPE | dict(steps=30, curriculum=((0.0, 3, 4), (0.5, 5, 2))) | changes)
    walks = synthetic_walks()
    return TeacherStage(recipe, folder, walks, walks, small_model().autoencoder, torch.device("cpu"))


def spy(stage):
    """Record what the model is given."""
    calls, real = [], stage.model.forward
    stage.model.forward = lambda x, t, text, *a, **k: calls.append((x, t, text, a, k)) or real(x, t, text, *a, **k)
    return calls


def test_one_level_for_all_but_the_clean_first(tmp_path):
    stage = make_stage(tmp_path, curriculum=((0.0, 4, 64),), first_clean=0.75)
    calls = spy(stage)
    stage.loss(3)
    x, t, _, _, kwargs = calls[0]
    assert "layout" not in kwargs and "memory" not in kwargs  # bidirectional
    assert (t[:, 1:] == t[:, 1:2]).all() and len(t[:, 1].unique()) == 64 and 0 < t[:, 1].min() and t.max() <= 1000
    clean = t[:, 0] == 0
    assert (t[~clean, 0] == t[~clean, 1]).all() and 0.55 < clean.float().mean() < 0.95
    known = synthetic_walks().stills.float().flatten(0, 1)  # N*T C h w
    is_still = (x[:, None, :, 0] == known[None]).flatten(2).all(2).any(1)
    assert torch.equal(is_still, clean)
    # half of the levels lie above shift(1/2) = 5/6
    assert 0.3 < (t[:, 1] > 1000 * 5 / 6).float().mean() < 0.7


def test_dropped_prompts_are_zero_as_in_the_causal_stage(tmp_path):
    walks, autoencoder = synthetic_walks(), small_model().autoencoder
    recipe = CausalRecipe(
        transformer=TRANSFORMER, memory=MemoryConfig(window=2), sampler=SamplerConfig(2), curriculum=((0.0, 3, 16),), text_dropout=0.5
    )
    causal = CausalStage(recipe, tmp_path / "causal", walks, walks, autoencoder, torch.device("cpu"))
    teacher = make_stage(tmp_path / "teacher", curriculum=((0.0, 3, 16),), text_dropout=0.5)
    for stage in (causal, teacher):
        calls = spy(stage)
        stage.loss(0)
        text = calls[0][2]
        dropped = (text == 0).flatten(1).all(1)
        assert 0 < dropped.sum() < 16
        assert all(any(torch.equal(t, row) for row in walks.text) for t in text[~dropped])


def test_learns_grows_and_keeps_each_phase(tmp_path):
    stage = make_stage(tmp_path, steps=40)
    probes = (1000, 1001, 1002)  # fixed batches of the longest phase
    before = np.mean([float(stage.loss(s)[0].detach()) for s in probes])
    assert stage.trainer.run(Deadline(5))
    after = np.mean([float(stage.loss(s)[0].detach()) for s in probes])
    assert after < 0.8 * before
    assert list(tmp_path.glob("sheet-*.png"))
    rows = (tmp_path / "slices.jsonl").read_text()
    assert all(f'"{k}"' in rows for k in ("true", "opposite", "still"))
    model = stage.finish()
    assert model.config.rope_original_latents == 3 and model.config.rope_extension == pytest.approx(5 / 3)
    assert teacher_for(tmp_path, 3) == tmp_path / "model-003" and teacher_for(tmp_path, 5) == tmp_path / "model"
    short, long = (CausalWorldTransformer.from_pretrained(teacher_for(tmp_path, n)) for n in (3, 5))
    assert short.config.rope_extension == 1.0 and long.config.rope_extension == pytest.approx(5 / 3)
    assert not torch.equal(short.proj_out.weight, long.proj_out.weight)


def test_resume_equals_uninterrupted(tmp_path):
    changes = dict(steps=6, guidance=1.0, curriculum=((0.0, 2, 2), (0.5, 4, 2)))
    whole = make_stage(tmp_path / "whole", **changes)
    whole.trainer.sample = None
    assert whole.trainer.run(Deadline(5))
    for stop_at in (3, 5):  # at the change of length, and after it
        folder = tmp_path / f"cut-{stop_at}"
        first = make_stage(folder, **changes)

        def stop(step, first=first, stop_at=stop_at):
            if step == stop_at:
                raise KeyboardInterrupt
            return first.loss(step)

        first.trainer.loss = stop
        with pytest.raises(KeyboardInterrupt):
            first.trainer.run(Deadline(5))
        second = make_stage(folder, **changes)
        second.trainer.sample = None
        assert second.trainer.step == stop_at and second.trainer.run(Deadline(5))
        for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
            assert torch.equal(a, b)
        assert all(torch.equal(v, second.trainer.ema.weights[k]) for k, v in whole.trainer.ema.weights.items())
        kept = [CausalWorldTransformer.from_pretrained(f / "model-002").state_dict() for f in (tmp_path / "whole", folder)]
        assert all(torch.equal(v, kept[1][k]) for k, v in kept[0].items())


def test_recipe_is_a_structured_config():
    config = OmegaConf.merge(OmegaConf.structured(TeacherRecipe), {"curriculum": [[0.0, 6, 8], [0.5, 12, 4]], "steps": 100})
    recipe = OmegaConf.to_object(config)
    assert [recipe.phase(s) for s in (0, 49, 50, 99)] == [(6, 8), (6, 8), (12, 4), (12, 4)]
