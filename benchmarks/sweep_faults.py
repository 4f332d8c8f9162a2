"""Kill what a sweep consists of at random instants, and compare its curves and weights with undisturbed runs.

    python benchmarks/sweep_faults.py --kills 20

A cluster of two nodes on this machine trains Catch with the preset `debug`. In turns and at random instants the process
of a run, a node with all on it, or the process of the sweep itself is killed (SIGKILL); a new node comes in place of a
lost one, and a killed sweep is started again with the same command. Exits with 1 if a run is lost or differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from ray.cluster_utils import Cluster

import drama
from drama.training import checkpoint

KINDS = ("worker", "driver", "node", "worker", "driver")
OPTIONS = {"steps": 800, "threads": 1, "device": "cpu", "log.checkpoint_every": 40}
NODE = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False}
CLOCK = {"time", "steps_per_second"}
"""What two runs of the same numbers differ in."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=OPTIONS["steps"])
    parser.add_argument("--gap", type=float, default=20.0, help="longest time between two kills in seconds")
    parser.add_argument("--seed", type=int, default=0, help="of the instants and victims")
    args = parser.parse_args()
    OPTIONS["steps"] = args.steps
    # On a busy machine none but the kills are to kill, and runs, which Ray makes give way to all else, are to go on.
    os.environ |= {"RAY_health_check_failure_threshold": "100", "RAY_worker_niceness": "0"}
    with tempfile.TemporaryDirectory(prefix="drama-sweep-") as scratch:
        sys.exit(0 if disturb(Path(scratch), args) else 1)


def disturb(scratch: Path, args: argparse.Namespace) -> bool:
    """Sweep under fire until all kills are done; whether every run came out as the undisturbed one."""
    alone = {}
    for seed in range(args.seeds):
        run = drama.train(
            "Catch", seed=seed, preset="debug", run=scratch / f"alone-{seed}", options=OPTIONS, progress=False
        )
        run.evaluate(2)
        alone[f"catch-debug-seed{seed}"] = run.path
    cluster = Cluster(initialize_head=True, head_node_args=NODE | {"num_cpus": 0}, shutdown_at_exit=False)
    nodes = [add_node(cluster) for _ in range(2)]
    dice, done, same, number = random.Random(args.seed), 0, True, 0
    driver = None
    try:
        while done < args.kills:
            out = scratch / f"sweep-{number}"
            number += 1
            driver = start(out, cluster.address, args)
            while driver.poll() is None:
                pause = time.monotonic() + dice.uniform(0, args.gap)
                while driver.poll() is None and time.monotonic() < pause:
                    time.sleep(0.05)
                if driver.poll() is not None or done == args.kills:
                    continue
                kind = KINDS[done % len(KINDS)]
                if kind == "driver":
                    driver.kill()
                    driver.wait()
                    driver = start(out, cluster.address, args)
                elif kind == "node":
                    cluster.remove_node(nodes.pop(dice.randrange(len(nodes))), allow_graceful=False)
                    nodes.append(add_node(cluster))
                elif not (found := workers(nodes)):
                    continue
                else:
                    os.kill(dice.choice(found), 9)
                done += 1
                print(f"kill {done}: {kind}; {steps(out)}", flush=True)
            print(f"sweep {number} ended with {driver.returncode}, after {done} kills in all", flush=True)
            if driver.returncode:
                return False
            for name, path in alone.items():
                differs = difference(path, out / name)
                print(
                    f"  {name}: {differs or 'curve, weights and scores are those of the undisturbed run'}", flush=True
                )
                same &= not differs
    finally:
        if driver is not None:
            driver.kill()
        cluster.shutdown()
    return same


def add_node(cluster: Cluster) -> Any:
    """A new node; on a machine that is busy Ray may give up waiting for it."""
    for _ in range(20):
        try:
            return cluster.add_node(**NODE)
        except Exception as error:  # Ray raises no class of its own
            print(f"note: {error}")
    raise RuntimeError("no node came up in twenty tries")


def start(out: Path, address: str, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    """The sweep as a process of its own."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    command = [
        "sweep",
        "--games",
        "Catch",
        "--preset",
        "debug",
        "--seeds",
        str(args.seeds),
        "--max-failures",
        "50",
        *options,
    ]
    code = "from drama.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *command, "--out", str(out), "--address", address],
    )


def workers(nodes: list[Any]) -> list[int]:
    """The processes of the runs, which are children of the nodes' raylets."""
    raylets = {entry.process.pid for node in nodes for entry in node.all_processes["raylet"]}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            title = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if parent in raylets and title.startswith(b"ray::ImplicitFunc"):
            found.append(int(process.name))
    return found


def steps(out: Path) -> str:
    """How far each run is, by its last checkpoint."""
    return ", ".join(
        f"{run.name} {found[-1].name}"
        for run in sorted(out.glob("catch-*"))
        if (found := checkpoint.list_checkpoints(run))
    )


def difference(alone: Path, run: Path) -> str:
    """What differs between two runs of one config; empty where nothing does."""
    if not run.is_dir():
        return "missing"
    if curve(alone) != curve(run):
        return "another curve"
    states = [checkpoint.load_state(checkpoint.latest(path), torch.device("cpu")) for path in (alone, run)]
    for network in ("world_model", "agent"):
        weights = [state["learner"][network] for state in states]
        if not all(torch.equal(value, weights[1][name]) for name, value in weights[0].items()):
            return f"other weights of {network}"
    scores = [[path.read_text() for path in folder.glob("evaluation-*.json")] for folder in (alone, run)]
    return "" if scores[0] == scores[1] else "other scores"


def curve(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics, without the clock's."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


if __name__ == "__main__":
    main()
