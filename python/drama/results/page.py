"""The page of `drama report`: pictures, tables and text in one HTML file that works offline."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np

from drama import __version__
from drama.files import write_atomically
from drama.results.charts import WINDOW, by_setting, learning_curve, legend_of, losses
from drama.results.dream import dream_run
from drama.results.report import Aggregate, Report, Row, Run, to_csv, to_json
from drama.results.scores import human_normalised, published_scores
from drama.training.metrics import encode_picture
from drama.training.pictures import dream_strip

MARKS = {"verified": "", "second-hand": "²", "unverified": "?"}
SCALE = ("Random", "Human")  # what scores are normalised by: no methods, so without a rank


def write_report(report: Report, out: Path) -> Path:
    """Write `index.html`, `scores.csv`, `report.json` and the dreams into the folder `out`; gives the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    dreams: dict[str, tuple[Run, bytes]] = {}
    for run in _first_of_each(report.runs):
        try:
            strip = dream_strip(dream_run(run.folder, steps=32, context=8, skip=30, seed=0))
        except ValueError as error:
            report.notes.append(f"No dream of {run.folder}: {error}.")
        else:
            dreams[f"dream-{run.config.game}-{len(dreams)}"] = (run, encode_picture(strip))
    for name, (_, picture) in dreams.items():
        (out / f"{name}.png").write_bytes(picture)
    write_atomically(out / "scores.csv", to_csv(report))
    write_atomically(out / "report.json", json.dumps(to_json(report), indent=2) + "\n")
    page = out / "index.html"
    write_atomically(page, _page(report, list(dreams.values())))
    return page


def _first_of_each(runs: list[Run]) -> Iterable[Run]:
    """The lowest seed of each setting and game."""
    found: dict[tuple[str, str], Run] = {}
    for run in runs:
        found.setdefault((run.config.game, run.setting), run)
    return found.values()


def _page(report: Report, dreams: Sequence[tuple[Run, bytes]]) -> str:
    games = {game: [r for r in report.runs if r.config.game == game] for game in (r.config.game for r in report.runs)}
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>Report of {len(report.runs)} runs</title><style>{_style()}</style>",
        f"<h1>How well do these agents play?</h1><p class=note>{_count(report.runs, 'run')} on"
        f" {escape(', '.join(games))}; made by drama {__version__}. One environment step is several emulator frames"
        " (see frame_skip in the configs). The numbers are also in scores.csv and report.json beside this page.</p>",
    ]
    if report.notes:
        parts.append("<ul class=notes>" + "".join(f"<li>{escape(note)}</li>" for note in report.notes) + "</ul>")
    parts.append(
        f"<h2>Learning curves</h2><p class=note>Returns of the episodes played while training, mean of the last"
        f" {WINDOW}. Thick line: mean over seeds; band: lowest to highest seed, as far as all seeds have come; thin"
        " lines: each seed.</p>"
    )
    parts.append(_cards("420px", ((game, learning_curve(game, runs)) for game, runs in games.items())))
    for kind, rows in report.rows.items():
        parts += _scores(kind, rows)
        parts += [_aggregate(item) for item in report.aggregates[kind]]
    parts.append(
        "<h2>Losses</h2><p class=note>Means over the updates between two log lines; one line for each run. Those of the"
        " world model have logarithmic axes.</p>"
    )
    for game, runs in games.items():
        legend = legend_of(runs) if len(by_setting(runs)) > 1 else ""
        drawn = _cards("300px", losses(game, runs))
        parts.append(f"<details open><summary>{escape(game)}</summary>{legend}{drawn}</details>")
    if dreams:
        parts.append(
            "<h2>Dreams</h2><p class=note>From the latest checkpoint. Left to right: time. Top: the real game. Middle:"
            " each real frame through the world model. Bottom: the world model on its own, given only the actions, from"
            " where the bar turns from green to red.</p>"
        )
    for run, picture in dreams:
        title = escape(f"{run.config.game}, {run.setting}, seed {run.config.seed}")
        data = base64.b64encode(picture).decode()
        image = f"<img class=pixels alt='Dream of {title}' src='data:image/png;base64,{data}'>"
        parts.append(f"<h3>{title}</h3>{_scrolling(image, 'dream')}")
    parts.append("<h2>Runs and configs</h2>" + _runs(report.runs))
    return "\n".join(parts) + "\n"


def _style() -> str:
    return files("drama.results").joinpath("page.css").read_text(encoding="utf-8")


def _count(items: Sequence[object], name: str) -> str:
    return f"{len(items)} {name}{'' if len(items) == 1 else 's'}"


def _cards(width: str, cards: Iterable[tuple[str, str]]) -> str:
    """Titles and contents side by side, as many as there is room for at `width` each."""
    inside = "".join(f"<section><h3>{escape(title)}</h3>{content}</section>" for title, content in cards)
    return f"<div class=cards style='--card:{width}'>{inside}</div>"


def _scrolling(content: str, what: str) -> str:
    """What may be wider than the page; it can be reached and scrolled by keyboard too."""
    return f"<div class=scroll tabindex=0 role=region aria-label='{escape(what)}'>{content}</div>"


def _table(head: Sequence[tuple[str, str]], body: Iterable[tuple[str, Sequence[str]]], kind: str) -> str:
    """A table whose `head` gives each column's title and class, `body` each row's class and cells, all in HTML."""
    classes = [f" class={name}" if name else "" for _, name in head]
    first = "".join(f"<th{c}>{title}</th>" for (title, _), c in zip(head, classes, strict=True))
    rows = (
        f"<tr class='{name}'>{''.join(f'<td{c}>{cell}</td>' for cell, c in zip(cells, classes, strict=True))}</tr>"
        for name, cells in body
    )
    return f"<table class={kind}><tr>{first}</tr>{''.join(rows)}</table>"


def _scores(kind: str, rows: Sequence[Row]) -> list[str]:
    rows = sorted(rows, key=lambda row: row.game)
    head = [("game", "text"), ("score", ""), ("human-<br>normalised", ""), ("step", ""), ("setting", "text")]
    body = []
    for row in rows:
        spread = f" ± {np.std(row.scores, ddof=1):,.1f}" if len(row.scores) > 1 else ""
        episodes = "/".join(map(str, sorted({len(e.returns) for e in row.evaluations})))
        planned = "/".join(f"{steps:,}" for steps in sorted({run.config.steps for run in row.runs}))
        unfinished = f"<br><small>unfinished: of {planned}</small>" if row.unfinished else ""
        played = f"{_count(row.runs, 'seed')} × {episodes} episodes"
        body.append(
            (
                "",
                (
                    escape(row.game),
                    f"<b>{np.mean(row.scores):,.1f}</b>{spread}<br><small>{played}</small>",
                    _percent(None if row.normalised is None else float(np.mean(row.normalised))),
                    f"{row.step:,}{unfinished}",
                    escape(row.setting),
                ),
            )
        )
    ranked = {row.game: [other for other in rows if other.game == row.game] for row in rows}
    cards = [(game, _ranking(members)) for game, members in ranked.items() if game in published_scores()]
    parts = [
        f"<h2>Scores: protocol {escape(kind)}</h2><p class=note>Mean return of whole evaluation episodes; ± is the"
        " standard deviation over seeds. Human-normalised: (score − Random) ÷ (Human − Random).</p>",
        _scrolling(_table(head, body, "wide"), f"scores, {kind}"),
    ]
    if cards:
        parts.append(
            "<p class=note>Among published scores, each under its own protocol and mostly at 100,000 steps: a score at"
            " another step is no like-for-like comparison. ² taken from a later paper’s table; ? not confirmed; no"
            " mark: read from a published result file.</p>"
        )
        parts.append(_cards("300px", cards))
    return parts


def _ranking(rows: Sequence[Row]) -> str:
    """The published scores on a game and, at their ranks, those of the runs."""
    game = rows[0].game
    lines = [
        ("scale" if method in SCALE else "", escape(method), entry.score, MARKS[entry.confidence])
        for method, entry in published_scores()[game].items()
    ]
    lines += [("ours", _ours(row.setting, len(rows)), float(np.mean(row.scores)), "") for row in rows]
    lines.sort(key=lambda line: -line[2])
    body = [
        (kind, (rank, name, f"{score:,.1f}{mark}", _percent(human_normalised(game, score))))
        for rank, (kind, name, score, mark) in zip(_ranks([line[0] for line in lines]), lines, strict=True)
    ]
    return _table([("", ""), ("method", "text"), ("score", ""), ("normalised", "")], body, "ranks")


def _ranks(kinds: Sequence[str]) -> list[str]:
    """1., 2., and so on for all but the ends of the scale, which are no methods."""
    rank = 0
    found = []
    for kind in kinds:
        rank += kind != "scale"
        found.append("" if kind == "scale" else f"{rank}.")
    return found


def _ours(setting: str, of: int) -> str:
    return "this" if of == 1 else f"this <small>{escape(setting)}</small>"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _aggregate(item: Aggregate) -> str:
    def cell(name: str) -> str:
        if item.intervals is None:
            return f"{item.values[name]:.1%}"
        low, high = item.intervals[name]
        return f"{item.values[name]:.1%}<br><small>{low:.1%} to {high:.1%}</small>"

    lines = [("", [escape(m), f"{v['mean']:.1%}", f"{v['median']:.1%}", "–"]) for m, v in item.others.items()]
    better = sum(values["mean"] > item.values["mean"] for values in item.others.values())
    lines.insert(better, ("ours", ["this", cell("mean"), cell("median"), cell("iqm")]))
    body = [(kind, (f"{rank}.", *cells)) for rank, (kind, cells) in enumerate(lines, 1)]
    games = _count(item.games, "game")
    how = (
        "one seed for each game, so there is nothing to make an interval from"
        if item.intervals is None
        else "small: 95 % stratified bootstrap interval over seeds (rliable)"
    )
    head = [("", ""), ("method", "text"), ("mean", ""), ("median", ""), ("IQM", "")]
    return (
        f"<h3>Over {games}: {escape(item.setting)}, step {item.step:,}</h3><p class=note>Human-normalised, over"
        f" {escape(', '.join(item.games))}{'' if len(item.games) == 26 else ' (not all 26 of Atari100k)'}; {how}. IQM,"
        " the mean of the middle half of all runs, needs single runs, which are not published for every method.</p>"
        + _scrolling(_table(head, body, "wide"), f"human-normalised scores over {games}")
    )


def _runs(runs: list[Run]) -> str:
    head = [(name, "text") for name in ("run", "game", "setting", "seed", "step", "evaluations")]
    body = []
    for run in runs:
        state = f"{run.step:,} of {run.config.steps:,}{' (unfinished)' * (run.step < run.config.steps)}"
        evaluations = "<br>".join(f"{e.kind}: step {e.step:,}, {len(e.returns)} episodes" for e in run.evaluations)
        cells = [run.folder, run.config.game, run.setting, run.config.seed, state]
        body.append(("", (*(escape(str(cell)) for cell in cells), evaluations or "none")))
    details = (
        f"<details><summary>Config of {escape(str(run.folder))}</summary>"
        + _scrolling(f"<pre>{escape(json.dumps(dataclasses.asdict(run.config), indent=2))}</pre>", "config")
        + "</details>"
        for run in runs
    )
    return _scrolling(_table(head, body, "wide"), "runs") + "".join(details)
