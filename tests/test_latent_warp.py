"""The short way from the last latent frame: it starts at zero, can move a picture exactly, and streams as it trains."""

import pytest
import torch

from worldmodel.latent_warp import LatentWarp
from worldmodel.memory import MemoryConfig, training_layout
from worldmodel.transformer import CausalWorldTransformer


@torch.no_grad()
def test_starts_at_zero_and_can_move_a_picture():
    torch.manual_seed(0)
    warp = LatentWarp(dim=5, channels=3, operators=2, radius=1)
    previous, hidden = torch.randn(2, 3, 1, 4, 4), torch.randn(2, 16, 5)
    assert (warp(hidden, previous) == 0).all()
    warp.coefficients.bias[5] = 1.0  # operator 0, the token to the right (row 1, column 2 of 3x3)
    moved = warp(hidden, previous).transpose(1, 2).reshape(2, 3, 4, 4)
    assert torch.allclose(moved[..., :-1], previous[:, :, 0, :, 1:], atol=1e-6)
    assert torch.allclose(moved[..., -1], previous[:, :, 0, :, -1], atol=1e-6)  # edges repeat


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 2])
def test_cached_rollout_equals_one_masked_pass(chunk):
    torch.manual_seed(0)
    model = CausalWorldTransformer(
        patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=32, num_layers=2, camera_dim=8, prediction_type="sample", warp_operators=2, warp_radius=1,
    ).eval()  # fmt: skip
    for p in model.parameters():
        p.add_(torch.randn_like(p) * 0.1)
    latents, config = 7, MemoryConfig(window=2)
    x, t, text = torch.randn(1, 4, latents, 4, 4), torch.rand(1, latents) * 1000, torch.randn(1, 3, 8)
    camera = (torch.randn(1, latents, 8), torch.randn(1, latents, 8))
    want = model(x, t, text, camera=camera, layout=training_layout(config, latents, (4, 4), chunk))
    memory, start, got = model.new_memory(config, (4, 4), chunk=chunk), 0, []
    while start < latents:
        end = 1 if start == 0 else start + chunk
        args = (x[:, :, start:end], t[:, start:end], text)
        part = tuple(c[:, start:end] for c in camera)
        got.append(model(*args, camera=part, memory=memory))
        model(*args, camera=part, memory=memory, write=True)
        if start == 3:  # a memory that was put away and fetched goes on alike
            kept = memory.state_dict()
            memory = model.new_memory(config, (4, 4), chunk=chunk)
            memory.load_state_dict(kept)
        start = end
    assert (torch.cat(got, 2) - want).abs().max() < 2e-5


def test_needs_tokens_that_are_latents():
    with pytest.raises(ValueError, match="warp_operators needs"):
        CausalWorldTransformer(num_attention_heads=2, attention_head_dim=12, num_layers=1, warp_operators=2)
