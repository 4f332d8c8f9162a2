"""The command line as a person meets it: help, facts, and one clear line for every mistake."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drama import __version__
from drama.cli import main
from drama.config import PRESETS, Config, EnvConfig, LatentConfig, preset
from drama.training import checkpoint
from drama.training.learner import Learner
from drama.training.trainer import Trainer
from helpers import frames

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def drama(capsys: pytest.CaptureFixture[str]) -> Run:
    """Call the command line; gives exit code, standard output and standard error."""

    def call(*args: str | Path) -> tuple[int, str, str]:
        code: object = 0
        try:
            main([str(arg) for arg in args])
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capsys.readouterr()
        assert isinstance(code, int)
        return code, out, err

    return call


DEBUG = ("--preset", "debug", "--device", "cpu")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["train", "Pongg", *DEBUG], ["game", "'Pongg'", "did you mean Pong"]),
        (
            ["train", "Pong", "--preset", "cpuu"],
            ["preset", "'cpuu'", "did you mean cpu", "paper, paper-m, paper-l, cpu"],
        ),
        (
            ["train", "Pong", *DEBUG, "--train.batch-sizes", "3"],
            ["--train.batch-sizes: there is no such option (did you mean --train.batch-size"],
        ),
        (["train", "Pong", *DEBUG, "--steps", "many"], ["--steps: got 'many', expected a whole number"]),
        (
            ["train", "Pong", "--preset", "debug", "--device", "gpu"],
            ["--device: got 'gpu', expected auto, cpu or cuda"],
        ),
        (["train", "Pong", *DEBUG, "--steps", "64"], ["steps: 64", "train.start_step = 64"]),
        (["train", "Pong", *DEBUG, "--train.start-step", "10"], ["train.start_step: 10", "needs 20"]),
        (["train", "Pong", *DEBUG, "--env.size", "36"], ["env.size: 36", "multiple of 8"]),
        (["train", "Pong", *DEBUG, "--world-model.sequence.backend", "lstm"], ["backend", "'lstm'", "mamba2"]),
        (["train", "Pong", *DEBUG, "--world-model.sequence.head-dim", "33"], ["headdim: 33", "64"]),
        (["train", "Pong", *DEBUG, "--seed", "-1"], ["seed: -1"]),
        (["train"], ["GAME is missing, expected: An Atari game"]),
        (["train", "Pong", *DEBUG, "--seed", "1.5"], ["--seed: got '1.5', expected a whole number"]),
        (["train", "Pong", *DEBUG, "--steps"], ["--steps: a value is missing, expected a whole number"]),
        (["train", "Pong", "--preset", "--steps", "9"], ["--preset: a value is missing"]),
        (["train", "Pong", *DEBUG, "--train.agent-lr=x"], ["--train.agent-lr: got 'x', expected a number"]),
        (
            ["train", "Pong", *DEBUG, "--world-model.vision.channels", "8", "x"],
            ["channels: got '8 x', expected whole nu"],
        ),
        (["train", "Pong", *DEBUG, "--train.cuda-graph", "no"], ["--train.cuda-graph: takes no value, got 'no'"]),
        (["train", "Pong", *DEBUG, "--env.kwargs", "[1]"], ["--env.kwargs: '[1]' is no JSON object"]),
        (["train", "Pong", *DEBUG, "--env.no-check=1"], ["--env.no-check: takes no value, got '1'"]),
        (
            ["train", "Pong", *DEBUG, "--agent.lambda", "1"],
            ["--agent.lambda: there is no such option (did you mean --ag"],
        ),
        (["train", "Pong", *DEBUG, "--agent.lambda_", "x"], ["--agent.lambda_: got 'x', expected a number"]),
        (["train", "Pong", *DEBUG, "--train.agent_lr", "-1"], ["train.agent_lr: -1.0 must be above 0"]),
        (["train", "Pong", *DEBUG, "-s", "3"], ["-s: there is no such option"]),
        (["train", "Pong", "Boxing", *DEBUG], ["'Boxing': one word too many"]),
        (
            ["eval", "x", "--protocol", "papr"],
            ["--protocol: got 'papr', expected standard or paper (did you mean paper?)"],
        ),
        (["eval", "x", "--checkpoint", "last"], ["--checkpoint: got 'last', expected a whole number"]),
        (["export", "x"], ["--out is missing, expected: The folder to write"]),
        (["report", ".", "--out", "x.html"], ["out: x.html must be a folder"]),
        (["version", "--foo"], ["drama version takes no arguments, got --foo"]),
        (["--help", "train"], ["drama --help takes no arguments, got train"]),
        (["help", "train", "eval"], ["drama help takes one command, got train eval"]),
        (["train", "--resume", "no-such-run"], ["no-such-run", "no such run folder"]),
        (["eval", "no-such-run"], ["no-such-run", "no such run folder"]),
        (["eval"], ["RUN is missing, expected: Folder of the run"]),
        (["trian", "Pong"], ["'trian'", "did you mean train"]),
        (["games", "Pong"], ["no arguments"]),
    ],
)
def test_a_mistake_gives_one_line_and_exit_code_2(drama: Run, args: list[str], said: list[str]) -> None:
    code, out, err = drama(*args)
    assert code == 2
    assert not out
    assert err.startswith("drama: error: ")
    assert err.count("\n") == 1
    for part in said:
        assert part in err


@pytest.mark.parametrize(
    "words",
    [
        ["games"],
        ["help", "games"],
        ["train", "Pongg", *DEBUG],
        ["train", "Pongg"],
        ["train", "Pong", "--preset", "cpuu"],
        ["train", "Pong", *DEBUG, "--seed", "-1"],
        ["train", "Pong", *DEBUG, "--run", "."],
        ["train", "--resume", "no-such-run"],
        ["eval", "no-such-run"],
        ["play", "no-such-run"],
        ["report", "no-such-run"],
        ["info", "Pongg"],
        ["dream", ".", "--out", "x.txt"],
        ["sweep", "--games", "Pongg", "--out", "x"],
    ],
)
def test_words_are_told_before_pytorch_is_imported(words: list[str], tmp_path: Path) -> None:
    code = """if True:
        import sys
        from drama.cli import main
        try:
            main()
        finally:
            print("torch" in sys.modules)"""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode == (0 if "games" in words else 2), done.stderr
    assert done.stdout.endswith("False\n")
    assert not [*tmp_path.iterdir()]


def test_cuda_that_is_not_there_is_refused(drama: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, _, err = drama("train", "Pong", "--preset", "debug", "--device", "cuda")
    assert code == 2
    assert "no CUDA device" in err


def test_a_run_folder_that_exists_is_refused(drama: Run, tmp_path: Path) -> None:
    code, _, err = drama("train", "Pong", *DEBUG, "--run", tmp_path)
    assert code == 2
    assert f"{tmp_path}: this run folder exists" in err
    assert f"--resume {tmp_path}` goes on with it, --run NAME starts another" in err
    with pytest.raises(ValueError, match=r"resume=True\) goes on with it, run=NAME starts another"):
        Trainer(preset("debug"), tmp_path)  # in Python, hints are Python's


def test_a_longer_run_says_that_its_replay_keeps_its_size(pong_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pong_run, run)
    assert not Trainer.resume(run).notes
    longer = Trainer.resume(run, 130)
    assert longer.notes == ["the replay keeps the size that the run began with: the last 120 steps"]
    assert longer.replay.capacity == 120


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "truncated, damaged, or not a checkpoint"),
        (lambda path: path.write_text("no checkpoint"), "truncated, damaged, or not a checkpoint"),
        (lambda path: path.unlink(), "lacks this file"),
    ],
)
def test_an_unreadable_checkpoint_is_named(
    drama: Run, pong_run: Path, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(pong_run, run)
    state = run / "checkpoints" / "step-000000120" / "state.pt"
    damage(state)
    code, _, err = drama("eval", run)
    assert code == 2
    assert str(state) in err
    assert said in err


def test_a_checkpoint_that_a_run_removes_meanwhile_is_told_of(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints" / "step-000000060"
    with pytest.raises(ValueError, match=rf"{folder}: the run has gone on and removed this checkpoint; try again"):
        checkpoint.load_state(folder, torch.device("cpu"))


def test_a_damaged_replay_is_named(drama: Run, pong_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pong_run, run)
    chunk = next((run / "checkpoints" / "step-000000120" / "replay").glob("chunk*"))
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.unlink()
    chunk.write_bytes(data)
    code, _, err = drama("train", "--resume", run, "--steps", "200")
    assert code == 2
    assert chunk.name in err


def test_a_config_of_another_version_is_refused(drama: Run, pong_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pong_run, run)
    config = run / "config.json"
    config.write_text(config.read_text().replace('"seed"', '"sead"'))
    code, _, err = drama("eval", run)
    assert code == 2
    assert f"{config}: sead: unknown field (did you mean seed" in err


@pytest.mark.parametrize(("module", "extra"), [("torch", "train"), ("ale_py", "atari"), ("tyro", "train")])
def test_a_missing_extra_names_the_pip_command(module: str, extra: str, tmp_path: Path) -> None:
    """In an interpreter that cannot import the module, the command says what to install."""
    code = f"import sys; sys.modules[{module!r}] = None; from drama.cli import main; main(['info', 'Pong'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 2
    brings = f"{sys.executable} -m pip install 'drama-rl[{extra}]'"  # in a clone too: the package is there already
    if module == "ale_py":  # all else works without it, so the game is unknown
        assert "game: 'Pong' is unknown" in done.stderr
        assert done.stderr.endswith(f"Atari games need ale_py: `{brings}` brings it\n")
    else:
        assert done.stderr == f"drama: error: {module} is not installed; `{brings}` brings it\n"


@pytest.mark.parametrize(
    ("name", "use", "missing", "extra"),
    [
        ("train", "drama.train", "torch", "train"),
        ("load", "drama.load", "torch", "train"),
        ("sb3", "import drama.sb3", "torch", "sb3"),
        ("sb3", "import drama.sb3", "stable_baselines3", "sb3"),
        ("replay.to_torch", "import drama.replay; drama.replay.to_torch({})", "torch", "train"),
    ],
)
def test_a_missing_extra_names_the_pip_command_in_python_too(
    name: str, use: str, missing: str, extra: str, tmp_path: Path
) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import drama; {use}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    brings = f"`{sys.executable} -m pip install 'drama-rl[{extra}]'` brings it"
    package = rf"{missing}(\.[\w.]+)?"
    expected = rf"ModuleNotFoundError: drama\.{name} needs the package {package}: {re.escape(brings)}\n$"
    assert re.search(expected, done.stderr), done.stderr


def test_the_module_is_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "drama", "--version"], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.stdout == f"{__version__}\n"


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ("Pong", "6 actions"),
        ("Pendulum-v1", "continuous actions of 1 number"),
        ("test_api:Mixed", "actions of 2 choices, from 2, 3"),
    ],
)
def test_info_tells_the_kind_of_action(drama: Run, env: str, words: str) -> None:
    code, out, _ = drama("info", env, "--device", "cpu")
    assert code == 0
    assert re.search(rf"^{env}, preset [\w-]+, {words}$", out, re.MULTILINE), out


@pytest.mark.parametrize("option", ["--seed", "--log.eval-episodes", "--log.eval_episodes=3", "--env.no-grayscale"])
def test_a_resumed_run_keeps_its_options(drama: Run, option: str, tmp_path: Path) -> None:
    code, _, err = drama("train", "--resume", str(tmp_path), option)
    assert code == 2
    name = option.partition("=")[0].replace("_", "-")
    assert err == f"drama: error: {name}: a run that is resumed keeps its options, but for --steps\n"


def test_replay_needs_numpy_only() -> None:
    code = (
        "import sys, drama.replay; "
        "print([m for m in ('torch', 'gymnasium', 'ale_py', 'tyro', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_info_counts_parameters(drama: Run) -> None:
    code, out, _ = drama("info", "Pong", "--preset", "paper", "--device", "cpu", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["actions"] == 6
    assert 7.0e6 <= sum(facts["parameters"]["world_model"].values()) <= 7.3e6
    assert facts["replay_rows"] == 100_000
    assert facts["replay_bytes"] > 100_000 * 64 * 64 * 3
    assert facts["milliseconds"] is None
    # Of the world model's products most are the convolutions; by hand, the encoder's, three times (backward counts two,
    # the first layer one), and the decoder's mirror image of it, three times.
    sides, channels = (64, 32, 16, 8, 4), (3, 16, 32, 48, 64, 64)
    layers = [25 * s * s * a * b for s, a, b in zip(sides, channels, channels[1:], strict=False)]
    convolutions = 16 * 128 * (6 * sum(layers) - layers[0])
    assert convolutions < facts["multiply_adds"]["world_model"] < 1.2 * convolutions


def test_info_of_a_run_and_of_an_export(
    drama: Run, pong_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = json.loads(drama("info", pong_run, "--json")[1])
    assert facts["run"]["step"] == facts["run"]["steps"] == 120
    assert facts["run"]["checkpoints"] == [60, 120]
    assert facts["run"]["evaluations"][0]["episodes"] == 2
    alone = json.loads(drama("info", "Pong", *DEBUG, "--json")[1])
    assert facts["parameters"] == alone["parameters"]
    drama("export", pong_run, "--out", tmp_path / "agent")
    code, out, err = drama("info", tmp_path / "agent")
    assert (code, err) == (0, "")
    assert f"{tmp_path}/agent: step 120 of 120, seed 0\nevaluation at step 120: mean return " in out
    assert "Pong, preset debug, 6 actions" in out
    young = tmp_path / "young"
    young.mkdir()
    for name in ("config.json", "interface.json"):
        shutil.copy(pong_run / name, young)
    assert "young: step 0 of 120, seed 0\n\nPong" in drama("info", young)[1]
    code, _, err = drama("info", pong_run, "--steps", "3")
    assert code == 2
    assert "--steps: there is no such option" in err
    code, _, err = drama("info", "--json", tmp_path)
    assert code == 2
    assert "config.json: cannot be read" in err
    (tmp_path / "debug").mkdir()
    monkeypatch.chdir(tmp_path)
    assert drama("info", "--preset", "debug", "Catch", "--device", "cpu")[0] == 0


def test_info_measures_when_asked(drama: Run) -> None:
    _, text, _ = drama("info", "Pong", *DEBUG, "--measure")
    facts = json.loads(drama("info", "Pong", *DEBUG, "--measure", "--json")[1])
    assert f"{facts['parameters']['world_model']['encoder']:,}" in text
    assert f"G multiply-adds: world model {facts['multiply_adds']['world_model'] / 1e9:,.2f}" in text
    assert "  ms: world model " in text
    assert facts["milliseconds"].keys() == {"world_model", "agent", "acting", "sum"}
    assert all(value > 0 for value in facts["milliseconds"].values())
    per_update = json.loads(drama("info", "Pong", *DEBUG, "--train.train-every", "1", "--json")[1])
    assert per_update["multiply_adds"]["sum"] == pytest.approx(4 * facts["multiply_adds"]["sum"])


@pytest.mark.parametrize(
    ("name", "world_model", "agent"),
    [("paper", 7.15e6, 3.4e6), ("paper-m", 34.7e6, 13.1e6), ("paper-l", 92.2e6, 29.1e6)],
)
def test_sizes_of_the_papers_presets(name: str, world_model: float, agent: float) -> None:
    config = preset(name)
    learner = Learner(config, frames(config, 3, 6), torch.device("cpu"))
    for network, count in ((learner.world_model, world_model), (learner.agent, agent)):
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(count, rel=0.01)


def test_help_and_games(drama: Run) -> None:
    assert "train" in drama("--help")[1]
    short, whole = drama("train", "--help")[1], drama("train", "--help-all")[1]
    assert "--train.num-envs" in short
    assert "--train.batch-size" not in short
    assert "--train.num-envs" in whole
    assert "--train.batch-size" in whole
    assert {"Pong", "Breakout", "Catch"} <= set(drama("games")[1].split())


@pytest.mark.parametrize("words", [["help"], ["--help"], ["-h"], []])
def test_help_lists_the_commands(drama: Run, words: list[str]) -> None:
    code, out, err = drama(*words)
    assert (code, err) == (0, "")
    assert out.startswith("usage: drama COMMAND")


def test_help_of_a_command_and_version(drama: Run) -> None:
    assert drama("help", "train") == drama("train", "--help")
    assert drama("version") == drama("--version") == (0, f"{__version__}\n", "")
    code, _, err = drama("help", "trian")
    assert code == 2
    assert "'trian' (did you mean train?)" in err


@pytest.mark.parametrize("words", [["games"], ["version"]])
def test_a_reader_that_goes_and_a_full_disk_leave_no_traceback(words: list[str]) -> None:
    """Nobody may read the pipe any more, and short output is written only as Python ends."""
    command = [sys.executable, "-c", "from drama.cli import main; main()", *words]
    read, write = os.pipe()
    os.close(read)
    gone = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (gone.returncode, gone.stderr) == (0, "")
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("drama: error: [Errno 28]")
        assert done.stderr.count("\n") == 1


def test_the_last_lines_of_a_training_can_be_pasted(
    drama: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a shell that knows nothing of the environment, from a folder with a space in its name."""
    folder = tmp_path / "my runs"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    _, out, _ = drama("train", "Catch", *DEBUG, "--run", "a run", "--log.eval-episodes", "0")
    lines = out.partition("results: ")[2].splitlines()[1:]
    assert len(lines) == 4
    for line in lines:
        assert "'a run'" in line
        program = line.split()[0]
        env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": os.pathsep.join(sys.path)}
        shell = ["sh", "-c", f"command -v {program}"]
        found = subprocess.run(shell, env=env, capture_output=True, text=True, check=False).stdout.strip()
        assert Path(found) == Path(sys.executable).parent / Path(program).name
    evaluate = next(line for line in lines if " eval " in line).replace("  #", " --episodes 1 --device cpu  #")
    done = subprocess.run(["sh", "-c", evaluate], env=env, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "Catch after" in done.stdout


def test_eval_and_dream_of_a_finished_run(drama: Run, pong_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(pong_run, run)
    code, out, _ = drama("eval", run, "--episodes", "3", "--json")
    assert code == 0
    result = json.loads(out)
    assert len(result["episodes"]) == 3
    assert {e["env"] for e in result["episodes"]} == {0, 1}
    assert result["mean"] == pytest.approx(sum(e["return"] for e in result["episodes"]) / 3)
    for name in ("dream.gif", "dream.mp4", "dream.png"):
        code, _, err = drama("dream", run, "--out", tmp_path / name, "--steps", "20")
        assert code == 0, err
        assert (tmp_path / name).stat().st_size > 1000
    for words, said in (
        (["--out", tmp_path / "dream.txt"], "dream.txt must end in .gif, .mp4 or .png"),
        (["--steps", "1000000"], "steps: 1000000 are more than the 2000 frames"),
    ):
        code, _, err = drama("dream", run, *words)
        assert code == 2
        assert said in err


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_survive_json(name: str) -> None:
    config = preset(name)
    config.validate()
    assert Config.from_json(config.to_json()) == config
    assert config.preset == name


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 1000, "steps: 1000 is fewer than the warm-up train.start_step = 1032"),
        ("seed", -1, "seed: -1 must not be negative"),
        ("train.start_step", 20, "train.start_step: 20 rows cannot fill the first batch, which needs 1032"),
        ("train.replay_capacity", 99, "train.replay_capacity: 99 is less than train.start_step = 1032"),
        ("train.shift", -1, "train.shift: -1 must not be negative"),
        ("train.batch_size", 0, "train.batch_size: 0 must be at least 1"),
        ("train.context", 1, "train.context: 1 must be at least 2"),
        ("world_model.motion_scale", -1.0, "world_model.motion_scale: -1.0 must not be negative"),
        ("agent.replay_value_scale", -1.0, "agent.replay_value_scale: -1.0 must not be negative"),
        ("world_model.decoded_share", 0.0, "world_model.decoded_share: 0.0 must be above 0 and at most 1"),
        ("world_model.vision.kernel", 4, "world_model.vision.kernel: 4 must be odd"),
        ("world_model.vision.strides", [2, 2], r"world_model.vision.strides: \(2, 2\) must hold .* 5 channels"),
        ("env.size", 60, "env.size: 60 must be square, a multiple of 16"),
        ("env.frame_stack", 4, "env.frame_stack: 4 must be 1"),
        ("log.eval_envs", 0, "log.eval_envs: 0 must be at least 1"),
        ("log.eval_episodes", -1, "log.eval_episodes: -1 must not be negative"),
    ],
)
def test_configs_that_cannot_work_are_refused(name: str, value: Any, message: str) -> None:
    values = json.loads(preset("paper").to_json())
    *sections, option = name.split(".")
    section = values
    for part in sections:
        section = section[part]
    section[option] = value
    with pytest.raises(ValueError, match=message):
        Config.from_json(json.dumps(values)).validate()


def test_config_json_refuses_unknown_fields_and_takes_the_default_of_missing_ones() -> None:
    values = json.loads(preset("debug").to_json())
    values["train"]["batchsize"] = 1
    with pytest.raises(ValueError, match=r"train\.batchsize: unknown field \(did you mean batch_size.*\?\)"):
        Config.from_json(json.dumps(values))
    del values["train"]["batchsize"], values["world_model"]["latent"]["classes"], values["env"], values["seed"]
    config = Config.from_json(json.dumps(values))
    latent = dataclasses.replace(preset("debug").world_model.latent, classes=LatentConfig().classes)
    assert config.world_model.latent == latent != preset("debug").world_model.latent
    assert (config.env, config.seed) == (EnvConfig(), Config().seed)
    assert (config.train, config.agent) == (preset("debug").train, preset("debug").agent)
    with pytest.raises(ValueError, match="not JSON"):
        Config.from_json("{")


def test_paper_holds_the_papers_numbers() -> None:
    """Against ALGORITHM.md's table and optimisation section (arXiv 2410.08893)."""
    config = preset("paper")
    train, agent, model = config.train, config.agent, config.world_model
    assert (config.steps, train.start_step, train.train_every) == (100_000, 1032, 1)
    assert (train.batch_size, train.batch_length, train.imagination_batch) == (16, 128, 1024)
    assert (train.context, train.horizon, train.dfs_temperature) == (8, 16, 10)
    assert (train.world_model_lr, train.agent_lr, train.warmup_updates) == (4e-5, 4e-5, 1000)
    assert (train.world_model_clip, train.agent_clip) == (1000, 100)
    assert (agent.discount, agent.lambda_, agent.entropy) == (0.985, 0.95, 3e-4)
    assert (agent.slow_critic_decay, agent.return_scale_decay) == (0.98, 0.99)
    assert dataclasses.astuple(model.latent) == (32, 32, 0.01, 0.0, False)
    assert model.reconstruction_scale == 1
    assert (model.dynamics_scale, model.representation_scale, model.free_bits) == (1.0, 0.1, 1.0)
    assert (model.bins, model.bin_limit, model.vision.output) == (255, 20, "sigmoid")


@pytest.mark.parametrize(
    ("given", "policy"), [({}, "passive"), ({"GOMP_SPINCOUNT": "9"}, None), ({"OMP_WAIT_POLICY": "active"}, "active")]
)
def test_threads_without_work_sleep_unless_the_user_says_otherwise(
    given: dict[str, str], policy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before torch is loaded, as OpenMP reads it only then."""
    seen: list[str | None] = []

    class Watched:
        def __getattr__(self, name: str) -> Callable[[list[str]], None]:
            return lambda _: seen.append(os.environ.get("OMP_WAIT_POLICY"))

    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "drama.cli.commands", Watched())
    monkeypatch.setattr("drama.cli.commands", Watched(), raising=False)
    with pytest.raises(SystemExit) as stop:
        main(["info", "Catch"])
    os.environ.pop("OMP_WAIT_POLICY", None)
    assert not stop.value.code
    assert seen == [policy]
