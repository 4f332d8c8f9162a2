"""Perceptrons and two-hot scalars."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from drama.models.heads import TwoHot, mlp, symexp, symlog
from drama.models.norm import RMSNorm

E = math.e


@pytest.fixture
def five() -> TwoHot:
    """Bins at -2, -1, 0, 1, 2 of symlog space."""
    return TwoHot(5, 2.0)


@pytest.mark.parametrize(
    ("value", "weights"),
    [
        (0.0, [0, 0, 1, 0, 0]),
        (E - 1, [0, 0, 0, 1, 0]),  # symlog = 1, on a bin
        (1 - E, [0, 1, 0, 0, 0]),
        (E**0.25 - 1, [0, 0, 0.75, 0.25, 0]),  # symlog = 0.25, between bins
        (1 - E**1.5, [0.5, 0.5, 0, 0, 0]),
        (E**2 - 1, [0, 0, 0, 0, 1]),  # the limits
        (1 - E**2, [1, 0, 0, 0, 0]),
        (1e9, [0, 0, 0, 0, 1]),  # beyond them
        (-1e9, [1, 0, 0, 0, 0]),
        (math.inf, [0, 0, 0, 0, 1]),
        (-math.inf, [1, 0, 0, 0, 0]),
    ],
)
def test_encode_by_hand(five: TwoHot, value: float, weights: list[float]) -> None:
    encoded = five.encode(torch.tensor([value, 0.0]))
    torch.testing.assert_close(encoded, torch.tensor([weights, [0.0, 0, 1, 0, 0]]).float(), atol=1e-5, rtol=0)


def test_weights_are_a_distribution_over_two_neighbours() -> None:
    torch.manual_seed(0)
    two_hot = TwoHot(255, 20.0)
    weights = two_hot.encode(symexp(torch.rand(40, 50) * 44 - 22))
    assert weights.shape == (40, 50, 255)
    assert weights.min() >= 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(40, 50))
    assert (weights > 0).sum(-1).max() <= 2
    index = torch.arange(255).expand_as(weights)
    last = torch.where(weights > 0, index, -1).amax(-1)
    first = torch.where(weights > 0, index, 255).amin(-1)
    assert (last - first).max() == 1
    assert (last - first).min() >= 0


@pytest.mark.parametrize("bins", [41, 255])
@pytest.mark.parametrize("mean", ["symlog", "raw"])
def test_round_trip(bins: int, mean: Literal["symlog", "raw"]) -> None:
    two_hot = TwoHot(bins, 20.0, mean)
    values = torch.tensor([-4e8, -3e5, -21.0, -1.0, -0.3, -1e-3, 0.0, 1e-3, 0.07, 1.0, 7.5, 1e4, 4e8])
    decoded = two_hot.decode(two_hot.encode(values).log())
    torch.testing.assert_close(decoded, values, rtol=1e-4, atol=1e-5)


def test_values_beyond_the_limit_come_back_as_the_limit(five: TwoHot) -> None:
    decoded = five.decode(five.encode(torch.tensor([1e6, -1e6])).log())
    torch.testing.assert_close(decoded, torch.tensor([E**2 - 1, 1 - E**2]))


def test_decode_by_hand(five: TwoHot) -> None:
    """The mean is taken in symlog space: (0 + 1) / 2 gives sqrt(e) - 1, not (e - 1) / 2."""
    probs = torch.tensor([[0.0, 0, 0.5, 0.5, 0], [0.1, 0.2, 0.4, 0.2, 0.1], [0.25, 0.75, 0, 0, 0]])
    expected = torch.tensor([E**0.5 - 1, 0.0, 1 - E**1.25])
    torch.testing.assert_close(five.decode(probs.log()), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_the_raw_mean_does_not_shrink_what_is_rare(share: float) -> None:
    """A reward of 1 with this probability, else 0; in symlog space 0.05 is read as 0.035."""
    raw, symlog_ = (TwoHot(255, 20.0, mean) for mean in ("raw", "symlog"))
    for two_hot, expected in ((raw, share), (symlog_, 2**share - 1)):
        mixture = share * two_hot.encode(torch.tensor(1.0)) + (1 - share) * two_hot.encode(torch.tensor(0.0))
        torch.testing.assert_close(two_hot.decode(mixture.log()).item(), expected, atol=1e-4, rtol=0)


def test_raw_weights_by_hand() -> None:
    """Between bins at 0 and e - 1, and beyond the limits."""
    two_hot = TwoHot(5, 2.0, "raw")
    values = torch.tensor([(E - 1) / 4, -(E - 1) / 4, math.inf, -1e9])
    weights = [[0, 0, 0.75, 0.25, 0], [0, 0.25, 0.75, 0, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]
    torch.testing.assert_close(two_hot.encode(values), torch.tensor(weights).float(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bins", [40, 41, 255])
@pytest.mark.parametrize("mean", ["symlog", "raw"])
def test_equal_logits_are_zero(bins: int, mean: Literal["symlog", "raw"]) -> None:
    assert TwoHot(bins, 20.0, mean).decode(torch.zeros(bins)).abs().item() < 1e-5


def test_loss_by_hand(five: TwoHot) -> None:
    """Weights (0.75, 0.25) on probabilities (0.4, 0.2): -0.75 ln 0.4 - 0.25 ln 0.2. The logits need no norm."""
    logits = torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1]).log().expand(2, 5) + 5.0
    loss = five.loss(logits, torch.tensor([E**0.25 - 1, 1 - E**2]))
    torch.testing.assert_close(loss, torch.tensor([1.089577, 2.302585]), atol=1e-5, rtol=0)


def test_loss_of_bfloat16_logits_is_float32(five: TwoHot) -> None:
    logits = torch.zeros(3, 5, dtype=torch.bfloat16)
    loss = five.loss(logits, torch.ones(3, dtype=torch.bfloat16))
    torch.testing.assert_close(loss, torch.full((3,), math.log(5)))


def test_fewer_than_two_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="bins: 1"):
        TwoHot(1, 20.0)


def test_symlog_by_hand_and_inverse() -> None:
    x = torch.tensor([-(E**3 - 1), -1.0, 0.0, 1.0, E - 1, E**2 - 1])
    torch.testing.assert_close(symlog(x), torch.tensor([-3.0, -math.log(2), 0.0, math.log(2), 1.0, 2.0]))
    y = torch.linspace(-15, 15, 31)
    torch.testing.assert_close(symlog(symexp(y)), y, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(symexp(symlog(y)), y, atol=1e-5, rtol=1e-5)


def test_mlp_layers_and_output_scale() -> None:
    torch.manual_seed(0)
    net = mlp(7, 16, 3, 4, output_scale=0.01)
    assert [type(m) for m in net] == [nn.Linear, RMSNorm, nn.SiLU] * 3 + [nn.Linear]
    shapes = [tuple(m.weight.shape) for m in net if isinstance(m, nn.Linear)]
    assert shapes == [(16, 7), (16, 16), (16, 16), (4, 16)]
    x: Tensor = torch.randn(64, 7) * 10
    assert 0 < net(x).abs().max() < 0.05
    assert torch.equal(mlp(7, 16, 1, 4, output_scale=0.0)(x), torch.zeros(64, 4))
