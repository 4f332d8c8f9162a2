"""Scores: those of an evaluation as it was written, published ones of Atari100k, normalised by Random and Human."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np


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


@dataclass(frozen=True)
class Evaluation:
    """What an `evaluation-….json` says: returns, and all that decided them."""

    game: str
    protocol: str
    greedy: bool
    step: int
    """Of the checkpoint."""
    seed: int
    returns: tuple[float, ...]
    steps_limit: int | None = None
    """After how many steps episodes were truncated, if that was asked for."""

    @property
    def mode(self) -> str:
        """How actions were chosen."""
        return "greedy" if self.greedy else "sampled"

    @property
    def kind(self) -> str:
        """Protocol and mode, for which alone scores may be put together."""
        return f"{self.protocol}, {self.mode}"

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def median(self) -> float:
        return float(np.median(self.returns))

    @property
    def std(self) -> float:
        return float(np.std(self.returns))

    @property
    def normalised(self) -> float | None:
        """The human-normalised mean."""
        return human_normalised(self.game, self.mean)

    def command(self, run: str) -> str:
        """What plays the same episodes again with the agent of `run`."""
        return (
            f"drama eval {run} --episodes {len(self.returns)} --protocol {self.protocol} --greedy {self.greedy}"
            f" --seed {self.seed}" + ("" if self.steps_limit is None else f" --steps-limit {self.steps_limit}")
        )


def read_evaluation(path: Path) -> Evaluation:
    """Read what `evaluate_run` wrote. Raises ValueError that names the file if it is none or holds NaN."""
    try:
        values = json.loads(path.read_text())
        returns = tuple(float(episode["return"]) for episode in values["episodes"])
        types = {"game": str, "protocol": str, "greedy": bool, "step": int, "seed": int}
        for name, kind in types.items():
            if not isinstance(values[name], kind):
                raise TypeError(f"{name} is {values[name]!r}")
        limit = values.get("steps_limit")  # which older files lack
        if limit is not None and not isinstance(limit, int):
            raise TypeError(f"steps_limit is {limit!r}")
        if values["protocol"] not in ("standard", "paper"):
            raise ValueError(f"protocol is {values['protocol']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path}: damaged, or no evaluation of this version of drama ({reason})") from error
    if not returns or not np.isfinite(returns).all():
        raise ValueError(f"{path}: holds no episodes, or returns that are not finite")
    return Evaluation(**{name: values[name] for name in types}, returns=returns, steps_limit=limit)
