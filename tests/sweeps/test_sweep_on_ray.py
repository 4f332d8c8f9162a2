"""Sweeps on a real Ray: deaths of all kinds, faults of a run, a search, an object store, addresses."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import fs

import drama
from drama.results.report import read_run, runs_of
from drama.training import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1200)]

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
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "MENDED": str(Path(args[0], "mended"))}
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
(out / "mended").touch()
second = drama.sweep(games, out=out / "sweep", **tiny)
print(json.dumps([[[run.name, run.status, run.step, run.error] for run in done.runs] for done in (first, second)]))
"""
    first, second = json.loads(python(code, tmp_path).splitlines()[-1])
    assert [run[1] for run in first] == ["finished", "failed"]
    assert "this environment breaks at step 90" in first[1][3]
    assert "Traceback" in first[1][3]
    assert [run[1:3] for run in second] == [["finished", 120], ["finished", 120]]


def test_a_sweep_that_becomes_more_goes_on_with_its_runs(tmp_path: Path) -> None:
    code = """
drama.sweep(["Catch"], out=out / "sweep", **tiny)
before = (out / "sweep/catch-debug-seed0/metrics.jsonl").read_text()
more = tiny | {"options": tiny["options"] | {"steps": 160}}
done = drama.sweep(["Catch", "Recall"], seeds=2, out=out / "sweep", **more)
after = (out / "sweep/catch-debug-seed0/metrics.jsonl").read_text()
print(json.dumps([[[run.name, run.status, run.step] for run in done.runs], after.startswith(before), after != before]))
"""
    runs, same, longer = json.loads(python(code, tmp_path).splitlines()[-1])
    names = [f"{game}-debug-seed{seed}" for seed in (0, 1) for game in ("catch", "recall")]
    assert runs == [[name, "finished", 160] for name in names]
    assert same
    assert longer


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


@pytest.fixture
def object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a bucket of a server that speaks S3."""
    server = os.environ.get("MOTO_SERVER") or shutil.which("moto_server", path=str(Path(sys.executable).parent))
    if server is None:
        pytest.skip("there is no moto_server: pip install 'moto[server]', or MOTO_SERVER=PATH for one elsewhere")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (tmp_path / "moto.log").open("w") as log:
        process = subprocess.Popen([server, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    try:
        store = fs.S3FileSystem(
            endpoint_override=f"127.0.0.1:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
        )
        for _ in range(120):
            try:
                store.create_dir("bucket")
                break
            except OSError:
                time.sleep(0.5)
        yield f"s3://bucket/sweep?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
    finally:
        process.kill()
        process.wait()


def test_an_object_store_holds_runs_that_go_on_after_a_death_and_reports_take_its_copy(
    tmp_path: Path, object_store: str
) -> None:
    code = """
games = ["Catch", "broken_env:Once"]
done = drama.sweep(games, out=sys.argv[2], **tiny)
again = drama.sweep(games, out=sys.argv[2], **tiny)
print(json.dumps([[[run.name, run.status, run.step, run.error] for run in runs.runs] for runs in (done, again)]))
"""
    for runs in json.loads(python(code, tmp_path, object_store).splitlines()[-1]):
        assert [run[1:3] for run in runs] == [["finished", 120], ["finished", 120]], runs
    assert (tmp_path / "mended").exists()  # it died
    store, path = fs.FileSystem.from_uri(object_store)
    copy = tmp_path / "copy"
    copy.mkdir()
    fs.copy_files(path, str(copy), source_filesystem=store, destination_filesystem=fs.LocalFileSystem())
    found, missing = runs_of(copy)
    assert not missing
    assert len(found) == 2
    for run in found:
        assert read_run(run).evaluations[0].step == 120
        assert checkpoint.latest(run).name == "step-000000120"
    steps = [row["step"] for row in map(json.loads, (found[1] / "metrics.jsonl").read_text().splitlines())]
    assert steps == sorted(steps)
    alone = drama.train("Catch", seed=0, preset="debug", run=tmp_path / "alone", progress=False, options={"threads": 1})
    curves = [
        [{k: v for k, v in json.loads(line).items() if k not in ("time", "steps_per_second")} for line in lines]
        for lines in ((folder / "metrics.jsonl").read_text().splitlines() for folder in (alone.path, found[0]))
    ]
    assert curves[0] == curves[1]


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
        drama.sweep("Recall", out=out / "client", address="ray://127.0.0.1:23101", **tiny)
    except ValueError as error:
        print(error)
finally:
    cluster.shutdown()
"""
    lines = python(code, tmp_path).splitlines()
    assert [line for line in lines if line.startswith(("cpus", "gpus", "address", "finished", str(tmp_path)))] == [
        "cpus: a run asks for 2, and the most that a node of the cluster has is 1 (1 node)",
        "gpus: a run asks for 1, and the most that a node of the cluster has is 0 (1 node)",
        "address: nothing answers at 127.0.0.1:1 ([Errno 111] Connection refused)",
        "finished",
        f"{tmp_path}/client/sweep.json: the folder holds another sweep (games was ['Catch'], is now ['Recall']); take"
        " another folder, or the same command, in which only games, seeds, values of the grid and steps may become"
        " more",
    ]
    assert not (tmp_path / "refused").exists()
