"""A trained agent in a small folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from drama.files import write_atomically
from drama.results.evaluation import load_learner
from drama.training.weights import save_weights


def export_run(run: Path, out: Path, *, step: int | None = None) -> Path:
    """Write the agent of a run into the folder `out`, which may be the run's own; gives that folder.

    It holds the weights, the config, the interface, and what the run has of metrics and evaluations: all that
    evaluation, dreams, play, the report and `drama.load` need.

    Args:
        run: the run folder.
        out: the folder to write.
        step: of the checkpoint; None is the last.

    Raises:
        ValueError: the run cannot be read, or `out` holds something else.
    """
    config, learner, step = load_learner(run, "cpu", step, trust=True)  # makes no environment
    if out.resolve() != run.resolve():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"{out}: this folder holds something; --out names a new one, or the run's own")
        out.mkdir(parents=True, exist_ok=True)
        for path in [run / "metrics.jsonl", *run.glob("evaluation-*.json")]:
            if path.exists():
                shutil.copy(path, out / path.name)
    write_atomically(out / "config.json", config.to_json())
    write_atomically(out / "interface.json", learner.world_model.interface.to_json())
    save_weights(out, learner, step)
    return out
