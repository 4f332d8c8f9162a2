"""Evaluation: fixed shares of whole episodes, both protocols, nothing overwritten."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from drama.cli import main
from drama.config import Config, EnvConfig, with_options
from drama.envs import interface_of
from drama.results.evaluation import evaluate, evaluate_run, load_learner, scored
from drama.results.export import export_run
from drama.results.scores import read_evaluation
from drama.training import checkpoint
from drama.training.learner import Learner
from drama.training.trainer import Trainer
from drama.training.weights import save_weights
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


class Endless(gym.Env[Any, Any]):
    """An environment whose episodes nothing ends."""

    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        del action
        return np.ones(2, np.float32), 1.0, False, False, {}


def test_an_episode_that_does_not_end_is_truncated(
    debug: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = dataclasses.replace(debug, game=f"{__name__}:Endless", env=EnvConfig())
    learner = Learner(config, interface_of(config.game, config.env), torch.device("cpu"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(config.to_json())
    (run / "interface.json").write_text(learner.world_model.interface.to_json())
    save_weights(run, learner, 120)
    with pytest.raises(SystemExit):
        main(["eval", str(run), "--episodes", "2", "--steps-limit", "30", "--trust", "--device", "cpu"])
    out = capsys.readouterr().out
    assert "return 30.0 ± 0.0" in out
    assert "note: 2 episodes were truncated after 30 steps; --steps-limit takes another limit" in out
    with pytest.raises(SystemExit):
        main(["eval", str(run), "--episodes", "1", "--steps-limit", "10", "--trust", "--device", "cpu"])
    assert "steps: return 10.0 over 1 episode (" in capsys.readouterr().out  # one has no spread
    (path,) = run.glob("evaluation-*-limit30.json")
    assert read_evaluation(path).command("RUN").endswith(" --steps-limit 30")
    monkeypatch.setattr("drama.results.evaluation.STEPS", 20)  # without a limit of anybody's
    records = evaluate_run(run, episodes=2, device="cpu", trust=True)["episodes"]
    assert [(record["length"], record["truncated"]) for record in records] == [(20, True)] * 2
    limited = dataclasses.replace(config, env=EnvConfig(max_steps=25))
    assert scored(limited).env.max_steps == 25
    assert scored(limited, 10).env.max_steps == 10
    pong = dataclasses.replace(debug, env=EnvConfig(max_frames=0))
    assert scored(pong).env.max_frames == 20 * 4
    assert scored(debug).env.max_frames == debug.env.max_frames


HOSTILE: list[dict[str, Any]] = [
    {"world_model.sequence.width": 10**9},
    {"world_model.sequence.width": 10**6},
    {"world_model.bins": 10**12 + 1},
    {"agent.critic_units": 10**11},
    {"world_model.sequence.layers": 10**9},
    {"agent.layers": 10**9},
    {"world_model.sequence.chunk": 10**12},
    {"env.size": 10**6},
]


@pytest.mark.parametrize("options", HOSTILE, ids=lambda options: next(iter(options)))
@pytest.mark.parametrize("kind", ["run", "export"])
def test_sizes_in_a_config_of_somebody_else_take_no_memory(
    run: Path, tmp_path: Path, kind: str, options: dict[str, Any]
) -> None:
    folder = run if kind == "run" else export_run(run, tmp_path / "export")
    config = Config.load(folder / "config.json")
    (folder / "config.json").write_text(with_options(config, options).to_json())
    with pytest.raises(
        ValueError, match=r"with the config beside it|that no network can have|must be at most|env\.size"
    ):
        load_learner(folder, "cpu")
    if kind == "run" and "env.size" not in options:
        with pytest.raises(ValueError, match=r"with the config beside it|that no network can have|must be at most"):
            Trainer.resume(run)


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
        ({"episodes": 1, "steps_limit": 0}, "steps_limit: 0 must be at least 1"),
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
