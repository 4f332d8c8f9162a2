"""The curves of `drama report`: SVG whose colours are those of the page, light or dark, and whose legends are text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from html import escape

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from drama.results.report import Curve, Run
from drama.results.scores import random_and_human

COLOURS = ("#0072b2", "#c04f00", "#007f5c", "#a8487f", "#8a6100", "#2a7fb0", "#555555")  # page.css has the dark ones
TEXT, GRID = "#010101", "#020202"  # stand for the page's own
WINDOW = 10  # episodes that a point of a learning curve is the mean of
SCALARS = {
    "world_model/reconstruction": "reconstruction (squared error per frame)",
    "world_model/reward": "reward prediction (nats)",
    "world_model/termination": "termination prediction (nats)",
    "world_model/kl": "KL posterior to prior (nats)",
    "world_model/kl_learning": "KL with a batch's own statistics (nats)",
    "world_model/kl_acting": "KL with the statistics of acting (nats)",
    "world_model/kl_new": "KL on rows hardly learned from yet (nats)",
    "world_model/reward_new": "reward prediction on those (nats)",
    "agent/policy": "policy loss",
    "agent/critic": "critic loss (nats)",
    "agent/entropy": "policy entropy (nats)",
    "agent/return": "imagined return",
}
LOGARITHMIC = {name for name in SCALARS if name.startswith("world_model/")}
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "DejaVu Sans"],
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "grid.color": GRID,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


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


def by_setting(runs: Sequence[Run]) -> dict[str, tuple[str, list[Run]]]:
    """The colour and the runs of each setting."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.setting, []).append(run)
    return {name: (COLOURS[i % len(COLOURS)], group) for i, (name, group) in enumerate(groups.items())}


def learning_curve(game: str, runs: Sequence[Run]) -> str:
    """The returns of training episodes, as a drawing with its legend below."""
    legend = []
    with mpl.rc_context(STYLE | {"font.size": 11}):
        axes = _axes(5.2, 3.4, "return (game score)")
        for setting, (colour, members) in by_setting(runs).items():
            curves = [smoothed(run.returns) for run in members if len(run.returns)]
            legend.append((colour, "", f"{setting} ({len(curves)} seed{'s' if len(curves) != 1 else ''})"))
            if len(curves) > 1:
                grid, values = band(curves)
                axes.fill_between(grid, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)
                axes.plot(grid, values.mean(0), color=colour, linewidth=2)
            for curve in curves:
                axes.plot(
                    *curve.T,
                    color=colour,
                    linewidth=2 if len(curves) == 1 else 0.6,
                    drawstyle="steps-post",
                    marker="o" if len(curve) < 20 else None,  # a line through one point would not be seen
                    markersize=3,
                )
        constants = random_and_human(game)
        for name, value, dashes in zip(("random play", "human"), constants or (), ("2 3", "7 4"), strict=False):
            style = (0, tuple(float(x) for x in dashes.split()))
            axes.axhline(value, color=TEXT, linestyle=style, linewidth=1.2)
            legend.append((TEXT, dashes, f"{name} ({value:g})"))
        return _svg(axes, f"Learning curve of {game}") + _legend(legend)


def losses(game: str, runs: Sequence[Run]) -> Iterator[tuple[str, str]]:
    """Title and drawing of each loss that the runs have logged."""
    with mpl.rc_context(STYLE | {"font.size": 9.5}):
        for name, title in SCALARS.items():
            if not any(name in run.scalars for run in runs):
                continue
            axes = _axes(3.6, 2.3, "")
            for colour, members in by_setting(runs).values():
                for run in members:
                    if name in run.scalars:
                        axes.plot(*run.scalars[name].T, color=colour, linewidth=1)
            curves = [run.scalars[name][:, 1] for run in runs if name in run.scalars]
            if name in LOGARITHMIC and any((values > 0).any() for values in curves):
                axes.set_yscale("log")
            yield title, _svg(axes, f"{title} of {game}")


def legend_of(runs: Sequence[Run]) -> str:
    """The colours of the settings."""
    return _legend([(colour, "", name) for name, (colour, _) in by_setting(runs).items()])


def _axes(width: float, height: float, unit: str) -> Axes:
    axes = Figure(figsize=(width, height), layout="constrained").subplots()
    axes.set_xlabel("environment steps")
    axes.set_ylabel(unit)
    axes.locator_params(axis="x", nbins=4)
    return axes


def _svg(axes: Axes, text: str) -> str:
    """The drawing alone, without a size of its own, in the colours of the page."""
    data = io.StringIO()
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    _, _, drawing = data.getvalue().partition("<svg ")
    head, _, body = drawing.partition(">")
    shape = next(part for part in head.split('" ') if part.startswith("viewBox"))
    opened = f'<svg xmlns="http://www.w3.org/2000/svg" {shape}" role="img" aria-label="{escape(text)}">'
    body = body.replace('xlink:href="', 'href="')
    return opened + _themed(body.strip())


def _themed(drawing: str) -> str:
    drawing = drawing.replace(TEXT, "currentColor").replace(GRID, "var(--grid, #d0d0d0)")
    for i, colour in enumerate(COLOURS):
        drawing = drawing.replace(colour, f"var(--c{i}, {colour})")
    return drawing


def _legend(entries: Sequence[tuple[str, str, str]]) -> str:
    """Colour, dashes and name of each line."""
    items = (
        f'<li><svg viewBox="0 0 40 16" aria-hidden="true"><path d="M0 8h40" fill="none" stroke-width="4"'
        f' style="stroke:{_themed(colour)}" stroke-dasharray="{dashes}"/></svg>{escape(name)}</li>'
        for colour, dashes, name in entries
    )
    return f"<ul class=legend>{''.join(items)}</ul>"
