"""Commands that work when they are pasted into a shell, also in a clone whose environment is not active."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_at_shell = False


@contextmanager
def at_shell() -> Iterator[None]:
    """Until its end, a person is at the command line, and not in Python."""
    global _at_shell
    before, _at_shell = _at_shell, True
    try:
        yield
    finally:
        _at_shell = before


def either(shell: str, python: str) -> str:
    """The words for where the person is."""
    return shell if _at_shell else python


def resume(run: object, *more: object) -> str:
    """How to go on with a run: a command line, or a call of `drama.train`."""
    return either(f"`{command('train', '--resume', run, *more)}`", f"drama.train(env, run={str(run)!r}, resume=True)")


def command(*words: object) -> str:
    """The command line `drama WORDS…` of this environment."""
    return " ".join([program("drama"), *(shlex.quote(str(word)) for word in words)])


def program(name: str) -> str:
    """The console script `name` of this environment: by its name alone where a shell finds it so, else by its path."""
    folder = Path(sys.executable).parent
    own, found = shutil.which(name, path=str(folder)), shutil.which(name)
    if own is None or (found is not None and Path(found).parent.resolve() == folder.resolve()):
        return name
    return _from_here(own)


def install(extra: str) -> str:
    """The command that brings what an extra needs into this environment; in a clone it finds the package there."""
    python = _from_here(sys.executable)
    pip = f"{python} -m pip install" if importlib.util.find_spec("pip") else f"uv pip install --python {python}"
    return f"{pip} 'drama-rl[{extra}]'"


@contextmanager
def needed_by(name: str, extra: str) -> Iterator[None]:
    """Name `name` and the extra that it needs where a package is missing inside.

    Raises:
        ModuleNotFoundError: a package is missing; with its name, as before.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "drama").partition(".")[0] == "drama":
            raise
        message = f"{name} needs the package {error.name}: `{install(extra)}` brings it"
        raise ModuleNotFoundError(message, name=error.name) from error


def _from_here(path: str) -> str:
    """A path as seen from the working folder, where it lies in a folder below that."""
    below = Path(path).is_relative_to(Path.cwd()) and Path(path).parent != Path.cwd()
    return shlex.quote(os.path.relpath(path) if below else path)
