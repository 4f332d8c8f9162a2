"""The page of `drama report`: pictures, tables and text in one HTML file that works offline."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from drama import __version__
from drama.files import write_atomically
from drama.results.dream import dream_run
from drama.results.report import Aggregate, Curve, Report, Row, Run, to_csv, to_json
from drama.results.scores import published_scores, random_and_human
from drama.training.metrics import encode_picture
from drama.training.pictures import dream_strip

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444")
WINDOW = 10  # episodes that a point of a learning curve is the mean of
SCALARS = {
    "world_model/reconstruction": "reconstruction (squared error per frame)",
    "world_model/reward": "reward prediction (nats)",
    "world_model/termination": "termination prediction (nats)",
    "world_model/kl": "KL posterior to prior (nats)",
    "world_model/kl_learning": "KL with a batch's own statistics (nats)",
    "world_model/kl_acting": "KL with the statistics of acting (nats)",
    "agent/policy": "policy loss",
    "agent/critic": "critic loss (nats)",
    "agent/entropy": "policy entropy (nats)",
    "agent/return": "imagined return",
}
LOGARITHMIC = (
    "world_model/reconstruction",
    "world_model/reward",
    "world_model/termination",
    "world_model/kl",
    "world_model/kl_learning",
    "world_model/kl_acting",
)
MARKS = {"verified": "", "second-hand": "²", "unverified": "?"}
STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
h1{margin-bottom:.2rem}
h2{margin-top:2.5rem;border-bottom:2px solid #ddd}
img{max-width:100%;height:auto}img.pixels{width:100%;image-rendering:pixelated}
p.note{color:#555;margin:.4rem 0 1rem}ul.notes{background:#fff6df;border-left:4px solid #e69f00;padding:.6rem 2rem}
.scroll{overflow-x:auto;margin:.5rem 0 1rem}table{border-collapse:collapse;font-size:14px;white-space:nowrap}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #e4e4e4;vertical-align:top}
th{background:#f6f6f6;vertical-align:bottom}td.text,th.text{text-align:left}td.ours,th.ours{background:#e5f1fa;font-weight:600}
small{font-weight:400;color:#555}pre{background:#f6f6f6;padding:1rem;overflow:auto;font-size:12px}
"""


def write_report(report: Report, out: Path) -> Path:
    """Write `index.html`, its pictures, `scores.csv` and `report.json` into the folder `out`; gives the page's path."""
    out.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, bytes] = {}
    games = list(dict.fromkeys(run.config.game for run in report.runs))
    for game in games:
        runs = [run for run in report.runs if run.config.game == game]
        pictures[f"curve-{game}"] = _png(_learning_curve(game, runs))
        if any(run.scalars for run in runs):
            pictures[f"losses-{game}"] = _png(_losses(runs))
    dreams: dict[str, tuple[Run, bytes]] = {}
    for run in _first_of_each(report.runs):
        try:
            strip = dream_strip(dream_run(run.folder, steps=32, context=8, skip=30, seed=0))
        except ValueError as error:
            report.notes.append(f"No dream of {run.folder}: {error}.")
        else:
            dreams[f"dream-{run.config.game}-{len(dreams)}"] = (run, encode_picture(strip))
    pictures |= {name: picture for name, (_, picture) in dreams.items()}
    for name, picture in pictures.items():
        (out / f"{name}.png").write_bytes(picture)
    write_atomically(out / "scores.csv", to_csv(report))
    write_atomically(out / "report.json", json.dumps(to_json(report), indent=2) + "\n")
    page = out / "index.html"
    write_atomically(page, _page(report, games, pictures, {name: run for name, (run, _) in dreams.items()}))
    return page


def _first_of_each(runs: list[Run]) -> Iterable[Run]:
    """The lowest seed of each setting and game."""
    found: dict[tuple[str, str], Run] = {}
    for run in runs:
        found.setdefault((run.config.game, run.setting), run)
    return found.values()


def smoothed(returns: Curve) -> Curve:
    """`[N, 2]` step and the mean of up to the last `WINDOW` episodes' returns."""
    sums = np.concatenate([[0.0], np.cumsum(returns[:, 1])])
    end = np.arange(1, len(returns) + 1)
    start = np.maximum(end - WINDOW, 0)
    return np.stack([returns[:, 0], (sums[end] - sums[start]) / (end - start)], axis=1)


def band(curves: list[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps `[G]` that all curves reach, and each curve's last value at each `[curves, G]`."""
    first, last = max(c[0, 0] for c in curves), min(c[-1, 0] for c in curves)
    grid = np.linspace(first, max(first, last), 300)
    return grid, np.stack([c[np.searchsorted(c[:, 0], grid, side="right") - 1, 1] for c in curves])


def _by_setting(runs: list[Run]) -> dict[str, list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.setting, []).append(run)
    return groups


def _learning_curve(game: str, runs: list[Run]) -> Figure:
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots()
    for (setting, members), colour in zip(_by_setting(runs).items(), COLOURS * len(runs), strict=False):
        curves = [smoothed(run.returns) for run in members if len(run.returns)]
        label = f"{setting} ({len(curves)} seed{'s' if len(curves) != 1 else ''})"
        if len(curves) > 1:
            grid, values = band(curves)
            axes.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
            axes.plot(grid, values.mean(0), color=colour, linewidth=2, label=label)
        for curve in curves:
            alone = len(curves) == 1
            axes.plot(
                *curve.T,
                color=colour,
                linewidth=2 if alone else 0.6,
                drawstyle="steps-post",
                marker="o" if len(curve) < 20 else None,  # a line through one point would not be seen
                markersize=3,
                label=label if alone else None,
            )
    constants = random_and_human(game)
    if constants:
        for name, value, style in zip(("random play", "human"), constants, (":", "--"), strict=True):
            axes.axhline(value, color="#777", linestyle=style, linewidth=1.2, label=f"{name} ({value:g})")
    _label(axes, f"{game}: return of training episodes, mean of the last {WINDOW}", "return (game score)")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    return figure


def _losses(runs: list[Run]) -> Figure:
    figure = Figure(figsize=(14, 5.5), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(2, 5).flat, SCALARS.items(), strict=True):
        for (setting, members), colour in zip(_by_setting(runs).items(), COLOURS * len(runs), strict=False):
            for i, run in enumerate(members):
                if name in run.scalars:
                    axes.plot(*run.scalars[name].T, color=colour, linewidth=1, label=None if i else setting)
        _label(axes, title, "")
        axes.locator_params(axis="x", nbins=4)
        if name in LOGARITHMIC and any((line.get_ydata() > 0).any() for line in axes.lines):
            axes.set_yscale("log")
    if len(_by_setting(runs)) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=9)
    return figure


def _label(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("environment steps")
    axes.set_ylabel(unit)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _png(figure: Figure) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150)
    return data.getvalue()


def _page(report: Report, games: list[str], pictures: dict[str, bytes], dreams: dict[str, Run]) -> str:
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>Report of {len(report.runs)} runs</title><style>{STYLE}</style>",
        f"<h1>How well do these agents play?</h1><p class=note>{_count(report.runs, 'run')} on {', '.join(games)}; made"
        f" by drama {__version__}. One environment step is several emulator frames (see frame_skip in the configs). The"
        " numbers are also in scores.csv and report.json beside this page.</p>",
    ]
    if report.notes:
        parts.append("<ul class=notes>" + "".join(f"<li>{escape(note)}</li>" for note in report.notes) + "</ul>")
    parts.append(
        "<h2>Learning curves</h2><p class=note>Returns of the episodes played while training. Thick line: mean over"
        " seeds; band: lowest to highest seed, as far as all seeds have come; thin lines: each seed.</p>"
    )
    parts += [_image(pictures, f"curve-{game}", f"Learning curve of {game}") for game in games]
    for kind, rows in report.rows.items():
        parts += _scores(kind, rows)
        parts += [_aggregate(item) for item in report.aggregates[kind]]
    parts.append(
        "<h2>Losses</h2><p class=note>Means over the updates between two log lines; one line for each run. The first"
        " row is the world model, on logarithmic axes, the second the agent.</p>"
    )
    for game in games:
        if f"losses-{game}" in pictures:
            parts.append(f"<h3>{escape(game)}</h3>" + _image(pictures, f"losses-{game}", f"Losses on {game}"))
    if dreams:
        parts.append(
            "<h2>Dreams</h2><p class=note>From the latest checkpoint. Left to right: time. Top: the real game. Middle:"
            " each real frame through the world model. Bottom: the world model on its own, given only the actions, from"
            " where the bar turns from green to red.</p>"
        )
    for name, run in dreams.items():
        title = f"{run.config.game}, {run.setting}, seed {run.config.seed}"
        parts.append(f"<h3>{escape(title)}</h3>" + _image(pictures, name, f"Dream of {title}", "pixels"))
    parts.append("<h2>Runs and configs</h2>" + _runs(report.runs))
    return "\n".join(parts) + "\n"


def _count(items: Sequence[object], name: str) -> str:
    return f"{len(items)} {name}{'' if len(items) == 1 else 's'}"


def _image(pictures: dict[str, bytes], name: str, text: str, kind: str = "") -> str:
    data = base64.b64encode(pictures[name]).decode()
    return f"<img class='{kind}' alt='{escape(text)}' src='data:image/png;base64,{data}'>"


def _table(head: list[tuple[str, str]], body: Iterable[list[str]]) -> str:
    """A table whose `head` gives each column's title and class; cells are HTML already."""
    classes = [f" class={name}" if name else "" for _, name in head]
    first = "".join(f"<th{c}>{title}</th>" for (title, _), c in zip(head, classes, strict=True))
    rows = ("".join(f"<td{c}>{cell}</td>" for cell, c in zip(row, classes, strict=True)) for row in body)
    return f"<div class=scroll><table><tr>{first}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table></div>"


def _scores(kind: str, rows: list[Row]) -> list[str]:
    published = published_scores()
    found = {method for row in rows for method in published.get(row.game, {})}
    methods = sorted(found - {"Random", "Human", "Drama"}, key=str.lower)
    methods = [m for m in ("Random", "Human", "Drama", *methods) if m in found]
    head = [("game", "text"), ("setting", "text"), ("step", ""), ("this", "ours"), ("human-<br>normalised", "ours")]
    body = []
    for row in rows:
        normalised = row.normalised
        scores = published.get(row.game)
        spread = f" ± {np.std(row.scores, ddof=1):,.1f}" if len(row.scores) > 1 else ""
        episodes = "/".join(map(str, sorted({len(e.returns) for e in row.evaluations})))
        planned = "/".join(f"{steps:,}" for steps in sorted({run.config.steps for run in row.runs}))
        unfinished = f"<br><small>unfinished: of {planned}</small>" if row.unfinished else ""
        cells = [escape(row.game), escape(row.setting), f"{row.step:,}{unfinished}"]
        played = f"{_count(row.runs, 'seed')} × {episodes} episodes"
        cells.append(f"{np.mean(row.scores):,.1f}{spread}<br><small>{played}</small>")
        cells.append("–" if normalised is None else f"{np.mean(normalised):.1%}")
        for method in methods:
            entry = scores.get(method) if scores else None
            cells.append(f"{entry.score:,.1f}{MARKS[entry.confidence]}" if entry else "–")
        body.append(cells)
    return [
        f"<h2>Scores: protocol {escape(kind)}</h2><p class=note>Mean return of whole evaluation episodes; ± is the"
        " standard deviation over seeds. “this” is these runs, the rest is published, each under its own protocol and"
        " mostly at 100,000 steps: a score at another step is no like-for-like comparison. ² taken from a later paper’s"
        " table; ? not confirmed; no mark: read from a published result file. Human-normalised: (score − Random) ÷"
        " (Human − Random).</p>",
        _table(head + [(escape(method), "") for method in methods], body),
    ]


def _aggregate(item: Aggregate) -> str:
    def cell(name: str) -> str:
        if item.intervals is None:
            return f"{item.values[name]:.1%}"
        low, high = item.intervals[name]
        return f"{item.values[name]:.1%}<br><small>{low:.1%} to {high:.1%}</small>"

    ours = [f"<b>this</b> ({escape(item.setting)})", cell("mean"), cell("median"), cell("iqm")]
    others = [[escape(m), f"{v['mean']:.1%}", f"{v['median']:.1%}", "–"] for m, v in item.others.items()]
    games = _count(item.games, "game")
    how = (
        "one seed for each game, so there is nothing to make an interval from"
        if item.intervals is None
        else "small: 95 % stratified bootstrap interval over seeds (rliable)"
    )
    return (
        f"<h3>Over {games}: {escape(item.setting)}, step {item.step:,}</h3><p class=note>Human-normalised, over"
        f" {escape(', '.join(item.games))}{'' if len(item.games) == 26 else ' (not all 26 of Atari100k)'}; {how}. IQM,"
        " the mean of the middle half of all runs, needs single runs, which are not published for every method.</p>"
        + _table([("method", "text"), ("mean", ""), ("median", ""), ("IQM", "")], [ours, *others])
    )


def _runs(runs: list[Run]) -> str:
    head = [(name, "text") for name in ("run", "game", "setting", "seed", "step", "evaluations")]
    body = []
    for run in runs:
        state = f"{run.step:,} of {run.config.steps:,}{' (unfinished)' * (run.step < run.config.steps)}"
        evaluations = "<br>".join(f"{e.kind}: step {e.step:,}, {len(e.returns)} episodes" for e in run.evaluations)
        cells = [run.folder, run.config.game, run.setting, run.config.seed, state]
        body.append([*(escape(str(cell)) for cell in cells), evaluations or "none"])
    details = (
        f"<details><summary>Config of {escape(str(run.folder))}</summary><pre>"
        f"{escape(json.dumps(dataclasses.asdict(run.config), indent=2))}</pre></details>"
        for run in runs
    )
    return _table(head, body) + "".join(details)
