"""`drama sweep` and `drama.sweep` before Ray is there: arguments, addresses, folders."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from drama.cli.sweep import arguments
from drama.files import locked
from drama.sweeps.driver import _check_answers, _claimed, _inside
from drama.sweeps.plan import make_plan

BASE = ["--games", "pong", "Boxing", "--out", "x", "--preset", "debug"]


def test_what_the_command_line_means() -> None:
    given = arguments([*BASE, "--seeds", "2", "--seed", "3", "--steps", "300", "--train.batch-size=8", "--cpus", "2"])
    assert given["games"] == ("pong", "Boxing")
    assert list(given["seeds"]) == [3, 4]
    assert (given["preset"], given["cpus"], given["gpus"], given["out"]) == ("debug", 2, 0, "x")
    assert given["options"] == {"steps": 300, "train.batch_size": 8}


def test_an_option_that_has_the_value_of_the_preset_is_an_option_of_a_game_that_has_another() -> None:
    given = arguments(["--games", "CartPole-v1", "--out", "x", "--preset", "cpu", "--env.grayscale"])
    assert given["options"] == {"env.grayscale": True}  # without it, environments of Gymnasium are in colour
    assert not arguments(["--games", "CartPole-v1", "--out", "x", "--preset", "cpu"])["options"]


def test_axes_have_the_types_of_their_fields() -> None:
    given = arguments([*BASE, "--grid", "train.agent-lr", "1e-4", "3e-4", "--grid", "train.sampler", "dfs", "uniform"])
    assert given["grid"] == {"train.agent_lr": [1e-4, 3e-4], "train.sampler": ["dfs", "uniform"]}
    assert arguments([*BASE, "--grid", "env.check", "True", "False"])["grid"] == {"env.check": [True, False]}
    axes = ["--search", "train.agent-lr", "1e-5", "1e-3", "log", "--search", "train.batch_size", "4", "8"]
    given = arguments([*BASE, *axes])
    assert given["search"] == {"train.agent_lr": [1e-5, 1e-3, "log"], "train.batch_size": [4, 8]}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--games", "Pong"], "out: name the folder"),
        (["--out", "x"], "games: name at least one"),
        ([*BASE, "--grid", "train.agent-lx", "1"], "grid: 'train.agent-lx' is no field of the config .did you mean"),
        ([*BASE, "--grid", "train.batch-size", "many"], "train.batch-size.*'many'"),
        ([*BASE, "--grid"], "grid"),
        ([*BASE, "--grid", "env.check", "maybe"], "env.check: got 'maybe', expected True or False"),
        ([*BASE, "--preset", "auto"], "preset: auto is not for sweeps"),
        ([*BASE, "--sedes", "3"], "--sedes"),
    ],
)
def test_mistakes_in_the_command_line_are_named(args: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        arguments(args)


@pytest.mark.parametrize("address", ["somewhere", "host:port", "http://host:1", "ray://host", ":6379", "h:99999999"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ValueError, match="address:"):
        _check_answers(address)


@pytest.mark.parametrize("prefix", ["", "ray://"])
def test_an_address_where_nothing_or_something_else_answers(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drama.sweeps.driver.SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ValueError, match=f"address: what answers at {prefix}127.0.0.1:{port} is no Ray cluster"):
            _check_answers(f"{prefix}127.0.0.1:{port}")
    with pytest.raises(ValueError, match=f"address: nothing answers at {prefix}127.0.0.1:{port}"):
        _check_answers(f"{prefix}127.0.0.1:{port}")


def test_one_sweep_at_a_time_in_a_folder_and_only_its_own(tmp_path: Path) -> None:
    plan, out = make_plan("Catch", preset="debug"), tmp_path / "new" / "sweep"
    with _claimed(plan, str(out)):
        assert (out / "sweep.json").read_text() == plan.to_json()
        with pytest.raises(ValueError, match=r"process \d+ on .* is sweeping in this folder"), _claimed(plan, str(out)):
            pass
    with _claimed(plan, str(out)):
        pass
    with pytest.raises(ValueError, match="holds another sweep"), _claimed(make_plan("Pong", 2), str(out)):
        pass
    (out / "ray").mkdir()
    more = make_plan("Catch", 2, preset="debug")
    with _claimed(more, str(out)):
        assert (out / "sweep.json").read_text() == more.to_json()
        assert not (out / "ray").exists()
    with pytest.raises(ValueError, match="holds another sweep"), _claimed(plan, str(out)):
        pass
    (tmp_path / "mine").write_text("")
    with pytest.raises(ValueError, match="holds files that are of no sweep"), _claimed(plan, str(tmp_path)):
        pass


def test_an_object_store_keeps_what_the_sweep_is_as_well(tmp_path: Path) -> None:
    plan, where = make_plan("Catch", preset="debug"), f"file://{tmp_path}/store"  # through pyarrow, as all with ://
    with _claimed(plan, where), _claimed(plan, where):
        assert (tmp_path / "store" / "sweep.json").read_text() == plan.to_json()
    with pytest.raises(ValueError, match="holds another sweep"), _claimed(make_plan("Pong", 2), where):
        pass
    with (
        pytest.raises(ValueError, match="is smaller; in an object store"),
        _claimed(make_plan("Catch", 2, preset="debug"), where),
    ):
        pass
    with pytest.raises(ValueError, match="out: nowhere://x cannot be used"), _claimed(plan, "nowhere://x"):
        pass
    assert _inside("s3://bucket/a/?region=x", "ray") == "s3://bucket/a/ray?region=x"


def test_the_word_for_the_owner_of_a_run_stays(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(ValueError, match="is training in this folder"), locked(tmp_path):
        pass


@pytest.mark.parametrize("module", ["ray", "optuna"])
def test_without_ray_or_optuna_the_extra_is_named(module: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from drama.cli import main; main()"
    search = ["--search", "train.agent-lr", "1e-4", "1e-3", "--samples", "2"]
    command = [sys.executable, "-c", code, "sweep", "--games", "Catch", "--out", "x", "--preset", "debug", *search]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    brings = f"{sys.executable} -m pip install 'drama-rl[sweep]'"
    assert done.stderr.strip() == f"drama: error: {module} is not installed; `{brings}` brings it"
    assert not (tmp_path / "x").exists()
