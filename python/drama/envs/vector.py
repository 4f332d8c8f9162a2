"""Vectors of environments, stepped in this process or by worker processes that share memory with it."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn

import cloudpickle
import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from drama._native import VectorBoard, cores
from drama.envs.arguments import (
    EnvFn,
    NotMade,
    checked_ids,
    checked_mode,
    checked_seeds,
    choice,
    count,
    env_functions,
    flag,
    masked,
    seconds,
)
from drama.envs.batches import Batches
from drama.envs.group import EnvError, EnvGroup, Payload, describe, failing, make_one, settled
from drama.envs.layout import Description
from drama.envs.measure import probe, workers_pay
from drama.envs.processes import POLL_SECONDS, Worker, WorkerDied, encode, encode_make, unreadable

Flags = NDArray[np.bool_]
# Longest that closing waits for a worker before it is killed.
GRACE_SECONDS = 10.0
StepResult = tuple[Any, NDArray[np.float64], Flags, Flags, dict[str, Any]]


class _Engine:
    """What has to be put away at the end."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.board: VectorBoard | None = None
        self.workers: list[Worker] = []
        self.group: EnvGroup | None = None

    def close(self, seconds: float | None) -> None:
        """Close everything, killing workers that take longer than `seconds`; then raise the first error, if an
        environment could not be closed. Nothing in a fork of the process."""
        group, workers, board = self.group, self.workers, self.board
        self.group, self.workers, self.board = None, [], None
        if os.getpid() != self.pid:
            for worker in workers:
                worker.disown()
            return
        errors = []
        deadline = None if seconds is None else time.monotonic() + seconds
        ends: list[Callable[[], None]] = [] if group is None else [group.close]
        ends += [functools.partial(worker.end, deadline) for worker in workers]
        try:
            if seconds != 0:
                for worker in workers:
                    worker.dismiss(deadline)
            for end in ends:
                try:
                    end()
                except EnvError as error:
                    errors.append(error)
        except BaseException:  # Ctrl-C: nobody will ask a second time
            for worker in workers:
                worker.kill()
            raise
        finally:
            if board is not None:
                board.close()
        if errors:
            raise errors[0]

    def drop(self, seconds: float) -> None:
        """As `close`, where nobody is left to be told of an environment that could not be closed."""
        with contextlib.suppress(EnvError):
            self.close(seconds)


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name: got {name!r}, expected that of a method or attribute")


def _keep(kept: dict[int, Payload], index: int, payload: Payload) -> None:
    """Take what an environment of this process said, as a worker's mail would bring it."""
    kept[index] = settled(payload)


class VectorEnv(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Any Gymnasium environments as one, also called `drama.envs.make_vector`.

    A `gymnasium.vector.VectorEnv` that gives what `gymnasium.vector.SyncVectorEnv` gives, for the same seeds and
    actions. Actions are cast to the dtype of the action space first.

    `send` and `recv` step some environments while others are still busy: `recv` returns the results of the first
    `batch_size` that are ready, as arrays of that length, with their numbers in `info["env_id"]`; the next `send`
    goes to these.

    After an `EnvError` or Ctrl-C the vector goes on with `reset`; after a `WorkerDied` or `TimeoutError` it can only be
    closed.

    Args:
        env_fns: functions that each make one environment; all must have the same spaces. Or one function or the id of
            a registered environment, such as "CartPole-v1", for `num_envs` of the same; `"package.module:id"` imports
            the module first. Environments in worker processes are made there, so their functions must be picklable by
            cloudpickle.
        num_envs: number of environments, where `env_fns` says what to make of each.
        num_workers: number of processes that step environments, this one included; 0 or 1 is this one alone. None
            is one for each core. "auto" makes one more environment, times some steps of it and how fast workers
            answer, and takes workers where that is faster; the results do not depend on it.
        autoreset_mode: as for `gymnasium.vector.SyncVectorEnv`; also by name, as "NextStep" or "next_step".
        batch_size: number of environments that `recv` waits for, by default all.
        copy: whether observations are copies. Without, they are the memory that the next step writes to.
        on_worker_death: "raise" raises WorkerDied when a worker process ends. "restart" makes another, with new
            environments that are reset, unseeded. For an environment that was stepping, the step's result is reward
            0, truncated, the new first observation (as `final_obs` too in SAME_STEP), and "worker_restarted" in the
            info; one that was idle gives that at its next step. In NEXT_STEP the step after resets once more.
        timeout: seconds that an answer of the environments may take before TimeoutError is raised. They are made
            without a limit.
        kwargs: given to each environment, as `gymnasium.make_vec` does: those of `gymnasium.make` for an id, such as
            `render_mode="rgb_array"` or `max_episode_steps=100`, otherwise those of the one function.

    With `timeout` or "restart", all environments live in worker processes, `num_workers` of them; without, the first
    share is stepped by this process, as it has nothing else to do.

    Raises:
        ValueError, TypeError: for arguments that make no sense, and for environments with different spaces.
        EnvError: if an environment cannot be made.
    """

    def __init__(
        self,
        env_fns: str | EnvFn | Sequence[EnvFn],
        num_envs: int | None = None,
        *,
        num_workers: int | Literal["auto"] | None = "auto",
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        batch_size: int | None = None,
        copy: bool = True,
        on_worker_death: Literal["raise", "restart"] = "raise",
        timeout: float | None = None,
        **kwargs: Any,
    ) -> None:
        self._engine = _Engine()  # first, for `close` after an error
        self._finalizer = weakref.finalize(self, self._engine.drop, 1.0)
        self._env_fns = env_functions(env_fns, num_envs, kwargs)
        self.num_envs = len(self._env_fns)
        self.autoreset_mode = checked_mode(autoreset_mode)
        self.batch_size = count("batch_size", self.num_envs if batch_size is None else batch_size, 1, self.num_envs)
        self._restart = choice("on_worker_death", on_worker_death, ("raise", "restart")) == "restart"
        self._copy, self._timeout = flag("copy", copy), seconds("timeout", timeout)
        # An environment in this process can neither be cut off nor be allowed to crash.
        self._isolated = self._restart or self._timeout is not None
        try:
            self._start(num_workers)
        except BaseException as error:
            self._engine.drop(0.0)
            if isinstance(error, NotMade):
                raise ValueError(str(error)) from None
            raise

    def _start(self, num_workers: int | Literal["auto"] | None) -> None:
        workers = self._number_of_workers(num_workers)
        if workers == 0 or self._isolated or not isinstance(num_workers, str):
            return self._build(workers)
        with failing(0):
            step = probe(functools.partial(make_one, 0, self._env_fns[0]))
        try:
            self._build(workers)
        except (RuntimeError, ValueError, OSError):
            # What a worker cannot do, this process may: it knows more. If not, it says what is wrong.
            self._engine.drop(0.0)
            return self._build(0)
        if step is not None and not workers_pay(
            self._board, self._engine.workers, max(self._shares), self.num_envs, step
        ):
            self._engine.close(GRACE_SECONDS)
            self._build(0)
        return None

    def _number_of_workers(self, num_workers: int | Literal["auto"] | None) -> int:
        """Processes that step environments, this one included unless isolated; 0 for this one alone."""
        if num_workers is None or (isinstance(num_workers, str) and num_workers == "auto"):
            number = min(cores(), self.num_envs) if self._isolated or os.name == "posix" else 0
        else:
            number = min(count("num_workers", num_workers, 0), self.num_envs)
        if self._isolated:
            if number == 0:
                raise ValueError("num_workers: got 0, but timeout and on_worker_death='restart' need worker processes")
            return number
        return number if number > 1 else 0

    def _build(self, workers: int) -> None:
        """Start the workers, make this process's own environments meanwhile, and lay out the memory."""
        self.num_workers = workers
        processes = max(workers, 1)
        self._shares = [self.num_envs * (w + 1) // processes - self.num_envs * w // processes for w in range(processes)]
        self._own = None if self._isolated else 0
        self._crowded = processes + self._isolated > cores()
        self._board = board = VectorBoard(self._shares, shared=workers > 0, crowded=self._crowded)
        engine = self._engine
        engine.board = board
        # Payloads that did not come by mail.
        self._kept: dict[int, Payload] = {}
        self._lost: set[int] = set()
        self._ids: list[int] | None = None
        self._started = self._sent = False
        self._broken: str | None = None
        for number in range(workers):
            if number != self._own:
                engine.workers.append(self._spawn(number))
        told: list[Description] = []
        self._own_objects: dict[int, list[Any]] = {}
        if self._own is not None:
            engine.group = EnvGroup(
                board,
                worker=0,
                first=0,
                keep=functools.partial(_keep, self._kept),
                action_objects=self._own_objects.pop,
            )
            told.append(engine.group.make(self._env_fns[: self._shares[0]]))
        told += [worker.receive() for worker in engine.workers]
        self._describe(told[0])
        # The workers answer to either board, but mail goes through the last alone.
        self._board = engine.board = board.with_regions(self._layout.rows())
        for worker in engine.workers:
            worker.board = self._board
            worker.order(self._lay_out)
        if engine.group is not None:
            engine.group.lay_out(self._layout, self.autoreset_mode.value, self.num_envs, self._board)
        for worker in engine.workers:
            worker.receive()
        self._batches = Batches(self._board, self._layout, self.num_envs, self._copy)

    def _describe(self, told: Description) -> None:
        self.metadata = {**told.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = told.render_mode
        self._layout = told.layout
        self.single_observation_space = told.layout.observation_space
        self.single_action_space = told.layout.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._lay_out = encode("lay_out", told.layout, self.autoreset_mode.value, self.num_envs)

    def _spawn(self, number: int) -> Worker:
        """Start a worker, which makes its environments; what `receive` gives describes the first."""
        first = sum(self._shares[:number])
        order = encode_make(first, self._env_fns[first : first + self._shares[number]])
        worker = Worker(self._board, number, self._shares, self._crowded)
        try:
            worker.order(order)
        except BaseException:
            worker.kill()
            raise
        return worker

    # Resetting and stepping

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset all environments, or those where the boolean array `options["reset_mask"]` is true.

        Args:
            seed: for environment i, `seed + i` or `seed[i]`.
            options: handed to each environment, without `reset_mask`.

        Results that have not been received are dropped for the environments that are reset, and stay for the others;
        of the observations returned, those of the others mean nothing then. The next `send` goes by default to the
        environments that were reset, and to those that it would have gone to.
        """
        self._check_usable()
        if options is not None and not isinstance(options, Mapping):
            raise TypeError(f"options: got {options!r}, expected a dict or None")
        seeds = checked_seeds(seed, self.num_envs)
        ids = list(range(self.num_envs))
        if options is not None and "reset_mask" in options:
            options = dict(options)
            ids = masked(options.pop("reset_mask"), self.num_envs)
            if not self._started and len(ids) < self.num_envs:
                raise RuntimeError("reset: all environments must have been reset before some are")

        def part(share: range) -> tuple[dict[int, int | None], dict[str, Any] | None]:
            return {index: seeds[index] for index in ids if index in share}, options

        payloads: dict[int, Payload] = {}
        for result in self._everywhere("reset", part, again=ids):
            payloads.update(result)
        self._lost.difference_update(ids)
        told = [(index, payloads[index]) for index in ids if payloads[index] is not None]
        infos = self._batches.take_in(ids, told, None, self)
        observations = self._batches.observe(None)
        self._started, self._ids = True, sorted({*(self._ids or ()), *ids}) if self._sent else None
        return observations, infos

    def step(self, actions: Any) -> StepResult:
        """Step all environments and wait for them."""
        self._check_usable()
        if self._sent:
            raise RuntimeError("step: actions have been sent whose results must be received with recv first")
        self._post(actions, None)
        self._ids = None
        self._await(self.num_envs)
        return self._collect(None)

    def send(self, actions: Any, env_ids: Sequence[int] | NDArray[np.integer[Any]] | None = None) -> None:
        """Hand `actions`, one for each of `env_ids`, to these environments and return at once.

        By default they go to the environments that the last `recv` returned, or to all after `reset` or `step`.
        """
        self._check_usable()
        ids = self._ids if env_ids is None else checked_ids(env_ids, self.num_envs)
        if ids == []:
            raise RuntimeError("send: nothing has been received since the last send, so env_ids must be given")
        busy = self._busy()
        if wrong := sorted(busy.intersection(range(self.num_envs) if ids is None else ids)):
            raise RuntimeError(f"send: results of the environments {wrong} have not been received")
        self._post(actions, ids)
        self._sent, self._ids = True, []
        self._started = True

    def recv(self) -> StepResult:
        """Wait until `batch_size` environments are ready, and return their results in the order of their numbers.

        The environments of this process are stepped here. Raises RuntimeError if fewer environments have been sent.
        """
        self._check_usable()
        self._check_started("recv")
        busy = len(self._busy())
        if busy < self.batch_size:
            raise RuntimeError(f"recv: {busy} environments have been sent actions, expected {self.batch_size}")
        self._await(self.batch_size)
        ids = sorted(self._board.ready()[: self.batch_size])
        self._sent = busy > self.batch_size
        result = self._collect(ids)
        result[4]["env_id"] = np.array(ids)
        result[4].pop("_env_id", None)  # of an environment's own
        self._ids = ids
        return result

    def _post(self, actions: Any, ids: list[int] | None) -> None:
        self._check_started("step")
        if self.autoreset_mode == AutoresetMode.DISABLED:
            ended = np.flatnonzero(self._board.ended()).tolist()
            if wrong := ended if ids is None else sorted(set(ended).intersection(ids)):
                raise RuntimeError(f"step: the episodes of the environments {wrong} have ended; reset them first")
        for index, objects in self._batches.write_actions(actions, ids).items():
            self._write_objects(index, objects)
        # Until all has gone well: whatever is cut short from here on, at any instant, has its results forgotten.
        self._started = False
        if not self._lost:
            return self._board.post(self._own, ids)
        # They were restarted while nothing was asked of them, so what their action was for is gone.
        posted = range(self.num_envs) if ids is None else ids
        for index in (lost := self._lost.intersection(posted)):
            self._cut_off(index, {})
        self._lost -= lost
        return self._board.post(self._own, [index for index in posted if index not in lost])

    def _write_objects(self, index: int, objects: list[Any]) -> None:
        if self._own is not None and index < self._shares[0]:
            self._own_objects[index] = objects
        else:
            self._board.write_mail(index, cloudpickle.dumps(objects))

    def _await(self, wanted: int, own: bool = True) -> None:
        """Step this process's environments, unless not `own`, and wait until `wanted` are done."""
        self._started = False
        if own and self._engine.group is not None:
            self._engine.group.run(wanted)
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            left = POLL_SECONDS if deadline is None else min(POLL_SECONDS, max(deadline - time.monotonic(), 0.0))
            if self._board.wait(wanted, left):
                return
            try:
                for worker in self._engine.workers:
                    if worker.is_dead():
                        raise worker.death()
            except WorkerDied as death:
                self._bury(death)
            if deadline is not None and time.monotonic() >= deadline:
                raise self._late(self._board.pending())

    def _collect(self, ids: list[int] | None) -> StepResult:
        rewards, terminated, truncated, extras = self._board.take(ids)
        payloads = [] if not extras else [(index, self._payload(index)) for index in extras]
        for index, payload in payloads:
            if isinstance(payload, str | Exception):
                if isinstance(payload, str):
                    raise EnvError(index, payload)
                raise EnvError(index, describe(payload)) from payload
        infos = self._batches.take_in(range(self.num_envs) if ids is None else ids, payloads, ids, self)
        observations = self._batches.observe(ids)
        self._started = True
        return observations, rewards, terminated, truncated, infos

    def _payload(self, index: int) -> Payload:
        """What an environment said, or the exception that it raised, or that its unpickling here raises."""
        if index in self._kept:
            return self._kept.pop(index)
        mail = self._board.read_mail(index)
        try:
            return cloudpickle.loads(mail)
        except Exception as error:
            return unreadable(error)

    # Calls to every environment

    def call(self, name: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Call the method `name` of each environment, or get the attribute, and return the results."""
        self._check_idle("call")
        _check_name(name)
        return tuple(value for values in self._everywhere("call", lambda _: (name, args, kwargs)) for value in values)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """The attribute `name` of each environment."""
        return self.call(name)

    def set_attr(self, name: str, values: Any) -> None:
        """Set the attribute `name` of each environment: one value for all, or a list or tuple of one for each."""
        self._check_idle("set_attr")
        _check_name(name)
        values = list(values) if isinstance(values, list | tuple) else [values] * self.num_envs
        if len(values) != self.num_envs:
            raise ValueError(f"values: got {len(values)}, expected {self.num_envs}, one for each environment")
        self._everywhere("set_attr", lambda share: (name, values[share.start : share.stop]))

    def render(self) -> tuple[Any, ...]:
        """What `render` of each environment gives."""
        return self.call("render")

    def get_state(self) -> dict[str, Any]:
        """Everything that decides the future, for environments that have `get_state` and `set_state`; it can be
        pickled."""
        self._check_idle("get_state")
        self._check_started("get_state")
        states = self.call("get_state")
        return {"envs": states, "ended": self._board.ended(), "observations": self._batches.state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `get_state` gave, also in another process and with other workers; `reset` must have come
        before."""
        self._check_idle("set_state")
        self._check_started("set_state")
        parts = ("envs", "ended", "observations")
        if not isinstance(state, Mapping) or not all(part in state for part in parts):
            raise ValueError(f"state: got {type(state).__name__}, expected what get_state gave: {', '.join(parts)}")
        states = state["envs"]
        if len(states) != self.num_envs:
            raise ValueError(f"state: got {len(states)} environments, expected {self.num_envs}")
        self._everywhere("set_state", lambda share: (states[share.start : share.stop],))
        for index, ended in enumerate(state["ended"]):
            self._board.set_ended(index, bool(ended))
        self._batches.set_state(state["observations"])
        self._started = True

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random number generator of each environment."""
        return self.get_attr("np_random")

    @property
    def np_random_seed(self) -> tuple[int | None, ...]:  # type: ignore[override]
        """The seed of each environment."""
        return self.get_attr("np_random_seed")

    def __reduce__(self) -> NoReturn:
        what = "a vector cannot be pickled or copied, as its environments are in processes and memory of their own"
        raise TypeError(f"{what}: make another and give it the state, other.set_state(this.get_state())")

    def _everywhere(
        self, method: str, part: Callable[[range], tuple[Any, ...]], again: list[int] | None = None
    ) -> list[Any]:
        """Call a method of each worker's `EnvGroup` with the arguments that `part` gives for its environments. With
        `again`, environments whose results are dropped first, a worker that died is asked a second time if it is to be
        restarted."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        errors: list[Exception] = []
        results = []
        orders = {worker.number: encode(method, *part(worker.env_ids)) for worker in self._engine.workers}
        # Until all have answered: it may have come to some environments and not to others.
        started, self._started = self._started, False
        for worker in self._engine.workers:
            try:
                worker.settle(deadline)
            except TimeoutError:
                raise self._late(worker.env_ids) from None
        if again is not None:
            self._drain(again)
            deadline = None if self._timeout is None else time.monotonic() + self._timeout
        asked = list(self._engine.workers)
        for worker in asked:
            worker.order(orders[worker.number])
        if self._engine.group is not None:
            try:
                results.append(getattr(self._engine.group, method)(*part(range(self._shares[0]))))
            except EnvError as error:
                errors.append(error)
        for worker in asked:
            try:
                results.append(worker.receive(deadline))
            except EnvError as error:
                errors.append(error)
            except TimeoutError:
                raise self._late(worker.env_ids) from None
            except WorkerDied as error:
                successor = self._bury(error)
                if again is not None:
                    successor.order(orders[worker.number])
                    results.append(successor.receive(deadline))
                else:
                    errors.append(error)
        # A new start is one once its observations have been taken, too.
        self._started = started and method not in ("reset", "set_state")
        if errors:
            raise errors[0]
        return results

    # Faults

    def _late(self, env_ids: Sequence[int]) -> TimeoutError:
        self._broken = f"the environments {list(env_ids)} did not answer within {self._timeout} s"
        return TimeoutError(f"timeout: {self._broken}")

    def _bury(self, death: WorkerDied) -> Worker:
        """Start another worker in the place of one that died, or raise. Its environments are reset, and those that
        were stepping are cut off there."""
        if not self._restart:
            self._broken = str(death)
            raise death
        old = self._worker(death.env_ids[0])
        busy = self._busy()
        self._board.take(list(old.env_ids))
        try:
            worker = self._spawn(old.number)
            self._engine.workers[self._engine.workers.index(old)] = worker
            worker.receive()
            deadline = None if self._timeout is None else time.monotonic() + self._timeout  # making takes what it takes
            worker.order(self._lay_out)
            worker.receive(deadline)
            worker.order(encode("reset", dict.fromkeys(worker.env_ids), None))
            payloads = worker.receive(deadline)
        except TimeoutError:
            raise self._late(list(old.env_ids)) from None
        except (WorkerDied, EnvError, ValueError) as error:
            self._broken = f"{death}, and could not be restarted: {error}"
            raise WorkerDied(self._broken, death.env_ids) from error
        except BaseException:
            self._worker(death.env_ids[0]).kill()  # one that is half made counts as dead
            raise
        for index in worker.env_ids:
            self._kept.pop(index, None)
            if index in busy:
                self._cut_off(index, payloads[index])
            else:
                self._lost.add(index)
        return worker

    def _worker(self, index: int) -> Worker:
        return next(worker for worker in self._engine.workers if index in worker.env_ids)

    def _cut_off(self, index: int, payload: Payload) -> None:
        """Give the results of an environment whose worker died: its new first observation, truncated."""
        info, _, objects = payload or (None, None, None)
        last: tuple[Any, dict[str, Any]] | None = None
        if self.autoreset_mode == AutoresetMode.SAME_STEP:
            last = (self._batches.observation(index, objects or ()), {})
        else:
            self._board.set_ended(index, True)
        self._kept[index] = ({**(info or {}), "worker_restarted": True}, last, objects)
        self._board.cut_off(index)

    def _check_usable(self) -> None:
        if self.closed:
            raise RuntimeError("the vector environment is closed")
        if os.getpid() != self._engine.pid:
            raise RuntimeError("the vector environment belongs to the process that made it, not to a fork of it")
        if self._broken is not None:
            raise RuntimeError(f"the vector environment can only be closed: {self._broken}")

    def _check_started(self, name: str) -> None:
        if not self._started:
            raise RuntimeError(f"{name}: reset must come first, also after what was cut short or failed")

    def _check_idle(self, name: str) -> None:
        self._check_usable()
        if self._sent:
            raise RuntimeError(f"{name}: actions have been sent whose results must be received with recv first")

    def _busy(self) -> set[int]:
        """The environments whose results have not been taken; one that finishes between the two looks counts once."""
        return set(self._board.pending()) | set(self._board.ready())

    def _drain(self, ids: list[int]) -> None:
        """Wait for what of the environments `ids` was cut short by an exception or never received, and forget it."""
        chosen = set(ids)
        if self._own is not None:
            self._board.take([index for index in self._board.pending() if index < self._shares[0] and index in chosen])
        while True:
            done = len(self._board.ready())
            if not chosen.intersection(self._board.pending()):
                break
            self._await(done + 1, own=False)  # one of them was not among those counted before
        self._board.take([index for index in self._board.ready() if index in chosen])
        for index in chosen.intersection(self._kept):
            del self._kept[index]
        self._sent = bool(self._busy())

    def close_extras(self, timeout: float | None = GRACE_SECONDS, terminate: bool = False) -> None:
        """Close the environments and end the workers; those that take longer than `timeout` seconds are killed."""
        timeout = seconds("timeout", timeout, zero=True)
        if self._finalizer.detach() is not None:
            self.closed = True  # also where an environment cannot be closed
            self._engine.close(0.0 if terminate or self._broken is not None else timeout)
