"""`drama sweep`: its arguments, which are those of `drama.sweep`, and what it prints at the end."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tyro

from drama import hints
from drama.choosing import preset_for
from drama.cli.arguments import defaults, named_preset, parse
from drama.config import Config, did_you_mean, flat, option_docs, preset
from drama.envs import known_game
from drama.sweeps.plan import make_plan

if TYPE_CHECKING:
    from drama.sweeps.driver import Sweep

APART = {"game", "preset", "seed"}
"""Fields of the config that are no options of all runs."""
RUNNING = {"out", "address", "max_failures"}
"""Arguments of `drama.sweep` that are not of its plan."""
HELP = """\
usage: drama sweep --games GAME... --out FOLDER [options]

Train many agents on Ray, one trial a run: each game with each seed and each combination of the grid's values. The same
command goes on with a sweep that was stopped or killed; failed runs are tried again. It may have more games, seeds,
values of the grid and steps than before.

  --games GAME...           As `drama train` takes them; all: the 26 games of Atari100k.
  --out FOLDER              A folder that all nodes share, or an object store's address such as s3://bucket/sweep.
  --seeds N                 Seeds of each game (1), from --seed on (0).
  --preset NAME             Where other values come from (cpu).
  --cpus N                  Logical processors of a run, and its threads (1).
  --gpus N                  GPUs of a run (0); with 0.25 four share one.
  --grid FIELD VALUE...     Every value of a field of the config: --grid train.agent-lr 1e-4 3e-4; may be repeated.
  --search FIELD LOW HIGH [log]
                            Values that Optuna chooses for the highest return, of one game and seed; may be repeated.
  --samples N               How many choices Optuna makes.
  --address ADDRESS         A cluster: HOST:PORT, ray://HOST:PORT, or auto for one on this machine; else one is started.
  --max-failures N          How often in a row a run's process or node may die without the run getting any further (10).

All options of `drama train` hold for every run, such as --steps 50000 and --log.eval-episodes 100;
`drama sweep --help-all` shows them."""


@dataclass(frozen=True)
class SweepArgs(Config):
    """Train many agents on Ray. Every field of the config is an option for all runs."""

    game: tyro.conf.Suppress[str] = ""
    games: tuple[str, ...] = ()
    """As `drama train` takes them; `all`: the 26 games of Atari100k."""
    out: str = ""
    """A folder that all nodes share, or an object store's address such as s3://bucket/sweep."""
    seeds: int = 1
    """Seeds of each game, from `--seed` on."""
    cpus: float = 1
    """Logical processors of a run, and its threads."""
    gpus: float = 0
    """GPUs of a run; with 0.25 four share one."""
    grid: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """A field and its values; may be repeated."""
    search: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """A field, its lowest and highest value, and perhaps `log`; may be repeated."""
    samples: int = 0
    """How many choices Optuna makes."""
    address: str | None = None
    """HOST:PORT, ray://HOST:PORT, or auto; without it a cluster is started on this machine."""
    max_failures: int = 10
    """How often in a row a run's process or node may die without the run getting any further."""


def sweep(args: Sequence[str]) -> int:
    """`drama sweep`."""
    if "--help" in args or "-h" in args:
        print(HELP)
        return 0
    args = ["--help" if arg == "--help-all" else arg for arg in args]
    given = arguments(args)
    make_plan(**{name: value for name, value in given.items() if name not in RUNNING})  # before Ray is imported
    from drama.sweeps.driver import sweep

    return _tell(sweep(**given))


def arguments(args: Sequence[str]) -> dict[str, Any]:
    """What `drama.sweep` is called with for these arguments of the command line."""
    name = named_preset(args) or "cpu"
    base = preset(name)
    parsed = parse(SweepArgs, args, "sweep", _default(base))
    if parsed.preset == "auto":
        raise ValueError("preset: auto is not for sweeps, whose runs are to be alike; name one")
    for option in ("games", "out"):
        if not getattr(parsed, option):
            raise ValueError(f"{option}: name {'at least one game, or all' if option == 'games' else 'the folder'}")
    first = known_game(parsed.games[0]) or parsed.games[0]
    values = {field: value for field, value in flat(parsed).items() if field in flat(base)}
    of_game = flat(preset_for("Pong" if first == "all" else first, name))
    given = {arg.partition("=")[0].removeprefix("--").replace("-", "_") for arg in args if arg.startswith("--")}
    options = {
        field: value
        for field, value in values.items()
        if field not in APART and (field in given or (value != of_game[field] and value != flat(base)[field]))
    }
    for option in ("grid", "search"):
        if not all(getattr(parsed, option)):
            raise ValueError(f"{option}: name a field and its values")
    grid = {_field(name, "grid"): [_read(base, name, text) for text in texts] for name, *texts in parsed.grid}
    search = {
        _field(name, "search"): [*(_read(base, name, text) for text in texts[:2]), *texts[2:]]
        for name, *texts in parsed.search
    }
    return {
        "games": parsed.games,
        "seeds": range(parsed.seed, parsed.seed + parsed.seeds),
        "out": parsed.out,
        "preset": name,
        "options": options,
        "grid": grid,
        "search": search,
        "samples": parsed.samples,
        "cpus": parsed.cpus,
        "gpus": parsed.gpus,
        "address": parsed.address,
        "max_failures": parsed.max_failures,
    }


def _field(name: str, option: str) -> str:
    field = name.replace("-", "_")
    if field not in option_docs():
        raise ValueError(f"{option}: {name!r} is no field of the config{did_you_mean(field, option_docs())}")
    return field


def _read(base: Config, field: str, text: str) -> Any:
    """The value that `text` is for a field of the config."""
    if isinstance(flat(base).get(field.replace("-", "_")), bool):  # which are flags on the command line
        if text not in ("True", "False"):
            raise ValueError(f"{field}: got {text!r}, expected True or False")
        return text == "True"
    parsed = parse(SweepArgs, [f"--{field.replace('_', '-')}", text], "sweep", _default(base))
    return flat(parsed)[field.replace("-", "_")]


def _default(base: Config) -> SweepArgs:
    return dataclasses.replace(defaults(SweepArgs, base), game="")


def _tell(done: Sweep) -> int:
    """Print what has become of the sweep; gives the exit code."""
    for run in done.failed:
        print(f"\n{run.name} failed at step {run.step}:\n{run.error.rstrip()}")
    if done.stopped:
        print(f"stopped; the same command goes on with {done.path}")
        return 130
    finished = len(done.runs) - len(done.failed)
    print(f"{finished} of {len(done.runs)} runs finished in {done.path}")
    if "://" not in done.path:
        further = {
            hints.command("report", done.path): "curves and scores",
            f"{hints.program('tensorboard')} --logdir {shlex.quote(done.path)}": "curves and dreams",
        }
        width = max(map(len, further))
        print("\n".join(f"  {line:{width}}  # {what}" for line, what in further.items()))
    if done.failed:
        print("the same command tries those that failed again")
    return 1 if done.failed else 0
