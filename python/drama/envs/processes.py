"""Worker processes as their parent sees them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.spawn import get_executable
from typing import TYPE_CHECKING, Any

import cloudpickle
import gymnasium
from gymnasium.vector.utils import clear_mpi_env_vars

from drama._native import VectorBoard
from drama.envs.worker import EnvError, Layout

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

# A fresh interpreter rather than a fork, which would copy locked locks of other threads, or `multiprocessing`'s spawn,
# which would run the main script again.
BOOT = """\
import json, sys
_, known, *numbers = sys.argv
sys.path[:], sys.argv[:] = json.loads(known)
from drama.envs.worker import main
main(*map(int, numbers))
"""
POLL_SECONDS = 0.1


class WorkerDied(RuntimeError):
    """A worker process ended by itself or was killed. `env_ids` are the environments it stepped."""

    def __init__(self, message: str, env_ids: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.env_ids = tuple(env_ids)


class Worker:
    """One worker process, which starts to make its environments at once; `wait_ready` tells how that went.

    Args:
        board: shared memory.
        layout: what lies in it.
        number: of the worker.
        shares: number of environments of each worker.
        env_fns: the functions that make this worker's environments, pickled together: what they share is sent once.
        autoreset: value of the autoreset mode.
        crowded: whether there are more processes than cores.
    """

    def __init__(
        self,
        board: VectorBoard,
        layout: Layout,
        number: int,
        shares: list[int],
        env_fns: bytes,
        autoreset: str,
        crowded: bool,
    ) -> None:
        from multiprocessing.connection import Connection

        first = sum(shares[:number])
        self.number = number
        self.env_ids = range(first, first + shares[number])
        self._board = board
        board.forget(number)
        fd = board.fd
        assert fd is not None
        ours, theirs = socket.socketpair()
        with theirs:
            self.connection: Connection[Any, Any] = Connection(ours.detach())
            numbers = [str(theirs.fileno()), str(os.getpid())]
            try:
                with clear_mpi_env_vars():
                    self.process = subprocess.Popen(
                        [os.fsdecode(get_executable()), "-c", BOOT, json.dumps([sys.path, sys.argv]), *numbers],
                        pass_fds=(theirs.fileno(), fd),
                        stdin=subprocess.DEVNULL,
                    )
            except BaseException:
                self.connection.close()
                raise
        setup = {
            "worker": number,
            "first": first,
            "shares": shares,
            "layout": layout,
            "env_fns": env_fns,
            "registered": own_specs(),
            "autoreset": autoreset,
            "crowded": crowded,
            "fd": fd,
        }
        try:
            data = cloudpickle.dumps(setup)
        except BaseException:
            self.dismiss()
            raise
        self._send(data)

    def _send(self, data: bytes) -> None:
        try:
            self.connection.send_bytes(data)
        except OSError:
            raise self.death() from None

    def is_dead(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def death(self) -> WorkerDied:
        """What to raise for a worker whose process has ended or is about to."""
        try:
            code = self.process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:  # it closed the connection and goes on
            self.process.kill()
            code = self.process.wait()
        try:
            how = f"exited with code {code}" if code >= 0 else f"was killed by signal {signal.Signals(-code).name}"
        except ValueError:
            how = f"was killed by signal {-code}"
        pid, ids = self.process.pid, self.env_ids
        which = f"environment {ids[0]}" if len(ids) == 1 else f"environments {ids[0]} to {ids[-1]}"
        return WorkerDied(f"worker {self.number} (process {pid}, {which}) {how}", ids)

    def receive_bytes(self, deadline: float | None = None) -> bytes:
        """The next message. Raises WorkerDied, and TimeoutError after `deadline` on the monotonic clock."""
        try:
            while True:
                left = POLL_SECONDS if deadline is None else min(POLL_SECONDS, max(deadline - time.monotonic(), 0))
                if self.connection.poll(left):
                    return self.connection.recv_bytes()
                if self.is_dead():
                    raise self.death()
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError
        except (EOFError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise self.death() from None

    def receive(self, deadline: float | None = None) -> Any:
        """The answer to an order. Raises what went wrong in the worker."""
        kind, *values = cloudpickle.loads(self.receive_bytes(deadline))
        if kind == "failed":
            raise EnvError(*values)
        if kind == "refused":
            raise ValueError(*values)
        return values[0]

    def order(self, data: bytes) -> None:
        """Ask for a call of the worker's `EnvGroup` that `encode` gave, whose result `receive` gives. None of its
        environments may be posted."""
        self._board.summon(self.number)  # before the order, of which not all may fit into the pipe at once
        self._send(data)

    def dismiss(self) -> None:
        """Let the worker close its environments and end."""
        self.connection.close()
        self._board.summon(self.number)

    def wait(self, deadline: float | None) -> None:
        """Wait for its end; kill it after `deadline` on the monotonic clock."""
        try:
            self.process.wait(None if deadline is None else max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def disown(self) -> None:
        """In a fork of the parent: the process is not ours to wait for."""
        self.connection.close()
        self.process.returncode = 0


def encode(method: str, *arguments: Any) -> bytes:
    """A call of a worker's `EnvGroup`. Raises ValueError that names what cannot be pickled."""
    try:
        return cloudpickle.dumps((method, arguments))
    except Exception as error:
        raise ValueError(f"{method}: its arguments cannot be sent to a worker process: {why(error)}") from error


def why(error: BaseException) -> str:
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
