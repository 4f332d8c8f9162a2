"""Sweeps on a real Ray: deaths of all kinds, faults of a run, a search, an object store, addresses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ROOT = Path(__file__).parents[2]
PROLOGUE = """
import json, sys
from pathlib import Path
import drama

out = Path(sys.argv[1])
tiny = {"preset": "debug", "options": {"steps": 120, "log.eval_episodes": 1}, "progress": False}
"""


def python(code: str, *args: Any, expected: int = 0) -> str:
    """Run a script as a process of its own, as Ray lives and dies with one; gives its output."""
    command = [sys.executable, "-c", PROLOGUE + code, *map(str, args)]
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == expected, done.stdout + done.stderr
    return done.stdout


def test_workers_nodes_and_the_driver_may_die_at_any_instant() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "sweep_faults.py"), "--kills", "3", "--seeds", "2"]
    done = subprocess.run([*command, "--steps", "400"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("those of the undisturbed run") >= 2


def test_a_fault_of_one_run_is_told_the_others_go_on_and_the_same_call_tries_it_again(tmp_path: Path) -> None:
    code = """
games = ["Catch", "broken_env:Sometimes"]
first = drama.sweep(games, out=out / "sweep", **tiny)
Path("mended").touch()
second = drama.sweep(games, out=out / "sweep", **tiny)
print(json.dumps([[[run.name, run.status, run.step, run.error] for run in done.runs] for done in (first, second)]))
"""
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        first, second = json.loads(python(code, tmp_path).splitlines()[-1])
    finally:
        os.chdir(before)
    assert [run[1] for run in first] == ["finished", "failed"]
    assert "this environment breaks at step 90" in first[1][3]
    assert "Traceback" in first[1][3]
    assert [run[1:3] for run in second] == [["finished", 120], ["finished", 120]]


def test_a_process_that_always_dies_is_given_up(tmp_path: Path) -> None:
    code = """
done = drama.sweep(["broken_env:Deadly", "Catch"], out=out / "sweep", max_failures=1, **tiny)
print(json.dumps([[run.status, run.error] for run in done.runs]))
"""
    deadly, catch = json.loads(python(code, tmp_path).splitlines()[-1])
    assert deadly == ["failed", "its process or node died 2 times in a row without getting any further"]
    assert catch[0] == "finished"


def test_optuna_chooses(tmp_path: Path) -> None:
    code = """
search = {"train.agent_lr": (1e-5, 1e-3, "log"), "train.batch_size": (2, 4)}
done = drama.sweep("Catch", out=out / "sweep", search=search, samples=3, **tiny)
print(json.dumps([[run.name, run.status] for run in done.runs]))
"""
    runs = json.loads(python(code, tmp_path).splitlines()[-1])
    assert [status for _, status in runs] == ["finished"] * 3
    configs = [json.loads((tmp_path / "sweep" / name / "config.json").read_text()) for name, _ in runs]
    assert len({config["train"]["agent_lr"] for config in configs}) == 3
    assert all(config["train"]["batch_size"] in (2, 3, 4) for config in configs)


def test_through_a_file_system_of_the_engine_a_killed_run_goes_on_and_is_a_run(tmp_path: Path) -> None:
    code = """
done = drama.sweep("broken_env:Once", out="local://" + str(out / "store"), **tiny)
print(json.dumps([[run.name, run.status, run.step, run.error] for run in done.runs]))
"""
    (run,) = json.loads(python(code, tmp_path).splitlines()[-1])
    assert run[1:3] == ["finished", 120], run


def test_refusals_of_a_cluster_and_a_client(tmp_path: Path) -> None:
    code = """
from ray.cluster_utils import Cluster

node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node | {"ray_client_server_port": 23101})
try:
    for changes in ({"cpus": 2}, {"gpus": 1}, {"address": "127.0.0.1:1"}):
        try:
            drama.sweep("Catch", out=out / "refused", **{"address": cluster.address} | changes, **tiny)
        except ValueError as error:
            print(error)
    done = drama.sweep("Catch", out=out / "client", address="ray://127.0.0.1:23101", **tiny)
    print(done.runs[0].status)
    try:
        drama.sweep("Catch", 2, out=out / "client", address="ray://127.0.0.1:23101", **tiny)
    except ValueError as error:
        print(error)
finally:
    cluster.shutdown()
"""
    lines = python(code, tmp_path).splitlines()
    assert [line for line in lines if line.startswith(("cpus", "gpus", "address", "finished", str(tmp_path)))] == [
        "cpus: a run asks for 2, and the most that one of the cluster's 1 nodes has is 1",
        "gpus: a run asks for 1, and the most that one of the cluster's 1 nodes has is 0",
        "address: nothing answers at 127.0.0.1:1 ([Errno 111] Connection refused)",
        "finished",
        f"{tmp_path}/client/sweep.json: the folder holds another sweep (seeds was [0], is now [0, 1]); take another"
        " folder, or the same command",
    ]
    assert not (tmp_path / "refused").exists()
