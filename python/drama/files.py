"""Writing files so that a kill at any instant leaves the old or the new one, and one writer at a time."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from drama.hints import either, resume

WEIGHTS = "model.safetensors"
"""The file of an export with its networks."""

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two writers apart there
    fcntl = None  # type: ignore[assignment]


def check_run(run: Path) -> None:
    """Raise ValueError where there is no such folder."""
    if not run.is_dir():
        raise ValueError(f"{run}: no such run folder")


def check_new(run: Path) -> None:
    """Raise ValueError where a run cannot begin, as there is something."""
    if run.exists():
        another = either("--run NAME", "run=NAME")
        raise ValueError(f"{run}: this run folder exists; {resume(run)} goes on with it, {another} starts another")


def write_atomically(path: Path, text: str) -> None:
    """Replace the text of a small file."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)  # rather than written to: it may be a link to somewhere else
    with temporary.open("x") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def fsync_folder(path: Path) -> None:
    """Make names that were created or replaced in a folder last through a power cut, where the system can."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def locked(folder: Path, doing: str = "training") -> Iterator[None]:
    """Keep other processes from `doing` the same in `folder`. The lock is gone with its owner, however that ends.

    Raises ValueError that names the owner where there is one.
    """
    path = folder / ".lock"
    if path.is_symlink():
        raise ValueError(f"{path}: is a link, which no lock of this package is; remove it")
    with path.open("a+") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                raise ValueError(f"{folder}: {owner} is {doing} in this folder; wait for its end, or stop it") from None
            except OSError:  # a file system that has no locks
                pass
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
