"""What a run costs more inside a sweep than alone: the same run both ways, in turns, each in processes of its own.

    python benchmarks/sweep.py --game Pong --preset cpu --steps 8000 --threads 1 --turns 3

Compared is the time between the first line of training metrics after the warm-up and the last, so without the start of
either, which is told as well. The sweep starts and stops a Ray of its own in each of its turns, and shows its table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from drama.config import preset
from timing import duration


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="Pong")
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    shared = [f"--preset={args.preset}", f"--steps={args.steps}", "--device=cpu", "--log.eval-episodes=0"]
    ratios = []
    with tempfile.TemporaryDirectory(prefix="drama-sweep-") as scratch:
        for turn in range(args.turns):
            folder = Path(scratch, f"{turn}")
            alone = ["train", args.game, *shared, f"--threads={args.threads}", f"--run={folder / 'alone'}"]
            inside = ["sweep", f"--games={args.game}", *shared, f"--cpus={args.threads}", f"--out={folder / 'sweep'}"]
            ways = {"alone": alone, "sweep": inside}
            order = list(ways) if turn % 2 == 0 else [*ways][::-1]
            whole = {way: run(ways[way]) for way in order}
            (run_inside,) = (path.parent for path in (folder / "sweep").glob("*/config.json"))
            warm = preset(args.preset).train
            first = max(warm.start_step, warm.agent_start)
            loop = {"alone": seconds(folder / "alone", first), "sweep": seconds(run_inside, first)}
            ratios.append(loop["sweep"] / loop["alone"])
            print(
                f"turn {turn + 1}: training {duration(loop['alone'])} alone, {duration(loop['sweep'])} in the sweep,"
                f" ratio {ratios[-1]:.3f}; the whole {duration(whole['alone'])} and {duration(whole['sweep'])}",
                flush=True,
            )
    print(f"median ratio {statistics.median(ratios):.3f}")


def run(arguments: list[str]) -> float:
    """Run `drama` with these arguments; gives its seconds."""
    began = time.perf_counter()
    code = "from drama.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def seconds(run: Path, first: int) -> float:
    """Between the first line of training metrics at or after the step `first` and the last."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = [row["time"] for row in rows if row["event"] == "train" and row["step"] >= first]
    return float(times[-1] - times[0])


if __name__ == "__main__":
    main()
