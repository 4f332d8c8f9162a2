"""What can be checked of a release on one machine: `python scripts/release.py [STEP...]`, by default all of DEFAULT.

The release workflow and `make release-check` run the same steps. `describe`, `version`, `install` and `tests` need only
Python and what they are to try; the others need `pip install --group release`.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
OLDEST = (3, 10)
GLIBC = "manylinux_2_28"
"""Wheels must run where this glibc or a newer one is: Debian 10, RHEL 8, Ubuntu 20.04 and later."""
TESTS = ("pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "scipy>=1.11")
NO_GIL = "ignore:The global interpreter lock:RuntimeWarning"
"""Without a GIL, Python takes it back for this extension, and says so: it is not declared safe without."""


def describe(_dist: Path, _: list[str]) -> None:
    """Put the repository's address into the metadata, and before each link and picture of the description."""
    env = os.environ
    if not all(env.get(name) for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY", "GITHUB_REF_NAME")):
        raise SystemExit("describe: changes README.md and pyproject.toml, in a checkout of the release workflow only")
    repository, ref = f"{env['GITHUB_SERVER_URL']}/{env['GITHUB_REPOSITORY']}", env["GITHUB_REF_NAME"]
    readme, project = ROOT / "README.md", ROOT / "pyproject.toml"
    readme.write_text(absolute_links(readme.read_text(encoding="utf-8"), repository, ref), encoding="utf-8")
    project.write_text(with_urls(project.read_text(encoding="utf-8"), repository, ref), encoding="utf-8")


def absolute_links(text: str, repository: str, ref: str) -> str:
    """Markdown in which links and pictures that are relative to the root of a repository lead there from anywhere."""

    def absolute(found: re.Match[str]) -> str:
        kind = "raw" if found["picture"] else "blob"
        return f"{found['picture']}[{found['text']}]({repository}/{kind}/{ref}/{found['path']})"

    return re.sub(r"(?P<picture>!?)\[(?P<text>[^][]*)\]\((?![a-z]+:|#)(?P<path>[^)\s]+)\)", absolute, text)


def with_urls(project: str, repository: str, ref: str) -> str:
    """A pyproject.toml with the addresses of a repository."""
    urls = {
        "Homepage": repository,
        "Documentation": f"{repository}/tree/{ref}/docs",
        "Changelog": f"{repository}/blob/{ref}/CHANGELOG.md",
        "Issues": f"{repository}/issues",
        "Source": repository,
    }
    lines = "".join(f'{name} = "{url}"\n' for name, url in urls.items())
    head, section, tail = re.split(r"^(\[project\.urls\].*\n)", project, maxsplit=1, flags=re.MULTILINE)
    return f"{head}{section}{lines}{tail}"


def sdist(dist: Path, _: list[str]) -> None:
    """Build the source distribution."""
    _tool("maturin", "sdist", "--out", dist)


def install(dist: Path, _: list[str]) -> None:
    """Install the source distribution into an empty environment, which compiles it, and use it."""
    (source,) = dist.glob("*.tar.gz")
    with _environment(sys.executable) as python:
        _run(python, "-m", "pip", "install", "--quiet", source)
        _run(python, ROOT / "scripts" / "smoke.py")


def wheel(dist: Path, _: list[str]) -> None:
    """Build the abi3 wheel for Linux against an old glibc, by zig's linker."""
    machine = os.uname().machine
    target = ["--zig", "--target", f"{machine}-unknown-linux-gnu", "--compatibility", GLIBC]
    _tool("maturin", "build", "--release", "--out", dist, *target)


def tags(dist: Path, _: list[str]) -> None:
    """Check that each wheel keeps what its name promises: the stable ABI, and the glibc."""
    wheels = sorted(dist.glob("*.whl"))
    if not wheels:
        raise SystemExit(f"{dist}: there are no wheels")
    for path in wheels:
        if "-abi3-" in path.name:
            _tool("abi3audit", "--strict", path)
        promised = re.search(r"manylinux_(\d+)_(\d+)_\w+", path.name)
        if promised is None:
            if "linux_" in path.name and "musllinux_" not in path.name:
                raise SystemExit(f"{path.name}: is for this machine only, no manylinux wheel")
            continue
        if (int(promised[1]), int(promised[2])) > tuple(map(int, GLIBC.split("_")[1:])):
            raise SystemExit(f"{path.name}: wants a glibc newer than that of {GLIBC}")
        with tempfile.TemporaryDirectory() as scratch:  # auditwheel refuses what asks for newer symbols than its tag
            _tool("auditwheel", "repair", "--plat", promised[0], "--only-plat", "--wheel-dir", scratch, path)


def tests(dist: Path, pythons: list[str]) -> None:
    """Install the wheel on each Python, beside NumPy alone; use it, then run the tests of the replay."""
    for interpreter in pythons or [sys.executable, *_pyenv()]:
        with _environment(interpreter) as python:
            pip = [python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:"]
            _run(*pip, "numpy")
            _run(*pip, "--no-index", "--no-deps", "--find-links", dist, "drama-rl")
            _run(python, ROOT / "scripts" / "smoke.py")
            _run(*pip, *TESTS)
            pytest = [python, "-m", "pytest", "-q", "-W", NO_GIL, "-p", "no:cacheprovider", "--timeout", "600"]
            _run(*pytest, "tests/replay")


def metadata(dist: Path, _: list[str]) -> None:
    """Check that the index takes and shows the description of everything in `dist`; all of it is of one version."""
    paths = sorted(path for path in dist.iterdir() if path.suffix in (".whl", ".gz"))
    versions = {re.split("-|\\.tar", path.name)[1] for path in paths}
    if versions != {_version()}:
        raise SystemExit(
            f"{dist}: holds versions {', '.join(sorted(versions)) or 'none'}, the sources are {_version()}"
        )
    _tool("twine", "check", "--strict", *paths)


def version(_dist: Path, _: list[str]) -> None:
    """Check that a tag that is being released is the version of the sources, and stands in the changelog."""
    tagged = os.environ.get("GITHUB_REF_TYPE") == "tag"
    if tagged and os.environ["GITHUB_REF_NAME"] != f"v{_version()}":
        raise SystemExit(f"the tag is {os.environ['GITHUB_REF_NAME']}, the sources are {_version()}")
    dated = r" - \d{4}-\d\d-\d\d" if tagged else ""
    if not re.search(rf"^## {re.escape(_version())}{dated}$", _text("CHANGELOG.md"), re.MULTILINE):
        raise SystemExit(f"CHANGELOG.md has no section '## {_version()} - DATE'")


def workflows(_dist: Path, _: list[str]) -> None:
    """Check the workflow files: permissions, pinned actions, what others could put into them."""
    _tool("zizmor", "--offline", "--persona", "pedantic", "--strict-collection", ROOT / ".github")


STEPS: dict[str, Callable[[Path, list[str]], None]] = {
    step.__name__: step for step in (describe, version, sdist, install, wheel, tags, tests, metadata, workflows)
}
DEFAULT = [step for step in STEPS if step != "describe"]


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _version() -> str:
    """The version of the sources, which Cargo.toml alone holds."""
    found = re.search(r'^version = "(.+)"$', _text("Cargo.toml"), re.MULTILINE)
    assert found is not None
    return found[1]


def _pyenv() -> Iterator[str]:
    """The other Pythons that pyenv has here, as far as the package supports them."""
    if shutil.which("pyenv") is None:
        return
    listed = subprocess.run(["pyenv", "versions", "--bare"], capture_output=True, text=True, check=True).stdout
    root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True).stdout.strip()
    for name in listed.split():
        found = re.match(r"(\d+)\.(\d+)\.", name)
        if found and OLDEST <= (int(found[1]), int(found[2])) != sys.version_info[:2]:
            yield str(Path(root) / "versions" / name / "bin" / "python")


@contextmanager
def _environment(interpreter: str) -> Iterator[str]:
    """The Python of an environment in which nothing is installed."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        if Path(interpreter) == Path(sys.executable):
            venv.create(folder, with_pip=True)
        else:
            _run(interpreter, "-m", "venv", folder)
        yield str(Path(folder) / ("Scripts" if os.name == "nt" else "bin") / "python")


def _tool(name: str, *arguments: str | Path) -> None:
    """Run a program of this environment."""
    program = shutil.which(name, path=str(Path(sys.executable).parent))
    if program is None:
        raise SystemExit(f"{name} is not installed; `{sys.executable} -m pip install --group release` brings it")
    _run(program, *arguments)


def _run(*command: str | Path) -> None:
    """Run a command in the root of the project; the first that fails ends everything."""
    print("$", *command, flush=True)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Programs of this environment find each other, as maturin finds zig.
    clean["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=clean, check=False)
    if done.returncode:
        raise SystemExit(f"{Path(command[0]).name} ended with {done.returncode}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Check a release as far as this machine can.")
    steps = "\n".join(f"{name}: {step.__doc__}" for name, step in STEPS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "steps", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}; by default {', '.join(DEFAULT)}"
    )
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="the folder of what is handed out")
    parser.add_argument(
        "--python", action="append", default=[], help="Pythons for `tests`; by default this and pyenv's"
    )
    parser.epilog = steps
    args = parser.parse_args()
    unknown = [step for step in args.steps if step not in STEPS]
    if unknown:
        parser.error(f"there is no step {unknown[0]!r}, only {', '.join(STEPS)}")
    if not args.steps and args.dist.exists() and any(args.dist.iterdir()):
        parser.error(f"{args.dist} is not empty: what it holds would be checked too; --dist names another folder")
    args.dist.mkdir(parents=True, exist_ok=True)
    for step in args.steps or DEFAULT:
        print(f"== {step}: {STEPS[step].__doc__}", flush=True)
        STEPS[step](args.dist.resolve(), args.python)


if __name__ == "__main__":
    main()
