"""The live display of a training run; plain lines where the output is not a terminal."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

SHOWN = {
    "episode_return": "mean of the last episodes' returns",
    "world_model/reconstruction": "reconstruction loss",
    "world_model/reward": "reward loss",
    "world_model/kl": "KL",
    "agent/policy": "policy loss",
    "agent/critic": "critic loss",
    "agent/entropy": "policy entropy",
    "agent/return": "imagined return",
    "replay_fill": "replay fill",
}


class ProgressDisplay:
    """A context manager that shows step, speed, time left, returns, losses and replay fill.

    Args:
        steps: where the run ends.
        start: the step that it begins at.
        console: where to write; standard output by default.
    """

    def __init__(self, steps: int, start: int = 0, console: Console | None = None) -> None:
        self._console = console or Console(file=sys.stdout)
        self._steps = steps
        self._start = start
        self._began = time.perf_counter()
        self._bar = Progress(
            TextColumn("step {task.completed:,.0f} of {task.total:,.0f}"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
        )
        self._task = self._bar.add_task("train", total=steps, completed=start)
        self._live = Live(self._bar, console=self._console, refresh_per_second=4) if self._console.is_terminal else None

    def __enter__(self) -> ProgressDisplay:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def update(self, step: int, values: dict[str, float]) -> None:
        """Show the values logged at `step`."""
        speed = values["steps_per_second"]
        left = timedelta(seconds=round((self._steps - step) / speed)) if speed > 0 else "-"
        if self._live is None:
            facts = [f"step {step}/{self._steps}", f"{speed:.1f} steps/s", f"{left} left"]
            facts += [f"{label} {values[name]:.4g}" for name, label in SHOWN.items() if name in values]
            self._console.print(" | ".join(facts), soft_wrap=True, highlight=False)
            return
        self._bar.update(self._task, completed=step)
        table = Table.grid(padding=(0, 2))
        table.add_row("speed", f"{speed:.1f} steps/s")
        table.add_row("time", f"{timedelta(seconds=round(time.perf_counter() - self._began))} so far, {left} left")
        for name, label in SHOWN.items():
            if name in values:
                table.add_row(label, f"{values[name]:.4g}")
        self._live.update(Group(self._bar, table))
