"""Where the time of a training step goes: `python benchmarks/train_step.py [--preset cpu] [--json]`.

Each part runs alone on real Pong frames, several times; the table gives medians in milliseconds, forward and backward
where the part is trained. A step of the environment comes with `1 / train_every` of a pair of updates. `--profile`
prints instead which share of both updates' time (the operators' own, on the CPU) convolutions and matrix products take,
and what takes the rest. `--peer` compares both updates with those of sheeprl's DreamerV3 (dependency group `peers`) at
the same frames, batch, starts, horizon and precision, in turns on the CPU; `--compile` compares both updates with those
that are compiled. `--against REV` measures the parts in turns with those of another commit of this repository, whose
extension cargo builds, each in a process of its own; `--set` gives an option another value here, such as the batch size
that the other commit has.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from drama.config import PRESETS, Config, preset
from drama.envs import interface_of, make_env, read_interface
from drama.interface import LONE
from drama.models.world_model import Batch
from drama.replay import DynamicFrequency
from drama.results.cost import agent_update, median_milliseconds
from drama.runtime.device import resolve_device, resolve_precision
from drama.training.collector import random_play
from drama.training.learner import Learner
from learning import chosen
from timing import Row, compare, show

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
        agent_update(self.learner)(self.context)


def setting(config: Config) -> Setting:
    """Batches of random play in Pong."""
    train = config.train
    buffer = random_play(config, ROWS)
    dfs = DynamicFrequency(temperature=train.dfs_temperature, ratio=train.batch_size / train.imagination_batch)
    learner = Learner(config, interface_of("Pong", config.env), resolve_device("auto"))
    batch = learner.to_batch(buffer.sample(train.batch_size, train.batch_length, sampler=dfs.world_model))
    if train.imagine_from == "batch":
        return Setting(learner, batch, batch)
    starts = buffer.sample(train.imagination_batch, train.context, sampler=dfs.imagination)
    return Setting(learner, batch, learner.to_batch(starts))


def profile_updates(config: Config, repeats: int) -> dict[str, float]:
    """Shares of the updates' time: `products` (convolutions, matrix products), then the largest others."""
    with_batches = setting(compiled(config, "off"))
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
    learner = Learner(config, read_interface(env), device)
    model, train = learner.world_model, config.train
    dfs = DynamicFrequency(temperature=train.dfs_temperature, ratio=train.batch_size / train.imagination_batch)
    sequences = buffer.sample(train.batch_size, train.batch_length, sampler=dfs.world_model)
    starts = buffer.sample(train.imagination_batch, train.context, sampler=dfs.imagination)
    batch, context = learner.to_batch(sequences), learner.to_batch(starts)
    within = train.imagine_from == "batch"
    frames = None
    if train.statistics_frames:
        frames = {LONE: batch.obs[LONE].flatten(0, 1)[: train.statistics_frames]}
    latents = torch.zeros(train.batch_size, train.batch_length, model.latents, device=device)
    player = learner.player(1)

    def trained(forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
        def both() -> None:
            model.train()
            with model.autocast():
                out = forward()
            out.float().square().mean().backward()
            model.eval()

        return both

    def replay() -> None:
        buffer.sample(train.batch_size, train.batch_length, sampler=dfs.world_model, out=sequences)
        if not within:
            buffer.sample(train.imagination_batch, train.context, sampler=dfs.imagination, out=starts)

    def act() -> None:
        player.act({LONE: frame[None]}, np.array([False]))

    def environment() -> None:
        *_, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            env.reset()

    with torch.no_grad(), model.autocast():
        known = model.sample(model.encode(context.obs))
        start = model.recall(known, context.action, context.is_first)

    def context_part() -> None:
        with torch.no_grad(), model.autocast():
            z = known if within else model.sample(model.encode(context.obs))
            model.recall(z, context.action, context.is_first)

    def imagination() -> None:
        with model.autocast():
            learner.imagine(start)

    parts: dict[str, Callable[[], object]] = {
        "world model update": lambda: learner.update_world_model(batch, frames),
        "  encoder": trained(lambda: model.encode(batch.obs)),
        "  decoder": trained(lambda: model.decode(latents)[LONE]),
        "  sequence model": trained(lambda: model(latents, batch.action, batch.is_first)[0]),
        "agent update": lambda: agent_update(learner)(batch if within else context),
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


def beside_peer(config: Config, seconds: float) -> tuple[list[Row], dict[str, tuple[int, float]]]:
    """Rows of the timing, for about `seconds` each; of each update the trained parameters and the multiply-adds."""
    from train_step_peers import dreamer_v3

    with_batches = setting(config)
    learner, train = with_batches.learner, config.train
    channels, actions = with_batches.batch.obs[LONE].shape[-1], learner.world_model.interface.action.width
    low = resolve_precision(train.precision, learner.device) == torch.bfloat16
    peers = {
        f"sheeprl DreamerV3, {precision}": dreamer_v3(config, channels, actions, precision)
        for precision in (["bf16-mixed", "32-true"] if low else ["32-true"])
    }
    ours = "ours, bfloat16" if low else "ours, float32"
    updates: dict[str, Callable[[], object]] = {
        "world model": lambda: learner.update_world_model(with_batches.batch),
        "behaviour": lambda: agent_update(learner)(with_batches.context),
    }
    table = compare(
        "world model",
        f"{train.batch_size} x {train.batch_length} frames",
        {ours: updates["world model"]} | {name: peer.world_model for name, peer in peers.items()},
        seconds,
    )
    table += compare(
        "behaviour, with our context",
        f"{train.imagination_batch} starts, {train.horizon} steps",
        {ours: updates["behaviour"]} | {name: peer.behaviour for name, peer in peers.items()},
        seconds,
    )
    peer = list(peers.values())[-1]
    trained = [p.numel() for p in learner.agent.parameters() if p.requires_grad]
    sizes = {
        "ours, world model": sum(p.numel() for p in learner.world_model.parameters()),
        "ours, behaviour": sum(trained),
        "sheeprl, world model": peer.world_model_parameters,
        "sheeprl, behaviour": peer.behaviour_parameters,
    }
    counted = setting(compiled(config, "off"))  # what is compiled cannot be counted
    parts: tuple[Callable[[], object], ...] = (
        lambda: counted.learner.update_world_model(counted.batch),
        lambda: agent_update(counted.learner)(counted.context),
        peer.world_model,
        peer.behaviour,
    )
    return table, {name: (size, products(part)) for (name, size), part in zip(sizes.items(), parts, strict=True)}


def compiled(config: Config, choice: Literal["on", "off"]) -> Config:
    """`config` with both updates compiled, or not."""
    return dataclasses.replace(config, train=dataclasses.replace(config.train, compile=choice))


def beside_compiled(config: Config, seconds: float) -> list[Row]:
    """Both updates as they are, and compiled, once that is done."""
    plain, faster = setting(compiled(config, "off")), setting(compiled(config, "on"))
    begin = time.perf_counter()
    faster.update()
    name = f"both updates, compiled in {time.perf_counter() - begin:.0f} s"
    shape = f"{config.train.batch_size} x {config.train.batch_length} frames"
    return compare(name, shape, {"ours": plain.update, "ours, compiled": faster.update}, seconds)


def products(part: Callable[[], object]) -> float:
    """Multiply-adds of the matrix products and convolutions in `part`."""
    with FlopCounterMode(display=False) as counter:
        part()
    return counter.get_total_flops() / 2


def against(revision: str, preset_name: str, options: list[str], turns: int) -> None:
    """Print the median milliseconds of each part at `revision` and here, and the median of their ratios."""
    root = Path(__file__).resolve().parents[1]
    times: dict[str, list[dict[str, float]]] = {revision: [], "here": []}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(root), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(tree), revision], check=True)
        try:
            # The other commit's own extension: the two need not fit each other.
            build = ["cargo", "build", "--release", "--quiet", "-p", "drama-py"]
            target = root / "target/against"
            subprocess.run(build, cwd=tree, env=os.environ | {"CARGO_TARGET_DIR": str(target)}, check=True)
            here = next((root / "python/drama").glob("_native*.so"))
            built = next(path for path in (target / "release").glob("lib_native.*") if path.suffix in (".so", ".dylib"))
            shutil.copy(built, tree / "python/drama" / here.name)
            for _ in range(turns):
                for name, where, given in ((revision, tree, []), ("here", root, options)):
                    command = [
                        sys.executable,
                        str(where / "benchmarks/train_step.py"),
                        "--json",
                        "--preset",
                        preset_name,
                    ]
                    environment = os.environ | {"PYTHONPATH": str(where / "python")}
                    said = subprocess.run(
                        [*command, *given], env=environment, stdout=subprocess.PIPE, check=True, text=True
                    ).stdout
                    times[name].append(json.loads(said))
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)
    print(f"{'milliseconds, medians of ' + str(turns) + ' turns':32} {revision[:10]:>12} {'here':>12} {'ratio':>8}")
    for part in (part for part in times["here"][0] if part in times[revision][0]):
        before, now = ([turn[part] for turn in times[name]] for name in (revision, "here"))
        ratio = statistics.median(b / a for a, b in zip(before, now, strict=True))
        print(f"{part:32} {statistics.median(before):12.2f} {statistics.median(now):12.2f} {ratio:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--profile", action="store_true", help="shares of the updates' time by operator")
    parser.add_argument("--peer", action="store_true", help="beside sheeprl's DreamerV3; presets paper and cpu")
    parser.add_argument("--compile", action="store_true", help="both updates beside compiled ones")
    parser.add_argument("--against", metavar="REV", help="the parts in turns with those of another commit")
    parser.add_argument("--turns", type=int, default=5, help="with --against")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE,...", help="options of the config")
    parser.add_argument("--seconds", type=float, default=30, help="for each comparison")
    args = parser.parse_args()
    if args.against:
        against(args.against, args.preset, [f"--set={options}" for options in args.set], args.turns)
        return
    config = preset(args.preset)
    for options in args.set:
        config = chosen(config, options)
    if args.peer:
        table, parameters = beside_peer(config, args.seconds)
        if args.json:
            rows = [dataclasses.asdict(row) for row in table]
            print(json.dumps({"parameters": parameters, "rows": rows}, indent=2))
            return
        for name, (count, work) in parameters.items():
            print(f"{name:24} {count:12,} parameters {work / 1e9:10.1f} billion multiply-adds")
        show(table)
        return
    if args.compile:
        table = beside_compiled(config, args.seconds)
        if args.json:
            print(json.dumps([dataclasses.asdict(row) for row in table], indent=2))
            return
        show(table)
        return
    if args.profile:
        found = profile_updates(config, args.repeats)
        if args.json:
            print(json.dumps(found, indent=2))
            return
        for name, value in found.items():
            print(f"{name:40} {100 * value:6.1f} %")
        return
    times = measure(config, args.repeats)
    if args.json:
        print(json.dumps({name.strip(): value for name, value in times.items()}, indent=2))
        return
    for name, value in times.items():
        print(f"{name:20} {value:9.2f} ms")
    print(f"{1000 / times['whole step']:.1f} environment steps per second on {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
