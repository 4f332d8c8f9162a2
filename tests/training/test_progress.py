"""What a run shows of itself."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from drama.config import preset
from drama.training.progress import Progress


def test_the_time_left_does_not_count_the_first_updates_which_may_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step a second, but for a hundred seconds at the first update."""
    config = preset("debug")
    begin = max(config.train.start_step, config.train.agent_start)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("drama.training.progress.time.perf_counter", lambda: clock.now)
    said = io.StringIO()
    shown = Progress(Console(file=said, width=200))
    trainer: Any = cast("Any", SimpleNamespace(step=0, config=config, notes=[], recent=[]))
    shown.on_start(trainer)
    for step in range(1, begin + 20):
        clock.now += 101 if step == begin + 1 else 1
        trainer.step = step
        shown.on_step(trainer)
    shown.on_log(trainer, {})
    left = config.steps - trainer.step
    assert f"| 0:{left // 60:02}:{left % 60:02} left" in said.getvalue().splitlines()[-1]
