"""The abi3 wheel in an empty environment, with NumPy alone."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_needs_numpy_only(tmp_path: Path) -> None:
    build: list[str | Path] = [
        Path(sys.executable).parent / "maturin",
        "build",
        "--release",
        "--quiet",
        "--out",
        tmp_path,
    ]
    subprocess.run(build, cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "abi3" in wheel.name
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    use = [python, ROOT / "scripts" / "smoke.py"]
    done = subprocess.run(use, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert done.stdout == "fine\n", done.stderr
