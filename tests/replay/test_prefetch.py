"""Batches drawn ahead are those that `sample` would give, in memory that nobody uses, and nothing hangs."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from drama.replay import Batch, DynamicFrequency, Prefetcher, ReplayBuffer, to_torch

ARGUMENTS: dict[str, Any] = {"batch_size": 8, "length": 4}
# Of which `x` and `obs` are so large that their memory is used again.
LARGE: dict[str, Any] = {"batch_size": 4096, "length": 4}


def make(rows: int = 50, seed: int = 0) -> ReplayBuffer:
    buffer = ReplayBuffer(100, {"x": ((), np.int64), "obs": ((2, 3), np.uint8)}, num_envs=2, seed=seed)
    add(buffer, rows)
    return buffer


def add(buffer: ReplayBuffer, rows: int) -> None:
    x = np.arange(buffer.total, buffer.total + rows)[:, None] + 1000 * np.arange(2)
    obs = np.broadcast_to((x % 251)[..., None, None], (*x.shape, 2, 3)).astype(np.uint8)
    no = np.zeros(x.shape, bool)
    buffer.add_block(x=x, obs=obs, terminated=no, truncated=no)


def assert_equal(one: Batch, other: Batch) -> None:
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_batches_are_those_of_sample_in_order(depth: int) -> None:
    direct = make()
    with Prefetcher(make(), ARGUMENTS, depth) as prefetcher:
        for batch in itertools.islice(prefetcher, 20):
            assert_equal(batch, direct.sample(8, 4))


def test_adds_after_settle_are_reproducible() -> None:
    """Batch i is drawn from what was there when batch i - depth was handed out."""
    depth = 2
    buffer, direct = make(), make()
    ahead = [direct.sample(8, 4) for _ in range(depth)]
    with Prefetcher(buffer, ARGUMENTS, depth) as prefetcher:
        for rows in (1, 7, 30, 2, 100, 1, 1):
            assert_equal(next(prefetcher), ahead.pop(0))
            ahead.append(direct.sample(8, 4))
            prefetcher.settle()
            add(buffer, rows)
            add(direct, rows)


def test_samplers_and_functions_draw_too() -> None:
    one, other = DynamicFrequency(), DynamicFrequency()
    direct = make()
    with Prefetcher(make(), {**ARGUMENTS, "sampler": one.imagination}) as prefetcher:
        for batch in itertools.islice(prefetcher, 5):
            assert_equal(batch, direct.sample(8, 4, sampler=other.imagination))
    buffer, direct = make(), make()
    with Prefetcher(buffer, partial(buffer.sample, 3, 2)) as prefetcher:
        assert_equal(next(prefetcher), direct.sample(3, 2))


def addresses(batch: Batch) -> set[int]:
    return {batch[name].ctypes.data for name in ("x", "obs")}


def test_memory_is_used_again_once_it_is_free() -> None:
    with Prefetcher(make(), LARGE) as prefetcher:
        seen = [addresses(batch) for batch in itertools.islice(prefetcher, 40)]
    # Of those ready, the one in the making, the one in use, and one that was dropped.
    assert len(set.union(*seen)) <= 2 * (2 + 3)


@pytest.mark.parametrize("keep", ["batch", "view", "tensor"])
def test_memory_in_use_is_left_alone(keep: str) -> None:
    torch = pytest.importorskip("torch")
    kept: list[tuple[Any, npt.NDArray[Any]]] = []
    with Prefetcher(make(), LARGE) as prefetcher:
        for i in range(40):
            batch = next(prefetcher)
            if i % 3 == 0:
                obs = batch["obs"]
                holder = {"batch": batch, "view": obs[1:, :2], "tensor": torch.from_numpy(obs)}[keep]
                kept.append((holder, obs.copy()))
                del obs, holder
            del batch
    for holder, copy in kept:
        got = np.asarray(holder["obs"] if keep == "batch" else holder)
        np.testing.assert_array_equal(got, copy[1:, :2] if keep == "view" else copy)


def test_transform_runs_in_the_thread() -> None:
    threads: list[str] = []

    def transform(batch: Batch) -> npt.NDArray[np.int64]:
        threads.append(threading.current_thread().name)
        return batch["x"]

    direct = make()
    with Prefetcher(make(), ARGUMENTS, transform=transform) as prefetcher:
        kept = list(itertools.islice(prefetcher, 10))
    for x in kept:
        np.testing.assert_array_equal(x, direct.sample(8, 4)["x"])
    assert set(threads) == {"drama-prefetch"}


def test_a_failed_draw_raises_and_is_tried_again() -> None:
    buffer = make(rows=0)
    with Prefetcher(buffer, ARGUMENTS) as prefetcher:
        for _ in range(2):
            with pytest.raises(ValueError, match="start"):
                next(prefetcher)
        prefetcher.settle()
        add(buffer, 20)
        with pytest.raises(ValueError, match="start"):
            next(prefetcher)
        assert next(prefetcher)["x"].shape == (8, 4)


def test_an_error_takes_the_place_of_its_batch() -> None:
    calls = itertools.count()

    def transform(batch: Batch) -> Batch:
        if next(calls) == 3:
            raise KeyError("the fourth")
        return batch

    direct = make()
    with Prefetcher(make(), ARGUMENTS, transform=transform) as prefetcher:
        for i in range(8):
            expected = direct.sample(8, 4)
            if i == 3:
                with pytest.raises(KeyError, match="the fourth"):
                    next(prefetcher)
            else:
                assert_equal(next(prefetcher), expected)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="depth: got 0, expected an integer of at least 1"):
        Prefetcher(make(), ARGUMENTS, depth=0)
    with pytest.raises(ValueError, match="'out'"):
        Prefetcher(make(), {**ARGUMENTS, "out": {}})
    for arguments, message in (
        ({"batch_size": 8, "lenght": 4}, "missing a required argument: 'length'"),
        (
            {**ARGUMENTS, "lenght": 4},
            "got batch_size, length, lenght for ReplayBuffer.sample: got an unexpected .*lenght",
        ),
        ({}, "got no arguments for ReplayBuffer.sample: missing a required argument: 'batch_size'"),
        ({3: 4}, r"sample: got \{3: 4\}, expected arguments by name or a function"),
    ):
        with pytest.raises(TypeError, match=message):
            Prefetcher(make(), arguments)  # type: ignore[arg-type]
    for depth in ("2", 1.5, None):
        with pytest.raises(TypeError, match=f"depth: got {depth!r}, expected an integer of at least 1"):
            Prefetcher(make(), ARGUMENTS, depth=depth)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="transform: got 3, expected a function of a batch"):
        Prefetcher(make(), ARGUMENTS, transform=3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="buffer: got int, expected a ReplayBuffer"):
        Prefetcher(3, ARGUMENTS)  # type: ignore[call-overload]
    with Prefetcher(make(), ARGUMENTS, depth=np.int64(1)) as prefetcher:  # type: ignore[call-overload]
        next(prefetcher)


def running() -> int:
    return sum(thread.name == "drama-prefetch" for thread in threading.enumerate())


@pytest.mark.timeout(30)
def test_closing_never_hangs() -> None:
    for taken in range(4):
        for wait in (0.0, 0.01):
            prefetcher = Prefetcher(make(), ARGUMENTS)
            for _ in range(taken):
                next(prefetcher)
            time.sleep(wait)
            prefetcher.close()
            prefetcher.close()
            prefetcher.settle()
            assert list(prefetcher) == []
    failing = Prefetcher(make(rows=0), ARGUMENTS)
    failing.close()
    with pytest.raises(KeyError), Prefetcher(make(), ARGUMENTS):
        raise KeyError
    assert running() == 0


@pytest.mark.timeout(30)
def test_closing_wakes_a_caller_that_waits() -> None:
    gate = threading.Event()
    ended = threading.Event()

    def transform(batch: Batch) -> Batch:
        gate.wait()
        return batch

    prefetcher = Prefetcher(make(), ARGUMENTS, transform=transform)

    def consume() -> None:
        assert list(prefetcher) == []
        ended.set()

    consumer = threading.Thread(target=consume)
    consumer.start()
    closer = threading.Thread(target=prefetcher.close)
    closer.start()
    assert ended.wait(10)
    gate.set()
    closer.join()
    consumer.join()
    assert running() == 0


def test_a_transform_may_close() -> None:
    holder: list[Prefetcher[Batch]] = []
    there = threading.Event()

    def transform(batch: Batch) -> Batch:
        there.wait()
        holder[0].close()
        return batch

    holder.append(Prefetcher(make(), ARGUMENTS, transform=transform))
    there.set()
    assert list(holder[0]) == []


def test_a_forgotten_prefetcher_stops() -> None:
    prefetcher = Prefetcher(make(), ARGUMENTS)
    next(prefetcher)
    del prefetcher
    gc.collect()
    assert running() == 0


END = """
import numpy as np
from drama.replay import Prefetcher, ReplayBuffer
import sys
assert "torch" not in sys.modules
buffer = ReplayBuffer(2000, {"x": ((10000,), np.uint8)})
no = np.zeros((2000, 1), bool)
buffer.add_block(x=np.zeros((2000, 1, 10000), np.uint8), terminated=no, truncated=no)
prefetcher = Prefetcher(buffer, dict(batch_size=64, length=16))
next(prefetcher), next(prefetcher)
print("end")
"""


def test_the_interpreter_ends_while_a_batch_is_drawn() -> None:
    done = subprocess.run([sys.executable, "-c", END], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_after_a_fork_the_prefetcher_says_so() -> None:
    with Prefetcher(make(), ARGUMENTS) as prefetcher:
        child = os.fork()
        if child == 0:
            try:
                next(prefetcher)
            except RuntimeError as error:
                prefetcher.close()
                os._exit(7 if "fork" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        next(prefetcher)


def test_arrays_cross_by_dlpack_without_a_copy() -> None:
    torch = pytest.importorskip("torch")
    batch = make().sample(8, 4)
    for name in ("obs", "x", "weights", "indices"):
        array = batch[name]
        for other in (np.from_dlpack(array), torch.from_dlpack(array)):
            np.testing.assert_array_equal(np.asarray(other), array)
            array.flat[0] += 1
            assert np.asarray(other).flat[0] == array.flat[0]


def test_tensors_share_memory_and_are_pinned_where_cuda_is() -> None:
    torch = pytest.importorskip("torch")
    batch = make().sample(8, 4)
    tensors = to_torch(batch)
    assert tensors.keys() == batch.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.numpy(), batch[name])
        assert tensor.data_ptr() == batch[name].ctypes.data
        assert str(tensor.dtype) == f"torch.{batch[name].dtype}"
    cuda = torch.cuda.is_available()
    for tensor in to_torch(batch, pin=True).values():
        assert tensor.is_pinned() == cuda
    device = "cuda" if cuda else "cpu"
    moved = to_torch(batch, device=device, pin=True)
    for name, tensor in moved.items():
        assert tensor.device.type == device
        np.testing.assert_array_equal(tensor.cpu().numpy(), batch[name])


def test_tensors_of_prefetched_batches() -> None:
    pytest.importorskip("torch")
    direct = make()
    with Prefetcher(make(), ARGUMENTS, transform=partial(to_torch, device="cpu")) as prefetcher:
        kept = list(itertools.islice(prefetcher, 12))
    for tensors in kept:
        np.testing.assert_array_equal(tensors["obs"].numpy(), direct.sample(8, 4)["obs"])
