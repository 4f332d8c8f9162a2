"""What each command is called with: parsed and checked before anything heavy, such as PyTorch, is imported."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from drama.choosing import choose_preset, default_run, preset_for
from drama.cli.mistakes import mistake, options
from drama.config import PRESETS, Config, option_docs, preset
from drama.envs import env_maker, game_names, known_game
from drama.files import check_new, check_run
from drama.results.hub import SCHEME, local

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
class NewRun:
    """A run that is to begin."""

    config: Config
    run: Path
    why: str | None
    """How its preset was chosen, or None if it was named."""


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
    steps_limit: int | None = None
    """Steps after which an episode is truncated; by default as env.max_steps or env.max_frames say, else 27,000."""
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
    format: Literal["safetensors", "onnx"] = "safetensors"
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


@dataclass(frozen=True)
class InfoRunArgs:
    """Show how far a run or an export is, its scores, and the facts of its configuration."""

    run: tyro.conf.Positional[Path]
    """Folder of the run, or of an export; or hf://owner/name on the Hugging Face hub (extra `hub`)."""
    json: bool = False
    """Print JSON."""


def train(args: Sequence[str]) -> NewRun | ResumeArgs | None:
    """Of `drama train`; None where help was all that was asked for."""
    if "--help" in args or "-h" in args:
        print(short_help())
        return None
    args = ["--help" if arg == "--help-all" else arg for arg in args]
    if any(arg == "--resume" or arg.startswith("--resume=") for arg in args):
        kept = {f"--{name}" for name in options(TrainArgs)} - {f"--{name}" for name in options(ResumeArgs)}
        for name in (re.sub(r"_(?=.)", "-", arg.partition("=")[0]) for arg in args):
            if name in kept or name.replace("--no-", "--").replace(".no-", ".") in kept:
                raise ValueError(f"{name}: a run that is resumed keeps its options, but for --steps")
        resume = parse(ResumeArgs, args, "train --resume RUN")
        check_run(resume.resume)
        if resume.game is not None:
            before = Config.load(resume.resume / "config.json").game
            named, of = (known_game(game) or game for game in (resume.game, before))
            if named != of:
                raise ValueError(f"game: {resume.resume} is a run in {of}, not in {named}")
        return resume
    parsed, why = _configured(TrainArgs, args, "train")
    config = plain(parsed)
    run = parsed.run or default_run(config)
    check_new(run)
    return NewRun(config, run, why)


def eval(args: Sequence[str]) -> EvalArgs:
    """Of `drama eval`."""
    return _of_run(parse(EvalArgs, args, "eval"))


def export(args: Sequence[str]) -> ExportArgs:
    """Of `drama export`."""
    return _of_run(parse(ExportArgs, args, "export"))


def dream(args: Sequence[str]) -> DreamArgs:
    """Of `drama dream`."""
    parsed = parse(DreamArgs, args, "dream")
    if parsed.out is None and str(parsed.run).startswith(SCHEME):  # a download is no place for it
        parsed = dataclasses.replace(parsed, out=Path("dream.gif"))
    _check_file(parsed.out or parsed.run / "dream.gif", ".gif", ".mp4", ".png")
    return _of_run(parsed)


def report(args: Sequence[str]) -> ReportArgs:
    """Of `drama report`."""
    parsed = parse(ReportArgs, args, "report")
    if parsed.out.suffix == ".html" or parsed.out.is_file():
        raise ValueError(f"out: {parsed.out} must be a folder, in which the page is index.html")
    runs = [run if run.is_file() else local(run) for run in parsed.runs]  # `results/*` names files beside the runs too
    if all(run.is_file() for run in runs):
        raise ValueError("runs: name at least one run folder")
    for run in runs:
        if not run.is_file():
            check_run(run)
    return dataclasses.replace(parsed, runs=tuple(runs))


def play(args: Sequence[str]) -> PlayArgs:
    """Of `drama play`."""
    parsed = _of_run(parse(PlayArgs, args, "play"))
    if parsed.dream and parsed.out:
        raise ValueError("out: a dream is played by a person; `drama dream` writes a video of one without")
    if parsed.out:
        _check_file(parsed.out, ".gif", ".mp4")
    for name, value, least in (("episodes", parsed.episodes, 1), ("seed", parsed.seed, 0)):
        if value < least:
            raise ValueError(f"{name}: {value} must be at least {least}")
    return parsed


def info(args: Sequence[str]) -> InfoArgs | InfoRunArgs:
    """Of `drama info`."""
    values = {at + 1 for at, arg in enumerate(args) if arg.startswith("--") and arg not in ("--json", "--measure")}
    first = next((arg for at, arg in enumerate(args) if not arg.startswith("-") and at not in values), "")
    if first and known_game(first) is None and (first.startswith(SCHEME) or Path(first).is_dir()):
        return _of_run(parse(InfoRunArgs, args, "info RUN"))
    return _configured(InfoArgs, args, "info")[0]


def games(args: Sequence[str]) -> None:
    """Of `drama games`, which takes none: that is all that it does."""
    if args in (["--help"], ["-h"]):
        print("usage: drama games\n\nList the Atari games and the small tasks.")
        return
    if args:
        raise ValueError(f"drama games takes no arguments, got {' '.join(args)}")
    print("\n".join(game_names()))


def _of_run(parsed: T) -> T:
    """The arguments with the folder that their `run` names, which is there."""
    run: Any = parsed
    folder = local(run.run)
    check_run(folder)
    changed: T = dataclasses.replace(run, run=folder)
    return changed


def _configured(cls: type[C], args: Sequence[str], command: str) -> tuple[C, str | None]:
    """Arguments whose defaults are those of the preset, and how that was chosen, or None if it was named."""
    name, why = named_preset(args), None
    if name is None:
        # What is shown decides, so the environment's options are read first.
        first = parse(cls, args, command, defaults(cls, preset("cpu")))
        name, why = choose_preset(known_game(first.game) or first.game, first.env, first.device)
    parsed = parse(cls, args, command, defaults(cls, preset(name)))
    if known_game(parsed.game) is None:
        parsed = parse(cls, args, command, defaults(cls, preset_for(parsed.game, name)))
    parsed = dataclasses.replace(parsed, game=known_game(parsed.game) or parsed.game, preset=name)
    env_maker(parsed.game, parsed.env)  # which refuses an unknown one
    parsed.validate()
    return parsed, why


def parse(cls: type[T], args: Sequence[str], command: str, default: Any = None) -> T:
    """Parse into the dataclass `cls`; what the parser says of a mistake is folded into one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            parsed: T = tyro.cli(cls, args=args, prog=f"drama {command}", default=default, registry=_REGISTRY)
            return parsed
    except SystemExit as stop:
        if not stop.code:
            raise
        option = "--help-all" if command.startswith(("train", "sweep")) else "--help"
        raise ValueError(
            f"{mistake(cls, args, said.getvalue())} (`drama {command} {option}` shows all options)"
        ) from None


def named_preset(args: Sequence[str]) -> str | None:
    """The preset that the arguments name; None where they name none, or `auto`."""
    name = None
    for arg, following in zip(args, [*args, ""][1:], strict=True):
        option, _, value = arg.partition("=")
        if option == "--preset" and (value or not following.startswith("--")):
            name = value or following or None
    return None if name == "auto" else name


def defaults(cls: type[C], base: Config) -> C:
    """An instance of the Config subclass `cls` with the values of `base`, the game missing."""
    values = {field.name: getattr(base, field.name) for field in dataclasses.fields(Config)}
    return cls(**values | {"game": tyro.MISSING})


def plain(parsed: Config) -> Config:
    """The plain Config in a command's arguments."""
    return Config(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(Config)})


def _check_file(out: Path, *suffixes: str) -> None:
    """Refuse a file that could not be written, before anything long is done for it."""
    if out.suffix not in suffixes:
        raise ValueError(f"out: {out} must end in {', '.join(suffixes[:-1])} or {suffixes[-1]}")
    if not out.parent.is_dir():
        raise ValueError(f"out: there is no folder {out.parent}")
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"out: {out.parent} cannot be written to")
