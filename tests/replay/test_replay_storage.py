"""Rows in mapped files and compressed rows: as plain ones, bounded, and refused where they cannot be."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from drama.replay import ReplayBuffer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs Linux or macOS")
FIELDS = {"x": ((3,), np.float32), "obs": ((64, 64), np.uint8)}


def fill(buffer: ReplayBuffer, count: int) -> None:
    random = np.random.default_rng(count)
    shape = (count, buffer.num_envs)
    buffer.add_block(
        x=random.random((*shape, 3), np.float32),
        obs=random.integers(0, 256, (*shape, 64, 64), np.uint8),
        terminated=random.random(shape) < 0.1,
        truncated=random.random(shape) < 0.1,
    )


def same(one: ReplayBuffer, other: ReplayBuffer) -> None:
    for length in (1, 5):
        first, second = one.sample(32, length), other.sample(32, length)
        assert first.keys() == second.keys()
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


def test_mapped_rows_are_as_rows_in_memory(tmp_path: Path) -> None:
    heap = ReplayBuffer(300, FIELDS, num_envs=2, seed=3)
    mapped = ReplayBuffer(300, FIELDS, num_envs=2, seed=3, storage=tmp_path / "a" / "b")
    assert mapped.nbytes == heap.nbytes
    np.testing.assert_array_equal(mapped.gather([], 1)["x"], heap.gather([], 1)["x"])
    for count in (20, 100, 90, 7):
        fill(heap, count)
        fill(mapped, count)
        same(heap, mapped)
    mapped.save(tmp_path / "save")
    for storage in (None, str(tmp_path / "a"), tmp_path / "c"):
        loaded = ReplayBuffer.load(tmp_path / "save", storage=storage)
        reference = ReplayBuffer.load(tmp_path / "save")
        fill(loaded, 11)
        fill(reference, 11)
        same(reference, loaded)


def test_rows_never_written_are_zero(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    old = ReplayBuffer(100, FIELDS, storage=tmp_path)
    fill(old, 100)
    del old
    gc.collect()
    buffer = ReplayBuffer(100, {"x": ((), np.int64)}, storage=tmp_path)
    assert len(buffer) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]


def test_a_file_system_without_preallocation_is_written_to(tmp_path: Path) -> None:
    """Such as ramfs."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "ramfs", "ramfs", str(path)], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        plain, mapped = ReplayBuffer(50, FIELDS), ReplayBuffer(50, FIELDS, storage=path)
        for buffer in (plain, mapped):
            fill(buffer, 70)
        same(plain, mapped)
        del buffer, mapped
        gc.collect()
    finally:
        subprocess.run(["umount", str(path)], check=True)


HOLDER = """
import os, sys
import numpy as np
from drama.replay import ReplayBuffer

buffer = ReplayBuffer(5000, {"obs": ((64, 64), np.uint8)}, storage=sys.argv[1])
no = np.zeros((5000, 1), bool)
buffer.add_block(obs=np.ones((5000, 1, 64, 64), np.uint8), terminated=no, truncated=no)
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert list(tmp_path.iterdir()) == []
        holder.kill()
    assert list(tmp_path.iterdir()) == []


def free(path: Path) -> int:
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def test_room_is_reserved_at_once_and_given_back(small_disk: Path) -> None:
    before = free(small_disk)
    message = r'cannot reserve 20480000 bytes for field "obs": No space left on device'
    with pytest.raises(OSError, match=message) as refused:
        ReplayBuffer(5000, FIELDS, storage=small_disk / "replay")
    assert refused.value.errno == errno.ENOSPC
    assert Path(refused.value.filename) == small_disk / "replay"
    assert free(small_disk) > before - (1 << 16)
    buffer = ReplayBuffer(2000, FIELDS, storage=small_disk)
    assert free(small_disk) <= before - buffer.nbytes
    # The disk fills up, and the buffer does not mind.
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(16 << 20))
    assert free(small_disk) == 0
    fill(buffer, 1500)
    fill(buffer, 1500)
    assert len(buffer) == 2000
    assert buffer.sample(4, 1000)["obs"].any()
    del buffer
    gc.collect()
    filler.unlink()
    assert free(small_disk) > before - (1 << 16)


def test_a_place_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match="file"):
            ReplayBuffer(10, FIELDS, storage=place)
    assert (tmp_path / "file").read_text() == "mine"
    named = "storage" if sys.version_info >= (3, 11) else "PathLike"  # before, PyO3 cannot add the argument's name
    with pytest.raises(TypeError, match=named):
        ReplayBuffer(10, FIELDS, storage=3)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="cannot reserve"):
        ReplayBuffer(2**32 - 1, {"obs": ((2**30,), np.uint8)}, storage=tmp_path)


def frames(buffer: ReplayBuffer, count: int) -> dict[str, npt.NDArray[Any]]:
    """Rows of which `obs` gets smaller by compression, `noise` does not."""
    random = np.random.default_rng(buffer.total)
    shape = (count, buffer.num_envs)
    obs = np.zeros((*shape, 64, 64), np.uint8)
    obs[..., 20:30, 20:30] = random.integers(0, 256, (*shape, 10, 1), np.uint8)
    return {
        "x": random.random((*shape, 3), np.float32),
        "obs": obs,
        "noise": random.integers(0, 256, (*shape, 100), np.uint8),
        "reward": random.random(shape).astype(np.float32),
        "terminated": random.random(shape) < 0.1,
        "truncated": random.random(shape) < 0.1,
    }


def compressible(compress: Collection[str], capacity: int = 300) -> ReplayBuffer:
    fields = {**FIELDS, "noise": ((100,), np.uint8), "reward": ((), np.float32)}
    return ReplayBuffer(capacity, fields, num_envs=2, seed=3, compress=compress)


def test_compressed_rows_are_as_plain_ones(tmp_path: Path) -> None:
    compress = ("obs", "noise", "reward")
    plain, packed = compressible(()), compressible(compress)
    assert (plain.compress, packed.compress) == ((), compress)
    assert packed.nbytes == plain.nbytes
    # Within a lap, over its end, over all of it several times, and row by row.
    for count in (20, 100, 90, 700, 1):
        block = frames(plain, count)
        for buffer in (plain, packed):
            if count == 1:
                buffer.add(**{name: column[0] for name, column in block.items()})
            else:
                buffer.add_block(**block)
        same(plain, packed)
        one, other = (b.sample_transitions(50, 3, stack={"obs": 2}, next_fields=["noise"]) for b in (plain, packed))
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
        packed.save(tmp_path)
        loaded = ReplayBuffer.load(tmp_path)
        assert loaded.compress == compress
        assert loaded.stored_nbytes == packed.stored_nbytes < plain.stored_nbytes
        size, held = plain.rows_per_env, range(plain.total - len(plain) // 2, plain.total)
        every = [env * size + t % size + t // size * 2 * size for env in (0, 1) for t in held]
        first, second = (each.gather(every, 1) for each in (plain, loaded))
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


def test_large_batches_of_compressed_rows() -> None:
    plain, packed = compressible((), 4000), compressible(("obs",), 4000)
    for buffer in (plain, packed):
        buffer.add_block(**frames(buffer, 2000))
    one, other = plain.sample(16, 500), packed.sample(16, 500)
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


def test_the_memory_of_compressed_rows_is_bounded_and_given_back() -> None:
    buffer = ReplayBuffer(10, {"obs": ((1000,), np.uint8)}, compress=["obs"])
    random, no = np.random.default_rng(0), np.zeros(1, bool)
    flags = 3
    for _ in range(25):
        buffer.add(obs=random.integers(0, 256, (1, 1000), np.uint8), terminated=no, truncated=no)
    assert buffer.stored_nbytes == buffer.nbytes == 10 * (1000 + flags)
    for left in range(9, -1, -1):
        buffer.add(obs=np.zeros((1, 1000), np.uint8), terminated=no, truncated=no)
        assert left * 1000 < buffer.stored_nbytes < left * 1000 + (10 - left) * 50 + 10 * flags


def test_damaged_compressed_rows_are_refused(tmp_path: Path) -> None:
    buffer = compressible(("obs",), 20)
    buffer.add_block(**frames(buffer, 10))
    buffer.save(tmp_path)
    (chunk,) = tmp_path.glob("chunk-*")
    sound = chunk.read_bytes()
    for at in range(16, len(sound), 37):
        chunk.write_bytes(sound[:at] + bytes([sound[at] ^ 0x41]) + sound[at + 1 :])
        with pytest.raises(ValueError, match=chunk.name):
            ReplayBuffer.load(tmp_path)
    chunk.write_bytes(sound)
    assert len(ReplayBuffer.load(tmp_path)) == 20
    with pytest.raises(ValueError, match="cannot be compressed: rows in mapped files are not"):
        ReplayBuffer.load(tmp_path, storage=tmp_path)


def test_bad_compressions_are_refused(tmp_path: Path) -> None:
    for compress, message in [
        (("frame",), r"compress: got \('frame',\), expected names of declared fields \(x, obs\)"),
        ("obs", "compress: got 'obs', expected names"),
        (("terminated",), r"compress: got \('terminated',\), expected names"),
    ]:
        with pytest.raises(ValueError, match=message):
            ReplayBuffer(10, FIELDS, compress=compress)
    with pytest.raises(ValueError, match='field "terminated" is built in and cannot be compressed'):
        ReplayBuffer(10, {"terminated": ((), bool)}, compress=["terminated"])
    for capacity, side, message in [
        (1, 2**30 + 1, 'field "x" has rows of 1073741825 bytes, those of up to 1073741824 can be compressed'),
        (1, 2**62, "those of up to 1073741824 can be compressed"),
    ]:
        with pytest.raises(ValueError, match=message):
            ReplayBuffer(capacity, {"x": ((side,), np.uint8)}, compress=["x"])
    with pytest.raises(ValueError, match='field "obs" cannot be compressed: rows in mapped files are not'):
        ReplayBuffer(10, FIELDS, compress=["obs"], storage=tmp_path)
