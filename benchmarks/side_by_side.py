"""What a run loses to another beside it: `python benchmarks/side_by_side.py [--runs 2] [--repeats 3] [--json]`.

In turns, one run of training alone and `--runs` of them at once, each in a process of its own with the threads that
`drama train` takes by itself. The rate of a run is that of its whole steps, both updates included, from the time when
all of a turn's runs have made their first ones. Together they should make as many steps a second as one alone makes:
then each loses its share of the cores and no more.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from drama._native import cores

START = 1100
"""The step of the first update of the agent."""


def rates(game: str, preset: str, count: int, seconds: float) -> list[float]:
    """Steps per second of each of `count` runs at once, over about `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [Path(folder) / str(i) for i in range(count)]
        every = ["--log.log-every", "8", "--log.image-every", "1000000", "--log.eval-episodes", "0"]
        start = [
            "--train.replay-capacity",
            "100000",
            "--train.start-step",
            str(START - 64),
            "--train.agent-start",
            str(START),
        ]
        command = [
            sys.executable,
            "-c",
            "from drama.cli import main; main()",
            "train",
            game,
            "--preset",
            preset,
            "--steps",
            "100000",
            *every,
            *start,
            "--run",
        ]
        processes = [subprocess.Popen([*command, str(run)], stdout=subprocess.DEVNULL) for run in runs]
        try:
            while any(last_step(run) < START + 64 for run in runs):
                if any(process.poll() is not None for process in processes):
                    raise SystemExit("a run ended early")
                time.sleep(0.1)
            before, began = [last_step(run) for run in runs], time.perf_counter()
            time.sleep(seconds)
            after, took = [last_step(run) for run in runs], time.perf_counter() - began
            return [(b - a) / took for a, b in zip(before, after, strict=True)]
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL)
                process.wait()


def last_step(run: Path) -> int:
    """The last step in a run's metrics, 0 before any."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="Pong")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--runs", type=int, default=2, help="at once")
    parser.add_argument("--repeats", type=int, default=3, help="turns")
    parser.add_argument("--seconds", type=float, default=30, help="of each measurement")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    turns = []
    for _ in range(args.repeats):
        alone = rates(args.game, args.preset, 1, args.seconds)[0]
        turns.append((alone, rates(args.game, args.preset, args.runs, args.seconds)))
    found = {
        "cores": cores(),
        "alone": statistics.median(alone for alone, _ in turns),
        "each": statistics.median(rate for _, together in turns for rate in together),
        "together_over_alone": statistics.median(sum(together) / alone for alone, together in turns),
    }
    if args.json:
        print(json.dumps(found | {"turns": turns}, indent=2))
        return
    print(f"{found['cores']} cores, medians of {args.repeats} turns of {args.seconds:g} s, steps per second:")
    print(f"one run alone {found['alone']:.2f}, each of {args.runs} at once {found['each']:.2f}")
    print(f"all at once make {found['together_over_alone']:.2f} times the steps of one alone")


if __name__ == "__main__":
    main()
