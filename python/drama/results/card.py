"""The card of an export: a README that says what the agent is, how well it plays, and how that was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from drama import __version__
from drama.config import Config, flat, preset
from drama.files import write_atomically

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


def evaluations(folder: Path, step: int) -> list[dict[str, Any]]:
    """What the evaluation files of a folder say of the agent of `step`, by the names of the files."""
    found = [_read(path) for path in sorted(folder.glob("evaluation-*.json"))]
    return [evaluation for evaluation in found if evaluation["step"] == step]


def _read(path: Path) -> dict[str, Any]:
    """An evaluation that `evaluate_run` wrote. Raises ValueError that names the file if it is none."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        numbers = [found["step"], found["seed"], *(found[name] for name in ("mean", "std", "median"))]
        of_games = [found["human_normalised_mean"]] if found["human_normalised_mean"] is not None else []
        fits = all(isinstance(n, int | float) for n in numbers + of_games) and isinstance(found["episodes"], list)
        if not fits or not isinstance(found["greedy"], bool) or found["protocol"] not in ("standard", "paper"):
            raise ValueError("a field is of the wrong type")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged, or no evaluation ({error})") from error
    return found


def card(config: Config, step: int, scores: Sequence[dict[str, Any]], licence: str, graphs: Sequence[str] = ()) -> str:
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


def _row(score: dict[str, Any]) -> str:
    normalised = score["human_normalised_mean"]
    command = (
        f"drama eval FOLDER --episodes {len(score['episodes'])} --protocol {score['protocol']}"
        f" --greedy {score['greedy']} --seed {score['seed']}"
    )
    return (
        f"| {score['protocol']} | {'greedy' if score['greedy'] else 'sampled'} | {len(score['episodes'])}"
        f" | {score['mean']:.4g} | {score['std']:.3g} | {score['median']:.4g}"
        f" | {'' if normalised is None else f'{normalised:.1%}'} | `{command}` |"
    )


def _shown(value: Any) -> str:
    return json.dumps(value).replace("|", "\\|")
