"""Running statistics of features, and the scale of returns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from drama.agent.normalize import ReturnScale, RunningNorm


def test_by_hand() -> None:
    """After 0 and 2 the mean is 1 and the variance 1; after 5 and 5 too, 3 and 4.5."""
    norm = RunningNorm(1)
    norm.update(torch.tensor([[0.0], [2.0]]))
    torch.testing.assert_close(norm(torch.tensor([[3.0], [1.0]])), torch.tensor([[2.0], [0.0]]), atol=1e-4, rtol=0)
    norm.update(torch.tensor([[5.0], [5.0]]))
    assert norm.mean.item() == pytest.approx(3.0)
    assert norm.var.item() == pytest.approx(4.5)
    assert norm.count.item() == 4


def test_uneven_batches_equal_one_pass() -> None:
    """Mean and variance cover every row with the same weight, whatever batch it came in."""
    torch.manual_seed(0)
    scale, offset = torch.tensor([1.0, 0.01, 50.0]), torch.tensor([0.0, 3.0, -200.0])
    batches = [torch.randn(n, 3) * scale * k + offset + k for k, n in enumerate((1, 7, 100, 2, 33, 1), start=1)]
    norm = RunningNorm(3)
    for batch in batches:
        norm.update(batch)
    everything = torch.cat(batches).double()
    torch.testing.assert_close(norm.mean.double(), everything.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(norm.var.double(), everything.var(0, correction=0), rtol=1e-4, atol=1e-4)
    assert norm.count.item() == 144


def test_leading_axes_are_all_rows() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 3)
    deep, flat = RunningNorm(3), RunningNorm(3)
    deep.update(x)
    flat.update(x.reshape(20, 3))
    assert torch.equal(deep.mean, flat.mean)
    assert torch.equal(deep.var, flat.var)
    assert deep.count.item() == 20
    assert deep(x).shape == x.shape


def test_output_is_clipped_on_both_sides() -> None:
    norm = RunningNorm(1)
    norm.update(torch.tensor([[-1.0], [1.0]]))
    out = norm(torch.tensor([[1e4], [-1e4], [9.0]])).flatten()
    torch.testing.assert_close(out, torch.tensor([10.0, -10.0, 9.0]), atol=1e-3, rtol=0)
    tight = RunningNorm(1, limit=2.0)
    assert tight(torch.tensor([[7.0]])).item() == 2.0


def test_a_constant_feature_stays_finite() -> None:
    norm = RunningNorm(2)
    norm.update(torch.tensor([[4.0, 0.0], [4.0, 1.0]]))
    out = norm(torch.tensor([[4.0, 0.5], [5.0, 0.5]]))
    torch.testing.assert_close(out, torch.tensor([[0.0, 0.0], [10.0, 0.0]]))


def test_before_any_data_it_is_the_identity() -> None:
    x = torch.tensor([[1.5, -2.0]])
    torch.testing.assert_close(RunningNorm(2)(x), x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("training", [True, False])
def test_forward_changes_no_statistics(training: bool) -> None:
    norm = RunningNorm(3).train(training)
    norm.update(torch.randn(10, 3))
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(torch.randn(50, 3) * 9 + 4)
    assert before.keys() == {"count", "mean", "var"}
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])


def test_state_dict_carries_the_statistics() -> None:
    """A copy through the state dict goes on exactly as the original does."""
    torch.manual_seed(0)
    norm, copy = RunningNorm(3), RunningNorm(3)
    norm.update(torch.randn(10, 3) * 5 + 2)
    copy.load_state_dict(norm.state_dict())
    x = torch.randn(4, 3)
    norm.update(x)
    copy.update(x)
    assert torch.equal(norm(x), copy(x))
    assert norm.count.item() == copy.count.item() == 14


def test_statistics_take_no_gradient() -> None:
    norm = RunningNorm(2)
    norm.update(torch.randn(5, 2, requires_grad=True))
    assert not norm.mean.requires_grad
    x = torch.ones(1, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(norm(x).sum(), x)
    torch.testing.assert_close(gradient, torch.rsqrt(norm.var + 1e-5)[None])


def take(scale: ReturnScale, returns: Tensor) -> Tensor:
    return scale.update(returns, torch.ones_like(returns))


def test_return_scale_by_hand() -> None:
    """Of 0 to 100 the 5 % and 95 % quantiles are 5 and 95; at decay 0.9 the average goes 9, 17.1."""
    scale = ReturnScale(0.9)
    returns = torch.arange(101.0)[torch.randperm(101, generator=torch.Generator().manual_seed(0))]
    assert take(scale, returns).item() == pytest.approx(9.0, rel=1e-5)
    assert take(scale, returns.reshape(1, 101)).item() == pytest.approx(17.1, rel=1e-5)


def test_return_scale_ignores_outliers() -> None:
    scale = ReturnScale(0.0)
    returns = torch.arange(101.0)
    returns[100], returns[0] = 1e6, -1e6
    assert take(scale, returns).item() == pytest.approx(90.0, rel=1e-5)


def test_return_scale_ignores_what_carries_no_weight() -> None:
    scale = ReturnScale(0.0)
    returns, weight = torch.arange(202.0), (torch.arange(202) < 101).float()
    assert scale.update(returns, weight).item() == pytest.approx(90.0, rel=1e-5)


def test_return_scale_ignores_what_is_no_number() -> None:
    returns, weight = torch.tensor([0.0, 10.0, torch.nan, 5.0]), torch.tensor([1.0, 1.0, 1.0, 0.0])
    scale = ReturnScale(decay=0.0)
    torch.testing.assert_close(scale.update(returns, weight), torch.tensor(9.0))


def test_return_scale_is_at_least_one_and_keeps_the_average_below() -> None:
    """The floor is on the divisor only: 0.25 then 0.375 are kept, 1 is given."""
    scale = ReturnScale(0.5)
    returns = torch.linspace(0, 0.5 / 0.9, 101)  # 5 % to 95 %: 0.5
    assert take(scale, returns).item() == 1.0
    assert scale.value.item() == pytest.approx(0.25, rel=1e-4)
    assert take(scale, returns).item() == 1.0
    assert scale.value.item() == pytest.approx(0.375, rel=1e-4)


def test_return_scale_is_in_the_state_dict() -> None:
    scale, copy = ReturnScale(0.9), ReturnScale(0.9)
    take(scale, torch.arange(101.0))
    copy.load_state_dict(scale.state_dict())
    assert copy.value.item() == pytest.approx(9.0, rel=1e-5)


def test_return_scale_does_not_change_what_it_gave() -> None:
    """A divisor in hand stays what it was when the next update comes."""
    scale = ReturnScale(0.0)
    given = take(scale, torch.arange(101.0))
    take(scale, torch.arange(101.0) * 7)
    assert given.item() == pytest.approx(90.0, rel=1e-5)
