"""Evaluation: fixed shares of whole episodes, both protocols, nothing overwritten."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from drama.cli import main
from drama.config import Config
from drama.results.evaluation import evaluate, evaluate_run
from drama.training import checkpoint
from drama.training.learner import Learner
from helpers import frames


def test_each_environment_plays_its_fixed_share_to_the_end(debug: Config) -> None:
    """Catch always lasts as many steps as its grid has rows but one."""
    config = dataclasses.replace(debug, game="Catch", log=dataclasses.replace(debug.log, eval_envs=3))
    learner = Learner(config, frames(config, 1, 3), torch.device("cpu"))
    records = evaluate(config, learner, episodes=7, greedy=False, seed=5)
    assert sorted(record["env"] for record in records) == [0, 0, 0, 1, 1, 2, 2]
    assert all(record["length"] == 7 and record["return"] in (-1.0, 1.0) for record in records)
    assert records == evaluate(config, learner, episodes=7, greedy=False, seed=5)
    assert records != evaluate(config, learner, episodes=7, greedy=False, seed=6)


@pytest.fixture
def run(pong_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, for what is written into it."""
    return Path(shutil.copytree(pong_run, tmp_path / "run"))


def test_what_is_written_can_be_checked_from_itself(run: Path) -> None:
    """The mean of what is written is that of all episodes, and the constants that normalised it stand beside it."""
    result = evaluate_run(run, episodes=3, protocol="paper", seed=3, device="cpu")
    returns = [record["return"] for record in result["episodes"]]
    assert result["mean"] == pytest.approx(sum(returns) / 3)
    low, high = result["random_and_human"]
    assert result["human_normalised_mean"] == pytest.approx((result["mean"] - low) / (high - low))
    assert (result["protocol"], result["greedy"]) == ("paper", True)


def test_no_evaluation_overwrites_another(run: Path) -> None:
    before = {path: path.read_text() for path in run.glob("evaluation*")}
    settings: list[dict[str, Any]] = [
        {"protocol": "standard"},
        {"protocol": "paper"},
        {"protocol": "paper", "greedy": False},
        {"protocol": "paper", "step": 60},
    ]
    files = set()
    for setting in settings:
        result = evaluate_run(run, episodes=1, device="cpu", **setting)
        files.add(Path(result["file"]))
        assert json.loads(Path(result["file"]).read_text())["mean"] == result["mean"]
        assert result["step"] == setting.get("step", 120)
    assert len(files) == len(settings)
    assert all(path.read_text() == text for path, text in before.items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"episodes": 0}, "episodes: 0"),
        ({"episodes": 1, "seed": -1}, "seed: -1"),
        ({"episodes": 1, "step": 7}, "no checkpoint of step 7; there are 60, 120"),
    ],
)
def test_bad_options_are_named(pong_run: Path, options: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluate_run(pong_run, **options)  # type: ignore[arg-type]
    assert checkpoint.latest(pong_run).name == "step-000000120"


def test_a_result_that_cannot_be_kept_is_told(
    pong_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, text: str) -> None:
        del text
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("drama.results.evaluation.write_atomically", full)
    with pytest.raises(SystemExit) as stop:
        main(["eval", str(pong_run), "--episodes", "1", "--device", "cpu"])
    assert not stop.value.code
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("Pong after 120 steps: return")
    assert said[1].startswith("note: not written: ")
    assert said[1].endswith("Read-only file system")
