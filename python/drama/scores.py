"""Published Atari100k scores, and scores normalised by Random and Human."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files


@cache
def published_scores() -> dict[str, dict[str, float]]:
    """Scores by game and method, from `atari100k_scores.csv`; that file also gives each one's source."""
    scores: dict[str, dict[str, float]] = {}
    with files("drama").joinpath("atari100k_scores.csv").open() as file:
        for row in csv.DictReader(file):
            scores.setdefault(row["game"], {})[row["method"]] = float(row["score"])
    return scores


def human_normalised(game: str, score: float) -> float | None:
    """`(score - Random) / (Human - Random)`, or None for a game outside the 26 of Atari100k."""
    game_scores = published_scores().get(game)
    if game_scores is None:
        return None
    return (score - game_scores["Random"]) / (game_scores["Human"] - game_scores["Random"])
