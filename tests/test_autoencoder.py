"""Streaming decode equals whole-clip decode; the linear code is the principal components."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan

from worldmodel.autoencoder import TinyAutoencoder, WanAutoencoder


def tiny():
    torch.manual_seed(0)
    model = TinyAutoencoder(8, (8, 8), 8, 1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    model.set_latent_statistics(torch.randn(8), torch.rand(8) + 0.5)
    return model.eval()


def transposed(model, raw):
    """Raw latents through the code's transpose as the convolution that it is"""
    weight = model.linear_encoder.weight * model.code_gain[:, None, None, None]
    return F.conv_transpose2d(raw - model.linear_encoder.bias[:, None, None], weight, stride=16)


def wan():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, num_res_blocks=1, z_dim=4, dim_mult=[1, 2, 2, 2], latents_mean=[0.1] * 4, latents_std=[1.5] * 4)
    return WanAutoencoder(vae)


@torch.no_grad()
@pytest.mark.parametrize(("make", "stride"), [(tiny, 16), (wan, 8)])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 3), (2, 2), (4,)])
def test_streaming_decode_is_exact(make, stride, sizes):
    autoencoder = make()
    video = torch.randn(1, 3, 13, 4 * stride, 4 * stride)
    latents = autoencoder.encode(video)
    assert latents.shape[2:] == (4, 4, 4)
    whole = autoencoder.decode(latents)
    assert whole.shape == video.shape
    state, pieces = None, []
    for piece in latents.split(list(sizes), dim=2):
        frames, state = autoencoder.decode_chunk(piece, state)
        pieces.append(frames)
    assert (torch.cat(pieces, 2) - whole).abs().max() <= 1e-6 * whole.abs().max()


@torch.no_grad()
def test_wan_streams_what_diffusers_decodes():
    autoencoder = wan()
    latents = torch.randn(1, 4, 4, 4, 4)
    raw = latents * autoencoder.std + autoencoder.mean
    want = autoencoder.vae.decode(raw).sample
    assert (autoencoder.decode(latents) - want).abs().max() <= 1e-5 * want.abs().max()


@torch.no_grad()
def test_going_back_needs_only_an_old_state():
    autoencoder = tiny()
    latents = torch.randn(1, 8, 3, 4, 4)
    _, state = autoencoder.decode_chunk(latents[:, :, :1])
    first, _ = autoencoder.decode_chunk(latents[:, :, 1:2], state)
    autoencoder.decode_chunk(latents[:, :, 2:], state)
    again, _ = autoencoder.decode_chunk(latents[:, :, 1:2], state)
    assert torch.equal(first, again)
    assert torch.equal(autoencoder.advance(latents[:, :, :1]), state)


@torch.no_grad()
def test_linear_code_is_pca():
    torch.manual_seed(1)
    groups = F.interpolate(torch.randn(40, 12, 8, 8), size=(32, 32), mode="bilinear")
    model = TinyAutoencoder(10, (8, 8), 8, 0)
    model.init_linear_code(groups)
    got = model.decode_groups(model.encode_groups(groups), model.encode_groups(groups))
    patches = F.unfold(groups, 16, stride=16).transpose(1, 2).flatten(0, 1)
    u, s, vt = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)
    best = (s[10:] ** 2).sum() / patches.numel()
    # the offset of a patch is kept per channel, not per pixel: a little is lost against PCA with a full mean
    assert best <= (got - groups).square().mean() <= best * 1.2


@torch.no_grad()
def test_channel_gain_makes_latent_distance_picture_distance():
    """Two pictures inside the code's span are as far apart as their latents, channels weighted by their gain."""
    torch.manual_seed(2)
    model = TinyAutoencoder(24, (8, 8), 8, 0)
    model.init_linear_code(torch.randn(60, 12, 32, 32))
    model.set_latent_statistics(torch.randn(24), torch.rand(24) + 0.5)
    a, b = torch.randn(2, 1, 24, 1, 2, 2)
    pictures = [transposed(model, (z * model.latents_std + model.latents_mean)[:, :, 0]) for z in (a, b)]
    far = (pictures[0] - pictures[1]).square().sum()
    assert torch.allclose(((a - b) * model.channel_gain.view(1, -1, 1, 1, 1)).square().sum(), far, rtol=1e-4)


def test_bad_shapes_say_what_is_wrong():
    with pytest.raises(ValueError, match="1 \\+ 4k frames"):
        tiny().encode(torch.zeros(1, 3, 4, 32, 32))
    with pytest.raises(ValueError, match="multiples of 16"):
        tiny().encode(torch.zeros(1, 3, 1, 30, 32))


@torch.no_grad()
def test_what_was_coded_once_stays_as_it_is():
    """Whatever the mean patch is: pictures are coded again and again on a walk."""
    torch.manual_seed(0)
    slope = torch.linspace(-0.5, 0.5, 32)[:, None] + torch.tensor([0.3, 0.0, -0.2]).view(3, 1, 1).repeat_interleave(4, 0)
    groups = slope + 0.2 * F.interpolate(torch.randn(64, 12, 3, 3), (32, 32), mode="bilinear")
    autoencoder = TinyAutoencoder(24, ())
    autoencoder.init_linear_code(groups)
    once = autoencoder.linear_frames(autoencoder.encode(groups.unflatten(1, (3, 4)), grouped=True)[:, :, 0])
    again = once
    for _ in range(10):
        again = autoencoder.linear_frames(autoencoder.encode(again, grouped=True)[:, :, 0])
    assert (once - groups.unflatten(1, (3, 4))).abs().mean() < 0.15 and (again - once).abs().max() < 1e-3


@torch.no_grad()
def test_the_code_is_the_convolution_that_it_is_stored_as():
    autoencoder = tiny()
    video, latents = torch.randn(2, 12, 32, 48), torch.randn(2, autoencoder.latent_channels, 2, 3)
    coded = autoencoder.encode_groups(video)
    assert torch.allclose(coded, autoencoder.linear_encoder(video), atol=1e-4) and coded.is_contiguous()  # as files want it
    raw = latents * autoencoder.latents_std[:, :, 0] + autoencoder.latents_mean[:, :, 0]
    frames = transposed(autoencoder, raw).unflatten(1, (3, 4))
    assert torch.allclose(autoencoder.linear_frames(latents), frames, atol=1e-4)
    assert torch.allclose(autoencoder.last_picture(latents), frames[:, :, -1].clamp(-1, 1), atol=1e-4)
