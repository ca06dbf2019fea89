"""Replayed back-propagation gives the full graph's gradient, and the roll-out is what the sampler and the cache give."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.bench_replay import SavedBytes
from distill.dmd import Condition, matching_loss, predict_clean
from distill.replay import full_graph_backward, replay_backward
from distill.rollout import RollOutConfig, roll_out, video_frames
from distill.trainer import generator
from worldmodel.actions import as_actions, to_array
from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.camera import integrate, pose_code
from worldmodel.memory import MemoryConfig
from worldmodel.sampling import SamplerConfig, denoise
from worldmodel.transformer import CausalWorldTransformer

LATENTS, STEPS = 9, 3


def make_model(prediction="sample", seed=0, dtype=torch.float32, **more):
    torch.manual_seed(seed)
    model = CausalWorldTransformer(
        patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=16,
        ffn_dim=32, num_layers=2, camera_dim=8, rope_theta=100.0, prediction_type=prediction, **more,
    )  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=g))
    return model.to(dtype)


def make_inputs(batch=2, dtype=torch.float32):
    g = torch.Generator().manual_seed(3)
    frames = 1 + 4 * (LATENTS - 1)
    text, actions = torch.randn(batch, 5, 8, generator=g), torch.rand(batch, frames, 13, generator=g)
    poses, start = torch.randn(batch, frames, 9, generator=g), torch.randn(batch, 4, 1, 4, 4, generator=g)
    difference = torch.randn(batch, 4, LATENTS, 4, 4, generator=g)
    difference[:, :, 0] = 0
    return start.to(dtype), Condition(text.to(dtype), actions.to(dtype), poses.to(dtype)), difference.to(dtype)


def config(chunk=1, stochastic=True):
    return RollOutConfig(MemoryConfig(window=2), SamplerConfig(STEPS, 5.0, stochastic), chunk)


def test_replay_gradient_with_camera_views():
    """Views are of what was rolled out, so replay sees those of the roll-out; the pictures are constants to both."""
    torch.manual_seed(0)
    autoencoder = TinyAutoencoder(4, (8, 8), 8, 0, (8, 8, 8)).requires_grad_(False)
    model = make_model(view_focal=0.7, view_pictures=3)
    start, condition, difference = make_inputs()
    walk = integrate(to_array(as_actions("left*16 w*8 right*8")))
    codes = torch.from_numpy(pose_code(np.concatenate([np.eye(4)[None], walk])))
    condition = replace(condition, poses=codes[None].expand(2, -1, -1))
    views = replace(config(), autoencoder=autoencoder)
    played = roll_out(model, start, condition, views, 11, 1)
    graph = roll_out(model, start, condition, views, 11, 1, graph=True)
    without = roll_out(make_model(), start, condition, config(), 11, 1)
    assert torch.equal(played.latents, graph.latents) and (played.latents - without.latents).abs().max() > 0.1
    replay_backward(model, played, difference)
    got = gradient(model)
    full_graph_backward(graph, difference)
    want = gradient(model)
    assert (got - want).norm() < 1e-5 * want.norm()


def gradient(model):
    """All gradients as one vector, and nothing left behind."""
    out = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    return out


@pytest.mark.parametrize(
    ("chunk", "prediction", "exit_step"), [(1, "sample", 2), (1, "velocity", 1), (2, "sample", 0), (2, "velocity", 2), (3, "sample", 1)]
)
def test_replay_gradient_is_the_full_graphs(chunk, prediction, exit_step):
    model = make_model(prediction)
    start, condition, difference = make_inputs()
    played = roll_out(model, start, condition, config(chunk), 11, exit_step)
    graph = roll_out(model, start, condition, config(chunk), 11, exit_step, graph=True)
    assert torch.equal(played.latents, graph.latents) and not played.latents.requires_grad
    loss = replay_backward(model, played, difference)
    replayed = gradient(model)
    assert loss == pytest.approx(float(full_graph_backward(graph, difference)), rel=1e-5)
    whole = gradient(model)
    assert whole.norm() > 1e-3
    assert (replayed - whole).norm() <= 1e-5 * whole.norm()


def test_replay_gradient_is_the_slope_of_the_loss():
    """Central differences in float64 of the loss with every block's cache frozen, taken without any autograd."""
    model = make_model(dtype=torch.float64)
    start, condition, difference = make_inputs(dtype=torch.float64)
    played = roll_out(model, start, condition, config(2), 5, 1)
    replay_backward(model, played, difference)
    slope = gradient(model)
    blocks = config(2).blocks(LATENTS)
    memory = model.new_memory(config(2).memory, (4, 4), batch=2, chunk=2)
    states, pooled = [], 0
    with torch.no_grad():
        for block in [slice(0, 1), *blocks]:
            states.append(memory.state_dict())
            frames = video_frames(block)
            args = (played.latents[:, :, block], torch.zeros(2), condition.text, condition.actions[:, frames], condition.poses[:, frames])
            model(*args, memory=memory, write=True)
            pooled = max(pooled, int((states[-1]["entries"][:, 1] > 1).sum()))
    assert pooled >= 3  # the memory has compressed entries
    targets = [(played.latents - difference)[:, :, block] for block in blocks]

    @torch.no_grad()
    def loss():
        total = 0.0
        for x, block, state, target in zip(played.inputs, blocks, states[1:], targets, strict=True):
            memory.load_state_dict(state)
            frames = video_frames(block)
            clean = predict_clean(
                model, x, played.level.expand(2), condition.text, condition.actions[:, frames], condition.poses[:, frames], memory=memory
            )
            total += 0.5 * (clean - target).square().sum() / difference.numel()
        return float(total)

    g, at = torch.Generator().manual_seed(1), [p.detach().clone() for p in model.parameters()]
    for _ in range(3):
        direction = [torch.randn(p.shape, generator=g, dtype=p.dtype) for p in at]
        values = []
        for epsilon in (1e-3, -1e-3):
            with torch.no_grad():
                for p, p0, v in zip(model.parameters(), at, direction, strict=True):
                    p.copy_(p0 + epsilon * v)
            values.append(loss())
        want = (values[0] - values[1]) / 2e-3
        got = float(slope @ torch.cat([v.flatten() for v in direction]))
        assert got == pytest.approx(want, rel=1e-2, abs=1e-3 * float(slope.norm()))


def test_replay_with_gradient_checkpointing_is_the_same():
    model = make_model()
    start, condition, difference = make_inputs()
    played = roll_out(model, start, condition, config(), 11, 1)
    replay_backward(model, played, difference)
    plain = gradient(model)
    model.enable_gradient_checkpointing()
    replay_backward(model, played, difference)
    assert torch.allclose(gradient(model), plain, atol=1e-7)
    with pytest.raises(ValueError, match="turn it off, or replay"):
        roll_out(model, start, condition, config(), 11, 1, graph=True)


@torch.no_grad()
@pytest.mark.parametrize(("chunk", "stochastic", "prediction"), [(1, True, "sample"), (2, True, "velocity"), (2, False, "velocity")])
def test_roll_out_is_the_sampler_through_the_cache(chunk, stochastic, prediction):
    model, c = make_model(prediction), config(chunk, stochastic)
    start, condition, _ = make_inputs()
    got = roll_out(model, start, condition, c, 11, STEPS - 1)
    text = model.encode_text(condition.text)
    memory = model.new_memory(c.memory, (4, 4), batch=2, chunk=chunk)
    model(start, torch.zeros(2), text, condition.actions[:, :1], condition.poses[:, :1], memory=memory, write=True)
    out = [start]
    for first in range(1, LATENTS, chunk):
        frames = slice(1 + 4 * (first - 1), 1 + 4 * (first - 1 + chunk))
        camera, rng = model.encode_camera(condition.actions[:, frames], condition.poses[:, frames]), generator(11, first)
        out.append(denoise(model, torch.randn(2, 4, chunk, 4, 4, generator=rng), text, camera, memory, c.sampler, rng))
        model(out[-1], torch.zeros(2), text, camera=camera, memory=memory, write=True)
    assert torch.allclose(got.latents, torch.cat(out, dim=2), atol=1e-4)
    early = roll_out(model, start, condition, c, 11, 0)
    assert (early.latents - got.latents).abs().max() > 1e-2
    assert torch.equal(early.inputs[0], torch.randn(2, 4, chunk, 4, 4, generator=generator(11, 1)))  # exits at pure noise


def test_activations_are_counted_exactly():
    weight, x = torch.randn(1000, requires_grad=True), torch.randn(1000)
    with SavedBytes(weight) as saved:
        y = (weight * x).exp().sin()  # keeps x, and exp's result for both exp and sin
        assert saved.now == 8000
        y.sum().backward()
    assert saved.now == 0 and saved.peak == 8000


def test_replay_keeps_one_block():
    """Without history in the cache, the activations of a replay do not grow with the sequence; the full graph's do."""
    model = make_model()
    start, condition, difference = make_inputs()
    c, peaks = RollOutConfig(MemoryConfig(window=1, schedule=()), SamplerConfig(2, 5.0, True)), {}
    for latents in (5, LATENTS):
        frames = 1 + 4 * (latents - 1)
        short = Condition(condition.text, condition.actions[:, :frames], condition.poses[:, :frames])
        for graph in (False, True):
            with SavedBytes(*model.parameters()) as saved:
                played = roll_out(model, start, short, c, 1, graph=graph)
                d = difference[:, :, :latents]
                full_graph_backward(played, d) if graph else replay_backward(model, played, d)
            peaks[latents, graph] = saved.peak
            assert saved.now == 0 or graph
            del played
    assert peaks[5, False] == peaks[9, False]
    assert peaks[9, True] > 1.8 * peaks[5, True] > 3 * peaks[5, False]


def test_blocks_cover_the_sequence():
    blocks = config(4).blocks(12)
    assert [(b.start, b.stop) for b in blocks] == [(1, 5), (5, 9), (9, 12)]
    assert video_frames(slice(0, 1)) == slice(0, 1) and video_frames(blocks[2]) == slice(33, 45)


def test_refusals_say_what_to_do():
    model = make_model()
    start, condition, difference = make_inputs()
    with pytest.raises(ValueError, match="lies in 0..2"):
        roll_out(model, start, condition, config(), 1, STEPS)
    played = roll_out(model, start, condition, config(), 1, 0)
    with pytest.raises(ValueError, match="graph=True"):
        full_graph_backward(played, difference)
    with pytest.raises(ValueError, match="shape"):
        replay_backward(model, played, difference[:, :, 1:])
    x = torch.randn(3)
    assert float(matching_loss(x, torch.ones(3), count=6)) == pytest.approx(0.25)
