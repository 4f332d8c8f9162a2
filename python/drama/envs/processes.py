"""Worker processes as their parent sees them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.spawn import get_executable
from typing import Any

import cloudpickle
import gymnasium
from gymnasium.vector.utils import clear_mpi_env_vars

from drama._native import VectorBoard
from drama.envs.group import EnvError, describe
from drama.envs.worker import CLOSE

# A fresh interpreter rather than a fork, which would copy locked locks of other threads, or `multiprocessing`'s spawn,
# which would run the main script again.
BOOT = """\
import json, sys
_, known, arguments = sys.argv
sys.path[:], sys.argv[:] = json.loads(known)
from drama.envs.worker import main
main(*json.loads(arguments))
"""
POLL_SECONDS = 0.1


def unreadable(cause: Exception) -> ValueError:
    """What is wrong with what a worker sent, for which unpickling raised `cause`."""
    error = ValueError("what an environment gave came from a worker process, and cannot be unpickled here")
    error.__cause__ = cause
    return error


class WorkerDied(RuntimeError):
    """A worker process ended by itself or was killed. `env_ids` are the environments it stepped."""

    def __init__(self, message: str, env_ids: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.env_ids = tuple(env_ids)


class Worker:
    """One worker process. It steps what is posted to it, and takes orders.

    Args:
        board: shared memory; to be replaced by the one with regions.
        number: of the worker.
        shares: number of environments of each worker.
        crowded: whether there are more processes than cores.

    Raises:
        OSError: the system starts no process.
    """

    def __init__(self, board: VectorBoard, number: int, shares: list[int], crowded: bool) -> None:
        first = sum(shares[:number])
        self.number = number
        self.env_ids = range(first, first + shares[number])
        self.board = board
        self._dismissed = False
        board.forget(number)
        fd = board.fd
        assert fd is not None
        known, arguments = json.dumps([sys.path, sys.argv]), json.dumps([number, os.getpid(), fd, shares, crowded])
        try:
            with clear_mpi_env_vars():
                self.process = subprocess.Popen(
                    [os.fsdecode(get_executable()), "-c", BOOT, known, arguments],
                    pass_fds=(fd,),
                    stdin=subprocess.DEVNULL,
                )
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            raise OSError(
                error.errno,
                f"num_workers: no file descriptor is left for worker {number} of {len(shares)}; `ulimit -n`"
                " raises their number, fewer workers need fewer",
            ) from error

    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def death(self) -> WorkerDied:
        """What to raise for a worker whose process has ended."""
        code = self.process.wait()
        try:
            how = f"exited with code {code}" if code >= 0 else f"was killed by signal {signal.Signals(-code).name}"
        except ValueError:
            how = f"was killed by signal {-code}"
        pid, ids = self.process.pid, self.env_ids
        which = f"environment {ids[0]}" if len(ids) == 1 else f"environments {ids[0]} to {ids[-1]}"
        return WorkerDied(f"worker {self.number} (process {pid}, {which}) {how}", ids)

    def order(self, order: bytes) -> None:
        """Ask for a call of the worker's `EnvGroup` that `encode` gave, whose result `receive` gives."""
        self.board.order(self.number, order)

    def receive(self, deadline: float | None = None) -> Any:
        """The answer to an order. Raises what went wrong in the worker; WorkerDied; TimeoutError after `deadline` on
        the monotonic clock."""
        answer = self._answer(deadline)
        try:
            value, error, cause = cloudpickle.loads(answer)
        except Exception as failure:
            raise EnvError(self.env_ids[0], describe(unreadable(failure))) from failure
        if error is not None:
            raise error from cause
        return value

    def settle(self, deadline: float | None = None) -> None:
        """Wait for the answer to an order that was cut short, and forget it. Raises TimeoutError as `receive`."""
        with contextlib.suppress(WorkerDied):
            if self.board.owes(self.number):
                self._answer(deadline)

    def _answer(self, deadline: float | None) -> bytes:
        while True:
            left = POLL_SECONDS if deadline is None else min(POLL_SECONDS, max(deadline - time.monotonic(), 0.0))
            dead = self.is_dead()  # looked at first: it may have answered just before
            answer = self.board.take_answer(self.number, 0.0 if dead else left)
            if answer is not None:
                return answer
            if dead:
                raise self.death()
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError

    def dismiss(self, deadline: float | None) -> None:
        """Let the worker close its environments and end, once it has answered what it was asked before."""
        with contextlib.suppress(TimeoutError):
            self.settle(deadline)
            self._dismissed = True
            self.order(CLOSE)

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def end(self, deadline: float | None) -> None:
        """Wait for its end; kill it after `deadline` on the monotonic clock. Raises what went wrong where it was
        dismissed."""
        try:
            self.process.wait(None if deadline is None else max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return self.kill()
        if self._dismissed:
            with contextlib.suppress(WorkerDied):
                self.receive()
        return None

    def disown(self) -> None:
        """In a fork of the parent: the process is not ours to wait for."""
        self.process.returncode = 0


def encode_make(first: int, env_fns: Sequence[Callable[[], gymnasium.Env[Any, Any]]]) -> bytes:
    """The first order of a worker, with the functions pickled together, so that what they share is there once.

    Raises ValueError that names the function which cannot be pickled."""
    try:
        pickled = cloudpickle.dumps(list(env_fns))
    except Exception as error:
        index, cause = _unpicklable(env_fns) or (0, error)
        raise ValueError(
            f"env_fns[{first + index}]: cannot be pickled to make the environment in a worker process: {_why(cause)};"
            " num_workers=0 needs no pickling"
        ) from error
    return encode("make", own_specs(), pickled)


def _unpicklable(env_fns: Sequence[Any]) -> tuple[int, Exception] | None:
    """The first function that cannot be pickled, and why."""
    for index, env_fn in enumerate(env_fns):
        try:
            cloudpickle.dumps(env_fn)
        except Exception as error:
            return index, error
    return None


def encode(method: str, *arguments: Any) -> bytes:
    """A call of a worker's `EnvGroup`. Raises ValueError that names what cannot be pickled."""
    try:
        return cloudpickle.dumps((method, arguments))
    except Exception as error:
        raise ValueError(f"{method}: its arguments cannot be sent to a worker process: {_why(error)}") from error


def _why(error: BaseException) -> str:
    """What an exception says, or its type where it says nothing."""
    return str(error) or type(error).__name__


def own_specs() -> list[bytes]:
    """What this program has registered with Gymnasium, as far as it can be pickled: a worker knows only what packages
    register when they are imported."""
    known = ("gymnasium.", "ale_py.", "drama.", "shimmy.")
    specs = []
    for spec in gymnasium.registry.values():
        entry = spec.entry_point
        if isinstance(entry, str) and entry.startswith(known):
            continue
        with contextlib.suppress(Exception):
            specs.append(cloudpickle.dumps(spec))
    return specs
