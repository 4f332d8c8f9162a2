"""Imports between the rooms of the package run one way, and its root imports nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import drama

PACKAGE = Path(drama.__file__).parent
BASE = {"config", "files", "hints", "interface"}
BELOW: dict[str, set[str]] = {
    "config": set(),
    "files": {"hints"},
    "hints": set(),
    "interface": set(),
    "replay": {"hints"},
    "sb3": {"replay", "hints"},
    "envs": BASE,
    "runtime": BASE,
    "models": BASE | {"runtime"},
    "agent": BASE | {"runtime", "models"},
    "training": BASE | {"runtime", "models", "agent", "replay", "envs"},
    "results": BASE | {"runtime", "models", "agent", "replay", "envs", "training"},
    "choosing": BASE | {"runtime", "envs"},
    "api": BASE | {"runtime", "models", "agent", "replay", "envs", "training", "results", "choosing"},
    "sweeps": BASE | {"runtime", "models", "agent", "replay", "envs", "training", "results", "choosing"},
    "__main__": {"cli"},
    "cli": BASE | {"runtime", "models", "agent", "replay", "envs", "training", "results", "choosing", "sweeps"},
}


def imported(path: Path) -> Iterator[str]:
    """The rooms that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "drama" and (room := rest.partition(".")[0]) not in ("__version__", "_native"):
                yield room


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
        return
    assert set(imported(path)) <= BELOW[room] | {room}


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("drama", "numpy torch gymnasium"),
        ("drama.replay", "torch gymnasium"),
        ("drama.envs", "torch"),
        ("drama.choosing", "torch"),
        ("drama.sweeps", "torch ray"),
    ],
)
def test_what_an_import_brings(module: str, heavy: str) -> None:
    code = f"import sys, {module}; print(*set('{heavy}'.split()) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip()
