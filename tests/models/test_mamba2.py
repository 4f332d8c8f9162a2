"""The Mamba-2 layer: one function in parallel and in steps, equal to its definition, blind across episode starts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drama.config import SequenceConfig
from drama.models import sequence
from drama.models.sequence import ssd
from drama.models.sequence.base import ResidualStack, SequenceModel, State
from drama.models.sequence.mamba2 import Mamba2
from drama.models.sequence.ssd import Sizes, Weights, mix

CHUNK = 4
WIDTH = 6
TOLERANCE = 1e-9
# Episode starts around the edges of chunks of four: on an edge, 1, 2 and 3 after it, several, and consecutive.
STARTS = [(0,), (4,), (5,), (6,), (7,), (10,), (0, 4), (2, 5, 9), (4, 5, 6), (1, 2, 3), (8, 9), tuple(range(11))]


@torch.no_grad()
def scramble(mixer: nn.Module) -> None:
    """Move every parameter far from its initial value, so that the memory and each term show in the outputs."""
    assert isinstance(mixer, Mamba2)
    mixer.in_proj.weight.normal_()
    mixer.out_proj.weight.normal_()
    mixer.dt_bias.normal_()
    mixer.A_log.uniform_(-2, 1)
    mixer.D.normal_()
    mixer.norm.weight.normal_(1, 0.3)


def make_mixer(ngroups: int = 1, chunk_size: int = CHUNK) -> Mamba2:
    """A small layer with no size a multiple of 8."""
    torch.manual_seed(0)
    mixer = Mamba2(WIDTH, d_state=5, d_conv=4, expand=2, headdim=3, ngroups=ngroups, chunk_size=chunk_size)
    scramble(mixer)
    return mixer


def make_stack() -> SequenceModel:
    """Two such layers as the registry builds them."""
    torch.manual_seed(1)
    stack = sequence.build(SequenceConfig(width=WIDTH, layers=2, state=5, expand=2, head_dim=3, groups=2, chunk=CHUNK))
    assert isinstance(stack, ResidualStack)
    for mixer in stack.mixers:
        scramble(mixer)
    return stack


def starts_to_mask(starts: tuple[int, ...], length: int) -> Tensor:
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[0, list(starts)] = True
    return mask


def run_steps(model: SequenceModel, x: Tensor, is_first: Tensor | None, state: State = None) -> tuple[Tensor, State]:
    """The recurrent form over a whole sequence."""
    state = model.initial_state(x.shape[0]) if state is None else state
    outputs = []
    for t in range(x.shape[1]):
        y, state = model.step(x[:, t], None if is_first is None else is_first[:, t], state)
        outputs.append(y)
    return torch.stack(outputs, dim=1), state


def assert_same_state(a: object, b: object, tolerance: float = 1e-4) -> None:
    if isinstance(a, Tensor):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)
        return
    assert isinstance(a, tuple)
    assert isinstance(b, tuple)
    for left, right in zip(a, b, strict=True):
        assert_same_state(left, right, tolerance)


def silu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    y: NDArray[np.float64] = x / (1 + np.exp(-x))
    return y


def definition(mixer: Mamba2, x: NDArray[np.float64], first: list[bool]) -> NDArray[np.float64]:
    """One sequence through the layer, from the definition: every output as a sum over all earlier tokens."""
    p = {name: value.detach().double().numpy() for name, value in mixer.named_parameters()}
    length, inner, state, heads, headdim, groups = len(x), 12, 5, 4, 3, mixer.ngroups
    episode = np.cumsum(first)
    projected = x @ p["in_proj.weight"].T
    gate = projected[:, :inner]
    raw = projected[:, inner:-heads]
    dt = np.log1p(np.exp(projected[:, -heads:] + p["dt_bias"]))
    a = -np.exp(p["A_log"])

    mixed = np.zeros_like(raw)
    for t in range(length):
        total = p["conv1d.bias"].copy()
        for lag in range(4):
            if t - lag >= 0 and episode[t - lag] == episode[t]:
                total += p["conv1d.weight"][:, 0, 3 - lag] * raw[t - lag]
        mixed[t] = silu(total)
    u = mixed[:, :inner].reshape(length, heads, headdim)
    b = mixed[:, inner : inner + groups * state].reshape(length, groups, state)
    c = mixed[:, inner + groups * state :].reshape(length, groups, state)

    out = np.zeros((length, x.shape[1]))
    for t in range(length):
        y = np.zeros((heads, headdim))
        for h in range(heads):
            g = h * groups // heads
            y[h] = p["D"][h] * u[t, h]
            for s in range(t + 1):
                if episode[s] == episode[t]:
                    decay = np.exp(a[h] * dt[s + 1 : t + 1, h].sum())
                    y[h] += decay * dt[s, h] * np.dot(c[t, g], b[s, g]) * u[s, h]
        gated = (y.reshape(-1) * silu(gate[t])).reshape(groups, -1)
        normed = (gated / np.sqrt(np.mean(gated**2, axis=1, keepdims=True) + 1e-5)).reshape(-1) * p["norm.weight"]
        out[t] = p["out_proj.weight"] @ normed
    return out


@pytest.mark.parametrize("ngroups", [1, 2])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 8, 11])
def test_parallel_form_equals_steps(length: int, ngroups: int) -> None:
    mixer = make_mixer(ngroups)
    x = torch.randn(3, length, WIDTH)
    y, state = mixer(x)
    y_steps, state_steps = run_steps(mixer, x, None)
    assert y.shape == (3, length, WIDTH)
    torch.testing.assert_close(y, y_steps, atol=1e-4, rtol=1e-4)
    assert_same_state(state, state_steps)


@pytest.mark.parametrize("starts", STARTS)
def test_parallel_form_equals_steps_across_episode_starts(starts: tuple[int, ...]) -> None:
    stack = make_stack()
    x, is_first = torch.randn(1, 11, WIDTH), starts_to_mask(starts, 11)
    y, state = stack(x, is_first)
    y_steps, state_steps = run_steps(stack, x, is_first)
    torch.testing.assert_close(y, y_steps, atol=1e-4, rtol=1e-4)
    assert_same_state(state, state_steps)


@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("starts", STARTS)
def test_episodes_in_one_sequence_equal_the_episodes_run_apart(starts: tuple[int, ...], recurrent: bool) -> None:
    """The other row of the batch has no start, so a reset that leaks between rows fails too."""
    stack = make_stack()
    x = torch.randn(2, 11, WIDTH)
    is_first = torch.cat([starts_to_mask(starts, 11), torch.zeros(1, 11, dtype=torch.bool)])
    y, state = run_steps(stack, x, is_first) if recurrent else stack(x, is_first)
    for begin, end in zip((0, *starts), (*starts, 11), strict=True):
        if begin < end:
            alone, alone_state = stack(x[:1, begin:end])
            torch.testing.assert_close(y[:1, begin:end], alone, atol=1e-4, rtol=1e-4)
    for layer, alone_layer in zip(state, alone_state, strict=True):
        assert_same_state(tuple(v[:1] for v in layer), tuple(alone_layer))
    torch.testing.assert_close(y[1:], stack(x[1:])[0], atol=1e-4, rtol=1e-4)


def test_the_memory_matters_without_a_start() -> None:
    """The control to the tests of resets: with no start, what came before does change the outputs."""
    stack = make_stack()
    x = torch.randn(1, 11, WIDTH)
    y, _ = stack(x)
    late, _ = stack(x[:, 5:])
    assert (y[:, 5:] - late).abs().amax(-1).min() > 0.05


def test_no_gradient_crosses_an_episode_start() -> None:
    stack = make_stack()
    x = torch.randn(1, 11, WIDTH, requires_grad=True)
    y, _ = stack(x, starts_to_mask((6,), 11))
    (gradient,) = torch.autograd.grad((y[:, 6:] * torch.randn(5, WIDTH)).sum(), x)
    assert gradient[:, :6].abs().max() < 1e-5  # zero but for the rounding of sums that cancel
    assert gradient[:, 6:].abs().amax(-1).min() > 0.01


@pytest.mark.parametrize("starts", [(), (2,), (5,), (6,), (0, 4, 8), (3, 4)])
@pytest.mark.parametrize("cut", [1, 2, 4, 5, 10])
def test_a_carried_state_makes_the_cut_invisible(cut: int, starts: tuple[int, ...]) -> None:
    stack = make_stack()
    x, is_first = torch.randn(1, 11, WIDTH), starts_to_mask(starts, 11)
    whole, state = stack(x, is_first)
    left, middle = stack(x[:, :cut], is_first[:, :cut])
    right, right_state = stack(x[:, cut:], is_first[:, cut:], middle)
    torch.testing.assert_close(torch.cat([left, right], dim=1), whole, atol=1e-4, rtol=1e-4)
    assert_same_state(right_state, state)


@pytest.mark.parametrize("recurrent", [False, True], ids=["forward", "step"])
@pytest.mark.parametrize("cut", [1, 3, 4, 6])
def test_a_reset_right_at_the_cut_drops_the_carried_state(cut: int, recurrent: bool) -> None:
    stack = make_stack()
    x = torch.randn(1, 11, WIDTH)
    _, middle = stack(x[:, :cut])
    is_first = starts_to_mask((0,), 11 - cut)
    run = run_steps if recurrent else SequenceModel.__call__
    y, state = run(stack, x[:, cut:], is_first, middle)
    fresh, fresh_state = stack(x[:, cut:])
    torch.testing.assert_close(y, fresh, atol=1e-4, rtol=1e-4)
    assert_same_state(state, fresh_state)


def test_no_starts_equals_no_mask() -> None:
    mixer = make_mixer()
    x = torch.randn(2, 9, WIDTH)
    y, state = mixer(x)
    y_masked, state_masked = mixer(x, torch.zeros(2, 9, dtype=torch.bool))
    torch.testing.assert_close(y, y_masked, atol=1e-6, rtol=1e-6)
    assert_same_state(state, state_masked, 1e-6)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 11, 12, 64])
def test_the_chunk_size_changes_nothing(chunk_size: int) -> None:
    x, is_first = torch.randn(1, 11, WIDTH), starts_to_mask((3, 8), 11)
    y, state = make_mixer(2, CHUNK)(x, is_first)
    y_other, state_other = make_mixer(2, chunk_size)(x, is_first)
    torch.testing.assert_close(y, y_other, atol=1e-4, rtol=1e-4)
    assert_same_state(state, state_other)


@pytest.mark.parametrize("ngroups", [1, 2, 4])
@pytest.mark.parametrize("starts", [(), (0,), (3,), (5, 6, 8)])
def test_values_equal_the_definition(starts: tuple[int, ...], ngroups: int) -> None:
    mixer = make_mixer(ngroups).double()
    x, is_first = torch.randn(1, 10, WIDTH, dtype=torch.float64), starts_to_mask(starts, 10)
    expected = torch.from_numpy(definition(mixer, x[0].numpy(), is_first[0].tolist()))
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(mixer(x, is_first)[0][0], expected, atol=TOLERANCE, rtol=TOLERANCE)
    torch.testing.assert_close(run_steps(mixer, x, is_first)[0][0], expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("starts", "memory"), [((), [3.0, 2.5, 4.5, 3.125, 1.5625]), ((2,), [3.0, 2.5, 2.0, 2.5, 1.25])]
)
def test_hand_made_numbers(chunk_size: int, starts: tuple[int, ...], memory: list[float]) -> None:
    """The state halves at every token, takes the input in, and is read through `c`; d, gate and norm do their part."""
    # One head of two channels, the second of which stays 0; the convolution passes its input on.
    sizes = Sizes(heads=1, headdim=2, groups=1, state=1, chunk=chunk_size)
    u = torch.tensor([1.0, 1.0, 1.0, 2.0, 0.0])
    xbc = torch.stack([u, torch.zeros(5), torch.ones(5), torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0])], dim=1)
    gate = torch.full((5, 2), 1.0)
    projected = torch.cat([gate, inverse_silu(xbc), torch.full((5, 1), math.log(math.e - 1))], dim=1)[None]
    identity = torch.zeros(3, 4)
    identity[-1] = 1
    weights = Weights(
        identity, torch.zeros(4), torch.zeros(1), torch.tensor([-math.log(2)]), torch.ones(1), torch.ones(2)
    )
    state = torch.tensor([4.0, 0.0]).reshape(1, 1, 2, 1)
    segment = torch.cumsum(starts_to_mask(starts, 5), 1)
    y, final = mix(projected, weights, segment, torch.zeros(1, 2, 4), state, sizes)
    gated = (torch.tensor(memory) + u) * torch.sigmoid(torch.tensor(1.0))
    torch.testing.assert_close(y[0, :, 0], gated / torch.sqrt(gated.square() / 2 + 1e-5), atol=1e-5, rtol=1e-5)
    assert final[0, 0, 0, 0].item() == pytest.approx(memory[-1], rel=1e-5)


def inverse_silu(y: Tensor) -> Tensor:
    """The number whose SiLU is `y >= 0`, by bisection."""
    low, high = torch.zeros_like(y), y + 1
    for _ in range(60):
        middle = (low + high) / 2
        below = torch.nn.functional.silu(middle) < y
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return low


@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
@pytest.mark.parametrize("segment", [None, [[0, 0, 1, 1, 2], [1, 1, 1, 1, 1]]], ids=["one episode", "starts inside"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("chunk", [1, 2, 8])
def test_every_gradient_equals_finite_differences(
    chunk: int, groups: int, segment: list[list[int]] | None, carried: bool
) -> None:
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    sizes = Sizes(heads=2, headdim=3, groups=groups, state=2, chunk=chunk)
    weights = (draw(4, sizes.conv), draw(sizes.conv), draw(2), -draw(2).exp(), draw(2), draw(6))
    tensors = [draw(2, 5, sizes.inner + sizes.conv + 2), *weights]
    if carried:
        tensors += [draw(2, 3, sizes.conv), draw(2, 2, 3, 2)]
    episodes = None if segment is None else torch.tensor(segment)

    def run(projected: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        window, state = rest[6:] if carried else (None, None)
        return mix(projected, Weights(*rest[:6]), episodes, window, state, sizes)

    assert torch.autograd.gradcheck(run, tuple(t.requires_grad_() for t in tensors), fast_mode=True)


@pytest.mark.parametrize("part", [0, 1], ids=["output", "state"])
def test_gradients_of_one_result_alone(part: int) -> None:
    """A loss that uses only the outputs, or only the final state, which the backward pass treats apart."""
    mixer = make_mixer(2).double()
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64)

    def run(x: Tensor) -> Tensor:
        y, state = mixer(x)
        return y if part == 0 else state.ssm

    assert torch.autograd.gradcheck(run, (x.requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("ngroups", [1, 2])
@pytest.mark.parametrize("length", [1, 3, 4, 9, 11])
@pytest.mark.parametrize("starts", [None, (), (0, 4), (2, 5, 8)])
@pytest.mark.parametrize("carried", [False, True])
def test_the_form_for_a_compiler_has_the_same_values_and_gradients(
    ngroups: int, length: int, starts: tuple[int, ...] | None, carried: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer = make_mixer(ngroups).double()
    is_first = None
    if starts is not None:
        is_first = torch.cat([starts_to_mask(tuple(t for t in starts if t < length), length)] * 3)
        is_first[1] = False
    x = torch.randn(3, length, WIDTH, dtype=torch.float64, requires_grad=True)
    state = None
    if carried:
        state = type(mixer.initial_state(3))(
            *(torch.randn(t.shape, dtype=torch.float64, requires_grad=True) for t in mixer.initial_state(3))
        )

    def evaluate() -> list[Tensor]:
        y, after = mixer(x, is_first, state)
        loss = (y * torch.arange(y.numel()).view_as(y).sin()).sum() + after.ssm.square().sum() + after.conv.sum()
        wanted = [x, *mixer.parameters(), *(() if state is None else state)]
        return [y, *after, *torch.autograd.grad(loss, wanted, allow_unused=True)]

    expected = evaluate()
    monkeypatch.setattr("drama.models.sequence.mamba2.mix", ssd.mix_plainly)
    torch.testing.assert_close(evaluate(), expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_tiles_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last tile of a batch is smaller; rows keep apart."""
    mixer = make_mixer(2).double()
    x = torch.randn(5, 9, WIDTH, dtype=torch.float64)
    is_first = torch.zeros(5, 9, dtype=torch.bool)
    is_first[3, 4] = True

    def run() -> list[Tensor]:
        mixer.zero_grad()
        y, state = mixer(x, is_first)
        (y.square().sum() + state.ssm.square().sum()).backward()
        with torch.no_grad():
            _, after = mixer.step(x[:, 0], is_first[:, 4], state)
        gradients = [p.grad for p in mixer.parameters() if p.grad is not None]
        return [y, *state, *after, *gradients]

    whole = run()
    monkeypatch.setattr(ssd, "TILE", 2 * CHUNK)
    monkeypatch.setattr(ssd, "STATE_TILE", 2 * mixer.initial_state(1).ssm.numel())
    for left, right in zip(whole, run(), strict=True):
        torch.testing.assert_close(left, right, atol=TOLERANCE, rtol=TOLERANCE)


def test_bfloat16_autocast_stays_near_float32() -> None:
    mixer = make_mixer(2)
    x = torch.randn(2, 9, WIDTH)
    expected = mixer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y, state = mixer(x)
        y_steps, _ = run_steps(mixer, x, None)
    assert y.dtype == torch.bfloat16
    assert state.ssm.dtype == torch.float32
    for found in (y, y_steps):
        assert (found.float() - expected).abs().max() < 0.05 * expected.abs().max()
    y.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in mixer.parameters() if p.grad is not None)


def test_long_steps_give_finite_gradients() -> None:
    """Decays that underflow must not turn into infinities of the opposite sign inside a chunk."""
    mixer = make_mixer(chunk_size=16)
    with torch.no_grad():
        mixer.dt_bias.fill_(50.0)
        mixer.A_log.fill_(math.log(16))
    y, state = mixer(torch.randn(1, 16, WIDTH))
    (y.sum() + state.ssm.sum()).backward()
    for parameter in mixer.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()


def test_parameters_are_those_of_mamba_ssm() -> None:
    """Names and shapes of `mamba_ssm.Mamba2(512, d_state=16)`, so that weights load both ways."""
    shapes = {name: tuple(value.shape) for name, value in Mamba2(512).state_dict().items()}
    assert shapes == {
        "in_proj.weight": (2096, 512),
        "conv1d.weight": (1056, 1, 4),
        "conv1d.bias": (1056,),
        "dt_bias": (16,),
        "A_log": (16,),
        "D": (16,),
        "norm.weight": (1024,),
        "out_proj.weight": (512, 1024),
    }


def test_initial_step_sizes_and_rates_are_in_their_ranges() -> None:
    torch.manual_seed(0)
    mixer = Mamba2(512)
    step = torch.nn.functional.softplus(mixer.dt_bias)
    rate = mixer.A_log.exp()
    assert 0.00099 < step.min() < 0.01 < step.max() < 0.1001
    assert 1 <= rate.min() < 4 < 12 < rate.max() <= 16.001
    assert torch.equal(mixer.D, torch.ones(16))


def test_sizes_that_do_not_divide_are_named() -> None:
    with pytest.raises(ValueError, match=r"headdim: 5 does not divide .* = 12"):
        Mamba2(6, headdim=5)
    with pytest.raises(ValueError, match=r"ngroups: 3 does not divide the number of heads 4"):
        Mamba2(6, headdim=3, ngroups=3)


def test_build_follows_the_config() -> None:
    config = SequenceConfig(width=10, layers=3, state=7, expand=3, head_dim=5, groups=2, conv=3, chunk=9)
    stack = sequence.build(config)
    assert isinstance(stack, ResidualStack)
    assert len(stack.mixers) == 3
    for mixer in stack.mixers:
        assert isinstance(mixer, Mamba2)
        assert (mixer.d_inner, mixer.d_state, mixer.headdim, mixer.ngroups) == (30, 7, 5, 2)
        assert (mixer.d_conv, mixer.sizes.chunk) == (3, 9)


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"sequence\.backend: 'lstm' is unknown.*mamba2"):
        sequence.build(SequenceConfig(backend="lstm"))


def test_a_users_own_backend_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sequence, "_builders", dict(sequence._builders))

    class Sum(SequenceModel):
        def initial_state(self, batch: int) -> Tensor:
            return torch.zeros(batch, 1)

        def forward(
            self, x: Tensor, is_first: Tensor | None = None, state: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            del is_first, state
            y = x.cumsum(1)
            return y, y[:, -1]

        def step(self, x: Tensor, is_first: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
            del is_first
            return state + x, state + x

    @sequence.register("sum")
    def build_sum(config: SequenceConfig) -> SequenceModel:
        assert config.width == 17
        return Sum()

    model = sequence.build(SequenceConfig(backend="sum", width=17))
    assert isinstance(model, Sum)
    with pytest.raises(ValueError, match="'sum' is registered already"):
        sequence.register("sum")(build_sum)
