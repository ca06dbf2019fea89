"""What happens to clips before training: palindromes, balanced drawing, and clips from a folder of one's own."""

import numpy as np
import pytest
import torch
from small import WordEncoder, small_model

from distill.augment import maybe_palindrome, palindrome, random_pivot
from distill.dataset import Clip, write_clip
from distill.export import main as export
from distill.latents import Walks, encode_clip, encode_clips, window_counts, window_weights
from distill.recipe import RecipeError, load_recipe
from distill.train import clip_files, frame_pool, train
from distill.trainer import Deadline
from worldmodel.actions import Action, parse_script, to_array
from worldmodel.camera import integrate
from worldmodel.model import WorldModel


def walk(seed=0, frames=33, size=16, step=0.25) -> Clip:
    """Random pictures along a walk of many directions; positions far from the origin."""
    rng = np.random.default_rng(seed)
    raw = rng.random((frames - 1, 13)) * (rng.random((frames - 1, 13)) < 0.5)
    actions = np.concatenate([to_array([Action.idle()]), np.float32([Action.from_vector(a).to_vector() for a in raw])])
    start = np.eye(4)
    start[:3, 3] = 3, -2, 5
    pictures = rng.integers(0, 255, (frames, size, size, 3), dtype=np.uint8)
    poses = integrate(actions, start, step).astype(np.float32)
    return Clip(pictures, poses, np.float32([1, 1, 0.5, 0.5]), actions, f"place {seed}", step)


@pytest.mark.parametrize("pivot", [16, 21, 31, 32])
def test_a_palindrome_comes_back_the_way_it_went(pivot):
    clip = walk()
    turned = palindrome(clip, pivot)
    assert len(turned) == len(clip) and turned.caption == clip.caption and turned.step == clip.step
    for back in range(len(clip) - pivot):  # the mirrored part, frame by frame
        there, here = pivot - back, pivot + back
        assert np.array_equal(turned.frames[here], clip.frames[there])
        assert np.array_equal(turned.camera_to_world[here], clip.camera_to_world[there])
    assert np.array_equal(turned.actions[: pivot + 1], clip.actions[: pivot + 1])
    np.testing.assert_allclose(integrate(turned.actions, clip.camera_to_world[0], clip.step), turned.camera_to_world, atol=1e-5)
    if pivot == 16:
        assert np.array_equal(turned.camera_to_world[-1], clip.camera_to_world[0])


def test_single_keys_are_undone_by_the_opposite_keys():
    actions = np.concatenate([to_array([Action.idle()]), to_array(parse_script("w*4 left*4 r*4 o*4"))])
    clip = Clip(np.zeros((17, 8, 8, 3), np.uint8), integrate(actions).astype(np.float32), np.ones(4, np.float32), actions)
    undone = [Action.from_vector(a).opposite().to_vector() for a in actions[1:9][::-1]]
    wanted = np.concatenate([actions[:13][:9], to_array(parse_script("right*4 s*4"))])
    np.testing.assert_allclose(palindrome(clip, 8).actions, wanted, atol=1e-6)
    np.testing.assert_allclose(wanted[9:], undone)


def test_pivots_are_uniform_over_the_second_half():
    rng = np.random.default_rng(0)
    pivots = np.array([random_pivot(9, rng) for _ in range(2000)])
    values, counts = np.unique(pivots, return_counts=True)
    assert values.tolist() == [4, 5, 6, 7, 8]
    assert np.abs(counts / 2000 - 0.2).max() < 0.03
    with pytest.raises(ValueError, match="second half"):
        palindrome(walk(), 15)


def test_stills_of_mirrored_frames_are_equal():
    clip = walk(frames=25, size=32)
    encoded = encode_clip(small_model().autoencoder, palindrome(clip, 14), torch.device("cpu"))  # frame 16 mirrors 12, 20 mirrors 8
    stills = encoded["stills"]
    for there, here in ((3, 4), (2, 5), (1, 6)):
        assert torch.equal(stills[there], stills[here])
    assert not torch.equal(stills[3], stills[5])
    assert not torch.equal(encoded["groups"][3], encoded["groups"][4])  # a group of four frames played backwards is another


def test_a_share_of_the_clips_is_encoded_as_palindromes(tmp_path):
    from safetensors.torch import load_file

    autoencoder, clips = small_model().autoencoder, [walk(seed, frames=9, size=16) for seed in range(8)]
    turned = [i for i, clip in enumerate(clips) if maybe_palindrome(clip, 0.5, i) is not clip]
    assert 0 < len(turned) < 8
    assert all(maybe_palindrome(clip, 0.0, i) is clip and maybe_palindrome(clip, 1.0, i) is not clip for i, clip in enumerate(clips))
    encode_clips(autoencoder, clips.__getitem__, range(8), tmp_path, torch.device("cpu"), palindrome=0.5)
    poses = load_file(tmp_path / "walks-00000.safetensors")["poses"].numpy()
    for i, clip in enumerate(clips):
        shown = maybe_palindrome(clip, 0.5, i)
        np.testing.assert_allclose(poses[i, :, :3, 3] * clip.step, shown.camera_to_world[:, :3, 3], atol=1e-5)
    share = np.mean([maybe_palindrome(clips[0], 0.3, i) is not clips[0] for i in range(2000)])
    assert share == pytest.approx(0.3, abs=0.03)


def skewed(balance, clips=400, latents=6) -> Walks:
    """Clips of one action each, of which the first is a hundred times as common as the last."""
    weight = np.geomspace(1, 0.01, 13)
    kind = np.random.default_rng(0).choice(13, clips, p=weight / weight.sum())
    kind[:13] = np.arange(13)
    frames = 1 + 4 * (latents - 1)
    actions = torch.zeros(clips, frames, 13)
    actions[torch.arange(clips)[:, None], torch.arange(frames), torch.from_numpy(kind)[:, None]] = 1.0
    actions[:, 0] = torch.eye(13)[12]
    poses = torch.eye(4, dtype=torch.float64).repeat(clips, frames, 1, 1)
    groups = torch.arange(clips).view(-1, 1, 1, 1, 1).expand(-1, latents, 1, 1, 1).half()
    return Walks(groups, groups, actions, poses, torch.zeros(clips, dtype=torch.long), torch.zeros(1, 2, 3), balance)


def shares(walks: Walks, latents=3, draws=2000) -> np.ndarray:
    drawn = walks.draw(draws, latents, torch.Generator().manual_seed(5))["actions"][:, 1:]
    active = (drawn > 0).sum((0, 1)).double().numpy()
    return active / active.sum()


def test_balanced_drawing_evens_out_the_actions():
    before, after, half = shares(skewed(0.0)), shares(skewed(1.0)), shares(skewed(0.5))
    assert before.max() > 0.2 and before.min() < 0.01
    assert np.abs(after - 1 / 13).max() < 0.025
    assert after.std() < half.std() < before.std()


def test_without_balance_the_draws_are_the_same_numbers_as_ever():
    walks = skewed(0.0)
    got = walks.draw(50, 3, torch.Generator().manual_seed(1))["latents"][:, 0, 0, 0, 0].long()
    rng = torch.Generator().manual_seed(1)
    which, start = torch.randint(400, (50,), generator=rng), torch.randint(4, (50,), generator=rng)
    assert torch.equal(got, which)
    again = torch.Generator().manual_seed(1)
    assert [t.tolist() for t in walks._draw_windows(50, 3, again)] == [which.tolist(), start.tolist()]
    assert torch.equal(torch.rand(3, generator=again), torch.rand(3, generator=rng))  # nothing more was drawn


def test_windows_count_the_frames_that_lead_into_them():
    actions = torch.from_numpy(np.stack([walk(seed, frames=17).actions for seed in range(3)]))
    counts = window_counts(actions, 3)
    assert counts.shape == (3, 3, 13)
    for n in range(3):
        for start in range(3):
            by_hand = (actions[n, 4 * start + 1 : 4 * start + 9] > 0).sum(0)
            assert torch.equal(counts[n, start], by_hand.double())
    assert window_weights(actions, 5, 0.0).eq(1).all()
    walks = skewed(1.0, clips=13, latents=3)
    which, start = walks._draw_windows(6000, 2, torch.Generator().manual_seed(0))
    assert which.min() == 0 and which.max() == 12 and start.unique().tolist() == [0, 1]


def test_training_takes_a_folder_of_clips(tmp_path, monkeypatch):
    folder, out = tmp_path / "mine", tmp_path / "run"
    for seed in range(6):
        write_clip(folder / f"walk_{seed}-0000", walk(seed, frames=9, size=32))
    transformer = (
        "{patch_size: [1, 1, 1], num_attention_heads: 2, attention_head_dim: 12, freq_dim: 16, ffn_dim: 32, num_layers: 1, "
        "camera_dim: 8, rope_theta: 100.0, prediction_type: sample}"
    )
    settings = [
        f"data.folder={folder}", "data.frames=9", "data.size=32", "data.held_out=2", "data.palindrome=0.5", "data.balance=0.5",
        f"causal.transformer={transformer}", "causal.steps=2", "causal.curriculum=[[0.0, 3, 2]]", "causal.memory={window: 2, horizon: 20}",
    ]  # fmt: skip
    (tmp_path / "own.yaml").write_text("name: own\n")
    recipe = load_recipe(str(tmp_path / "own.yaml"), settings)
    files = clip_files(recipe, out)
    assert [f.name for f in files] == [f"walk_{seed}-0000" for seed in range(6)]
    assert frame_pool(files[:3], tmp_path / "pool").shape == (3, 9, 32, 32, 3)
    small_model().autoencoder.save_pretrained(out / "autoencoder" / "model")  # as if stage 1 were done
    monkeypatch.setattr("distill.train.embed_prompts", lambda prompts: torch.zeros(len(prompts), 6, 16))
    assert train(recipe, out, Deadline(1), torch.device("cpu"))
    assert (out / "causal" / "model" / "config.json").exists() and not (out / "data").exists()
    monkeypatch.setattr("distill.export.load_recipe", lambda name: recipe)
    monkeypatch.setattr("distill.export.TextEncoder", WordEncoder)
    assert export([str(out), "--recipe", "own.yaml", "--out", str(tmp_path / "model")]) == 0
    model = WorldModel.from_pretrained(tmp_path / "model")
    assert [(place.name, place.prompt) for place in model.gallery] == [(f"walk_{n}-0000", f"place {n}") for n in (4, 5)]
    with pytest.raises(RecipeError, match="9 frames of 32x32, not data.frames=9 of data.size=64"):
        clip_files(load_recipe(str(tmp_path / "own.yaml"), [*settings, "data.size=64"]), out)
    with pytest.raises(RecipeError, match="has 6 clips"):
        clip_files(load_recipe(str(tmp_path / "own.yaml"), [*settings, "data.held_out=5"]), out)
