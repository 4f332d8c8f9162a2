"""What a sweep is to do: its runs, their configs and the resources of each. Plain values; nothing here knows Ray."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drama.choosing import default_run, make_config
from drama.config import Config, preset, with_options
from drama.envs import env_maker, interface_of, known_game
from drama.interface import Interface

ATARI100K = (
    "Alien",
    "Amidar",
    "Assault",
    "Asterix",
    "BankHeist",
    "BattleZone",
    "Boxing",
    "Breakout",
    "ChopperCommand",
    "CrazyClimber",
    "DemonAttack",
    "Freeway",
    "Frostbite",
    "Gopher",
    "Hero",
    "Jamesbond",
    "Kangaroo",
    "Krull",
    "KungFuMaster",
    "MsPacman",
    "Pong",
    "PrivateEye",
    "Qbert",
    "RoadRunner",
    "Seaquest",
    "UpNDown",
)
"""The 26 games of Atari100k, `--games all`, in the order in which a sweep takes them."""
VERSION = 1
LONGEST = 200
"""Letters of the name of a run's folder, as file systems take 255 and Ray adds some."""


@dataclass(frozen=True)
class Plan:
    """A sweep, resolved. `make_plan` makes and checks one.

    Args:
        games: the environments, by name.
        seeds: of each.
        preset: where values come from that nothing else gives.
        options: fields of the config that all runs share, by name.
        grid: fields of which every combination of values is tried.
        search: fields that Optuna chooses: the lowest and highest value, and `"log"` where the logarithm is uniform.
        samples: how many choices Optuna makes; 0 without a search.
        cpus: logical processors of a run, which are its threads as well.
        gpus: of a run; a fraction shares one.
    """

    games: tuple[str, ...]
    seeds: tuple[int, ...]
    preset: str
    options: dict[str, Any]
    grid: dict[str, tuple[Any, ...]]
    search: dict[str, tuple[Any, ...]]
    samples: int
    cpus: float
    gpus: float

    def to_json(self) -> str:
        """What `sweep.json` holds."""
        runs = [] if self.search else [trial["run"] for trial in self.trials()]
        return json.dumps({"version": VERSION, **dataclasses.asdict(self), "runs": runs}, indent=2) + "\n"

    def trials(self) -> list[dict[str, Any]]:
        """The config of each run as `trainable` takes it, all games with the first seed first.

        With a search it is one, without what Optuna chooses.
        """
        axes = [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]
        return [
            {"run": self._name(game, seed, chosen), **self._trial(game, seed, chosen)}
            for seed in self.seeds
            for game in self.games
            for chosen in axes
        ]

    def _trial(self, game: str, seed: int, chosen: Mapping[str, Any]) -> dict[str, Any]:
        return {"env": game, "preset": self.preset, "seed": seed, **self.options, **chosen}

    def _name(self, game: str, seed: int, chosen: Mapping[str, Any]) -> str:
        name = default_run(Config(game=game, preset=self.preset, seed=seed)).name
        axes = "".join(f"-{field}={value}" for field, value in chosen.items())
        return name + "".join(letter if letter.isalnum() or letter in "-._=" else "-" for letter in axes)


def make_plan(
    games: str | Sequence[str],
    seeds: int | Sequence[int] = 1,
    *,
    preset: str = "cpu",
    options: Mapping[str, Any] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    search: Mapping[str, Sequence[Any]] | None = None,
    samples: int = 0,
    cpus: float = 1,
    gpus: float = 0,
) -> Plan:
    """The plan of a sweep; the arguments are those of `drama.sweep`.

    Raises ValueError, naming the argument or the field, for what cannot be run.
    """
    names = [games] if isinstance(games, str) else list(games)
    names = list(ATARI100K) if names == ["all"] else [known_game(name) or name for name in names]
    numbers = range(seeds) if isinstance(seeds, int) else seeds
    options, grid, search = dict(options or {}), dict(grid or {}), dict(search or {})
    _check(names, list(numbers), options, grid, search, samples)
    for name, value in (("cpus", cpus), ("gpus", gpus)):
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or (name == "cpus" and not value):
            raise ValueError(f"{name}: {value!r} must be a number {'above' if name == 'cpus' else 'of at least'} 0")
        if value > 1 and value != int(value):
            raise ValueError(f"{name}: {value} must be a whole number where it is above 1")
    options = {"threads": max(1, int(cpus)), "device": "cuda" if gpus else "cpu", **options}
    plan = Plan(
        tuple(names),
        tuple(numbers),
        preset,
        options,
        {field: tuple(values) for field, values in grid.items()},
        {field: tuple(values) for field, values in search.items()},
        samples,
        cpus,
        gpus,
    )
    seen: set[str] = set()
    for trial in plan.trials():
        bounds = [{field: values[end] for field, values in search.items()} for end in (0, 1)] if search else [{}]
        for chosen in bounds:
            config = config_of(trial | chosen)
            if config.device == "cuda" and not gpus:
                raise ValueError("device: cuda needs a share of a GPU, such as gpus=0.25 (--gpus 0.25) for a quarter")
        env_maker(config.game, config.env)
        if len(trial["run"]) > LONGEST:
            raise ValueError(f"grid: a run would be named {trial['run'][:40]}…, with more than {LONGEST} letters")
        if trial.get("run") in seen:
            raise ValueError(f"games, seeds, grid: two runs would be {trial['run']}")
        seen.add(trial.get("run", ""))
    return plan


def _check(
    names: list[str],
    seeds: list[int],
    options: dict[str, Any],
    grid: dict[str, Sequence[Any]],
    search: dict[str, Sequence[Any]],
    samples: int,
) -> None:
    if not names:
        raise ValueError("games: name at least one, or all")
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds):
        raise ValueError(f"seeds: got {seeds}, expected how many, at least 1, or a list of them")
    for name, given in (("options", options), ("grid", grid), ("search", search)):
        for field in {"game", "preset", "seed"} & given.keys():
            other = {"game": "games", "preset": "preset", "seed": "seeds"}[field]
            raise ValueError(f"{name}: {field} is given as {other}")
    for field in (grid.keys() & search.keys()) | (options.keys() & (grid.keys() | search.keys())):
        raise ValueError(f"{field}: given twice, as an option and an axis, or in grid and search")
    for field, values in grid.items():
        if isinstance(values, str) or not len(values):
            raise ValueError(f"grid: {field} needs a list of at least one value, got {values!r}")
        if len(set(map(repr, values))) < len(values):
            raise ValueError(f"grid: {field} has the same value twice: {list(values)}")
    for field, bounds in search.items():
        is_range = len(bounds) in (2, 3) and all(
            isinstance(b, int | float) and not isinstance(b, bool) for b in bounds[:2]
        )
        if not is_range or not bounds[0] < bounds[1] or (len(bounds) == 3 and bounds[2] != "log"):
            raise ValueError(f"search: {field} needs a lowest and a higher value, and perhaps log; got {list(bounds)}")
        if len(bounds) == 3 and bounds[0] <= 0:
            raise ValueError(f"search: {field} cannot be searched by its logarithm from {bounds[0]}")
    if search and (len(names) > 1 or len(seeds) > 1 or grid):
        raise ValueError("search: Optuna chooses for one game and one seed, without a grid")
    if search and samples < 1:
        raise ValueError(f"samples: got {samples}, expected how many choices Optuna makes")
    if samples and not search:
        raise ValueError(f"samples: {samples} belong to a search, and nothing is searched")


def config_of(trial: Mapping[str, Any]) -> Config:
    """The config of a run from what `trainable` is given. Raises ValueError, naming the field, if it cannot work."""
    options = {name: value for name, value in trial.items() if name not in ("env", "preset", "run")}
    with_options(Config(), options)  # names a field that there is none of before anything else is looked at
    return make_config(str(trial["env"]), str(trial.get("preset", "auto")), options)[0]


def check_runs(plan: Plan) -> None:
    """Raise ValueError, naming the field, where the environment or the networks of a run cannot be made."""
    from drama.training.weights import shapes_of  # PyTorch, which takes seconds, comes after all that can go without

    interfaces: dict[str, Interface | None] = {}
    seen = set()
    for trial in plan.trials():
        for end in (0, 1) if plan.search else (0,):
            config = config_of(trial | {field: values[end] for field, values in plan.search.items()})
            shown = f"{config.game} {config.env}"
            if shown not in interfaces:
                try:
                    interfaces[shown] = interface_of(config.game, config.env)
                except ValueError:
                    raise
                except Exception:  # of the environment, which may work on another machine: its run tells of it
                    interfaces[shown] = None
            alike = str(dataclasses.replace(config, seed=0))
            interface = interfaces[shown]
            if interface is not None and alike not in seen:
                shapes_of(config, interface)
            seen.add(alike)


def check_same(path: Path | str, text: str, plan: Plan) -> bool:
    """Whether `plan` goes beyond the `sweep.json` of `path`: has more games, seeds, values of the grid or steps.

    Raises ValueError, naming what differs, where it is of another sweep.
    """
    try:
        before = json.loads(text)
        version = before["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, or of no sweep") from error
    if version != VERSION:
        raise ValueError(f"{path}: a sweep of version {version}, this package reads version {VERSION}")
    now = json.loads(plan.to_json())
    different = [name for name in now if name != "runs" and before.get(name) != now[name]]
    if all(_goes_beyond(name, before.get(name), now[name], plan) for name in different):
        return bool(different)
    said = "; ".join(f"{name} was {before.get(name)}, is now {now[name]}" for name in different)
    raise ValueError(
        f"{path}: the folder holds another sweep ({said}); take another folder, or the same command, in which only"
        " games, seeds, values of the grid and steps may become more"
    )


def _goes_beyond(name: str, before: Any, now: Any, plan: Plan) -> bool:
    """Whether a part of a plan holds all that it held before, so that every run of before is one still."""
    if plan.search:
        return False
    if name in ("games", "seeds"):
        return isinstance(before, list) and all(value in now for value in before)
    if name == "grid":
        same = isinstance(before, dict) and list(before) == list(now)
        return same and all(value in now[field] for field, values in before.items() for value in values)
    if name == "options" and isinstance(before, dict):
        steps = {"steps": preset(plan.preset).steps}
        earlier, later = steps | before, steps | now
        return earlier | {"steps": later["steps"]} == later and earlier["steps"] <= later["steps"]
    return False


def check_resources(plan: Plan, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise ValueError that says of which resource a run asks for more than any of the `nodes` has."""
    asked = {"CPU": plan.cpus, "GPU": plan.gpus}
    for name, wanted in asked.items():
        most = max((node.get(name, 0) for node in nodes), default=0)
        if wanted > most:
            raise ValueError(
                f"{name.lower()}s: a run asks for {wanted:g}, and the most that a node of the cluster has is {most:g}"
                f" ({len(nodes)} {'node' if len(nodes) == 1 else 'nodes'})"
            )
    if not any(all(node.get(name, 0) >= wanted for name, wanted in asked.items()) for node in nodes):
        raise ValueError(f"cpus, gpus: no node has {plan.cpus:g} processors and {plan.gpus:g} GPUs together")
