"""ODE initialisation: trajectories lie on the teacher's flow and survive a cut; hybrid forcing regresses what it should."""

import numpy as np
import pytest
import torch
from distilling import TRANSFORMER, GaussianTeacher, synthetic_walks
from omegaconf import OmegaConf
from safetensors.torch import load_file
from small import small_model

from distill.student_init import StudentInitRecipe, StudentInitStage, Trajectories, hybrid_levels, make_trajectories
from distill.teacher import sample_sequence
from distill.trainer import Deadline, generator
from worldmodel.memory import MemoryConfig
from worldmodel.sampling import SamplerConfig
from worldmodel.transformer import CausalWorldTransformer

CPU = torch.device("cpu")
AUTOENCODER = small_model().autoencoder


def make_recipe(**changes):
    return StudentInitRecipe(**dict(
        transformer=TRANSFORMER, memory=MemoryConfig(window=2), sampler=SamplerConfig(4), blocks=6, noisy_blocks=2, trajectories=5,
        trajectory_steps=8, shard=2, guidance=1.0, steps=30, batch=3, lr=0.01, adam_lr=3e-3,
    ) | changes)  # fmt: skip


def real_teacher():
    torch.manual_seed(1)
    model = CausalWorldTransformer(**TRANSFORMER | dict(in_channels=8, out_channels=8, text_dim=16, rope_original_latents=4))
    return model.set_rope_extension(1.5)


def make_stage(folder, init=None, **changes):
    walks = synthetic_walks()
    return StudentInitStage(make_recipe(**changes), folder, walks, walks, AUTOENCODER, CPU, init)


# -- trajectories ----------------------------------------------------------------------------------------------------------
def test_states_lie_on_the_known_flow_at_the_students_levels(tmp_path):
    teacher, recipe = GaussianTeacher(), make_recipe(trajectory_steps=96)
    assert make_trajectories(teacher, synthetic_walks(), AUTOENCODER, tmp_path, recipe, CPU)
    found = Trajectories(tmp_path)
    assert len(found) == 5
    for i in range(5):
        states = found.read(i)["states"]  # S+1 C T h w
        assert states.shape == (5, 8, 6, 4, 4)
        noise = states[0][:, 1:]
        for state, sigma in zip(states, (1, 0.9375, 5 / 6, 0.625, 0), strict=True):
            assert (state[:, 1:] - teacher.on_the_flow(noise, sigma)).abs().max() < 0.03 * noise.abs().max()
            assert torch.equal(state[:, 0], states[0][:, 0])  # the start picture


def test_the_last_state_is_what_the_sampler_gives(tmp_path):
    teacher, recipe, walks = real_teacher(), make_recipe(guidance=2.0), synthetic_walks()
    make_trajectories(teacher, walks, AUTOENCODER, tmp_path, recipe, CPU)
    rng = generator(recipe.seed + 1, 1)  # the second shard
    walk = walks.draw(2, 6, rng)
    noise = torch.randn(walk["latents"].shape, generator=rng)
    want = sample_sequence(
        teacher, noise, walk["text"], walk["actions"], walk["poses"], SamplerConfig(8), walk["latents"][:, :, :1], guidance=2.0
    )
    for row in range(2):
        got = Trajectories(tmp_path).read(2 + row)
        assert torch.allclose(got["states"][-1], want[row], atol=2e-3)
        assert torch.allclose(got["states"][0][:, 1:], noise[row, :, 1:], atol=2e-3)
        assert all(torch.equal(got[k], walk[k][row]) for k in ("actions", "poses", "text"))
    part = Trajectories(tmp_path).read(2, latents=4)
    assert torch.equal(part["states"], Trajectories(tmp_path).read(2)["states"][:, :, :4])
    assert part["actions"].shape == part["poses"].shape[:1] + (13,) == (13, 13)


def test_trajectories_resume_by_shard_and_refuse_a_mixture(tmp_path):
    teacher, walks, recipe = GaussianTeacher(), synthetic_walks(), make_recipe()
    assert not make_trajectories(teacher, walks, AUTOENCODER, tmp_path, recipe, CPU, Deadline(0))
    with pytest.raises(FileNotFoundError, match="make_trajectories"):
        Trajectories(tmp_path)
    assert make_trajectories(teacher, walks, AUTOENCODER, tmp_path, recipe, CPU)
    files = sorted(tmp_path.iterdir())
    assert [p.name for p in files] == [f"trajectories-0000{i}.safetensors" for i in range(3)]
    content = [load_file(p) for p in files]
    files[1].unlink()
    teacher.timesteps.clear()
    assert make_trajectories(teacher, walks, AUTOENCODER, tmp_path, recipe, CPU)
    assert len(teacher.timesteps) == recipe.trajectory_steps  # one shard was made, not three
    for path, want in zip(files, content, strict=True):  # seconds in the metadata differ
        got = load_file(path)
        assert got.keys() == want.keys() and all(torch.equal(got[k], want[k]) for k in want)
    for other_teacher, other in ((GaussianTeacher(mean=0.1), recipe), (teacher, make_recipe(guidance=2.0))):
        with pytest.raises(ValueError, match="another teacher or recipe"):
            make_trajectories(other_teacher, walks, AUTOENCODER, tmp_path, other, CPU)


# -- hybrid forcing --------------------------------------------------------------------------------------------------------
def test_levels_are_the_students_one_for_each_noisy_block():
    recipe = make_recipe(chunk=2, blocks=6, noisy_blocks=2)
    assert recipe.latents == 11
    index = hybrid_levels(recipe, 5, 500, torch.Generator().manual_seed(0))
    assert index.shape == (500, 9) and (index[:, :5] == 4).all()
    assert torch.equal(index[:, 5], index[:, 6]) and torch.equal(index[:, 7], index[:, 8])
    assert (index[:, 5] != index[:, 7]).float().mean() == pytest.approx(0.75, abs=0.08)  # independent
    assert index[:, 5:].unique().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("chunk", "blocks"), [(1, 6), (2, 4)])
def test_loss_is_the_error_of_the_clean_end_of_noisy_blocks(tmp_path, chunk, blocks):
    """A point mass has straight flows: the exact velocity has no loss, one that is off by d has d^2 times the mean of sigma^2."""
    teacher = GaussianTeacher(std=0.0)
    make_trajectories(teacher, synthetic_walks(), AUTOENCODER, tmp_path / "trajectories", make_recipe(chunk=chunk, blocks=blocks), CPU)
    stage = make_stage(tmp_path, chunk=chunk, blocks=blocks)
    noisy = slice(-2 * chunk, None)

    class Off(GaussianTeacher):
        def forward(self, x, timestep, text, actions, poses, layout, view):
            assert actions.shape[1] == poses.shape[1] == 4 * x.shape[2] - 3
            assert layout.mask.shape[0] == 16 * x.shape[2]
            self.seen = x, timestep
            return super().forward(x, timestep, text) + self.off

    stage.model, lengths = Off(std=0.0), set()
    for step in range(8):
        stage.model.off = 0.0
        assert stage.loss(step)[0] < 1e-5
        stage.model.off = 0.5
        loss, numbers = stage.loss(step)
        x, timestep = stage.model.seen
        assert (timestep[:, : -2 * chunk] == 0).all() and (
            (x[:, :, 1 : -2 * chunk] - 0.7).abs() < 1e-3
        ).all()  # clean: the trajectory's end
        assert timestep[:, noisy].min() >= 624
        assert float(loss.detach()) == pytest.approx(0.25 * float((timestep[:, noisy] / 1000).square().mean()), rel=1e-2)
        assert x.shape[2] == 1 + chunk * (numbers["blocks"] - 1)
        lengths.add(numbers["blocks"])
    assert lengths <= set(range(3, blocks + 1)) and len(lengths) > 1


def test_learns_from_the_teacher_and_plays(tmp_path):
    teacher = real_teacher()
    make_trajectories(teacher, synthetic_walks(), AUTOENCODER, tmp_path / "trajectories", make_recipe(), CPU)
    stage = make_stage(tmp_path, teacher)
    assert all(torch.equal(v, stage.model.state_dict()[k]) for k, v in teacher.state_dict().items())
    assert stage.model.config.rope_extension == 1.5
    before = np.mean([float(stage.loss(s)[0].detach()) for s in range(1000, 1004)])
    assert stage.trainer.run(Deadline(5))
    after = np.mean([float(stage.loss(s)[0].detach()) for s in range(1000, 1004)])
    assert after < 0.8 * before
    assert list(tmp_path.glob("sheet-*.png"))
    stage.finish()
    assert CausalWorldTransformer.from_pretrained(tmp_path / "model").config.rope_extension == 1.5


def test_resume_equals_uninterrupted(tmp_path):
    teacher = real_teacher()
    for name in ("whole", "cut"):
        make_trajectories(teacher, synthetic_walks(), AUTOENCODER, tmp_path / name / "trajectories", make_recipe(), CPU)
    whole = make_stage(tmp_path / "whole", teacher, steps=6)
    whole.trainer.sample = None
    assert whole.trainer.run(Deadline(5))
    first = make_stage(tmp_path / "cut", teacher, steps=6)

    def stop(step):
        if step == 3:
            raise KeyboardInterrupt
        return first.loss(step)

    first.trainer.loss = stop
    with pytest.raises(KeyboardInterrupt):
        first.trainer.run(Deadline(5))
    second = make_stage(tmp_path / "cut", teacher, steps=6)
    second.trainer.sample = None
    assert second.trainer.step == 3 and second.trainer.run(Deadline(5))
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(v, second.trainer.ema.weights[k]) for k, v in whole.trainer.ema.weights.items())


def test_recipes_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="multiple of sampler.steps"):
        make_recipe(trajectory_steps=10)
    with pytest.raises(ValueError, match="noisy_blocks is 1"):
        make_recipe(noisy_blocks=6)
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(StudentInitRecipe), {"blocks": 12})).latents == 12
