"""LaProp: equal to a library's, and indifferent to the scale of the gradient down to a floor."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch.optim.lr_scheduler import LambdaLR

from drama.training.laprop import LaProp

SHAPES = [(3, 4), (5,), ()]


def descend(kind: Any, scale: float, updates: int, **options: Any) -> list[torch.Tensor]:
    """Parameters after `updates` of random gradients with a rising learning rate; the last one never has any."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    idle = torch.nn.Parameter(torch.ones(2))
    optimizer = kind([*params, idle], lr=0.1, **options)
    schedule = LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / 10))
    for _ in range(updates):
        for p in params:
            p.grad = scale * torch.randn(p.shape, generator=generator)
        optimizer.step()
        schedule.step()
    return [p.detach() for p in [*params, idle]]


@pytest.mark.parametrize("scale", [1e-9, 1e-7, 1.0])
@pytest.mark.parametrize("updates", [1, 2, 25])
def test_equals_the_library(updates: int, scale: float) -> None:
    """Also where gradients are so small that its floor counts, on which what is learned depends."""
    ours, theirs = (descend(kind, scale, updates, eps=1e-20) for kind in (LaProp, pytorch_optimizer.LaProp))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("scale", "floor"), [(1e-13, 0.0), (1e-9, 0.0), (1e-2, 1e-15), (1e6, 1e-15)])
def test_the_scale_of_gradients_cancels(scale: float, floor: float) -> None:
    ours, unscaled = (descend(LaProp, s, 20, floor=floor) for s in (scale, 1.0))
    torch.testing.assert_close(ours, unscaled, atol=1e-4, rtol=1e-4)


def test_small_gradients_move_a_parameter_less() -> None:
    start, still, moved = (descend(LaProp, s, updates) for s, updates in ((1.0, 0), (1e-12, 20), (1.0, 20)))
    torch.testing.assert_close(still, start, atol=1e-3, rtol=0)
    assert all((a - b).abs().min() > 1e-3 for a, b in zip(moved[:3], start[:3], strict=True))


def test_no_gradient_and_no_rate_move_nothing() -> None:
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = LaProp([p], lr=0.0)
    for grad in (torch.ones(2), torch.zeros(2)):
        p.grad = grad
        optimizer.step()
    optimizer = LaProp([p], lr=1.0)
    optimizer.step()
    assert p.tolist() == [1.0, 1.0]


def test_a_loaded_optimizer_goes_on() -> None:
    def step(optimizer: LaProp, p: torch.nn.Parameter, value: float) -> None:
        p.grad = torch.full_like(p, value)
        optimizer.step()

    p = torch.nn.Parameter(torch.ones(3))
    optimizer = LaProp([p], lr=0.1)
    step(optimizer, p, 0.5)
    twin = torch.nn.Parameter(p.detach().clone())
    resumed = LaProp([twin], lr=1.0)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for value in (-2.0, 0.25):
        step(optimizer, p, value)
        step(resumed, twin, value)
    assert torch.equal(p, twin)
