"""The live display of a training run; plain lines where the output is not a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
from rich import progress
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from drama.training.callbacks import Callback

if TYPE_CHECKING:
    from drama.training.trainer import Trainer

SHOWN = {
    "episode_return": "mean of the last episodes' returns",
    "world_model/reconstruction": "reconstruction loss",
    "world_model/vector": "loss of the numbers",
    "world_model/reward": "reward loss",
    "world_model/kl": "KL",
    "agent/policy": "policy loss",
    "agent/critic": "critic loss",
    "agent/entropy": "policy entropy",
    "agent/return": "imagined return",
    "replay_fill": "replay fill",
}
SILENCE = 60.0
"""Seconds after which a line is printed although nothing was logged."""
LONG = 2 * 24 * 3600.0
"""Seconds left from which on a run is said to be long."""


class Progress(Callback):
    """Shows step, speed, time left, returns, losses and replay fill.

    The time left is that of steps with updates of all networks that are trained from then on; before the first of them
    it is not known. A stream that is closed ends the display, not the run.

    Args:
        console: where to write; standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stdout)
        self._live: Live | None = None
        self._values: dict[str, float] = {}
        self._speed: float | None = None
        self._warned = False

    def on_start(self, trainer: Trainer) -> None:
        self._config = trainer.config
        self._began = self._said = time.perf_counter()
        self._step = self._at = trainer.step
        train = trainer.config.train
        trained = max(trainer.step, train.start_step, train.agent_start)
        self._counted_from = trained + train.train_every * train.num_envs  # the first updates may be compiled: minutes
        self._since = self._began
        for note in trainer.notes:
            self._print(f"note: {note}")
        self._bar = progress.Progress(
            progress.TextColumn("step {task.completed:,.0f} of {task.total:,.0f}"),
            progress.BarColumn(bar_width=None),
            progress.TaskProgressColumn(),
        )
        self._task = self._bar.add_task("train", total=self._config.steps, completed=trainer.step)
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=2)
            self._live.start()

    def on_step(self, trainer: Trainer) -> None:
        self._step = trainer.step
        now = time.perf_counter()
        if trainer.step <= self._counted_from:
            self._at, self._since = trainer.step, now
        elif self._speed is None and now - self._since > 5:
            self._speed = (trainer.step - self._at) / (now - self._since)
            self._warn()
        if self._live is None and now - self._said > SILENCE:
            self._say()

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        recent = {"episode_return": float(np.mean(trainer.recent))} if trainer.recent else {}
        self._values = {**values, **recent}
        now = time.perf_counter()
        if trainer.step > max(self._at, self._counted_from) and now > self._since:
            self._speed = (trainer.step - self._at) / (now - self._since)
            self._at, self._since = trainer.step, now
            self._warn()
        if self._live is None:
            self._say()

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        del trainer, error
        if self._live:
            self._live.stop()

    def _left(self) -> str:
        if self._speed is None:
            return "time left known after the first updates"
        seconds = (self._config.steps - self._at) / self._speed - (time.perf_counter() - self._since)
        return f"{timedelta(seconds=max(0, round(seconds)))} left"

    def _warn(self) -> None:
        """Say once that the run takes days."""
        if self._warned or self._speed is None or (left := (self._config.steps - self._step) / self._speed) < LONG:
            return
        self._warned = True
        hint = "" if self._config.preset == "cpu" else "; the preset cpu is for machines without a GPU"
        self._print(f"note: at {self._speed:.2g} steps a second this run takes {left / 86_400:.1f} days more{hint}")

    def _say(self) -> None:
        speed = self._values.get("steps_per_second", self._speed)
        facts = [f"step {self._step}/{self._config.steps}"]
        facts += [] if speed is None else [f"{speed:.1f} steps/s"]
        facts += [self._left()]
        facts += [f"{label} {self._values[name]:.4g}" for name, label in SHOWN.items() if name in self._values]
        self._said = time.perf_counter()
        self._print(" | ".join(facts))

    def _print(self, text: str) -> None:
        try:
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)
        except (OSError, ValueError, SystemExit):  # the reader is gone, for which rich exits; the stream is closed
            self._console = Console(quiet=True)

    def _table(self) -> Group:
        self._bar.update(self._task, completed=self._step)
        table = Table.grid(padding=(0, 2))
        speed = self._values.get("steps_per_second", self._speed)
        table.add_row("speed", "-" if speed is None else f"{speed:.1f} steps/s")
        so_far = timedelta(seconds=round(time.perf_counter() - self._began))
        table.add_row("time", f"{so_far} so far, {self._left()}")
        for name, label in SHOWN.items():
            if name in self._values:
                table.add_row(label, f"{self._values[name]:.4g}")
        return Group(self._bar, table)
