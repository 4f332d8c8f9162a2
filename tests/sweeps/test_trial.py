"""One run of a sweep without Ray around it, and which failures Tune is told to try again."""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import tune

from drama.config import Config
from drama.files import locked
from drama.sweeps import trial
from drama.sweeps.board import Board, Row
from drama.sweeps.driver import Watch
from drama.training import checkpoint


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Any]]:
    """What runs tell Tune: metrics, and the files of a checkpoint at that instant."""
    told: list[tuple[dict[str, Any], Any]] = []

    def report(metrics: dict[str, Any], *, checkpoint: Any = None) -> None:
        path = checkpoint and Path(checkpoint.path)
        told.append((metrics, path and {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}))

    monkeypatch.setattr(tune, "report", report)
    return told


@pytest.fixture
def catch(debug: Config) -> Config:
    return dataclasses.replace(debug, game="Catch", threads=1)


def test_a_run_tells_how_far_it_is_goes_on_and_is_scored_once(
    catch: Config, tmp_path: Path, reports: list[tuple[dict[str, Any], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "EVERY", 0.0)
    run, told = tmp_path / "runs" / "catch", {"steps": catch.steps, "return": float("nan")}
    run.mkdir(parents=True)
    (run / ".lock").touch()  # of a process that was killed before it had written anything
    trial._train(catch, run, told, False)
    assert [metrics["step"] for metrics, _ in reports] == list(range(121))
    assert told["step"] == 120
    assert told["return"] == pytest.approx(reports[-1][0]["return"])
    assert not any(files for _, files in reports)
    reports.clear()
    trial._train(catch, run, {}, False)
    assert [metrics["step"] for metrics, _ in reports] == [120]
    trial._score(catch, run, told)
    first = told.pop("score")
    trial._score(catch, run, told)
    assert told["score"] == first
    assert len(list(run.glob("evaluation-*"))) == 1
    with pytest.raises(ValueError, match="holds a run of another config than the sweep's"):
        trial._train(dataclasses.replace(catch, seed=1), run, {}, False)
    trial._train(dataclasses.replace(catch, steps=140), run, told, False)  # of a sweep that has become longer
    assert told["step"] == 140
    with pytest.raises(ValueError, match="holds a run of another config than the sweep's"):
        trial._train(catch, run, {}, False)


def test_a_run_away_from_the_storage_gives_whole_run_folders(
    catch: Config, tmp_path: Path, reports: list[tuple[dict[str, Any], Any]]
) -> None:
    trial._train(catch, tmp_path / "catch", {}, True)
    copies = [files for _, files in reports if files]
    assert len(copies) == 1 or len(copies) == 2  # the second where the first was quick
    for files in copies:
        assert {"config.json", "interface.json", "metrics.jsonl"} < files
        steps = {Path(file).parts[1] for file in files if file.startswith("checkpoints/")}
        assert len(steps) == 1
        assert ".lock" not in files
    assert len(checkpoint.list_checkpoints(tmp_path / "catch")) == 2


def _hold(folder: Path, ready: Any) -> None:
    with locked(folder):
        ready.set()
        time.sleep(2)


def test_a_run_waits_for_the_process_that_it_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    before = context.Process(target=_hold, args=(tmp_path, ready))
    before.start()
    assert ready.wait(60)
    trial._wait_for(tmp_path)
    before.join()
    with locked(tmp_path):
        monkeypatch.setattr(trial, "PATIENCE", 0.0)
        with pytest.raises(ValueError, match="is training in this folder"):
            trial._wait_for(tmp_path)


@pytest.fixture
def watch() -> Any:
    Watch.board, Watch.max_failures = Board({"catch": Row("Catch", 0)}, shown=False), 2
    yield Watch()
    Watch.board = None


def a_trial(**values: Any) -> Any:
    config = {"trial": {"run": "catch", "env": "Catch", "seed": 0}}
    return SimpleNamespace(
        **{"config": config, "num_failures": 0, "max_failures": 2, "status": "RUNNING", "last_result": {}} | values
    )


def test_deaths_count_only_as_long_as_a_run_gets_no_further(watch: Watch) -> None:
    dying = a_trial(num_failures=2)
    watch.on_trial_result(dying, {"step": 100, "steps": 200, "return": 0.0})
    assert dying.max_failures == 4
    dying.num_failures = 3
    watch.on_trial_result(dying, {"step": 60, "steps": 200, "return": 0.0})  # again what was lost
    assert dying.max_failures == 4


def test_what_a_run_raises_is_not_tried_again_but_by_the_next_sweep(watch: Watch) -> None:
    assert watch.board is not None
    failing = a_trial()
    watch.on_trial_result(failing, {"step": 100, "steps": 200, "return": 0.0, "fault": "Traceback: broken"})
    assert failing.max_failures == 0
    failing.num_failures, failing.status = 1, "ERROR"
    watch.on_trial_error(failing)
    watch.on_step_end([failing])
    assert failing.max_failures == 3
    row = watch.board.rows["catch"]
    assert (row.status, row.error, row.deaths) == ("failed", "Traceback: broken", 0)


def test_a_run_that_died_too_often_says_so(watch: Watch) -> None:
    assert watch.board is not None
    dead = a_trial(num_failures=3)
    watch.on_trial_recover(dead)
    watch.on_trial_recover(dead)
    watch.on_trial_error(dead)
    row = watch.board.rows["catch"]
    assert row.deaths == 3
    assert row.error == "its process or node died 3 times in a row without getting any further"


def test_a_run_that_optuna_chose_gets_a_line_of_its_own(watch: Watch) -> None:
    assert watch.board is not None
    config = {"run": "catch-debug-seed0", "env": "Catch", "seed": 0, "train.agent_lr": 3e-4}
    chosen = a_trial(config=config, trial_id="ab12", evaluated_params={"train.agent_lr": 3e-4})
    watch.on_trial_result(chosen, {"step": 5, "steps": 10, "return": 1.0})
    row = watch.board.rows["catch-debug-seed0-ab12"]
    assert (row.game, row.axes, row.step) == ("Catch", "train.agent_lr=0.0003", 5)


def test_what_a_run_had_told_a_sweep_before_is_known(watch: Watch) -> None:
    assert watch.board is not None
    last = {"step": 200, "steps": 200, "return": 0.5, "fault": "of then"}
    watch.on_step_end([a_trial(status="TERMINATED", last_result=last)])
    row = watch.board.rows["catch"]
    assert (row.status, row.step, row.returned, row.error) == ("finished", 200, 0.5, "")
