"""The contract that every sequence model keeps, checked on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from drama.config import SequenceConfig
from drama.models.sequence import SequenceModel, build
from drama.models.sequence.mamba2 import Mamba2

BATCH, WIDTH = 3, 24
BACKENDS = ("mamba2", "mamba", "transformer")


@pytest.fixture(params=BACKENDS)
def model(request: pytest.FixtureRequest) -> SequenceModel:
    torch.manual_seed(0)
    config = SequenceConfig(
        backend=request.param, width=WIDTH, layers=2, state=5, head_dim=12, chunk=8, heads=2, window=9
    )
    return build(config).eval()


def tokens(length: int) -> Tensor:
    return torch.randn(BATCH, length, WIDTH, generator=torch.Generator().manual_seed(length))


def starts(length: int, *at: int) -> Tensor:
    is_first = torch.zeros(BATCH, length, dtype=torch.bool)
    is_first[:, list(at)] = True
    return is_first


def steps(model: SequenceModel, x: Tensor, is_first: Tensor | None) -> tuple[Tensor, Any]:
    state, outputs = model.initial_state(x.shape[0]), []
    for t in range(x.shape[1]):
        y, state = model.step(x[:, t], None if is_first is None else is_first[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def flat(state: Any) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [t for part in state for t in flat(part)]


def close(left: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 23])
@pytest.mark.parametrize("resets", [(), (0,), (1, 2), (5, 8, 16)])
def test_step_equals_forward(model: SequenceModel, length: int, resets: tuple[int, ...]) -> None:
    x = tokens(length)
    is_first = starts(length, *(t for t in resets if t < length)) if resets else None
    y, state = model(x, is_first)
    by_step, step_state = steps(model, x, is_first)
    close(y, by_step)
    following = tokens(5)
    close(model(following, None, state)[0], model(following, None, step_state)[0])


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 2, 3, 8, 11, 19])
def test_an_episode_start_isolates_the_halves(model: SequenceModel, cut: int) -> None:
    x = tokens(20)
    y, state = model(x, starts(20, cut))
    first, _ = model(x[:, :cut])
    second, alone = model(x[:, cut:], starts(20 - cut, 0))
    close(y, torch.cat([first, second], dim=1))
    following = tokens(4)
    close(model(following, None, state)[0], model(following, None, alone)[0])


@torch.no_grad()
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("cut", [1, 6, 8, 11])
def test_what_is_not_finite_stays_in_its_episode(model: SequenceModel, cut: int, value: float) -> None:
    x, is_first = tokens(20), starts(20, cut, 16)
    clean, end = model(x, is_first)
    x[0, cut - 1, 3] = value
    y, state = model(x, is_first)
    by_step, step_state = steps(model, x, is_first)
    for found in (y, by_step):
        assert found[0, cut - 1].isnan().all()
        close(found[0, : cut - 1], clean[0, : cut - 1])
        close(found[0, cut:], clean[0, cut:])
        close(found[1:], clean[1:])
    following = tokens(4)
    for found in (state, step_state):
        close(model(following, None, found)[0], model(following, None, end)[0])


@torch.no_grad()
def test_the_rest_of_an_episode_is_not_finite_however_long(model: SequenceModel) -> None:
    """Also where attention no longer reaches the token that was not; and large values are finite."""
    x, is_first = tokens(40), starts(40, 30)
    x[0, 2, 5] = torch.nan
    x[1] = 3e37
    for found in (model(x, is_first)[0], steps(model, x, is_first)[0]):
        assert found[0, 2:30].isnan().all()
        assert found[0, 30:].isfinite().all()
        assert found[1:].isfinite().all()


@torch.no_grad()
def test_no_streams_at_all_with_a_state(model: SequenceModel) -> None:
    y, _ = model(torch.zeros(0, 3, WIDTH), torch.zeros(0, 3, dtype=torch.bool), model.initial_state(0))
    assert y.shape == (0, 3, WIDTH)


@torch.no_grad()
@pytest.mark.parametrize("at", [0, 2])
def test_a_state_that_is_not_finite_ends_with_its_episode(model: SequenceModel, at: int) -> None:
    x = tokens(5)
    is_first = torch.zeros(BATCH, 5, dtype=torch.bool)
    is_first[0, at] = True
    broken = tokens(6)
    broken[:2, 5] = torch.nan
    _, state = model(tokens(6))
    clean = model(x, is_first, state)[0]
    _, state = model(broken, starts(6, 1))
    y, end = model(x, is_first, state)
    outputs = []
    for t in range(5):
        out, state = model.step(x[:, t], is_first[:, t], state)
        outputs.append(out)
    for found in (y, torch.stack(outputs, dim=1)):
        close(found[0, at:], clean[0, at:])
        assert found[0, :at].isnan().all()
        assert found[1].isnan().all()
        assert found[2].isfinite().all()
    assert model(tokens(1), starts(1), end)[0][1].isnan().all()


def test_what_is_not_finite_gives_no_gradient_to_other_episodes(model: SequenceModel) -> None:
    x = tokens(12)
    x[0, 2] = torch.nan
    x.requires_grad_()
    y, _ = model(x, starts(12, 6))
    y[:, 6:].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_resets_are_per_sequence(model: SequenceModel) -> None:
    x = tokens(12)
    is_first = torch.zeros(BATCH, 12, dtype=torch.bool)
    is_first[1, 6] = True
    y, _ = model(x, is_first)
    close(y[[0, 2]], model(x)[0][[0, 2]])
    close(y[1, 6:], model(x[1:2, 6:])[0][0])
    assert not torch.allclose(y[1, 6:], model(x)[0][1, 6:], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("cut", [1, 3, 8, 13])
@pytest.mark.parametrize("resets", [(), (8,), (13, 14)])
def test_carried_state_equals_no_cut(model: SequenceModel, cut: int, resets: tuple[int, ...]) -> None:
    x, is_first = tokens(16), starts(16, *resets)
    whole, end = model(x, is_first)
    first, state = model(x[:, :cut], is_first[:, :cut])
    second, cut_end = model(x[:, cut:], is_first[:, cut:], state)
    close(whole, torch.cat([first, second], dim=1))
    following = tokens(3)
    close(model(following, None, end)[0], model(following, None, cut_end)[0])


@torch.no_grad()
def test_the_future_does_not_change_the_past_and_the_past_counts(model: SequenceModel) -> None:
    x = tokens(10)
    changed = x.clone()
    changed[:, 6] += 1
    y, other = model(x)[0], model(changed)[0]
    assert torch.equal(y[:, :6], other[:, :6])
    assert not torch.allclose(y[:, 7], other[:, 7], atol=1e-4)


@torch.no_grad()
def test_state_is_a_value(model: SequenceModel) -> None:
    """Calls do not change the state they are given, nor remember anything."""
    _, state = model(tokens(6))
    before = [t.clone() for t in flat(state)]
    x = tokens(3)
    once = model(x, None, state)[0]
    model.step(x[:, 0], torch.ones(BATCH, dtype=torch.bool), state)
    assert all(torch.equal(a, b) for a, b in zip(before, flat(state), strict=True))
    assert torch.equal(once, model(x, None, state)[0])


@torch.no_grad()
def test_a_step_over_the_old_state_equals_a_step(model: SequenceModel) -> None:
    _, state = model(tokens(6))
    given_up = model.step(tokens(6)[:, 0], None, state)[1]
    for t in range(3):
        is_first = torch.tensor([False, True, False]) if t == 1 else None
        y, state = model.step(tokens(3)[:, t], is_first, state if t else model.step(tokens(6)[:, 0], None, state)[1])
        other, given_up = model.step_(tokens(3)[:, t], is_first, given_up)
        close(y, other)
        for left, right in zip(flat(state), flat(given_up), strict=True):
            close(left.float(), right.float())


def test_mamba2_steps_over_the_old_state() -> None:
    layer = Mamba2(WIDTH, headdim=12)
    state = layer.initial_state(BATCH)
    after = layer.step_(tokens(1)[:, 0], None, state)[1]
    assert after.ssm.data_ptr() == state.ssm.data_ptr()
    assert after.conv.data_ptr() == state.conv.data_ptr()
    assert after.ssm.abs().sum() > 0


def test_mamba2_takes_no_streams_at_all() -> None:
    x = torch.zeros(0, 40, WIDTH, requires_grad=True)
    Mamba2(WIDTH, headdim=12)(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.shape == x.shape


@torch.no_grad()
def test_mamba2_steps_without_a_window() -> None:
    layer = Mamba2(WIDTH, headdim=12, d_conv=1)
    state = layer.initial_state(BATCH)
    for t in range(2):
        y, state = layer.step(tokens(2)[:, t], None, state)
    close(y, layer(tokens(2))[0][:, -1])


def test_bad_input_is_named(model: SequenceModel) -> None:
    x, state = tokens(3), model.initial_state(BATCH)
    with pytest.raises(ValueError, match=r"x: expected \[B, T >= 1, 24\], found \[3, 24\]"):
        model(x[:, 0])
    with pytest.raises(ValueError, match=r"x: expected \[B, 24\], found \[3, 3, 24\]"):
        model.step(x, None, state)
    with pytest.raises(ValueError, match=r"is_first: expected bool \[3, 1\], found torch.float32"):
        model.step(x[:, 0], torch.zeros(BATCH), state)
    with pytest.raises(ValueError, match=r"state\.\w+: expected \[3, .*another batch's or another backend's"):
        model.step(x[:, 0], None, model.initial_state(BATCH + 1))
    with pytest.raises(ValueError, match=r"state\.\w+: expected \[3, .*another batch's or another backend's"):
        model(x, None, model.initial_state(BATCH + 1))
    with pytest.raises(ValueError, match=r"state\.\w+: expected \[3, .*another batch's or another backend's"):
        model(x, starts(3, 1), model.initial_state(BATCH + 1))
    with pytest.raises(ValueError, match=r"state: expected a tuple of one state for each of 2 layers, found 1 of them"):
        model(x, starts(3, 1), state[:1])
    with pytest.raises(ValueError, match=r"state: expected a tuple of one state for each of 2 layers, found 1 of them"):
        model.step(x[:, 0], None, state[:1])
    with pytest.raises(ValueError, match=r"state\.\w+: is on meta, the model on cpu"):
        model.step(x[:, 0], None, tuple(tuple(part.to("meta") for part in layer) for layer in state))
    with pytest.raises(ValueError, match=r"state\.\w+: expected a dtype like torch.float32, found torch.int64"):
        model.step(x[:, 0], None, tuple(tuple(part.long() for part in layer) for layer in state))


def test_every_parameter_gets_a_gradient(model: SequenceModel) -> None:
    y, _ = model(tokens(11), starts(11, 4))
    y.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
