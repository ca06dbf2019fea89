"""The warped pictures: against closed forms, against the renderer, and streaming as it trains."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distill.autoencoder import psnr, to_frames, to_video
from distill.scenes import render
from worldmodel.actions import as_actions, to_array
from worldmodel.autoencoder import TinyAutoencoder
from worldmodel.camera import integrate, pose_code, relative_to_first
from worldmodel.camera_view import (
    FADES,
    FAR_AWAY,
    SHARPER,
    CameraView,
    ViewBlend,
    choose_pictures,
    depth_of,
    from_latents,
    next_view,
    picture_size,
    sequence_view,
    start_view,
)
from worldmodel.memory import MemoryConfig, teacher_forcing_layout
from worldmodel.projection import pixel_rays, relative, rotation_and_position, slopes, splat
from worldmodel.transformer import CausalWorldTransformer

FOCAL = 0.7
DEPTH = (8, 8, 8)


class Pixels:
    """A code that keeps pixels as they are."""

    spatial_stride = 1

    def encode(self, video, grouped=False):
        return video


def codes(script):
    poses = integrate(to_array(as_actions(script)))
    return torch.from_numpy(pose_code(np.concatenate([np.eye(4)[None], poses])))


def view_of(pictures, here, there, inverse_depth=0.0, quality=1.0):
    """[K, 3, H, W], [K, 9], [4, 9] and a number or [K, H/2, W/2] -> the view of one sample"""
    k, _, height, width = pictures.shape
    near = torch.as_tensor(inverse_depth).expand(k, height // 2, width // 2)[None]
    return CameraView(Pixels(), pictures[None], near, here[None], there[None], torch.as_tensor(quality).expand(1, k), FOCAL)


def known_of(view):
    """What is known of each pixel of a view of one sample: [4, H, W]"""
    return F.interpolate(view.known, view.frames.shape[-2:], mode="nearest")[0]


def look(rays):
    """A smooth picture of the sky: colour by direction"""
    d = rays / rays.norm(dim=-1, keepdim=True)
    return torch.stack([torch.sin(3 * d[..., 0]), torch.cos(4 * d[..., 1]), torch.sin(2 * d[..., 0] + d[..., 2])], -1)


@pytest.mark.parametrize("script", ["left*4", "down*4", "o*4", "left+up+u*4"])
def test_a_turn_is_exact_wherever_the_picture_reaches(script):
    size = (48, 64)
    rays = pixel_rays(size, FOCAL, "cpu")
    picture = look(rays).view(*size, 3).permute(2, 0, 1)[None]
    code = codes(script)
    depth = torch.rand(1, 24, 32)  # any: a turn needs none
    view = view_of(picture, code[:1], code[1:], depth)
    got, known = view.frames[0], known_of(view)  # 3 4 H W, 4 H W
    rotation, _ = rotation_and_position(code[1:])
    for frame in range(4):
        turned = rays @ rotation[frame].T
        inside = (turned[:, 0] / turned[:, 2]).abs() < 0.48 / FOCAL
        inside &= (turned[:, 1] / turned[:, 2]).abs() < 0.48 / FOCAL * size[0] / size[1]
        error = (got[:, frame].flatten(1).T - look(turned)).abs().amax(1)
        assert inside.float().mean() > 0.5 and error[inside].max() < 0.01 and (known[frame].flatten()[inside] == 1).all()
        outside = ((turned[:, 0] / turned[:, 2]).abs() > 0.52 / FOCAL) | (turned[:, 2] < 0)
        assert (known[frame].flatten()[outside] == 0).all()


def test_walking_to_a_wall_makes_it_larger():
    """A wall 20 steps away, 4 steps on: everything is 20/16 as far from the centre."""
    size = (64, 64)
    rays = pixel_rays(size, FOCAL, "cpu")
    wall = lambda x, y: torch.stack([torch.sin(x / 3), torch.cos(y / 4), torch.sin((x + y) / 5)], -1)  # noqa: E731
    picture = wall(20 * rays[:, 0], 20 * rays[:, 1]).view(*size, 3).permute(2, 0, 1)[None]
    code = codes("w*4")
    assert torch.allclose(code[-1, :3], torch.tensor([0.0, 0.0, 4.0]), atol=1e-5)
    view = view_of(picture, code[:1], code[1:], 1 / 20)
    got = view.frames[0, :, -1]
    assert (view.known == 1).all()
    want = wall(16 * rays[:, 0], 16 * rays[:, 1]).view(*size, 3).permute(2, 0, 1)
    assert (got - want).abs().max() < 0.01
    assert (view_of(picture, code[:1], code[1:]).frames[0, :, -1] - picture[0]).abs().max() < 1e-4  # infinitely far: nothing moves


def test_what_hides_behind_something_is_not_known():
    """A red post 10 steps away before a wall at 40; 4 steps to the right the wall behind it is unknown, until a picture shows it."""
    size, width = (128, 128), 128
    x = pixel_rays(size, FOCAL, "cpu")[:, 0].view(size)
    post = x.abs() < 0.1
    picture = torch.where(post, torch.tensor([1.0, -1, -1]).view(3, 1, 1), torch.tensor([-1.0, 1, 1]).view(3, 1, 1))[None]
    near = torch.where(post, 1 / 10, 1 / 40)
    near = near.view(64, 2, 64, 2).amax((1, 3))[None]
    code = codes("d*4 static*4")
    here, there = code[:1], code[-4:]
    view = view_of(picture, here, there, near)
    red, known = view.frames[0, 0, -1] > 0, known_of(view)[-1] > 0
    middle = lambda rays: round(float(rays) * FOCAL * width + width / 2)  # noqa: E731, of a ray's x its column
    assert red[64, middle(-0.4)] and known[64, middle(-0.4)]  # the post, 10 away, has moved by 0.4
    hidden = slice(middle(-0.1) - 1, middle(-0.1) + 2)  # the wall behind it, 40 away, by 0.1
    assert not known[64, hidden].any() and known[64, middle(0.3)] and not red[64, middle(0.3)]
    bare = torch.tensor([-1.0, 1, 1]).view(1, 3, 1, 1).expand(1, 3, *size)
    both = view_of(torch.cat([picture, bare]), torch.cat([here, there[:1]]), there, torch.cat([near, torch.full_like(near, 1 / 40)]))
    assert (known_of(both)[-1, 64, hidden] > 0).all() and not (both.frames[0, 0, -1, 64, hidden] > 0).any()


@pytest.mark.parametrize("script", ["left+up*4", "d*4"])
def test_agrees_with_the_renderer(script):
    clip = render(0, script, size=(64, 64), depth=True)
    poses = relative_to_first(clip.camera_to_world, clip.step)
    code = torch.from_numpy(pose_code(poses))[None]
    intrinsics = clip.intrinsics.reshape(-1, 4)[0]
    picture = to_video(clip.frames[None, :1]).transpose(1, 2)
    near = torch.from_numpy(clip.step / clip.depth[:1, 1::2, 1::2])[None]
    view = CameraView(Pixels(), picture, near, code[:, :1], code[:, 1:5], torch.ones(1, 1), float(intrinsics[0]))
    warped = to_frames(view.frames)[0]
    still = np.broadcast_to(clip.frames[:1], warped.shape)
    inner = (slice(None), slice(12, -12), slice(12, -12))
    assert psnr(clip.frames[1:5][inner], warped[inner]).mean() > psnr(clip.frames[1:5][inner], still[inner]).mean() + 5


@pytest.fixture(params=[1, 2])
def small(request):
    torch.manual_seed(0)
    autoencoder = TinyAutoencoder(6, (8, 8), 8, 0, DEPTH)
    model = CausalWorldTransformer(
        patch_size=(1, request.param, request.param), num_attention_heads=2, attention_head_dim=12, in_channels=6, out_channels=6,
        text_dim=8, freq_dim=16, ffn_dim=32, num_layers=2, camera_dim=8, prediction_type="sample", view_focal=FOCAL,
        view_pictures=3,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return autoencoder, model


def orthogonal_code(channels=6):
    """An autoencoder whose linear code is a projection, as principal components are"""
    autoencoder = TinyAutoencoder(channels, (8, 8), 8, 0, DEPTH)
    with torch.no_grad():
        basis = torch.linalg.qr(torch.randn(12 * 256, channels))[0].T.reshape(channels, 12, 16, 16)
        autoencoder.linear_encoder.weight.copy_(basis)
        autoencoder.linear_encoder.bias.zero_()
        autoencoder.code_gain.fill_(1)
    return autoencoder.requires_grad_(False)


def test_starts_as_mostly_the_warped_picture():
    torch.manual_seed(0)
    autoencoder, blend = orthogonal_code(), ViewBlend(10, 6)
    code = codes("left*4")[None]
    start = torch.randn(1, 6, 1, 2, 2)
    view = start_view(autoencoder, start, code, FOCAL)
    assert (blend.tokens(view) == 0).all()
    out = torch.randn(1, 4, 6)
    got = blend(torch.randn(1, 4, 10), out, view)
    assert 0.5 < float((view.known > 0).float().mean()) < 1
    mine = autoencoder.linear_frames(out.transpose(1, 2).unflatten(2, (2, 2)))
    pixels = torch.lerp(mine, view.frames, torch.tensor(2.0).sigmoid())
    want = autoencoder.encode(pixels, grouped=True)[:, :, 0].flatten(2).transpose(1, 2)
    assert torch.allclose(got, want, atol=1e-5)
    assert start_view(autoencoder, start, code, 0.0) is None
    assert next_view(autoencoder, from_latents(autoencoder, start), (32, 32), code[:, :1], code[:, 1:], torch.zeros(1), 1, 0.0) is None


def test_looking_back_shows_the_start_picture():
    """After turning away and back, the start is chosen and, seen best, nearly all that is shown."""
    code = codes("left*16 right*16")
    here = code[::4][:-1]
    index = torch.arange(len(here))
    allowed = torch.ones(1, len(here), dtype=torch.bool)
    last = torch.tensor([len(here) - 1])
    picks, quality = choose_pictures(here[None], code[-1:], index, allowed, last, 3, FOCAL, (32, 32))
    assert picks[0, 0] == len(here) - 1 and picks[0, 1] == 0 and float(quality[0, 1]) == 1.0
    picks, _ = choose_pictures(here[None], code[-1:], index, allowed & (index > 3), last, 3, FOCAL, (32, 32))
    assert 0 not in picks
    pictures = torch.stack([torch.full((3, 32, 32), v) for v in (-1.0, 1.0)])  # the last one is black, the start white
    view = view_of(pictures, here[[-1, 0]], code[-4:], quality=torch.tensor([0.5, 1.0]))
    less = 0.5**SHARPER
    assert abs(float(view.frames[0, :, -1].min()) - (1 - less) / (1 + less)) < 1e-4 and (view.known[0, -1] == 1).all()


@pytest.mark.parametrize("seed", range(3))
def test_pictures_are_chosen_greedily(seed):
    """Against plain loops over pixels, candidates and picks."""
    rng = np.random.default_rng(seed)
    keys = ["w", "a", "left", "right", "left", "up", "d"]
    code = codes(" ".join(f"{k}*{int(n)}" for k, n in zip(rng.permutation(keys), rng.integers(2, 14, 7), strict=True)))
    here, there = code[:-1:4], code[-1]
    rays = pixel_rays((8, 8), FOCAL, "cpu").double().numpy()

    def columns(c):
        c = c.double().numpy()
        return np.stack([c[3:6], c[6:9], np.cross(c[3:6], c[6:9])], 1), c[:3]

    rotation, position = columns(there)
    shown = np.zeros((len(here), len(rays)))
    for s, c in enumerate(here):
        turn, origin = columns(c)
        for p, ray in enumerate(rays):
            x, y, z = turn.T @ (rotation @ ray + 0.02 * (position - origin))
            inside = z > 0.05 and abs(x / z * 2 * FOCAL) <= 1 and abs(y / z * 2 * FOCAL) <= 1
            shown[s, p] = inside * FADES**s / (1 + np.linalg.norm(position - origin) / FAR_AWAY)
    want = [len(here) - 1]
    for _ in range(3):
        gains = [np.maximum(shown[s] - shown[want].max(0), 0).sum() for s in range(len(here))]
        want.append(int(np.argmax(gains)) if max(gains) > 1e-7 else want[0])
    allowed = torch.ones(1, len(here), dtype=torch.bool)
    picks, _ = choose_pictures(here[None], there[None], torch.arange(len(here)), allowed, torch.tensor(want[:1]), 4, FOCAL, (16, 16))
    assert picks[0].tolist() == want


@pytest.mark.parametrize("config", [MemoryConfig(2, horizon=7), MemoryConfig(3, (), 7), MemoryConfig(2, (1,), 5)])
@pytest.mark.parametrize("chunk", [1, 2])
def test_the_pictures_remembered_are_those_of_the_memory(config, chunk):
    from worldmodel.memory import CompressedMemory

    memory = CompressedMemory(config, 1, 1, 2, (2, 2), chunk=chunk)
    for t in [1] + [chunk] * 6:
        memory.write([torch.zeros(1, 4 * t, 1, 2)], [torch.zeros(1, 4 * t, 1, 2)])
        index = torch.arange(memory.count + 3)
        assert index[config.remembers(index, memory.count, chunk)].tolist() == [e.index for e in memory._entries]


@torch.no_grad()
@pytest.mark.parametrize("schedule", [(1, 4, 2), ()])
@pytest.mark.parametrize("chunk", [1, 2])
def test_a_rollout_sees_what_training_sees(small, chunk, schedule):
    autoencoder, model = small
    latents, config = 5, MemoryConfig(2, schedule)
    poses = codes("w+left*8 up*4 a*4")[None]
    side = 2 * model.config.patch_size[1]
    x, noisy, text = torch.randn(1, 6, latents, side, side), torch.randn(1, 6, latents, side, side), torch.randn(1, 3, 8)
    t = torch.cat([torch.zeros(1, latents), torch.rand(1, latents) * 1000], 1)
    camera = (torch.randn(1, latents, 8), torch.randn(1, latents, 8))
    double = tuple(c.repeat(1, 2, 1) for c in camera)
    view = sequence_view(autoencoder, x, poses, chunk, config, 3, FOCAL)
    tail = sequence_view(autoencoder, x, poses, chunk, config, 3, FOCAL, last=2)
    assert torch.allclose(tail.latents, view.latents[-2:], atol=1e-5)
    layout = teacher_forcing_layout(config, latents, (2, 2), chunk)
    want = model(torch.cat([x, noisy], 2), t, text, camera=double, layout=layout, view=view)[:, :, latents:]
    memory, start = model.new_memory(config, (side, side), chunk=chunk), 0
    while start < latents:
        end = 1 if start == 0 else start + chunk
        part, view = tuple(c[:, start:end] for c in camera), None
        if start:
            frames = slice(4 * (start - 1) + 1, 4 * (end - 1) + 1)
            index = torch.arange(start)
            index = index[config.remembers(index, start, chunk)]
            remembered, size = from_latents(autoencoder, x[:, :, index]), picture_size(autoencoder, x)
            view = next_view(autoencoder, remembered, size, poses[:, 4 * index], poses[:, frames], index, 3, FOCAL)
        got = model(noisy[:, :, start:end], t[:, latents + start : latents + end], text, camera=part, memory=memory, view=view)
        assert (got - want[:, :, start:end]).abs().max() < 2e-5
        model(x[:, :, start:end], t[:, start:end], text, camera=part, memory=memory, write=True)
        start = end


@torch.no_grad()
def test_what_is_guessed_is_shown_however_closed_the_gate(small):
    autoencoder, model = orthogonal_code(), small[1]
    side, code = 4 * model.config.patch_size[1], codes("left*24")[None]
    picture = torch.randn(1, 6, 1, side, side)
    view = start_view(autoencoder, picture, code, FOCAL)
    guessed = view.guessed[-1, 0]
    assert (guessed == 1).any() and (guessed == 0).any()
    model.view_blend.gate.weight.zero_()
    outs = []
    for bias in (-1e4, 1e4):
        model.view_blend.gate.bias.fill_(bias)
        outs.append(model(torch.zeros(1, 6, 6, side, side), torch.tensor([500.0]), torch.zeros(1, 3, 8), view=view)[0, :, -1])
    closed, opened = outs
    assert torch.allclose(opened, view.latents[-1], atol=1e-5)
    assert torch.allclose(closed[:, guessed == 1], view.latents[-1][:, guessed == 1], atol=1e-5)
    assert (closed - opened).abs()[:, guessed == 0].amax(0).min() > 1e-3


@torch.no_grad()
def test_an_open_gate_gives_the_warped_picture(small):
    autoencoder, model = orthogonal_code(), small[1]
    model.view_blend.gate.bias.fill_(1e4)
    side, code = 2 * model.config.patch_size[1], codes("static*4")[None]
    view = start_view(autoencoder, torch.randn(1, 6, 1, side, side), code, FOCAL)
    assert (view.known > 0).all()
    out = model(torch.randn(1, 6, 1, side, side), torch.tensor([500.0]), torch.randn(1, 3, 8), view=view)
    assert torch.allclose(out[:, :, 0], view.latents, atol=1e-5)


@torch.no_grad()
def test_depth_is_carried_over_where_points_gave_it():
    """From a picture whose depth is known to be that of a wall 20 steps away, one comes 4 steps closer, whatever the new picture says."""
    torch.manual_seed(0)
    autoencoder, code = orthogonal_code(), codes("w*4")[None]
    start, new = torch.randn(1, 6, 1, 2, 2), torch.randn(1, 6, 2, 2)
    wall = autoencoder.last_picture(start[:, :, 0]), torch.full((1, 16, 16), 1 / 20)
    at = lambda poses: (autoencoder, lambda which: tuple(x[which] for x in wall), (32, 32), code[:, :1], poses, torch.zeros(1), 1, FOCAL)  # noqa: E731
    view = next_view(*at(code[:, 1:]))
    assert view.measured.all() and torch.allclose(view.depth_of(new), torch.full((1, 16, 16), 1 / 16), atol=1e-4)
    turned = codes("up*16 static*4")[None, 12:]  # where mirrors show nothing either
    view = next_view(*at(turned[:, -4:]))
    assert 0 < view.measured.float().mean() < 1
    own = depth_of(autoencoder, new)
    assert torch.equal(view.depth_of(new)[~view.measured], own[~view.measured])


def test_an_autoencoder_without_depth_says_so():
    with pytest.raises(ValueError, match="knows no depth"):
        start_view(TinyAutoencoder(6, (8, 8), 8, 0), torch.randn(1, 6, 1, 2, 2), codes("w*4")[None], FOCAL)


def test_needs_a_model_that_predicts_pictures():
    with pytest.raises(ValueError, match="view_focal needs"):
        CausalWorldTransformer(num_attention_heads=2, attention_head_dim=12, num_layers=1, view_focal=FOCAL)


def test_an_hour_later_pictures_still_count():
    code = codes("left*16 right*16")
    index = torch.arange(8) + 14400
    allowed = torch.ones(1, 8, dtype=torch.bool)
    picks, quality = choose_pictures(code[None, :-1:4], code[-1:], index, allowed, torch.tensor([7]), 3, FOCAL, (32, 32))
    assert picks[0, 1] != 7 and (quality[0, :2] > 0.15).all()


@torch.no_grad()
def test_a_world_in_bfloat16_looks_from_the_same_places():
    """Poses and depth stay exact: after walking and turning a while, pictures differ from those in float32 by rounding alone."""
    from worldmodel import WorldModel

    frames = []
    for dtype in (torch.float32, torch.bfloat16):
        model = WorldModel.from_pretrained("tiny", dtype=dtype)
        world = model.start(model.gallery[1].image_path, prompt=model.gallery[1].prompt, seed=0)
        frames.append(np.concatenate([chunk.frames for chunk in world.stream("w*12 left*12")]).astype(float))
    assert np.abs(frames[0] - frames[1]).mean() < 3
    assert np.abs(np.diff(frames[0], axis=0)).mean() > 3  # while much moved


@pytest.mark.parametrize("steps", [6, 12, 15])
def test_what_comes_closer_hides_what_is_behind(steps):
    """A board 20 steps away before the sky, however much it grows; its edges may be wrong by one of the places it is spread over."""
    size = (48, 64)
    x, y, _ = pixel_rays(size, FOCAL, "cpu").T
    board = (x.abs() < 0.12) & (y.abs() < 0.08)
    near = torch.where(board, 1 / 20, 0.0).view(1, *size)
    code = codes(f"w*{steps}")
    turn, move = relative(code[:1], code[-1:])
    seen, there_is = splat(turn, move, near, FOCAL)
    grown = 20 / (20 - steps)
    slack = (grown / 2 + (2 if grown < 2 else 4)) / (FOCAL * size[1])  # half a place as it was, and the places it is spread over, in rays
    inside = ((x.abs() < 0.12 * grown - slack) & (y.abs() < 0.08 * grown - slack)).view(size)
    outside = ((x.abs() > 0.12 * grown + slack) | (y.abs() > 0.08 * grown + slack)).view(size)
    assert inside.any() and outside.any() and there_is[0][inside].all()
    assert torch.allclose(seen[0][inside], torch.tensor(1 / (20 - steps)), atol=1e-5) and (seen[0][outside] == 0).all()


@pytest.mark.parametrize("steps", [3, 8, 20])
def test_a_floor_stays_a_floor(steps):
    """A floor 5 steps below looks the same from everywhere on it, however much its points are drawn apart on the way."""
    size = (48, 64)
    down = pixel_rays(size, FOCAL, "cpu")[:, 1].view(1, *size)
    floor, code = down.clamp_min(0) / 5, codes(f"w*{steps}")
    turn, move = relative(code[:1], code[-1:])
    seen, there_is = splat(turn, move, floor, FOCAL)
    place = 1 / (FOCAL * size[1]) / 5  # by how much the floor is nearer a place further down
    wrong = (seen - floor).abs() / place
    assert there_is.all() and (wrong < 0.5).float().mean() > 0.9 and wrong.max() < 1.5  # a closed gap is as near as what is beside it


def test_slopes_are_those_of_the_surface():
    x = torch.arange(8.0).expand(6, 8)
    step = torch.where(x < 4, 0.5 * x, 20 - 0.25 * x)[None]
    right, down = slopes(step)
    assert (right[0, :, :4] == 0.5).all() and (right[0, :, 4:] == -0.25).all() and (down == 0).all()
    assert all(torch.equal(a, b.transpose(1, 2)) for a, b in zip(slopes(step), slopes(step.transpose(1, 2))[::-1], strict=True))
    assert all(s.shape == (1, 1, 5) and (s == 0).all() for s in slopes(torch.ones(1, 1, 5)))


@pytest.mark.parametrize("quality", [1.0, 0.2, 0.01])
@pytest.mark.parametrize("other", [1.0, 0.3, 0.001])
def test_old_pictures_are_seen_too(quality, other):
    """However much both have faded: what only the second picture shows is its colour, as far away as it says."""
    code = codes("left*24")
    black, white = torch.full((3, 32, 32), -1.0), torch.full((3, 32, 32), 1.0)
    near = torch.tensor([1 / 10, 1 / 40]).view(2, 1, 1).expand(2, 16, 16)
    view = view_of(torch.stack([black, white]), code[[0, -1]], code[-1:].expand(4, -1), near, torch.tensor([quality, quality * other]))
    away = known_of(view_of(black[None], code[:1], code[-1:].expand(4, -1), near[:1]))[-1] == 0
    assert 0.2 < away.float().mean() < 0.8
    away = -F.max_pool2d(-away[None].float(), 7, 1, 3)[0] > 0  # without the seam
    assert (view.frames[0, :, -1][:, away] > 0.99).all()
    assert torch.allclose(view.inverse_depth[0].repeat_interleave(2, 0).repeat_interleave(2, 1)[away], torch.tensor(1 / 40), atol=1e-4)
