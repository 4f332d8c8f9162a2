"""The replay buffer: what goes in comes out, in order, and everything wrong is refused with a message that helps."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from drama.replay import Batch, DynamicFrequency, ReplayBuffer, Sampler, Uniform

Array = npt.NDArray[Any]


def make(capacity: int = 40, num_envs: int = 2, seed: int = 0) -> ReplayBuffer:
    return ReplayBuffer(capacity, {"x": ((), np.int64), "obs": ((2, 3), np.uint8)}, num_envs=num_envs, seed=seed)


def rows(buffer: ReplayBuffer, count: int, end_every: int = 7) -> dict[str, Array]:
    """The next rows: `x` counts in thousands per environment, episodes end every so many rows."""
    t = np.arange(buffer.total, buffer.total + count)[:, None]
    env = np.arange(buffer.num_envs)[None]
    x = env * 1000 + t
    ends = (t + 1) % end_every == 0
    return {
        "x": x,
        "obs": np.broadcast_to((x % 251)[..., None, None], (*x.shape, 2, 3)).astype(np.uint8),
        "terminated": ends & (env % 2 == 0),
        "truncated": ends & (env % 2 == 1),
    }


def fill(buffer: ReplayBuffer, count: int) -> None:
    buffer.add_block(**rows(buffer, count))


def check(buffer: ReplayBuffer, batch: Batch, size: int, length: int) -> None:
    x = batch["x"]
    assert x.shape == (size, length)
    np.testing.assert_array_equal(np.diff(x, axis=1), 1)
    env, t = np.divmod(x, 1000)
    assert (env == env[:, :1]).all()
    assert t.min() >= max(0, buffer.total - buffer.rows_per_env)
    assert t.max() < buffer.total
    np.testing.assert_array_equal(batch["is_first"], t % 7 == 0)
    np.testing.assert_array_equal(batch["terminated"] | batch["truncated"], (t + 1) % 7 == 0)
    np.testing.assert_array_equal(batch["obs"][..., 1, 2], x % 251)
    kept, turns = buffer.rows_per_env, t[:, 0] // buffer.rows_per_env
    slots = env[:, 0] * kept + t[:, 0] % kept
    np.testing.assert_array_equal(batch["indices"], slots + turns * buffer.num_envs * kept)
    assert batch["indices"].dtype == np.int64
    assert batch["weights"].dtype == np.float32
    np.testing.assert_array_equal(batch["weights"], np.ones(size))


def samplers() -> list[Sampler]:
    frequency = DynamicFrequency()
    return [Uniform(), Uniform(replacement=False), frequency.world_model, frequency.imagination]


@pytest.mark.parametrize("num_envs", [1, 2, 3])
@pytest.mark.parametrize("capacity", [12, 40, 61])
def test_sequences_are_consecutive_and_never_cross_the_write_position(capacity: int, num_envs: int) -> None:
    buffer = make(capacity, num_envs)
    used = samplers()
    for count in (4, 1, 2, 9, 1, 30, 100, 1):
        fill(buffer, count)
        assert len(buffer) == num_envs * min(buffer.total, buffer.rows_per_env)
        for length in (1, 3, 4):
            size = num_envs * (min(buffer.total, buffer.rows_per_env) - length + 1)
            for sampler in used:
                check(buffer, buffer.sample(size, length, sampler=sampler), size, length)


def test_add_equals_add_block() -> None:
    one, other = make(), make()
    block = rows(one, 33)
    one.add_block(**block)
    for t in range(33):
        other.add(**{name: np.ascontiguousarray(column[t]) for name, column in block.items()})
    first, second = one.sample(64, 5), other.sample(64, 5)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


def test_every_start_is_drawn_and_none_besides() -> None:
    buffer = make(20, 2)
    fill(buffer, 13)
    drawn = buffer.sample(2000, 4)["x"][:, 0]
    assert set(drawn) == {env * 1000 + t for env in range(2) for t in range(3, 10)}
    alone = buffer.sample(14, 4, sampler=Uniform(replacement=False))["x"][:, 0]
    assert sorted(alone) == sorted(set(drawn))


def test_is_first_is_derived_and_can_be_added_to() -> None:
    buffer = ReplayBuffer(8, {}, num_envs=2)
    no, ends = np.zeros(2, bool), np.array([True, False])
    buffer.add(terminated=no, truncated=no, is_first=no)
    buffer.add(terminated=ends, truncated=~ends)
    buffer.add(terminated=no, truncated=no)
    buffer.add(terminated=no, truncated=no, is_first=~ends)
    batch = buffer.gather([0, 4], 4)
    np.testing.assert_array_equal(batch["is_first"], [[True, False, True, False], [True, False, True, True]])


def test_a_row_after_an_end_is_a_start_or_refused() -> None:
    """As of a vector that resets by itself, of which a step was added that belongs to no episode."""
    buffer = ReplayBuffer(8, {}, num_envs=2)
    no, ends = np.zeros(2, bool), np.array([False, True])
    buffer.add(terminated=no, truncated=ends)
    message = 'field "is_first": got false for a row of environment 1 that follows the end of an episode'
    with pytest.raises(ValueError, match=message):
        buffer.add(terminated=no, truncated=no, is_first=no)
    block, starts = np.zeros((2, 3, 2), bool)
    block[1], starts[0] = ends, ends
    with pytest.raises(ValueError, match=message):
        buffer.add_block(terminated=block, truncated=block, is_first=starts)
    assert len(buffer) == 2
    buffer.add(terminated=no, truncated=no, is_first=ends)
    assert buffer.rows(1)["is_first"].tolist() == [True, True]


@pytest.mark.parametrize(
    "dtype",
    ["bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"],
)
def test_every_dtype_comes_back(dtype: str) -> None:
    buffer = ReplayBuffer(4, {"x": ((3,), dtype)})
    value = np.arange(12).reshape(4, 1, 3).astype(dtype)
    buffer.add_block(x=value, terminated=np.zeros((4, 1), bool), truncated=np.zeros((4, 1), bool))
    got = buffer.gather([0], 4)["x"]
    assert got.dtype == value.dtype
    np.testing.assert_array_equal(got[0], value[:, 0])


def test_properties() -> None:
    buffer = ReplayBuffer(41, {"x": ((2,), np.float32), "terminated": ((), bool)}, num_envs=2)
    assert (buffer.capacity, buffer.num_envs, buffer.rows_per_env, len(buffer)) == (41, 2, 21, 0)
    assert buffer.nbytes == 42 * (8 + 3)
    assert buffer.fields == {
        "x": ((2,), np.dtype(np.float32)),
        "terminated": ((), np.dtype(bool)),
        "truncated": ((), np.dtype(bool)),
        "is_first": ((), np.dtype(bool)),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(2)}, 'unknown field "y", expected x, obs, terminated, truncated, is_first'),
        ({"x": None}, 'field "x" is missing'),
        ({"truncated": None}, 'field "truncated" is missing'),
        ({"done": np.zeros(2, bool)}, "an episode ends by `terminated`, where .* or `truncated`, where it was cut off"),
        ({"next_obs": np.zeros(2)}, "what follows a row is read from the next one.* `set_final` .* `StepWriter`"),
        ({"observations": np.zeros(2)}, 'unknown field "observations", expected .*; `obs` is what it is called here'),
        ({"actions": np.zeros(2)}, 'unknown field "actions", expected x, obs, terminated, truncated, is_first$'),
        ({"x": [1, 2, 3]}, r'field "x": got shape \[3\], expected \[2\]'),
        ({"x": [[1], [2, 3]]}, 'field "x": got type list, which NumPy makes no array of'),
        ({"x": ["1", "2"]}, 'field "x": got type list, expected numbers that int64 holds'),
        ({"x": np.zeros(2, complex)}, 'field "x": got dtype complex128, expected numbers that int64 holds'),
        ({"x": [1.0, 2.5]}, r'field "x": got 2.5 \(dtype float64\), which int64 does not hold'),
        ({"x": np.array([1, 2**63], np.uint64)}, r'field "x": got 9223372036854775808 \(dtype uint64\), which int64'),
        ({"x": [0.0, np.nan]}, 'field "x": got nan'),
        ({"obs": np.full((2, 2, 3), -1)}, r'field "obs": got -1 \(dtype int64\), which uint8 does not hold'),
        ({"terminated": [0, 2]}, r'field "terminated": got 2 \(dtype int64\), which bool does not hold'),
        ({"x": np.zeros(3, np.int64)}, r'field "x": got shape \[3\], expected \[2\]'),
        ({"x": np.zeros((), np.int64)}, r'field "x": got shape \[\], expected \[2\]'),
        ({"obs": np.zeros((2, 3, 2), np.uint8)}, r'field "obs": got shape \[2, 3, 2\], expected \[2, 2, 3\]'),
        ({"is_first": np.zeros(1, bool)}, r'field "is_first": got shape \[1\], expected \[2\]'),
    ],
)
def test_a_bad_row_is_refused_whole(change: dict[str, Any], message: str) -> None:
    buffer = make()
    fill(buffer, 3)
    row = {name: np.ascontiguousarray(column[0]) for name, column in rows(buffer, 1).items()}
    row = {name: column for name, column in (row | change).items() if column is not None}
    with pytest.raises(ValueError, match=message):
        buffer.add(**row)
    assert buffer.total == 3


def test_blocks_must_have_one_length() -> None:
    buffer = make()
    block = rows(buffer, 5)
    block["terminated"] = block["terminated"][:4]
    with pytest.raises(ValueError, match=r'field "terminated": got shape \[4, 2\], expected \[5, 2\]'):
        buffer.add_block(**block)
    assert len(buffer) == 0
    buffer.add_block(**rows(buffer, 0))
    assert len(buffer) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "capacity must be at least 1, got 0"),
        ({"capacity": -1}, "capacity must not be negative, got -1"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
        ({"capacity": 2**40}, "beyond the limit"),
        ({"fields": {"is_first": ((), bool)}}, 'field name "is_first" is reserved'),
        ({"fields": {"indices": ((), np.int64)}}, 'field name "indices" is reserved'),
        ({"fields": {"weights": ((), np.float32)}}, 'field name "weights" is reserved'),
        ({"fields": {"terminated": ((), np.uint8)}}, 'field "terminated" is built in with dtype bool'),
        ({"fields": {"x": ((), np.complex64)}}, 'field "x": dtype complex64 is not supported'),
        ({"fields": {"x": ((2, 0), np.uint8)}}, "every side must be at least 1"),
        ({"fields": {"x": ((-2,), np.uint8)}}, "every side must not be negative, got -2"),
        ({"fields": {"x": ((2**62, 2**62), np.uint8)}}, "does not fit the address space"),
        ({"fields": {"x": ((2**50,), np.uint8)}}, 'no memory for field "x"'),
        ({"fields": {"x": ((2**70,), np.uint8)}}, r'field "x": every side must be from 0 to 2\*\*63 - 1, got 1180'),
        ({"fields": {"x": ((2,), ">f4")}}, 'field "x": dtype >f4 is not supported, expected native byte order'),
        ({"fields": {"x": ((2.5,), np.uint8)}}, 'field "x": every side must be an integer, got 2.5'),
        ({"fields": {"x": ((2,), "nope")}}, "field \"x\": dtype 'nope': "),
        ({"fields": {"x": np.uint8}}, r'field "x": got .*uint8.*, expected \(shape, dtype\)'),
        ({"fields": {"x": (2, np.uint8)}}, r'field "x": got \(2, .*, expected \(shape, dtype\)'),
        ({"fields": {3: ((2,), np.uint8)}}, "fields: got the name 3, expected a str"),
        ({"fields": ["x"]}, "fields: got list, expected a mapping"),
        ({"compress": 3}, "compress: got 3, expected names of declared fields"),
        ({"capacity": 2.5}, "capacity must be an integer, got 2.5"),
        ({"capacity": None}, "capacity must be an integer, got None"),
        ({"capacity": 2**70}, r"capacity must be from 0 to 2\*\*63 - 1, got 1180591620717411303424"),
        ({"num_envs": "2"}, "num_envs must be an integer, got '2'"),
        ({"seed": -1}, r"seed must be from 0 to 2\*\*64 - 1, got -1"),
        ({"seed": 0.5}, "seed must be an integer, got 0.5"),
    ],
)
def test_bad_buffers_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError, MemoryError), match=message):
        ReplayBuffer(**{"capacity": 40, "fields": {}, **arguments})


@pytest.mark.parametrize(
    ("size", "length", "message"),
    [
        (0, 4, "batch_size must be at least 1, got 0"),
        (-1, 4, "batch_size must not be negative, got -1"),
        (4, 0, "length must be from 1 to 20"),
        (4, -3, "length must not be negative, got -3"),
        (4, 21, "length must be from 1 to 20 .*, got 21"),
        (4, 6, "asked for 4 .*starts of length 6, but .*exist"),
        (2.5, 4, "batch_size must be an integer, got 2.5"),
        (4, 2.5, "length must be an integer, got 2.5"),
        (2**70, 4, r"batch_size must be from 0 to 2\*\*63 - 1, got 1180"),
        (2**62, 4, r'field "x": a batch \[4611686018427387904, 4\] is beyond any memory'),
    ],
)
@pytest.mark.parametrize("sampler", samplers(), ids=str)
def test_bad_samples_are_refused(sampler: Sampler, size: Any, length: Any, message: str) -> None:
    buffer = make()
    fill(buffer, 5)
    with pytest.raises((ValueError, TypeError), match=message):
        buffer.sample(size, length, sampler=sampler)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sampler": Uniform}, r"sampler: got <class .*Uniform'>, expected Uniform\(\), .* with a method `sample`"),
        ({"sampler": "uniform"}, r"sampler: got 'uniform', expected Uniform\(\), "),
        ({"sampler": DynamicFrequency()}, r"sampler: got DynamicFrequency\(.*, expected .* a role of"),
        ({"stack": ["x"]}, r"stack: got \['x'\], expected numbers of frames by field name"),
        ({"stack": {3: 2}}, "stack: got {3: 2}, expected numbers of frames by field name"),
        ({"stack": {"x": 1.5}}, 'stack of field "x" must be an integer, got 1.5'),
        ({"out": [1]}, "out: got list, expected a dict of arrays by field name"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(arguments: dict[str, Any], message: str) -> None:
    buffer = make()
    fill(buffer, 5)
    with pytest.raises(TypeError, match=message):
        buffer.sample(4, 2, **arguments)


def test_gather_refuses_starts_without_rows() -> None:
    buffer = make()
    fill(buffer, 5)
    for index, message in [(-1, "negative"), (5, "holds no row"), (40, "holds no row"), (3, "followed by 2 rows")]:
        with pytest.raises(IndexError, match=message):
            buffer.gather([0, index], 3)
    for indices in ([0.5], [[0]], [True]):
        with pytest.raises(ValueError, match=r"indices: got dtype .*, expected integers \[B\]"):
            buffer.gather(indices, 3)
    assert buffer.gather([], 3)["x"].shape == (0, 3)


def test_batches_can_be_drawn_into_arrays_that_are_there() -> None:
    buffer, same = make(), make()
    for one in (buffer, same):
        fill(one, 30)
    batch = buffer.sample(6, 4)
    kept = {name: batch[name] for name in ("x", "obs", "is_first")}
    again = buffer.sample(6, 4, out=batch)
    assert all(again[name] is array for name, array in kept.items())
    check(buffer, again, 6, 4)
    same.sample(6, 4)
    for name, array in same.sample(6, 4).items():
        np.testing.assert_array_equal(again[name], array)
    rows = again["indices"][:2]
    partly = buffer.gather(rows, 3, out={"x": np.zeros((2, 3), np.int64)})
    np.testing.assert_array_equal(partly["x"], again["x"][:2, :3])


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ({"x": np.zeros((6, 3), np.int64)}, r'field "x": got shape \[6, 3\], expected \[6, 4\]'),
        ({"x": np.zeros((6, 4), np.int32)}, 'field "x": got dtype int32, expected int64'),
        ({"x": np.zeros((4, 6), np.int64).T}, 'field "x": got an array that is not C-contiguous'),
        ({"x": np.broadcast_to(np.int64(0), (6, 4))}, 'field "x": got an array that is not C-contiguous'),
        ({"x": np.frombuffer(bytes(192), np.int64).reshape(6, 4)}, 'field "x": the array is read-only'),
        (dict.fromkeys(("terminated", "truncated"), np.zeros((6, 4), bool)), "out: two fields share memory"),
    ],
)
def test_bad_outputs_are_refused(out: Batch, message: str) -> None:
    buffer, frequency = make(), DynamicFrequency()
    fill(buffer, 30)
    with pytest.raises(ValueError, match=message):
        buffer.sample(6, 4, out=out, sampler=frequency.world_model)
    assert frequency.state_dict()["n"].size == 0


def test_a_sampler_of_ones_own() -> None:
    class Newest:
        def sample(self, buffer: ReplayBuffer, batch_size: int, length: int, out: Batch | None = None) -> Batch:
            turns, place = divmod(buffer.total - length, buffer.rows_per_env)
            newest = place + turns * buffer.num_envs * buffer.rows_per_env
            return buffer.gather(np.full(batch_size, newest), length, out)

    buffer = make()
    fill(buffer, 31)
    np.testing.assert_array_equal(buffer.sample(2, 3, sampler=Newest())["x"], [[28, 29, 30]] * 2)


def test_the_seed_decides_the_draws() -> None:
    buffers = [make(seed=seed) for seed in (1, 1, 2)]
    for buffer in buffers:
        fill(buffer, 20)
    first, same, other = (buffer.sample(32, 2)["indices"] for buffer in buffers)
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.parametrize("count", [0, 5, 20, 47])
def test_a_loaded_buffer_continues(tmp_path: Path, count: int) -> None:
    buffer, frequency = make(), DynamicFrequency()
    fill(buffer, count)
    if count:
        buffer.sample(3, 2, sampler=frequency.world_model)
    buffer.save(tmp_path / "replay")
    loaded, restored = ReplayBuffer.load(tmp_path / "replay"), DynamicFrequency()
    restored.load_state_dict(frequency.state_dict())
    assert (len(loaded), loaded.capacity, loaded.fields) == (len(buffer), buffer.capacity, buffer.fields)
    for count in (3, 9):
        batches = []
        for one, sampler in ((buffer, frequency), (loaded, restored)):
            fill(one, count)
            uniform = one.sample(8, 3)
            check(one, uniform, 8, 3)
            roles = (sampler.world_model, sampler.imagination)
            batches.append([uniform, *(one.sample(4, 2, sampler=role) for role in roles)])
        for ours, theirs in zip(*batches, strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_second_save_writes_little(tmp_path: Path) -> None:
    buffer = ReplayBuffer(400, {"obs": ((1 << 15,), np.uint8)})
    no = np.zeros((300, 1), bool)
    buffer.add_block(obs=np.zeros((300, 1, 1 << 15), np.uint8), terminated=no, truncated=no)
    buffer.save(tmp_path / "a")
    before = {path.name for path in (tmp_path / "a").iterdir()}
    buffer.add(obs=np.ones((1, 1 << 15), np.uint8), terminated=no[0], truncated=no[0])
    buffer.save(tmp_path / "a")
    assert len({path.name for path in (tmp_path / "a").iterdir()} - before) == 1
    buffer.save(tmp_path / "b")
    chunks = [path for path in (tmp_path / "b").iterdir() if path.suffix == ".bin"]
    assert len(chunks) == 5
    assert all(path.stat().st_nlink == 2 for path in chunks)
    loaded = ReplayBuffer.load(tmp_path / "b")
    assert loaded.gather([299], 2)["obs"][0, :, 0].tolist() == [0, 1]


def test_damaged_and_missing_saves_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ReplayBuffer.load(tmp_path / "nothing")
    buffer = make()
    fill(buffer, 30)
    buffer.save(tmp_path)
    (chunk,) = tmp_path.glob("chunk-*.bin")
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(ValueError, match=f"{chunk.name}: is corrupted"):
        ReplayBuffer.load(tmp_path)
    chunk.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{chunk.name}: has .* bytes, expected"):
        ReplayBuffer.load(tmp_path)
    chunk.unlink()
    with pytest.raises(FileNotFoundError, match=chunk.name):
        ReplayBuffer.load(tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OSError, match="file"):
        buffer.save(blocked)


WRITER = """
import sys
import numpy as np
from drama.replay import ReplayBuffer

buffer = ReplayBuffer(300, {"obs": ((1 << 15,), np.uint8)})
no = np.zeros((50, 1), bool)
while True:
    first = buffer.total % 251
    obs = ((first + np.arange(50)) % 251).astype(np.uint8)[:, None, None].repeat(1 << 15, 2)
    buffer.add_block(obs=obs, terminated=no, truncated=no)
    buffer.save(sys.argv[1])
    print(buffer.total, flush=True)
"""


def test_a_killed_save_leaves_the_last_one(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for trial in range(6):
        path = tmp_path / str(trial)
        with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(trial):
                writer.stdout.readline()
            reported = int(writer.stdout.readline())
            time.sleep(random.uniform(0, 0.05))
            writer.kill()
            reported = max([reported, *(int(line) for line in writer.stdout)])
        loaded = ReplayBuffer.load(path)
        # The save under way may have been finished but not reported.
        assert loaded.total in (reported, reported + 50)
        oldest = max(0, loaded.total - 300)
        obs = loaded.gather([oldest], len(loaded))["obs"][0]
        np.testing.assert_array_equal(obs[:, 0], np.arange(oldest, loaded.total) % 251)
        np.testing.assert_array_equal(obs[:, 0], obs[:, -1])


def test_threads_add_and_sample_together(tmp_path: Path) -> None:
    buffer = make(400, 2)
    fill(buffer, 50)
    frequency = DynamicFrequency()
    column = {name: np.ascontiguousarray(value[0]) for name, value in rows(buffer, 1).items()}
    errors: list[BaseException] = []

    def run(work: Any) -> None:
        try:
            for _ in range(300):
                work()
        except BaseException as error:
            errors.append(error)

    def sample() -> None:
        for sampler in (frequency.world_model, frequency.imagination, Uniform()):
            assert buffer.sample(16, 4, sampler=sampler)["x"].shape == (16, 4)

    work = [lambda: buffer.add(**column)] * 3 + [sample] * 2 + [lambda: frequency.counts(buffer)]
    threads = [threading.Thread(target=run, args=(each,)) for each in work]
    for thread in threads:
        thread.start()
    buffer.save(tmp_path)
    for thread in threads:
        thread.join()
    assert not errors
    assert buffer.total == 50 + 900
    assert ReplayBuffer.load(tmp_path).total >= 50
