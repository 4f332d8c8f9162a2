"""The committed agents play as well as their files say."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest

from drama.results.evaluation import evaluate, load_learner

RESULTS = Path(__file__).parents[2] / "results"
EPISODES = 4


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("weights", sorted(RESULTS.glob("*/model.safetensors")), ids=lambda path: path.parent.name)
def test_a_committed_agent_gives_its_score_again(weights: Path) -> None:
    """A few episodes lie within four standard errors, and a twentieth, below the score that is told."""
    (told,) = (
        json.loads(path.read_text()) for path in weights.parent.glob("evaluation-*-standard-sampled-100x-*.json")
    )
    config, learner, step = load_learner(weights.parent, "cpu")
    assert step == told["step"] == config.steps
    records = evaluate(config, learner, episodes=EPISODES, greedy=False, seed=7)
    mean = statistics.fmean(record["return"] for record in records)
    assert mean >= told["mean"] - 4 * told["std"] / EPISODES**0.5 - 0.05 * abs(told["mean"])
