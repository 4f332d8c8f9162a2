"""The buffer as an ordinary Python object: what it takes, its rows in order, copies of it and of what belongs to it."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drama.replay import Batch, DynamicFrequency, MostRecent, Prefetcher, Prioritized, ReplayBuffer, Sampler, Uniform

COPIES: dict[str, Callable[[Any], Any]] = {
    "pickle": lambda each: pickle.loads(pickle.dumps(each)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


def make(rows: int = 33, compress: tuple[str, ...] = (), **options: Any) -> ReplayBuffer:
    fields = {"obs": ((3,), np.uint8), "reward": ((), np.float32)}
    buffer = ReplayBuffer(40, fields, num_envs=2, seed=7, compress=compress, **options)
    add(buffer, rows)
    return buffer


def add(buffer: ReplayBuffer, rows: int) -> None:
    for t in range(buffer.total, buffer.total + rows):
        ends = np.array([t % 5 == 4, t % 7 == 6])
        obs = np.array([[t] * 3, [t + 100] * 3])
        buffer.add(obs=obs, reward=[t, -t], terminated=ends & [True, False], truncated=ends & [False, True])
        if ends[1]:
            buffer.set_final(envs=[1], obs=[[t, 0, 0]])


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_rows_come_in_order() -> None:
    buffer = make()
    for env in range(2):
        rows = buffer.rows(env)
        t = np.arange(13, 33)
        np.testing.assert_array_equal(rows["obs"][:, 0], t + 100 * env)
        np.testing.assert_array_equal(rows["reward"], t if env == 0 else -t)
        np.testing.assert_array_equal(rows["is_first"], t % 7 == 0 if env else t % 5 == 0)
    rows["obs"][:] = 0
    assert buffer.rows(1)["obs"].any()
    empty = make(0).rows()
    assert {name: column.shape for name, column in empty.items()}["obs"] == (0, 3)
    for env in (2, -1):
        with pytest.raises((IndexError, ValueError), match="env"):
            buffer.rows(env)


def test_rows_are_whole_while_others_are_added() -> None:
    buffer, stop = make(), threading.Event()

    def adding() -> None:
        while not stop.is_set() and buffer.total < 100_000:
            obs = np.full((2, 3), buffer.total % 256, np.uint8)
            buffer.add(obs=obs, reward=np.full(2, buffer.total, np.float32), terminated=[0, 0], truncated=[0, 0])

    thread = threading.Thread(target=adding)
    add(buffer, 0)
    thread.start()
    for _ in range(200):
        reward = np.abs(buffer.rows(1)["reward"])
        np.testing.assert_array_equal(np.diff(reward), 1)
        assert len(reward) == 20
    stop.set()
    thread.join()


@pytest.mark.parametrize("compress", [(), ("obs",)])
def test_a_cleared_buffer_is_as_a_new_one(compress: tuple[str, ...], tmp_path: Path) -> None:
    buffer, new = make(compress=compress), make(0, compress=compress)
    buffer.save(tmp_path)
    buffer.clear()
    assert (len(buffer), buffer.total, buffer.stored_nbytes) == (0, 0, 0)
    with pytest.raises(ValueError, match="none exist"):
        buffer.sample(1, 1)
    for one in (buffer, new):
        add(one, 8)
    for env in range(2):
        assert_equal(buffer.rows(env), new.rows(env))
    assert_equal(buffer.sample(16, 3), new.sample(16, 3))
    assert_equal(buffer.sample_transitions(16, 2), new.sample_transitions(16, 2))
    prioritized = Prioritized()
    prioritized.update_priorities(buffer.sample(4, 1, prioritized)["indices"], np.ones(4))
    buffer.save(tmp_path)
    assert_equal(ReplayBuffer.load(tmp_path).rows(1), new.rows(1))


def test_samplers_of_a_cleared_buffer_are_made_anew() -> None:
    for sampler in (Prioritized(), DynamicFrequency().world_model):
        buffer = make()
        buffer.sample(3, 2, sampler)
        buffer.clear()
        add(buffer, 40)
        with pytest.raises(ValueError, match="the sampler was used with another buffer, or with this one before"):
            buffer.sample(3, 2, sampler)


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("rows", [0, 7, 33])
@pytest.mark.parametrize("compress", [(), ("obs",)])
def test_a_copy_goes_on_by_itself(how: str, rows: int, compress: tuple[str, ...], tmp_path: Path) -> None:
    buffer = make(rows, compress)
    if rows:
        buffer.sample(5, 2)
    buffer.save(tmp_path)
    chunks = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.suffix == ".bin"}
    other = COPIES[how](buffer)
    buffer.save(tmp_path)  # is as incremental as it was
    assert chunks == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir() if path.suffix == ".bin"}
    assert repr(other) == repr(buffer)
    assert (other.fields, other.compress, other.rows_per_env) == (buffer.fields, buffer.compress, 20)
    add(other, 3)
    assert other.total == buffer.total + 3
    add(buffer, 3)
    for env in range(2):
        assert_equal(other.rows(env), buffer.rows(env))
    assert_equal(other.sample(16, 3), buffer.sample(16, 3))
    assert_equal(other.sample_transitions(16, 2), buffer.sample_transitions(16, 2))


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_subclasses_keep_what_they_have(how: str) -> None:
    buffer = Named(40, {"reward": ((), np.float32)})
    buffer.name = "mine"
    other = COPIES[how](buffer)
    assert (type(other), other.name) == (Named, "mine")


class Named(ReplayBuffer):
    name = ""


@pytest.mark.parametrize("how", COPIES)
def test_copies_of_samplers_have_their_memory(how: str) -> None:
    buffer = make()
    prioritized, frequency = Prioritized(0.7, 0.5), DynamicFrequency(3.0, 0.5)
    batch = buffer.sample(10, 2, prioritized)
    prioritized.update_priorities(batch["indices"], np.arange(10) + 0.5)
    buffer.sample(10, 2, frequency.world_model)
    # A role is a part of its DynamicFrequency, which a shallow copy shares.
    roles = [frequency.world_model] if how != "copy" else []
    for sampler in (prioritized, *roles, Uniform(False), MostRecent()):
        other = copy.deepcopy(buffer)
        again: Sampler = COPIES[how](sampler)
        assert repr(again) == repr(sampler)
        assert_equal(other.sample(10, 2, again), copy.deepcopy(buffer).sample(10, 2, COPIES[how](sampler)))
    twin, other = COPIES[how](prioritized), copy.deepcopy(buffer)
    np.testing.assert_array_equal(twin.priorities(other), prioritized.priorities(buffer))
    np.testing.assert_array_equal(COPIES[how](frequency).counts(other), frequency.counts(buffer))
    assert repr(COPIES[how](Prioritized())) == repr(Prioritized())  # one that was not used


@pytest.mark.parametrize("how", COPIES)
def test_what_cannot_be_copied_names_what_can(how: str, tmp_path: Path) -> None:
    with (
        Prefetcher(make(), {"batch_size": 2, "length": 2}) as prefetcher,
        pytest.raises(TypeError, match="make another"),
    ):
        COPIES[how](prefetcher)
    with pytest.raises(TypeError, match="save it, and load it with another storage="):
        COPIES[how](make(storage=tmp_path))


def test_load_of_an_instance_is_refused(tmp_path: Path) -> None:
    buffer = make()
    buffer.save(tmp_path)
    with pytest.raises(TypeError, match=r"load makes a new buffer: call ReplayBuffer.load\(...\) and keep"):
        buffer.load(tmp_path)
    assert type(Named.load(tmp_path)) is Named


def test_a_buffer_shows_its_fields() -> None:
    fields = "{obs: uint8[3], reward: float32, terminated: bool, truncated: bool, is_first: bool}"
    assert repr(make()) == f"ReplayBuffer(capacity=40, num_envs=2, rows_per_env=20, rows=40, fields={fields})"


class Oldest:
    """A sampler of one's own, of sequences and of transitions."""

    def sample(self, buffer: ReplayBuffer, batch_size: int, length: int, out: Batch | None = None) -> Batch:
        return buffer.gather(np.arange(batch_size), length, out)

    def sample_transitions(
        self, buffer: ReplayBuffer, batch_size: int, n_step: int, discount: float, out: Batch | None = None, **more: Any
    ) -> Batch:
        return buffer.gather_transitions(np.arange(batch_size), n_step, discount, out, **more)


def test_a_sampler_of_ones_own_draws_transitions() -> None:
    buffer = make(8)
    batch = buffer.sample_transitions(4, 2, 0.5, Oldest())
    np.testing.assert_array_equal(batch["obs"][:, 0], [0, 1, 2, 3])
    np.testing.assert_array_equal(batch["next_obs"][:, 0], [2, 3, 4, 0])
    np.testing.assert_array_equal(batch["reward"], [0.5, 2, 3.5, 5])
    out = {"obs": np.zeros((4, 3), np.uint8)}
    assert buffer.sample_transitions(4, sampler=Oldest(), out=out)["obs"] is out["obs"]
    stacked = buffer.sample_transitions(4, sampler=Oldest(), stack={"obs": 2}, next_fields=("obs", "reward"))
    assert stacked["next_obs"].shape == (4, 2, 3)
    np.testing.assert_array_equal(stacked["next_reward"], [1, 2, 3, 4])
    known = {tuple(one): each for one, each in zip(batch["obs"].tolist(), batch["reward"].tolist(), strict=True)}
    drawn = buffer.sample_transitions(64, 2, 0.5)
    for one, reward in zip(drawn["obs"].tolist(), drawn["reward"].tolist(), strict=True):
        assert known.get(tuple(one), reward) == reward
    for wrong in (Oldest, object(), DynamicFrequency()):
        with pytest.raises(TypeError, match=r"expected Uniform.* or an object with a method `sample_transitions`"):
            buffer.sample_transitions(4, sampler=wrong)  # type: ignore[arg-type]


def test_transitions_that_are_none_are_not_gathered() -> None:
    buffer = make(8)
    with pytest.raises(IndexError, match="index 7: no transitions of 1 steps start there"):
        buffer.gather_transitions([0, 7])
    for index in (8, 40, 2**62):
        with pytest.raises(IndexError, match=f"index {index} holds no row"):
            buffer.gather_transitions([0, index])
    with pytest.raises(IndexError, match="index -1 is negative"):
        buffer.gather_transitions([-1])
    with pytest.raises(ValueError, match=r"n_step must be from 1 to 20 .*, got 0"):
        buffer.gather_transitions([0], 0)
    for indices in ([0.5], [[0]]):
        with pytest.raises(ValueError, match=r"indices: got dtype .*, expected integers \[B\]"):
            buffer.gather_transitions(indices)
    full = make()
    with pytest.raises(IndexError, match="index 13: no transitions"):  # the oldest row, whose frame before is gone
        full.gather_transitions([13], stack={"obs": 3})
    full.gather_transitions([15], stack={"obs": 1})


def test_rows_are_named_by_where_they_lie() -> None:
    buffer = make()
    batch = buffer.sample(50, 1)
    np.testing.assert_array_equal(buffer.indices_at(batch["indices"] % 40), batch["indices"])
    for slot in (-1, 40, 2**62):
        with pytest.raises(IndexError, match=f"slot {slot} holds no row"):
            buffer.indices_at([slot])
    with pytest.raises(ValueError, match=r"slots: got dtype float64 .*, expected integers \[B\]"):
        buffer.indices_at([0.5])


def test_a_prefetcher_says_what_its_function_is_called_with() -> None:
    buffer = make()
    with Prefetcher(buffer, partial(buffer.sample_transitions, 4)) as prefetcher:
        assert next(prefetcher)["next_obs"].shape == (4, 3)
    for wrong in (buffer.sample, lambda size: buffer.sample(size, 1)):
        with pytest.raises(TypeError, match=r"sample: \S+(sample|<lambda>) is called without arguments: missing"):
            Prefetcher(buffer, wrong)  # type: ignore[arg-type]
    with Prefetcher(buffer, list) as prefetcher, pytest.raises(TypeError, match="returned list, expected"):  # type: ignore[arg-type]
        next(prefetcher)


@pytest.mark.parametrize("given", ["list", "float64", "int", "strided", "torch"])
def test_what_environments_give_is_taken(given: str) -> None:
    fields = {"obs": ((2,), np.float32), "reward": ((), np.float32), "kind": ((), np.int16)}
    values: dict[str, Any] = {
        "obs": np.array([[1.5, 2], [3, -4]]),
        "reward": np.array([0.1, 2.0]),
        "kind": np.array([3, -7]),
        "terminated": np.array([0, 1], np.uint8),
        "truncated": np.array([0.0, 0.0]),
    }
    if given == "list":
        values = {name: value.tolist() for name, value in values.items()}
    elif given == "int":
        values = {name: value.astype(np.int64) for name, value in values.items()}
    elif given == "strided":
        values = {name: np.repeat(value, 2, axis=0)[::2] for name, value in values.items()}
        values["obs"] = np.asfortranarray(values["obs"]).astype(np.float32, order="K")
    elif given == "torch":
        torch = pytest.importorskip("torch")
        values = {name: torch.from_numpy(value) for name, value in values.items()}
    buffer = ReplayBuffer(8, fields, num_envs=2)
    buffer.add(**values)
    buffer.add_block(**{name: np.asarray(value)[None] for name, value in values.items()})
    buffer.add(**{name: np.asarray(value)[1:] for name, value in values.items()}, envs=[1])
    buffer.set_final(envs=[1], obs=[[1, 2]])
    for env in range(2):
        rows = buffer.rows(env)
        for name, value in values.items():
            expected = np.asarray(value).astype(buffer.fields[name][1])[env]
            np.testing.assert_array_equal(rows[name], np.stack([expected] * (2 + env)))


def test_one_environment_needs_no_axis() -> None:
    buffer = ReplayBuffer(8, {"obs": ((2,), np.float32), "action": ((), np.int64), "reward": ((), np.float32)})
    buffer.add(obs=[1.0, 2.0], action=np.int32(3), reward=1, terminated=False, truncated=True)
    buffer.set_final(envs=[0], obs=[3, 4])
    block: dict[str, Any] = {"obs": [[5, 6], [7, 8]], "action": [4, 5], "reward": [0.5, 1.5]}
    buffer.add_block(**block, terminated=[False, True], truncated=[False, False])
    rows = buffer.rows()
    np.testing.assert_array_equal(rows["obs"], [[1, 2], [5, 6], [7, 8]])
    np.testing.assert_array_equal(rows["action"], [3, 4, 5])
    np.testing.assert_array_equal(rows["is_first"], [True, True, False])
    several = ReplayBuffer(8, {"reward": ((), np.float32)}, num_envs=3)
    with pytest.raises(ValueError, match=r'field "reward": got shape \[\], expected \[3\]'):
        several.add(reward=1.0, terminated=False, truncated=False)
    several.add(reward=1.0, terminated=False, truncated=False, envs=[2])
    assert several.totals.tolist() == [0, 0, 1]


@pytest.mark.parametrize("wanted", ["bool", "int8", "uint8", "int64", "uint64", "float16", "float32", "float64"])
@pytest.mark.parametrize("given", ["bool", "int8", "uint8", "int32", "uint64", "float16", "float32", "float64"])
def test_a_cast_keeps_the_number_or_is_refused(given: str, wanted: str) -> None:
    """Of floating-point numbers, as near as the dtype has them."""
    numbers = [0, 1, -1, 2, 127, 128, 255, 256, 0.5, 2**24 + 1, 2**53 + 1, 2**63, 2.0**64 - 2**11, 1e30, 1e300, np.inf]
    with np.errstate(all="ignore"):
        values = [np.asarray(number).astype(given) for number in numbers]
    buffer = ReplayBuffer(4, {"x": ((), wanted)})
    taken = 0
    for value in values:
        exact: Any = value.item()
        with np.errstate(all="ignore"):
            there = value.astype(wanted)
        rounds = np.dtype(given).kind == np.dtype(wanted).kind == "f"
        fits = bool(np.isfinite(there) or np.isinf(value)) if rounds else np.isfinite(value) and there.item() == exact
        if np.dtype(wanted).kind == "f" and np.isinf(value):
            fits = np.isinf(there)
        if fits:
            buffer.add(x=value, terminated=False, truncated=False)
            assert buffer.rows()["x"][-1] == there
            taken += 1
        else:
            with pytest.raises(ValueError, match=rf'field "x": got .* \(dtype {given}\), which {wanted} does not hold'):
                buffer.add(x=value, terminated=False, truncated=False)
    assert taken > 1


@pytest.mark.parametrize("how", ["pickle", "deepcopy"])
def test_a_copy_does_not_save_over_what_the_buffer_saved(tmp_path: Path, how: str) -> None:
    """Two that go on apart would write over each other."""
    buffer = make()
    buffer.save(tmp_path / "one")
    other = COPIES[how](buffer)
    add(other, 1)
    with pytest.raises(ValueError, match="the save of another buffer"):
        other.save(tmp_path / "one")
    other.save(tmp_path / "two")
    buffer.save(tmp_path / "one")
    assert [ReplayBuffer.load(tmp_path / name).total for name in ("one", "two")] == [33, 34]
    again = COPIES[how](ReplayBuffer.load(tmp_path / "two"))
    with pytest.raises(ValueError, match="the save of another buffer"):
        again.save(tmp_path / "two")
