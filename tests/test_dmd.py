"""Distribution matching against Gaussians, whose scores are known, and a generator that really moves to the data."""

from types import SimpleNamespace

import pytest
import torch
from small import small_model

from distill.dmd import Condition, clean_estimates, fake_score_loss, matching_loss, predict_clean, renoise, sample_level, score_difference


class Gaussian(torch.nn.Module):
    """Optimal denoiser of independent N(mean, std^2) values, as a score model of either prediction; mean and std are trainable."""

    def __init__(self, mean, std, prediction="sample", text_pull=0.0):
        super().__init__()
        std = [std] * len(mean) if isinstance(std, float) else std
        self.mean, self.log_std = torch.nn.Parameter(torch.tensor(mean)), torch.nn.Parameter(torch.tensor(std).log())
        self.config, self.text_pull = SimpleNamespace(prediction_type=prediction), text_pull

    def forward(self, x, timestep, text, actions=None, poses=None, view=None):
        s = (timestep / 1000)[:, None, :, None, None]
        a, variance = 1 - s, (2 * self.log_std).exp().view(1, -1, 1, 1, 1)
        mean = self.mean.view(1, -1, 1, 1, 1) + self.text_pull * text.mean((1, 2)).view(-1, 1, 1, 1, 1)
        clean = mean + a * variance / (a**2 * variance + s**2) * (x - a * mean)
        return clean if self.config.prediction_type == "sample" else (x - clean) / s.clamp_min(1e-3)


class Two:
    """A model whose velocity is 2 everywhere."""

    config = SimpleNamespace(prediction_type="velocity")

    def __call__(self, x, timestep, text):
        return torch.full_like(x, 2.0)


def condition(batch, frames=5):
    return Condition(torch.ones(batch, 2, 3), torch.zeros(batch, frames, 13), torch.zeros(batch, frames, 9))


def sequence(batch, channels=2, latents=2, size=1, seed=0):
    return torch.randn(batch, channels, latents, size, size, generator=torch.Generator().manual_seed(seed))


def test_difference_is_the_difference_of_scores():
    """Against scores written down in float64: x0 = (x_s + s^2 score) / (1 - s), normalised by the distance to the real estimate."""
    x, noise = sequence(6, latents=3), sequence(6, latents=3, seed=1)
    level = torch.linspace(0.05, 0.95, 6)
    real, fake = Gaussian([0.5, -1.0], 0.7), Gaussian([-0.2, 0.3], 1.3)
    got = score_difference(x, real, fake, condition(6, 9), level, noise, guidance=0.0)
    s = level.double().view(-1, 1, 1, 1, 1)
    noisy = ((1 - s) * x + s * noise)[:, :, 1:]

    def score(mean, std):
        return -(noisy - (1 - s) * torch.tensor(mean).double().view(1, 2, 1, 1, 1)) / ((1 - s) ** 2 * std**2 + s**2)

    s_real, s_fake = score([0.5, -1.0], 0.7), score([-0.2, 0.3], 1.3)
    x_real = (noisy + s**2 * s_real) / (1 - s)
    want = s**2 / (1 - s) * (s_fake - s_real) / (x[:, :, 1:] - x_real).abs().mean((1, 2, 3, 4), keepdim=True)
    assert torch.allclose(got[:, :, 1:].double(), want, rtol=1e-4, atol=1e-5)
    assert (got[:, :, 0] == 0).all()


def test_expected_gradient_is_that_of_the_divergence():
    """E[x0_fake - x0_real] = (s / (1 - s))^2 d KL(N(a g, a^2 v + s^2) || N(a d, a^2 w + s^2)) / d g, in closed form"""
    n, s, (g, v), (d, w) = 200_000, 0.6, (0.8, 0.5), (-0.3, 1.2)
    x = g + v * sequence(n, channels=1)
    level = torch.full((n,), s)
    real, fake = clean_estimates(x, Gaussian([d], w), Gaussian([g], v), condition(n), level, sequence(n, 1, seed=1), guidance=0.0)
    got = (fake - real)[:, :, 1].mean()
    slope = (1 - s) ** 2 * (g - d) / ((1 - s) ** 2 * w**2 + s**2)
    assert got == pytest.approx((s / (1 - s)) ** 2 * slope, rel=0.01)


def test_guidance_is_on_the_real_score_only():
    x, noise, level = sequence(3), sequence(3, seed=1), torch.full((3,), 0.5)
    model = Gaussian([0.5, -1.0], 0.7, text_pull=0.4)
    plain, fake = clean_estimates(x, model, model, condition(3), level, noise, guidance=0.0)
    guided, same = clean_estimates(x, model, model, condition(3), level, noise, guidance=3.0)
    without, _ = clean_estimates(x, model, model, condition(3).without_text(), level, noise, guidance=0.0)
    assert torch.equal(plain, fake) and torch.equal(fake, same)
    assert torch.allclose(guided, plain + 3 * (plain - without), atol=1e-6)
    assert (guided - plain)[:, :, 1:].abs().min() > 0.01


def test_both_predictions_mean_the_same():
    x, noise, level = sequence(4), sequence(4, seed=1), torch.tensor([0.1, 0.4, 0.7, 0.95])
    noisy, levels = renoise(x, level, noise)
    assert torch.equal(noisy[:, :, 0], x[:, :, 0]) and (levels[:, 0] == 0).all()
    text = condition(4).text
    sample, velocity = (predict_clean(Gaussian([0.5, -1.0], 0.7, kind), noisy, levels, text) for kind in ("sample", "velocity"))
    assert torch.allclose(sample[:, :, 1:], velocity[:, :, 1:], atol=1e-5)
    per_batch = predict_clean(Two(), torch.ones(2, 3, 2, 1, 1), torch.tensor([0.25, 0.5]), None)
    assert per_batch[:, 0, 0, 0, 0].tolist() == [0.5, 0.0]  # x - s v with v = 2


def test_levels_are_shifted_and_clamped():
    level = sample_level(40_000, torch.Generator().manual_seed(0), shift=5.0, clamp=(20.0, 980.0))
    assert level.min() >= 0.02 and level.max() == pytest.approx(0.98)
    assert level.median() == pytest.approx(5 / 6, abs=0.01)  # 5 u / (1 + 4 u) at u = 1/2
    top = 0.98 / (5 - 4 * 0.98)  # u above which a level is clamped
    assert (level > 0.9799).float().mean() == pytest.approx(1 - top, abs=0.01)


def test_gradients_go_where_they_belong():
    x = sequence(3, latents=4).requires_grad_()
    difference = sequence(3, latents=4, seed=2)
    (gradient,) = torch.autograd.grad(matching_loss(x, difference), x)
    assert torch.allclose(gradient, difference / x.numel(), atol=1e-7)
    fake = small_model().transformer
    x = sequence(2, channels=8, latents=3, size=4).requires_grad_()
    text = Condition(torch.randn(2, 6, 16), torch.zeros(2, 9, 13), torch.zeros(2, 9, 9))
    fake_score_loss(fake, x, text, torch.tensor([0.3, 0.7]), torch.randn(x.shape)).backward()
    assert x.grad is None and fake.proj_out.weight.grad.abs().max() > 0


@pytest.mark.parametrize("prediction", ["sample", "velocity"])
def test_fake_score_learns_what_the_generator_makes(prediction):
    """Flow matching is least at the generator's own mean and standard deviation."""
    x = torch.tensor([0.7, -0.4]).view(1, 2, 1, 1, 1) + 0.5 * sequence(40_000)
    level, noise = sample_level(40_000, torch.Generator().manual_seed(3), 1.0), sequence(40_000, seed=4)

    def loss(mean, std):
        return float(fake_score_loss(Gaussian(mean, std, prediction), x, condition(40_000), level, noise).detach())

    least = loss([0.7, -0.4], 0.5)
    others = [([0.8, -0.4], 0.5), ([0.6, -0.4], 0.5), ([0.7, -0.3], 0.5), ([0.7, -0.4], 0.6), ([0.7, -0.4], 0.42)]
    assert all(loss(mean, std) > least for mean, std in others)


def test_generator_moves_to_the_data():
    """A Gaussian generator, a fake score that has to follow it, and a frozen real score: 2-D, 300 generator steps."""
    rng = torch.Generator().manual_seed(0)
    mean, log_std = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    real, fake = Gaussian([1.5, -1.0], [0.4, 0.6]), Gaussian([0.0, 0.0], 1.0)
    real.requires_grad_(False)
    generator_step, fake_step = torch.optim.Adam([mean, log_std], lr=0.03), torch.optim.Adam(fake.parameters(), lr=0.05)
    n, where = 128, condition(128)

    def make():
        z = torch.randn(n, 2, 1, 1, 1, generator=rng)
        x = mean.view(1, 2, 1, 1, 1) + log_std.exp().view(1, 2, 1, 1, 1) * z
        return torch.cat([torch.zeros_like(x), x], dim=2)

    for step in range(300):
        for group in (*generator_step.param_groups, *fake_step.param_groups):
            group["lr"] *= 0.99 if step > 150 else 1.0
        for _ in range(3):
            level, noise = sample_level(n, rng, 1.0), torch.randn(n, 2, 2, 1, 1, generator=rng)
            fake_score_loss(fake, make(), where, level, noise).backward()
            fake_step.step()
            fake_step.zero_grad()
        level, noise, x = sample_level(n, rng, 1.0), torch.randn(n, 2, 2, 1, 1, generator=rng), make()
        matching_loss(x, score_difference(x, real, fake, where, level, noise, guidance=0.0)).backward()
        generator_step.step()
        generator_step.zero_grad()
    assert mean.tolist() == pytest.approx([1.5, -1.0], abs=0.1)
    assert log_std.exp().tolist() == pytest.approx([0.4, 0.6], abs=0.1)
