"""Textures on rendered pictures: they lie still in space, get finer no further than pixels are, and leave depth as it is."""

import numpy as np
import pytest
import torch

from distill.scenes.texture import SIDE, Material, Textures, _noise, noise

FOCAL = 0.7


def pose(x=0.0, y=0.0, z=0.0):
    out = np.eye(4)
    out[:3, 3] = x, y, z
    return out


def grey(height, width):
    return np.full((height, width, 3), 120, np.uint8)


def test_noise_is_its_grid_and_linear_between():
    grid = _noise()[0, 0]  # z y x
    rng = np.random.default_rng(0)
    for x, y, z in rng.uniform(-100, 100, (20, 3)):
        want = 0.0
        for i, j, k in np.ndindex(2, 2, 2):
            at = [int(np.floor(v)) for v in (x, y, z)]
            share = np.prod([s if b else 1 - s for b, s in zip((i, j, k), (x % 1, y % 1, z % 1), strict=True)])
            want += share * float(grid[(at[2] + k) % SIDE, (at[1] + j) % SIDE, (at[0] + i) % SIDE])
        assert float(noise(torch.tensor([[x, y, z]]))) == pytest.approx(want, abs=1e-3)


def test_a_texture_stays_on_its_wall():
    textures, depth, width = Textures(np.random.default_rng(1), 8.0), np.full((24, 32), 10.0), 32
    shift = 5 * 10.0 / (FOCAL * width)  # metres by which five pixels move at ten metres
    here, there = (textures.on(grey(24, 32), depth, pose(x), FOCAL) for x in (0.0, shift))
    assert np.array_equal(here[:, 5:], there[:, :-5]) and here.std() > 2
    assert not np.array_equal(here[:, 5:], here[:, :-5])


def test_walking_moves_no_sky():
    textures, sky = Textures(np.random.default_rng(2), 8.0), np.full((16, 16), np.inf)
    assert np.array_equal(*(textures.on(grey(16, 16), sky, p, FOCAL) for p in (pose(), pose(3.0, 1.0, 7.0))))


def test_what_is_finer_than_two_pixels_is_not_there():
    material = Material(torch.eye(3, dtype=torch.float64), torch.zeros(3), 0.7, 0, torch.ones(3))
    points = torch.rand(500, 3, dtype=torch.float64) * 50
    seen = [float(material.at(points, torch.full((500,), metres)).std()) for metres in (0.01, 0.1, 0.3, 1.0)]
    assert seen[0] > seen[1] > seen[2] > seen[3] == 0.0


def test_same_numbers_same_textures_and_others_otherwise():
    depth = np.full((16, 16), 6.0)
    a, b, c = (Textures(np.random.default_rng(s), 3.0).on(grey(16, 16), depth, pose(), FOCAL) for s in (3, 3, 4))
    assert np.array_equal(a, b) and not np.array_equal(a, c) and a.dtype == np.uint8 and a.shape == (16, 16, 3)
