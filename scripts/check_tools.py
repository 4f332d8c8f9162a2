"""Say what is missing to build this project: Python, Rust, a C compiler. Python 3.6 runs it too, and is told."""

import os
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def wanted(file: str, pattern: str) -> "tuple[int, ...]":
    """The lowest version that one of the project's files asks for."""
    with open(os.path.join(ROOT, file)) as text:
        return version(pattern, text.read())


def version(pattern: str, text: str) -> "tuple[int, ...]":
    """The numbers that the groups of a pattern find in a text; none where it does not match."""
    found = re.search(pattern, text)
    return tuple(int(number) for number in found.groups()) if found else ()


def missing() -> "list[str]":
    """One line for each thing that is missing or too old: what is needed, what is there, what brings it."""
    lines = []
    python = wanted("pyproject.toml", r'requires-python = ">=(\d+)\.(\d+)"')
    if sys.version_info[:2] < python:
        needed, here = "{}.{}".format(*python), "{}.{}".format(*sys.version_info)
        lines.append(f"Python {needed} or newer is needed, this is {here}: `make PYTHON=python{needed}` takes another")
    rust = wanted("Cargo.toml", r'rust-version = "(\d+)\.(\d+)')
    try:
        said = subprocess.check_output(["cargo", "--version"], stderr=subprocess.STDOUT).decode().strip()
    except OSError:
        said = "none"
    except subprocess.CalledProcessError as error:  # rustup without a toolchain
        said = " ".join(error.output.decode().split())
    if version(r"^cargo (\d+)\.(\d+)", said) < rust:
        needed = "{}.{}".format(*rust)
        lines.append(f"Rust {needed} or newer is needed (found: {said}): https://rustup.rs brings it")
    if os.name == "posix" and not shutil.which("cc"):
        brings = "`xcode-select --install`" if sys.platform == "darwin" else "on Debian `apt-get install gcc libc6-dev`"
        lines.append(f"a C compiler is needed (found: no cc): {brings} brings one")
    return lines


if __name__ == "__main__":
    sys.exit("\n".join(missing()) or None)
