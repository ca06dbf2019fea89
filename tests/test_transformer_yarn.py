"""YaRN on the time axis against transformers' implementation, and that it leaves everything else as it was."""

import math

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from worldmodel.memory import token_positions
from worldmodel.rotary import RotaryEmbedding, yarn_frequencies
from worldmodel.transformer import CausalWorldTransformer

SMALL = dict(
    patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=24, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
    ffn_dim=32, num_layers=2, camera_dim=8,
)  # fmt: skip


def plain(positions, head_dim, theta):
    """RoPE as it is without YaRN, written out."""
    space = 2 * (head_dim // 6)
    angles = []
    for axis, dim in enumerate((head_dim - 2 * space, space, space)):
        angles.append(positions[:, axis, None] / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim))
    angle = torch.cat(angles, 1)
    return angle.cos().float(), angle.sin().float()


@pytest.mark.parametrize(("dim", "theta"), [(44, 1e4), (24, 100.0), (128, 1e4)])
@pytest.mark.parametrize(("original", "extension"), [(21, 41 / 21), (21, 80 / 21), (80, 2.0), (4096, 16.0)])
def test_frequencies_and_temperature_are_transformers(dim, theta, original, extension):
    config = LlamaConfig(
        hidden_size=dim, num_attention_heads=1, head_dim=dim, max_position_embeddings=int(original * extension),
        rope_parameters=dict(
            rope_type="yarn", rope_theta=theta, factor=extension, original_max_position_embeddings=original, beta_fast=32.0, beta_slow=1.0
        ),
    )  # fmt: skip
    want, factor = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    got, temperature = yarn_frequencies(dim, theta, original, extension)
    assert torch.allclose(got.float(), want, rtol=2e-6)
    assert temperature == pytest.approx(factor)
    assert (got < 1 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim) - 1e-12).any()  # something was slowed down


def test_no_extension_is_plain_rope_bit_for_bit():
    positions = token_positions(torch.tensor([0, 3, 79]), (5, 7), 2)
    for rope in (RotaryEmbedding(32, 100.0), RotaryEmbedding(32, 100.0, 21, 1.0)):
        assert torch.equal(rope(positions), torch.complex(*plain(positions, 32, 100.0)))


def test_only_time_is_extended():
    positions = token_positions(torch.arange(80), (2, 3))
    turn = RotaryEmbedding(128, 10000.0, 21, 80 / 21)(positions)
    cos, sin = turn.real, turn.imag
    old_cos, old_sin = plain(positions, 128, 10000.0)
    assert torch.equal(cos[:, 22:], old_cos[:, 22:]) and torch.equal(sin[:, 22:], old_sin[:, 22:])
    temperature = 0.1 * math.log(80 / 21) + 1
    assert torch.allclose((cos**2 + sin**2)[:, :22], torch.tensor(temperature**2))
    # the slowest pair: latent 80 now stands where latent 21 stood; the fastest pair turns as before
    angle = torch.atan2(sin, cos)
    assert torch.allclose(angle[:, 21], positions[:, 0].float() * 21 / 80 / 10000 ** (42 / 44), rtol=1e-4)
    assert torch.allclose(cos[:, 0] / temperature, old_cos[:, 0])


def test_shorter_than_a_turn_interpolates_everywhere():
    """With fewer than 2 pi latent frames no pair turns once (r < 1 in the paper's words): position interpolation."""
    got, _ = yarn_frequencies(24, 100.0, 6, 2.0)
    assert torch.allclose(got, 0.5 / 100 ** (torch.arange(0, 24, 2, dtype=torch.float64) / 24))


@torch.no_grad()
def test_a_loaded_model_can_be_extended_and_saves_it(tmp_path):
    torch.manual_seed(0)
    model = CausalWorldTransformer(**SMALL, rope_original_latents=6).eval()
    x, t, text = torch.randn(1, 4, 8, 2, 2), torch.tensor([500.0]), torch.randn(1, 3, 8)
    before = model(x, t, text)
    assert model.set_rope_extension(8 / 6) is model
    after = model(x, t, text)
    assert (after - before).abs().max() > 1e-5
    model.save_pretrained(tmp_path)
    loaded = CausalWorldTransformer.from_pretrained(tmp_path)
    assert loaded.config.rope_extension == 8 / 6 and torch.equal(loaded(x, t, text), after)
    assert CausalWorldTransformer.from_config(model.config).rope.extension == 8 / 6
    assert torch.equal(loaded.set_rope_extension(1.0)(x, t, text), before)


def test_extension_without_a_length_is_refused():
    with pytest.raises(ValueError, match="rope_original_latents=0"):
        CausalWorldTransformer(**SMALL, rope_extension=2.0)
    with pytest.raises(ValueError, match="1 or more"):
        CausalWorldTransformer(**SMALL, rope_original_latents=21).set_rope_extension(0.5)
