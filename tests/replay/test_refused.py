"""What is wrong in a call is refused in words that name the argument, what came and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from drama.replay import DynamicFrequency, MostRecent, Prioritized, ReplayBuffer, StepWriter, Uniform

FIELDS: dict[str, Any] = {"obs": ((2,), np.float32), "action": ((), np.int64), "reward": ((), np.float32)}
ROW: dict[str, Any] = {
    "obs": np.zeros((2, 2)),
    "action": [0, 1],
    "reward": [0.0, 1.0],
    "terminated": [False, False],
    "truncated": [False, False],
}
MASKED: Any = np.ma.masked_array([1, 0], [True, False])
ODD = np.array([2, 0], np.uint8).view(bool)


def make(rows: int = 0, **options: Any) -> ReplayBuffer:
    buffer = ReplayBuffer(**{"capacity": 8, "fields": FIELDS, "num_envs": 2, **options})
    for _ in range(rows):
        buffer.add(**ROW)
    return buffer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": "8"}, "capacity must be an integer, got '8'"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"seed": "a"}, "seed must be an integer, got 'a'"),
        ({"storage": 3}, "storage: got 3, expected the path of a directory"),
        ({"storage": ""}, "storage: got '', expected the path of a directory"),
        ({"compress": [["obs"]]}, r"compress: got \[\['obs'\]\], expected names of declared fields"),
        ({"compress": "obs"}, "compress: got 'obs', expected names of declared fields"),
        ({"fields": {"obs": ((2,), None)}}, 'field "obs": dtype None: expected one of NumPy\'s'),
        ({"fields": {"\ud800": ((2,), np.uint8)}}, r"fields: got the name '\\ud800', expected one that can be printed"),
        ({"fields": {"a\0": ((2,), np.uint8)}}, r"fields: got the name 'a\\x00', expected one that can be printed"),
    ],
)
def test_buffers_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        make(**change)


class Inside:
    """What NumPy asks for its array."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return self.array


@pytest.mark.parametrize("given", ["masked", "masked list", "masked constant", "masked inside"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_masked_values_are_no_values(given: str, dtype: Any) -> None:
    values = np.ma.masked_array(np.arange(4).reshape(2, 2), [[True, False], [False, False]], dtype)
    obs: Any = {
        "masked": values,
        "masked list": list(values),
        "masked constant": [list(row) for row in values],
        "masked inside": Inside(values),
    }[given]
    buffer = make(1)
    block: dict[str, Any] = {name: np.asarray(value)[None] for name, value in ROW.items()}
    calls: list[Callable[[], object]] = [
        lambda: buffer.add(**{**ROW, "obs": obs}),
        lambda: buffer.add_block(**{**block, "obs": [values]}),
        lambda: buffer.set_final(envs=[0, 1], obs=obs),
    ]
    for call in calls:
        with pytest.raises(ValueError, match='field "obs": got masked values, expected none'):
            call()
    assert len(buffer) == 2
    # Nothing of it is masked, so nothing is lost.
    buffer.add(**{**ROW, "obs": np.ma.masked_array(np.full((2, 2), 7), np.zeros((2, 2), bool), dtype)})
    assert buffer.rows(1)["obs"].tolist() == [[0, 0], [7, 7]]


def test_lists_without_an_end_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    deep: list[Any] = [0.0]
    for _ in range(5000):
        deep = [deep]
    for obs in (endless, deep):
        with pytest.raises(
            ValueError, match=r'field "obs": got type list, (which NumPy makes no array|expected numbers)'
        ):
            make().add(**{**ROW, "obs": obs})


def test_masked_indices_and_memory() -> None:
    buffer = make(3)
    sampler = Prioritized()
    buffer.sample(2, 1, sampler)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("indices", lambda: buffer.gather(MASKED, 1)),
        ("indices", lambda: buffer.gather_transitions(MASKED)),
        ("slots", lambda: buffer.indices_at(MASKED)),
        ("envs", lambda: buffer.add(envs=MASKED, **ROW)),
        ("envs", lambda: buffer.set_final(envs=MASKED, obs=ROW["obs"])),
        ("indices", lambda: sampler.update_priorities(MASKED, [1, 1])),
        ("priorities", lambda: sampler.update_priorities([0, 1], MASKED)),
        ('field "obs"', lambda: buffer.sample(2, 1, out={"obs": np.ma.zeros((2, 1, 2), np.float32)})),
    ]
    for name, call in calls:
        with pytest.raises(ValueError, match=f"{name}: got .*(masked values, expected none|without a mask)"):
            call()


class Named(np.ndarray):
    """A subclass of somebody's."""


def test_views_of_other_kinds_are_taken(tmp_path: Path) -> None:
    """Arrays that stand for their bytes, whatever their class."""
    buffer = make()
    mapped = np.memmap(tmp_path / "obs", np.float32, "w+", shape=(2, 2))
    mapped[:] = 3
    buffer.add(**{**ROW, "obs": mapped})
    buffer.add(**{**ROW, "obs": np.full((2, 2), 4.0).view(Named)})
    assert buffer.rows()["obs"].tolist() == [[3, 3], [4, 4]]
    target = np.memmap(tmp_path / "out", np.float32, "w+", shape=(1, 2, 2))
    assert buffer.gather([0], 2, out={"obs": target})["obs"] is target
    assert target.tolist() == [[[3, 3], [4, 4]]]


def test_booleans_are_0_or_1() -> None:
    """What a view of other bytes shows as true would come back as an array that compares as false."""
    fields = {**FIELDS, "hurt": ((), bool), "seen": ((), bool)}
    buffer = ReplayBuffer(8, fields, num_envs=2, compress=["seen"])
    row = {**ROW, "hurt": [False, True], "seen": [True, False]}
    buffer.add(**row)
    for name in ("terminated", "truncated", "is_first", "hurt", "seen"):
        with pytest.raises(ValueError, match=f'field "{name}": got a boolean of byte 2, expected 0 or 1'):
            buffer.add(**{**row, name: ODD})
        if name != "is_first":
            block = {key: np.asarray(value)[None] for key, value in row.items()}
            with pytest.raises(ValueError, match=f'field "{name}": got a boolean of byte 2, expected 0 or 1'):
                buffer.add_block(**{**block, name: ODD[None]})
    with pytest.raises(ValueError, match='field "hurt": got a boolean of byte 2, expected 0 or 1'):
        buffer.set_final(envs=[0, 1], hurt=ODD)
    assert len(buffer) == 2


def test_flags_are_flags() -> None:
    buffer = make(3)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("within_episode", lambda: buffer.sample(1, 1, within_episode="no")),  # type: ignore[arg-type]
        ("within_episode", lambda: buffer.gather([0], 1, within_episode="no")),  # type: ignore[arg-type]
        ("replacement", lambda: Uniform("no")),  # type: ignore[arg-type]
        ("replacement", lambda: Prioritized(replacement="no")),  # type: ignore[arg-type]
    ]
    for name, call in calls:
        with pytest.raises(TypeError, match=f"{name}: got 'no', expected True or False"):
            call()
    assert "mask" in buffer.sample(1, 1, within_episode=np.True_)  # type: ignore[arg-type]


def test_indices_beyond_all_are_named_as_they_came() -> None:
    with pytest.raises(ValueError, match=r"indices: got 9223372036854775808, expected integers \[B\] below 2\*\*63"):
        make(1).gather(np.array([2**63], np.uint64), 1)
    with pytest.raises(TypeError, match=r"next_fields: got \[3\], expected a sequence of names"):
        make(1).sample_transitions(1, next_fields=[3])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"priorities": "a"}, 'field "priorities": got type str, expected numbers that float64 holds'),
        ({"priorities": [[1.0]]}, r"priorities: got shape \[1, 1\], expected one axis"),
        ({"seen": [-1]}, 'field "seen": got -1 .*, which uint64 does not hold'),
        ({"largest": "1"}, "largest: got '1', expected a number"),
        ({"beta": None}, "beta: got None, expected a number"),
    ],
)
def test_states_of_samplers_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    sampler = Prioritized()
    make(2).sample(1, 1, sampler)
    state = sampler.state_dict()
    with pytest.raises((TypeError, ValueError), match=message):
        sampler.load_state_dict({**state, **change})
    np.testing.assert_array_equal(sampler.state_dict()["priorities"], state["priorities"])
    with pytest.raises(ValueError, match=r'field "n": got -1 .*, which uint32 does not hold'):
        DynamicFrequency().load_state_dict({"n": [-1], "b": [1], "seen": [1], "num_envs": 1})


def test_why_there_is_nothing_to_draw() -> None:
    sampler, buffer = Prioritized(), make(1)
    distinct = [Uniform(False), MostRecent(), DynamicFrequency().world_model, Prioritized(replacement=False)]
    for each in (Uniform(), Prioritized()):
        with pytest.raises(ValueError, match=r"asked for 3 starts of length 1, but none exist: each .* holds 0 rows$"):
            make().sample(3, 1, each)
        with pytest.raises(
            ValueError,
            match="asked for 3 transitions of 1 steps, but none exist: each environment holds 1 rows, and what follows"
            " them is not known yet, or not any more",
        ):
            buffer.sample_transitions(3, sampler=each)
    for other in distinct:
        with pytest.raises(ValueError, match="asked for 3 distinct transitions of 1 steps, but only 0 exist"):
            buffer.sample_transitions(3, sampler=other)
    buffer = make(4)
    batch = buffer.sample(8, 1, sampler)
    sampler.update_priorities(buffer.indices_at(np.arange(8)), np.zeros(8))
    with pytest.raises(ValueError, match="length 2: 6 exist, and 0 of them have a priority above 0"):
        buffer.sample(2, 2, sampler)
    with pytest.raises(ValueError, match="asked for 2 transitions of 1 steps: 6 exist, and 0 of them have a priority"):
        buffer.sample_transitions(2, sampler=sampler)
    sampler.update_priorities(batch["indices"][:1], [1.0])
    sampler.replacement = False
    with pytest.raises(ValueError, match="2 distinct starts of length 1: 8 exist, and 1 of them have a"):
        buffer.sample(2, 1, sampler)


def test_folders_without_a_save(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        FileNotFoundError, match=r"No buffer was saved to this directory, or it would have a manifest\.json"
    ):
        ReplayBuffer.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*nothing'"):
        ReplayBuffer.load(tmp_path / "nothing")
    with pytest.raises(NotADirectoryError, match=r"notes\.txt"):
        ReplayBuffer.load(tmp_path / "notes.txt")
    buffer = make(2)
    for path in (3, None):
        with pytest.raises(TypeError, match=f"path: got {path}, expected the path of a directory"):
            buffer.save(path)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=f"path: got {path}, expected the path of a directory"):
            ReplayBuffer.load(path)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"path: got 'a\\x00b', expected the path of a directory"):
        ReplayBuffer.load("a\0b")
    buffer.save(tmp_path)
    assert len(ReplayBuffer.load(str(tmp_path))) == 4


def test_seeds() -> None:
    def draws(seed: int | None) -> list[int]:
        return make(4, seed=seed).sample(64, 1)["indices"].tolist()

    assert draws(3) == draws(3) == draws(np.int64(3))  # type: ignore[arg-type]
    assert draws(None) != draws(None)


def test_a_capacity_is_rounded_up_and_shown() -> None:
    buffer = make(capacity=10, num_envs=3)
    assert (buffer.capacity, buffer.rows_per_env) == (10, 4)
    assert "capacity=10, num_envs=3, rows_per_env=4, rows=0" in repr(buffer)
    assert "capacity=10, num_envs=1, rows=0" in repr(make(capacity=10, num_envs=1))


@pytest.mark.parametrize("size", [8, 100_000])
def test_batches_can_be_made_read_only_and_writable_again(size: int) -> None:
    """Small ones are NumPy's memory, large ones that of the buffer."""
    buffer = ReplayBuffer(4, {"x": ((size,), np.uint8), "reward": ((), np.float32)})
    no = [False] * 4
    buffer.add_block(x=np.arange(4)[:, None].repeat(size, 1), reward=[0, 1, 2, 3], terminated=no, truncated=no)
    for batch in (
        buffer.sample(2, 2),
        buffer.rows(),
        buffer.gather([0], 2),
        buffer.sample_transitions(2, next_fields=["x"]),
    ):
        for array in (batch["x"], batch["x"][..., 1:], batch["x"].reshape(-1)):
            array.setflags(write=False)
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
            array.setflags(write=True)
            array[...] = 0


class Env(gymnasium.Env[Any, Any]):
    observation_space = gymnasium.spaces.Box(0, 9, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return np.zeros(2, np.float32), {}

    def step(self, _: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(2, np.float32), 0.0, False, False, {}


def test_writers_of_what_is_none() -> None:
    buffer = make(num_envs=1)
    for what in (3, None, "buffer"):
        with pytest.raises(TypeError, match=f"buffer: got {type(what).__name__}, expected a ReplayBuffer"):
            StepWriter(what, Env())  # type: ignore[arg-type]
    for envs in (3, None, "CartPole-v1", lambda: Env()):
        with pytest.raises(TypeError, match=f"envs: got {type(envs).__name__}, expected an environment, or a vector"):
            StepWriter(buffer, envs)
    with pytest.raises(TypeError, match=r"envs: got (ABCMeta|type), expected an environment"):
        StepWriter(buffer, Env)


STEP: dict[str, Any] = {"action": 1, "obs": [1, 1], "reward": 1, "terminated": False, "truncated": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_first": True}, 'field "is_first": got two values, as add_step has one already'),
        ({"action": {"action": 1, "is_first": True}}, 'field "is_first": got two values'),
        ({"action": {"action": 1, "reward": 5}}, 'field "reward": got two values'),
        ({"action": {"action": 1, "terminated": True}}, 'field "terminated": got two values'),
        ({"action": {"action": 1, "obs": [2, 2]}}, 'field "obs": got two values'),
        ({"action": {"action": 1, "log_prob": 5}, "log_prob": 6}, 'field "log_prob": got two values'),
        ({"infos": [{}]}, "infos: got list, expected the mapping that `step` returned"),
        ({"envs": [True]}, r"envs: got dtype bool and shape \(1,\), expected integers \[K\]"),
        ({"reward": np.ma.masked_array([1.0], [True])}, 'field "reward": got masked values, expected none'),
        ({"obs": np.ma.masked_array([1.0, 2.0], [True, False])}, 'field "obs": got masked values, expected none'),
        ({"terminated": ODD[:1]}, 'field "terminated": got a boolean of byte 2, expected 0 or 1'),
    ],
)
def test_steps_that_say_a_thing_twice_or_not_at_all(change: dict[str, Any], message: str) -> None:
    buffer = make(num_envs=1, fields={**FIELDS, "log_prob": ((), np.float32)})
    writer = StepWriter(buffer, Env())
    writer.add_reset([0, 0])
    with pytest.raises((TypeError, ValueError), match=message):
        writer.add_step(**{**({"log_prob": 0} if "action" not in change else {}), **STEP, **change})
    assert len(buffer) == 0
    writer.add_step(**STEP, log_prob=0.5)
    assert buffer.rows()["is_first"].tolist() == [True]
