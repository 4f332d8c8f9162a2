"""What several tests need: a tiny config, finished runs, a small disk."""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    import torch
except ImportError:  # the tests of the replay run where NumPy alone is installed
    torch = None  # type: ignore[assignment]

from drama.config import Config, preset

collect_ignore = [] if importlib.util.find_spec("gymnasium") else ["replay/test_writer.py"]

# A shell ignores SIGINT in what it runs in the background, and that is inherited: some tests send one.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The tiny networks gain nothing from a second thread, and on a busy machine it would make them crawl.
if torch is not None:
    torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def debug() -> Config:
    """The debug preset on the CPU."""
    return dataclasses.replace(preset("debug"), device="cpu")


@pytest.fixture(scope="session")
def pong_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `debug` run on Pong, made by the command line."""
    from drama.cli import main

    run = tmp_path_factory.mktemp("runs") / "pong"
    with pytest.raises(SystemExit) as stop:
        main(["train", "Pong", "--preset", "debug", "--device", "cpu", "--run", str(run)])
    assert not stop.value.code
    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    try:
        mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)]
        done = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield path
    gc.collect()
    subprocess.run(["umount", str(path)], check=True)
