"""Runs that are killed, run out of disk or diverge: the last checkpoint is whole, and going on from it is exact."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import metrics

from drama.cli import main
from drama.config import Config
from drama.hints import command as hinted
from drama.replay import ReplayBuffer
from drama.training import checkpoint
from drama.training.trainer import Trainer

DRAMA = [sys.executable, "-c", "from drama.cli import main; main()"]


class Spawned:
    """The command line in a fresh interpreter."""

    def __init__(self, args: list[str]) -> None:
        self._process = subprocess.Popen([*DRAMA, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.kill, self.wait = self._process.kill, self._process.wait


class Forked:
    """The command line in a process that has imported everything already, so that many can be started."""

    def __init__(self, args: list[str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["drama.cli.commands"])
        self._process = context.Process(target=main, args=(args,))
        self._process.start()
        self.kill = self._process.kill

    def wait(self) -> int | None:
        self._process.join()
        return self._process.exitcode


def wait_until(moment: Callable[[], bool], seconds: float = 60) -> bool:
    """Poll without a pause, for a moment can be short."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if moment():
            return True
    return False


def instants(run: Path, seed: int) -> Iterator[Callable[[], object]]:
    """Endless waits for random instants: inside the writing of a checkpoint, soon after one, and while loading."""
    chance = random.Random(seed)
    folder = run / "checkpoints"

    def written() -> set[str]:
        return set(os.listdir(folder)) if folder.exists() else set()

    def while_writing() -> None:
        wait_until(lambda: any(name.startswith(".tmp-step") for name in written()))
        time.sleep(chance.uniform(0, 0.004))

    def after_one() -> None:
        before = written()
        wait_until(lambda: bool({name for name in written() if name.startswith("step")} - before))
        time.sleep(chance.uniform(0, 0.05))

    def early() -> None:
        wait_until((run / "config.json").exists)
        time.sleep(chance.uniform(0, 0.4))

    while True:
        yield chance.choice([while_writing, while_writing, after_one, early])


def survive(config: Config, tmp_path: Path, kills: int, start: type[Forked | Spawned]) -> None:
    """Kill a run of the command line so many times, go on each time, and compare with a run that was left alone."""
    log = dataclasses.replace(config.log, checkpoint_every=5, image_every=40, eval_episodes=0)
    config = dataclasses.replace(config, steps=64 + 12 * kills, log=log)
    assert Trainer(config, tmp_path / "whole").train()
    run = tmp_path / "killed"
    options = ["--preset=debug", "--device=cpu", f"--steps={config.steps}", "--log.eval-episodes=0"]
    options += ["--log.checkpoint-every=5", "--log.image-every=40"]
    begin = ["train", "Pong", *options, "--run", str(run)]
    resume = ["train", "--resume", str(run)]
    done = 0
    waits = instants(run, seed=kills)
    while done < kills:
        process = start(resume if run.exists() else begin)
        next(waits)()
        process.kill()
        code = process.wait()
        assert code == -signal.SIGKILL, f"after {done} kills the run ended by itself with {code}"
        done += 1
        for folder in checkpoint.list_checkpoints(run):
            assert checkpoint.load_state(folder, torch.device("cpu"))["step"] == int(folder.name.removeprefix("step-"))
            ReplayBuffer.load(folder / "replay")
    assert start(resume).wait() == 0
    assert metrics(run) == metrics(tmp_path / "whole")
    left, right = (checkpoint.latest(r) for r in (tmp_path / "whole", run))
    assert left.name == right.name
    cpu = torch.device("cpu")
    same_contents(checkpoint.load_state(left, cpu), checkpoint.load_state(right, cpu))
    assert not list((run / "checkpoints").glob(".tmp-*"))


def same_contents(left: Any, right: Any, where: str = "state") -> None:
    """Nested containers with equal tensors, bit for bit."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            same_contents(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for i, pair in enumerate(zip(left, right, strict=True)):
            same_contents(pair[0], pair[1], f"{where}.{i}")
    elif isinstance(left, torch.Tensor):
        assert torch.equal(left, right), where
    else:
        assert left == right, where


def test_a_killed_run_goes_on_exactly(debug: Config, tmp_path: Path) -> None:
    survive(debug, tmp_path, 3, Forked)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("kills", "start"), [(30, Forked), (24, Spawned)])
def test_a_run_killed_many_times_goes_on_exactly(
    debug: Config, tmp_path: Path, kills: int, start: type[Forked | Spawned]
) -> None:
    survive(debug, tmp_path, kills, start)


def test_a_run_killed_before_its_first_checkpoint_begins_again(debug: Config, tmp_path: Path) -> None:
    run = tmp_path / "run"
    Trainer(debug, run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "episode", "step": 7, "return": 1, "length": 7}\n')
    trainer = Trainer.resume(run)
    assert trainer.step == 0
    assert trainer.train()
    assert Trainer(debug, tmp_path / "whole").train()
    assert metrics(run) == metrics(tmp_path / "whole")


def test_a_full_disk_stops_the_run_with_one_line_and_a_whole_checkpoint(small_disk: Path) -> None:
    """The disk fills while a checkpoint is written: the half of it is removed, and with room again the run goes on."""
    run = small_disk / "run"
    command = [
        *DRAMA,
        "train",
        "Pong",
        "--preset=debug",
        "--device=cpu",
        "--log.checkpoint-every=20",
        "--run",
        str(run),
    ]
    filler = small_disk / "filler"
    filler.write_bytes(bytes(int(14.6 * 2**20)))  # room for one or two checkpoints
    stopped = subprocess.run(command, capture_output=True, text=True, check=False)
    assert stopped.returncode == 2, stopped.stdout
    assert stopped.stderr.count("\n") == 1, stopped.stderr
    assert stopped.stderr.startswith("drama: error: ")
    assert "No space left on device" in stopped.stderr
    step = int(checkpoint.latest(run).name.removeprefix("step-"))
    assert f"`{hinted('train', '--resume', run)}` goes on from step {step}" in stopped.stderr
    assert not list((run / "checkpoints").glob(".tmp-*"))
    filler.unlink()
    assert Trainer.resume(run).train()


def test_files_that_may_not_grow_stop_the_run_with_one_line(tmp_path: Path) -> None:
    """The same through a limit on the size of files, which needs no rights."""
    run = tmp_path / "run"
    args = ["train", "Pong", "--preset=debug", "--device=cpu", "--log.checkpoint-every=20", f"--run={run}"]
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2); {DRAMA[2]}"
    stopped = subprocess.run([DRAMA[0], "-c", limited, *args], capture_output=True, text=True, check=False)
    assert stopped.returncode == 2, stopped.stderr
    assert "File too large" in stopped.stderr
    assert stopped.stderr.count("\n") == 1, stopped.stderr
    assert f"`{hinted('train', '--resume', run)}` goes on from" in stopped.stderr
    assert Trainer.resume(run).train()


@pytest.mark.parametrize("network", ["world_model", "agent"])
def test_divergence_names_the_loss_and_leaves_the_last_checkpoint(debug: Config, tmp_path: Path, network: str) -> None:
    train = dataclasses.replace(debug.train, warmup_updates=0)
    diverging = {
        "world_model": dataclasses.replace(train, world_model_lr=1e30),
        "agent": dataclasses.replace(train, agent_lr=1e30),
    }
    run = tmp_path / "run"
    with pytest.raises(FloatingPointError, match=rf"{network}/loss.* not finite before step .*goes on from step 60"):
        Trainer(dataclasses.replace(debug, train=diverging[network]), run).train()
    assert Trainer.resume(run).step == 60


@pytest.mark.parametrize("part", sorted(checkpoint.PARTS))
def test_a_checkpoint_without_a_part_is_refused_by_name(debug: Config, tmp_path: Path, part: str) -> None:
    trainer = Trainer(debug, tmp_path / "run")
    folder = trainer.save()
    state = torch.load(folder / "state.pt", weights_only=True)
    del state[part]
    torch.save(state, folder / "state.pt")
    with pytest.raises(ValueError, match=rf"state\.pt: the checkpoint lacks {part}$"):
        Trainer.resume(tmp_path / "run")


class Made:
    """What becomes a call when it is read back."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> Any:
        return self._call


def compressed(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        records = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in records.items():
            file.writestr(name, data)


@pytest.mark.parametrize(
    ("hostile", "change"),
    [
        (torch.zeros(10**6), compressed),
        (torch.zeros(1).expand(1000, 1000), None),
        (Made(bytearray, 10**7), None),
        (Made(torch.FloatTensor, 10**7), None),
    ],
    ids=["compressed", "repeated", "bytes", "tensor"],
)
def test_a_checkpoint_of_somebody_else_takes_no_more_memory_than_its_size(
    hostile: Any, change: Callable[[Path], None] | None, tmp_path: Path
) -> None:
    path = tmp_path / "state.pt"
    state: dict[str, Any] = {"version": checkpoint.VERSION, "step": 1, **{part: {} for part in checkpoint.PARTS}}
    torch.save(state, path)
    assert checkpoint.load_state(tmp_path, torch.device("cpu")) == state
    torch.save({**state, "more": [{"deep": hostile}]}, path)
    if change is not None:
        change(path)
    with pytest.raises(ValueError, match=r"state\.pt: truncated, damaged, or not a checkpoint"):
        checkpoint.load_state(tmp_path, torch.device("cpu"))


def test_a_termination_signal_saves_and_tells_how_to_go_on(tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = ["train", "Pong", "--preset=debug", "--device=cpu", "--steps=100000", f"--run={run}"]
    process = subprocess.Popen([*DRAMA, *args], stdout=subprocess.PIPE, text=True)
    assert wait_until(lambda: (run / "metrics.jsonl").exists() and "world_model" in (run / "metrics.jsonl").read_text())
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    step = int(checkpoint.latest(run).name.removeprefix("step-"))
    assert f"stopped at step {step}; `{hinted('train', '--resume', run)}` goes on" in out
