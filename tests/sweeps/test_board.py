"""The table of a sweep."""

from __future__ import annotations

import io

from rich.console import Console

from drama.sweeps.board import Board, Row, axes_of


def board(terminal: bool = False) -> tuple[Board, io.StringIO]:
    text = io.StringIO()
    rows = {f"{game}-{seed}": Row(game, seed) for game in ("Pong", "Boxing") for seed in (0, 1)}
    return Board(rows, console=Console(file=text, width=120, force_terminal=terminal)), text


def test_games_are_lines_and_seeds_are_columns() -> None:
    shown, text = board()
    shown.rows["Pong-0"].status = "running"
    shown.told("Pong-0", {"step": 12_500, "steps": 100_000, "return": -14.25, "steps_per_second": 25.0})
    shown.rows["Pong-1"].status = "finished"
    shown.told("Pong-1", {"step": 100_000, "steps": 100_000, "return": -3.0, "score": 4.5})
    shown.rows["Boxing-1"].status = "failed"
    with shown:
        pass
    lines = [[cell.strip() for cell in line.split("│")] for line in text.getvalue().splitlines() if "│" in line]
    assert lines[0][1:4] == ["Pong", "12,500 | -14.25 | 0:58:20 left", "100,000 | 4.5 | finished"]
    assert lines[1][1:4] == ["Boxing", "waiting", "0 | - | failed"]
    assert "1 finished, 1 running, 1 waiting, 1 failed" in text.getvalue()


def test_the_time_left_of_all_is_told_once_the_steps_of_all_are_known() -> None:
    shown, _ = board()
    for name, row in shown.rows.items():
        row.status = "running" if name.startswith("Pong") else "waiting"
    shown.told("Pong-0", {"step": 500, "steps": 1000, "return": 0.0, "steps_per_second": 10.0})
    shown.told("Pong-1", {"step": 0, "steps": 1000, "return": float("nan"), "steps_per_second": 10.0})
    assert shown.rows["Pong-1"].returned is None
    assert "left" not in shown.summary()
    for name in ("Boxing-0", "Boxing-1"):
        shown.rows[name].steps = 1000
    assert "about 0:02:55 left" in shown.summary()


def test_deaths_are_told() -> None:
    shown, _ = board()
    shown.rows["Pong-0"].deaths = 2
    assert "2 deaths of processes or nodes" in shown.summary()


def test_names_are_no_markup() -> None:
    text = io.StringIO()
    with Board({"x": Row("[bold]mine:Env[/bold]", 0)}, console=Console(file=text, width=120)):
        pass
    assert "[bold]mine:Env[/bold]" in text.getvalue()


def test_lines_where_the_output_is_no_terminal_and_none_where_nothing_is_to_be_shown() -> None:
    shown, text = board()
    shown.rows["Pong-0"].status = "running"
    shown.tick()
    shown.tick()
    assert text.getvalue().count("3 waiting; Pong-0") == 1
    silent = io.StringIO()
    with Board({}, console=Console(file=silent), shown=False) as none:
        none.tick()
    assert not silent.getvalue()


def test_axes_are_short() -> None:
    assert axes_of({"train.agent_lr": 0.00031622776601683794, "x": 3}, ["train.agent_lr", "x"]) == (
        "train.agent_lr=0.0003162, x=3"
    )
