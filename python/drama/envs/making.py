"""Making environments by name or from functions, vectors of them, and telling gymnasium of those of this package."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

import gymnasium
from gymnasium.vector import AutoresetMode

from drama.config import EnvConfig, did_you_mean
from drama.envs.adapt import Adapted, read_interface
from drama.envs.arguments import VECTOR_OPTIONS, count
from drama.envs.atari import MISSING, AtariEnv, atari_games
from drama.envs.frames import FrameEnv
from drama.envs.group import EnvError
from drama.envs.small import Catch, Doorway, GridTask, Recall
from drama.envs.vector import VectorEnv
from drama.interface import Interface

if TYPE_CHECKING:
    from typing_extensions import Unpack

make_vector = VectorEnv  # the name that goes with `make_atari`
SMALL: dict[str, type[GridTask]] = {"Catch": Catch, "Doorway": Doorway, "Recall": Recall}
EMULATOR = (
    "frame_skip",
    "pool",
    "frame_stack",
    "noop_max",
    "fire_reset",
    "repeat_action_probability",
    "full_action_space",
    "max_frames",
)
"""Options of Atari games alone."""
MakeEnv: TypeAlias = Callable[..., gymnasium.Env[Any, Any]]
_given: dict[str, MakeEnv] = {}


def game_names() -> list[str]:
    """The Atari games and small tasks."""
    return [*atari_games(), *SMALL]


def given_name(make: MakeEnv) -> str:
    """A name for a function or class that makes an environment, which `make_env` takes in this process.

    Another process finds it by that name only where it can be imported.
    """
    if not callable(make):
        raise TypeError(f"env: got {type(make).__name__}, expected a name, or a function or class that makes one")
    function = make.func if isinstance(make, functools.partial) else make
    name = f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', type(function).__name__)}"
    if "<" in name or make is not function:  # several may have this name: a lambda, a local function, a partial
        number = 2
        while name in _given and _given[name] is not make:
            name = f"{name.partition('~')[0]}~{number}"
            number += 1
    _given[name] = make
    return name


def give(name: str, make: MakeEnv) -> None:
    """Let `make` be what `name` stands for in this process, such as the environment of a run that goes on."""
    _given[name] = make


def make_env(game: str, config: EnvConfig | None = None, *, pictures: bool = False) -> gymnasium.Env[Any, Any]:
    """Make the environment `game`, as this package trains on it.

    Args:
        game: an Atari game in any case (`pong`, `ALE/Pong-v5`), a small task, the id of an environment that is
            registered with Gymnasium, or `package.module:function`, which returns an environment.
        config: its options.
        pictures: make it so that `render` gives an array, where it can.

    Raises:
        ValueError: there is no such environment; the message names the nearest ones. Or it cannot be learned from.
    """
    return env_maker(game, config, pictures=pictures)()


def env_maker(game: str, config: EnvConfig | None = None, *, pictures: bool = False) -> MakeEnv:
    """A function that makes the environment, in a worker process too, where less may be registered than here."""
    config = _configured(config, {})
    for module in config.imports:
        _import(module, "env.imports")
    if (known := known_game(game)) is not None:
        return _game_maker(known, config, "rgb_array" if pictures else None)
    for option in EMULATOR:
        if (value := getattr(config, option)) != getattr(EnvConfig(), option):
            raise ValueError(f"env.{option}: {value} is an option of Atari games; {game} has none")
    return functools.partial(_adapt, _make_inner(game, config, pictures or config.render), config, game)


def _game_maker(known: str, config: EnvConfig, render_mode: str | None) -> MakeEnv:
    """A function that makes an Atari game or small task, of which `known` is the name."""
    for option in ("kwargs", "without", "render", "action_repeat", "max_steps"):
        if (value := getattr(config, option)) != getattr(EnvConfig(), option):
            raise ValueError(f"env.{option}: {value} is an option of Gymnasium environments; {known} has none")
    make = SMALL[known] if known in SMALL else functools.partial(AtariEnv, known)
    return functools.partial(make, config, render_mode)


def runs_code(game: str, config: EnvConfig) -> bool:
    """Whether making the environment imports what its name or config says, which may be anything."""
    return bool(config.imports) or (known_game(game) is None and ":" in game and game not in _given)


def interface_of(game: str, config: EnvConfig) -> Interface:
    """What the environment `game` shows and takes."""
    env = make_env(game, config)
    try:
        return read_interface(env)
    finally:
        env.close()


def known_game(game: str) -> str | None:
    """The name of the Atari game or small task that is meant, or None."""
    if not isinstance(game, str):
        raise TypeError(f"game: got {type(game).__name__}, expected the name of an environment")
    plain = game.removeprefix("ALE/").removesuffix("-v5").lower() if game.startswith("ALE/") else game.lower()
    return {name.lower(): name for name in game_names()}.get(plain)


def _make_inner(game: str, config: EnvConfig, pictures: bool) -> MakeEnv:
    """What makes the environment itself. It holds all that a worker process needs to make it."""
    kwargs = dict(config.kwargs)
    if (function := _given.get(game)) is not None:
        return functools.partial(function, **kwargs)
    module, separator, attribute = game.partition(":")
    if separator and not game.partition("/")[2]:
        found: Any = _import(module, "game")
        for name in attribute.split("."):
            names = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
            found = getattr(found, name, None)
            if found is None and module == "__main__":
                raise ValueError(
                    f"game: {attribute} was defined in a script, and only that script knows it: put it into a module,"
                    " and name it module:function, or use the run from the script itself (drama.load, Run.evaluate)"
                )
            if found is None:
                if attribute in gymnasium.registry:
                    return functools.partial(_registered, gymnasium.spec(attribute), pictures, kwargs)
                raise ValueError(f"game: {module} has no {attribute!r}{did_you_mean(attribute, names)}")
        if not callable(found):
            raise ValueError(f"game: {game} is {type(found).__name__}, expected a function that makes an environment")
        if pictures and _takes(found, "render_mode"):
            kwargs.setdefault("render_mode", "rgb_array")
        return functools.partial(found, **kwargs)
    if game not in gymnasium.registry:
        names = [*game_names(), *(name for name in gymnasium.registry if not name.startswith("drama/"))]
        raise ValueError(
            f"game: {game!r} is unknown{did_you_mean(game, names)}; it may be one of `drama games`, the id of an"
            " environment that is registered with Gymnasium (--env.imports MODULE, `env.imports`, imports what"
            f" registers it), or package.module:function{MISSING}"
        )
    return functools.partial(_registered, gymnasium.spec(game), pictures, kwargs)


def _registered(spec: Any, pictures: bool, kwargs: dict[str, Any]) -> gymnasium.Env[Any, Any]:
    """Make what is registered; with a picture where it can give one."""
    if pictures:
        kwargs = {"render_mode": "rgb_array"} | kwargs
    return gymnasium.make(spec, **kwargs)


def _adapt(make: MakeEnv, config: EnvConfig, game: str) -> gymnasium.Env[Any, Any]:
    for module in config.imports:
        _import(module, "env.imports")
    try:
        env = make()
    except gymnasium.error.Error as error:  # says well what is wrong, as does a TypeError of its arguments
        raise ValueError(f"game: {game} cannot be made: {error}") from error
    except TypeError as error:
        field, given = ("env.kwargs", config.kwargs) if config.kwargs else ("game", "no arguments")
        raise ValueError(f"{field}: {game} cannot be made with {given}: {error}") from error
    if not isinstance(env, gymnasium.Env):
        raise ValueError(f"game: {game} returns {type(env).__name__}, expected a gymnasium.Env")
    if isinstance(env, FrameEnv | Adapted):
        return env
    return Adapted(env, config, game)


def _import(module: str, field: str) -> Any:
    if not module.strip("."):
        raise ValueError(f"{field}: got no name of a module before the colon")
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ValueError(f"{field}: there is no module {error.name!r} on the path of Python") from error
        raise


def _takes(function: Any, argument: str) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return False
    return any(p.name == argument or p.kind is p.VAR_KEYWORD for p in parameters)


class AtariOptions(TypedDict, total=False):
    """Fields of `EnvConfig` that `make_atari` takes; `docs/envs.md` says what they do."""

    protocol: Literal["standard", "paper"]
    size: int | tuple[int, int]
    grayscale: bool
    frame_skip: int
    pool: bool
    frame_stack: int
    noop_max: int | None
    fire_reset: bool
    repeat_action_probability: float
    full_action_space: bool
    life_loss_terminal: bool
    clip_rewards: bool
    max_frames: int


def make_atari(
    game: str,
    num_envs: int,
    *,
    config: EnvConfig | None = None,
    render_mode: str | None = None,
    num_workers: int | Literal["auto"] | None = "auto",
    autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    batch_size: int | None = None,
    copy: bool = True,
    on_worker_death: Literal["raise", "restart"] = "raise",
    timeout: float | None = None,
    **options: Unpack[AtariOptions],
) -> VectorEnv:
    """Make a vector of `num_envs` environments of the Atari game or small task `game`.

    `options` replace fields of `config`, as in `make_atari("Pong", 8, grayscale=True)`; `render_mode` is None or
    "rgb_array", for wrappers that ask for it; the other arguments are those of `make_vector`. Observations are uint8
    frames `[num_envs, H, W, C]`; the infos hold `lives` and `life_lost`.

    Raises:
        ValueError: for an unknown game or option; the message names the nearest ones.
    """
    return _vector(
        _game_maker(_checked_game(game), _configured(config, dict(options)), render_mode),
        count("num_envs", num_envs, 1),
        num_workers=num_workers,
        autoreset_mode=autoreset_mode,
        batch_size=batch_size,
        copy=copy,
        on_worker_death=on_worker_death,
        timeout=timeout,
    )


def make_frames(game: str, num_envs: int, config: EnvConfig) -> VectorEnv:
    """What training and evaluation step: an episode's end and the next one's start come in one step."""
    return _vector(env_maker(game, config), num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def _vector(env_fn: MakeEnv, num_envs: int, **options: Any) -> VectorEnv:
    try:
        return VectorEnv([env_fn] * num_envs, **options)
    except EnvError as error:
        if isinstance(error.__cause__, ValueError):  # a mistake in the arguments, not an environment that broke
            raise error.__cause__ from None
        raise


def _checked_game(game: str) -> str:
    if (known := known_game(game)) is None:
        names = game_names()
        hint = f"; `drama games` lists all {len(names)}{MISSING}"
        raise ValueError(f"game: {game!r} is unknown{did_you_mean(game, names)}{hint}")
    return known


def _make_one(
    game: str, config: EnvConfig | None = None, render_mode: str | None = None, **options: Any
) -> gymnasium.Env[Any, Any]:
    """What `gymnasium.make("drama/<game>-v0", ...)` calls."""
    return _game_maker(_checked_game(game), _configured(config, options), render_mode)()


# Where gymnasium looks what to wrap for people.
_make_one.metadata = FrameEnv.metadata  # type: ignore[attr-defined]


def _configured(config: EnvConfig | None, options: dict[str, Any]) -> EnvConfig:
    fields, ours = [field.name for field in dataclasses.fields(EnvConfig)], list(AtariOptions.__annotations__)
    for name in options:
        if name not in fields:
            hint = did_you_mean(name, [*ours, *VECTOR_OPTIONS])
            raise ValueError(f"option: {name!r} is unknown{hint}; there are {', '.join(ours)}")
    if config is not None and not isinstance(config, EnvConfig):
        raise TypeError(f"config: got {type(config).__name__}, expected an EnvConfig")
    config = dataclasses.replace(config or EnvConfig(), **options)
    config.validate()
    return config


def register() -> None:
    """Tell gymnasium of every game as `drama/<game>-v0`, for `gymnasium.make` and `gymnasium.make_vec`."""
    for game in game_names():
        if (name := f"drama/{game}-v0") not in gymnasium.registry:
            gymnasium.register(
                name,
                entry_point=f"{__name__}:_make_one",
                vector_entry_point=f"{__name__}:make_atari",
                kwargs={"game": game},
            )
