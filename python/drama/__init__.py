"""World-model reinforcement learning with Mamba-2 and a Rust replay buffer.

    run = drama.train("CartPole-v1", steps=15_000)
    agent = drama.load(run.path)
    action = agent.act(observation, first)

Importing the package imports nothing heavy: `drama.replay` needs NumPy only, `drama.envs` needs the `atari` extra, and
the names here the `train` extra (`sweep` the extra of that name), once they are used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from drama.hints import needed_by

if TYPE_CHECKING:
    from drama.api import Run, train
    from drama.config import Config, preset
    from drama.results.agent import Agent, load
    from drama.sweeps.driver import Sweep, sweep
    from drama.training.callbacks import Callback, MLflow, WandB

__version__ = version("drama-rl")

_HOMES = {
    "Agent": "results.agent",
    "Callback": "training.callbacks",
    "Config": "config",
    "MLflow": "training.callbacks",
    "Run": "api",
    "Sweep": "sweeps.driver",
    "WandB": "training.callbacks",
    "load": "results.agent",
    "preset": "config",
    "sweep": "sweeps.driver",
    "train": "api",
}

__all__ = [
    "Agent",
    "Callback",
    "Config",
    "MLflow",
    "Run",
    "Sweep",
    "WandB",
    "__version__",
    "load",
    "preset",
    "sweep",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with needed_by(f"drama.{name}", "train"):
        home = import_module(f"{__name__}.{_HOMES[name]}")
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
