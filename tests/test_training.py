"""The trainer keeps its promises: resume equals uninterrupted, noise levels and draws are what the recipe says, it learns."""

import json

import numpy as np
import pytest
import torch
from distilling import TRANSFORMER, interrupt, relic_recipe, synthetic_walks
from small import small_model

import distill.trainer
from distill.autoencoder import AutoencoderRecipe, AutoencoderStage, psnr, to_frames, to_video
from distill.causal import CausalRecipe, CausalStage, noise_levels, shifted
from distill.checkpoint import load_checkpoint, save_checkpoint
from distill.export import playable_stage
from distill.latents import encode_clip
from distill.optim import Muon, build_optimisers, orthogonalise
from distill.recipe import FOLDER as RECIPES
from distill.recipe import Recipe, RecipeError, load_recipe
from distill.scenes import render
from distill.train import main as train_main
from distill.train import train_models
from distill.trainer import Deadline, Trainer, generator, schedule
from worldmodel.camera import pose_code, relative_to_first
from worldmodel.memory import MemoryConfig
from worldmodel.projection import inside, look_up, pixel_rays, relative
from worldmodel.sampling import SamplerConfig
from worldmodel.transformer import CausalWorldTransformer


def make_trainer(folder, steps=8):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))

    def loss(step):
        x = torch.randn(5, 6, generator=generator(3, step))
        value = (model(x) - x[:, :3]).square().mean()
        return value, {"x": float(value.detach())}

    return Trainer("toy", folder, model, build_optimisers(model, "muon", 0.02, 1e-2, 0.01), loss, steps=steps)


def test_samples_come_every_so_many_steps_and_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(distill.trainer, "SAMPLE_STEPS", 3)
    plain, sampled = make_trainer(tmp_path / "plain"), make_trainer(tmp_path / "sampled")
    seen = []

    def sample(folder):
        averaged = all(torch.equal(v, sampled.ema.weights[k]) for k, v in sampled.model.state_dict().items())
        seen.append((sampled.step, averaged, sampled.model.training))
        return {"step": sampled.step}

    sampled.sample = sample
    assert plain.run(Deadline(1)) and sampled.run(Deadline(1))
    assert seen == [(3, True, False), (6, True, False), (8, True, False)]
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), sampled.model.parameters(), strict=True))
    assert len((tmp_path / "sampled" / "slices.jsonl").read_text().splitlines()) == 3


def test_the_log_holds_means_since_the_last_row(tmp_path):
    trainer, seen = make_trainer(tmp_path, steps=13), []
    real = trainer.loss

    def loss(step):
        value, numbers = real(step)
        seen.append(float(value.detach()))
        return value, numbers

    trainer.loss = loss
    assert trainer.run(Deadline(1))
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [10, 13]
    for row, part in zip(rows, (seen[:10], seen[10:]), strict=True):
        assert row["loss"] == pytest.approx(np.mean(part), abs=2e-5) and row["x"] == pytest.approx(np.mean(part), abs=2e-5)


def test_resume_equals_uninterrupted(tmp_path):
    whole = make_trainer(tmp_path / "whole")
    assert whole.run(Deadline(1))
    first = make_trainer(tmp_path / "cut")
    interrupt(first, at=3)
    second = make_trainer(tmp_path / "cut")
    assert second.step == 3
    assert second.run(Deadline(1))
    for a, b in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(whole.ema.weights[k], second.ema.weights[k]) for k in whole.ema.weights)


def test_a_deadline_ends_the_slice(tmp_path):
    trainer = make_trainer(tmp_path)
    assert not trainer.run(Deadline(0))
    assert trainer.step == 0 and load_checkpoint(tmp_path / "checkpoint") is not None


def test_checkpoint_shards_and_survives_a_cut_save(tmp_path):
    tensors = {"a": torch.randn(100, 10), "b": torch.tensor(3), "c": torch.randn(7)}
    save_checkpoint(tmp_path / "c", tensors, {"step": 1}, shard_bytes=1000)
    assert all(p.stat().st_size < 1300 for p in (tmp_path / "c").glob("*.safetensors"))
    got, meta = load_checkpoint(tmp_path / "c")
    assert meta == {"step": 1} and all(torch.equal(got[k], tensors[k]) for k in tensors)
    (tmp_path / "c").rename(tmp_path / "c.old")  # killed between the two renames
    assert load_checkpoint(tmp_path / "c")[1] == {"step": 1}
    assert load_checkpoint(tmp_path / "nothing") is None


def test_orthogonalise_makes_singular_values_one():
    for shape in ((20, 20), (12, 40), (40, 12)):
        s = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert 0.6 < s.min() and s.max() < 1.3


def test_muon_descends():
    w = torch.nn.Parameter(torch.randn(8, 8))
    optimiser, target = Muon([w], lr=0.05), torch.randn(8, 8)
    before = (w - target).norm()
    for _ in range(100):
        optimiser.zero_grad()
        (w - target).square().sum().backward()
        optimiser.step()
    assert (w - target).norm() < 0.3 * before


def test_schedule_and_shift():
    assert [schedule(s, 100, 10, 0.2) for s in (0, 9, 50, 90, 100)] == pytest.approx([0.1, 1, 1, 0.5, 0])
    u = torch.linspace(0, 1, 5)
    assert torch.allclose(shifted(u, 1.0), u)
    steps = SamplerConfig(steps=4, shift=5.0).scheduler().sigmas[:4]
    assert torch.allclose(shifted(torch.tensor([1, 0.75, 0.5, 0.25]), 5.0), steps)
    assert torch.allclose(steps, torch.tensor([1, 0.9375, 0.83333, 0.625]), atol=1e-4)


def test_noise_levels_follow_the_recipe():
    recipe = CausalRecipe(pure_noise=0.3, context_noise=0.1)
    context, target = noise_levels(recipe, 4000, 6, torch.Generator().manual_seed(0))
    assert (context[:, 0] == 0).all() and 0 <= context.min() and context.max() <= 0.1
    assert (context[:, 1:] == 0).float().mean() == pytest.approx(0.5, abs=0.02)
    assert (target == 1).float().mean() == pytest.approx(0.3, abs=0.02)
    rest = target[target < 1]  # shifted uniform: its median is where u = 1/2 goes
    assert rest.min() >= 0 and rest.median() == pytest.approx(float(shifted(torch.tensor(0.5), recipe.sampler.shift)), abs=0.02)


def test_draws_begin_with_a_still_and_standing():
    walks = synthetic_walks()
    batch = walks.draw(5, 4, torch.Generator().manual_seed(1))
    assert batch["latents"].shape == (5, 8, 4, 4, 4) and batch["actions"].shape == (5, 13, 13) and batch["poses"].shape == (5, 13, 9)
    assert (batch["actions"][:, 0, 12] == 1).all() and (batch["actions"][:, 0, :12] == 0).all()
    assert torch.allclose(batch["poses"][:, :, 2], torch.arange(13.0).expand(5, -1))
    assert (batch["poses"][:, 0, :3] == 0).all()
    with pytest.raises(ValueError, match="render longer clips"):
        walks.draw(1, 9, torch.Generator())


def test_causal_stage_learns_and_plays(tmp_path):
    torch.manual_seed(0)
    walks = synthetic_walks()
    recipe = CausalRecipe(
        transformer=TRANSFORMER,
        memory=MemoryConfig(window=2, horizon=20), sampler=SamplerConfig(2), steps=60, curriculum=((0.0, 6, 4),), lr=0.01, adam_lr=3e-3,
    )  # fmt: skip
    autoencoder = small_model().autoencoder
    stage = CausalStage(recipe, tmp_path, walks, walks, autoencoder, torch.device("cpu"))
    before = np.mean([float(stage.loss(s)[0].detach()) for s in range(1000, 1006)])
    assert stage.trainer.run(Deadline(9))
    after = np.mean([float(stage.loss(s)[0].detach()) for s in range(1000, 1006)])
    assert after < 0.7 * before
    assert stage.finish() and (tmp_path / "model" / "config.json").exists()
    assert list(tmp_path.glob("sheet-*.png"))


def test_autoencoder_stage_beats_the_linear_code_and_keeps_the_latents(tmp_path):
    frames = np.stack([render(3, "left*4 w*4", start=k, size=(32, 32)).frames for k in range(6)])
    stage = AutoencoderStage(
        AutoencoderRecipe(latent_channels=16, steps=80, batch=2, groups=3), tmp_path, frames, frames[:2], torch.device("cpu")
    )
    before = stage.sample(tmp_path)["psnr"]
    latents = stage.model.encode(to_video(frames[:1]))
    assert before > 15  # principal components are a start
    assert stage.trainer.run(Deadline(2))
    stage.model.load_state_dict(stage.trainer.ema.weights)
    assert stage.sample(tmp_path)["psnr"] > before + 0.2
    model = stage.finish()
    assert torch.equal(model.encode(to_video(frames[:1])), latents)
    clip = render(3, "left*8", start=0, size=(32, 32))
    encoded = encode_clip(model, clip, torch.device("cpu"))
    assert encoded["groups"].shape == (3, 16, 2, 2) and encoded["stills"].shape == (3, 16, 2, 2)
    still = model.encode(to_video(clip.frames[None, :1]))
    assert torch.allclose(encoded["stills"][0].float(), still[0, :, 0], atol=2e-2)


def test_depth_says_how_pictures_move():
    """A picture looked up in another by its inverse depth is the picture that was rendered there."""
    clip = render(3, "w+a*6", start=2, size=(64, 64), depth=True)
    depth = torch.from_numpy(clip.step / clip.depth[6])  # of the last frame
    poses = torch.from_numpy(pose_code(relative_to_first(_in_steps(clip))))
    turn, move = relative(poses[0], poses[6])
    rays, focal = pixel_rays((64, 64), float(clip.intrinsics[0]), "cpu"), float(clip.intrinsics[0])
    picture = torch.from_numpy(clip.frames[0].copy()).permute(2, 0, 1)[None].float()
    there = torch.from_numpy(clip.frames[6].copy()).float()

    def error(scale):
        where, share = look_up(rays, turn, move, scale * depth.flatten()[None], focal, 1.0)
        found = torch.nn.functional.grid_sample(picture, where.view(1, 64, 64, 2), align_corners=False)[0].permute(1, 2, 0)
        return float((found - there).abs().mean(-1)[inside(where, share).view(64, 64)].median())

    assert error(1.0) < 1.5 and error(1.0) < 0.5 * min(error(0.0), error(0.5), error(2.0))


def _in_steps(clip):
    poses = clip.camera_to_world.astype(np.float64).copy()
    poses[:, :3, 3] /= clip.step
    return poses


def test_pixels_round_trip_and_psnr():
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 8, 8, 3), dtype=np.uint8)
    assert np.array_equal(to_frames(to_video(frames)), frames)
    assert psnr(frames, frames).min() > 60
    off = np.clip(frames.astype(int) + 10, 0, 255).astype(np.uint8)
    mse = ((off.astype(np.float64) - frames) ** 2).reshape(2, -1).mean(1)
    assert psnr(off, frames)[0] == pytest.approx(20 * np.log10(255) - 10 * np.log10(mse), abs=1e-4)


def test_recipes_refuse_what_they_do_not_know(tmp_path, capsys):
    assert load_recipe("tiny", ["causal.steps=7"]).causal.steps == 7
    with pytest.raises(RecipeError, match="stepz"):
        load_recipe("tiny", ["causal.stepz=7"])
    with pytest.raises(RecipeError, match="There is no recipe"):
        load_recipe("gigantic")
    with pytest.raises(SystemExit):
        train_main(["tiny", "--out", str(tmp_path), "--set", "data.seeds=1000000"])
    assert "reserved" in capsys.readouterr().err


def test_the_whole_way_from_teacher_to_generator(tmp_path):
    """RELIC's stages one after the other, each in a slice of its own, and a model at the end that can be played."""
    recipe = relic_recipe()
    walks, autoencoder = synthetic_walks(), small_model().autoencoder
    args = (recipe, tmp_path, walks, walks, autoencoder)
    assert not train_models(*args, Deadline(0), torch.device("cpu"))
    with pytest.raises(FileNotFoundError, match="can be played"):
        playable_stage(recipe, tmp_path)
    assert train_models(*args, Deadline(5), torch.device("cpu"))
    assert playable_stage(recipe, tmp_path) == "self_forcing"
    assert playable_stage(recipe, tmp_path, "student_init") == "student_init"
    with pytest.raises(RecipeError, match="there are student_init, self_forcing"):
        playable_stage(recipe, tmp_path, "teacher")
    generator_ = CausalWorldTransformer.from_pretrained(tmp_path / "self_forcing" / "model")
    initial = CausalWorldTransformer.from_pretrained(tmp_path / "student_init" / "model")
    assert any(not torch.equal(a, b) for a, b in zip(generator_.parameters(), initial.parameters(), strict=True))
    for stages, why in ((("student_init",), "needs teacher"), (("teacher", "self_forcing"), "start from"), (("magic",), "no stage")):
        with pytest.raises(ValueError, match=why):
            Recipe(stages=stages)


def test_every_published_recipe_loads():
    for path in RECIPES.glob("*.yaml"):
        assert load_recipe(path.stem).name == path.stem
