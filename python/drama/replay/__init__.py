"""The replay buffer, the samplers that draw from it, and batches drawn ahead. Only `to_torch` needs torch."""

from drama.replay.buffer import FieldSpec, ReplayBuffer
from drama.replay.prefetch import Prefetcher, to_torch
from drama.replay.samplers import (
    Batch,
    DynamicFrequency,
    MostRecent,
    Prioritized,
    Sampler,
    Stack,
    TransitionSampler,
    Uniform,
)
from drama.replay.writer import StepWriter

__all__ = [
    "Batch",
    "DynamicFrequency",
    "FieldSpec",
    "MostRecent",
    "Prefetcher",
    "Prioritized",
    "ReplayBuffer",
    "Sampler",
    "Stack",
    "StepWriter",
    "TransitionSampler",
    "Uniform",
    "to_torch",
]
