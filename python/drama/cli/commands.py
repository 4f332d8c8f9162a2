"""The commands of `drama`. Each takes its arguments, which are checked, and returns the exit code."""

from __future__ import annotations

import contextlib
import json
import platform
import shlex
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich import progress
from rich.console import Console

from drama import __version__, hints
from drama.cli.arguments import (
    DreamArgs,
    EvalArgs,
    ExportArgs,
    InfoArgs,
    InfoRunArgs,
    NewRun,
    PlayArgs,
    ReportArgs,
    ResumeArgs,
    plain,
)
from drama.config import PRESETS, Config
from drama.envs import make_env, read_interface
from drama.interface import Interface
from drama.results.cost import milliseconds, multiply_adds
from drama.results.dream import dream_run
from drama.results.evaluation import STEPS, check_loadable, evaluate_run, load_learner
from drama.results.export import export_run
from drama.results.play import Dream, Window, frames_per_second, play_agent, play_dream, watch
from drama.results.report import read_run
from drama.runtime.device import resolve_device, resolve_precision
from drama.training.checkpoint import list_checkpoints
from drama.training.collector import make_replay
from drama.training.learner import Learner
from drama.training.metrics import encode_picture, encode_video
from drama.training.pictures import dream_strip
from drama.training.progress import Progress
from drama.training.trainer import Trainer
from drama.training.weights import blank_learner, is_export


def train(args: NewRun | ResumeArgs) -> int:
    """`drama train`."""
    display = Progress()
    if isinstance(args, ResumeArgs):
        trainer = Trainer.resume(args.resume, steps=args.steps, callbacks=[display])
        print(f"going on with {trainer.run} at step {trainer.step}")
    else:
        if args.why is not None:
            print(f"{args.why}; --preset NAME takes another of {', '.join(PRESETS)}")
        trainer = Trainer(args.config, args.run, callbacks=[display])
    run, config = trainer.run, trainer.config
    # What TensorBoard's thread fails to write is told here, by the next write, in one line instead of a traceback.
    threading.excepthook = lambda failure: None if failure.exc_type is OSError else threading.__excepthook__(failure)
    finished = trainer.train()
    if not finished:
        print(f"stopped at step {trainer.step}; `{hints.command('train', '--resume', run)}` goes on")
        return 130
    if config.log.eval_episodes:
        with _counting("evaluating", config.log.eval_episodes) as told:
            result = evaluate_run(run, episodes=config.log.eval_episodes, device=config.device, told=told)
        _print_evaluation(result)
    _write_dream(DreamArgs(run, device=config.device))
    further = {
        hints.command("eval", run): "more episodes",
        hints.command("dream", run): "another dream, see --help",
        hints.command("train", "--resume", run, "--steps", 2 * config.steps): "train on",
        f"{hints.program('tensorboard')} --logdir {shlex.quote(str(run))}": "curves and dreams",
    }
    width = max(map(len, further))
    print("\n".join([f"results: {run}/", *(f"  {line:{width}}  # {what}" for line, what in further.items())]))
    return 0


def eval(args: EvalArgs) -> int:
    """`drama eval`."""
    with _counting("evaluating", args.episodes) as told:
        result = evaluate_run(
            args.run,
            episodes=args.episodes,
            protocol=args.protocol,
            greedy=args.greedy,
            step=args.checkpoint,
            seed=args.seed,
            device=args.device,
            told=told,
            trust=args.trust,
            steps_limit=args.steps_limit,
        )
    if args.json:
        print(json.dumps(result, indent=2))
    else:
        _print_evaluation(result)
    return 0


def export(args: ExportArgs) -> int:
    """`drama export`."""
    options: dict[str, Any] = {"format": args.format, "licence": args.licence, "told": print}
    print(f"exported: {export_run(args.run, args.out, step=args.checkpoint, **options)}")
    return 0


def dream(args: DreamArgs) -> int:
    """`drama dream`."""
    _write_dream(args)
    return 0


def report(args: ReportArgs) -> int:
    """`drama report`."""
    from drama.results.page import write_report
    from drama.results.report import make_report  # these need the extra `report`

    content = make_report([path for path in args.runs if not path.is_file()])
    content.notes += [f"{path} is a file, no run: left out." for path in args.runs if path.is_file()]
    page = write_report(content, args.out)
    for note in content.notes:
        print(f"note: {note}")
    print(f"report: {page}")
    return 0


def play(args: PlayArgs) -> int:
    """`drama play`."""
    check_loadable(args.run)
    fps = frames_per_second(Config.load(args.run / "config.json"), args.speed)
    if args.dream:
        world = Dream(args.run, seed=args.seed, device=args.device, trust=args.trust)
        instead = f"`{hints.command('dream', args.run)}` writes a video of a dream instead"
        with Window(f"{world.config.game}, dreamt", instead) as window:
            play_dream(world, window, fps)
        print(f"score {world.score:.1f} after {world.steps} dreamt steps")
        return 0
    steps = watch(
        args.run,
        episodes=args.episodes,
        greedy=args.greedy,
        seed=args.seed,
        device=args.device,
        trust=args.trust,
    )
    if args.out is None:
        with Window(str(args.run), "`--out FILE.mp4` records instead") as window:
            play_agent(steps, window, fps)
        return 0
    scores: dict[int, float] = {}
    pictures = []
    with _counting("recording steps", None) as told:
        for played in steps:
            pictures.append(played.picture)
            scores[played.episode] = played.score
            told(len(pictures))
    args.out.write_bytes(encode_video(np.stack(pictures), args.out.suffix, fps=fps))
    print(f"scores: {', '.join(f'{score:g}' for score in scores.values())}\nrecording: {args.out}")
    return 0


def info(args: InfoArgs | InfoRunArgs) -> int:
    """`drama info`."""
    facts = describe_run(args.run) if isinstance(args, InfoRunArgs) else describe(plain(args), measure=args.measure)
    if args.json:
        print(json.dumps(facts, indent=2))
        return 0
    for line in _run_lines(facts["run"]) if "run" in facts else ():
        print(line)
    print(f"{facts['game']}, preset {facts['preset']}, {facts['action']}\n")
    for network in ("world_model", "agent"):
        counts = facts["parameters"][network]
        print(f"{network.replace('_', ' ')}: {sum(counts.values()):,} parameters")
        for part, count in counts.items():
            print(f"  {part:12} {count:>12,}")
    for line in _cost_lines(facts) if "multiply_adds" in facts else ():
        print(line)
    print(f"\ndevice: {facts['device']}, {facts['precision']}, {facts['threads']} threads")
    print("versions: " + ", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    return 0


def _cost_lines(facts: dict[str, Any]) -> Iterator[str]:
    """What `drama info` says of the cost of training."""
    yield "\na step of the environment, with its share of the updates:"
    for quantity, unit, scale in (("multiply_adds", "G multiply-adds", 1e9), ("milliseconds", "ms", 1)):
        if facts[quantity] is not None:
            each = (f"{name.replace('_', ' ')} {value / scale:,.2f}" for name, value in facts[quantity].items())
            yield f"  {unit}: {', '.join(each)}"
    yield f"\nreplay: {facts['replay_bytes'] / 1e6:,.0f} MB for {facts['replay_rows']:,} rows"


def describe(config: Config, *, measure: bool = False) -> dict[str, Any]:
    """The facts that `drama info` shows; `milliseconds` is None unless they are to be measured."""
    config.validate()
    env = make_env(config.game, config.env)
    learner = Learner(config, read_interface(env), resolve_device(config.device))
    replay = make_replay(config, learner.world_model.interface)
    cost = {
        "multiply_adds": multiply_adds(config, learner.world_model.interface),
        "milliseconds": milliseconds(config, learner, env) if measure else None,
        "replay_rows": replay.capacity,
        "replay_bytes": replay.nbytes,
    }
    return _facts(config, learner, learner.device) | cost


def describe_run(run: Path) -> dict[str, Any]:
    """The facts that `drama info RUN` shows: how far it is, its scores, its networks.

    What only training takes is not among them: the run may be somebody else's, whose config asks for any amount.
    """
    found, checkpoints = read_run(run), list_checkpoints(run)
    if checkpoints or is_export(run):
        config, learner, step = load_learner(run, trust=True)  # makes no environment
    else:
        found.config.validate()
        config, step = found.config, 0
        learner = blank_learner(config, Interface.load(run / "interface.json"))
    last = found.returns[-10:, 1]
    about = {
        "folder": str(run),
        "seed": config.seed,
        "step": max(found.step, step),
        "steps": config.steps,
        "checkpoints": [int(path.name.removeprefix("step-")) for path in checkpoints] or None,
        "episodes": len(found.returns),
        "last_returns": float(last.mean()) if len(last) else None,
        "evaluations": [
            {"protocol": e.protocol, "greedy": e.greedy, "step": e.step, "episodes": len(e.returns), "mean": e.mean}
            for e in found.evaluations
        ],
    }
    return {"run": about} | _facts(config, learner, resolve_device(config.device))


def _facts(config: Config, learner: Learner, device: torch.device) -> dict[str, Any]:
    """What follows from a config and the networks that it makes."""
    packages = ("numpy", "torch", "gymnasium", "ale-py")
    return {
        "game": config.game,
        "preset": config.preset,
        "actions": learner.world_model.interface.action.width,
        "action": learner.world_model.interface.action.words,
        "parameters": {
            name: {
                part: count
                for part, module in network.named_children()
                if (count := sum(p.numel() for p in module.parameters()))
            }
            for name, network in (("world_model", learner.world_model), ("agent", learner.agent))
        },
        "device": str(device),
        "precision": str(resolve_precision(config.train.precision, device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {
            "drama": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }


def _run_lines(run: dict[str, Any]) -> list[str]:
    """What `drama info RUN` says of a run before the facts of its config."""
    lines = [f"{run['folder']}: step {run['step']:,} of {run['steps']:,}, seed {run['seed']}"]
    if run["checkpoints"]:
        lines.append(f"checkpoints: {', '.join(f'{step:,}' for step in run['checkpoints'])}")
    if run["episodes"]:
        lines.append(f"{run['episodes']:,} episodes of training, mean return of the last ten {run['last_returns']:.4g}")
    for found in run["evaluations"]:
        mode = "greedy" if found["greedy"] else "sampled"
        lines.append(
            f"evaluation at step {found['step']:,}: mean return {found['mean']:.4g} over {found['episodes']} episodes"
            f" (protocol {found['protocol']}, {mode})"
        )
    return [*lines, ""]


@contextlib.contextmanager
def _counting(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many of `total` are done; gives what is to be told of it."""
    columns = (progress.TextColumn(what), progress.BarColumn(), progress.TextColumn("{task.completed:,.0f}"))
    console = Console(stderr=True)
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, completed=count)


def _print_evaluation(result: dict[str, Any]) -> None:
    score = result["human_normalised_mean"]
    normalised = "" if score is None else f", human-normalised {score:.1%}"
    count = len(result["episodes"])
    spread = f" ± {result['std']:.1f}, median {result['median']:.1f} over {count} episodes"
    print(
        f"{result['game']} after {result['step']} steps: return {result['mean']:.1f}"
        f"{spread if count > 1 else ' over 1 episode'}{normalised}"
        f" (protocol {result['protocol']}, {'greedy' if result['greedy'] else 'sampled'})"
    )
    limit = result["steps_limit"] or STEPS
    if cut := sum(episode["truncated"] and episode["length"] == limit for episode in result["episodes"]):
        print(f"note: {cut} episodes were truncated after {limit:,} steps; --steps-limit takes another limit")
    print(result["file"] or f"note: not written: {result['not_written']}")


def _write_dream(args: DreamArgs) -> None:
    out = args.out or args.run / "dream.gif"
    with _counting("playing", args.skip + args.steps) as told:
        video = dream_run(
            args.run,
            steps=args.steps,
            context=args.context,
            skip=args.skip,
            seed=args.seed,
            device=args.device,
            trust=args.trust,
            told=told,
        )
    out.write_bytes(encode_picture(dream_strip(video)) if out.suffix == ".png" else encode_video(video, out.suffix))
    print(f"dream: {out}")
