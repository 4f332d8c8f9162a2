"""Dynamic frequency-based sampling against its formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from drama.replay import DynamicFrequency, ReplayBuffer, Sampler

chisquare = pytest.importorskip("scipy.stats").chisquare

ENVS = 2
ROWS = 12
LENGTH = 3


def make(rows: int = ROWS, total: int = 0, seed: int = 0) -> ReplayBuffer:
    buffer = ReplayBuffer(ENVS * rows, {}, num_envs=ENVS, seed=seed)
    add(buffer, total or rows)
    return buffer


def add(buffer: ReplayBuffer, count: int) -> None:
    no = np.zeros((count, ENVS), bool)
    buffer.add_block(terminated=no, truncated=no)


def state(n: Any, b: Any, buffer: ReplayBuffer) -> dict[str, Any]:
    return {"n": n, "b": b, "seen": buffer.total, "num_envs": ENVS}


def starts(buffer: ReplayBuffer, length: int) -> npt.NDArray[np.int64]:
    oldest = max(0, buffer.total - buffer.rows_per_env)
    t = np.arange(oldest, buffer.total - length + 1) % buffer.rows_per_env
    return (np.arange(ENVS)[:, None] * buffer.rows_per_env + t).reshape(-1)


def formula(frequency: DynamicFrequency, role: str, n: Any, b: Any) -> npt.NDArray[np.float64]:
    n, m = n.astype(float), b * frequency.ratio
    imagination = n - frequency.alpha * m - frequency.beta * np.maximum(0, n - m)
    exponent = -n if role == "world_model" else imagination
    weights = np.exp((exponent - exponent.max()) / frequency.temperature)
    return np.asarray(weights / weights.sum())


def sampler(frequency: DynamicFrequency, role: str) -> Sampler:
    return frequency.world_model if role == "world_model" else frequency.imagination


@pytest.mark.parametrize("role", ["world_model", "imagination"])
@pytest.mark.parametrize("parameters", [{}, {"temperature": 3.0, "ratio": 0.5, "alpha": 0.7, "beta": 0.2}])
def test_draws_follow_the_formula(role: str, parameters: dict[str, float]) -> None:
    """200,000 batches of one. Counts and temperature are so large that a draw hardly changes the weights, and the
    counts are put back before it adds up."""
    scale = 100_000
    buffer = make(total=ROWS + 5)
    frequency = DynamicFrequency(**(parameters | {"temperature": parameters.get("temperature", 10.0) * scale}))
    random = np.random.default_rng(0)
    n = random.integers(0, 25 * scale, ENVS * ROWS).astype(np.uint32)
    b = (random.integers(0, 25 * scale, ENVS * ROWS) / frequency.ratio).astype(np.uint32)
    drawn, role_sampler = np.zeros(ENVS * ROWS), sampler(frequency, role)
    for step in range(200_000):
        if step % 500 == 0:
            frequency.load_state_dict(state(n, b, buffer))
        drawn[buffer.sample(1, LENGTH, role_sampler)["indices"][0] % (ENVS * ROWS)] += 1
    valid = starts(buffer, LENGTH)
    assert drawn.sum() == drawn[valid].sum()
    expected = formula(frequency, role, n[valid], b[valid])
    assert expected.max() > 2 * expected.min()
    assert chisquare(drawn[valid], expected * drawn.sum()).pvalue > 1e-3


def test_a_batch_is_drawn_one_by_one_without_replacement() -> None:
    """Ordered pairs: the second start has its share of what the first left."""
    buffer = make(rows=3)
    frequency = DynamicFrequency(temperature=2.0)
    n = np.array([0, 1, 2, 3, 4, 9], np.uint32)
    pairs = np.zeros((6, 6))
    for _ in range(20_000):
        frequency.load_state_dict(state(n, np.zeros_like(n), buffer))
        first, second = buffer.sample(2, 1, sampler=frequency.world_model)["indices"]
        pairs[first, second] += 1
    p = formula(frequency, "world_model", n, np.zeros(6))
    expected = p[:, None] * p[None] / (1 - p[:, None])
    different = ~np.eye(6, dtype=bool)
    assert pairs[~different].sum() == 0
    assert chisquare(pairs[different], expected[different] * pairs.sum()).pvalue > 1e-3


def test_use_over_time_evens_out() -> None:
    buffer = make(rows=500)
    frequency = DynamicFrequency(temperature=1.0)
    for _ in range(300):
        batch = buffer.sample(16, LENGTH, sampler=frequency.world_model)["indices"]
        assert len(set(batch)) == 16
    n, _ = frequency.counts(buffer)
    used = n[starts(buffer, LENGTH)]
    assert n.sum() == used.sum() == 300 * 16
    assert used.max() - used.min() < 10


def test_each_role_counts_its_own_starts_and_both_steer_imagination() -> None:
    buffer = make(rows=50)
    frequency = DynamicFrequency(temperature=0.01, ratio=1.0)
    trained = buffer.sample(8, LENGTH, sampler=frequency.world_model)["indices"]
    imagined = buffer.sample(30, LENGTH, sampler=frequency.imagination)["indices"]
    n, b = frequency.counts(buffer)
    np.testing.assert_array_equal(np.flatnonzero(n), np.sort(trained))
    np.testing.assert_array_equal(np.flatnonzero(b), np.sort(imagined))
    # Used by imagination but never by the world model: e^-100 times the weight of the rest.
    again = buffer.sample(30, LENGTH, sampler=frequency.imagination)["indices"]
    assert not set(again) & (set(imagined) - set(trained))


def test_counts_clear_where_slots_are_overwritten() -> None:
    buffer = make()
    frequency = DynamicFrequency()
    everything = np.full(ENVS * ROWS, 7, np.uint32)
    frequency.load_state_dict(state(everything, everything, buffer))
    add(buffer, 4)
    for counts in frequency.counts(buffer):
        assert (counts.reshape(ENVS, ROWS)[:, :4] == 0).all()
        assert (counts.reshape(ENVS, ROWS)[:, 4:] == 7).all()
    cold = DynamicFrequency(temperature=0.01)
    cold.load_state_dict(state(everything, everything, make()))
    fresh = buffer.sample(4, LENGTH, sampler=cold.world_model)["indices"]
    np.testing.assert_array_equal(np.sort(fresh % (ENVS * ROWS)), [0, 1, ROWS, ROWS + 1])
    add(buffer, 5 * ROWS)
    assert not any(counts.any() for counts in cold.counts(buffer))


@pytest.mark.parametrize("role", ["world_model", "imagination"])
def test_counts_of_a_million_neither_overflow_nor_underflow(role: str) -> None:
    buffer = make()
    frequency = DynamicFrequency(temperature=0.5)
    random = np.random.default_rng(1)
    big = random.permutation(ENVS * ROWS).astype(np.uint32) * 1000 + 980_000
    zero = np.zeros_like(big)
    n, b = (big, zero) if role == "world_model" else (zero, big * 64)
    frequency.load_state_dict(state(n, b, buffer))
    valid = starts(buffer, LENGTH)
    drawn = buffer.sample(len(valid), LENGTH, sampler=sampler(frequency, role))["indices"]
    # Weights are e^1000 apart at least, so the order is certain.
    np.testing.assert_array_equal(drawn, valid[np.argsort(big[valid])])


def test_lengths_may_change_from_batch_to_batch() -> None:
    buffer = make()
    frequency = DynamicFrequency()
    for length in (3, 9, 1, ROWS, 5, 1):
        add(buffer, 1)
        every = starts(buffer, length)
        drawn = buffer.sample(len(every), length, sampler=frequency.world_model)["indices"]
        np.testing.assert_array_equal(np.sort(drawn % (ENVS * ROWS)), np.sort(every))
        with pytest.raises(ValueError, match=f"asked for {len(every) + 1} .*, but only {len(every)} exist"):
            buffer.sample(len(every) + 1, length, sampler=frequency.world_model)


def test_state_comes_back_and_bad_state_is_refused() -> None:
    buffer = make()
    frequency = DynamicFrequency()
    assert frequency.state_dict()["n"].size == 0
    buffer.sample(5, LENGTH, sampler=frequency.world_model)
    saved = frequency.state_dict()
    other = DynamicFrequency()
    other.load_state_dict(saved)
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value, saved[name])
    with pytest.raises(KeyError, match="seen"):
        other.load_state_dict({"n": saved["n"], "b": saved["b"]})
    with pytest.raises(ValueError, match="n has 24 counts and b has 23"):
        other.load_state_dict(saved | {"b": saved["b"][1:]})
    with pytest.raises(ValueError, match="24 counts cannot be shared by 5 environments"):
        other.load_state_dict(saved | {"num_envs": 5})
    for number in (-1, 1 << 60):
        with pytest.raises(ValueError, match=f"num_envs: got {number}, expected one that 24 counts can be shared by"):
            other.load_state_dict(saved | {"num_envs": number, "seen": 3})
    with pytest.raises(ValueError, match="it is another buffer"):
        make(total=3).sample(1, 1, sampler=other.world_model)
    with pytest.raises(ValueError, match="belongs to a buffer of 2 environments and 24 slots"):
        make(rows=5).sample(1, 1, sampler=other.world_model)
    make().sample(1, 1, sampler=other.world_model)
    for used in (frequency, other):
        with pytest.raises(ValueError, match="was used with another buffer"):
            make().sample(1, 1, sampler=used.imagination)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 0.0}, "temperature must be finite and above 0, got 0"),
        ({"temperature": float("nan")}, "temperature must be finite and above 0, got NaN"),
        ({"ratio": -1.0}, "ratio must be from 0 to 1e6, got -1"),
        ({"alpha": float("inf")}, "alpha must be from 0 to 1e6, got inf"),
        ({"beta": -0.5}, "beta must be from 0 to 1e6, got -0.5"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DynamicFrequency(**parameters)
