"""Training end to end on real games: reproducible, resumable, and storing what really happened."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from drama.config import Config, EnvConfig, preset
from drama.envs import interface_of, make_env
from drama.interface import LONE
from drama.replay import ReplayBuffer, Uniform
from drama.runtime.device import one_thread
from drama.training import checkpoint
from drama.training.collector import random_play
from drama.training.learner import Learner
from drama.training.trainer import Trainer

CLOCK = {"time", "steps_per_second"}


def train(config: Config, run: Path) -> list[dict[str, Any]]:
    assert Trainer(config, run).train()
    return metrics(run)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The run's metrics without what the clock says."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def test_a_run_leaves_everything_behind(pong_run: Path) -> None:
    """Config, TensorBoard events, metrics that pandas reads, checkpoint, evaluation and dream."""
    assert Config.load(pong_run / "config.json").game == "Pong"
    assert list((pong_run / "tensorboard").glob("events.*"))
    frame = pd.read_json(pong_run / "metrics.jsonl", lines=True)
    updates = frame[(frame.event == "train") & frame["world_model/loss"].notna()]
    assert len(updates) >= 3
    assert updates["world_model/reconstruction"].iloc[-1] < updates["world_model/reconstruction"].iloc[0]
    assert checkpoint.latest(pong_run).name == "step-000000120"
    evaluation = json.loads(next(pong_run.glob("evaluation-step-000000120-*.json")).read_text())
    assert len(evaluation["episodes"]) == 2
    assert all(-21 <= e["return"] <= 21 and e["length"] > 100 for e in evaluation["episodes"])
    assert (pong_run / "dream.gif").read_bytes().startswith(b"GIF89a")


def test_one_seed_gives_one_run_and_another_seed_another(debug: Config, tmp_path: Path) -> None:
    first = train(debug, tmp_path / "a")
    second = train(debug, tmp_path / "b")
    other = train(dataclasses.replace(debug, seed=1), tmp_path / "c")
    assert first == second
    assert first != other


@pytest.mark.parametrize(("num_envs", "log_every", "expected"), [(1, 20, (1, 16)), (2, 120, (4, 16)), (1, 4, (1, 4))])
def test_the_newest_rows_are_those_since_the_last_line(
    debug: Config, tmp_path: Path, num_envs: int, log_every: int, expected: tuple[int, int]
) -> None:
    """They wrap around with the replay, and overlap nowhere; where there are many, no more than an update has."""
    config = with_envs(debug, num_envs)
    config = dataclasses.replace(
        config,
        log=dataclasses.replace(config.log, log_every=log_every, eval_episodes=0),
        train=dataclasses.replace(config.train, replay_capacity=90),
    )
    trainer = Trainer(config, tmp_path / "run")
    trainer.train()
    replay, found = trainer.replay, trainer._newest()
    assert found.action.shape == expected
    count = found.action.numel() // num_envs
    rows = [replay.rows(env) for env in range(num_envs)]
    expected_actions = np.concatenate([row["action"][-count:] for row in rows])
    sequences = sorted(found.action.tolist())
    assert sequences == sorted(expected_actions.reshape(expected).tolist())


def with_envs(config: Config, num_envs: int) -> Config:
    return dataclasses.replace(config, train=dataclasses.replace(config.train, num_envs=num_envs))


@pytest.mark.parametrize("num_envs", [1, 2])
def test_resume_reproduces_the_uninterrupted_run(debug: Config, tmp_path: Path, num_envs: int) -> None:
    """A run that goes on from its checkpoint writes the same metrics, bit for bit."""
    config = with_envs(debug, num_envs)
    whole = train(config, tmp_path / "whole")
    run = tmp_path / "resumed"
    train(config, run)
    later = checkpoint.list_checkpoints(run)[-1]
    assert later.name == "step-000000120"
    later.rename(tmp_path / "gone")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "tra')  # as a kill leaves it
    resumed = Trainer.resume(run)
    assert resumed.step == 60
    assert resumed.train()
    assert metrics(run) == whole
    left, right = (checkpoint.load_state(checkpoint.latest(r), torch.device("cpu")) for r in (tmp_path / "whole", run))
    for name, value in left["learner"]["world_model"].items():
        assert torch.equal(value, right["learner"]["world_model"][name]), name


def test_checkpoints_keep_the_last_two_and_only_complete_ones(debug: Config, tmp_path: Path) -> None:
    config = dataclasses.replace(debug, log=dataclasses.replace(debug.log, checkpoint_every=20))
    run = tmp_path / "run"
    (run.parent / "x").mkdir()
    train(config, run)
    assert [path.name for path in checkpoint.list_checkpoints(run)] == ["step-000000100", "step-000000120"]
    (run / "checkpoints" / ".tmp-step-000000140").mkdir()
    assert checkpoint.latest(run).name == "step-000000120"


@pytest.mark.parametrize(("num_envs", "index"), [(1, 0), (3, 0), (3, 2)])
def test_replay_rows_hold_the_consequence_of_their_own_action(
    debug: Config, tmp_path: Path, num_envs: int, index: int
) -> None:
    """Replaying the stored actions in a fresh environment gives the stored frames, rewards and ends, row by row."""
    config = with_envs(dataclasses.replace(debug, game="Catch"), num_envs)
    trainer = Trainer(config, tmp_path / "run")
    trainer.train()
    buffer = ReplayBuffer.load(checkpoint.latest(tmp_path / "run") / "replay")
    steps = config.steps // num_envs
    begin = index * (buffer.capacity // num_envs)  # the environment's first row
    rows = {k: v[0] for k, v in buffer.gather(np.array([begin]), steps).items() if k not in ("indices", "weights")}
    env = make_env("Catch", config.env)
    frame, _ = env.reset(seed=config.seed + index)
    first, ends = True, 0
    for t in range(steps):
        assert np.array_equal(rows["obs"][t], frame)
        assert rows["is_first"][t] == first
        frame, reward, terminated, truncated, _ = env.step(rows["action"][t])
        assert rows["reward"][t] == reward
        assert rows["terminated"][t] == terminated
        assert rows["truncated"][t] == truncated
        first = terminated or truncated
        if first:
            ends += 1
            frame, _ = env.reset()
    assert ends >= 5


def test_updates_are_as_many_for_several_environments(debug: Config, tmp_path: Path) -> None:
    counts = []
    for num_envs in (1, 3):
        trainer = Trainer(with_envs(debug, num_envs), tmp_path / f"{num_envs}")
        trainer.train()
        assert trainer.step == 120
        counts.append(trainer._updater.count)
    assert counts == [15, 15]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("train.sampler", "uniform"),
        ("world_model.reset_state", False),
        ("train.statistics_frames", 32),
        ("world_model.two_hot_mean", "raw"),
        ("agent.act_on", "prior"),
        ("agent.normalize", False),
        ("agent.unimix", 0.01),
        ("train.imagine_from", "batch"),
    ],
)
def test_choices_of_the_method_change_a_run(debug: Config, tmp_path: Path, option: str, value: Any) -> None:
    # Its episodes are short enough to end within a sequence; at this rate actions soon depend on what is shown.
    config = dataclasses.replace(debug, game="Catch", train=dataclasses.replace(debug.train, agent_lr=0.1))
    part, name = option.split(".")
    changed = dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **{name: value})})
    assert train(config, tmp_path / "a") != train(changed, tmp_path / "b")


def test_the_agent_starts_when_it_is_told_to(debug: Config, tmp_path: Path) -> None:
    late = dataclasses.replace(debug, train=dataclasses.replace(debug.train, agent_start=90))
    lines = [line for line in train(late, tmp_path / "late") if line["event"] == "train"]
    learned = [line for line in lines if "world_model/loss" in line]
    assert ["agent/loss" in line for line in learned] == [False, True, True]
    # Means are over the agent's updates alone: its first policies are almost uniform.
    assert all(line["agent/entropy"] > 0.9 * math.log(6) for line in learned[1:])


def test_threads_are_those_of_the_config(debug: Config, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        trainer = Trainer(dataclasses.replace(debug, threads=2), tmp_path / "run")
        trainer._collector.close()
        assert torch.get_num_threads() == 2
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    with pytest.raises(ValueError, match="threads: -1 must not be negative"):
        dataclasses.replace(debug, threads=-1).validate()


def test_interrupt_saves_and_tells_how_to_go_on(tmp_path: Path) -> None:
    """SIGINT in a real process leaves a checkpoint; `--resume` finishes the run."""
    run = tmp_path / "run"
    command = [sys.executable, "-c", "from drama.cli import main; main()", "train"]
    start = ["Pong", "--preset", "debug", "--device", "cpu", "--steps", "100000", "--run", str(run)]
    process = subprocess.Popen([*command, *start], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics_file = run / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (metrics_file.exists() and "world_model" in metrics_file.read_text()):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert f"drama train --resume {run}" in out
    step = int(checkpoint.latest(run).name.removeprefix("step-"))
    assert step > 64
    assert str(step) in out
    again = subprocess.run(
        [*command, "--resume", str(run), "--steps", str(step + 40)], capture_output=True, text=True, timeout=60
    )
    assert again.returncode == 0, again.stderr
    assert checkpoint.latest(run).name == f"step-{step + 40:09d}"


def test_a_loss_that_is_not_finite_stops_the_run_before_a_checkpoint(debug: Config, tmp_path: Path) -> None:
    trainer = Trainer(debug, tmp_path / "run")
    with torch.no_grad():
        trainer.learner.world_model.prior.bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="world_model"):
        trainer.train()
    assert (
        not checkpoint.list_checkpoints(tmp_path / "run") or checkpoint.latest(tmp_path / "run").name < "step-000000070"
    )


def test_world_model_learns_a_fixed_batch_of_pong() -> None:
    """In 120 updates on one batch of real frames the reconstruction loss falls tenfold, the reward loss fourfold."""
    torch.manual_seed(0)
    base = preset("debug")
    config = dataclasses.replace(base, env=EnvConfig(size=32, grayscale=True), device="cpu")
    learner = Learner(config, interface_of("Pong", config.env), torch.device("cpu"))
    buffer = random_play(config, 120)
    sample = buffer.sample(8, 32, sampler=Uniform())
    learner.start_from_frames({LONE: sample[LONE]})
    batch = learner.to_batch(sample)
    history = [learner.update_world_model(batch) for _ in range(120)]
    first, last = history[0], history[-1]
    assert last["reconstruction"] < first["reconstruction"] / 10
    assert last["reward"] < first["reward"] / 4
    assert last["termination"] < first["termination"] / 4
