"""The table of a sweep: games by seeds, with step, last return and time left of each run."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

Status = Literal["waiting", "running", "finished", "failed"]
EVERY = 60.0
"""Seconds between two lines where the output is not a terminal."""


@dataclass
class Row:
    """What is known of one run."""

    game: str
    seed: int
    axes: str = ""
    """The values that distinguish it from other runs of its game and seed."""
    steps: int = 0
    step: int = 0
    returned: float | None = None
    """Mean of its last episodes' returns, or of its evaluation."""
    speed: float | None = None
    """Steps a second."""
    status: Status = "waiting"
    furthest: int = 0
    """The highest step it has told of."""
    deaths: int = 0
    """How often its process or node died."""
    error: str = ""

    @property
    def seconds_left(self) -> float | None:
        """Of this run alone, as far as it is known."""
        return (self.steps - self.step) / self.speed if self.speed else None

    def cell(self) -> str:
        """The run in the table."""
        if self.status == "waiting" and not self.step:
            return "waiting"
        returned = "-" if self.returned is None else f"{self.returned:.4g}"
        if self.status == "running":
            left = self.seconds_left
            end = "…" if left is None else f"{timedelta(seconds=round(left))} left"
        else:
            end = self.status
        return f"{self.step:,} | {returned} | {end}"


class Board:
    """The rows of a sweep's runs by name, shown in a terminal, or as lines where the output is none.

    Args:
        rows: by the name of the run, those that are known beforehand.
        console: where to write; standard output by default.
        shown: whether to write at all.
    """

    def __init__(self, rows: Mapping[str, Row], *, console: Console | None = None, shown: bool = True) -> None:
        self.rows = dict(rows)
        self._console = console or Console(file=sys.stdout)
        self._shown = shown
        self._live: Live | None = None
        self._said = float("-inf")

    def __enter__(self) -> Board:
        if self._shown and self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self.render, refresh_per_second=1)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()
        elif self._shown:
            self._console.print(self.render())

    def told(self, name: str, result: Mapping[str, Any]) -> None:
        """Take in what a run has reported."""
        row = self.rows[name]
        row.step, row.steps = int(result["step"]), int(result["steps"])
        row.speed = result.get("steps_per_second") or row.speed
        returned = result.get("score", result.get("return"))
        row.returned = None if returned is None or returned != returned else float(returned)
        row.error = str(result.get("fault", ""))

    def tick(self) -> None:
        """Show what is to be shown by now."""
        if self._shown and self._live is None and time.monotonic() - self._said > EVERY:
            self._said = time.monotonic()
            running = [
                f"{name} {row.cell().replace(' | ', ', ')}"
                for name, row in self.rows.items()
                if row.status == "running"
            ]
            self._console.print("; ".join([self.summary(), *running]), soft_wrap=True, highlight=False, markup=False)

    def summary(self) -> str:
        """How many runs are where, and about how long all of them take from now."""
        count = Counter(row.status for row in self.rows.values())
        order: tuple[Status, ...] = ("finished", "running", "waiting", "failed")
        said = ", ".join(f"{count[status]} {status}" for status in order if count[status])
        deaths = sum(row.deaths for row in self.rows.values())
        said += f"; {deaths} deaths of processes or nodes" if deaths else ""
        speed = sum(row.speed or 0 for row in self.rows.values() if row.status == "running")
        ahead = [row for row in self.rows.values() if row.status in ("running", "waiting")]
        if speed and all(row.steps for row in ahead):
            left = sum(row.steps - row.step for row in ahead) / speed
            said += f"; about {timedelta(seconds=round(left))} left"
        return said

    def render(self) -> Group:
        """The table, and the summary below it."""
        rows = list(self.rows.values())
        seeds = sorted({row.seed for row in rows})
        lines: dict[tuple[str, str], dict[int, Row]] = {}
        for row in rows:
            lines.setdefault((row.game, row.axes), {})[row.seed] = row
        table = Table("game", *(f"seed {seed}" for seed in seeds))
        for (game, axes), by_seed in lines.items():
            cells = [Text(by_seed[seed].cell() if seed in by_seed else "") for seed in seeds]
            table.add_row(Text(f"{game} {axes}".strip()), *cells)
        return Group(table, Text(f"step | last returns | time left. {self.summary()}"))


def axes_of(trial: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The values of a run's axes, as the table shows them."""
    return ", ".join(
        f"{field}={trial[field]:.4g}" if isinstance(trial[field], float) else f"{field}={trial[field]}"
        for field in fields
        if field in trial
    )
