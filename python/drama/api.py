"""What `drama` offers to Python: train an agent in one call. The command line uses the same functions."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from drama.choosing import default_run, make_config
from drama.config import Config
from drama.envs import MakeEnv, give, given_name, known_game
from drama.results.agent import Agent, load
from drama.results.evaluation import evaluate_run
from drama.training.callbacks import Callback
from drama.training.progress import Progress
from drama.training.trainer import Trainer

Environment: TypeAlias = str | MakeEnv


@dataclass(frozen=True)
class Run:
    """A run that has ended: its folder, the step that it reached, and whether that was its last."""

    path: Path
    step: int
    finished: bool

    def load(self, **options: Any) -> Agent:
        """The trained agent; `options` as of `drama.load`."""
        return load(self.path, **options)

    def evaluate(self, episodes: int = 100, **options: Any) -> dict[str, Any]:
        """Play episodes and score them; `options` as of `drama.results.evaluation.evaluate_run`."""
        return evaluate_run(self.path, episodes=episodes, **options)


def train(
    env: Environment,
    *,
    steps: int | None = None,
    seed: int = 0,
    preset: str = "auto",
    run: str | Path | None = None,
    resume: bool | Literal["if there"] = False,
    callbacks: Sequence[Callback] = (),
    progress: bool = True,
    options: Mapping[str, Any] | None = None,
) -> Run:
    """Train a world model and an agent in an environment.

    Args:
        env: an Atari game, a small task, the id of an environment registered with Gymnasium, `package.module:function`,
            or a function or class that makes an environment.
        steps: of the environment; None leaves it to the preset.
        seed: of everything random.
        preset: where the other values come from; `auto` chooses by device and kind of observation.
        run: the folder to write; by default `runs/ENV-PRESET-seedN`.
        resume: go on with the run in that folder, to `steps` if they are given; `"if there"` begins it where there is
            none. A seed or preset that is given must be the run's.
        callbacks: see `drama.Callback`.
        progress: show it.
        options: other fields of the config by name, as in `{"train.batch_size": 8}`; not together with `resume`.

    Returns:
        The run, also if a callback has stopped it. Neither evaluates nor dreams: `Run.evaluate` and `drama dream` do.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once a checkpoint is saved.
        ValueError: an option or environment that cannot be used; the message names it.
        drama.training.trainer.EnvFailed: the environment failed on the way; a checkpoint was saved.
    """
    name = env if isinstance(env, str) else given_name(env)
    if isinstance(callbacks, Callback):
        raise TypeError(f"callbacks: got {callbacks!r}, expected a list of them")
    if resume not in (True, False, "if there"):
        raise ValueError(f'resume: got {resume!r}, expected True, False or "if there"')
    if resume is True and run is None:
        raise ValueError("run: to resume, name the folder of the run")
    shown = [*callbacks, Progress()] if progress else list(callbacks)
    chosen = {"seed": seed, **({} if steps is None else {"steps": steps}), **(options or {})}
    config = None
    if run is None:
        config = make_config(name, preset, chosen)[0]
        run = default_run(config)
    path = Path(run)
    if resume and (path.is_dir() or resume is True):
        if options:
            raise ValueError("options: a run that is resumed keeps its config, but for its steps")
        before = Config.load(path / "config.json")
        of = before.game
        for field, value, unsaid in (("seed", seed, 0), ("preset", preset, "auto")):
            if value not in (unsaid, getattr(before, field)):
                raise ValueError(f"{field}: {path} is a run with {getattr(before, field)!r}, not with {value!r}")
        if (known_game(name) or name).partition("~")[0] != of.partition("~")[0]:
            raise ValueError(f"env: {path} is a run in {of}, not in {name}")
        if not isinstance(env, str):
            give(of, env)
        trainer = Trainer.resume(path, steps, callbacks=shown)
    else:
        trainer = Trainer(config or make_config(name, preset, chosen)[0], path, callbacks=shown)
    finished = trainer.train()
    if trainer.signal == signal.SIGINT:
        raise KeyboardInterrupt(f"stopped at step {trainer.step}, with a checkpoint in {path}")
    if trainer.signal is not None:
        raise SystemExit(128 + trainer.signal)
    return Run(path, trainer.step, finished)
