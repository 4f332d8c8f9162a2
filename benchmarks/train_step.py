"""Where the time of a training step goes: `python benchmarks/train_step.py [--preset cpu] [--json]`.

Each part runs alone on real Pong frames, several times; the table gives medians in milliseconds, forward and backward
where the part is trained. A step of the environment comes with `1 / train_every` of a pair of updates. `--profile`
prints instead which share of both updates' time (the operators' own, on the CPU) convolutions and matrix products take,
and what takes the rest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from drama.agent.player import Player
from drama.config import PRESETS, Config, preset
from drama.cost import median_milliseconds
from drama.device import resolve_device
from drama.envs import make_env
from drama.imagination import imagine, observe
from drama.learner import Learner
from drama.models.world_model import Batch
from drama.replay import DynamicFrequency
from drama.trainer import random_play

ROWS = 2000
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"}
REST = 10


@dataclass
class Setting:
    """A learner and the batches of one update of each kind."""

    learner: Learner
    batch: Batch
    context: Batch

    def update(self) -> None:
        """Both updates."""
        self.learner.update_world_model(self.batch)
        self.learner.update_agent(self.context)


def setting(config: Config) -> Setting:
    """Batches of random play in Pong."""
    train = config.train
    buffer = random_play(config, ROWS)
    dfs = DynamicFrequency(temperature=train.dfs_temperature, ratio=train.batch_size / train.imagination_batch)
    channels = 1 if config.env.grayscale else 3
    learner = Learner(config, channels, int(make_env("Pong", config.env).action_space.n), resolve_device("auto"))
    return Setting(
        learner,
        learner.to_batch(buffer.sample(train.batch_size, train.batch_length, sampler=dfs.world_model)),
        learner.to_batch(buffer.sample(train.imagination_batch, train.context, sampler=dfs.imagination)),
    )


def profile_updates(config: Config, repeats: int) -> dict[str, float]:
    """Shares of the updates' time: `products` (convolutions, matrix products), then the largest others."""
    with_batches = setting(config)
    with_batches.update()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            with_batches.update()
    own = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(own.values())
    products = {key for key in own if "conv" in key.lower() or key in PRODUCTS}
    rest = sorted(own.keys() - products, key=lambda key: -own[key])[:REST]
    return {"products": sum(own[key] for key in products) / total} | {key: own[key] / total for key in rest}


def measure(config: Config, repeats: int) -> dict[str, float]:
    """Milliseconds by part."""
    device = resolve_device("auto")
    buffer = random_play(config, ROWS)
    env = make_env("Pong", config.env)
    frame, _ = env.reset(seed=0)
    learner = Learner(config, frame.shape[-1], int(env.action_space.n), device)
    model, train = learner.world_model, config.train
    dfs = DynamicFrequency(temperature=train.dfs_temperature, ratio=train.batch_size / train.imagination_batch)
    sequences = buffer.sample(train.batch_size, train.batch_length, sampler=dfs.world_model)
    starts = buffer.sample(train.imagination_batch, train.context, sampler=dfs.imagination)
    batch, context = learner.to_batch(sequences), learner.to_batch(starts)
    latents = torch.zeros(train.batch_size, train.batch_length, model.latents, device=device)
    player = Player(model, learner.agent, num_envs=1)

    def trained(forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def both() -> None:
            model.train()
            with learner.autocast:
                out = forward()
            out.float().square().mean().backward()
            model.eval()

        return both

    def replay() -> None:
        buffer.sample(train.batch_size, train.batch_length, sampler=dfs.world_model, out=sequences)
        buffer.sample(train.imagination_batch, train.context, sampler=dfs.imagination, out=starts)

    def act() -> None:
        with learner.autocast:
            player.act(frame[None], np.array([False]))

    def environment() -> None:
        *_, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            env.reset()

    with learner.autocast:
        start = observe(model, context.obs, context.action, context.is_first)

    def context_part() -> None:
        with learner.autocast:
            observe(model, context.obs, context.action, context.is_first)

    def imagination() -> None:
        with learner.autocast:
            imagine(model, learner.agent, start, train.horizon)

    parts: dict[str, Callable[[], object]] = {
        "world model update": lambda: learner.update_world_model(batch),
        "  encoder": trained(lambda: model.encode(batch.obs)),
        "  decoder": trained(lambda: model.decode(latents)),
        "  sequence model": trained(lambda: model(latents, batch.action, batch.is_first)[0]),
        "agent update": lambda: learner.update_agent(context),
        "  context": context_part,
        "  imagination": imagination,
        "replay": replay,
        "acting": act,
        "environment": environment,
    }
    times = {name: median_milliseconds(part, device, repeats, uncounted=2) for name, part in parts.items()}
    times["  actor-critic"] = times["agent update"] - times["  context"] - times["  imagination"]
    updates = times["world model update"] + times["agent update"] + times["replay"]
    times["whole step"] = updates / train.train_every + times["acting"] + times["environment"]
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true", help="shares of the updates' time by operator")
    args = parser.parse_args()
    if args.profile:
        found = profile_updates(preset(args.preset), args.repeats)
        if args.json:
            print(json.dumps(found, indent=2))
            return
        for name, value in found.items():
            print(f"{name:40} {100 * value:6.1f} %")
        return
    times = measure(preset(args.preset), args.repeats)
    if args.json:
        print(json.dumps({name.strip(): value for name, value in times.items()}, indent=2))
        return
    for name, value in times.items():
        print(f"{name:20} {value:9.2f} ms")
    print(f"{1000 / times['whole step']:.1f} environment steps per second on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
