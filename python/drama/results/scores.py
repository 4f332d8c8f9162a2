"""Published Atari100k scores, and scores normalised by Random and Human."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple


class Published(NamedTuple):
    """One published score of a method on a game."""

    score: float
    confidence: str  # verified, second-hand or unverified
    source: str


@cache
def published_scores() -> dict[str, dict[str, Published]]:
    """Scores by game and method, from `atari100k_scores.csv`."""
    scores: dict[str, dict[str, Published]] = {}
    with files("drama.results").joinpath("atari100k_scores.csv").open() as file:
        for row in csv.DictReader(file):
            found = Published(float(row["score"]), row["confidence"], row["source"])
            scores.setdefault(row["game"], {})[row["method"]] = found
    return scores


def random_and_human(game: str) -> tuple[float, float] | None:
    """The scores of random play and of a human tester, or None for a game outside the 26 of Atari100k."""
    scores = published_scores().get(game)
    return None if scores is None else (scores["Random"].score, scores["Human"].score)


def human_normalised(game: str, score: float) -> float | None:
    """`(score - Random) / (Human - Random)`, or None for a game outside the 26 of Atari100k."""
    constants = random_and_human(game)
    if constants is None:
        return None
    random, human = constants
    return (score - random) / (human - random)
