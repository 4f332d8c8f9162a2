"""What is handed out: addresses in the description, one version, workflows as they are meant."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import drama

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from release import absolute_links, with_urls  # noqa: E402

HOME = "https://example.org/someone/drama"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[pages](docs/learning.md)", f"[pages]({HOME}/blob/v1/docs/learning.md)"),
        ("![dream](docs/a.png)", f"![dream]({HOME}/raw/v1/docs/a.png)"),
        ("[paper](https://arxiv.org/abs/2410.08893), [here](#start)", None),
        ("batch[`obs`](x) and a[0](b)", f"batch[`obs`]({HOME}/blob/v1/x) and a[0]({HOME}/blob/v1/b)"),
    ],
)
def test_links_of_the_description_lead_somewhere_from_anywhere(text: str, expected: str | None) -> None:
    assert absolute_links(text, HOME, "v1") == (expected or text)


def test_no_link_of_the_readme_stays_relative_and_each_names_a_file() -> None:
    text = (ROOT / "README.md").read_text()
    targets = re.findall(rf"\]\({HOME}/(?:blob|raw)/v1/([^)#]+)", absolute_links(text, HOME, "v1"))
    assert targets
    assert all((ROOT / target).exists() for target in targets)
    assert not re.search(r"\]\((?!https?://|#)", absolute_links(text, HOME, "v1"))


def test_urls_are_added_to_the_project() -> None:
    tomllib = pytest.importorskip("tomllib")
    before = (ROOT / "pyproject.toml").read_text()
    after = tomllib.loads(with_urls(before, HOME, "v1"))
    urls = after["project"].pop("urls")
    assert urls["Changelog"] == f"{HOME}/blob/v1/CHANGELOG.md"
    assert urls["Paper"] == tomllib.loads(before)["project"]["urls"]["Paper"]
    assert after == {**tomllib.loads(before), "project": after["project"]}


def test_there_is_one_version() -> None:
    from drama._native import __version__ as native_version

    found = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.MULTILINE)
    assert found is not None
    assert drama.__version__ == native_version == found[1]
    assert f"\n## {found[1]}" in (ROOT / "CHANGELOG.md").read_text()


def test_authors_are_those_of_the_licence() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["authors"] == [{"name": "the drama authors"}]
    assert "Copyright (c) 2026 the drama authors" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize(("steps", "said"), [(["sdits"], "no step 'sdits'"), (["describe"], "release workflow only")])
def test_a_step_that_cannot_be_is_refused(steps: list[str], said: str, tmp_path: Path) -> None:
    command: list[str | Path] = [sys.executable, ROOT / "scripts" / "release.py", "--dist", tmp_path, *steps]
    done = subprocess.run(command, env={}, capture_output=True, text=True, check=False)
    assert done.returncode
    assert said in done.stderr


@pytest.mark.parametrize("name", ["ci.yml", "release.yml"])
def test_workflows_pin_what_they_run_and_hold_no_credentials(name: str) -> None:
    """zizmor sees more, where it is installed (`python scripts/release.py workflows`)."""
    text = (ROOT / ".github" / "workflows" / name).read_text()
    uses = re.findall(r"uses: (\S+)", text)
    assert uses
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}", action) for action in uses)
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
    assert re.search(r"^permissions: \{\}$", text, re.MULTILINE)
    assert "secrets." not in text
