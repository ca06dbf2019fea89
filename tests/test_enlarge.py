"""An enlarged model sees through its new first layers what the old one saw of half the size, and says the same through its last."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import small_model

from distill.autoencoder import draw_pieces, to_video
from distill.dataset import Clip, write_clip, write_index
from distill.enlarge import enlarge, finer_cells, finer_gate, larger, main, smaller
from distill.trainer import generator
from worldmodel.actions import Action
from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.camera_view import CELLS, to_patches
from worldmodel.model import ModelError, WorldModel
from worldmodel.transformer import CausalWorldTransformer


def clips(size, count=3, frames=9):
    """Soft coloured noise that drifts, uint8 [N, T, H, W, 3]"""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (count * frames, 3, size // 8, size // 8)))
    fine = F.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 255)
    return fine.permute(0, 2, 3, 1).reshape(count, frames, size, size, 3).to(torch.uint8).numpy()


@torch.no_grad()
def with_smooth_code(autoencoder):
    """A code as principal components are: orthogonal, and coarse patterns only"""
    c = autoencoder.latent_channels
    coarse = F.interpolate(torch.randn(c, 12, 2, 2), (16, 16), mode="bilinear")
    autoencoder.linear_encoder.weight.copy_(torch.linalg.qr(coarse.flatten(1).T)[0].T.view_as(coarse))
    autoencoder.linear_encoder.bias.zero_()
    autoencoder.code_gain.fill_(1)
    autoencoder.set_latent_statistics(torch.randn(c), 1 + torch.rand(c))
    return autoencoder.eval()


@pytest.fixture(scope="module")
def model():
    """A small model with a camera view and a code of principal components"""
    made = small_model(view_focal=0.7)
    torch.manual_seed(3)
    with_smooth_code(made.autoencoder)
    return made


@pytest.fixture(scope="module")
def finer():
    torch.manual_seed(4)
    return with_smooth_code(TinyAutoencoder(12, ()))


@torch.no_grad()
def test_the_matrix_is_synthesis_halving_and_analysis(model, finer):
    matrix, offset = smaller(model.autoencoder, finer)
    latents = torch.randn(2, 12, 6, 8)
    frames = finer.linear_frames(latents)
    wanted = model.autoencoder.encode(F.avg_pool3d(frames, (1, 2, 2)), grouped=True)[:, :, 0]  # 2 8 3 4
    seen = to_patches(latents, (2, 2)) @ matrix.T + offset
    assert torch.allclose(seen, wanted.flatten(2).transpose(1, 2), atol=1e-4)


@torch.no_grad()
def test_the_way_back_is_the_best_linear_one(model, finer):
    down = smaller(model.autoencoder, finer)
    matrix, offset = larger(finer, down, clips(128), pieces=8)
    assert matrix.shape == (48, 8) and offset.shape == (48,)
    groups = to_video(draw_pieces(clips(128), 8, 4, generator(0, 0)))
    tokens = to_patches(finer.encode(groups, grouped=True)[:, :, 0], (2, 2)).flatten(0, 1)
    seen = tokens @ down[0].T + down[1]
    best = np.linalg.lstsq(np.c_[seen.numpy(), np.ones(len(seen))], tokens.numpy(), rcond=None)[0]
    found, wanted = seen @ matrix.T + offset, torch.from_numpy(np.c_[seen.numpy(), np.ones(len(seen))] @ best)
    assert (found - wanted).norm() < 0.02 * wanted.norm()
    assert (found - tokens).square().mean() < 0.95 * tokens.var(0).mean(), "it tells something of the fine latents"


@torch.no_grad()
def test_tokens_are_what_they_were_of_the_halved_picture(model, finer):
    made = enlarge(model, finer, clips(128))
    old, new = model.transformer, made.transformer
    matrix, offset = smaller(model.autoencoder, finer)
    latents = torch.randn(1, 12, 1, 8, 8)
    small = (to_patches(latents[:, :, 0], (2, 2)) @ matrix.T + offset).transpose(1, 2).unflatten(2, (1, 4, 4))
    assert torch.allclose(new.patch_embedding(latents), old.patch_embedding(small), atol=1e-4)
    hidden = torch.randn(1, 16, 24)
    up = larger(finer, (matrix, offset), clips(128))
    assert torch.allclose(new.proj_out(hidden), old.proj_out(hidden) @ up[0].T + up[1], atol=1e-3)
    known = torch.rand(1, 4, 8 * CELLS, 8 * CELLS)
    told = new.view_blend.enter_reach(to_patches(F.pixel_unshuffle(known, CELLS), (2, 2)))
    halved = F.pixel_unshuffle(F.avg_pool2d(known, 2), CELLS)
    assert torch.allclose(told, old.view_blend.enter_reach(to_patches(halved, (1, 1))), atol=1e-5)
    assert made.size == (128, 128) and made.autoencoder.depth.pool == 2


def test_finer_gates_are_those_of_the_channels_as_strong():
    rows = torch.arange(8.0)
    assert finer_gate(rows, 4).tolist() == [1.5, 5.5, 6.5, 6.5] * 4
    assert finer_gate(rows[:, None].expand(8, 3), 2).shape == (8, 3)
    cells = torch.randn(5, 4 * CELLS**2)
    assert torch.allclose(finer_cells(cells).sum(1), cells.sum(1), atol=1e-4)


def test_it_plays_and_goes_to_a_file(model, finer, tmp_path):
    known = tmp_path / "known"
    model.save_pretrained(known, dtype=None)
    finer.save_pretrained(tmp_path / "autoencoder")
    for k, frames in enumerate(clips(128)):
        n = len(frames)
        pose = np.repeat(np.eye(4, dtype=np.float32)[None], n, 0)
        clip = Clip(frames, pose, np.array([0.7, 0.7, 0.5, 0.5], np.float32), np.zeros((n, 13), np.float32), "noise", 1.0, k, 0, 16.0, None)
        write_clip(tmp_path / "clips" / f"clip{k + 1:06d}", clip)
    write_index(tmp_path / "clips")
    arguments = ["--model", str(known), "--autoencoder", str(tmp_path / "autoencoder"), "--clips", str(tmp_path / "clips")]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    made = CausalWorldTransformer.from_pretrained(tmp_path / "out" / "transformer")
    autoencoder = TinyAutoencoder.from_pretrained(tmp_path / "out" / "autoencoder").eval()
    large = WorldModel(made, autoencoder, model.text, replace(model.config, size=(128, 128)))
    world = large.start(clips(128)[0, 0], "noise", seed=1)
    chunk = world.step(Action.from_keys({"ArrowLeft"}))
    assert chunk.frames.shape == (4, 128, 128, 3) and chunk.frames.std() > 0


def test_what_cannot_be_enlarged_is_refused(model, finer, tmp_path, capsys):
    made = enlarge(model, finer, clips(128))
    with pytest.raises(ModelError, match="single latents"):
        enlarge(made, finer, clips(128))
    with pytest.raises(SystemExit) as stop:
        main(["--model", str(tmp_path / "none"), "--autoencoder", str(tmp_path), "--clips", str(tmp_path), "--out", str(tmp_path / "o")])
    assert stop.value.code == 2 and "none" in capsys.readouterr().err
