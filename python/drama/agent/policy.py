"""Distributions of actions: of choices, and of numbers between -1 and 1."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from drama.interface import Choices, Continuous
from drama.models import latent

LEAST_SCALE, LARGEST_SCALE = 0.1, 1.0
"""Bounds of the standard deviation of a continuous action (as in DreamerV3, arXiv 2301.04104)."""


class Distribution(Protocol):
    """A distribution of actions for each of a batch."""

    def sample(self) -> Tensor:
        """Actions, without gradient."""
        ...

    def mode(self) -> Tensor:
        """The most probable actions, without gradient."""
        ...

    def log_prob(self, action: Tensor) -> Tensor:
        """Of `action`, `[...]`, in nats."""
        ...

    def entropy(self) -> Tensor:
        """`[...]`, in nats."""
        ...


class Categorical(NamedTuple):
    """One choice: log-probabilities `[..., n]`, actions `[...]`."""

    log_probs: Tensor

    def sample(self) -> Tensor:
        return latent.sample(self.log_probs).argmax(-1)

    def mode(self) -> Tensor:
        return self.log_probs.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        return self.log_probs.gather(-1, action[..., None]).squeeze(-1)

    def entropy(self) -> Tensor:
        return -(self.log_probs.exp() * self.log_probs).sum(-1)


class Several(NamedTuple):
    """K choices that are independent of each other: actions `[..., K]`."""

    choices: tuple[Categorical, ...]

    def sample(self) -> Tensor:
        return torch.stack([choice.sample() for choice in self.choices], dim=-1)

    def mode(self) -> Tensor:
        return torch.stack([choice.mode() for choice in self.choices], dim=-1)

    def log_prob(self, action: Tensor) -> Tensor:
        each = [choice.log_prob(one) for choice, one in zip(self.choices, action.unbind(-1), strict=True)]
        return torch.stack(each).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([choice.entropy() for choice in self.choices]).sum(0)


class Normal(NamedTuple):
    """K numbers: mean and standard deviation `[..., K]`.

    A sample may lie outside of [-1, 1]; whoever takes it clips it, the world model and the environment alike, so that
    its probability stays known.
    """

    mean: Tensor
    scale: Tensor

    def sample(self) -> Tensor:
        mean = self.mean.detach()
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)  # not `randn_like`: see `latent.sample`
        return mean + self.scale.detach() * noise

    def mode(self) -> Tensor:
        return self.mean.detach()

    def log_prob(self, action: Tensor) -> Tensor:
        distance = (action - self.mean) / self.scale
        return (-0.5 * distance.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        return (self.scale.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def outputs(action: Choices | Continuous) -> int:
    """How many numbers an actor gives for a distribution."""
    return action.width if isinstance(action, Choices) else 2 * action.size


def distribution(action: Choices | Continuous, given: Tensor, unimix: float) -> Distribution:
    """The distribution that an actor's `given[..., outputs]` stands for.

    Of choices they are logits, with which the share `unimix` of the uniform distribution is mixed; of numbers the mean
    before a tanh, then the standard deviation before a sigmoid.
    """
    if isinstance(action, Choices):
        if action.single:
            return Categorical(latent.mixed_log_probs(given, unimix))
        parts = given.split(list(action.counts), dim=-1)
        return Several(tuple(Categorical(latent.mixed_log_probs(part, unimix)) for part in parts))
    mean, scale = given.float().chunk(2, dim=-1)
    return Normal(mean.tanh(), LEAST_SCALE + (LARGEST_SCALE - LEAST_SCALE) * torch.sigmoid(scale + 2))
