"""The agent as ONNX: one step of acting and one of dreaming, for programs without PyTorch (extra `onnx`)."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import onnxscript  # noqa: F401  torch writes ONNX with it: its absence is told before anything is traced
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from drama.agent.actor_critic import ActorCritic
from drama.agent.policy import Categorical, Normal, Several
from drama.interface import Choices
from drama.models.latent import sample_from
from drama.models.sequence.base import State
from drama.models.world_model import WorldModel
from drama.runtime.device import one_thread
from drama.training.learner import Learner

ACTING, DREAMING = "acting.onnx", "dreaming.onnx"
Tensors = dict[str, Tensor]
Arrays = dict[str, NDArray[Any]]
MEMORY = "memory_"
"""How the names of the sequence model's state begin."""


class Step(nn.Module):
    """A pure function of one step, from tensors by name to tensors by name; every first axis is the batch.

    What is random in it is decided by the inputs `noise`: numbers from [0, 1), one for each latent variable.
    """

    def __init__(self, model: WorldModel) -> None:
        super().__init__()
        self.model = model

    def inputs(self, batch: int) -> Tensors:
        """Inputs as before the first step of an episode; the observations are blank."""
        model, action = self.model, self.model.interface.action
        dtype = torch.int64 if isinstance(action, Choices) else torch.float32
        state = dict(_leaves(model.initial_state(batch), MEMORY + "state"))
        return {"action": torch.zeros(batch, *action.shape, dtype=dtype), "noise": self.noise(batch)} | state

    def noise(self, batch: int) -> Tensor:
        """New random numbers for `noise`."""
        return torch.rand(batch, self.model.config.latent.variables)

    def _sample(self, log_probs: Tensor, noise: Tensor) -> Tensor:
        return sample_from(log_probs, noise).flatten(-2)

    def _advance(self, given: Tensors, latent: Tensor, first: Tensor) -> tuple[Tensor, Tensors]:
        """The output of the sequence model after `latent` and the given action, and its next state by name."""
        like = self.model.initial_state(0)
        old = _rebuilt(like, iter([given[name] for name, _ in _leaves(like, MEMORY + "state")]))
        d, state = self.model.step(latent, given["action"], first, old)
        return d.float(), dict(_leaves(state, MEMORY + "state"))


class Acting(Step):
    """From the last action, an observation and the memory to the policy, and the memory that the next step wants.

    `first` tells where the observation is the first of an episode: memory and action do not count there.
    """

    def __init__(self, model: WorldModel, agent: ActorCritic) -> None:
        super().__init__(model)
        self.agent = agent

    def inputs(self, batch: int) -> Tensors:
        seen = {
            name: torch.zeros(batch, *part.shape, dtype=torch.from_numpy(np.empty(0, part.dtype)).dtype)
            for name, part in self.model.interface.observation.items()
        }
        opens = {"first": torch.ones(batch, dtype=torch.bool)}
        prior = {"prior_noise": self.noise(batch)} if self.agent.config.act_on == "prior" else {}
        memory = {"latent": torch.zeros(batch, self.model.latents), "latent_first": torch.ones_like(opens["first"])}
        return seen | opens | prior | memory | super().inputs(batch)

    def forward(self, given: Tensors) -> Tensors:
        model, first = self.model, given["first"]
        d, state = self._advance(given, given["latent"], given["latent_first"])
        latent = self._sample(model.encode({name: given[name] for name in model.interface.observation}), given["noise"])
        shown = latent
        if "prior_noise" in given:  # nothing predicts the first observation of an episode
            predicted = self._sample(model.predict_latent(d), given["prior_noise"])
            shown = torch.where(first[:, None], latent, predicted)
        d = d * ~model.forgets(first)[:, None]
        policy = self.agent.policy(torch.cat([shown, d], dim=-1).float())
        return _described(policy) | {"latent": latent, "latent_first": first} | state


class Dreaming(Step):
    """From a latent, an action in it and the memory to what the world model expects: observation, reward and end.

    `latent`, `latent_first` and the memory come from an acting step, or from the dreaming step before.
    """

    def inputs(self, batch: int) -> Tensors:
        first = torch.zeros(batch, dtype=torch.bool)
        return {"latent": torch.zeros(batch, self.model.latents), "latent_first": first} | super().inputs(batch)

    def forward(self, given: Tensors) -> Tensors:
        model = self.model
        d, state = self._advance(given, given["latent"], given["latent_first"])
        latent = self._sample(model.predict_latent(d), given["noise"])
        reward, end = model.predict_outcome(d, latent)
        told = {"reward": model.two_hot.decode(reward), "end": end.float().sigmoid()}
        first = torch.zeros_like(given["latent_first"])
        return model.show(latent) | told | {"latent": latent, "latent_first": first} | state


class Check(NamedTuple):
    """A written graph beside PyTorch, on one thread of a CPU."""

    path: Path
    difference: float  # largest, of any output but sampled latents and images made of them
    flipped: float  # share of latent variables that were sampled differently, as rounding decides some
    steps: int
    milliseconds: float  # of a step of one environment, in onnxruntime
    torch_milliseconds: float


def steps_of(learner: Learner) -> dict[str, Step]:
    """The two steps of an agent, by the file that each is written to."""
    return {ACTING: Acting(learner.world_model, learner.agent), DREAMING: Dreaming(learner.world_model)}


def write_graphs(folder: Path, learner: Learner) -> list[Check]:
    """Write `acting.onnx` and `dreaming.onnx` of a learner on the CPU into `folder`, and compare them with PyTorch.

    Names, shapes and meaning of the inputs and outputs are those of `Acting` and `Dreaming`.
    """
    return [_written(folder / name, step) for name, step in steps_of(learner).items()]


def open_graph(path: Path) -> Callable[[Arrays], Arrays]:
    """A function that runs a written graph in onnxruntime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name.removeprefix("next_") for output in session.get_outputs()]
    return lambda given: dict(zip(names, session.run(None, given), strict=True))


def compare(path: Path, step: Step, given: Iterator[Tensors], memory: Tensors | None = None) -> Check:
    """Run a graph and its step in turns on `given` inputs; the memory goes on as PyTorch has it.

    Args:
        path: of the graph.
        step: what it was written from.
        given: for each step the inputs that are not memory.
        memory: at the beginning; None is that before an episode.
    """
    graph = open_graph(path)
    seconds: list[tuple[float, float]] = []
    difference = 0.0
    flipped: list[float] = []
    carried = memory or step.inputs(1)
    with torch.no_grad(), one_thread():
        for new in given:
            inputs = carried | new
            begin = time.perf_counter()
            expected = step(inputs)
            between = time.perf_counter()
            found = graph({name: value.numpy() for name, value in inputs.items()})
            seconds.append((time.perf_counter() - between, between - begin))
            same = bool((found["latent"] == expected["latent"].numpy()).all())
            flipped.append(float((found["latent"] != expected["latent"].numpy()).mean()))
            for name, value in expected.items():
                follows = name == "latent" or name in step.model.interface.observation  # from a sample
                if not follows or (same and name != "latent"):
                    other = torch.from_numpy(found[name])
                    difference = max(difference, float((other.double() - value.double()).abs().max()))
            carried = carried | {name: value for name, value in expected.items() if name in carried}
    ours, theirs = (median(times) * 1e3 for times in zip(*seconds, strict=True))
    return Check(path, difference, sum(flipped) / len(flipped), len(seconds), ours, theirs)


def _written(path: Path, step: Step) -> Check:
    # Of a batch of one, tracing would take the one for a constant; one tensor under two names for one input.
    inputs = {name: value.clone() for name, value in step.inputs(2).items()}
    outputs = [name if name not in inputs else f"next_{name}" for name in step(inputs)]
    batch = torch.export.Dim("batch")
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program = torch.onnx.export(
                _Flat(step, list(inputs)),
                tuple(inputs.values()),
                dynamo=True,
                verbose=False,
                input_names=list(inputs),
                output_names=outputs,
                dynamic_shapes={"given": tuple({0: batch} for _ in inputs)},
            )
        assert program is not None
        program.save(path)
    finally:
        quiet.setLevel(level)
    return compare(path, step, _made_up(step))


def _made_up(step: Step, steps: int = 50) -> Iterator[Tensors]:
    """Random observations and actions, to compare on."""
    random = np.random.default_rng(0)
    for t in range(steps):
        new = {"noise": step.noise(1)}
        new["action"] = torch.from_numpy(step.model.interface.action.sample(random, 1))
        if isinstance(step, Acting):
            new["first"] = torch.tensor([t == 0])
            for name, blank in step.inputs(1).items():
                if name in step.model.interface.observation:
                    new[name] = torch.from_numpy(random.uniform(0, 255, blank.shape)).to(blank.dtype)
        yield new


class _Flat(nn.Module):
    """A step that takes its inputs in their order, and gives its outputs in theirs."""

    def __init__(self, step: Step, names: list[str]) -> None:
        super().__init__()
        self.step = step
        self.names = names

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.step(dict(zip(self.names, given, strict=True))).values())


def _described(policy: object) -> Tensors:
    """What a distribution of actions is made of."""
    if isinstance(policy, Categorical):
        return {"probabilities": policy.log_probs.exp()}
    if isinstance(policy, Several):
        return {"probabilities": torch.cat([choice.log_probs.exp() for choice in policy.choices], dim=-1)}
    assert isinstance(policy, Normal)
    return {"action_mean": policy.mean, "action_scale": policy.scale}


def _leaves(state: State, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a sequence model's state, with names."""
    if isinstance(state, Tensor):
        yield name, state
        return
    for key, part in zip(getattr(state, "_fields", range(len(state))), state, strict=True):
        yield from _leaves(part, f"{name}_{key}")


def _rebuilt(like: State, tensors: Iterator[Tensor]) -> State:
    """The state that is made like `like` of its tensors in their order."""
    if isinstance(like, Tensor):
        return next(tensors)
    parts = [_rebuilt(part, tensors) for part in like]
    return type(like)(*parts) if hasattr(like, "_fields") else tuple(parts)
