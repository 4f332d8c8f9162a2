"""The card of an export: a README that says what the agent is, how well it plays, and how that was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drama import __version__
from drama.config import Config, flat, preset
from drama.files import write_atomically
from drama.results.scores import Evaluation, read_evaluation

APART = {"game", "preset", "steps", "seed", "device", "threads"}
"""Values that no table of options wants: they stand elsewhere, or do not decide what is learned."""


def write_card(folder: Path, config: Config, step: int, licence: str, graphs: Sequence[str] = ()) -> Path:
    """Write `README.md` into the folder of an export, from its config and the evaluations that lie there.

    Args:
        folder: of the export.
        config: of the run.
        step: of the environment up to which the agent was trained.
        licence: an SPDX identifier, as in `MIT`.
        graphs: lines on ONNX files that lie there.
    """
    path = folder / "README.md"
    write_atomically(path, card(config, step, evaluations(folder, step), licence, graphs))
    return path


def evaluations(folder: Path, step: int) -> list[Evaluation]:
    """What the evaluation files of a folder say of the agent of `step`, by the names of the files."""
    found = [read_evaluation(path) for path in sorted(folder.glob("evaluation-*.json"))]
    return [evaluation for evaluation in found if evaluation.step == step]


def card(config: Config, step: int, scores: Sequence[Evaluation], licence: str, graphs: Sequence[str] = ()) -> str:
    """The text of a card; its head is what the Hugging Face hub reads."""
    head = {
        "library_name": "drama-rl",
        "license": licence.lower(),
        "pipeline_tag": "reinforcement-learning",
        "tags": ["drama", "world-model", config.game],
    }
    base = flat(preset(config.preset))
    changed = [
        f"| `{name}` | {_shown(value)} | {_shown(base[name])} |"
        for name, value in flat(config).items()
        if name not in APART and not name.startswith("log.") and value != base[name]
    ]
    options = ["", f"| option | here | `{config.preset}` |", "| --- | --- | --- |", *changed] if changed else []
    played = [_row(score) for score in scores]
    return "\n".join(
        [
            "---",
            *(f"{name}: {json.dumps(value)}" for name, value in head.items()),
            "---",
            "",
            f"# {config.game}, {step:,} steps",
            "",
            f"A world-model agent, trained by `drama` {__version__} with the preset `{config.preset}` and seed"
            f" {config.seed} in {config.game} for {step:,} steps of the environment, of {config.steps:,}.",
            *options,
            "",
            "## Scores",
            "",
            *(
                [
                    "| protocol | actions | episodes | mean | std | median | human-normalised | command |",
                    "| --- | --- | --- | --- | --- | --- | --- | --- |",
                    *played,
                    "",
                    "Protocol `standard` begins an Atari game with up to 30 no-ops, `paper` without. The files"
                    " `evaluation-*.json` hold each episode. Scores of a run were measured before its weights were"
                    " rounded to half precision for this folder.",
                ]
                if played
                else ["It has not been evaluated."]
            ),
            "",
            "## Use",
            "",
            "```python",
            "import drama",
            "",
            'agent = drama.load("FOLDER")  # this folder, or hf://owner/name where it is on the hub',
            "action = agent.act(observation, first)",
            "```",
            "",
            "`drama eval`, `dream`, `play` and `report` take the folder too. Nothing in it runs code: the weights are"
            " safetensors, all else is JSON and text.",
            *(["", "## ONNX", "", *(f"* {line}" for line in graphs)] if graphs else []),
            "",
            "## Licence",
            "",
            licence,
            "",
        ]
    )


def _row(score: Evaluation) -> str:
    normalised = score.normalised
    return (
        f"| {score.protocol} | {score.mode} | {len(score.returns)}"
        f" | {score.mean:.4g} | {score.std:.3g} | {score.median:.4g}"
        f" | {'' if normalised is None else f'{normalised:.1%}'} | `{score.command('FOLDER')}` |"
    )


def _shown(value: Any) -> str:
    return json.dumps(value).replace("|", "\\|")
