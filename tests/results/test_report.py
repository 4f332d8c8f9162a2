"""The report: which runs belong together, exact numbers, and a clear word where there is none."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drama.cli import main
from drama.config import Config
from drama.results.page import write_report
from drama.results.report import aggregate, make_report, read_run, runs_of
from drama.results.scores import human_normalised, published_scores, random_and_human
from drama.training import checkpoint


def rliable() -> None:
    """Skip where rliable is missing, or beside a pandas that it cannot work with."""
    try:
        import rliable.library  # noqa: F401
    except (ImportError, TypeError) as error:
        pytest.skip(f"rliable cannot be imported: {error}")


def write_run(folder: Path, config: Config, returns: list[float], step: int | None = None, **evaluation: Any) -> Path:
    """A run folder as training and evaluation leave it, without a checkpoint; no evaluation for no returns."""
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    last = config.steps if step is None else step
    rows: list[dict[str, Any]] = [
        {"event": "episode", "step": at, "time": 0.0, "return": float(at), "length": 10} for at in range(10, last, 10)
    ]
    rows.append({"event": "train", "step": last, "time": 0.0, "world_model/kl": 1.0, "agent/entropy": None})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if returns:
        values = {"game": config.game, "protocol": "standard", "greedy": False, "step": last, "seed": 0} | evaluation
        values["episodes"] = [{"return": score} for score in returns]
        name = f"evaluation-{values['protocol']}-{values['greedy']}-{values['step']}.json"
        (folder / name).write_text(json.dumps(values))
    return folder


@pytest.fixture
def config(debug: Config) -> Config:
    return debug


def game(config: Config, name: str, seed: int = 0, **changes: Any) -> Config:
    return dataclasses.replace(config, game=name, seed=seed, **changes)


def test_the_constants_are_the_published_ones_and_scores_are_exact() -> None:
    assert random_and_human("Pong") == (-20.7, 14.6)
    assert random_and_human("Breakout") == (1.7, 30.5)
    assert human_normalised("Pong", -20.7) == 0
    assert human_normalised("Pong", 14.6) == 1
    assert human_normalised("Breakout", 16.1) == pytest.approx(0.5)
    assert human_normalised("Catch", 1.0) is None
    assert len(published_scores()) == 26
    confidences = {entry.confidence for scores in published_scores().values() for entry in scores.values()}
    assert confidences == {"verified", "second-hand", "unverified"}


def test_seeds_of_one_config_are_one_row_and_other_configs_are_apart(config: Config, tmp_path: Path) -> None:
    faster = dataclasses.replace(config, train=dataclasses.replace(config.train, train_every=2))
    runs = [
        write_run(tmp_path / "a", game(config, "Catch", 0), [1.0, -1.0]),
        write_run(tmp_path / "b", game(config, "Catch", 1), [1.0]),
        write_run(tmp_path / "c", game(faster, "Catch", 0), [-1.0]),
        write_run(tmp_path / "d", game(config, "Catch", 2, steps=240), [-1.0], step=200),
    ]
    report = make_report(runs)
    rows = {(row.setting, row.step): row for row in report.rows["standard, sampled"]}
    assert {key: row.scores for key, row in rows.items()} == {
        ("debug, train.train_every = 4", 120): [0.0, 1.0],
        ("debug, train.train_every = 4", 200): [-1.0],
        ("debug, train.train_every = 2", 120): [-1.0],
    }
    assert [row.unfinished for row in rows.values()] == [step == 200 for _, step in rows]
    assert all(row.normalised is None for row in rows.values())
    assert report.aggregates == {"standard, sampled": []}
    assert any("No published scores for Catch" in note for note in report.notes)
    assert any("d is not finished: step 200 of 240" in note for note in report.notes)


def test_protocols_are_never_put_together(config: Config, tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / "a", game(config, "Catch", 0), [1.0]),
        write_run(tmp_path / "b", game(config, "Catch", 1), [-1.0], protocol="paper", greedy=True),
        write_run(tmp_path / "c", game(config, "Catch", 2), [0.0], greedy=True),
        write_run(tmp_path / "d", game(config, "Catch", 3), []),
    ]
    report = make_report(runs)
    assert {kind: [row.scores for row in rows] for kind, rows in report.rows.items()} == {
        "standard, sampled": [[1.0]],
        "paper, greedy": [[-1.0]],
        "standard, greedy": [[0.0]],
    }
    assert any("kept apart" in note for note in report.notes)
    assert any("d has no evaluation" in note for note in report.notes)


def test_the_latest_evaluation_counts(config: Config, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", game(config, "Catch"), [1.0])
    early = json.loads(next(run.glob("evaluation*")).read_text()) | {"step": 60, "episodes": [{"return": -1.0}] * 9}
    (run / "evaluation-early.json").write_text(json.dumps(early))
    (row,) = make_report([run]).rows["standard, sampled"]
    assert (row.step, row.scores) == (120, [1.0])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: shutil.rmtree(run), "no such run folder"),
        (lambda run: (run / "config.json").unlink(), r"config\.json: cannot be read"),
        (
            lambda run: (run / "config.json").write_text(
                (run / "config.json").read_text().replace("free_bits", "free")
            ),
            r"world_model\.free: unknown field \(did you mean free_bits\?\); is .* of this version of drama",
        ),
        (lambda run: (run / "metrics.jsonl").write_text("nonsense\n{}\n"), "line 1 is damaged"),
        (lambda run: next(run.glob("evaluation*")).write_text("{"), "damaged, or no evaluation"),
        (lambda run: next(run.glob("evaluation*")).write_text('{"episodes": []}'), "damaged, or no evaluation"),
        (
            lambda run: (p := next(run.glob("evaluation*"))).write_text(p.read_text().replace("Catch", "Pong")),
            "an evaluation of Pong, but the run is of Catch",
        ),
        (
            lambda run: (p := next(run.glob("evaluation*"))).write_text(p.read_text().replace("1.0", "NaN")),
            "not finite",
        ),
    ],
)
def test_a_run_that_cannot_be_read_is_refused(
    config: Config, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    run = write_run(tmp_path / "a", game(config, "Catch"), [1.0])
    damage(run)
    with pytest.raises(ValueError, match=said):
        make_report([run])


def test_the_same_seed_twice_is_refused(config: Config, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", game(config, "Catch"), [1.0])
    shutil.copytree(run, tmp_path / "b")
    with pytest.raises(ValueError, match=r"b: the same config and seed as .*a"):
        make_report([run, tmp_path / "b"])


def test_half_a_line_at_the_end_is_a_run_that_was_killed(config: Config, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", game(config, "Catch"), [1.0])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "epi')
    assert read_run(run).step == 120


def test_aggregates_are_rliables_and_leave_games_without_scores_out(config: Config, tmp_path: Path) -> None:
    """Against the definitions: mean and median of game means, the middle half of all runs, seeds resampled by game."""
    rliable()
    scores = {"Pong": [-20.7, 14.6], "Breakout": [1.7, 30.5], "Catch": [1.0, 1.0]}
    runs = [
        write_run(tmp_path / f"{name}{seed}", game(config, name, seed), [score])
        for name, values in scores.items()
        for seed, score in enumerate(values)
    ]
    (item,) = make_report(runs).aggregates["standard, sampled"]
    assert item.games == ("Breakout", "Pong")
    assert item.values == pytest.approx({"mean": 0.5, "median": 0.5, "iqm": 0.5})
    assert item.intervals is not None
    assert item.intervals["mean"] == pytest.approx((0.0, 1.0))  # all of two seeds low has a chance of 1/16
    drama = [human_normalised(name, published_scores()[name]["Drama"].score) for name in item.games]
    assert item.others["Drama"]["mean"] == pytest.approx(np.mean([score for score in drama if score is not None]))


def test_intervals_equal_rliables_own_for_equal_numbers_of_seeds() -> None:
    rliable()
    from rliable import library, metrics

    scores = np.random.default_rng(0).normal(size=(5, 6))
    values, intervals = aggregate(scores.T.tolist())
    assert values["iqm"] == pytest.approx(metrics.aggregate_iqm(scores))
    np.random.seed(1)  # noqa: NPY002
    _, expected = library.get_interval_estimates(
        {"": scores}, lambda x: np.array([metrics.aggregate_iqm(x)]), reps=2000
    )
    assert intervals is not None
    width = expected[""][1, 0] - expected[""][0, 0]
    assert intervals["iqm"] == pytest.approx(expected[""][:, 0], abs=0.1 * width)
    assert aggregate(scores.T.tolist()) == (values, intervals)
    assert aggregate([[0.1], [0.3]])[1] is None


def test_the_page_is_whole_and_needs_nothing_from_outside(
    pong_run: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a real run: its numbers in the page, the CSV and the JSON; its curve, losses and dream as pictures."""
    rliable()
    unevaluated = write_run(tmp_path / "catch", game(config, "Catch"), [])
    beside = tmp_path / "results.jsonl"
    beside.write_text("{}")
    out = tmp_path / "report"
    with pytest.raises(SystemExit) as stop:
        main(["report", str(pong_run), str(unevaluated), str(beside), "--out", str(out)])
    assert not stop.value.code
    said = capsys.readouterr().out
    assert f"No dream of {unevaluated}" in said
    assert f"{beside} is a file, no run: left out." in said
    page = (out / "index.html").read_text()
    assert not re.search(r"(src|href)=(?!'data:|\"#)", page)
    assert "url(http" not in page
    assert (out / "dream-Pong-0.png").read_bytes().startswith(b"\x89PNG")
    assert page.count("<img") == len(list(out.glob("*.png"))) == 1
    for name in ("Learning curve of Pong", "Learning curve of Catch", "KL posterior to prior (nats) of Pong"):
        assert page.count(f'aria-label="{name}"') == 1
    assert "#010101" not in page  # the colours of text and lines are the page's, light or dark
    assert "@media (prefers-color-scheme: dark)" in page
    evaluation = json.loads(next(pong_run.glob("evaluation*.json")).read_text())
    (row,) = csv.DictReader((out / "scores.csv").read_text().splitlines())
    assert float(row["mean_return"]) == evaluation["mean"]
    assert float(row["human_normalised"]) == evaluation["human_normalised_mean"]
    assert json.loads((out / "report.json").read_text())["scores"][0]["mean_return"] == evaluation["mean"]
    assert f"{evaluation['mean']:,.1f}" in page
    assert "one seed for each game" in page


def test_these_runs_stand_at_their_rank_among_the_published_methods(config: Config, tmp_path: Path) -> None:
    """Random and Human are the ends of the scale, and have no rank."""
    rliable()
    runs = [write_run(tmp_path / "a", game(config, "Breakout"), [60.0]), write_run(tmp_path / "b", config, [])]
    write_report(make_report(runs), tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    table = re.findall(r"<table class=ranks>.*?</table>", page)[0]
    lines = [re.findall(r">([^<]*)</td>", line) for line in re.findall(r"<tr class='.*?</tr>", table)]
    scores = {method: entry.score for method, entry in published_scores()["Breakout"].items()} | {"this": 60.0}
    assert [name for _, name, *_ in lines] == sorted(scores, key=lambda name: -scores[name])
    methods = [(rank, name) for rank, name, *_ in lines if name not in ("Random", "Human")]
    assert [rank for rank, _ in methods] == [f"{i}." for i in range(1, len(scores) - 1)]
    better = sum(score > 60 for name, score in scores.items() if name not in ("Random", "Human"))
    assert (f"{better + 1}.", "this") in methods
    assert [rank for rank, name, *_ in lines if name in ("Random", "Human")] == ["", ""]
    assert page.count("<tr class='ours'>") == 2  # in the aggregate too


def test_a_checkpoint_with_missing_parts_has_no_dream_but_its_scores(
    pong_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rliable()
    run = tmp_path / "run"
    shutil.copytree(pong_run, run)
    path = checkpoint.latest(run) / "state.pt"
    state = torch.load(path, weights_only=True)
    del state["learner"]
    torch.save(state, path)
    with pytest.raises(SystemExit) as stop:
        main(["report", str(run), "--out", str(tmp_path / "report")])
    assert not stop.value.code
    assert f"No dream of {run}: {path}: the checkpoint lacks learner." in capsys.readouterr().out
    assert not list((tmp_path / "report").glob("dream*"))


def write_sweep(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps({"version": 1, "runs": names}))
    return folder


def test_a_sweep_stands_for_its_runs_in_its_order_and_what_is_missing_is_said(config: Config, tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", ["pong-0", "boxing-0", "pong-1", "boxing-1"])
    write_run(folder / "boxing-0", game(config, "Boxing"), [1.0])
    write_run(folder / "pong-0", game(config, "Pong"), [], step=50)
    write_run(folder / "pong-searched", game(config, "Pong", seed=7), [2.0])  # what Optuna chose is named nowhere
    (folder / "pong-1").mkdir()  # killed before its config
    (folder / "ray").mkdir()
    (folder / "ray" / "tuner.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")  # read by nobody
    runs, missing = runs_of(folder)
    assert [run.name for run in runs] == ["pong-0", "boxing-0", "pong-searched"]
    assert missing == ["pong-1", "boxing-1"]
    alone = write_run(tmp_path / "alone", game(config, "Boxing", seed=5), [3.0])
    report = make_report([folder, alone])
    assert [(run.config.game, run.config.seed) for run in report.runs] == [
        ("Boxing", 0),
        ("Boxing", 5),
        ("Pong", 0),
        ("Pong", 7),
    ]
    assert report.notes[0] == f"2 runs of {folder} have not begun: pong-1, boxing-1."
    assert any("pong-0 is not finished: step 50" in note for note in report.notes)


def test_the_copy_of_an_object_store_has_its_runs_in_the_checkpoints_of_ray(config: Config, tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", ["pong-0", "pong-1"])
    for number in (8, 9, 10):
        trial = folder / "ray" / "pong-0" / f"checkpoint_{number:06d}"
        trial.parent.mkdir(parents=True, exist_ok=True)
        write_run(trial, game(config, "Pong"), [float(number)])
    assert runs_of(folder) == ([trial], ["pong-1"])
    assert make_report([folder]).runs[0].evaluations[0].mean == 10


def test_a_folder_stands_for_the_runs_and_sweeps_in_it(config: Config, tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "first", ["pong-0", "pong-1"])
    write_run(folder / "pong-0", game(config, "Pong"), [1.0])
    write_run(tmp_path / "alone", game(config, "Boxing"), [1.0])
    (tmp_path / "notes").mkdir()
    (tmp_path / "table.csv").touch()
    assert runs_of(tmp_path) == ([tmp_path / "alone", folder / "pong-0"], ["pong-1"])
    assert {run.config.game for run in make_report([tmp_path]).runs} == {"Boxing", "Pong"}
    with pytest.raises(ValueError, match=r"notes/config.json: cannot be read"):
        make_report([tmp_path / "notes"])


def test_a_sweep_that_cannot_be_read_or_has_no_run_is_named(tmp_path: Path) -> None:
    folder = write_sweep(tmp_path / "sweep", ["pong-0"])
    with pytest.raises(ValueError, match="no run has begun"):
        make_report([folder])
    for damaged in ("{", "[]", '{"version": 1}', '{"runs": 3}'):
        (folder / "sweep.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"sweep.json: damaged, or of no sweep"):
            make_report([folder])
