"""The training loop: collect, update, tell the callbacks, save."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from drama import hints
from drama.agent.imagination import dream
from drama.config import Config
from drama.envs import EnvError
from drama.files import check_new, check_run, locked, write_atomically
from drama.interface import Interface
from drama.models.world_model import Batch
from drama.replay import ReplayBuffer, Uniform
from drama.runtime.compiling import wants_compiling
from drama.runtime.device import resolve_device
from drama.training import checkpoint
from drama.training.callbacks import Callback, Callbacks
from drama.training.collector import Collector, make_envs, make_replay
from drama.training.learner import Learner
from drama.training.metrics import JsonLines, TensorBoard
from drama.training.pictures import dream_strip, dream_video
from drama.training.updater import Updater, not_finite
from drama.training.weights import check_state, is_export

DREAM_ROWS, DREAM_STEPS = 4, 40
"""Sequences of a dream that is drawn, and the steps of each after its context."""
SHARE = 0.01
"""Of the time, that checkpoints by the clock may take."""


class EnvFailed(RuntimeError):
    """An environment failed while it was trained on. A checkpoint was saved."""


class Trainer:
    """One training run in one folder.

    A new run creates the folder; `Trainer.resume` goes on from its last checkpoint. All that decides the future of a
    run is in the checkpoint: networks, optimizers, replay, counters, random states, the agent's memory and, where they
    can tell, the state of the environments. Where they cannot, a resumed run begins new episodes.

    Args:
        config: the run's.
        run: its folder.
        callbacks: told of what happens, besides `metrics.jsonl` and TensorBoard.

    Raises:
        ValueError: for a config that cannot work, or a folder that exists.
        EnvError: an environment cannot be made or reset.
    """

    def __init__(
        self, config: Config, run: str | Path, *, callbacks: Sequence[Callback] = (), resume: bool = False
    ) -> None:
        config.validate()
        self.config = config
        self.run = Path(run)
        self.device = resolve_device(config.device)
        self._callbacks = Callbacks([JsonLines(), TensorBoard(), *callbacks])
        if not resume:
            check_new(self.run)
        if config.threads:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        envs, self.interface = make_envs(config)
        train = config.train
        try:
            if resume:
                self._check_interface()
            folder = checkpoint.latest(self.run) if resume and checkpoint.list_checkpoints(self.run) else None
            state = None
            if folder is not None:
                state = checkpoint.load_state(folder, self.device)
                check_state(config, self.interface, state, folder / "state.pt")
            self.learner = Learner(config, self.interface, self.device)
            self._collector = Collector(config, envs, self.interface, self.learner.player(train.num_envs))
            self.step = 0
            """Steps of the environments so far, over all of them."""
            self.notes: list[str] = []
            """What a person should know of this run, in a line each."""
            if wants_compiling(config, self.device):
                off = hints.either("--train.compile off", "the option train.compile 'off'")
                self.notes.append(
                    "the updates are compiled before the first of them, for minutes if torch has not kept them from"
                    f" another run; {off} goes on without, more slowly"
                )
            self.recent: deque[float] = deque(maxlen=10)
            """Returns of the last episodes."""
            self._stop = False
            self.signal: int | None = None
            """The signal that has ended the run, if one has."""
            self.replay = (
                make_replay(config, self.interface) if folder is None else ReplayBuffer.load(folder / "replay")
            )
            self._updater = Updater(config, self.learner, self.replay)
            if folder is not None and state is not None:
                try:
                    self._load(state)
                except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
                    raise ValueError(f"{folder / 'state.pt'}: damaged ({type(error).__name__}: {error})") from error
            self._clock = (time.perf_counter(), self.step)
            self._saved = (time.perf_counter(), 0.0)
        except BaseException:
            envs.close()
            raise
        self._checkpoint = None if folder is None else folder.name  # the checkpoint that is this process's own
        self._changed = not resume
        if not resume:
            self.run.mkdir(parents=True)
            self._write_config()

    def _write_config(self) -> None:
        write_atomically(self.run / "config.json", self.config.to_json())
        write_atomically(self.run / "interface.json", self.interface.to_json())
        self._changed = False

    @staticmethod
    def resume(run: str | Path, steps: int | None = None, *, callbacks: Sequence[Callback] = ()) -> Trainer:
        """Go on with the run in the folder `run` from its last checkpoint, up to `steps` instead of the config's.

        A run that was killed before its first checkpoint begins again.
        """
        run = Path(run)
        check_run(run)
        before = config = Config.load(run / "config.json")
        if is_export(run):
            raise ValueError(f"{run}: an export has no optimizers and no replay to go on with; resume the run it is of")
        if steps is not None:
            config = dataclasses.replace(config, steps=steps)
        with locked(run):  # whoever trains it removes old checkpoints
            trainer = Trainer(config, run, callbacks=callbacks, resume=True)
        if steps is not None and steps < trainer.step:
            trainer._collector.close()
            raise ValueError(f"steps: {run} has gone to step {trainer.step} already, which is more than {steps}")
        trainer._changed = config != before
        if (rows := trainer.replay.capacity) < min(config.steps, config.train.replay_capacity):
            trainer.notes.append(f"the replay keeps the size that the run began with: the last {rows:,} steps")
        return trainer

    def train(self) -> bool:
        """Train to the last step, or until `stop`, SIGINT, SIGTERM or SIGHUP; saves a checkpoint either way.

        Returns:
            True if it finished.

        Raises:
            ValueError: another process trains in the folder, or has since this one read it.
            EnvFailed: an environment raised something, or gave what cannot be learned from; a checkpoint was saved.
            FloatingPointError: a loss or a weight is not finite.
            OSError: a file cannot be written.
        """
        self._clock = (time.perf_counter(), self.step)
        error: BaseException | None = None
        try:
            with locked(self.run), self._stoppable():
                try:
                    self._check_checkpoint()
                    if self._changed:  # only now that the folder is this process's
                        self._write_config()
                    self._callbacks.start(self)
                    self._loop()
                except EnvError as failure:
                    raise self._env_failed(failure) from failure
                finally:
                    self._collector.close()
        except OSError as failure:
            error = OSError(f"{failure}; stopped at step {self.step}: {self._way_on()}")
            raise error from failure
        except BaseException as failure:
            error = failure
            raise
        finally:
            self._callbacks.end(self, error)
        return self.step >= self.config.steps

    def _check_checkpoint(self) -> None:
        """Raise ValueError where somebody else has trained the run since it was read."""
        there = checkpoint.list_checkpoints(self.run)
        if there and there[-1].name != self._checkpoint:
            step = int(there[-1].name.removeprefix("step-"))
            raise ValueError(
                f"{self.run}: another process has trained it to step {step:,} since this one read it at step"
                f" {self.step:,}; {hints.resume(self.run)} goes on from there"
            )

    def stop(self) -> None:
        """End the run after the present step, with a checkpoint."""
        self._stop = True

    def save(self, *, broken: bool = False) -> Path:
        """Write a checkpoint of this instant. Raises FloatingPointError if a loss or a weight is not finite.

        With `broken` environments it goes on with new episodes.
        """
        began = time.perf_counter()
        self._refuse_infinite(self._updater.means())
        learner = self.learner.state_dict()
        for network in ("world_model", "agent"):
            for name, value in learner[network].items():
                if not torch.isfinite(value).all():
                    raise FloatingPointError(
                        f"{network}.{name} holds values that are not finite at step {self.step}: {self._way_on()}"
                    )
        path = checkpoint.save(
            self.run,
            self.step,
            {
                "learner": learner,
                "collector": self._collector.state_dict(broken=broken),
                "updater": self._updater.state_dict(),
                "recent": list(self.recent),
                "torch_random": torch.get_rng_state(),
                "cuda_random": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
            self.replay,
            replace=broken,
        )
        self._checkpoint = path.name
        self._saved = (time.perf_counter(), time.perf_counter() - began)
        self._callbacks.tell("checkpoint", self, path)
        return path

    def _loop(self) -> None:
        config = self.config
        while self.step < config.steps and not self._stop:
            randomly = self.step < config.train.start_step
            episodes = self._collector.collect(self.replay, randomly=randomly)
            self.step += config.train.num_envs
            for episode in episodes:
                self.recent.append(episode["return"])
                self._callbacks.tell("episode", self, episode)
            if self.step >= config.train.start_step:
                for _ in range(self._due(config.train.train_every)):
                    self._updater.update(self.step)
                    self._callbacks.tell("update", self)
            self._callbacks.tell("step", self)
            if self._due(config.log.log_every):
                self._log()
            if self._updater.count and self._due(config.log.image_every):
                self._callbacks.tell("pictures", self, self.pictures())
            due = self._due(config.log.checkpoint_every) or self._late()
            if due and self.step < config.steps:
                self.save()
        self.save()
        if self._updater.count and self.step >= config.steps and not self._due(config.log.image_every):
            self._callbacks.tell("pictures", self, self.pictures())

    def _late(self) -> bool:
        """Whether the clock asks for a checkpoint."""
        ended, took = self._saved
        minutes = self.config.log.checkpoint_minutes
        return bool(minutes) and time.perf_counter() - ended > max(60 * minutes, took / SHARE)

    def _due(self, every: int) -> int:
        """How many multiples of `every` the last step of the environments has reached."""
        return self.step // every - (self.step - self.config.train.num_envs) // every

    def _log(self) -> None:
        values = self._updater.means()  # the only wait for the device
        self._refuse_infinite(values)
        self._updater.clear()
        began, at = self._clock
        now = time.perf_counter()
        values["steps_per_second"] = (self.step - at) / (now - began)
        values["replay_fill"] = len(self.replay) / self.replay.capacity
        if self._updater.last is not None:
            values |= self.learner.kl_by_mode(self._updater.last)
            values |= self.learner.on_new_rows(self._newest())
        self._clock = (now, self.step)
        self._callbacks.tell("log", self, values)

    def _newest(self) -> Batch:
        """The rows since the last line of the log, as sequences that do not overlap, but no more than an update has."""
        train, rows = self.config.train, self.replay.rows_per_env
        each = max(1, min(self.config.log.log_every, train.batch_size * train.batch_length) // train.num_envs)
        length = min(train.batch_length, each, int(self.replay.totals.min()))
        ends = self.replay.totals[:, None] - length * np.arange(max(1, each // length))
        slots = rows * np.arange(train.num_envs)[:, None] + (ends - length) % rows
        newest = self.replay.indices_at(slots[ends >= length])
        return self.learner.to_batch(self.replay.gather(newest, length))

    def pictures(self) -> dict[str, np.ndarray]:
        """A dream of sequences of the replay: the video `dream` and moments of it, `reconstruction`."""
        train = self.config.train
        steps = min(train.context + DREAM_STEPS, train.batch_length)
        batch = self.learner.to_batch(self.replay.sample(DREAM_ROWS, steps, sampler=Uniform()))
        shown = dream(self.learner.world_model, batch.obs, batch.action, batch.is_first, train.context)
        video = dream_video(self.interface, batch.obs, *shown, train.context)
        return {"dream": video, "reconstruction": dream_strip(video)}

    def _load(self, state: dict[str, Any]) -> None:
        self.learner.load_state_dict(state["learner"])
        self._updater.load_state_dict(state["updater"])
        self.step = state["step"]
        self.recent.extend(state["recent"])
        exact = self._collector.load_state_dict(state["collector"], self.config.seed + self.step)
        if not exact and self.step < self.config.steps:
            self.notes.append(
                f"{self.config.game} cannot give its state, so the run goes on with new episodes; those that were"
                " broken off count as truncated"
            )
        torch.set_rng_state(state["torch_random"].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda_random"]])

    def _check_interface(self) -> None:
        """Refuse another environment than the one that the run has learned from."""
        path = self.run / "interface.json"
        if path.exists() and (before := Interface.load(path)) != self.interface:
            for name in ("observation", "action", "meanings"):
                was, now = getattr(before, name), getattr(self.interface, name)
                if was != now:
                    raise ValueError(f"{self.run}: the run learned with {name} {was}; {self.config.game} now has {now}")

    def _env_failed(self, error: EnvError) -> EnvFailed:
        self.save(broken=True)
        return EnvFailed(f"environment {error.env_id} failed after step {self.step}: {error.reason}; {self._way_on()}")

    def _refuse_infinite(self, means: dict[str, float]) -> None:
        """Raise FloatingPointError if a loss is not finite; it names the parts of the first such loss that are not."""
        if parts := not_finite(means):
            raise FloatingPointError(f"{parts} not finite before step {self.step}: {self._way_on()}")

    def _way_on(self) -> str:
        """What a person can do after the run has stopped."""
        found = checkpoint.list_checkpoints(self.run)
        where = f"from step {int(found[-1].name.removeprefix('step-'))}" if found else "from the beginning"
        return f"{hints.resume(self.run)} goes on {where}"

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Let the first SIGINT, SIGTERM or SIGHUP end the loop after the present step; a second SIGINT ends it at once.

        Only on the main thread, as others get no signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(signum: int, frame: Any) -> None:  # noqa: ARG001
            self._stop, self.signal = True, signum
            signal.signal(signal.SIGINT, signal.default_int_handler)

        signals = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup does
            signals.append(signal.SIGHUP)
        before = {s: signal.signal(s, stop) for s in signals}
        try:
            yield
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)
