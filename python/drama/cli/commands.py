"""The commands of `drama`. Each takes its arguments and returns the exit code; bad input raises ValueError."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import platform
import shlex
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import tyro
from rich import progress
from rich.console import Console

from drama import __version__, hints
from drama.api import choose_preset, default_run, preset_for
from drama.config import PRESETS, Config, option_docs, preset
from drama.envs import game_names, known_game, make_env, read_interface
from drama.results.cost import milliseconds, multiply_adds
from drama.results.dream import dream_run
from drama.results.evaluation import check_loadable, evaluate_run
from drama.results.export import Format, export_run
from drama.results.hub import local
from drama.results.play import Dream, Window, frames_per_second, play_agent, play_dream, watch
from drama.runtime.device import resolve_device, resolve_precision
from drama.training.collector import make_replay
from drama.training.learner import Learner
from drama.training.metrics import encode_picture, encode_video
from drama.training.pictures import dream_strip
from drama.training.progress import Progress
from drama.training.trainer import Trainer

T = TypeVar("T")
C = TypeVar("C", bound=Config)
MATTERS = (
    "steps",
    "seed",
    "preset",
    "run",
    "device",
    "threads",
    "env.kwargs",
    "env.size",
    "train.num-envs",
    "log.eval-episodes",
)
"""The options of `drama train` that matter first."""
_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _json_object(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[dict[str, Any]] | None:
    """A dictionary is given as JSON."""
    if info.type_origin is not dict:
        return None

    def read(args: list[str]) -> dict[str, Any]:
        try:
            value = json.loads(args[0])
        except json.JSONDecodeError as error:
            raise ValueError(f"{args[0]!r} is not JSON ({error})") from error
        if not isinstance(value, dict):
            raise ValueError(f'{args[0]!r} is no JSON object, such as {{"name": 1}}')
        return value

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=read,
        is_instance=lambda x: isinstance(x, dict),
        str_from_instance=lambda x: [json.dumps(x)],
    )


def short_help() -> str:
    """The help of `drama train`: the options that matter first."""
    docs = {"run": "Folder of the run, which must not exist; by default runs/GAME-PRESET-seedN."} | option_docs()
    docs["preset"] = f"Where other values come from; by default by device and observations: {', '.join(PRESETS)}."
    lines = [
        f"  --{name:20} {textwrap.fill(docs[name.replace('-', '_')], 92, subsequent_indent=' ' * 25)}"
        for name in MATTERS
    ]
    return "\n".join(
        [
            "usage: drama train GAME [options]",
            "       drama train --resume RUN [--steps N]",
            "",
            "Train a world model and an agent in an environment. GAME is an Atari game in any case, a small task",
            "(`drama games` lists both), the id of an environment that is registered with Gymnasium, or",
            "package.module:function.",
            "",
            *lines,
            "",
            f"These are {len(MATTERS)} of {len(option_docs())} options; `drama train --help-all` shows the others.",
        ]
    )


@dataclass(frozen=True)
class TrainArgs(Config):
    """Train an agent in an environment. `drama train --resume RUN` goes on with a run instead.

    Every field of the config is an option; the preset gives the values that are not named.
    """

    game: tyro.conf.Positional[str] = "Pong"
    run: Path | None = None
    """Folder of the run, which must not exist; by default runs/GAME-PRESET-seedN."""


@dataclass(frozen=True)
class ResumeArgs:
    """Go on with a run from its last checkpoint."""

    resume: Path
    """Folder of the run."""
    game: tyro.conf.Positional[str | None] = None
    """May be named again."""
    steps: int | None = None
    """Train up to this step instead of the config's."""


@dataclass(frozen=True)
class EvalArgs:
    """Play episodes with a checkpoint of a run; writes evaluation-….json, named by all settings, into its folder."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or of an export; or hf://owner/name on the Hugging Face hub (extra `hub`)."""
    episodes: int = 100
    """Number of episodes."""
    protocol: Literal["standard", "paper"] | None = None
    """`standard`: up to 30 no-ops at reset, sampled actions. `paper`: no no-ops, greedy. By default the run's own."""
    greedy: bool | None = None
    """Most probable actions instead of samples; by default as the protocol says."""
    checkpoint: int | None = None
    """Step of the checkpoint; by default the last."""
    seed: int = 1_000_000
    """Seed of the environments and of the sampling."""
    device: str = "auto"
    """auto, cpu or cuda."""
    trust: tyro.conf.FlagCreatePairsOff[bool] = False
    """Import what an export names to make its environment."""
    json: bool = False
    """Print the whole result as JSON."""


@dataclass(frozen=True)
class ExportArgs:
    """Write a trained agent into a small folder that eval, dream, play, report and `drama.load` take like a run."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or of an export; or hf://owner/name on the Hugging Face hub (extra `hub`)."""
    out: Path
    """The folder to write, or the run's own."""
    checkpoint: int | None = None
    """Step of the checkpoint; by default the last."""
    format: Format = "safetensors"
    """`onnx` also writes a step of acting and one of dreaming as ONNX, and times them beside PyTorch (extra `onnx`)."""
    licence: str = "MIT"
    """Of the weights, for the card: an SPDX identifier."""


@dataclass(frozen=True)
class DreamArgs:
    """Write a video: real frames above, the world model's reconstruction, its open-loop dream below."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or of an export; or hf://owner/name on the Hugging Face hub (extra `hub`)."""
    out: Path | None = None
    """The file to write, .gif, .mp4 or .png (eight moments); by default dream.gif in the run's folder."""
    steps: int = 64
    """Frames of the video."""
    context: int = 8
    """Real frames that the dream starts from."""
    skip: int = 60
    """Steps played before the first frame."""
    seed: int = 0
    """Seed of the environment and of the sampling."""
    device: str = "auto"
    """auto, cpu or cuda."""
    trust: tyro.conf.FlagCreatePairsOff[bool] = False
    """Import what an export names to make its environment."""


@dataclass(frozen=True)
class ReportArgs:
    """Write a page with the curves, scores, losses and dreams of runs, beside published scores."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs or sweeps (or hf://owner/name); runs of one game and config are seeds of one curve."""
    out: Path = Path("report")
    """Folder for index.html, its pictures, scores.csv and report.json."""


@dataclass(frozen=True)
class PlayArgs:
    """Watch the agent of a run in a window or record it; with --dream, play inside its world model yourself."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or of an export; or hf://owner/name on the Hugging Face hub (extra `hub`)."""
    dream: tyro.conf.FlagCreatePairsOff[bool] = False
    """Play in the world model: arrows and space act, R starts again, P pauses, Esc or Q quits."""
    out: Path | None = None
    """Record the agent into this file, .mp4 or .gif, instead of opening a window."""
    speed: float = 1.0
    """1 is the speed of the real game."""
    episodes: int = 1
    """Episodes to watch."""
    greedy: bool | None = None
    """Most probable actions instead of samples; by default as the run's protocol says."""
    seed: int = 0
    """Seed of the game and of the sampling."""
    device: str = "auto"
    """auto, cpu or cuda."""
    trust: tyro.conf.FlagCreatePairsOff[bool] = False
    """Import what an export names to make its environment."""


@dataclass(frozen=True)
class InfoArgs(Config):
    """Show parameter counts per part, cost of a step, memory of the replay, device and versions for a configuration."""

    game: tyro.conf.Positional[str] = "Pong"
    measure: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run a few updates and show the milliseconds of a step on this machine."""
    json: bool = False
    """Print JSON."""


def train(args: Sequence[str]) -> int:
    """`drama train`."""
    if "--help" in args or "-h" in args:
        print(short_help())
        return 0
    args = ["--help" if arg == "--help-all" else arg for arg in args]
    display = Progress()
    if any(arg == "--resume" or arg.startswith("--resume=") for arg in args):
        resume = _parse(ResumeArgs, args, "train --resume RUN")
        if resume.game is not None and resume.resume.is_dir():
            named, of = (
                known_game(game) or game for game in (resume.game, Config.load(resume.resume / "config.json").game)
            )
            if named != of:
                raise ValueError(f"game: {resume.resume} is a run in {of}, not in {named}")
        trainer = Trainer.resume(resume.resume, steps=resume.steps, callbacks=[display])
        print(f"going on with {trainer.run} at step {trainer.step}")
    else:
        config, why, run = _train_config(args)
        if why is not None:
            print(f"{why}; --preset NAME takes another of {', '.join(PRESETS)}")
        trainer = Trainer(config, run or default_run(config), callbacks=[display])
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


def _train_config(args: Sequence[str]) -> tuple[Config, str | None, Path | None]:
    """The config that the arguments of `drama train` mean, how its preset was chosen, and the folder."""
    parsed, why = _configured(TrainArgs, args, "train")
    return _config(parsed), why, parsed.run


def _configured(cls: type[C], args: Sequence[str], command: str) -> tuple[C, str | None]:
    """Arguments whose defaults are those of the preset, and how that was chosen, or None if it was named."""
    name, why = _named_preset(args), None
    if name is None:
        # What is shown decides, so the environment's options are read first.
        first = _parse(cls, args, command, _defaults(cls, preset("cpu")))
        name, why = choose_preset(known_game(first.game) or first.game, first.env, first.device)
    parsed = _parse(cls, args, command, _defaults(cls, preset(name)))
    if known_game(parsed.game) is None:
        parsed = _parse(cls, args, command, _defaults(cls, preset_for(parsed.game, name)))
    return dataclasses.replace(parsed, game=known_game(parsed.game) or parsed.game, preset=name), why


def eval(args: Sequence[str]) -> int:
    """`drama eval`."""
    parsed = _parse(EvalArgs, args, "eval")
    with _counting("evaluating", parsed.episodes) as told:
        result = evaluate_run(
            local(parsed.run),
            episodes=parsed.episodes,
            protocol=parsed.protocol,
            greedy=parsed.greedy,
            step=parsed.checkpoint,
            seed=parsed.seed,
            device=parsed.device,
            told=told,
            trust=parsed.trust,
        )
    if parsed.json:
        print(json.dumps(result, indent=2))
    else:
        _print_evaluation(result)
    return 0


def export(args: Sequence[str]) -> int:
    """`drama export`."""
    parsed = _parse(ExportArgs, args, "export")
    options: dict[str, Any] = {"format": parsed.format, "licence": parsed.licence, "told": print}
    print(f"exported: {export_run(local(parsed.run), parsed.out, step=parsed.checkpoint, **options)}")
    return 0


def dream(args: Sequence[str]) -> int:
    """`drama dream`."""
    parsed = _parse(DreamArgs, args, "dream")
    run = local(parsed.run)
    here = Path("dream.gif") if run != parsed.run else None  # a download is no place for it
    _write_dream(dataclasses.replace(parsed, run=run, out=parsed.out or here))
    return 0


def report(args: Sequence[str]) -> int:
    """`drama report`."""
    parsed = _parse(ReportArgs, args, "report")
    runs = [run for run in parsed.runs if not run.is_file()]  # `results/*` names what lies beside the runs too
    if not runs:
        raise ValueError("runs: name at least one run folder")
    runs = [local(run) for run in runs]
    for run in runs:
        if not run.is_dir():
            raise ValueError(f"{run}: no such run folder")
    from drama.results.page import write_report
    from drama.results.report import make_report  # these need the extra `report`

    content = make_report(runs)
    content.notes += [f"{path} is a file, no run: left out." for path in parsed.runs if path.is_file()]
    page = write_report(content, parsed.out)
    for note in content.notes:
        print(f"note: {note}")
    print(f"report: {page}")
    return 0


def play(args: Sequence[str]) -> int:
    """`drama play`."""
    parsed = _parse(PlayArgs, args, "play")
    parsed = dataclasses.replace(parsed, run=local(parsed.run))
    if parsed.dream and parsed.out:
        raise ValueError("out: a dream is played by a person; `drama dream` writes a video of one without")
    if parsed.out and parsed.out.suffix not in (".gif", ".mp4"):
        raise ValueError(f"out: {parsed.out} must end in .gif or .mp4")
    if parsed.out:
        _check_folder(parsed.out)
    for name, value, least in (("episodes", parsed.episodes, 1), ("seed", parsed.seed, 0)):
        if value < least:
            raise ValueError(f"{name}: {value} must be at least {least}")
    check_loadable(parsed.run)
    fps = frames_per_second(Config.load(parsed.run / "config.json"), parsed.speed)
    if parsed.dream:
        world = Dream(parsed.run, seed=parsed.seed, device=parsed.device, trust=parsed.trust)
        instead = f"`{hints.command('dream', parsed.run)}` writes a video of a dream instead"
        with Window(f"{world.config.game}, dreamt", instead) as window:
            play_dream(world, window, fps)
        print(f"score {world.score:.1f} after {world.steps} dreamt steps")
        return 0
    steps = watch(
        parsed.run,
        episodes=parsed.episodes,
        greedy=parsed.greedy,
        seed=parsed.seed,
        device=parsed.device,
        trust=parsed.trust,
    )
    if parsed.out is None:
        with Window(str(parsed.run), "`--out FILE.mp4` records instead") as window:
            play_agent(steps, window, fps)
        return 0
    scores: dict[int, float] = {}
    pictures = []
    with _counting("recording steps", None) as told:
        for played in steps:
            pictures.append(played.picture)
            scores[played.episode] = played.score
            told(len(pictures))
    parsed.out.write_bytes(encode_video(np.stack(pictures), parsed.out.suffix, fps=fps))
    print(f"scores: {', '.join(f'{score:g}' for score in scores.values())}\nrecording: {parsed.out}")
    return 0


def info(args: Sequence[str]) -> int:
    """`drama info`."""
    parsed, _ = _configured(InfoArgs, args, "info")
    facts = describe(_config(parsed), measure=parsed.measure)
    if parsed.json:
        print(json.dumps(facts, indent=2))
        return 0
    print(f"{facts['game']}, preset {facts['preset']}, {facts['actions']} actions\n")
    for network in ("world_model", "agent"):
        counts = facts["parameters"][network]
        print(f"{network.replace('_', ' ')}: {sum(counts.values()):,} parameters")
        for part, count in counts.items():
            print(f"  {part:12} {count:>12,}")
    print("\na step of the environment, with its share of the updates:")
    for quantity, unit, scale in (("multiply_adds", "G multiply-adds", 1e9), ("milliseconds", "ms", 1)):
        if facts[quantity] is not None:
            each = ", ".join(
                f"{name.replace('_', ' ')} {value / scale:,.2f}" for name, value in facts[quantity].items()
            )
            print(f"  {unit}: {each}")
    print(f"\nreplay: {facts['replay_bytes'] / 1e6:,.0f} MB for {facts['replay_rows']:,} rows")
    print(f"device: {facts['device']}, {facts['precision']}, {facts['threads']} threads")
    print("versions: " + ", ".join(f"{name} {number}" for name, number in facts["versions"].items()))
    return 0


def games(args: Sequence[str]) -> int:
    """`drama games`."""
    if args:
        raise ValueError(f"drama games takes no arguments, got {' '.join(args)}")
    print("\n".join(game_names()))
    return 0


def describe(config: Config, *, measure: bool = False) -> dict[str, Any]:
    """The facts that `drama info` shows; `milliseconds` is None unless they are to be measured."""
    config.validate()
    device = resolve_device(config.device)
    env = make_env(config.game, config.env)
    interface = read_interface(env)
    learner = Learner(config, interface, device)
    replay = make_replay(config, interface)
    packages = ("numpy", "torch", "gymnasium", "ale-py")
    return {
        "game": config.game,
        "preset": config.preset,
        "actions": interface.action.width,
        "parameters": {
            name: {
                part: count
                for part, module in network.named_children()
                if (count := sum(p.numel() for p in module.parameters()))
            }
            for name, network in (("world_model", learner.world_model), ("agent", learner.agent))
        },
        "multiply_adds": multiply_adds(config, interface),
        "milliseconds": milliseconds(config, learner, env) if measure else None,
        "replay_rows": replay.capacity,
        "replay_bytes": replay.nbytes,
        "device": str(device),
        "precision": str(resolve_precision(config.train.precision, device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "versions": {
            "drama": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in packages},
        },
    }


def _parse(cls: type[T], args: Sequence[str], command: str, default: Any = None) -> T:
    """Parse into the dataclass `cls`; what the parser says of a mistake is folded into one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed: T = tyro.cli(cls, args=args, prog=f"drama {command}", default=default, registry=_REGISTRY)
            return parsed
    except SystemExit as stop:
        if not stop.code:
            raise
        lines = [line.strip("│╭╮╰╯─ ") for line in said.getvalue().splitlines()[1:]]
        text = " ".join(" ".join(lines).split()).split(" For full helptext")[0].split(" Argument helptext")[0]
        option = "--help-all" if command == "train" else "--help"
        raise ValueError(f"{text} (`drama {command} {option}` shows all options)") from None


def _named_preset(args: Sequence[str]) -> str | None:
    """The preset that the arguments name; None where they name none, or `auto`."""
    name = None
    for arg, following in zip(args, [*args, ""][1:], strict=True):
        if arg.partition("=")[0] == "--preset":
            name = arg.partition("=")[2] or following
    return None if name == "auto" else name


def _defaults(cls: type[C], base: Config) -> C:
    """An instance of the Config subclass `cls` with the values of `base`, the game missing."""
    values = {field.name: getattr(base, field.name) for field in dataclasses.fields(Config)}
    return cls(**values | {"game": tyro.MISSING})


@contextlib.contextmanager
def _counting(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many of `total` are done; gives what is to be told of it."""
    columns = (progress.TextColumn(what), progress.BarColumn(), progress.TextColumn("{task.completed:,.0f}"))
    console = Console(stderr=True)
    with progress.Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.update(task, completed=count)


def _config(parsed: Config) -> Config:
    """The plain Config in a command's arguments."""
    return Config(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(Config)})


def _check_folder(out: Path) -> None:
    """Refuse a file that could not be written, before anything long is done for it."""
    if not out.parent.is_dir():
        raise ValueError(f"out: there is no folder {out.parent}")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"out: {out.parent} cannot be written to")


def _print_evaluation(result: dict[str, Any]) -> None:
    score = result["human_normalised_mean"]
    normalised = "" if score is None else f", human-normalised {score:.1%}"
    print(
        f"{result['game']} after {result['step']} steps: return {result['mean']:.1f} ± {result['std']:.1f}, median"
        f" {result['median']:.1f} over {len(result['episodes'])} episodes{normalised}"
        f" (protocol {result['protocol']}, {'greedy' if result['greedy'] else 'sampled'})"
    )
    print(result["file"] or f"note: not written: {result['not_written']}")


def _write_dream(args: DreamArgs) -> None:
    out = args.out or args.run / "dream.gif"
    if out.suffix not in (".gif", ".mp4", ".png"):
        raise ValueError(f"out: {out} must end in .gif, .mp4 or .png")
    _check_folder(out)
    video = dream_run(
        args.run,
        steps=args.steps,
        context=args.context,
        skip=args.skip,
        seed=args.seed,
        device=args.device,
        trust=args.trust,
    )
    out.write_bytes(encode_picture(dream_strip(video)) if out.suffix == ".png" else encode_video(video, out.suffix))
    print(f"dream: {out}")
