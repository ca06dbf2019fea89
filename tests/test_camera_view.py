"""The warped last picture: against closed forms, against the renderer, and streaming as it trains."""

import numpy as np
import pytest
import torch

from distill.autoencoder import psnr, to_frames, to_video
from distill.scenes import render
from worldmodel.actions import as_actions, to_array
from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.camera import integrate, pose_code, relative_to_first
from worldmodel.camera_view import CameraView, ViewBlend, next_view, pixel_rays, rotation_and_position, sequence_view
from worldmodel.memory import MemoryConfig, teacher_forcing_layout
from worldmodel.transformer import CausalWorldTransformer

FOCAL = 0.7


class Pixels:
    """A code that keeps pixels as they are."""

    def __init__(self, picture):
        self.picture = picture

    def last_picture(self, latents):
        return self.picture

    def encode(self, video, grouped=False):
        return video


def codes(script):
    poses = integrate(to_array(as_actions(script)))
    return torch.from_numpy(pose_code(np.concatenate([np.eye(4)[None], poses])))


def look(rays):
    """A smooth picture of the sky: colour by direction"""
    d = rays / rays.norm(dim=-1, keepdim=True)
    return torch.stack([torch.sin(3 * d[..., 0]), torch.cos(4 * d[..., 1]), torch.sin(2 * d[..., 0] + d[..., 2])], -1)


@pytest.mark.parametrize("script", ["left*4", "down*4", "o*4", "left+up+u*4"])
def test_a_turn_is_exact_wherever_the_picture_reaches(script):
    size = (48, 64)
    rays = pixel_rays(size, FOCAL, "cpu")
    picture = look(rays).view(*size, 3).permute(2, 0, 1)[None]
    code = codes(script)[None]
    view = CameraView(Pixels(picture), None, code[:, 0], code[:, 1:], FOCAL)
    got = view.warped(torch.zeros(()))[0]  # 3 4 H W
    rotation, _ = rotation_and_position(code[0, 1:])
    for frame in range(4):
        turned = rays @ rotation[frame].T
        inside = (turned[:, 0] / turned[:, 2]).abs() < 0.48 / FOCAL
        inside &= (turned[:, 1] / turned[:, 2]).abs() < 0.48 / FOCAL * size[0] / size[1]
        error = (got[:, frame].flatten(1).T - look(turned)).abs().amax(1)
        assert inside.float().mean() > 0.5 and error[inside].max() < 0.01


def test_walking_to_a_wall_makes_it_larger():
    """A wall 20 steps away, 4 steps on: everything is 20/16 as far from the centre."""
    size = (64, 64)
    rays = pixel_rays(size, FOCAL, "cpu")
    wall = lambda x, y: torch.stack([torch.sin(x / 3), torch.cos(y / 4), torch.sin((x + y) / 5)], -1)  # noqa: E731
    picture = wall(20 * rays[:, 0], 20 * rays[:, 1]).view(*size, 3).permute(2, 0, 1)[None]
    code = codes("w*4")[None]
    assert torch.allclose(code[0, -1, :3], torch.tensor([0.0, 0.0, 4.0]), atol=1e-5)
    view = CameraView(Pixels(picture), None, code[:, 0], code[:, 1:], FOCAL)
    got = view.warped(torch.full((1, 1, 4, 4), 1 / 16))[0, :, -1]
    want = wall(16 * rays[:, 0], 16 * rays[:, 1]).view(*size, 3).permute(2, 0, 1)
    assert (got - want).abs().max() < 0.01
    assert (view.warped(torch.zeros(()))[0, :, -1] - picture[0]).abs().max() < 1e-4  # infinitely far: nothing moves


def test_agrees_with_the_renderer():
    clip = render(0, "left+up*4", size=(64, 64))
    poses = relative_to_first(clip.camera_to_world, clip.step)
    code = torch.from_numpy(pose_code(poses))[None]
    intrinsics = clip.intrinsics.reshape(-1, 4)[0]
    picture = to_video(clip.frames[None, :1])[:, :, 0]
    view = CameraView(Pixels(picture), None, code[:, 0], code[:, 1:5], float(intrinsics[0]))
    warped = to_frames(view.warped(torch.zeros(())))[0]
    still = np.broadcast_to(clip.frames[:1], warped.shape)
    inner = (slice(None), slice(12, -12), slice(12, -12))
    assert psnr(clip.frames[1:5][inner], warped[inner]).mean() > psnr(clip.frames[1:5][inner], still[inner]).mean() + 5


@pytest.fixture(params=[1, 2])
def small(request):
    torch.manual_seed(0)
    autoencoder = TinyAutoencoder(6, (8, 8, 8), 0)
    model = CausalWorldTransformer(
        patch_size=(1, request.param, request.param), num_attention_heads=2, attention_head_dim=12, in_channels=6, out_channels=6,
        text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2, camera_dim=8, prediction_type="sample", view_focal=FOCAL,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return autoencoder, model


def test_starts_as_mostly_the_warped_picture():
    torch.manual_seed(0)
    autoencoder, blend = TinyAutoencoder(6, (8, 8, 8), 0), ViewBlend(10, 6)
    code = codes("left*4")[None]
    view = next_view(autoencoder, torch.randn(1, 6, 2, 2), code[:, 0], code[:, 1:], FOCAL)
    assert (blend.tokens(view) == 0).all()
    out = torch.randn(1, 4, 6)
    got = blend(torch.randn(1, 4, 10), out, view)  # a turn: depth does not matter
    assert torch.allclose(got, torch.lerp(out, view.far.flatten(2).transpose(1, 2), torch.tensor(2.0).sigmoid()), atol=1e-5)
    assert next_view(autoencoder, None, None, None, 0.0) is None


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 2])
def test_a_rollout_sees_what_training_sees(small, chunk):
    autoencoder, model = small
    latents, config = 5, MemoryConfig(window=2)
    poses = codes("w+left*8 up*4 a*4")[None]
    side = 2 * model.config.patch_size[1]
    x, noisy, text = torch.randn(1, 6, latents, side, side), torch.randn(1, 6, latents, side, side), torch.randn(1, 3, 8)
    t = torch.cat([torch.zeros(1, latents), torch.rand(1, latents) * 1000], 1)
    camera = (torch.randn(1, latents, 8), torch.randn(1, latents, 8))
    double = tuple(c.repeat(1, 2, 1) for c in camera)
    view = sequence_view(autoencoder, x, poses, chunk, FOCAL)
    layout = teacher_forcing_layout(config, latents, (2, 2), chunk)
    want = model(torch.cat([x, noisy], 2), t, text, camera=double, layout=layout, view=view)[:, :, latents:]
    memory, start = model.new_memory(config, (side, side), chunk=chunk), 0
    while start < latents:
        end = 1 if start == 0 else start + chunk
        part, view = tuple(c[:, start:end] for c in camera), None
        if start:
            frames = slice(4 * (start - 1) + 1, 4 * (end - 1) + 1)
            view = next_view(autoencoder, x[:, :, start - 1], poses[:, frames.start - 1], poses[:, frames], FOCAL)
        got = model(noisy[:, :, start:end], t[:, latents + start : latents + end], text, camera=part, memory=memory, view=view)
        assert (got - want[:, :, start:end]).abs().max() < 2e-5
        model(x[:, :, start:end], t[:, start:end], text, camera=part, memory=memory, write=True)
        start = end


@torch.no_grad()
def test_an_open_gate_gives_the_warped_picture(small):
    autoencoder, model = small
    model.view_blend.gate.bias.fill_(1e4)
    side, code = 2 * model.config.patch_size[1], codes("left+up*4")[None]
    view = next_view(autoencoder, torch.randn(1, 6, side, side), code[:, 0], code[:, 1:], FOCAL)
    out = model(torch.randn(1, 6, 1, side, side), torch.tensor([500.0]), torch.randn(1, 3, 8), view=view)
    assert torch.allclose(out[:, :, 0], view.far, atol=1e-5)


def test_depth_is_learned_from_pictures(small):
    """The gradient of the prediction reaches the depth when the camera moves, and not when it only turns."""
    autoencoder, model = small
    patch = model.config.patch_size[1]
    for script, moves in (("w*4", True), ("left*4", False)):
        model.zero_grad()
        code = codes(script)[None]
        view = next_view(autoencoder.requires_grad_(False), torch.randn(1, 6, 2 * patch, 2 * patch), code[:, 0], code[:, 1:], FOCAL)
        model.view_blend(torch.randn(1, 4, 24), torch.randn(1, 4, 6 * patch**2), view).square().sum().backward()
        assert (float(model.view_blend.inverse_depth.weight.grad.abs().max()) > 1e-6) == moves


def test_needs_a_model_that_predicts_pictures():
    with pytest.raises(ValueError, match="view_focal needs"):
        CausalWorldTransformer(num_attention_heads=2, attention_head_dim=12, num_layers=1, view_focal=FOCAL)
