"""Convolutions by oneDNN are those that PyTorch makes, and only where they should be."""

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from worldmodel.autoencoder import WanAutoencoder
from worldmodel.cpu_convolution import conv3d, fast_conv3d

ONEDNN, PYTORCH = torch.ops.aten.mkldnn_convolution.default, torch.ops.aten.convolution.default
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


class Convolutions(TorchDispatchMode):
    """Remembers which convolutions ran."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += [func] if func in (ONEDNN, PYTORCH) else []
        return func(*args, **kwargs or {})


def made(channels=(6, 10), size=(5, 20, 24), batch=1, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return nn.Conv3d(*channels, **options).to(dtype), torch.randn(batch, channels[0], *size).to(dtype)


@torch.no_grad()
@needs_onednn
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(
    "options",
    [
        dict(kernel_size=3), dict(kernel_size=3, padding=1), dict(kernel_size=(3, 1, 1)), dict(kernel_size=1), dict(kernel_size=(2, 3, 1)),
        dict(kernel_size=3, stride=(2, 1, 1)), dict(kernel_size=3, stride=(1, 2, 2), padding=(0, 1, 1)), dict(kernel_size=3, batch=2),
        dict(kernel_size=3, dilation=(1, 2, 2)), dict(kernel_size=3, groups=2), dict(kernel_size=3, bias=False),
        dict(kernel_size=3, padding="same"), dict(kernel_size=3, padding=1, padding_mode="replicate"), dict(kernel_size=3, size=(3, 4, 4)),
    ],
)  # fmt: skip
def test_the_convolution_is_the_same(options, dtype, tolerance):
    layer, x = made(dtype=dtype, **options)
    with fast_conv3d(x.device):
        got = layer(x)
    want = layer.double()(x.double())
    assert got.dtype == dtype and got.shape == want.shape
    assert (got - want).abs().max() <= tolerance * want.abs().max()


@needs_onednn
def test_gradients_are_the_same():
    layer, x = made(kernel_size=3)
    x.requires_grad_()
    want = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    with fast_conv3d(x.device):
        got = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    assert all((a - b).abs().max() <= 1e-5 * b.abs().max() for a, b in zip(got, want, strict=True))


@torch.no_grad()
@needs_onednn
def test_onednn_is_taken_where_it_is_faster_and_only_inside():
    layer, x = made(kernel_size=3)
    flat, _ = made(kernel_size=(3, 1, 1))
    with Convolutions() as ran, fast_conv3d(x.device):
        layer(x), flat(x), layer(x[..., :4, :4]), layer.bfloat16()(x.bfloat16())
    assert ran.seen == [ONEDNN, PYTORCH, PYTORCH, PYTORCH]
    with Convolutions() as ran:
        layer.float()(x)
    assert ran.seen == [PYTORCH]


@torch.no_grad()
def test_other_devices_are_left_alone():
    layer, x = made(kernel_size=3)
    layer, x = layer.to("meta"), x.to("meta")
    with Convolutions() as ran, fast_conv3d(x.device):
        layer(x)
    conv3d_of_it = conv3d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)
    assert ran.seen == [PYTORCH] and conv3d_of_it.shape == layer(x).shape


@torch.no_grad()
@needs_onednn
def test_wan_decodes_and_encodes_what_diffusers_does():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=16, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4).eval()
    autoencoder, keys = WanAutoencoder(vae), list(vae.state_dict())
    latents, video = torch.randn(1, 4, 3, 6, 8), torch.rand(1, 3, 9, 48, 64) * 2 - 1
    with Convolutions() as ran:
        decoded, encoded = autoencoder.decode(latents), autoencoder.encode(video)
    assert ONEDNN in ran.seen
    for got, want in ((decoded, vae.decode(latents).sample), (encoded, vae.encode(video).latent_dist.mode())):
        assert (got - want).abs().max() <= 1e-5 * want.abs().max()
    first, state = autoencoder.decode_chunk(latents[:, :, :1])
    rest, _ = autoencoder.decode_chunk(latents[:, :, 1:], state)
    assert torch.equal(torch.cat([first, rest], dim=2), decoded)
    assert list(vae.state_dict()) == keys


@torch.no_grad()
def test_wan_decodes_in_bfloat16():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, z_dim=4, num_res_blocks=1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4).to(torch.bfloat16)
    latents = torch.randn(1, 4, 2, 4, 4, dtype=torch.bfloat16)
    assert torch.equal(WanAutoencoder(vae).decode(latents), vae.decode(latents).sample)
