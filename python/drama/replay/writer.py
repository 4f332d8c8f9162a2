"""Writes what environments return into a replay buffer; use it through `drama.replay`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from drama.replay.buffer import ReplayBuffer
from drama.replay.casting import as_array, as_column, as_indices

Ids = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Columns = dict[str, npt.NDArray[Any]]

_MODES = {"nextstep": "NextStep", "samestep": "SameStep", "disabled": "Disabled"}


class StepWriter:
    """Turns what `reset` and `step` of an environment, or of a vector of them, return into rows of a buffer.

    A step's observation belongs to the row of the next step, the last one of an episode to no row at all, and what a
    vector returns for the step that resets is no step of an episode: all of this depends on the vector's autoreset
    mode, and the writer knows it. Every row then belongs to its episode, and `sample_transitions` finds what followed
    each, also after the last row of an episode and where a reset broke one off.

    The buffer needs the fields `obs`, `action` and `reward`. Where observations or actions are dictionaries, it needs a
    field for each of their keys in the place of `obs` or `action`, under the key's own name: with observations
    `{"camera": ..., "speed": ...}`, fields `camera` and `speed`. Keys that observations and actions share have to be
    renamed first, and what is nested deeper to be flattened, as by Gymnasium's `FlattenObservation`. With such fields
    `sample_transitions` is told `next_fields=("camera", "speed")`, and gives `next_camera` and `next_speed`.

    Values are cast as in `ReplayBuffer.add`.

    Args:
        buffer: where the rows go.
        envs: a vector of environments, Gymnasium's or one like it, with as many as the buffer has streams; or a single
            environment, with values that have no axis for environments.
        autoreset_mode: "NextStep", "SameStep" or "Disabled"; by default what `envs.metadata` says. A single
            environment has "Disabled": you reset it.

    Raises:
        ValueError: the numbers of environments differ, or there is no such mode.
        TypeError: `buffer` is no ReplayBuffer, or `envs` has no `step`.
    """

    def __init__(self, buffer: ReplayBuffer, envs: Any, autoreset_mode: object = None) -> None:
        if not isinstance(buffer, ReplayBuffer):
            raise TypeError(f"buffer: got {type(buffer).__name__}, expected a ReplayBuffer")
        if not callable(getattr(envs, "step", None)) or isinstance(envs, type):
            raise TypeError(f"envs: got {type(envs).__name__}, expected an environment, or a vector of them")
        num_envs = getattr(envs, "num_envs", None)
        self._single = num_envs is None
        if (1 if self._single else num_envs) != buffer.num_envs:
            got = "a single environment" if self._single else f"{num_envs} environments"
            raise ValueError(f"envs: got {got}, but the buffer has num_envs={buffer.num_envs}")
        if autoreset_mode is None:
            metadata = getattr(envs, "metadata", None) or {}
            autoreset_mode = "Disabled" if self._single else metadata.get("autoreset_mode")
        mode = str(getattr(autoreset_mode, "value", autoreset_mode))
        known = _MODES.get(mode.replace("_", "").lower())
        if known is None:
            raise ValueError(f"autoreset_mode: got {autoreset_mode!r}, expected one of {', '.join(_MODES.values())}")
        self.buffer = buffer
        self.autoreset_mode = known
        self._fields = buffer.fields
        self._obs: Columns = {}
        num = buffer.num_envs
        self._reset = np.zeros(num, bool)  # has been reset since it last had to be by the caller
        self._first = np.ones(num, bool)  # the next row is the first of an episode
        self._skip = np.zeros(num, bool)  # the next step resets
        self._open = np.zeros(num, bool)  # the last row has not ended its episode

    def add_reset(
        self,
        obs: Any,
        infos: Mapping[str, Any] | None = None,  # noqa: ARG002
        mask: npt.ArrayLike | None = None,
    ) -> None:
        """Take what `reset` returned: episodes begin. Those under way are broken off, with a known observation.

        Args:
            obs: observations `[num_envs, ...]`.
            infos: is not needed; here so that `add_reset(*envs.reset())` works.
            mask: bool `[num_envs]`, which environments were reset, as `options["reset_mask"]` has it; by default all.

        Raises:
            ValueError: an array does not fit its field; then nothing is changed.
        """
        num = self.buffer.num_envs
        chosen = np.ones(num, bool) if mask is None else self._flags("mask", mask, num)
        parts = self._parts(obs, num)
        ids = np.flatnonzero(chosen)
        self._break_off(ids)
        self._keep(ids, {name: part[ids] for name, part in parts.items()})
        self._reset[ids] = self._first[ids] = True
        self._skip[ids] = self._open[ids] = False

    def add_step(
        self,
        action: Any,
        obs: Any,
        reward: Any,
        terminated: npt.ArrayLike,
        truncated: npt.ArrayLike,
        infos: Mapping[str, Any] | None = None,
        *,
        envs: npt.ArrayLike | None = None,
        **columns: npt.ArrayLike,
    ) -> None:
        """Take what `step`, or `recv`, returned for `action`.

        Args:
            action: actions `[K, ...]`, those that led to what was returned; a dictionary has a field for each key.
            obs: observations `[K, ...]` after the step.
            reward: rewards `[K]`.
            terminated: bool `[K]`.
            truncated: bool `[K]`.
            infos: infos of the vector. With "SameStep" they hold `final_obs`; `env_id`, where a vector returns some
                environments at a time, says which.
            envs: numbers of these K environments, by default what `infos` say, or all in order.
            columns: arrays `[K, ...]` for further fields of the row, such as the log-probability of the action. Not
                those that the other arguments give, nor `is_first`, which the writer knows.

        Raises:
            ValueError: an array does not fit its field, a field has two values, or `infos` lack a final observation;
                then nothing is added.
            RuntimeError: an environment has to be reset first.
        """
        if infos is not None and not isinstance(infos, Mapping):
            raise TypeError(f"infos: got {type(infos).__name__}, expected the mapping that `step` returned")
        infos = {} if infos is None or self._single else infos
        if envs is None and "env_id" in infos and "_env_id" not in infos:  # an environment's own has a mask
            envs = infos["env_id"]
        ids = self._ids(envs)
        count = len(ids)
        if not self._reset[ids].all():
            env = ids[~self._reset[ids]][0]
            raise RuntimeError(f"environment {env}: add_reset must be given what reset returned, first and, without"
                               " autoreset, after each episode")  # fmt: skip
        parts = self._parts(obs, count)
        ends = self._flags("terminated", terminated, count) | self._flags("truncated", truncated, count)
        given = {"reward": reward, "terminated": terminated, "truncated": truncated}
        for more in (action if isinstance(action, Mapping) else {"action": action}, columns):
            for name, value in more.items():
                if name in given or name in parts or name == "is_first":
                    raise ValueError(f'field "{name}": got two values, as add_step has one already')
                given[name] = value
        row = {name: self._column(name, value, count) for name, value in given.items()}
        live = ~self._skip[ids]
        final = self._final(parts, infos, live & ends)
        self._write(ids, live, row)
        if final is not None:
            known, values = final
            self.buffer.set_final(envs=ids[known], **values)
        self._keep(ids, parts)
        self._first[ids] = ends | ~live
        self._open[ids] = live & ~ends
        if self.autoreset_mode == "NextStep":
            self._skip[ids] = ends
        elif self.autoreset_mode == "Disabled":
            self._reset[ids] = ~ends

    def _write(self, ids: Ids, live: Flags, row: Columns) -> None:
        whole = len(ids) == len(self._first) and bool(live.all()) and bool((np.diff(ids) > 0).all())
        if whole:
            self.buffer.add(**self._obs, **row, is_first=self._first)
        elif live.any():
            at = ids[live]
            before = {name: part[at] for name, part in self._obs.items()}
            row = {name: column[live] for name, column in row.items()}
            self.buffer.add(envs=at, **before, **row, is_first=self._first[at])

    def _final(self, parts: Columns, infos: Mapping[str, Any], ends: Flags) -> tuple[Flags, Columns] | None:
        """Which of the environments have a last observation, and these."""
        restarted = infos.get("worker_restarted")  # the observation before the crash is lost
        known = ends if restarted is None else ends & ~np.asarray(restarted, bool)
        if not known.any():
            return None
        if self.autoreset_mode != "SameStep":
            return known, {name: part[known] for name, part in parts.items()}
        at, final = np.flatnonzero(known), infos.get("final_obs")
        given = infos.get("_final_obs")
        if given is not None and not np.asarray(given, bool)[at].all():
            final = None
        if isinstance(final, Mapping):
            return known, {name: self._column(name, part, len(ends))[at] for name, part in final.items()}
        last = [None if final is None else final[index] for index in at]
        if any(each is None for each in last):
            raise ValueError('infos: got no "final_obs" for an episode that ended, which "SameStep" needs')
        each = [self._parts(obs, 1, (None,)) for obs in last]
        return known, {name: np.concatenate([part[name] for part in each]) for name in each[0]}

    def _break_off(self, ids: Ids) -> None:
        """What was seen last of the episodes under way is what follows their last rows."""
        open_ones = ids[self._open[ids] & (self.buffer.totals[ids] > 0)]
        if len(open_ones):
            self.buffer.set_final(envs=open_ones, **{name: part[open_ones] for name, part in self._obs.items()})

    def _keep(self, ids: Ids, parts: Columns) -> None:
        for name, part in parts.items():
            if name not in self._obs:
                shape, dtype = self._fields[name]
                self._obs[name] = np.zeros((self.buffer.num_envs, *shape), dtype)
            self._obs[name][ids] = part

    def _ids(self, envs: npt.ArrayLike | None) -> Ids:
        if envs is None:
            return np.arange(self.buffer.num_envs)
        ids = as_indices("envs", envs, "K")
        if not ((ids >= 0) & (ids < self.buffer.num_envs)).all() or len(np.unique(ids)) < len(ids):
            last = self.buffer.num_envs - 1
            raise ValueError(f"envs: got {envs!r}, expected different numbers [K] from 0 to {last}")
        return ids

    def _parts(self, obs: Any, count: int, lead: tuple[None] | tuple[()] = ()) -> Columns:
        """Arrays `[count, ...]` of the parts of observations, by field."""
        parts = obs if isinstance(obs, Mapping) else {"obs": obs}
        expected = self._obs.keys() or parts.keys()
        if isinstance(obs, tuple) or parts.keys() != expected:
            got = "a tuple" if isinstance(obs, tuple) else f"the parts {', '.join(map(str, parts))}"
            raise ValueError(f"obs: got {got}, expected {', '.join(expected)}, each an array")
        arrays = {name: as_array(f'field "{name}"', part)[lead] for name, part in parts.items()}
        return {name: self._column(name, array, count) for name, array in arrays.items()}

    def _flags(self, name: str, value: npt.ArrayLike, count: int) -> Flags:
        flags = as_column(name, bool, 0, [count], value)
        if flags.shape != (count,):
            raise ValueError(f"{name}: got shape {list(flags.shape)}, expected [{count}]")
        return flags

    def _column(self, name: str, value: npt.ArrayLike, count: int) -> npt.NDArray[Any]:
        if name not in self._fields:
            raise ValueError(f"the buffer has no field {name!r}, which the environment's steps have")
        shape, dtype = self._fields[name]
        array = as_column(name, dtype, len(shape), [count], value)
        if array.shape != (count, *shape):
            raise ValueError(f'field "{name}": got shape {list(array.shape)}, expected {[count, *shape]}')
        return array
