"""A trained agent in a small folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from json import loads
from pathlib import Path
from typing import Literal

from drama.files import write_atomically
from drama.results.card import evaluations, write_card
from drama.results.evaluation import load_learner
from drama.training.weights import save_weights

Format = Literal["safetensors", "onnx"]


def export_run(
    run: Path,
    out: Path,
    *,
    step: int | None = None,
    format: Format = "safetensors",
    licence: str = "MIT",
    told: Callable[[str], None] = lambda line: None,  # noqa: ARG005
) -> Path:
    """Write the agent of a run into the folder `out`, which may be the run's own; gives that folder.

    It holds the weights, the config, the interface, a card, and what the run has of metrics and evaluations: all that
    evaluation, dreams, play, the report and `drama.load` need.

    Args:
        run: the run folder, or another export.
        out: the folder to write.
        step: of the checkpoint; None is the last.
        format: `onnx` writes `acting.onnx` and `dreaming.onnx` besides, and compares them with PyTorch.
        licence: of the weights, for the card; an SPDX identifier.
        told: hears a line on each ONNX file.

    Raises:
        ValueError: the run cannot be read, or `out` holds something else.
    """
    config, learner, step = load_learner(run, "cpu", step, trust=True)  # makes no environment
    evaluations(run, step)  # all is read before anything is written
    metrics = run / "metrics.jsonl"
    if metrics.exists():
        _check_lines(metrics)
    if format == "onnx":
        import onnxruntime  # these need the extra `onnx`, which is told before anything is written

        from drama.results.graphs import write_graphs
    if out.resolve() != run.resolve():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out}: this folder holds something; out must be a new one, or the run's own")
        out.mkdir(parents=True, exist_ok=True)
        for path in [metrics, *run.glob("evaluation-*.json")]:
            if path.exists():
                shutil.copy(path, out / path.name)
    write_atomically(out / "config.json", config.to_json())
    write_atomically(out / "interface.json", learner.world_model.interface.to_json())
    save_weights(out, learner, step)
    lines = []
    if format == "onnx":
        for check in write_graphs(out, learner):
            compared = f"largest difference from PyTorch {check.difference:.1g} over {check.steps} random steps"
            lines.append(f"`{check.path.name}`: {compared}, in onnxruntime {onnxruntime.__version__}.")
            told(
                f"{check.path}: {check.milliseconds:.2f} ms a step on one thread, PyTorch"
                f" {check.torch_milliseconds:.2f} ms; {compared}"
            )
    write_card(out, config, step, licence, lines)
    return out


def _check_lines(path: Path) -> None:
    """Raise ValueError that names the file unless it is JSON lines: a link may lead to what is not to be handed out."""
    try:
        with path.open() as lines:
            if not all(isinstance(loads(line), dict) for line in lines):
                raise ValueError("a line is no object")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: damaged, or no metrics ({error})") from error
