"""The set-up of a clone: what it says where something is missing, and which PyTorch it takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import venv
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder of programs in which there is neither Rust nor a C compiler."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("make", "sh", "find", "date", "mkdir", "touch"):
        found = shutil.which(name)
        if found is None:
            pytest.skip(f"there is no {name}")
        (programs / name).symlink_to(found)
    return programs


def make(programs: Path, target: str) -> list[str]:
    """What `make` says as it fails."""
    arguments = ["make", f"PYTHON={sys.executable}", f"VENV={programs / 'venv'}", target]
    env = {"PATH": str(programs)}
    done = subprocess.run(arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode
    assert not (programs / "venv").exists()
    return done.stderr.splitlines()


@pytest.mark.parametrize("target", ["demo", "test", "build", "wheel"])
def test_make_without_rust_says_what_brings_it(bare: Path, target: str) -> None:
    rust, compiler, stopped = make(bare, target)
    assert re.fullmatch(r"Rust \d\.\d+ or newer is needed \(found: none\): https://rustup.rs brings it", rust)
    assert compiler.startswith("a C compiler is needed (found: no cc)")
    assert stopped.startswith("make: ***")


@pytest.mark.parametrize("says", ["cargo 1.70.0 (ec8a8a0ca 2023-04-25)", "error: no default toolchain configured"])
def test_make_with_an_old_rust_says_which_is_needed(bare: Path, says: str) -> None:
    cargo = bare / "cargo"
    cargo.write_text(f"#!/bin/sh\necho '{says}'\n")
    cargo.chmod(0o755)
    (bare / "cc").symlink_to(cargo)
    rust, _ = make(bare, "demo")
    wanted = re.search(r'rust-version = "(.*)"', (ROOT / "Cargo.toml").read_text())
    assert wanted is not None
    assert rust == f"Rust {wanted[1]} or newer is needed (found: {says}): https://rustup.rs brings it"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[str]:
    """A package index with a PyTorch for the CPU, of the version in the lock: a wheel without anything in it."""
    versions = re.findall(r"^torch==(\S+)( ; .*)?$", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    folder = tmp_path / "index" / "torch"
    folder.mkdir(parents=True)
    for number, _ in versions:
        with zipfile.ZipFile(folder / f"torch-{number}+cpu-py3-none-any.whl", "w") as wheel:
            info = f"torch-{number}+cpu.dist-info"
            wheel.writestr("torch/__init__.py", "")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {number}+cpu\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    serve = partial(SimpleHTTPRequestHandler, directory=tmp_path / "index")
    server = ThreadingHTTPServer(("127.0.0.1", 0), serve)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the default build is the small one")
@pytest.mark.skipif(shutil.which("nvidia-smi") is not None, reason="there is a GPU")
def test_without_a_gpu_the_small_pytorch_is_taken_where_there_is_one(tmp_path: Path, index: str) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"

    def run(*arguments: str, **env: str) -> str:
        command: list[str | Path] = [python, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=True)
        return done.stdout

    said = run("scripts/cpu_torch.py", TORCH_INDEX=index.rpartition(":")[0] + ":1")
    assert "not to be had" in said
    assert "installing the default build, which takes about 5.6 GB" in said
    said = run("scripts/cpu_torch.py", TORCH_INDEX=index)
    assert "not to be had" not in said
    assert "+cpu" in run("-c", "from importlib.metadata import version; print(version('torch'))")
    # What `make` installs next finds it good enough, although the lock names the version without `+cpu`.
    assert "would install" not in run(
        *("-m", "pip", "install", "--dry-run", "--no-index", "--constraint", "requirements.lock", "torch>=2.4")
    )
    assert run("scripts/cpu_torch.py", TORCH_INDEX=index) == ""
