"""Sequences that end with their episode, stacks and transitions, against a model that keeps every row in a list."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drama.replay import Batch, DynamicFrequency, MostRecent, Prioritized, ReplayBuffer, Sampler, Uniform
from drama.replay.samplers import NativeSampler

Row = dict[str, Any]
FIELDS = {"obs": ((2,), np.int64), "reward": ((), np.float32)}


class Model:
    """A buffer, and beside it every row ever added, by environment."""

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        seed: int = 0,
        compress: Collection[str] = (),
        storage: str | None = None,
    ) -> None:
        self.buffer = ReplayBuffer(capacity, FIELDS, num_envs, seed, storage, compress)
        self.rows: list[list[Row]] = [[] for _ in range(num_envs)]

    def add(self, envs: list[int], ends: list[str], together: bool = False) -> None:
        """Rows with the given ends: "", "terminated", "truncated", "final" (truncated with a final), "reset", "open"
        (going on, with a final until then)."""
        added = []
        for env, end in zip(envs, ends, strict=True):
            rows = self.rows[env]
            number = 1000 * env + len(rows)
            first = not rows or rows[-1]["terminated"] or rows[-1]["truncated"] or end == "reset"
            added.append(
                {
                    "obs": np.array([number, -number]),
                    "reward": np.float32(number % 7 - 2),
                    "terminated": end == "terminated",
                    "truncated": end in ("truncated", "final"),
                    "is_first": first,
                    "final": None,
                }
            )
            if not first:
                rows[-1]["final"] = None
            rows.append(added[-1])
        columns = {
            name: np.array([row[name] for row in added], dtype).reshape(-1, *shape)
            for name, (shape, dtype) in self.buffer.fields.items()
        }
        if "reset" not in ends:
            del columns["is_first"]
        self.buffer.add(**columns, envs=None if together else np.array(envs, np.int64))
        final = [env for env, end in zip(envs, ends, strict=True) if end in ("final", "open")]
        for env in final:
            self.rows[env][-1]["final"] = np.array([-5 - env, len(self.rows[env])])
        if final:
            obs = np.array([self.rows[env][-1]["final"] for env in final])
            self.buffer.set_final(envs=np.array(final), obs=obs)

    def oldest(self, env: int) -> int:
        return max(0, len(self.rows[env]) - self.buffer.rows_per_env)

    def slot(self, env: int, t: int) -> int:
        return env * self.buffer.rows_per_env + t % self.buffer.rows_per_env

    def index(self, env: int, t: int) -> int:
        """What a batch names the row by."""
        rows = self.buffer.rows_per_env
        return self.slot(env, t) + t // rows * rows * self.buffer.num_envs

    def stack(self, env: int, t: int, frames: int) -> list[Any] | None:
        """The last frames of the episode up to row `t`, or nothing where one is overwritten."""
        at = [t]
        while len(at) < frames:
            at.append(at[-1] if self.rows[env][at[-1]]["is_first"] else at[-1] - 1)
        return None if at[-1] < self.oldest(env) else [self.rows[env][i]["obs"] for i in reversed(at)]

    def episode(self, env: int, t: int, length: int) -> list[int]:
        rows = self.rows[env]
        used = [t]
        while len(used) < length and used[-1] + 1 < len(rows) and not rows[used[-1] + 1]["is_first"]:
            used.append(used[-1] + 1)
        return used

    def sequences(self, length: int, within: bool, frames: int) -> dict[int, Row]:
        """What each start should give, by index."""
        expected = {}
        for env, rows in enumerate(self.rows):
            for t in range(self.oldest(env), len(rows)):
                used = self.episode(env, t, length) if within else list(range(t, min(t + length, len(rows))))
                stacks = [self.stack(env, i, max(frames, 1)) for i in used]
                if (within or len(used) == length) and stacks[0] is not None:
                    padding = length - len(used)
                    entry: Row = {"mask": [True] * len(used) + [False] * padding}
                    for name in self.buffer.fields:
                        values = [rows[i][name] for i in used]
                        if name == "obs":
                            values = stacks if frames else [stack[-1] for stack in stacks if stack]
                        entry[name] = np.array(values + [np.zeros_like(values[0])] * padding)
                    expected[self.index(env, t)] = entry
        return expected

    def transitions(self, n_step: int, discount: float, frames: int) -> dict[int, Row]:
        expected = {}
        for env, rows in enumerate(self.rows):
            for t in range(self.oldest(env), len(rows)):
                used = self.episode(env, t, n_step)
                last = rows[used[-1]]
                following: Any = None
                before = self.stack(env, used[-1], max(frames, 1))
                if last["terminated"] or last["truncated"]:
                    if last["final"] is not None and before is not None:
                        following = [*before[1:], last["final"]]
                    elif last["terminated"]:
                        following = np.zeros((max(frames, 1), 2), np.int64)
                elif len(used) == n_step and used[-1] + 1 < len(rows) and not rows[used[-1] + 1]["is_first"]:
                    following = self.stack(env, used[-1] + 1, max(frames, 1))
                elif last["final"] is not None and before is not None:
                    following = [*before[1:], last["final"]]
                own = self.stack(env, t, max(frames, 1))
                if own is None or following is None:
                    continue
                expected[self.index(env, t)] = {
                    "obs": own if frames else own[-1],
                    "next_obs": following if frames else following[-1],
                    "reward": np.float32(sum(discount**k * float(rows[i]["reward"]) for k, i in enumerate(used))),
                    "discount": np.float32(0 if last["terminated"] else discount ** len(used)),
                    "steps": len(used),
                    "terminated": last["terminated"],
                    "truncated": last["truncated"],
                    "is_first": rows[t]["is_first"],
                }
        return expected


def check(draw: Any, expected: dict[int, Row], sampler: NativeSampler, distinct: bool) -> None:
    """Every start can be drawn, none besides, and each gives what it should."""
    if not expected:
        with pytest.raises(ValueError, match=r"asked for 1 .*exist"):
            draw(1, sampler)
        return
    size = len(expected) if distinct else 3
    batch: Batch = draw(size, sampler)
    if distinct:
        assert sorted(batch["indices"]) == sorted(expected)
        with pytest.raises(
            ValueError, match=f"asked for {size + 1} distinct .*(only {size} exist|and {size} of them have)"
        ):
            draw(size + 1, sampler)
    for at, index in enumerate(batch["indices"]):
        for name, value in expected[int(index)].items():
            np.testing.assert_allclose(batch[name][at], value, rtol=1e-5, err_msg=name)


ENDS = st.sampled_from(["", "", "", "", "terminated", "truncated", "final", "reset", "open"])


@settings(max_examples=60, deadline=None)
@given(data=st.data(), capacity=st.integers(1, 40), num_envs=st.integers(1, 4))
def test_all_shapes_of_draws_equal_the_model(data: st.DataObject, capacity: int, num_envs: int) -> None:
    kept: list[dict[str, Any]] = [{}, {"compress": ("obs",)}, {"compress": ("obs", "reward")}]
    if sys.platform != "win32":
        kept.append({"storage": gettempdir()})
    model = Model(capacity, num_envs, **data.draw(st.sampled_from(kept)))
    buffer, random = model.buffer, np.random.default_rng(data.draw(st.integers(0, 99)))
    prioritized, frequency = [Prioritized(replacement=False), Prioritized()], DynamicFrequency()
    distinct = [MostRecent(), Uniform(replacement=False), frequency.world_model, frequency.imagination]
    never: set[tuple[int, int]] = set()  # environment and number of the rows of priority 0
    uses = np.zeros((2, num_envs * buffer.rows_per_env), int)
    for _ in range(data.draw(st.integers(1, 5))):
        together = data.draw(st.booleans())
        for _ in range(data.draw(st.integers(1, 20))):
            every = list(range(num_envs))
            envs = every if together else data.draw(st.lists(st.sampled_from(every), unique=True))
            model.add(envs, [data.draw(ENDS) for _ in envs], together)
            uses[:, [model.slot(env, len(model.rows[env]) - 1) for env in envs]] = 0
        np.testing.assert_array_equal(buffer.totals, [len(rows) for rows in model.rows])
        assert len(buffer) == sum(min(len(rows), buffer.rows_per_env) for rows in model.rows)
        length = data.draw(st.integers(1, min(6, buffer.rows_per_env)))
        frames = data.draw(st.integers(0, min(4, buffer.rows_per_env)))
        stack = {"obs": frames} if frames else None
        within = data.draw(st.booleans())
        discount = data.draw(st.sampled_from([0.0, 0.5, 0.99, 1.0]))

        def sequences(size: int, sampler: Sampler) -> Batch:
            return buffer.sample(size, length, sampler=sampler, within_episode=within, stack=stack)  # noqa: B023

        def transitions(size: int, sampler: NativeSampler) -> Batch:
            return buffer.sample_transitions(size, length, discount, sampler, stack=stack)  # noqa: B023

        expected = model.sequences(length, within, frames)
        if not within:
            for row in expected.values():
                del row["mask"]
        for draw, rows in ((sequences, expected), (transitions, model.transitions(length, discount, frames))):
            for sampler in distinct:
                check(draw, rows, sampler, True)
            uses[:, [index % uses.shape[1] for index in rows]] += 1
            np.testing.assert_array_equal(frequency.counts(buffer), uses)
            check(draw, rows, Uniform(), False)
            without = {model.index(env, t) for env, t in never if t >= model.oldest(env)}
            wanted = {index: row for index, row in rows.items() if index not in without}
            for sampler, alone in zip(prioritized, (True, False), strict=True):
                check(draw, wanted, sampler, alone)
        held = [(env, t) for env in range(num_envs) for t in range(model.oldest(env), len(model.rows[env]))]
        priorities = random.choice([0.0, 0.5, 3.0], len(held), p=[0.3, 0.4, 0.3])
        never = {row for row, priority in zip(held, priorities, strict=True) if priority == 0}
        for sampler in prioritized:
            sampler.priorities(buffer)
            sampler.update_priorities(np.array([model.index(*row) for row in held], int), priorities)


@pytest.mark.parametrize("kind", ["uniform", "prioritized"])
@pytest.mark.parametrize(("truncated", "rows", "size"), [(0.1, 30, 200), (0.9, 30, 200), (0.98, 500, 4)])
def test_redrawn_starts_keep_their_distribution(kind: str, truncated: float, rows: int, size: int) -> None:
    """Also where so few rows are starts that they are listed."""
    chisquare = pytest.importorskip("scipy.stats").chisquare
    random = np.random.default_rng(0)
    model = Model(2 * rows, 2)
    for _ in range(rows + 10):
        ends = random.choice(["truncated", "final", ""], 2, p=[truncated, 0.5 * (1 - truncated), 0.5 * (1 - truncated)])
        model.add([0, 1], list(ends))
    valid = sorted(index % (2 * rows) for index in model.transitions(2, 0.9, 0))
    sampler: NativeSampler = Uniform()
    weights = np.ones(len(valid))
    if kind == "prioritized":
        sampler = prioritized = Prioritized(alpha=1.0)
        model.buffer.sample(1, 1, sampler=sampler)
        priorities = random.uniform(0.1, 2.0, 2 * rows)
        held = [(env, t) for env in (0, 1) for t in range(10, rows + 10)]
        prioritized.update_priorities(
            [model.index(*row) for row in held], priorities[[model.slot(*row) for row in held]]
        )
        weights = priorities[valid]
    drawn = [model.buffer.sample_transitions(size, 2, 0.9, sampler)["indices"] for _ in range(40_000 // size)]
    counts = np.bincount(np.concatenate(drawn) % (2 * rows), minlength=2 * rows)
    assert counts.sum() == counts[valid].sum()
    assert chisquare(counts[valid], weights / weights.sum() * counts.sum()).pvalue > 1e-3


def filled(seed: int = 0) -> Model:
    model, random = Model(40, 2, seed), np.random.default_rng(1)
    for _ in range(33):
        model.add([0, 1], list(random.choice(["", "", "", "terminated", "final", "truncated"], 2)))
    return model


def test_finals_are_saved_and_dropped_with_their_row(tmp_path: Path) -> None:
    model = filled()
    buffer = model.buffer
    buffer.save(tmp_path)
    (path,) = tmp_path.glob("chunk-*")
    buffer.save(tmp_path)
    assert list(tmp_path.glob("chunk-*")) == [path]
    loaded = ReplayBuffer.load(tmp_path)
    for _ in range(3):
        one, two = buffer.sample_transitions(50, 3), loaded.sample_transitions(50, 3)
        for name in one:
            np.testing.assert_array_equal(one[name], two[name])
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{path.name}: is corrupted"):
        ReplayBuffer.load(tmp_path)
    for _ in range(buffer.rows_per_env):
        model.add([0, 1], ["", ""])
    buffer.save(tmp_path)
    (path,) = tmp_path.glob("chunk-*")
    assert path.stat().st_size < len(sound)
    ReplayBuffer.load(tmp_path)


def test_a_final_of_an_open_episode_is_saved_and_dropped_where_it_goes_on(tmp_path: Path) -> None:
    """Also where a reset broke the episode off, which leaves it."""
    model = Model(20, 2)
    for ends in (["", ""], ["open", "open"], ["reset", ""], ["open", ""]):
        model.add([0, 1], ends)
    loaded = Model(20, 2)
    model.buffer.save(tmp_path)
    loaded.buffer, loaded.rows = ReplayBuffer.load(tmp_path), model.rows
    expected = loaded.transitions(2, 0.5, 0)
    assert sorted(expected) == [0, 1, 2, 3, 10, 11]
    check(lambda size, sampler: loaded.buffer.sample_transitions(size, 2, 0.5, sampler), expected, MostRecent(), True)
    loaded.add([0, 1], ["", ""])
    expected = loaded.transitions(2, 0.5, 0)
    assert sorted(expected) == [0, 1, 2, 10, 11, 12]
    check(lambda size, sampler: loaded.buffer.sample_transitions(size, 2, 0.5, sampler), expected, MostRecent(), True)


def test_environments_with_different_numbers_of_rows_are_saved(tmp_path: Path) -> None:
    model, random = Model(90, 3), np.random.default_rng(2)
    for _ in range(5):
        for env, rows in enumerate((0, 12, 3)):
            for _ in range(rows):
                model.add([env], [random.choice(["", "", "final"])])
        buffer = model.buffer
        buffer.save(tmp_path)
        loaded = ReplayBuffer.load(tmp_path)
        np.testing.assert_array_equal(loaded.totals, buffer.totals)
        assert len(loaded) == len(buffer)
        for sampler in (Uniform(), MostRecent()):
            first, second = (each.sample(6, 3, sampler, stack={"obs": 2}) for each in (buffer, loaded))
            for name in first:
                np.testing.assert_array_equal(first[name], second[name])


def test_outputs_are_used_again() -> None:
    model = filled()
    buffer = model.buffer
    batch = buffer.sample_transitions(6, 2, stack={"obs": 3})
    again = buffer.sample_transitions(6, 2, stack={"obs": 3}, out=batch)
    assert all(again[name] is batch[name] for name in batch if name not in ("indices", "weights"))
    batch = buffer.sample(6, 4, within_episode=True)
    assert buffer.sample(6, 4, within_episode=True, out=batch)["mask"] is batch["mask"]
    with pytest.raises(ValueError, match=r'field "mask": got shape \[5, 4\], expected \[6, 4\]'):
        buffer.sample(6, 4, within_episode=True, out={"mask": np.zeros((5, 4), bool)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": -2}, "batch_size must not be negative, got -2"),
        ({"n_step": 0}, r"n_step must be from 1 to 20 \(the rows kept per environment\), got 0"),
        ({"n_step": 21}, "n_step must be from 1 to 20 .*, got 21"),
        ({"n_step": -1}, "n_step must not be negative, got -1"),
        ({"discount": float("nan")}, "discount must be from 0 to 1, got NaN"),
        ({"discount": 1.5}, "discount must be from 0 to 1, got 1.5"),
        ({"stack": {"x": 2}}, 'stack: unknown field "x", expected obs, reward, terminated, truncated, is_first'),
        ({"stack": {"obs": 0}}, r'stack of field "obs" must be from 1 to 20 .*, got 0'),
        ({"stack": {"obs": 21}}, r'stack of field "obs" must be from 1 to 20 .*, got 21'),
        ({"stack": {"obs": -1}}, 'stack of field "obs" must not be negative, got -1'),
        ({"stack": {"reward": 2}}, "stack: rewards are summed up, not stacked"),
        ({"next_fields": ["frame"]}, 'next_fields: unknown field "frame", expected obs'),
        ({"next_fields": ["obs", "obs"]}, 'the batch would have two entries "next_obs"'),
        ({"out": {"steps": np.zeros(4, np.int32)}}, 'field "steps": got dtype int32, expected int64'),
        ({"n_step": 1.5}, "n_step must be an integer, got 1.5"),
        ({"discount": "x"}, "discount must be a number, got 'x'"),
        ({"next_fields": "obs"}, "next_fields: got 'obs', expected a sequence of names"),
        ({"sampler": Uniform}, r"sampler: got <class .*Uniform'>, expected Uniform\(\), "),
    ],
)
def test_bad_transitions_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        filled().buffer.sample_transitions(**{"batch_size": 4, **arguments})


def test_buffers_without_transitions_say_why() -> None:
    no = np.zeros(1, bool)
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, 'transitions need a field "reward"'),
        ({"reward": ((), np.float16)}, 'field "reward" has dtype float16'),
        ({"reward": ((), np.float32), "steps": ((), bool)}, 'the batch would have two entries "steps"'),
    ]
    for fields, message in cases:
        with pytest.raises(ValueError, match=message):
            ReplayBuffer(4, fields).sample_transitions(1, next_fields=())
    buffer = ReplayBuffer(4, {"reward": ((), np.float32)})
    with pytest.raises(ValueError, match=r"asked for 2 transitions of 1 steps, but none exist: .* holds 0 rows"):
        buffer.sample_transitions(2, next_fields=())
    buffer.add(reward=np.zeros(1, np.float32), terminated=no, truncated=no)
    with pytest.raises(ValueError, match=r"asked for 2 transitions of 1 steps, but none exist: .* holds 1 rows"):
        buffer.sample_transitions(2, next_fields=())

    class Own:
        def sample(self, buffer: ReplayBuffer, batch_size: int, length: int, out: Batch | None = None) -> Batch:
            return buffer.gather([0] * batch_size, length, out)

    with pytest.raises(TypeError, match=r"sampler: got .*Own object.*, expected Uniform"):
        buffer.sample_transitions(2, sampler=Own())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="within_episode"):
        buffer.sample(1, 1, sampler=Own(), within_episode=True)


REWARDS: dict[str, float] = {
    "int8": -100,
    "uint8": 200,
    "int16": -30_000,
    "uint16": 60_000,
    "int32": -(2**30),
    "uint32": 2**31,
}
REWARDS |= {"int64": -(2**40), "uint64": 2**63, "bool": 1, "float32": -0.5}


@pytest.mark.parametrize("dtype", REWARDS)
def test_rewards_of_every_type_are_summed(dtype: str) -> None:
    buffer = ReplayBuffer(8, {"reward": ((2,), dtype)})
    unit = REWARDS[dtype]
    values = np.array([[unit, 0], [unit, unit], [0, unit], [unit, unit]]).astype(dtype)
    ends = np.array([False, False, False, True])[:, None]
    buffer.add_block(reward=values[:, None], terminated=ends, truncated=np.zeros((4, 1), bool))
    batch = buffer.sample_transitions(4, 3, 0.5, MostRecent(), next_fields=())
    assert batch["reward"].dtype == np.float32
    expected = np.array([[1, 1], [0.5, 1.5], [1.25, 1.75], [1.5, 0.75]]) * float(unit)
    np.testing.assert_array_equal(batch["reward"], expected.astype(np.float32))
    np.testing.assert_array_equal(batch["discount"], [0, 0, 0, 0.125])
    np.testing.assert_array_equal(batch["steps"], [1, 2, 3, 3])


def test_every_field_wanted_of_what_follows_must_be_known() -> None:
    fields = {"obs": ((), np.int64), "more": ((), np.int64), "reward": ((), np.float32)}
    buffer, yes = ReplayBuffer(8, fields), np.ones(1, bool)
    row: dict[str, npt.NDArray[Any]] = {"obs": np.zeros(1, np.int64), "more": np.zeros(1, np.int64)}
    row["reward"] = np.zeros(1, np.float32)
    buffer.add(**row, terminated=~yes, truncated=yes)
    buffer.set_final(envs=np.array([0]), obs=np.full(1, 7))
    assert buffer.sample_transitions(3)["next_obs"].tolist() == [7, 7, 7]
    for names in (("more",), ("obs", "more"), ("more", "obs")):
        for sampler in (Uniform(), MostRecent(), Prioritized()):
            with pytest.raises(ValueError, match="transitions of 1 steps, but"):
                buffer.sample_transitions(1, sampler=sampler, next_fields=names)
    buffer.set_final(envs=np.array([0]), more=np.full(1, 8))
    batch = buffer.sample_transitions(1, next_fields=("obs", "more"))
    assert (batch["next_obs"][0], batch["next_more"][0]) == (7, 8)


def one(**change: Any) -> dict[str, npt.NDArray[Any]]:
    row = {"obs": np.zeros((1, 2), np.int64), "reward": np.zeros(1, np.float32)}
    return {**row, "terminated": np.zeros(1, bool), "truncated": np.zeros(1, bool), **change}


@pytest.mark.parametrize(
    ("envs", "message"),
    [
        (np.array([2]), "envs: got 2, expected indices from 0 to 1"),
        (np.array([-1]), "envs: got -1, expected indices from 0 to 1"),
        (np.array([[1]]), r"envs: got dtype int64 and shape \(1, 1\), expected integers \[K\]"),
        ([0.5], r"envs: got dtype float64 and shape \(1,\), expected integers \[K\]"),
        (np.array([False, True]), r"envs: got dtype bool and shape \(2,\), expected integers \[K\]"),  # a mask is none
        (np.array([0, 1]), r'field "obs": got shape \[1, 2\], expected \[2, 2\]'),
    ],
)
def test_bad_environments_are_refused(envs: Any, message: str) -> None:
    model = Model(8, 2)
    with pytest.raises(ValueError, match=message):
        model.buffer.add(**one(), envs=envs)
    with pytest.raises(ValueError, match=message):
        model.buffer.set_final(envs=envs, obs=np.zeros((1, 2), np.int64))
    assert len(model.buffer) == 0


def test_bad_finals_are_refused() -> None:
    buffer, obs = Model(8, 2).buffer, np.zeros((1, 2), np.int64)
    with pytest.raises(ValueError, match="envs: environment 1 has no row"):
        buffer.set_final(envs=np.array([1]), obs=obs)
    buffer.add(**one(truncated=np.ones(1, bool)), envs=np.array([1]))
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "no field was given"),
        ({"frame": obs}, 'unknown field "frame", expected obs'),
        ({"obs": obs + 0.5}, r'field "obs": got 0.5 \(dtype float64\), which int64 does not hold'),
        ({"obs": obs[0, 0]}, r'field "obs": got shape \[\], expected \[1, 2\]'),
        ({"truncated": np.ones(1, bool)}, 'field "truncated" has no value after the end of an episode'),
    ]
    for columns, message in cases:
        with pytest.raises(ValueError, match=message):
            buffer.set_final(envs=np.array([1]), **columns)
    with pytest.raises(ValueError, match="envs: environment 1 is given twice"):
        buffer.set_final(envs=np.array([1, 1]), obs=np.zeros((2, 2), np.int64))
    with pytest.raises(ValueError, match='field name "envs" is reserved'):
        ReplayBuffer(4, {"envs": ((), np.int64)})


def test_a_stack_that_is_gone_is_not_gathered() -> None:
    model = Model(4, 1)
    for _ in range(6):
        model.add([0], [""])
    assert model.buffer.gather([3], 3, stack={"obs": 2}, within_episode=True)["obs"][0, :, :, 0].tolist() == [
        [2, 3],
        [3, 4],
        [4, 5],
    ]
    with pytest.raises(IndexError, match="index 3: one of the 3 frames to stack is gone"):
        model.buffer.gather([3], 1, stack={"obs": 3})
