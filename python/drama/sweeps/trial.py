"""One run inside Ray Tune: where its folder is, how it goes on after a death, what it tells Tune."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drama.training.callbacks import Callback

if TYPE_CHECKING:
    from ray.train._internal.storage import StorageContext

    from drama.config import Config
    from drama.training.trainer import Trainer

EVERY = 10.0
"""Seconds between two reports to Tune, for each of which the run waits until Tune has taken it."""
SHARE = 0.01
"""Of the time, that copies into an object store may take."""
PATIENCE = 180.0
"""Seconds to wait for the process of before to be gone, where its node was lost from sight rather than dead."""


def trainable(config: dict[str, Any]) -> None:
    """Train one agent as a trial of Ray Tune: `ray.tune.Tuner(drama.sweeps.trainable, param_space=...)`.

    Where Tune's storage is a folder the run is trained in it, and Tune's checkpoints are not used: a trial that Tune
    starts again goes on from the run's own last checkpoint. With an object store the run is trained on the node, and
    each checkpoint of it is one of Tune's: a whole run folder.

    Args:
        config: `env`, and perhaps `preset` and any field of the config by name, `seed` and `steps` too, as in
            `{"env": "Pong", "preset": "cpu", "seed": 0, "train.agent_lr": 1e-4}`. `run` names the run's folder in
            Tune's storage; without it that is `run` in the trial's folder.

    Reports `step`, `steps`, `return` (mean of the last ten episodes, NaN before the first), `steps_per_second`, at the
    end `score` and perhaps `human_normalised` (of `log.eval_episodes` episodes), and `fault`, a traceback, before what
    the run raises is raised again.
    """
    # As in the command line: threads that wait in a loop take the cores of the runs beside. Read when torch is loaded.
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ["OMP_WAIT_POLICY"] = "passive"
    from ray import tune

    from drama.sweeps.plan import config_of

    told: dict[str, Any] = {"step": 0, "steps": 0, "return": float("nan")}
    try:
        resolved = config_of(config)
        told["steps"] = resolved.steps
        with _folder(tune.get_context().get_storage(), config.get("run")) as (run, remote):
            _train(resolved, run, told, remote)
            _score(resolved, run, told)
            tune.report(told, checkpoint=_copy(run) if remote else None)
    except Exception:
        tune.report(told | {"fault": traceback.format_exc()})
        raise


@contextmanager
def _folder(storage: StorageContext, name: str | None) -> Iterator[tuple[Path, bool]]:
    """The run's folder, free of other processes, and whether it has to be copied into the storage.

    Raises ValueError where the storage is a folder that this node does not share.
    """
    import pyarrow.fs
    from ray import tune

    if isinstance(storage.storage_filesystem, pyarrow.fs.LocalFileSystem):
        if not Path(storage.experiment_fs_path, ".validate_storage_marker").exists():
            raise ValueError(
                f"out: {storage.storage_fs_path} is not the same folder on all nodes; give one that they share, such as"
                " one on NFS, or an object store (s3://…, gs://…)"
            )
        run = Path(storage.storage_fs_path, name) if name else Path(storage.trial_fs_path, "run")
        if run.is_dir():
            _wait_for(run)
        yield run, False
        return
    run = Path(storage.trial_working_directory) / (name or "run")
    shutil.rmtree(run, ignore_errors=True)
    checkpoint = tune.get_checkpoint()
    if checkpoint is not None:
        checkpoint.to_directory(run)
    yield run, True
    shutil.rmtree(run)


def _wait_for(run: Path) -> None:
    """Wait until no process trains in `run`: the one that this one replaces may take a moment to end."""
    from drama.files import locked

    end = time.monotonic() + PATIENCE
    while True:
        try:
            with locked(run):
                return
        except ValueError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


class _Reporter(Callback):
    """Tells Tune how far a run is, and gives it the checkpoints of a run whose folder is not in the storage."""

    def __init__(self, told: dict[str, Any], remote: bool) -> None:
        self._told, self._remote = told, remote
        self._copied = (float("-inf"), 0.0)

    def on_start(self, trainer: Trainer) -> None:
        self._at, self._since = trainer.step, time.monotonic()
        self._tell(trainer)

    def on_step(self, trainer: Trainer) -> None:
        if time.monotonic() - self._since >= EVERY:
            self._tell(trainer)

    def on_checkpoint(self, trainer: Trainer, path: Path) -> None:
        del path
        ended, took = self._copied
        began = time.monotonic()
        if not self._remote or began - ended < took / SHARE:
            return
        self._tell(trainer, _copy(trainer.run))
        self._copied = (time.monotonic(), time.monotonic() - began)

    def on_end(self, trainer: Trainer, error: BaseException | None) -> None:
        del error
        self._update(trainer)

    def _tell(self, trainer: Trainer, checkpoint: Any = None) -> None:
        from ray import tune

        self._update(trainer)
        tune.report(dict(self._told), checkpoint=checkpoint)
        self._at, self._since = trainer.step, time.monotonic()

    def _update(self, trainer: Trainer) -> None:
        self._told["step"] = trainer.step
        if trainer.recent:
            self._told["return"] = sum(trainer.recent) / len(trainer.recent)
        if trainer.step > self._at:
            self._told["steps_per_second"] = (trainer.step - self._at) / (time.monotonic() - self._since)


def _train(config: Config, run: Path, told: dict[str, Any], remote: bool) -> None:
    """Train to the last step, from the last checkpoint if there is one."""
    from drama.config import Config
    from drama.training.trainer import Trainer

    callbacks = [_Reporter(told, remote)]
    if (run / "config.json").exists():
        before = Config.load(run / "config.json")
        if dataclasses.replace(before, steps=config.steps) != config or before.steps > config.steps:
            raise ValueError(f"{run}: this folder holds a run of another config than the sweep's; move it away")
        trainer = Trainer.resume(run, config.steps, callbacks=callbacks)
    else:
        if run.is_dir() and all(path.name.startswith(".") for path in run.iterdir()):  # killed before its config
            shutil.rmtree(run)
        run.parent.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(config, run, callbacks=callbacks)
    trainer.train()


def _score(config: Config, run: Path, told: dict[str, Any]) -> None:
    """Evaluate the finished run, as `drama train` does, unless that was done."""
    from drama.results.evaluation import evaluate_run
    from drama.results.scores import read_evaluation
    from drama.training import checkpoint

    episodes = config.log.eval_episodes
    if not episodes:
        return
    done = sorted(run.glob(f"evaluation-{checkpoint.latest(run).name}-*-{episodes}x-*.json"))
    if done:
        found = read_evaluation(done[0])
        score, normalised = found.mean, found.normalised
    else:
        result = evaluate_run(run, episodes=episodes, device=config.device)
        score, normalised = result["mean"], result["human_normalised_mean"]
    told["score"] = score
    if normalised is not None:
        told["human_normalised"] = normalised


def _copy(run: Path) -> Any:
    """A checkpoint of Tune's: the run's folder with the last of its own checkpoints, in hard links."""
    from ray import tune

    from drama.training.checkpoint import list_checkpoints

    copy = run.with_name(f".{run.name}")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy, copy_function=os.link, ignore=shutil.ignore_patterns(".*"))
    for old in list_checkpoints(copy)[:-1]:
        shutil.rmtree(old)
    return tune.Checkpoint.from_directory(copy)
