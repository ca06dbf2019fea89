"""Mirrors: against angles folded by hand, a floor that stays a floor, loops over candidates, and what is known is never painted."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_camera_view import FOCAL, Pixels, codes, look

from worldmodel.camera_view import CameraView
from worldmodel.mirrors import COUNT, DRAWN, EVERY, PLACES, SOFTENS, Mirrors, choose_mirrors, drawn_out, side_mirrors
from worldmodel.projection import pixel_rays, relative, rotation_and_position

SIZE = (48, 64)
ASPECT = SIZE[1] / SIZE[0]
HALF = math.atan(0.5 / FOCAL)


def view_of(picture, here, there, near, mirrors=True):
    """One picture [3, H, W] from `there` [4, 9], of inverse depth `near` [k, l], with its mirrors or without."""
    here, there, ones = here[None, None], there[None], torch.ones(1, 1)
    pictures = lambda picks: (picture.expand(*picks.shape, -1, -1, -1), near.expand(*picks.shape, -1, -1))  # noqa: E731
    stand = Mirrors(here, there, torch.zeros(1), ones > 0, ones, FOCAL, ASPECT, pictures) if mirrors else None
    return CameraView(Pixels(), picture[None, None], near[None, None], here, there, ones, FOCAL, stand)


def folded(directions):
    """Directions [P, 3] with their azimuth folded into a picture's, as mirrors at its edges fold it"""
    azimuth, height = torch.atan2(directions[:, 0], directions[:, 2]), directions[:, 1] / directions[:, [0, 2]].norm(dim=-1)
    turn = (azimuth + HALF) % (4 * HALF)
    azimuth = torch.where(turn > 2 * HALF, 4 * HALF - turn, turn) - HALF
    return torch.stack([azimuth.sin(), height, azimuth.cos()], -1)


def test_mirrors_stand_on_the_edges_and_are_seen_in_each_other():
    right, left, left_of_right, right_of_left = side_mirrors(FOCAL)
    for mirror, side in ((right, 1), (left, -1)):
        edge = torch.tensor([[side * 0.5 / FOCAL, y, 1.0] for y in (-1.0, 0.0, 0.7)])
        assert torch.allclose(edge @ mirror.T, edge, atol=1e-6) and torch.allclose(mirror @ mirror, torch.eye(3), atol=1e-6)
        assert torch.det(mirror) < 0 and torch.allclose(mirror[:, 1], torch.tensor([0.0, 1.0, 0.0]))
    cos, sin = math.cos(4 * HALF), math.sin(4 * HALF)
    turn = torch.tensor([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])  # to the left by four half angles
    assert torch.allclose(left_of_right, turn, atol=1e-6) and torch.allclose(right_of_left, turn.T, atol=1e-6)


@pytest.mark.parametrize("script", ["left*20", "right*44", "left*100", "right*112"])
def test_a_turn_shows_the_picture_folded(script):
    rays = pixel_rays(SIZE, FOCAL, "cpu")
    picture = look(rays).view(*SIZE, 3).permute(2, 0, 1)
    code = codes(script)
    view = view_of(picture, code[0], code[-4:], torch.zeros(SIZE[0] // 2, SIZE[1] // 2))
    directions = rays @ rotation_and_position(code[-1:])[0][0].T
    want = folded(directions)
    inside = (want[:, 1] / want[:, 2]).abs() < 0.46 * SIZE[0] / SIZE[1] / FOCAL  # a picture's height ends
    inside &= (want[:, 0] / want[:, 2]).abs() < 0.46 / FOCAL
    error = (view.frames[0, :, -1].flatten(1).T - look(want)).abs().amax(1)
    assert inside.float().mean() > 0.4 and error[inside].max() < 0.02
    assert (view.known[0, -1] == 0).any()


def test_what_pictures_show_is_not_painted():
    picture = torch.rand(3, *SIZE)
    near = torch.full((SIZE[0] // 2, SIZE[1] // 2), 1 / 30)
    code = codes("s*4 left*12")
    with_mirrors, without = (view_of(picture, code[0], code[-4:], near, x) for x in (True, False))
    known = F.interpolate(without.known, SIZE, mode="nearest")[0] > 0
    assert torch.equal(with_mirrors.known, without.known) and 0.3 < known.float().mean() < 0.95
    inner = -F.max_pool2d(-known.float(), 5, 1, 2) > 0  # away from the edges, where depth goes on into the mirror
    assert torch.allclose(with_mirrors.frames[0][:, inner], without.frames[0][:, inner], atol=1e-5)
    assert (with_mirrors.frames[0] - without.frames[0])[:, ~known].abs().max() > 0.1


def test_a_floor_stays_a_floor():
    """A floor 8 steps below the camera, seen from a place to the left and turned to the right: in the mirror it is as deep."""
    rays = pixel_rays((SIZE[0] // 2, SIZE[1] // 2), FOCAL, "cpu")
    floor = (rays[:, 1] / 8).clamp_min(0)
    near = floor.view(SIZE[0] // 2, SIZE[1] // 2)
    code = codes("a*6 right*24")
    view = view_of(torch.zeros(3, *SIZE), code[0], code[-4:], near)
    bare = view_of(torch.zeros(3, *SIZE), code[0], code[-4:], near, mirrors=False)
    new = view.measured[0] & ~bare.measured[0]
    assert new.float().mean() > 0.1
    assert (view.inverse_depth[0] - near)[new].abs().max() < 0.012 and (view.inverse_depth[0] - near)[new].abs().mean() < 0.002


def test_mirrors_are_chosen_greedily_among_few_pictures():
    rng, count = np.random.default_rng(0), 3 * EVERY
    keys, lengths = rng.permutation(["w", "a", "left", "right", "left"] * 8), rng.integers(2, 9, 40)
    code = codes(" ".join(f"{k}*{int(n)}" for k, n in zip(keys, lengths, strict=True)) + " up*28")
    here, there = code[: 4 * count : 4][None], code[-1:]
    index, worth = torch.arange(count) + 5, torch.rand(1, count)
    allowed = torch.ones(1, count, dtype=torch.bool)
    rays = pixel_rays(PLACES, FOCAL, "cpu", torch.float32, ASPECT)
    unknown, near = torch.rand(1, *PLACES) < 0.5, 0.05 * torch.rand(1, *PLACES)
    picks, reflections, useful = choose_mirrors(here, there, index, allowed, worth, unknown, near, FOCAL, ASPECT)
    turn, move = (x[0, :, 0] for x in relative(here.unsqueeze(2), there[:, None, None]))
    left = torch.nonzero(unknown.flatten()).flatten().tolist()
    plain_and_mirrored = [torch.eye(3), *side_mirrors(FOCAL)]
    for g in range(COUNT + DRAWN):
        best = (0.0, 0, 0, [])
        for s in [0] + [i for i in range(count) if int(index[i]) % EVERY == 0]:
            for m, mirror in enumerate(plain_and_mirrored):
                if g < COUNT and m == 0:
                    continue
                seen = []
                for p in left:
                    x, y, z = (mirror @ (turn[s] @ rays[p] + near.flatten()[p] * move[s])).tolist()
                    within = abs(y / z) * 2 * FOCAL * ASPECT <= 1
                    if z > 0.05 and abs(x / z) * 2 * FOCAL <= 1 and within == (g < COUNT):
                        seen.append(p)
                if len(seen) * float(worth[0, s]) > best[0]:
                    best = (len(seen) * float(worth[0, s]), s, m, seen)
        assert bool(useful[0, g]) == (best[0] > 0)
        if useful[0, g]:
            assert int(picks[0, g]) == best[1] and torch.equal(reflections[0, g], plain_and_mirrored[best[2]])
        left = [p for p in left if p not in best[3]]
    assert useful[0, 0] and useful[0, COUNT]
    assert not choose_mirrors(here, there, index, allowed, worth, torch.zeros_like(unknown), near, FOCAL, ASPECT)[2].any()


def test_what_is_drawn_out_is_the_edge_and_then_averages_of_growing_squares():
    picture = torch.rand(3, 32, 64)
    at_the_edge = torch.tensor([[2 * (7 + 0.5) / 64 - 1, 1.0], [2 * (20 + 0.5) / 64 - 1, -1.0]])
    assert torch.allclose(drawn_out(picture, at_the_edge), picture[:, [-1, 0], [7, 20]], atol=1e-5)
    for power in (1, 2, 3):
        side = 2**power
        beyond = 1 + 2 / 64 * (side - 1) / SOFTENS  # so many pixels that squares of this side are averaged
        column = 2 * side  # the squares' first column
        places = torch.tensor([[2 * (column + side / 2) / 64 - 1, -beyond]])
        want = picture[:, :side, column : column + side].mean((1, 2))
        assert torch.allclose(drawn_out(picture, places)[:, 0], want, atol=1e-4)
    assert drawn_out(picture, torch.zeros(0, 2)).shape == (3, 0)
    assert torch.isfinite(drawn_out(picture, torch.tensor([[0.3, 1e6]]))).all()


def test_a_stripe_that_a_picture_cuts_off_fades_above_it():
    """Looking up by 30 degrees, chunk by chunk: right above the picture the stripe goes on, far above it is as what is beside it."""
    picture = torch.full((3, *SIZE), -1.0)
    picture[:, :, 28:36] = 1.0
    code = codes("up*24")
    rows = []
    for last in (8, 24):
        view = view_of(picture, code[0], code[last - 3 : last + 1], torch.zeros(SIZE[0] // 2, SIZE[1] // 2))
        top = view.frames[0, 0, -1, 0]
        rows.append(float(top.max() - top.min()))
    assert 0.5 < rows[0] < 2.01 and rows[1] < 0.5 * rows[0]
