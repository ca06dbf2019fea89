"""The transformer against diffusers' Wan, and the cached roll-out against one masked pass."""

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from worldmodel.camera import integrate, intrinsics_from_fov, pose_code
from worldmodel.memory import MemoryConfig, rotate_into, teacher_forcing_layout, token_positions, training_layout
from worldmodel.rotary import RotaryEmbedding, rotate
from worldmodel.transformer import CausalWorldTransformer, token_rays

WAN = dict(num_attention_heads=4, attention_head_dim=24, in_channels=6, out_channels=6, text_dim=20, freq_dim=32, ffn_dim=64, num_layers=3)
GRID = (4, 4)  # tokens of an 8x8 latent with 2x2 patches


def randomise(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def wan():
    torch.manual_seed(0)
    return randomise(WanTransformer3DModel(**WAN))


@pytest.fixture(scope="module")
def ours(wan):
    model = CausalWorldTransformer(**WAN, camera_dim=16)
    missing, unexpected = model.load_state_dict(wan.state_dict(), strict=False)
    assert not unexpected
    assert all(k.startswith(("action_encoder", "pose_encoder")) or "action_proj" in k or "pose_proj" in k for k in missing)
    return model.eval()


@pytest.fixture(scope="module")
def playing(ours):
    """The same weights with RELIC's parts switched on."""
    model = CausalWorldTransformer(**WAN, camera_dim=16)
    model.load_state_dict(ours.state_dict())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for block in model.blocks:
            for layer in (block.action_proj, block.pose_proj):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 0.3)
    return model.eval()


def inputs(latents=5, batch=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    frames = 1 + 4 * (latents - 1)
    return dict(
        x=torch.randn(batch, 6, latents, 8, 8, generator=g),
        text=torch.randn(batch, 7, 20, generator=g),
        actions=torch.rand(batch, frames, 13, generator=g),
        poses=torch.randn(batch, frames, 9, generator=g),
        t=torch.rand(batch, latents, generator=g) * 1000,
    )


def written_out(x, turn):
    """Each pair of channels of x [..., N, heads, head_dim] turned, in real numbers."""
    cos, sin = turn.real.unsqueeze(-2), turn.imag.unsqueeze(-2)
    x1, x2 = x[..., 0::2], x[..., 1::2]
    return torch.stack((x1 * cos - x2 * sin, x1 * sin + x2 * cos), dim=-1).flatten(-2).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_turning_is_the_same_in_complex_numbers(dtype):
    turn = RotaryEmbedding(24)(token_positions(torch.tensor([0, 7]), (3, 5)))
    x = torch.randn(2, 30, 4, 24, dtype=dtype)
    want = written_out(x, turn)
    assert rotate(x, turn).dtype == dtype and torch.allclose(rotate(x, turn), want, rtol=1e-6, atol=1e-6)
    apart = x.transpose(1, 3).contiguous().transpose(1, 3)  # what pooling of uneven grids gives: channels do not lie together
    assert apart.stride(-1) != 1 and torch.equal(rotate(apart, turn), rotate(x, turn))
    room = torch.zeros(2, 4, 40, 24, dtype=dtype)
    rotate_into(room[:, :, :30], x.transpose(1, 2), turn)
    assert torch.equal(room[:, :, :30].transpose(1, 2), rotate(x, turn)) and not room[:, :, 30:].any()
    own = torch.stack([turn, turn.conj().resolve_conj()])  # an angle for each sequence of a batch
    assert torch.equal(rotate(x, own)[:1], rotate(x[:1], turn)) and not torch.equal(rotate(x, own)[1:], rotate(x[1:], turn))


def test_turning_has_the_gradient_of_a_rotation():
    turn = RotaryEmbedding(24)(token_positions(torch.tensor([3]), (2, 2))).to(torch.complex128)
    x = torch.randn(1, 4, 2, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate(x, turn), x)


@torch.no_grad()
def test_positions_are_worked_out_once_for_the_passes_of_a_chunk(playing, monkeypatch):
    i, calls, rope = inputs(batch=1), [], playing.rope.forward
    monkeypatch.setattr(playing.rope, "forward", lambda positions: calls.append(len(positions)) or rope(positions))
    model, memory = playing, playing.new_memory(MemoryConfig(window=2, horizon=6), (8, 8))
    text, chunk = model.encode_text(i["text"]), i["x"][:, :, :1]
    before = model(chunk, torch.ones(1), text, memory=memory)
    assert torch.equal(model(chunk, torch.ones(1), text, memory=memory, write=True), before) and calls == [16]
    moved = model(chunk, torch.ones(1), text, memory=memory)
    assert calls == [16, 16, 16] and not torch.equal(moved, before)  # the next chunk's, and the memory's
    assert torch.equal(model(i["x"], torch.ones(1), text), playing(i["x"], torch.ones(1), text)) and calls[3:] == [80]


@torch.no_grad()
@pytest.mark.parametrize("per_frame", [False, True])
def test_equals_wan(wan, ours, per_frame):
    i = inputs()
    t = i["t"] if per_frame else i["t"][:, 0]
    wan_t = t.repeat_interleave(16, dim=1) if per_frame else t
    want = wan(i["x"], wan_t, i["text"], return_dict=False)[0]
    got = ours(i["x"], t, i["text"], i["actions"], i["poses"])  # new parts start at zero
    assert (got - want).abs().max() <= 5e-6  # rounding


@torch.no_grad()
def roll_out(model, i, config, chunk):
    """Every chunk through the cache, reading and writing the same (noisy) latents at their own timesteps."""
    memory = model.new_memory(config, (8, 8), batch=i["x"].shape[0], chunk=chunk)
    text = model.encode_text(i["text"])
    outputs, start = [], 0
    while start < i["x"].shape[2]:
        end = 1 if start == 0 else start + chunk
        frames = slice(0, 1) if start == 0 else slice(1 + 4 * (start - 1), 1 + 4 * (end - 1))
        args = (i["x"][:, :, start:end], i["t"][:, start:end], text, i["actions"][:, frames], i["poses"][:, frames])
        outputs.append(model(*args, memory=memory))
        model(*args, memory=memory, write=True)
        start = end
    return torch.cat(outputs, dim=2)


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "chunk"),
    [
        (MemoryConfig(window=2), 1),
        (MemoryConfig(window=2), 2),
        (MemoryConfig(window=3, schedule=(1,)), 1),
        (MemoryConfig(window=2, schedule=()), 1),
    ],
)
def test_cached_rollout_equals_one_masked_pass(playing, config, chunk):
    i = inputs(latents=9)
    layout = training_layout(config, 9, GRID, chunk)
    want = playing(i["x"], i["t"], i["text"], i["actions"], i["poses"], layout=layout)
    got = roll_out(playing, i, config, chunk)
    assert (got - want).abs().max() < 2e-5


@torch.no_grad()
def test_uncompressed_schedule_equals_a_window_that_holds_everything(playing):
    i = inputs(latents=7)
    whole = roll_out(playing, i, MemoryConfig(window=7), 1)
    unit = roll_out(playing, i, MemoryConfig(window=2, schedule=(1,)), 1)
    pooled = roll_out(playing, i, MemoryConfig(window=2), 1)
    assert (whole - unit).abs().max() < 2e-5
    assert (whole - pooled).abs().max() > 1e-3  # compression is not a no-op


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 2])
def test_teacher_forcing_sees_what_a_rollout_on_clean_context_sees(playing, chunk):
    """Every target of one doubled pass equals denoising that chunk after a roll-out has written the clean latents before it."""
    config, latents = MemoryConfig(window=2), 9
    i, noisy = inputs(latents=latents), torch.randn(2, 6, latents, 8, 8)
    clean = torch.zeros_like(i["t"])
    camera = playing.encode_camera(i["actions"], i["poses"])
    double = tuple(c.repeat(1, 2, 1) for c in camera)
    layout = teacher_forcing_layout(config, latents, GRID, chunk)
    x, t = torch.cat([i["x"], noisy], 2), torch.cat([clean, i["t"]], 1)
    got = playing(x, t, i["text"], camera=double, layout=layout)[:, :, latents:]
    memory = playing.new_memory(config, (8, 8), batch=2, chunk=chunk)
    text, start = playing.encode_text(i["text"]), 0
    while start < latents:
        end = 1 if start == 0 else start + chunk
        here = slice(start, end)
        part = tuple(c[:, here] for c in camera)
        want = playing(noisy[:, :, here], i["t"][:, here], text, camera=part, memory=memory)
        assert (got[:, :, here] - want).abs().max() < 2e-5
        playing(i["x"][:, :, here], clean[:, here], text, camera=part, memory=memory, write=True)
        start = end


@torch.no_grad()
def test_later_actions_leave_earlier_latents_unchanged(playing):
    i = inputs(latents=7)
    first = roll_out(playing, i, MemoryConfig(window=2), 1)
    changed = dict(i, actions=i["actions"].clone(), poses=i["poses"].clone(), x=i["x"].clone())
    changed["actions"][:, 17:] = 3.0
    changed["poses"][:, 17:] += 1.0
    changed["x"][:, :, 5:] += 1.0
    second = roll_out(playing, changed, MemoryConfig(window=2), 1)
    assert torch.equal(first[:, :, :5], second[:, :, :5])
    assert (first[:, :, 5:] - second[:, :, 5:]).abs().max() > 1e-3


@torch.no_grad()
def test_actions_and_poses_matter_only_where_they_may(playing):
    i = inputs(latents=3)
    base = playing(i["x"], i["t"], i["text"], i["actions"], i["poses"])
    assert (base - playing(i["x"], i["t"], i["text"], i["actions"] * 0, i["poses"])).abs().max() > 1e-3
    assert (base - playing(i["x"], i["t"], i["text"], i["actions"], i["poses"] * 0)).abs().max() > 1e-3
    block = playing.blocks[0]
    x = torch.randn(1, 4, 96)
    assert torch.equal(block.attn1.key_value(x, 0.5)[1], block.attn1.key_value(x, 0.0)[1])  # values never see the pose


@torch.no_grad()
def test_checkpointing_keeps_gradients(playing):
    i = inputs(latents=4)
    layout = training_layout(MemoryConfig(window=2), 4, GRID, 1)
    grads = []
    for on in (False, True):
        playing.enable_gradient_checkpointing() if on else playing.disable_gradient_checkpointing()
        playing.zero_grad()
        with torch.enable_grad():
            playing(i["x"], i["t"], i["text"], i["actions"], i["poses"], layout=layout).square().mean().backward()
        grads.append(playing.blocks[1].attn1.to_k.weight.grad.clone())
    playing.disable_gradient_checkpointing()
    assert torch.equal(*grads)


@pytest.mark.parametrize(("heads", "layers", "ffn"), [(12, 30, 8960), (40, 40, 13824)])
def test_full_size_configs_are_supersets_of_wan(heads, layers, ffn):
    shape = dict(num_attention_heads=heads, num_layers=layers, ffn_dim=ffn)
    with torch.device("meta"):
        wan = {k: v.shape for k, v in WanTransformer3DModel(**shape).state_dict().items()}
        ours = {k: v.shape for k, v in CausalWorldTransformer(**shape).state_dict().items()}
    assert wan.items() <= ours.items()


def with_rays(playing):
    """The same weights in a model that is told rays, whose layer for them starts at zero"""
    model = CausalWorldTransformer(**WAN, camera_dim=16, ray_focal=0.7)
    missing, unexpected = model.load_state_dict(playing.state_dict(), strict=False)
    assert not unexpected and missing == ["ray_encoder.weight", "ray_encoder.bias"]
    return model.eval()


def test_token_rays_are_the_lines_through_the_pixels():
    """Against a pinhole camera: every point of a ray projects to its token's centre, and lies on the line of these coordinates."""
    poses = integrate(np.random.default_rng(0).uniform(0, 2, (6, 13)))
    fx, fy, cx, cy = intrinsics_from_fov(70, (3 * 16, 4 * 16))
    rays = token_rays(torch.from_numpy(pose_code(poses)).double().view(1, 3, 2, 9), (3, 4), float(fx))
    assert rays.shape == (1, 3 * 12, 2 * 6)
    rays = rays.view(3, 12, 2, 6).transpose(1, 2).reshape(6, 12, 6).numpy()
    for pose, lines in zip(poses, rays, strict=True):
        for token, line in enumerate(lines):
            along, moment = line[:3], line[3:]
            point = pose[:3, 3] + 5 * along
            np.testing.assert_allclose(np.cross(point, along), moment, atol=1e-4)
            x, y, z = pose[:3, :3].T @ (point - pose[:3, 3])
            where = (fx * x / z + cx) * 4, (fy * y / z + cy) * 3
            np.testing.assert_allclose(where, (token % 4 + 0.5, token // 4 + 0.5), atol=1e-4)


@torch.no_grad()
def test_rays_start_at_nothing_and_a_cached_rollout_knows_them(playing):
    i, model = inputs(latents=6), with_rays(playing)
    args, layout = (i["x"], i["t"], i["text"], i["actions"], i["poses"]), training_layout(MemoryConfig(window=2), 6, GRID, 1)
    plain = playing(*args, layout=layout)
    assert torch.equal(model(*args, layout=layout), plain)
    assert torch.equal(model(*args[:3]), playing(*args[:3]))  # no poses, no rays
    randomise(model.ray_encoder)
    told = model(*args, layout=layout)
    assert (told - plain).abs().max() > 1e-3
    assert (roll_out(model, i, MemoryConfig(window=2), 1) - told).abs().max() < 2e-5
