"""Install PyTorch's build for the CPU where no GPU could use the default one, whose CUDA libraries are most of it.

Python's index has one build of PyTorch for Linux, with CUDA. PyTorch's own index has a smaller one; where it cannot be
reached, or lacks the version of the lock, this says so, and what is installed next brings the default one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
INDEX = os.environ.get("TORCH_INDEX", "")  # where the small build is; empty: take the default one
SIZES = "about 5.6 GB on the disk, 4.0 of them CUDA libraries and Triton"


def gpu() -> bool:
    """Whether there is a GPU that PyTorch's default build for Linux could use."""
    return shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia").exists() or Path("/dev/dxg").exists()


def main() -> None:
    if sys.platform != "linux" or find_spec("torch"):
        return  # elsewhere the default build is the small one
    if gpu():
        print(f"there is a GPU: PyTorch with CUDA takes {SIZES}")
        return
    if INDEX:
        print(f"no GPU: looking for PyTorch's build for the CPU at {INDEX}")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
        only = ["--index-url", INDEX, "--timeout", "15", "--retries", "0", "--constraint", str(LOCK), "torch"]
        done = subprocess.run([*pip, *only], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        lines = done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
        print(f"that is not to be had ({lines[-1].removeprefix('ERROR: ')})")
    print(f"installing the default build, which takes {SIZES}; `make TORCH_INDEX=URL` asks another index")


if __name__ == "__main__":
    main()
