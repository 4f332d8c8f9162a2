"""What acts is what learned: batch norm's statistics outside of an update are those of the weights as they are."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from drama.config import Config, preset
from drama.interface import LONE
from drama.models.norm import batch_norms, batch_statistics
from drama.models.world_model import Batch
from drama.replay import ReplayBuffer
from drama.training.collector import random_play
from drama.training.learner import Learner
from helpers import frames

CPU = torch.device("cpu")


def small_cpu() -> Config:
    """`cpu` on Pong, with its rates, smaller where the test would take minutes."""
    config = preset("cpu")
    model = config.world_model
    vision = dataclasses.replace(model.vision, channels=(16, 16), strides=(4, 2))
    sequence = dataclasses.replace(model.sequence, width=64)
    return dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, size=32),
        world_model=dataclasses.replace(model, vision=vision, sequence=sequence),
        train=dataclasses.replace(config.train, warmup_updates=20, compile="off"),
    )


@pytest.fixture(scope="module")
def played() -> ReplayBuffer:
    """Random play in Pong, most of whose frame stands still; where everything moves, old statistics do little harm."""
    return random_play(small_cpu(), 2000)


def draw(learner: Learner, played: ReplayBuffer) -> Batch:
    return learner.to_batch(played.sample(8, 16))


@pytest.mark.parametrize(
    ("count", "agrees"),
    [
        pytest.param(preset("cpu").train.statistics_frames, True, id="the preset's"),
        pytest.param(0, False, id="past batches, so that this can fail"),
    ],
)
def test_acting_sees_what_learning_saw(played: ReplayBuffer, count: int, agrees: bool) -> None:
    """The KL on the statistics of acting is that on a batch's own, while the weights move at the rate of `cpu`."""
    torch.manual_seed(0)
    learner = Learner(small_cpu(), frames(small_cpu()), CPU)
    learner.start_from_frames({LONE: played.sample(256, 1)[LONE]})
    ratios = []
    for update in range(1, 181):
        others = {LONE: torch.from_numpy(played.sample(count, 1)[LONE])} if count else None
        learner.update_world_model(draw(learner, played), others)
        if update >= 60 and update % 10 == 0:
            kl = learner.kl_by_mode(draw(learner, played))
            ratios.append(kl["world_model/kl_acting"] / kl["world_model/kl_learning"])
    assert (max(ratios) < 1.3) == agrees


def test_looking_at_both_changes_nothing(played: ReplayBuffer) -> None:
    learner = Learner(small_cpu(), frames(small_cpu()), CPU)
    batch = draw(learner, played)
    learner.update_world_model(batch)
    before = {name: value.clone() for name, value in learner.world_model.state_dict().items()}
    random = torch.get_rng_state()
    learner.kl_by_mode(batch)
    assert learner.on_new_rows(batch).keys() == {"world_model/kl_new", "world_model/reward_new"}
    assert torch.equal(torch.get_rng_state(), random)
    torch.testing.assert_close(learner.world_model.state_dict(), before, rtol=0, atol=0)
    assert not any(part.training for part in learner.world_model.modules())


def test_fresh_statistics_are_those_of_the_frames_alone(played: ReplayBuffer) -> None:
    """On those frames the model in evaluation mode answers as on their own statistics."""
    config = small_cpu()
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, precision="float32"))
    learner = Learner(config, frames(config), CPU)
    others = draw(learner, played).obs
    learner.update_world_model(draw(learner, played), others)
    model = learner.world_model
    with torch.no_grad():
        found = model.encode(others)
        with batch_statistics(model):
            expected = model.encode(others)
    torch.testing.assert_close(found.exp(), expected.exp(), atol=0.02, rtol=0)  # of n or of n - 1 frames
    assert {norm.momentum for norm in (*batch_norms(model.encoder), *batch_norms(model.posterior))} == {0.1}
    assert {norm.momentum for norm in batch_norms(model.decoder)} == {1.0}  # the last batch's
