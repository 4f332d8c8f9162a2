"""What `drama report` knows of runs: which belong together, their curves, their scores beside published ones."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from drama.config import Config, flat
from drama.files import check_run
from drama.hints import command, install
from drama.results.scores import Evaluation, human_normalised, published_scores, read_evaluation

Curve = NDArray[np.float64]  # [N, 2]: step, value
APART = {"game", "seed", "steps", "device", "preset", "threads"} | {
    "train.cuda_graph",
    "train.compile",
    "world_model.sequence.kernels",
}  # these do not make another setting; nor does `log`
BOOTSTRAPS = 2000
SWEEP = "sweep.json"
"""The file of a sweep's folder that names its runs."""


@dataclass
class Run:
    """What a run folder holds."""

    folder: Path
    config: Config
    step: int
    returns: Curve
    scalars: dict[str, Curve]
    evaluations: list[Evaluation]
    setting: str = ""


@dataclass(frozen=True)
class Row:
    """The seeds of one setting on one game, evaluated at the same step."""

    setting: str
    game: str
    step: int
    runs: tuple[Run, ...]
    evaluations: tuple[Evaluation, ...]

    @property
    def scores(self) -> list[float]:
        """Mean return of each seed."""
        return [evaluation.mean for evaluation in self.evaluations]

    @property
    def normalised(self) -> list[float] | None:
        """Human-normalised scores of each seed; None where Random and Human are not published."""
        scores = [human_normalised(self.game, score) for score in self.scores]
        return None if None in scores else [score for score in scores if score is not None]

    @property
    def unfinished(self) -> bool:
        """Whether this is not the end of the runs."""
        return any(self.step < run.config.steps for run in self.runs)


@dataclass(frozen=True)
class Aggregate:
    """Mean, median and interquartile mean of human-normalised scores over games, with 95 % intervals."""

    setting: str
    step: int
    games: tuple[str, ...]
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]] | None
    """None where every game has one seed: nothing can be resampled."""
    others: dict[str, dict[str, float]]
    """Mean and median of the published methods on the same games."""


@dataclass
class Report:
    """Everything on the page, by kind of evaluation where scores are concerned."""

    runs: list[Run]
    rows: dict[str, list[Row]] = field(default_factory=dict)
    aggregates: dict[str, list[Aggregate]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises ValueError that names what is missing, damaged or of another version."""
    check_run(folder)
    try:
        config = Config.load(folder / "config.json")
    except ValueError as error:
        raise ValueError(f"{error}; is {folder} a run, and of this version of drama?") from error
    returns: list[tuple[float, float]] = []
    scalars: dict[str, list[tuple[float, float]]] = defaultdict(list)
    step = 0
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            at = row["step"]
            step = max(step, at)
            if row["event"] == "episode":
                returns.append((at, float(row["return"])))
            else:
                for name, value in row.items():
                    if name not in ("event", "step", "time"):
                        scalars[name].append((at, np.nan if value is None else float(value)))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break  # a run that goes on, or was killed, can leave half a line
            raise ValueError(f"{path}: line {number} is damaged") from error
    curves = {name: np.array(points) for name, points in scalars.items()}
    evaluations = []
    for path in sorted(folder.glob("evaluation*.json")):
        evaluations.append(read_evaluation(path))
        if evaluations[-1].game != config.game:
            raise ValueError(f"{path}: an evaluation of {evaluations[-1].game}, but the run is of {config.game}")
    step = max([step, *(evaluation.step for evaluation in evaluations)])  # the last steps may have no line
    return Run(folder, config, step, np.array(returns).reshape(-1, 2), curves, evaluations)


def runs_of(folder: Path) -> tuple[list[Path], list[str]]:
    """The run folders that a folder stands for, and the names of a sweep's runs that have not begun.

    Of a sweep's folder they are the folders in it; where it is the copy of an object store, the last checkpoints of
    Ray's trials. A folder that is neither a run nor a sweep stands for the runs and sweeps in it.
    """
    path = folder / SWEEP
    if not path.exists():
        if (folder / "config.json").exists() or not folder.is_dir():
            return [folder], []
        inside = [f for f in sorted(folder.iterdir()) if (f / "config.json").exists() or (f / SWEEP).exists()]
        each = [runs_of(inner) for inner in inside] or [([folder], [])]
        return [run for runs, _ in each for run in runs], [name for _, names in each for name in names]
    try:
        names = [str(name) for name in json.loads(path.read_text())["runs"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, or of no sweep") from error
    found = {config.parent.name: config.parent for config in sorted(folder.glob("*/config.json"))}
    for config in sorted(folder.glob("ray/*/checkpoint_*/config.json")):
        found[config.parent.parent.name] = config.parent
    order = {name: place for place, name in enumerate(names)}
    runs = sorted(found, key=lambda name: (order.get(name, len(order)), name))
    return [found[name] for name in runs], [name for name in names if name not in found]


def make_report(folders: Sequence[Path]) -> Report:
    """Read runs, group them and compute scores and intervals. A folder of runs or a sweep's stands for those in it.

    Raises:
        ValueError: for a run that cannot be read, or two runs of one setting, game and seed.
    """
    missing: dict[Path, list[str]] = {}
    runs = []
    for folder in folders:
        found, missing[folder] = runs_of(folder)
        runs += [read_run(run) for run in found]
    if not runs:
        raise ValueError(f"{', '.join(map(str, folders))}: no run has begun")
    _name_settings(runs)
    seen: dict[tuple[str, str, int], Path] = {}
    for run in runs:
        key = (run.setting, run.config.game, run.config.seed)
        if key in seen:
            raise ValueError(f"{run.folder}: the same config and seed as {seen[key]}; seeds must be independent")
        seen[key] = run.folder
    runs.sort(key=lambda run: (run.config.game, run.setting, run.config.seed))
    report = Report(runs)
    for folder, names in missing.items():
        if names:
            shown = ", ".join(names[:10]) + (", …" if len(names) > 10 else "")
            report.notes.append(f"{len(names)} runs of {folder} have not begun: {shown}.")
    for run in runs:
        if run.step < run.config.steps:
            report.notes.append(f"{run.folder} is not finished: step {run.step:,} of {run.config.steps:,}.")
        if not run.evaluations:
            report.notes.append(
                f"{run.folder} has no evaluation: it has a curve, no score. `{command('eval', run.folder)}` makes one."
            )
    kinds = sorted({evaluation.kind for run in runs for evaluation in run.evaluations})
    if len(kinds) > 1:
        report.notes.append(f"Evaluations differ in protocol; scores are kept apart: {'; '.join(kinds)}.")
    for kind in kinds:
        report.rows[kind] = _rows(runs, kind)
        report.aggregates[kind] = _aggregates(report.rows[kind])
    unpublished = sorted({run.config.game for run in runs} - published_scores().keys())
    if unpublished:
        report.notes.append(
            f"No published scores for {', '.join(unpublished)}: without Random and Human there is no human-normalised"
            " score, so they are left out of mean, median and IQM."
        )
    return report


def _name_settings(runs: list[Run]) -> None:
    """Name each run's setting by its preset and by every value in which runs of that preset differ."""
    by_preset: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        by_preset[run.config.preset].append(run)
    for preset, members in by_preset.items():
        values = [settings(run.config) for run in members]
        differing = [name for name in values[0] if len({repr(v[name]) for v in values}) > 1]
        for run, value in zip(members, values, strict=True):
            run.setting = ", ".join([preset, *(f"{name} = {value[name]}" for name in differing)])


def settings(config: Config) -> dict[str, Any]:
    """What decides a result, by name."""
    return {name: v for name, v in flat(config).items() if name not in APART and not name.startswith("log.")}


def _rows(runs: list[Run], kind: str) -> list[Row]:
    """The latest evaluation of each run, seeds of one setting, game and step together."""
    found: dict[tuple[str, str, int], list[tuple[Run, Evaluation]]] = defaultdict(list)
    for run in runs:
        of_kind = [evaluation for evaluation in run.evaluations if evaluation.kind == kind]
        if of_kind:
            last = max(of_kind, key=lambda evaluation: (evaluation.step, len(evaluation.returns)))
            found[run.setting, run.config.game, last.step].append((run, last))
    return [Row(*key, *map(tuple, zip(*pairs, strict=True))) for key, pairs in sorted(found.items())]


def _aggregates(rows: list[Row]) -> list[Aggregate]:
    """One aggregate for each setting and step; only scores of the same step are put together."""
    groups: dict[tuple[str, int], dict[str, list[float]]] = defaultdict(dict)
    for row in rows:
        if row.normalised is not None:
            groups[row.setting, row.step][row.game] = row.normalised
    result = []
    for (setting, step), by_game in groups.items():
        values, intervals = aggregate(list(by_game.values()))
        methods = set.intersection(*(set(published_scores()[game]) for game in by_game))
        others = {}
        for method in methods - {"Random", "Human"}:
            scores = [_published_normalised(game, method) for game in by_game]
            others[method] = {"mean": float(np.mean(scores)), "median": float(np.median(scores))}
        ordered = dict(sorted(others.items(), key=lambda item: -item[1]["mean"]))
        result.append(Aggregate(setting, step, tuple(by_game), values, intervals, ordered))
    return result


def _published_normalised(game: str, method: str) -> float:
    normalised = human_normalised(game, published_scores()[game][method].score)
    assert normalised is not None
    return normalised


def aggregate(games: list[list[float]]) -> tuple[dict[str, float], dict[str, tuple[float, float]] | None]:
    """Mean, median and IQM of normalised scores `[game][seed]`, and their 95 % stratified bootstrap intervals.

    rliable resamples the seeds of each game by themselves, so games may have different numbers of them. Mean and
    median are over the games' means; the interquartile mean is over all runs. No intervals if no game has two seeds.
    """
    try:
        from rliable import library, metrics
    except TypeError as error:
        raise ValueError(
            f"rliable cannot be imported: it does not work with pandas 3; `{install('report')}` brings 2"
        ) from error

    def measures(*scores: NDArray[np.float64]) -> NDArray[np.float64]:
        means = np.array([[s.mean() for s in scores]])
        return np.array(
            [
                metrics.aggregate_mean(means),
                metrics.aggregate_median(means),
                metrics.aggregate_iqm(np.concatenate(scores)),
            ]
        )

    names = ("mean", "median", "iqm")
    arrays = [np.array(scores, np.float64)[:, None] for scores in games]
    values = dict(zip(names, measures(*arrays).tolist(), strict=True))
    if max(map(len, games)) < 2:
        return values, None
    before = np.random.get_state()  # noqa: NPY002, rliable draws from NumPy's global state
    try:
        np.random.seed(0)  # noqa: NPY002
        _, intervals = library.get_interval_estimates({"": arrays}, measures, reps=BOOTSTRAPS)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return values, dict(zip(names, map(tuple, intervals[""].T.tolist()), strict=True))


def to_json(report: Report) -> dict[str, Any]:
    """The numbers of the page."""
    return {
        "runs": [
            {"folder": str(r.folder), "game": r.config.game, "setting": r.setting, "seed": r.config.seed}
            | {"step": r.step, "steps": r.config.steps, "config": dataclasses.asdict(r.config)}
            for r in report.runs
        ],
        "scores": list(table(report)),
        "aggregates": [
            {"protocol": kind, **dataclasses.asdict(item)}
            for kind, items in report.aggregates.items()
            for item in items
        ],
        "notes": report.notes,
    }


def to_csv(report: Report) -> str:
    """One line for each run and kind of evaluation."""
    text = io.StringIO()
    names = ["game", "setting", "protocol", "step", "seed", "episodes", "mean_return", "human_normalised", "run"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table(report))
    return text.getvalue()


def table(report: Report) -> Iterable[dict[str, Any]]:
    """The score of each run under each kind of evaluation."""
    for kind, rows in report.rows.items():
        for row in rows:
            for run, evaluation in zip(row.runs, row.evaluations, strict=True):
                yield {
                    "game": row.game,
                    "setting": row.setting,
                    "protocol": kind,
                    "step": row.step,
                    "seed": run.config.seed,
                    "episodes": len(evaluation.returns),
                    "mean_return": evaluation.mean,
                    "human_normalised": human_normalised(row.game, evaluation.mean),
                    "run": str(run.folder),
                }
