"""`drama.sweep`: the runs of a plan as trials of Ray Tune, whose own are scheduler, failure handling and restore."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pyarrow.fs
import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.logger import JsonLoggerCallback

from drama.files import locked, write_atomically
from drama.results.report import SWEEP
from drama.sweeps.board import Board, Row, Status, axes_of
from drama.sweeps.plan import Plan, check_resources, check_runs, check_same, make_plan
from drama.sweeps.trial import trainable

TUNE = "ray"
"""The folder of Tune's own state inside the sweep's."""
SECONDS = 5.0
"""In which an address has to answer."""
MEMORY = 128 << 20
"""Bytes of Ray's object store on this machine: runs put next to nothing into it."""


@dataclass(frozen=True)
class Outcome:
    """What has become of one run of a sweep."""

    name: str
    """Its folder in the sweep's, or with an object store its trial's in `ray/`."""
    status: Status
    step: int
    returned: float | None
    """Mean return of its evaluation, else of its last episodes."""
    error: str
    """The traceback of a run that failed."""


@dataclass(frozen=True)
class Sweep:
    """A sweep that has ended: its storage, what became of each run, and whether it was stopped before its end."""

    path: str
    runs: tuple[Outcome, ...]
    stopped: bool

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """The runs that failed by a fault of their own, or died too often."""
        return tuple(run for run in self.runs if run.status == "failed")


def sweep(
    games: str | Sequence[str],
    seeds: int | Sequence[int] = 1,
    *,
    out: str | Path,
    preset: str = "cpu",
    options: Mapping[str, Any] | None = None,
    grid: Mapping[str, Sequence[Any]] | None = None,
    search: Mapping[str, Sequence[Any]] | None = None,
    samples: int = 0,
    cpus: float = 1,
    gpus: float = 0,
    address: str | None = None,
    max_failures: int = 10,
    progress: bool = True,
) -> Sweep:
    """Train many agents on Ray: one trial a run, all games and the grid's combinations with the first seed first.

    The same call on the same folder goes on where it was: finished runs stay, others go on from their last checkpoints,
    failed ones are tried again. It may have more games, seeds, values of the grid or steps than before.

    Args:
        games: environments as `drama.train` takes them, by name; `"all"` is the 26 games of Atari100k.
        seeds: how many, from 0 on, or which.
        out: a folder that all nodes share, or the address of an object store, such as `s3://bucket/sweep`.
        preset: where values come from that nothing else gives.
        options: fields of the config for all runs, as in `{"train.batch_size": 8}`.
        grid: fields with the values to try, as in `{"train.agent_lr": [1e-4, 3e-4]}`: every combination.
        search: fields that Optuna chooses for the highest `return`, as in `{"train.agent_lr": (1e-5, 1e-3, "log")}`:
            the lowest and highest value, whole where both are; for one game and one seed.
        samples: how many choices Optuna makes.
        cpus: logical processors of a run, whose threads they are.
        gpus: of a run; with 0.25 four share one.
        address: of a cluster: `HOST:PORT`, `ray://HOST:PORT`, or `auto` for the one on this machine; None takes the one
            that this process is connected to or RAY_ADDRESS names, else starts one here.
        max_failures: how often in a row the process or node of a run may die without the run getting any further.
        progress: show a table of all runs.

    Returns:
        What became of each run. A run that failed by its own fault has its traceback there; it stops no other.

    Raises:
        ValueError: an argument that cannot be used, an address that does not answer, more resources than a node has, a
            folder of another sweep or one in which a sweep is going on; the message names it.
    """
    plan = make_plan(
        games,
        seeds,
        preset=preset,
        options=options,
        grid=grid,
        search=search,
        samples=samples,
        cpus=cpus,
        gpus=gpus,
    )
    if isinstance(max_failures, bool) or not isinstance(max_failures, int) or max_failures < 0:
        raise ValueError(f"max_failures: {max_failures!r} must be a whole number of at least 0")
    check_runs(plan)
    if plan.search:
        import optuna  # noqa: F401  # of which Ray itself tells only once the folder is there
    where = str(out).removeprefix("file://")
    where = where if "://" in where else str(Path(where).absolute())
    with _cluster(address) as remote:
        check_resources(plan, [node["Resources"] for node in ray.nodes() if node["Alive"]])
        if not remote:
            return _drive(plan, where, max_failures, progress)
        # Inside the cluster, as Tune itself does: the folder and the lock are there. Its lines are shown here.
        drive = ray.remote(num_cpus=0, max_retries=0)(_drive)
        try:
            done: Sweep = ray.get(drive.remote(plan, where, max_failures, progress))
        except ray.exceptions.RayTaskError as error:
            cause = error.as_instanceof_cause()
            raise (ValueError(str(error.cause)) if isinstance(cause, ValueError) else cause) from None
        return done


@contextmanager
def _cluster(address: str | None) -> Iterator[bool]:
    """Be connected to the cluster; gives whether that is by Ray's client."""
    if ray.is_initialized():
        if address is not None:
            raise ValueError(f"address: {address} was given, but this process is connected to a cluster already")
        yield ray.util.client.ray.is_connected()
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    client = address.startswith("ray://")
    if address not in ("local", "auto"):
        _check_answers(address)
    own = {"object_store_memory": MEMORY, "include_dashboard": False} if address == "local" else {}
    try:
        with _less_said("ray._private.authentication.authentication_token_setup"):  # warns of its own default
            ray.init(address=address, log_to_driver=client, logging_level="WARNING", **own)
    except ConnectionError as error:
        raise ValueError(f"address: {address} does not answer ({error})") from error
    try:
        yield client
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise ValueError where no Ray answers at `address`: Ray itself waits for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal() or "://" in host:
        raise ValueError(f"address: {address!r} must be HOST:PORT, ray://HOST:PORT or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), SECONDS).close()
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            with grpc.insecure_channel(f"{host}:{port}") as channel:
                grpc.channel_ready_future(channel).result(SECONDS)
    except (OSError, OverflowError) as error:
        raise ValueError(f"address: nothing answers at {address} ({error})") from error
    except grpc.FutureTimeoutError as error:
        raise ValueError(f"address: what answers at {address} is no Ray cluster") from error


def _drive(plan: Plan, where: str, max_failures: int, progress: bool) -> Sweep:
    """Run the trials, with those of before in the storage `where`."""
    rows = {} if plan.search else {t["run"]: Row(t["env"], t["seed"], axes_of(t, [*plan.grid])) for t in plan.trials()}
    with _claimed(plan, where), _quiet_tune(), Board(rows, shown=progress) as board:
        Watch.board, Watch.max_failures = board, max_failures
        try:
            _tuner(plan, where, max_failures).fit()
        finally:
            Watch.board = None
    runs = tuple(
        Outcome(name, row.status if row.status != "running" else "waiting", row.step, row.returned, row.error)
        for name, row in board.rows.items()
    )
    return Sweep(where, runs, any(run.status == "waiting" for run in runs))


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Keep Tune from showing a table, a traceback for each death, and from writing TensorBoard events of each trial.

    The board counts deaths, the traceback of a failed run is shown at the end, and a run has TensorBoard events. Runs
    stay in the working directory, where modules of one's own may be.
    """
    wanted = {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0"}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        with _less_said("ray.tune.execution.tune_controller"):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _less_said(logger: str) -> Iterator[None]:
    """Nothing below what is critical by that logger."""
    of_ray = logging.getLogger(logger)
    level = of_ray.level
    of_ray.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        of_ray.setLevel(level)


@contextmanager
def _claimed(plan: Plan, where: str) -> Iterator[None]:
    """Make the storage this sweep's, or make sure that it is."""
    if "://" not in where:
        folder = Path(where)
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, "sweeping"):
            file = folder / SWEEP
            if file.exists():
                if check_same(file, file.read_text(), plan):
                    # Tune goes on with the trials that it had; the runs themselves are in their folders.
                    shutil.rmtree(folder / TUNE, ignore_errors=True)
                    write_atomically(file, plan.to_json())
            elif any(not path.name.startswith(".") for path in folder.iterdir()):
                raise ValueError(f"out: {folder} holds files that are of no sweep; take another folder")
            else:
                write_atomically(file, plan.to_json())
            yield
        return
    try:
        storage, path = pyarrow.fs.FileSystem.from_uri(where)
        storage.create_dir(path, recursive=True)
        if storage.get_file_info(f"{path}/{SWEEP}").type == pyarrow.fs.FileType.NotFound:
            with storage.open_output_stream(f"{path}/{SWEEP}") as file:
                file.write(plan.to_json().encode())
        with storage.open_input_stream(f"{path}/{SWEEP}") as file:
            text = file.read().decode()
    except (OSError, pyarrow.ArrowException) as error:
        raise ValueError(f"out: {where} cannot be used: {error}") from error
    if check_same(f"{where}/{SWEEP}", text, plan):
        raise ValueError(
            f"out: the sweep in {where} is smaller; in an object store, where Ray alone knows the runs, none can be"
            " extended: take another folder for what is new"
        )
    yield


def _tuner(plan: Plan, where: str, max_failures: int) -> tune.Tuner:
    """Tune's, restored from the storage where it has been there."""
    trials = plan.trials()
    space: dict[str, Any] = trials[0] | {field: _domain(*values) for field, values in plan.search.items()}
    if not plan.search:
        space = {"trial": tune.grid_search(trials)}
    placed = tune.with_resources(_run, {"CPU": plan.cpus, "GPU": plan.gpus})
    path = _inside(where, TUNE)
    if tune.Tuner.can_restore(path):
        try:
            return tune.Tuner.restore(path, placed, resume_unfinished=True, resume_errored=True, param_space=space)
        except Exception as error:  # unpickling may raise anything; a kill while it was written leaves half a file
            print(f"note: Ray's state in {path} cannot be read ({error}); it begins anew, the runs go on")
    config = tune.TuneConfig(
        num_samples=plan.samples or 1, trial_dirname_creator=_folder_of, trial_name_creator=_folder_of
    )
    if plan.search:
        from ray.tune.search.optuna import OptunaSearch

        config.metric, config.mode = "return", "max"
        config.search_alg = OptunaSearch(metric="return", mode="max", seed=plan.seeds[0])
    return tune.Tuner(
        placed,
        param_space=space,
        tune_config=config,
        run_config=tune.RunConfig(
            name=TUNE,
            storage_path=where,
            failure_config=tune.FailureConfig(max_failures=max_failures),
            checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
            callbacks=[Watch(), JsonLoggerCallback()],
            verbose=0,
        ),
    )


def _inside(where: str, name: str) -> str:
    """The address of `name` inside the storage `where`, whose options (`?…`) stay at the end."""
    path, mark, query = where.partition("?")
    return f"{path.rstrip('/')}/{name}{mark}{query}"


def _run(config: dict[str, Any]) -> None:
    """`trainable` for a trial that has a whole config of a list, or one whose name Optuna's choice does not tell."""
    if "trial" in config:
        return trainable(config["trial"])
    return trainable(config | {"run": f"{config['run']}-{tune.get_context().get_trial_id()}"})


def _domain(low: float, high: float, log: str = "") -> Any:
    """What Tune draws from; whole numbers between whole ones."""
    if isinstance(low, int) and isinstance(high, int):
        return tune.lograndint(low, high + 1) if log else tune.randint(low, high + 1)
    return tune.loguniform(low, high) if log else tune.uniform(low, high)


def _folder_of(trial: Trial) -> str:
    """The name of a trial's folder: its run's."""
    config = trial.config
    return str(config["trial"]["run"] if "trial" in config else f"{config['run']}-{trial.trial_id}")


class Watch(tune.Callback):
    """Hears from Tune what happens, for the table, and tells it which failures not to try again.

    Tune counts a death of a process like an exception of the run. But what a run raises it raises again, so it is not
    tried again, whereas deaths count only as long as the run gets no further. Tune pickles its callbacks, so what this
    one works with is kept outside of it.
    """

    board: Board | None = None
    max_failures = 0

    def on_step_end(self, trials: list[Trial], **_: Any) -> None:
        if self.board is None:
            return
        states: dict[str, Status] = {"RUNNING": "running", "TERMINATED": "finished", "ERROR": "failed"}
        for trial in trials:
            row, last = self._row(trial), trial.last_result or {}
            row.status = states.get(trial.status, "waiting")
            if not row.steps and "step" in last:  # of a sweep before this one
                self.board.told(_folder_of(trial), {name: last[name] for name in last if name != "fault"})
        self.board.tick()

    def on_experiment_end(self, trials: list[Trial], **_: Any) -> None:
        self.on_step_end(trials)

    def on_trial_result(self, trial: Trial, result: dict[str, Any], **_: Any) -> None:
        if self.board is None or "step" not in result:
            return
        row = self._row(trial)
        if result["step"] > row.furthest:
            row.furthest = result["step"]
            trial.max_failures = trial.num_failures + self.max_failures
        if "fault" in result:
            trial.max_failures = 0
        self.board.told(_folder_of(trial), result)

    def on_trial_recover(self, trial: Trial, **_: Any) -> None:
        if self.board is not None:
            self._row(trial).deaths += 1

    def on_trial_error(self, trial: Trial, **_: Any) -> None:
        if self.board is None:
            return
        row = self._row(trial)
        if not row.error:
            row.deaths += 1
            row.error = f"its process or node died {self.max_failures + 1} times in a row without getting any further"
        trial.max_failures = trial.num_failures + self.max_failures  # for when it is tried again

    def _row(self, trial: Trial) -> Row:
        assert self.board is not None
        name, config = _folder_of(trial), trial.config.get("trial", trial.config)
        if name not in self.board.rows:  # of a search
            fields = [field for field in trial.evaluated_params if field in config]
            self.board.rows[name] = Row(config["env"], config["seed"], axes_of(config, fields))
        return self.board.rows[name]
