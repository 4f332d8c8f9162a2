"""The pages: their code runs, their commands parse, nothing public is missing, figures and links are current."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import drama
from drama.cli import arguments, sweep
from drama.cli.main import COMMANDS
from drama.config import Config, preset

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>slow|compiled) -->\n)?^```(?P<kind>\w+)\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE
)
"""Code. What is marked `slow` runs with the slow tests; `compiled` does not run, as it stands for more."""


PEER = re.compile(r"^(?:import|from) (cpprb|torchrl|stable_baselines3)\b", re.MULTILINE)
"""Packages that pages show beside ours; what needs one that is not installed is left out."""


def script(name: str) -> ModuleType:
    """A script in docs/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code_of(page: Path, *marks: str | None) -> list[str]:
    """The Python blocks of a page with any of these marks."""
    found = [block for block in BLOCK.finditer(page.read_text()) if block["kind"] == "python"]
    return [block["code"] for block in found if block["mark"] in marks]


def run(code: list[str], folder: Path, timeout: float) -> None:
    """Run the blocks of a page, in their order and as one script, beside a run that a page speaks of."""
    code = [block for block in code if all(map(importlib.util.find_spec, PEER.findall(block)))]
    (folder / "runs/pong-cpu-seed0").mkdir(parents=True)
    shutil.copy(ROOT / "results/pong-cpu-0/metrics.jsonl", folder / "runs/pong-cpu-seed0")
    script = folder / "page.py"
    script.write_text("\n".join(code))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, script], cwd=folder, capture_output=True, text=True, timeout=timeout, env=environment
    )
    assert done.returncode == 0, done.stderr


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page, None)], ids=named)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    run(code_of(page, None), tmp_path, 110)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page, "slow")], ids=named)
def test_the_long_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    run(code_of(page, None, "slow"), tmp_path, 590)


@pytest.mark.parametrize("page", [page for page in PAGES if code_of(page, "compiled")], ids=named)
def test_what_stands_for_more_is_python(page: Path) -> None:
    for code in code_of(page, "compiled"):
        ast.parse(code)


def lines_of(page: Path) -> Iterator[str]:
    """The commands of a page: lines of console blocks after the prompt."""
    for block in BLOCK.finditer(page.read_text()):
        if block["kind"] == "console":
            yield from (line[2:] for line in block["code"].splitlines() if line.startswith("$ "))


@pytest.mark.parametrize("page", [page for page in PAGES if list(lines_of(page))], ids=named)
def test_the_commands_of_a_page_are_those_of_today(page: Path) -> None:
    """Each `drama ...` is taken by the parser of its command, each `make ...` is a target."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for line in lines_of(page):
        program, *rest = shlex.split(line, comments=True)
        if program == "make":
            assert rest[0] in targets, line
        elif Path(program).name == "drama" and rest[0] != "games":
            name, *words = rest
            assert name in COMMANDS, line
            if name == "sweep":
                sweep.arguments(words)
                continue
            kind: Any = getattr(arguments, f"{name.capitalize()}Args")
            if name == "train" and "--resume" in words:
                kind = arguments.ResumeArgs
            if name == "info" and "/" in words[0]:
                kind = arguments.InfoRunArgs
            default = arguments.defaults(kind, preset("cpu")) if issubclass(kind, Config) else None
            arguments.parse(kind, words, name, default)


def test_the_table_of_the_readme_is_that_of_the_results() -> None:
    text = (ROOT / "README.md").read_text()
    assert script("gather").with_summary(text) == text, "python docs/gather.py --readme brings it up to date"


def entries(value: Any) -> Iterator[str]:
    """The pages in the navigation."""
    if isinstance(value, str):
        yield value
    else:
        for part in value.values() if isinstance(value, dict) else value:
            yield from entries(part)


def test_every_page_is_in_the_navigation() -> None:
    pages = set(entries(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    assert {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]} <= pages


def test_the_reference_has_everything_public() -> None:
    told = "\n".join(path.read_text() for path in (ROOT / "docs/api").glob("*.md"))
    listed = set(re.findall(r"^::: (\S+)$", told, re.MULTILINE))
    for module in ("drama", "drama.replay", "drama.envs"):
        names = {f"{module}.{name}" for name in importlib.import_module(module).__all__ if name != "__version__"}
        assert names <= listed, names - listed
    rooms = {Path(drama.__file__).parent / room for room in ("models", "agent", "training", "results")}
    for path in sorted(path for room in rooms for path in room.rglob("*.py")):
        module = ".".join(path.relative_to(Path(drama.__file__).parents[1]).with_suffix("").parts)
        assert module in listed | INNER, f"{module}: in docs/api, or in INNER here"


INNER = {
    "drama.models.__init__",
    "drama.models.sequence.__init__",
    "drama.models.sequence.conv",
    "drama.models.sequence.kernels",
    "drama.models.sequence.ssd",
    "drama.agent.__init__",
    "drama.training.__init__",
    "drama.training.metrics",
    "drama.training.pictures",
    "drama.training.plain",
    "drama.training.progress",
    "drama.results.__init__",
    "drama.results.charts",
    "drama.results.page",
}
"""Modules that nobody calls from outside."""


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<h1 id="top"></h1><a href="b.html#there"></a><a href="https://example.org"></a>')
    (tmp_path / "b.html").write_text('<h1 id="there"></h1><img src="gone.png"><a href="a.html#bottom"></a>')
    assert script("links").broken(tmp_path) == ["b.html: a.html#bottom", "b.html: gone.png"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_site_is_built_without_a_warning_and_all_its_links_lead_somewhere(tmp_path: Path) -> None:
    pytest.importorskip("zensical")
    pytest.importorskip("mkdocstrings_handlers.python")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    gather = [sys.executable, str(ROOT / "docs/gather.py"), str(tmp_path / "target/pages")]
    subprocess.run(gather, check=True, env=environment)
    config = (ROOT / "zensical.toml").read_text()
    (tmp_path / "zensical.toml").write_text(config.replace('["python"]', f'["{ROOT / "python"}"]'))
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert script("links").broken(tmp_path / "target/site") == []
