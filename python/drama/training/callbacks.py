"""What goes along with a training run: callbacks, of which the loggers, the pictures and the checkpoints are some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from drama.config import flat

if TYPE_CHECKING:
    from drama.training.trainer import Trainer


class Callback:
    """Told of what happens in a run; every method does nothing unless a subclass has its own.

    `trainer.step` is the present step and `trainer.stop()` ends the run after it, with a checkpoint. What a method
    raises ends the run as well.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this process."""

    def on_step(self, trainer: Trainer) -> None:
        """After each step of the environments and the updates that follow it."""

    def on_episode(self, trainer: Trainer, episode: Mapping[str, float]) -> None:
        """After an episode has ended, with its `return` and `length`."""

    def on_update(self, trainer: Trainer) -> None:
        """After each pair of updates of world model and agent."""

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        """Every `log.log_every` steps, with the mean of each scalar since the last time (docs/metrics.md)."""

    def on_pictures(self, trainer: Trainer, pictures: Mapping[str, NDArray[np.uint8]]) -> None:
        """Every `log.image_every` steps and at the end: the video `dream` `[T, H, W, 3]`, and of it `reconstruction`,
        moments side by side `[H, W, 3]`."""

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        """After a checkpoint has been written into the folder `path`."""

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        """At the end of the loop, also after an `error`; not where a callback before this one failed to start."""


class Callbacks:
    """Several callbacks as one."""

    def __init__(self, callbacks: Sequence[Callback]) -> None:
        for callback in callbacks:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks: got {callback!r}, expected instances of drama.Callback")
            for name in dir(callback):
                if name.startswith("on_") and not hasattr(Callback, name):
                    known = [hook for hook in dir(Callback) if hook.startswith("on_")]
                    raise TypeError(
                        f"callbacks: {type(callback).__name__} has {name}, which nothing calls; there are {known}"
                    )
        self._callbacks = list(callbacks)
        self._started: list[Callback] = []

    def start(self, trainer: Trainer) -> None:
        """Start each."""
        for callback in self._callbacks:
            callback.on_start(trainer)
            self._started.append(callback)

    def tell(self, event: str, trainer: Trainer, *values: Any) -> None:
        """Call the method `on_<event>` of each."""
        for callback in self._callbacks:
            getattr(callback, f"on_{event}")(trainer, *values)

    def end(self, trainer: Trainer, error: BaseException | None) -> None:
        """End each that was started. The first that fails is told of, unless there was an error before."""
        first: BaseException | None = None
        while self._started:
            try:
                self._started.pop().on_end(trainer, error)
            except Exception as failure:
                first = first or failure
        if first is not None and error is None:
            raise first


class WandB(Callback):
    """Logs a run to Weights & Biases (extra `wandb`).

    Args:
        options: of `wandb.init`, such as `project="atari"` and `mode="offline"`.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options

    def on_start(self, trainer: Trainer) -> None:
        import dataclasses

        import wandb

        options = {"name": trainer.run.name, "dir": str(trainer.run), "config": dataclasses.asdict(trainer.config)}
        self._run = wandb.init(**options | self._options)

    def on_episode(self, trainer: Trainer, episode: Mapping[str, float]) -> None:
        self._run.log({f"episode/{name}": value for name, value in episode.items()} | {"step": trainer.step})

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        self._run.log({f"train/{name}": value for name, value in values.items()} | {"step": trainer.step})

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        del trainer
        self._run.finish(exit_code=1 if error else 0)


class MLflow(Callback):
    """Logs a run to MLflow (extra `mlflow`).

    Args:
        options: of `mlflow.start_run`, such as `experiment_id`.
        uri: the tracking server or folder; None leaves it to MLflow.
    """

    def __init__(self, uri: str | None = None, **options: Any) -> None:
        self._uri, self._options = uri, options

    def on_start(self, trainer: Trainer) -> None:
        import mlflow

        if self._uri is not None:
            mlflow.set_tracking_uri(self._uri)
        mlflow.start_run(**{"run_name": trainer.run.name} | self._options)
        mlflow.log_params(flat(trainer.config))
        self._mlflow = mlflow

    def on_episode(self, trainer: Trainer, episode: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({f"episode/{name}": value for name, value in episode.items()}, step=trainer.step)

    def on_log(self, trainer: Trainer, values: Mapping[str, float]) -> None:
        self._mlflow.log_metrics({f"train/{name}": value for name, value in values.items()}, step=trainer.step)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        del trainer
        self._mlflow.end_run("FAILED" if error else "FINISHED")
