"""A process that forks while other threads are in the buffer: its child has a buffer that works, and nothing hangs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from drama.replay import DynamicFrequency, Prefetcher, Prioritized, ReplayBuffer

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]

FRAME = 1 << 14


def add(buffer: ReplayBuffer, rows: int) -> None:
    t = (buffer.total + np.arange(rows))[:, None]
    no = np.zeros((rows, 1), bool)
    obs = (t % 251).astype(np.uint8)[..., None].repeat(FRAME, 2)
    buffer.add_block(t=t, obs=obs, terminated=no, truncated=no)


def in_child(work: Callable[[], None]) -> None:
    """Do `work` in a fork of this process, which has 20 seconds for it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(20)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with status {status}"


@contextmanager
def threads(*work: Callable[[], object]) -> Iterator[None]:
    """Do each of `work` again and again beside."""
    stop, errors = threading.Event(), []

    def repeat(work: Callable[[], object]) -> None:
        try:
            while not stop.is_set():
                work()
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=repeat, args=(one,)) for one in work]
    for thread in running:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in running:
            thread.join()
    assert not errors


def test_the_child_of_a_busy_process_has_a_buffer_that_works(tmp_path: Path) -> None:
    buffer = ReplayBuffer(400, {"t": ((), np.int64), "obs": ((FRAME,), np.uint8)})
    add(buffer, 400)
    prioritized, frequency = Prioritized(), DynamicFrequency()
    samplers = (None, frequency.world_model, prioritized)

    def check() -> None:
        for sampler in samplers:
            batch = buffer.sample(16, 8, sampler=sampler)
            assert (np.diff(batch["t"], axis=1) == 1).all()
            assert (batch["obs"] == (batch["t"] % 251)[..., None]).all()
        prioritized.update_priorities(batch["indices"], np.ones(16))

    def child() -> None:
        total = buffer.total
        add(buffer, 5)
        check()
        buffer.save(tmp_path / "child")
        assert ReplayBuffer.load(tmp_path / "child").total == total + 5

    check()
    with threads(
        lambda: add(buffer, 40),
        lambda: buffer.sample(64, 16),
        lambda: buffer.sample(64, 16, sampler=prioritized),
        lambda: buffer.save(tmp_path / "parent"),
    ):
        for _ in range(12):
            in_child(child)
            check()
    check()


def test_a_prefetcher_of_the_parent_says_so() -> None:
    buffer = ReplayBuffer(400, {"t": ((), np.int64), "obs": ((FRAME,), np.uint8)})
    add(buffer, 400)
    with Prefetcher(buffer, {"batch_size": 16, "length": 8}) as prefetcher:
        next(prefetcher)

        def child() -> None:
            for use in (prefetcher.settle, prefetcher.__next__):
                with pytest.raises(RuntimeError, match="make a new one after a fork"):
                    use()
            prefetcher.close()

        for _ in range(5):
            in_child(child)
            next(prefetcher)
