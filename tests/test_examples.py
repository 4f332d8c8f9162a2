"""Each example and the benchmarks run to the end, small."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skip where a module of the `examples` group is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)} (dependency group examples)")


def run(script: str, *arguments: str | Path, timeout: float = 110) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / script, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs("torch", "gymnasium")
def test_dqn_reports_its_progress() -> None:
    said = run("examples/dqn_cartpole.py", "--steps", "1000")
    assert said.startswith("step   1000")
    assert "mean return of the last 20" in said


@pytest.mark.slow
@pytest.mark.timeout(200)
@needs("torch", "gymnasium")
def test_dqn_solves_cartpole() -> None:
    assert "solved after" in run("examples/dqn_cartpole.py", timeout=180)


def test_a_loop_of_ones_own_learns() -> None:
    said = run("examples/own_loop.py", "--steps", "500", "--preset", "debug")
    assert "an episode of" in said
    assert "step 500: world_model/loss" in said


@needs("torch", "gymnasium", "PIL", "stable_baselines3")
def test_stable_baselines3_learns_from_our_buffer(tmp_path: Path) -> None:
    png = tmp_path / "curves.png"
    said = run("examples/sb3_replay.py", "--steps", "1000", "--seeds", "0", "--png", png).splitlines()
    assert [line.split(" seed")[0].strip() for line in said[1:3]] == ["Stable-Baselines3", "drama"]
    from PIL import Image

    with Image.open(png) as image:
        colours = image.convert("RGB").getcolors(maxcolors=1 << 20)
    assert colours is not None
    drawn = {colour for _, colour in colours}
    assert {(31, 119, 180), (214, 39, 40)} <= drawn


@needs("gymnasium", "minari", "h5py", "jax")
def test_a_minari_dataset_is_imported_row_for_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    said = run("examples/minari_import.py", "--episodes", "20")
    assert "in 20 episodes" in said
    check = """
import sys, warnings
import numpy as np
sys.path.insert(0, sys.argv[1])
from minari_import import import_dataset, record

dataset = record(20)
buffer = import_dataset(dataset)
rows = buffer.gather([0], len(buffer))
end = 0
for episode in dataset.iterate_episodes():
    begin, end = end, end + len(episode.rewards)
    part = {name: column[0, begin:end] for name, column in rows.items()}
    np.testing.assert_array_equal(part["obs"], episode.observations[:-1])
    np.testing.assert_array_equal(part["action"], episode.actions)
    np.testing.assert_array_equal(part["reward"], episode.rewards)
    np.testing.assert_array_equal(part["terminated"], episode.terminations)
    np.testing.assert_array_equal(part["truncated"], episode.truncations)
    np.testing.assert_array_equal(part["is_first"], np.arange(end - begin) == 0)
assert end == len(buffer) == dataset.total_steps
last = {e.observations[-2].tobytes(): e.observations[-1] for e in dataset.iterate_episodes() if e.truncations[-1]}
batch = buffer.sample_transitions(2000)
cut = [i for i in range(2000) if batch["truncated"][i] and not batch["terminated"][i]]
assert cut and last
for i in cut:
    np.testing.assert_array_equal(batch["next_obs"][i], last[batch["obs"][i].tobytes()])
print("fine")
"""
    script = tmp_path / "check.py"
    script.write_text(check)
    assert run(str(script), ROOT / "examples") == "fine\n"


def test_the_replay_benchmark_runs_and_names_what_it_left_out() -> None:
    sizes = ["--rows", "9000", "--large", "20000", "--seconds", "0.02"]
    result = json.loads(run("benchmarks/replay.py", *sizes, "--json"))
    assert {row["section"] for row in result["rows"]} == {"sequences", "draw", "add", "transitions", "save"}
    assert all(row["seconds"] > 0 for row in result["rows"])
    for peer in ("torchrl", "cpprb", "stable_baselines3"):
        there = importlib.util.find_spec(peer) is not None
        assert there != any(f"left out: {peer}" in line for line in result["left_out"])


def test_the_compression_benchmark_shows_ratio_and_cost() -> None:
    options = ["--games", "Pong", "--rows", "300", "--seconds", "0.02"]
    result = json.loads(run("benchmarks/replay_compression.py", *options, "--json"))["Pong"]
    assert result["ratio"] > 5
    assert {row["name"] for row in result["rows"]} == {"with compress=", "without"}
    assert all(row["seconds"] > 0 for row in result["rows"])


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_benchmark_of_environments_runs_and_names_what_it_left_out() -> None:
    sections = ["pong-1", "cartpole-8", "millisecond-8"]
    options = ["--only", *sections, "--cores", "1", "--seconds", "0.02", "--json"]
    result = json.loads(run("benchmarks/envs.py", *options, timeout=300))
    assert {row["section"] for row in result["rows"]} == set(sections)
    assert all(row["steps_per_second"] > 0 and row["cores"] == 1 for row in result["rows"])
    for module, name in (("envpool", "EnvPool"), ("ale_py", "ale_py AtariVectorEnv")):
        there = importlib.util.find_spec(module) is not None
        assert there == any(row["name"] == name for row in result["rows"])
        assert there != any(f"left out: {name}" in line for line in result["left_out"])


LEARNERS = (("catch", "ours"), ("catch", "prior"), ("catch", "ppo"))


@pytest.fixture(scope="module")
def learning() -> Iterator[dict[tuple[str, str], subprocess.Popen[str]]]:
    """The benchmark of learning, one process for each task and agent, side by side."""
    command = [sys.executable, str(ROOT / "benchmarks/learning.py"), "--seeds", "1", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    processes = {
        (task, agent): subprocess.Popen(
            [*command, "--tasks", task, "--agents", agent], stdout=subprocess.PIPE, text=True, env=environment
        )
        for task, agent in LEARNERS
    }
    yield processes
    for process in processes.values():
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("task", "agent"), LEARNERS)
def test_it_learns(task: str, agent: str, learning: dict[tuple[str, str], subprocess.Popen[str]]) -> None:
    """A reflex, also when it acts on the predicted latent and with PPO. Random play has a mean of -0.74.

    Recall is not among them: which seeds learn it depends on rounding (docs/learning.md).
    """
    said, _ = learning[task, agent].communicate()
    (row,) = json.loads(said)
    assert (row["task"], row["agent"], len(row["returns"])) == (task, agent, 1)
    assert row["mean"] > 0.4
