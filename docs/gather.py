"""Gather the pages of the site into a folder: what is written in docs/, and what is made from the package itself.

`python docs/gather.py [FOLDER]`; `make docs` builds the site from it. `--readme` brings the README's table up to date.
Made here are the command line from its own help, the options from the config, the scores from results/ with the
report's pictures, the list of benchmarks from their docstrings; and the figures of a page go to a page of their own
under benchmarks/.
"""

from __future__ import annotations

import ast
import contextlib
import io
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from drama.cli import main as drama
from drama.cli.main import COMMANDS
from drama.config import PRESETS, Config, flat, option_docs, preset
from drama.results.card import evaluations
from drama.results.report import settings
from drama.results.scores import Evaluation, published_scores

ROOT = Path(__file__).parents[1]
MEASURED = {"replay.md": "Figures", "envs.md": "Speed", "world-model.md": "Speed"}
"""The heading in each page below which its benchmarks are."""
BESIDE = ("Random", "Human", "Drama", "DreamerV3")
BEGIN, END = "<!-- scores: python docs/gather.py --readme -->\n", "<!-- end of scores -->\n"
"""Published scores that stand beside ours."""


def gather(folder: Path) -> None:
    """Write all pages into `folder`, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs", folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for part in ("reference", "results", "benchmarks"):
        (folder / part).mkdir(exist_ok=True)
    for page, heading in MEASURED.items():
        rest, figures = split(read(folder / page), heading)
        write(folder / page, f"{rest}\n## {heading}\n\nThey are on [a page of their own](benchmarks/{page}).\n")
        write(folder / "benchmarks" / page, figures)
    for name, page in (("README", "index"), ("CONTRIBUTING", "contributing"), ("CHANGELOG", "changelog")):
        write(
            folder / f"{page}.md",
            re.sub(r"\]\((https://github\.com/[^)]*/main/)?docs/", "](", read(ROOT / f"{name}.md")),
        )
    for path in folder.rglob("*.md"):
        write(path, linked(read(path), path.relative_to(folder)))
    write(folder / "reference/commands.md", commands())
    write(folder / "reference/options.md", options())
    write(folder / "results/scores.md", scores(folder / "results"))
    write(folder / "benchmarks/index.md", benchmarks())


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def split(text: str, heading: str) -> tuple[str, str]:
    """A page without the section `heading`, and that section as a page."""
    title = text.partition("\n")[0].removeprefix("# ")
    before, found, section = text.partition(f"\n## {heading}\n")
    if not found:
        raise ValueError(f"{title}: has no section {heading!r}")
    section, more, after = section.partition("\n## ")
    section = re.sub(r"^###", "##", section, flags=re.MULTILINE)
    section = re.sub(r"\]\((?!http|#)", "](../", section)
    return before + (f"\n## {after}" if more else "\n"), f"# {title}: benchmarks\n{section}"


def linked(text: str, page: Path) -> str:
    """Links to headings that have gone to a page of their own lead there."""
    up = "../" * (len(page.parts) - 1)
    for name, heading in MEASURED.items():
        text = text.replace(f"({up}{name}#{heading.lower()})", f"({up}benchmarks/{name})")
    return text


def commands() -> str:
    """The command line as it tells of itself."""
    parts = ["# The command line\n\nWhat `drama --help` and each command's own help say.\n", block(help_of([]))]
    for name in COMMANDS:
        parts.append(f"## drama {name}\n")
        if name == "games":
            parts.append(f"Lists the {len(help_of([name]).split())} names that `drama train` takes besides ids.\n")
            continue
        parts.append(block(help_of([name, "--help"])))
    return "\n".join(parts)


def help_of(args: list[str]) -> str:
    """What the command line prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        drama(args)
    return "\n".join(line.rstrip() for line in said.getvalue().strip().splitlines())


def block(text: str) -> str:
    return f"```text\n{text}\n```\n"


def options() -> str:
    """Every field of the config, with its value in the presets."""
    values = {name: flat(preset(name)) for name in PRESETS}
    lines = [
        "# Options",
        "",
        "Every field of the config. `drama train` takes them as options (`--train.batch-size 8`), `drama.train` and the"
        ' tests by name (`options={"train.batch_size": 8}`).',
    ]
    part = None
    for name, text in option_docs().items():
        of = name.rpartition(".")[0] or "run"
        if of != part:
            part = of
            lines += ["", f"## {part}", "", "| option | what it is | in the presets |", "| --- | --- | --- |"]
        given: dict[str, list[str]] = {}
        for one in PRESETS:
            given.setdefault(str(values[one][name]), []).append(one)
        if len(given) == 1 or name == "preset":
            told = f"`{values['paper'][name]}`"
        else:
            told = ", ".join(f"`{value}` {' '.join(of)}" for value, of in given.items())
        lines.append("| {} | {} | {} |".format(f"`{name}`", text.replace("|", "\\|"), told.replace("|", "\\|")))
    return "\n".join(lines) + "\n"


def scores(folder: Path) -> str:
    """The evaluations that lie in results/, beside published scores, and the report's pictures."""
    runs = sorted(path.parent for path in (ROOT / "results").glob("*/config.json"))
    methods = [*BESIDE]
    lines = [
        "# Scores",
        "",
        "Each line is an evaluation at the end of a run that lies in `results/`, with every episode; normalised is"
        " (score - Random) / (Human - Random). One seed says little of a method.",
        "",
        "| run | played | episodes | mean ± std | normalised | " + " | ".join(methods) + " |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(methods),
    ]
    for run in runs:
        config = Config.load(run / "config.json")
        for score in evaluations(run, config.steps):
            known = published_scores().get(config.game, {})
            beside = [f"{known[method].score:.3g}" if method in known else "" for method in methods]
            normalised = score.normalised
            lines.append(
                f"| [{run.name}](#{run.name}) | {score.kind}"
                f" | {len(score.returns)} | {score.mean:.1f} ± {score.std:.1f}"
                f" | {'' if normalised is None else f'{normalised:.0%}'} | {' | '.join(beside)} |"
            )
    lines += ["", "`python/drama/results/atari100k_scores.csv` says how far each published score is confirmed.", ""]
    lines += pictures(runs, folder)
    for run in runs:
        config = Config.load(run / "config.json")
        base = flat(preset(config.preset))
        changed = [
            f" --{name.replace('_', '-')} {value}"
            for name, value in flat(config).items()
            if "." in name and not name.startswith("log.") and value != base[name] and value is not None
        ]
        lines += ["", f"## {run.name}", "", "Options that differ from today's preset are named:", ""]
        command = f"drama train {config.game} --preset {config.preset} --seed {config.seed} --steps {config.steps}"
        lines += ["```console", f"$ {command}{''.join(changed)}"]
        for score in evaluations(run, config.steps):
            lines.append(f"$ {score.command('RUN')}")
        lines += ["```"]
    return "\n".join(lines) + "\n"


def summary() -> str:
    """The table of the README: sampled evaluations under `standard` at the end of the runs in results/, by game."""
    found: dict[str, list[Evaluation]] = {}
    configs = {path.parent: Config.load(path) for path in sorted((ROOT / "results").glob("*/config.json"))}
    for run, config in configs.items():
        # Only options in which these runs differ: those in which an older preset did are on the page of scores.
        alike = [settings(other) for other in configs.values() if other.preset == config.preset]
        base = settings(preset(config.preset))
        options = [
            f" `--{name.replace('_', '-')} {value}`"
            for name, value in settings(config).items()
            if value != base[name] and any(other[name] != value for other in alike)
        ]
        for score in evaluations(run, config.steps):
            if score.kind == "standard, sampled":
                name = f"{config.game}, {config.preset}{''.join(options)}, {config.steps:,} steps"
                found.setdefault(name, []).append(score)
    lines = ["| | seeds | here | " + " | ".join(BESIDE) + " |", "| --- |" + " --- |" * (2 + len(BESIDE))]
    for name, rows in found.items():
        known = published_scores().get(rows[0].game, {})
        means = [row.mean for row in rows]
        each = f" ({', '.join(f'{mean:.1f}' for mean in means)})" if len(means) > 1 else ""
        beside = " | ".join(f"{known[method].score:.3g}" if method in known else "" for method in BESIDE)
        lines.append(f"| {name} | {len(rows)} | {sum(means) / len(means):.1f}{each} | {beside} |")
    return "\n".join(lines) + "\n"


def with_summary(readme: str) -> str:
    """The README with the table as it should be today."""
    before, _, rest = readme.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"README.md: has no {BEGIN.strip()} ... {END.strip()}")
    return before + BEGIN + summary() + END + after


def pictures(runs: list[Path], folder: Path) -> Iterator[str]:
    """The report's pictures, which lie in `folder` afterwards."""
    from drama.results.page import write_report
    from drama.results.report import make_report

    page = write_report(make_report(runs), folder / "report")
    names = sorted(path.name for path in page.parent.glob("*.png"))
    yield "`drama report results/*-*-*` draws these and more, on [one page](report/index.html):"
    for name in names:
        yield f"\n![{name.removesuffix('.png')}](report/{name})"


def benchmarks() -> str:
    """What each script in benchmarks/ measures, as it says itself."""
    lines = [
        "# Benchmarks",
        "",
        "Each is a script in `benchmarks/`; `--help` shows its options. Figures stand beside the command that gave"
        " them: of the [replay](replay.md), the [environments](envs.md), the [world model](world-model.md), and of"
        " [what is learned](../learning.md).",
    ]
    for path in sorted((ROOT / "benchmarks").glob("*.py")):
        text = ast.get_docstring(ast.parse(read(path))) or ""
        if "python benchmarks/" in text.partition("\n\n")[0]:
            lines += ["", f"## {path.stem}", "", text]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--readme"]:
        write(ROOT / "README.md", with_summary(read(ROOT / "README.md")))
        sys.exit()
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    gather(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "target/pages")
