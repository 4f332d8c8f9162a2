"""What the world model learns of frames that it never saw: `python benchmarks/held_out.py [--game Boxing] [--json]`.

The world model trains on the first rows of random play, or with `--run RUN` of what that run has played, and after some
updates its losses on these and on the rows after them are compared. Each `--try` is a set of options that replaces the
preset's, or the run's, such as `train.shift=2,world_model.free_bits=1`; without any, the preset is measured beside
itself with all pixels alike, a run as it is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drama.config import PRESETS, Config, preset, with_options
from drama.envs import interface_of
from drama.interface import LONE
from drama.models.losses import reconstruction_losses
from drama.models.vision import to_unit
from drama.models.world_model import Batch
from drama.replay import ReplayBuffer
from drama.runtime.device import resolve_device
from drama.training import checkpoint
from drama.training.collector import random_play
from drama.training.learner import Learner
from drama.training.updater import Updater
from learning import chosen

LOSSES = ("reconstruction", "moving", "reward", "told", "kl")
LENGTH = 32
"""Rows of the sequences that losses are measured on."""


def part(buffer: ReplayBuffer, begin: int, rows: int) -> ReplayBuffer:
    """A buffer of `rows` rows, from `begin` on."""
    derived = ("is_first", "indices", "weights", "terminated", "truncated")
    block = buffer.gather(np.array([begin]), rows)
    fields = {name: (value.shape[2:], value.dtype) for name, value in block.items() if name not in derived}
    found = ReplayBuffer(rows, fields=fields, seed=0)
    names = [*fields, "terminated", "truncated"]
    found.add_block(**{name: np.ascontiguousarray(block[name].swapaxes(0, 1)) for name in names})
    return found


def losses(learner: Learner, batch: Batch) -> dict[str, float]:
    """Means over all sequences, with the weights as they are. `moving` is the squared error of the pixels that move,
    over what the mean frame has: 1 if nothing that moves is seen. `told` is the share of the rewards that are not 0
    which is expected where they come, as an agent in imagination would be told."""
    model, frames = learner.world_model, batch.obs[LONE]

    def moving(predicted: Tensor) -> float:
        weighted, plain = reconstruction_losses(predicted, frames, motion_scale=1.0)
        return (weighted - plain).mean().item()

    with torch.no_grad(), model.autocast():
        found = {name: value.item() for name, value in model.loss(batch).items()}
        z = model.sample(model.encode(batch.obs))
        found["moving"] = moving(model.decode(z)[LONE]) / moving(to_unit(frames).mean((0, 1)))
        d, _ = model(z, batch.action, batch.is_first)
        expected = model.two_hot.decode(model.predict_outcome(d, model.sample(model.predict_latent(d)))[0])
    right = (expected / batch.reward).clamp(0, 1)[batch.reward != 0]
    return {name: found[name] for name in LOSSES if name != "told"} | {"told": right.mean().item()}


def measure(config: Config, played: ReplayBuffer, rows: int, updates: int) -> dict[str, Any]:
    """Losses after `updates`, on the first `rows` of what was played, which are trained on, and on the others."""
    torch.manual_seed(config.seed)
    config = with_options(config, {"train.agent_start": config.steps})  # the world model alone
    learner = Learner(config, interface_of(config.game, config.env), resolve_device(config.device))
    updater = Updater(config, learner, part(played, 0, rows))
    for _ in range(updates):
        updater.update(0)
    starts = {
        "trained": np.arange(0, rows - LENGTH, LENGTH),
        "held out": np.arange(rows, played.total - LENGTH, LENGTH),
    }
    found = {}
    for name, at in starts.items():
        batches = [losses(learner, learner.to_batch(played.gather(some, LENGTH))) for some in np.array_split(at, 8)]
        found[name] = {key: float(np.nanmean([each[key] for each in batches])) for key in LOSSES}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="Boxing")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--run", type=Path, help="a run folder with a checkpoint, whose rows are taken")
    parser.add_argument("--begin", type=int, default=0, help="the first of its rows")
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--try", dest="tries", action="append", metavar="NAME=VALUE,...", help="may be repeated")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    count = args.rows + args.held_out
    if args.run is None:
        config = dataclasses.replace(preset(args.preset), game=args.game, steps=count)
        played, tries = (
            random_play(config, count),
            ["", "world_model.motion_scale=0,world_model.reconstruction_scale=32"],
        )
    else:
        config = Config.load(args.run / "config.json")
        whole = ReplayBuffer.load(checkpoint.latest(args.run) / "replay")
        if len(whole) < args.begin + count:
            raise SystemExit(f"--run {args.run}: holds {len(whole)} rows, fewer than {args.begin + count}")
        played, tries = part(whole, args.begin, count), [""]
    found = {
        options or "as it is": measure(chosen(config, options), played, args.rows, args.updates)
        for options in args.tries or tries
    }
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{config.game}, {args.updates} updates on {args.rows} rows; on them, and on {args.held_out} others:")
    print("".join(f"{name:>{18 + 2 * (name == LOSSES[0])}}" for name in LOSSES))
    for options, at in found.items():
        pairs = (f"{at['trained'][name]:8.3f} {at['held out'][name]:8.3f}" for name in LOSSES)
        print(f"   {' '.join(pairs)}   {options}")


if __name__ == "__main__":
    main()
