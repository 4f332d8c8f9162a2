"""Prioritized draws against their formula, and the newest starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from drama.replay import DynamicFrequency, MostRecent, Prioritized, ReplayBuffer, Uniform

chisquare = pytest.importorskip("scipy.stats").chisquare

ENVS = 2
ROWS = 12
LENGTH = 3


def make(rows: int = ROWS, total: int = ROWS, seed: int = 0) -> ReplayBuffer:
    buffer = ReplayBuffer(ENVS * rows, {}, num_envs=ENVS, seed=seed)
    add(buffer, total)
    return buffer


def add(buffer: ReplayBuffer, count: int) -> None:
    no = np.zeros((count, ENVS), bool)
    buffer.add_block(terminated=no, truncated=no)


def add_some(buffer: ReplayBuffer, *envs: int) -> None:
    no = np.zeros(len(envs), bool)
    buffer.add(terminated=no, truncated=no, envs=np.array(envs))


def starts(buffer: ReplayBuffer, length: int) -> npt.NDArray[np.int64]:
    size = buffer.rows_per_env
    slots = [
        env * size + t % size
        for env, total in enumerate(buffer.totals)
        for t in range(max(0, total - size), total - length + 1)
    ]
    return np.array(slots)


def named(buffer: ReplayBuffer, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """What batches name the rows that are in slots now."""
    env, place = np.divmod(slots, buffer.rows_per_env)
    turns = (buffer.totals[env] - 1 - place) // buffer.rows_per_env
    return slots + turns * ENVS * buffer.rows_per_env


def shares(priorities: Any, alpha: float) -> npt.NDArray[np.float64]:
    powers = np.asarray(priorities, float) ** alpha
    return np.asarray(powers / powers.sum())


def draw_many(buffer: ReplayBuffer, sampler: Prioritized, batches: int = 400) -> npt.NDArray[np.int64]:
    drawn = [buffer.sample(500, LENGTH, sampler=sampler)["indices"] for _ in range(batches)]
    slots = ENVS * buffer.rows_per_env
    return np.bincount(np.concatenate(drawn) % slots, minlength=slots)


def check_shares(buffer: ReplayBuffer, sampler: Prioritized, priorities: npt.NDArray[np.float64]) -> None:
    np.testing.assert_array_equal(sampler.priorities(buffer), priorities)
    valid = starts(buffer, LENGTH)
    expected = shares(priorities[valid], sampler.alpha)
    counts = draw_many(buffer, sampler)
    assert counts.sum() == counts[valid].sum()
    assert counts[valid][expected == 0].sum() == 0
    positive = expected > 0
    assert chisquare(counts[valid][positive], expected[positive] * counts.sum()).pvalue > 1e-3


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 3.0])
def test_draws_are_proportional_after_updates_and_overwriting(alpha: float) -> None:
    buffer, random = make(total=ROWS + 5), np.random.default_rng(0)
    sampler = Prioritized(alpha=alpha)
    buffer.sample(1, LENGTH, sampler=sampler)
    priorities = np.ones(ENVS * ROWS)
    check_shares(buffer, sampler, priorities)
    for _ in range(3):
        slots = random.choice(ENVS * ROWS, 9, replace=False)
        values = random.uniform(0.1, 3.0, 9)
        values[0] = 0.0 if alpha else 1.0
        sampler.update_priorities(named(buffer, slots), values)
        priorities[slots] = values
        # Rows of one environment only: its old rows give way to rows with the largest priority so far.
        for _ in range(3):
            add_some(buffer, 1)
            priorities[ROWS + (buffer.totals[1] - 1) % ROWS] = sampler.state_dict()["largest"]
        check_shares(buffer, sampler, priorities)
    assert sampler.state_dict()["largest"] > 2


def test_a_batch_without_replacement_is_drawn_one_by_one() -> None:
    buffer = make(rows=3, total=3)
    sampler = Prioritized(alpha=0.5, replacement=False)
    buffer.sample(1, 1, sampler=sampler)
    priorities = np.array([1.0, 2, 3, 4, 5, 9])
    sampler.update_priorities(np.arange(6), priorities)
    pairs = np.zeros((6, 6))
    for _ in range(20_000):
        first, second = buffer.sample(2, 1, sampler=sampler)["indices"]
        pairs[first, second] += 1
    p = shares(priorities, 0.5)
    expected = p[:, None] * p[None] / (1 - p[:, None])
    different = ~np.eye(6, dtype=bool)
    assert pairs[~different].sum() == 0
    assert chisquare(pairs[different], expected[different] * pairs.sum()).pvalue > 1e-3
    everything = buffer.sample(6, 1, sampler=sampler)["indices"]
    np.testing.assert_array_equal(np.sort(everything), np.arange(6))
    with pytest.raises(ValueError, match="asked for 7 distinct starts of length 1, but only 6 exist"):
        buffer.sample(7, 1, sampler=sampler)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_follow_the_formula(beta: float) -> None:
    buffer = make()
    sampler = Prioritized(alpha=0.7)
    buffer.sample(1, LENGTH, sampler=sampler)
    priorities = np.random.default_rng(0).uniform(0.1, 5.0, ENVS * ROWS)
    sampler.update_priorities(np.arange(ENVS * ROWS), priorities)
    sampler.beta = beta
    batch = buffer.sample(16, LENGTH, sampler=sampler)
    valid = starts(buffer, LENGTH)
    p = np.zeros(ENVS * ROWS)
    p[valid] = shares(priorities[valid], 0.7)
    expected = (len(valid) * p[batch["indices"]]) ** -beta
    assert batch["weights"].dtype == np.float32
    np.testing.assert_allclose(batch["weights"], expected / expected.max(), rtol=1e-5)


def test_extreme_priorities_are_drawn_in_their_order() -> None:
    buffer = make()
    sampler = Prioritized(alpha=1.0, beta=1.0, replacement=False)
    buffer.sample(1, 1, sampler=sampler)
    order = np.random.default_rng(0).permutation(ENVS * ROWS)
    sampler.update_priorities(order, 10.0 ** np.linspace(300, -300, ENVS * ROWS))
    batch = buffer.sample(ENVS * ROWS, 1, sampler=sampler)
    np.testing.assert_array_equal(batch["indices"], order)
    assert np.isfinite(batch["weights"]).all()


def test_the_last_of_two_priorities_counts() -> None:
    buffer, sampler = make(), Prioritized()
    buffer.sample(1, 1, sampler=sampler)
    sampler.update_priorities([3, 4, 3], [5.0, 6.0, 0.5])
    assert sampler.priorities(buffer)[[3, 4]].tolist() == [0.5, 6.0]
    assert sampler.state_dict()["largest"] == 6.0


def test_late_priorities_pass_over_rows_that_were_overwritten() -> None:
    buffer, sampler = make(rows=4, total=4), Prioritized()
    indices = buffer.sample(8, 1, sampler=Uniform(replacement=False))["indices"]
    buffer.sample(1, 1, sampler=sampler)
    add_some(buffer, 0)
    # Whether the sampler has seen the new row or not.
    for _ in range(2):
        sampler.update_priorities(indices, np.full(8, 0.25))
        expected = np.full(8, 0.25)
        expected[0] = 1.0
        np.testing.assert_array_equal(sampler.priorities(buffer), expected)
    new = buffer.sample(1, 1, sampler=MostRecent())["indices"]
    assert new % 8 == 0
    assert new > indices.max()
    sampler.update_priorities(new, [9.0])
    assert sampler.priorities(buffer)[0] == 9.0
    with pytest.raises(IndexError, match="index 0: its row was overwritten"):
        buffer.gather([0], 1)
    assert buffer.gather(new, 1)["is_first"].shape == (1, 1)


def test_what_a_sampler_was_made_with_stays() -> None:
    sampler, frequency = Prioritized(alpha=0.5), DynamicFrequency()
    for thing, name in ((sampler, "alpha"), *((frequency, name) for name in ("temperature", "ratio", "alpha", "beta"))):
        with pytest.raises(AttributeError):
            setattr(thing, name, 0.1)
    assert repr(sampler) == "Prioritized(alpha=0.5, beta=0.4, replacement=True)"
    assert repr(frequency) == "DynamicFrequency(temperature=10.0, ratio=0.015625, alpha=1.0, beta=1.0)"


@pytest.mark.parametrize(
    ("indices", "priorities", "message"),
    [
        ([0, 1], ["x", "y"], r"priorities: got dtype <U1 and shape \(2,\), expected numbers \[B\]"),
        ([0, 1, 2], [1.0, np.nan, -1.0], r"priorities\[1\] is NaN, expected a finite one of at least 0"),
        ([0, 1], [1.0, -0.5], r"priorities\[1\] is -0.5, expected"),
        ([0, 1], [np.inf, 1.0], r"priorities\[0\] is inf, expected"),
        ([0, 24], [1.0, 1.0], r"indices\[1\] is 24, a row that the sampler does not know"),
        ([-1, 0], [1.0, 1.0], r"indices\[0\] is -1, a row"),
        ([0, 5], [1.0, 1.0], r"indices\[1\] is 5, a row"),
        ([0, 1], [1.0], "got 1 priorities for 2 indices, expected as many"),
        ([0.0, 1.0], [1.0, 1.0], "indices: got dtype float64"),
        ([[0, 1]], [1.0, 1.0], r"indices: got dtype int64 and shape \(1, 2\), expected integers \[B\]"),
        ([0, 1], [[1.0, 1.0]], r"priorities: got dtype float64 and shape \(1, 2\), expected numbers \[B\]"),
    ],
)
def test_bad_updates_change_nothing(indices: Any, priorities: Any, message: str) -> None:
    buffer, sampler = make(total=5), Prioritized()
    buffer.sample(1, 1, sampler=sampler)
    with pytest.raises(ValueError, match=message):
        sampler.update_priorities(indices, priorities)
    np.testing.assert_array_equal(sampler.priorities(buffer), np.ones(ENVS * ROWS))
    sampler.update_priorities([], [])


def test_misuse_is_refused() -> None:
    for alpha in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="alpha must be from 0 to 1e3, got"):
            Prioritized(alpha=alpha)
    buffer = make()
    for beta in (-1.0, float("nan"), 1001):
        with pytest.raises(ValueError, match=f"beta: {beta} is not from 0 to 1000"):
            Prioritized(beta=beta)
    sampler = Prioritized()
    with pytest.raises(ValueError, match=r"indices\[0\] is 0, a row that the sampler does not know"):
        sampler.update_priorities([0], [1.0])
    buffer.sample(1, 1, sampler=sampler)
    with pytest.raises(ValueError, match="was used with another buffer"):
        make().sample(1, 1, sampler=sampler)
    unbound = Prioritized()
    unbound.load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="belongs to a buffer of 2 environments and 24 slots"):
        make(rows=5).sample(1, 1, sampler=unbound)
    with pytest.raises(ValueError, match="it is another buffer"):
        make(total=3).sample(1, 1, sampler=unbound)
    sampler.update_priorities(np.arange(24), np.zeros(24))
    with pytest.raises(ValueError, match="length 1: 24 exist, and 0 of them have a priority above 0"):
        buffer.sample(1, 1, sampler=sampler)


def test_state_comes_back_and_bad_state_is_refused() -> None:
    buffer, sampler = make(), Prioritized(beta=0.5)
    sampler.load_state_dict(Prioritized().state_dict())
    buffer.sample(5, LENGTH, sampler=sampler)
    sampler.update_priorities([1, 2], [7.0, 0.1])
    saved = sampler.state_dict()
    other = Prioritized()
    other.load_state_dict(saved)
    assert other.beta == sampler.beta
    same = make()
    same.sample(5, LENGTH, sampler=Prioritized())
    for _ in range(3):
        for each in (buffer, same):
            add_some(each, 0)
        one, two = (b.sample(40, LENGTH, sampler=s) for b, s in ((buffer, sampler), (same, other)))
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    with pytest.raises(KeyError, match="largest"):
        other.load_state_dict({name: value for name, value in saved.items() if name != "largest"})
    cases: list[tuple[dict[str, Any], str]] = [
        ({"seen": np.zeros(5)}, "24 priorities cannot be shared by 5 environments"),
        ({"largest": np.nan}, "largest must be finite and not negative, got NaN"),
        ({"priorities": np.full(24, -1.0)}, r"priorities\[0\] is -1"),
        ({"priorities": np.full(24, 3.0), "beta": -1.0}, "beta: -1.0 is not from 0 to 1000"),
    ]
    for change, message in cases:
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(saved | change)
    np.testing.assert_array_equal(other.priorities(same), sampler.priorities(buffer))


def test_the_newest_starts_come_in_order() -> None:
    buffer = make(total=15)
    add_some(buffer, 1)
    newest = [(15 - LENGTH) % ROWS, ROWS + (16 - LENGTH) % ROWS, (14 - LENGTH) % ROWS, ROWS + (15 - LENGTH) % ROWS]
    batch = buffer.sample(4, LENGTH, sampler=MostRecent())
    assert batch["indices"].tolist() == named(buffer, np.array(newest)).tolist()
    everything = buffer.sample(20, LENGTH, sampler=MostRecent())["indices"] % (ENVS * ROWS)
    np.testing.assert_array_equal(np.sort(everything), np.sort(starts(buffer, LENGTH)))
    with pytest.raises(ValueError, match="asked for 21 distinct starts of length 3, but only 20 exist"):
        buffer.sample(21, LENGTH, sampler=MostRecent())
    few = make(total=0)
    add_some(few, 1)
    add_some(few, 1)
    assert few.sample(2, 1, sampler=MostRecent())["indices"].tolist() == [13, 12]
