"""Categorical latents: the uniform mix, samples and their gradient, the KL divergence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from drama.models import latent


def test_uniform_mix_is_divided_by_the_classes() -> None:
    """Two variables of four classes: the mix adds 0.01 / 4 to each class, not 0.01 / 2."""
    logits = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]]).log() + 3.0
    probs = latent.mixed_log_probs(logits, 0.01).exp()
    expected = torch.tensor([[0.6955, 0.1015, 0.1015, 0.1015], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(probs, expected, atol=1e-6, rtol=0)


def test_uniform_mix_bounds_every_probability() -> None:
    """Logits that would underflow still leave each of 32 classes 0.01 / 32."""
    probs = latent.mixed_log_probs(torch.tensor([[1000.0, *[0.0] * 31]]), 0.01).exp()
    torch.testing.assert_close(probs[0, 1:], torch.full((31,), 0.0003125), atol=1e-8, rtol=1e-5)
    assert probs.sum().item() == pytest.approx(1.0, abs=1e-6)


def test_no_mix_is_the_softmax() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    torch.testing.assert_close(latent.mixed_log_probs(logits, 0.0), logits)


def test_log_probabilities_are_float32() -> None:
    assert latent.mixed_log_probs(torch.zeros(2, 4, dtype=torch.bfloat16), 0.01).dtype == torch.float32


def test_straight_through_gradient_is_that_of_the_probabilities() -> None:
    """Probabilities (1/2, 1/4, 1/4) with weights (1, 2, 4): p_i (w_i - p.w) with p.w = 2."""
    torch.manual_seed(0)
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().requires_grad_()
    sample = latent.straight_through_sample(torch.log_softmax(logits, dim=-1))
    (gradient,) = torch.autograd.grad((sample * torch.tensor([1.0, 2.0, 4.0])).sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.0, 0.5]]), atol=1e-6, rtol=0)


def test_straight_through_value_is_exactly_one_hot() -> None:
    torch.manual_seed(0)
    log_probs = latent.mixed_log_probs(torch.randn(50, 3, 5, requires_grad=True), 0.01)
    sample = latent.straight_through_sample(log_probs)
    assert sample.shape == (50, 3, 5)
    assert set(sample.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(sample.sum(-1), torch.ones(50, 3))


def test_plain_sample_has_no_gradient() -> None:
    torch.manual_seed(0)
    sample = latent.sample(torch.randn(4, 3, 5, requires_grad=True).log_softmax(-1))
    assert not sample.requires_grad
    assert torch.equal(sample.sum(-1), torch.ones(4, 3))


@pytest.mark.parametrize("draw", [latent.sample, latent.straight_through_sample])
def test_sample_frequencies(draw: object) -> None:
    """The counts of 20000 draws fit the probabilities, and two variables of one draw are independent."""
    assert callable(draw)
    torch.manual_seed(0)
    probs = np.array([0.5, 0.3, 0.15, 0.05])
    log_probs = torch.from_numpy(probs).float().log().expand(20_000, 2, 4)
    index = draw(log_probs).argmax(-1).numpy()
    for variable in range(2):
        counts = np.bincount(index[:, variable], minlength=4)
        assert stats.chisquare(counts, 20_000 * probs).pvalue > 0.001
    pairs = np.bincount(index[:, 0] * 4 + index[:, 1], minlength=16)
    assert stats.chisquare(pairs, 20_000 * np.outer(probs, probs).ravel()).pvalue > 0.001


def test_kl_by_hand() -> None:
    """KL((1/2, 1/2) || (1/4, 3/4)) + KL((1/4, 3/4) || (1/2, 1/2)) over two variables."""
    p = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]).log()
    q = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]).log()
    kl = latent.kl_divergence(p, q)
    assert kl.shape == (1,)
    assert kl.item() == pytest.approx(0.143841 + 0.130812, abs=1e-5)


def test_kl_of_a_certain_variable_is_the_surprise_and_of_equals_zero() -> None:
    certain = torch.tensor([[1.0 - 2e-7, 1e-7, 1e-7]]).log()
    spread = torch.tensor([[0.125, 0.5, 0.375]]).log()
    assert latent.kl_divergence(certain, spread).item() == pytest.approx(math.log(8), abs=1e-4)
    assert latent.kl_divergence(spread, spread).item() == 0
