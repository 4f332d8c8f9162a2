"""What an agent makes of one frozen world model: `python benchmarks/agent_alone.py RUN [--try OPTIONS] [--json]`.

The world model and the replay are those of a checkpoint of RUN. For each `--try`, a set of options that replaces the
run's such as `agent.entropy=1e-3,train.agent_lr=1e-4`, and each seed, an agent learns from nothing in imaginations of
that model, which does not learn any more, and then plays the real environment. So an idea for the actor or the critic
has its answer in minutes, and the world model has no part in the difference. `--go-on` begins with the run's agent.

The table gives the mean return of sampled and greedy play with the standard error over the episodes, and what the agent
believed in its last tenth of updates: the entropy of its policy in nats and the return that it imagined. An agent whose
imagined return rises while its score falls exploits the model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drama.config import Config
from drama.replay import ReplayBuffer, Uniform
from drama.results.evaluation import evaluate, load_learner
from drama.training import checkpoint
from drama.training.learner import Learner
from learning import EVALUATION_SEED, chosen

WATCHED = ("entropy", "return")


def variant(config: Config, options: str) -> Config:
    """`config` with the options of an agent. Raises SystemExit where one would change the world model."""
    changed = chosen(config, options)
    if changed.world_model != config.world_model or changed.env != config.env:
        raise SystemExit(f"--try {options}: the world model is the run's; only agent and train options can be tried")
    return changed


def train_agent(learner: Learner, replay: ReplayBuffer, updates: int) -> dict[str, float]:
    """Agent updates alone; gives the means of what is watched over the last tenth of them."""
    train, model = learner.config.train, learner.world_model
    watched: dict[str, list[float]] = {name: [] for name in WATCHED}
    for update in range(updates):
        if train.imagine_from == "batch":
            batch = learner.to_batch(replay.sample(train.batch_size, train.batch_length, sampler=Uniform()))
            with torch.no_grad(), model.autocast():
                z = model.sample(model.encode(batch.obs))
                d, _ = model(z, batch.action, batch.is_first)
            scalars = learner.update_agent_within(batch, z, d)
        else:
            starts = replay.sample(train.imagination_batch, train.context, sampler=Uniform())
            scalars = learner.update_agent(learner.to_batch(starts))
        if update >= updates - max(1, updates // 10):
            for name in WATCHED:
                watched[name].append(scalars[name].item())
    return {name: statistics.fmean(values) for name, values in watched.items()}


def measure(run: Path, options: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One seed of one variant."""
    config, source, step = load_learner(run, step=args.step, trust=True)
    config = variant(config, options)
    replay = ReplayBuffer.load(checkpoint.at_step(run, step) / "replay")
    torch.manual_seed(seed)
    learner = Learner(config, source.world_model.interface, source.device)
    learner.world_model.load_state_dict(source.world_model.state_dict())
    if args.go_on:
        learner.agent.load_state_dict(source.agent.state_dict())
    began = time.perf_counter()
    found: dict[str, Any] = {"try": options, "seed": seed, "step": step, "updates": args.updates}
    found |= train_agent(learner, replay, args.updates)
    found["minutes"] = (time.perf_counter() - began) / 60
    for greedy in (False, True):
        records = evaluate(config, learner, episodes=args.episodes, greedy=greedy, seed=EVALUATION_SEED + seed)
        returns = np.array([record["return"] for record in records])
        error = returns.std(ddof=1) / len(returns) ** 0.5 if len(returns) > 1 else 0.0
        found["greedy" if greedy else "sampled"] = {"mean": float(returns.mean()), "error": float(error)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder with a checkpoint")
    parser.add_argument("--try", dest="tries", action="append", metavar="NAME=VALUE,...", help="may be repeated")
    parser.add_argument("--step", type=int, help="of the checkpoint; the last by default")
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to one below")
    parser.add_argument("--go-on", action="store_true", help="begin with the run's agent instead of a new one")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of the table")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if not args.json:
        print(f"{'sampled':>16}{'greedy':>16}{'entropy':>9}{'imagined':>10}{'minutes':>9}  seed  options")
    for options in args.tries or [""]:
        for seed in range(args.seeds):
            found = measure(args.run, options, seed, args)
            if args.json:
                print(json.dumps(found), flush=True)
                continue
            scores = "".join(f"{found[m]['mean']:9.2f} ±{found[m]['error']:5.2f}" for m in ("sampled", "greedy"))
            print(
                f"{scores}{found['entropy']:9.2f}{found['return']:10.2f}{found['minutes']:9.1f}  {seed:4}"
                f"  {options or 'as the run'}",
                flush=True,
            )


if __name__ == "__main__":
    main()
