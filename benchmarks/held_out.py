"""What the world model learns of frames that it never saw: `python benchmarks/held_out.py [--game Boxing] [--json]`.

Actions are random; the world model trains on the first rows, and after some updates its losses on these and on the
later rows are compared. Each `--try` is a set of options that replaces the preset's, such as
`train.shift=2,world_model.free_bits=1`; without any, the preset is measured beside itself with all pixels alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from drama.config import PRESETS, Config, preset
from drama.envs import interface_of
from drama.interface import LONE
from drama.models.losses import reconstruction_losses
from drama.models.vision import to_unit
from drama.models.world_model import Batch
from drama.replay import DynamicFrequency, ReplayBuffer
from drama.runtime.device import resolve_device
from drama.training.collector import random_play
from drama.training.learner import Learner
from learning import chosen

LOSSES = ("reconstruction", "moving", "reward", "kl")
LENGTH = 32
"""Rows of the sequences that losses are measured on."""


def split(buffer: ReplayBuffer, rows: int) -> ReplayBuffer:
    """A buffer of the first `rows` rows."""
    derived = ("is_first", "indices", "weights", "terminated", "truncated")
    block = buffer.gather(np.array([0]), rows)
    fields = {name: (value.shape[2:], value.dtype) for name, value in block.items() if name not in derived}
    first = ReplayBuffer(rows, fields=fields, seed=0)
    names = [*fields, "terminated", "truncated"]
    first.add_block(**{name: np.ascontiguousarray(block[name].swapaxes(0, 1)) for name in names})
    return first


def losses(learner: Learner, batch: Batch) -> dict[str, float]:
    """Means over all sequences, with the weights as they are. `moving` is the squared error of the pixels that move,
    over what the mean frame has: 1 if nothing that moves is seen."""
    model, frames = learner.world_model, batch.obs[LONE]

    def moving(predicted: Tensor) -> float:
        weighted, plain = reconstruction_losses(predicted, frames, motion_scale=1.0)
        return (weighted - plain).mean().item()

    with torch.no_grad(), model.autocast():
        found = {name: value.item() for name, value in model.loss(batch).items()}
        found["moving"] = moving(model.decode(model.sample(model.encode(batch.obs)))[LONE])
    found["moving"] /= moving(to_unit(frames).mean((0, 1)))
    return {name: found[name] for name in LOSSES}


def measure(config: Config, rows: int, held_out: int, updates: int) -> dict[str, Any]:
    """Losses after `updates`, on the rows trained on and on the `held_out` ones after them."""
    torch.manual_seed(config.seed)
    train = config.train
    played = random_play(config, rows + held_out)
    buffer = split(played, rows)
    learner = Learner(config, interface_of(config.game, config.env), resolve_device(config.device))
    learner.start_from_frames({LONE: buffer.sample(256, 1)[LONE]})
    sampler = DynamicFrequency(temperature=train.dfs_temperature, ratio=1.0).world_model
    for _ in range(updates):
        learner.update_world_model(
            learner.to_batch(buffer.sample(train.batch_size, train.batch_length, sampler=sampler))
        )
    starts = {
        "trained": np.arange(0, rows - LENGTH, LENGTH),
        "held out": np.arange(rows, rows + held_out - LENGTH, LENGTH),
    }
    return {name: losses(learner, learner.to_batch(played.gather(at, LENGTH))) for name, at in starts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="Boxing")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--rows", type=int, default=8000)
    parser.add_argument("--held-out", type=int, default=2000)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--try", dest="tries", action="append", metavar="NAME=VALUE,...", help="may be repeated")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    config = dataclasses.replace(preset(args.preset), game=args.game, steps=args.rows + args.held_out)
    found = {
        options or args.preset: measure(chosen(config, options), args.rows, args.held_out, args.updates)
        for options in args.tries or ["", "world_model.motion_scale=0,world_model.reconstruction_scale=32"]
    }
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{args.game}, {args.updates} updates on {args.rows} rows; on them, and on {args.held_out} others:")
    print(f"{'reconstruction':>20}{'moving':>18}{'reward':>18}{'KL':>18}")
    for options, at in found.items():
        pairs = (f"{at['trained'][name]:8.3f} {at['held out'][name]:8.3f}" for name in LOSSES)
        print(f"   {' '.join(pairs)}   {options}")


if __name__ == "__main__":
    main()
