"""The abi3 wheel in an empty environment, with NumPy alone."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
USE = """
import importlib.util
import numpy as np
from drama.replay import DynamicFrequency, ReplayBuffer

assert all(importlib.util.find_spec(m) is None for m in ("torch", "gymnasium", "ale_py", "tyro"))
buffer = ReplayBuffer(100, {"obs": ((2,), np.float32)}, num_envs=2, seed=0)
for t in range(60):
    end = np.array([t % 10 == 9, False])
    buffer.add(obs=np.full((2, 2), t, np.float32), terminated=end, truncated=np.zeros(2, bool))
batch = buffer.sample(8, 5, sampler=DynamicFrequency().world_model)
assert batch["obs"].shape == (8, 5, 2)
assert (np.diff(batch["obs"][..., 0]) == 1).all()
print("fine")
"""


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
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    done = subprocess.run([python, "-c", USE], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr
