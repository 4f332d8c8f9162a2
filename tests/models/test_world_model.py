"""The world model: its losses, its time convention, its sizes, and what evaluation mode promises."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drama.config import LatentConfig, SequenceConfig, VisionConfig, WorldModelConfig, preset
from drama.interface import LONE, Choices, Image, Interface
from drama.models.losses import CHANGE, MOVING_SHARE, Harmony, kl_losses, reconstruction_losses
from drama.models.norm import batch_norms
from drama.models.vision import Decoder
from drama.models.world_model import Batch, WorldModel
from drama.training.learner import Learner
from helpers import frames

SIZE, ACTIONS = 8, 3
CONFIG = WorldModelConfig(
    vision=VisionConfig(channels=(4, 6), strides=(2, 2)),
    latent=LatentConfig(variables=2, classes=4),
    sequence=SequenceConfig(width=16, layers=1, state=4, head_dim=8, chunk=4),
    head_units=16,
    bins=5,
    bin_limit=2.0,  # bins at -2, -1, 0, 1, 2 of symlog space
)
# Two distributions with KL(EVEN || SKEW) = 0.143841 and KL(SKEW || EVEN) = 0.130812; FAR is 3 nats from EVEN.
EVEN, SKEW = (0.5, 0.5), (0.25, 0.75)
FAR = ((1 - math.sqrt(1 - math.exp(-6))) / 2, (1 + math.sqrt(1 - math.exp(-6))) / 2)


def make_model(config: WorldModelConfig = CONFIG) -> WorldModel:
    torch.manual_seed(0)
    return WorldModel(config, Interface.of_frames((SIZE, SIZE, 1), ACTIONS))


def make_batch(batch: int, length: int, size: int = SIZE) -> Batch:
    return Batch(
        obs={LONE: torch.randint(0, 256, (batch, length, size, size, 1), dtype=torch.uint8)},
        action=torch.randint(0, ACTIONS, (batch, length)),
        reward=torch.zeros(batch, length),
        ended=torch.zeros(batch, length, dtype=torch.bool),
        is_first=torch.zeros(batch, length, dtype=torch.bool),
    )


def statistics(model: WorldModel) -> dict[str, Tensor]:
    """The batch-norm statistics."""
    return {name: value.clone() for name, value in model.named_buffers() if "running" in name or "num_batches" in name}


def log(*rows: tuple[float, float]) -> Tensor:
    """Log-probabilities `[1, T, 1, 2]`."""
    return torch.tensor(rows).log()[None, :, None]


def no_start(length: int) -> Tensor:
    return torch.zeros(1, length, dtype=torch.bool)


def test_kl_compares_a_prior_with_the_next_posterior() -> None:
    """The pairs are (posterior 1, prior 0) and (posterior 2, prior 1); posterior 0 and prior 2 have no partner."""
    posterior, prior = log(FAR, EVEN, SKEW), log(SKEW, EVEN, FAR)
    dynamics, representation, raw = kl_losses(posterior, prior, no_start(3), 0.0)
    for value in (dynamics, representation, raw):
        assert value.item() == pytest.approx((0.143841 + 0.130812) / 2, abs=1e-5)


def test_kl_skips_pairs_that_cross_an_episode_start() -> None:
    """Step 2 opens an episode: its pair leaves the mean. A start at step 0 has no pair to skip."""
    posterior, prior = log(FAR, EVEN, FAR), log(SKEW, EVEN, FAR)
    for starts in ([False, False, True], [True, False, True]):
        for value in kl_losses(posterior, prior, torch.tensor([starts]), 0.0):
            assert value.item() == pytest.approx(0.143841, abs=1e-5)


def test_kl_mean_is_over_pairs_not_over_sequences() -> None:
    """Three pairs of 3 nats and one of 0.143841, in rows of three and one pair."""
    posterior = torch.cat([log(EVEN, EVEN, EVEN, EVEN), log(EVEN, EVEN, EVEN, EVEN)])
    prior = torch.cat([log(FAR, FAR, FAR, EVEN), log(SKEW, FAR, FAR, EVEN)])
    is_first = torch.tensor([[False, False, False, False], [False, False, True, True]])
    _, _, raw = kl_losses(posterior, prior, is_first, 0.0)
    assert raw.item() == pytest.approx((3 * 3 + 0.143841) / 4, abs=1e-4)


def test_free_bits_clip_the_batch_mean() -> None:
    """Pairs of 3 and 0 nats have the mean 1.5, above one free nat (clipped one by one it would be 2)."""
    posterior, prior = log(EVEN, EVEN, EVEN), log(FAR, EVEN, EVEN)
    for value in kl_losses(posterior, prior, no_start(3), 1.0):
        assert value.item() == pytest.approx(1.5, abs=1e-4)
    dynamics, representation, raw = kl_losses(posterior, prior, no_start(3), 2.0)
    assert dynamics.item() == representation.item() == 2.0
    assert raw.item() == pytest.approx(1.5, abs=1e-4)


def test_no_pair_at_all_is_finite() -> None:
    posterior, prior = log(EVEN, EVEN), log(FAR, FAR)
    dynamics, representation, raw = kl_losses(posterior, prior, torch.ones(1, 2, dtype=torch.bool), 1.0)
    assert (dynamics.item(), representation.item(), raw.item()) == (1.0, 1.0, 0.0)


def test_each_kl_trains_its_own_side() -> None:
    """Dynamics trains the prior only and representation the posterior only; below the free bits neither trains."""
    posterior, prior = log(SKEW, EVEN).requires_grad_(), log(SKEW, EVEN).requires_grad_()

    def gradient(loss: Tensor, of: Tensor) -> float:
        (found,) = torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True)
        return 0.0 if found is None else found.abs().max().item()

    dynamics, representation, _ = kl_losses(posterior, prior, no_start(2), 0.0)
    assert gradient(dynamics, prior) == pytest.approx(0.5)  # the posterior's probabilities
    assert gradient(dynamics, posterior) == 0
    assert gradient(representation, posterior) == pytest.approx(0.5 * math.log(2) + 0.5, rel=1e-5)
    assert gradient(representation, prior) == 0
    dynamics, representation, _ = kl_losses(posterior, prior, no_start(2), 1.0)
    assert gradient(dynamics, prior) == gradient(representation, posterior) == 0


def test_reconstruction_sums_over_the_pixels_of_a_frame() -> None:
    """2x2 pixels of 3 channels off by 1/2 cost 12/4 per frame; one such frame of six costs a sixth of it."""
    target = torch.full((2, 3, 2, 2, 3), 102, dtype=torch.uint8)
    predicted = target / 255
    weighted, plain = reconstruction_losses(predicted - 0.5, target)
    assert torch.equal(weighted, plain)
    assert plain.tolist() == [[pytest.approx(3.0)] * 3] * 2
    predicted[1, 2] += 0.5
    assert reconstruction_losses(predicted, target)[1].tolist() == [[0.0] * 3, [0.0, 0.0, pytest.approx(3.0)]]
    assert reconstruction_losses(predicted, target)[1].mean().item() == pytest.approx(0.5)


def test_pixels_that_change_weigh_more() -> None:
    """One of 20 x 20 pixels lights up in the third of four frames: it moves in the second, the third and the fourth."""
    target = torch.zeros(1, 4, 20, 20, 1, dtype=torch.uint8)
    target[0, 2, 5, 5] = 255
    target[0, :, 0, 0] = torch.tensor([30, 42, 30, 18])[:, None]  # up or down by 12 of 255: too little to count
    predicted = target / 255 + 0.5
    per_frame = 400 * 0.25
    weighted, plain = reconstruction_losses(predicted, target, motion_scale=10.0)
    assert plain.tolist() == [[pytest.approx(per_frame)] * 4]
    assert weighted.tolist() == [[pytest.approx(per_frame)] + [pytest.approx(per_frame + 10 * 0.25)] * 3]
    assert weighted.mean().item() == pytest.approx(per_frame + 10 * 0.25 * 3 / 4)
    # All pixels of two frames change: together they weigh as much as 1 % of them would.
    target = torch.zeros(1, 2, 20, 20, 1, dtype=torch.uint8)
    target[0, 1] = CHANGE
    weighted, _ = reconstruction_losses(target / 255 + 0.5, target, motion_scale=10.0)
    assert weighted.tolist() == [[pytest.approx(per_frame + 10 * MOVING_SHARE * per_frame)] * 2]
    # A single frame has nothing to compare with.
    weighted, plain = reconstruction_losses(
        torch.zeros(2, 1, 4, 4, 3), torch.ones(2, 1, 4, 4, 3).byte(), motion_scale=10.0
    )
    assert torch.equal(weighted, plain)


def test_loss_is_the_weighted_sum_of_its_parts() -> None:
    config = dataclasses.replace(CONFIG, dynamics_scale=2.0, representation_scale=0.25, free_bits=3.0)
    losses = make_model(config).loss(make_batch(4, 6))
    assert losses["kl"].item() < 3
    parts = losses["reconstruction"] + losses["reward"] + losses["termination"] + 2.25 * 3.0
    assert losses["loss"].item() == pytest.approx(parts.item(), rel=1e-5)


def test_the_loss_weighs_what_moves_as_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(dataclasses.replace(CONFIG, reconstruction_scale=2.0, motion_scale=50.0, free_bits=3.0))
    decoder = model.decoder[LONE]
    assert isinstance(decoder, Decoder)
    decoded: list[Tensor] = []
    patches = decoder.patches

    def watched(z: Tensor) -> Tensor:
        decoded.append(z)
        return patches(z)

    monkeypatch.setattr(decoder, "patches", watched)
    batch = make_batch(4, 6)
    losses = model.loss(batch)
    errors = reconstruction_losses(decoder(decoded[0]), batch.obs[LONE], 50.0)
    weighted, plain = (error.mean() for error in errors)
    assert weighted > 1.4 * plain
    assert losses["reconstruction"].item() == pytest.approx(plain.item())
    kl = (CONFIG.dynamics_scale + CONFIG.representation_scale) * 3.0
    parts = 2.0 * weighted + losses["reward"] + losses["termination"] + kl
    assert losses["loss"].item() == pytest.approx(parts.item(), rel=1e-5)


def test_a_share_of_the_images_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the steps is scored in some of the draws, with its own neighbours, and the mean is that of all."""
    shown, every = (
        make_model(dataclasses.replace(CONFIG, motion_scale=50.0, decoded_share=share)).decoder for share in (0.5, 1.0)
    )
    decoder = shown[LONE]
    assert isinstance(decoder, Decoder)
    shown.load_state_dict(every.state_dict())
    for norm in (*batch_norms(shown), *batch_norms(every)):
        norm.eval()
    sizes: list[torch.Size] = []
    patches = decoder.patches

    def watched(z: Tensor) -> Tensor:
        sizes.append(z.shape)
        return patches(z)

    monkeypatch.setattr(decoder, "patches", watched)
    batch = make_batch(4, 6)
    z = torch.randn(4, 6, CONFIG.latent.variables * CONFIG.latent.classes)
    with torch.no_grad():
        whole = every.losses(z, batch.obs)
        drawn = [shown.losses(z, batch.obs) for _ in range(40)]
    assert set(sizes) == {torch.Size((4, 3, z.shape[-1]))}
    for part in (0, 1):  # to minimise, and to watch
        errors = torch.stack([draw[part]["reconstruction"] for draw in drawn])
        scored = errors > 0
        assert (scored.sum(2) == 3).all()
        assert scored.any(0).all()
        expected = 2 * whole[part]["reconstruction"].expand_as(errors)
        torch.testing.assert_close(errors[scored], expected[scored], rtol=1e-4, atol=1e-4)


def test_the_loss_sees_the_episode_starts() -> None:
    """Inside `loss`, actions before a start do not reach the outputs after it, and pairs across starts cost no KL."""
    model = make_model(dataclasses.replace(CONFIG, free_bits=0.0))
    outputs: list[Tensor] = []
    model.sequence.register_forward_hook(lambda _module, _inputs, result: outputs.append(result[0]))
    batch = make_batch(2, 6)
    batch.is_first[:, 3] = True
    for action in (batch.action, torch.cat([(batch.action[:, :3] + 1) % ACTIONS, batch.action[:, 3:]], dim=1)):
        torch.manual_seed(0)
        model.loss(batch._replace(action=action))
    ours, other = outputs
    torch.testing.assert_close(ours[:, 3:], other[:, 3:], atol=1e-5, rtol=1e-5)
    assert (ours[:, :3] - other[:, :3]).abs().amax(-1).min() > 0.01

    assert model.loss(batch)["kl"].item() > 0
    assert model.loss(batch._replace(is_first=torch.ones(2, 6, dtype=torch.bool)))["kl"].item() == 0


def test_the_kl_trains_the_sequence_model() -> None:
    """With the outcome heads silent, the prior alone gives the sequence model a gradient."""
    model = make_model(dataclasses.replace(CONFIG, free_bits=0.0))
    for head in (model.reward, model.termination):
        for parameter in head.parameters():
            parameter.data.zero_()
    loss = model.loss(make_batch(4, 6))["loss"]
    for gradient in torch.autograd.grad(loss, [*model.stem.parameters(), *model.sequence.parameters()]):
        assert gradient.abs().max() > 0


def test_the_reconstruction_trains_the_encoder_through_the_sample() -> None:
    model = make_model(dataclasses.replace(CONFIG, dynamics_scale=0.0, representation_scale=0.0))
    model.sequence.requires_grad_(False)
    for head in (model.reward, model.termination):
        for parameter in head.parameters():
            parameter.data.zero_()
    loss = model.loss(make_batch(4, 6))["loss"]
    for gradient in torch.autograd.grad(loss, [*model.encoder.parameters(), *model.posterior.parameters()]):
        assert gradient.abs().max() > 1e-6


def test_first_losses() -> None:
    """The reward head starts with all five bins alike, so that any reward costs ln 5."""
    batch = make_batch(4, 6)
    losses = make_model().loss(batch._replace(reward=torch.rand(4, 6)))
    assert losses["reward"].item() == pytest.approx(math.log(5), rel=1e-5)
    assert losses["posterior_entropy"].item() <= 2 * math.log(4) + 1e-5


def test_frames_reach_the_loss_in_unit_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that answers 0.2 everywhere is exact on frames of 51, and 0.8 off on frames of 255."""
    model = make_model(dataclasses.replace(CONFIG, vision=dataclasses.replace(CONFIG.vision, output="linear")))
    picture = model.decoder[LONE]
    assert isinstance(picture, Decoder)
    monkeypatch.setattr(picture, "patches", lambda z: torch.full((*z.shape[:-1], SIZE, SIZE, 1), 0.2))
    batch = make_batch(2, 3)
    exact, off = (
        model.loss(batch._replace(obs={LONE: torch.full_like(batch.obs[LONE], level)}))["reconstruction"]
        for level in (51, 255)
    )
    assert exact.item() == pytest.approx(0.0, abs=1e-6)
    assert off.item() == pytest.approx(64 * 0.64, rel=1e-5)


def train_outcomes(outcome: Callable[[Tensor], tuple[Tensor, Tensor]], updates: int) -> tuple[float, float]:
    """Train on blank frames and fresh random actions; returns the last losses of reward and termination."""
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = {}
    for _ in range(updates):
        batch = make_batch(8, 12)
        reward, ended = outcome(batch.action)
        blank = {LONE: torch.zeros_like(batch.obs[LONE])}
        losses = model.loss(batch._replace(obs=blank, reward=reward, ended=ended))
        gradients = torch.autograd.grad(losses["loss"], list(model.parameters()), allow_unused=True)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    return losses["reward"].item(), losses["termination"].item()


def test_outcomes_are_predicted_after_their_own_action() -> None:
    """Reward 1 for action 0 and an end for action 1: known after the action, so both losses go far below H(1/3)."""
    reward, termination = train_outcomes(lambda action: ((action == 0) * (math.e - 1), action == 1), 100)
    assert reward < 0.1
    assert termination < 0.1


def test_outcomes_of_the_next_action_cannot_be_predicted() -> None:
    """The control: had the outcome of step t to come from before its action, the losses would stay at H(1/3) = 0.64."""

    def outcome(action: Tensor) -> tuple[Tensor, Tensor]:
        following = action.roll(-1, dims=1)
        return (following == 0) * (math.e - 1), following == 1

    reward, termination = train_outcomes(outcome, 100)
    assert 0.5 < reward < 0.8
    assert 0.5 < termination < 0.8


def test_local_latents_are_told_from_their_cell_and_tell_of_it() -> None:
    """Of patches that do not overlap: a changed pixel changes the variables of its cell, these the pixels of it."""
    vision = VisionConfig(channels=(6,), strides=(4,), output="linear")
    local = LatentConfig(variables=8, classes=4, posterior_gain=3.0, local=True)  # two for each of four cells
    model = make_model(dataclasses.replace(CONFIG, vision=vision, latent=local)).eval()
    frame = torch.randint(0, 256, (1, SIZE, SIZE, 1), dtype=torch.uint8)
    changed = frame.clone()
    changed[0, 2, 5] ^= 255  # of the cell in the first row and second column
    with torch.no_grad():
        differs = (model.encode({LONE: frame}) - model.encode({LONE: changed})).abs().amax(-1)[0] > 1e-4
        assert differs.tolist() == [False, False, True, True, False, False, False, False]
        z = torch.eye(4).repeat(2, 1).flatten()[None]
        other = z.clone()
        other[0, 12:16] = torch.tensor([1.0, 0.0, 0.0, 0.0])  # the second variable of that cell
        moved = (model.decode(z)[LONE] - model.decode(other)[LONE]).abs()[0, ..., 0] > 1e-4
        assert moved[:4, 4:].any()
        assert not moved[4:].any()
        assert not moved[:4, :4].any()
        blank = model.decode(torch.zeros_like(z))[LONE]
    assert (blank[0, :4, :4] - blank[0, 4:, 4:]).abs().max() > 1e-4  # what is always there differs from place to place


def test_of_other_observations_latents_are_not_local() -> None:
    local = dataclasses.replace(CONFIG, latent=LatentConfig(variables=8, classes=4, local=True))
    parts = {"obs_left": Image((SIZE, SIZE, 1)), "obs_right": Image((SIZE, SIZE, 1))}
    model = WorldModel(local, Interface(parts, Choices((ACTIONS,))))
    found = model.encode({name: torch.zeros(3, SIZE, SIZE, 1, dtype=torch.uint8) for name in parts})
    assert found.shape == (3, 8, 4)
    assert set(model.decode(found.exp().flatten(1))) == set(parts)


def told(reward: Tensor, ended: Tensor, is_first: Tensor, changed: int, reward_from: Any) -> list[bool]:
    """For which steps the gradient of the reward's loss reaches the posterior of the observation at step `changed`."""
    model = make_model(dataclasses.replace(CONFIG, reward_from=reward_from))
    for weight in model.reward[-1].parameters():
        torch.nn.init.normal_(weight)
    z = torch.randn(1, 6, model.latents, requires_grad=True)
    d = torch.zeros(1, 6, CONFIG.sequence.width)
    batch = make_batch(1, 6)._replace(reward=reward[None], ended=ended[None], is_first=is_first[None])
    losses = model._reward_losses(d, z, batch)[0]
    found = []
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, z, retain_graph=True, allow_unused=True, materialize_grads=True)
        found.append(bool(gradient[0, changed].abs().sum() > 0))
    return found


def test_a_reward_is_told_from_what_followed_in_its_episode() -> None:
    nowhere, fourth = torch.zeros(6, dtype=torch.bool), torch.arange(6) == 3
    reward = torch.ones(6)
    assert told(reward, nowhere, nowhere, 3, "next") == [False, False, True, False, False, False]
    assert told(reward, nowhere, fourth, 3, "next") == [False] * 6  # it opens another episode
    assert told(reward, nowhere, nowhere, 3, "output") == [False] * 6


@pytest.mark.parametrize(("ended", "counted"), [(False, 5), (True, 6)])
def test_of_the_last_step_only_an_end_tells_the_reward(ended: bool, counted: int) -> None:
    model = make_model(dataclasses.replace(CONFIG, reward_from="next"))
    batch = make_batch(1, 6)
    batch.ended[0, -1] = ended
    losses = model._reward_losses(torch.zeros(1, 6, CONFIG.sequence.width), torch.zeros(1, 6, model.latents), batch)
    assert (losses[0] > 0).sum() == counted
    assert losses.mean().item() == pytest.approx(math.log(5), rel=1e-5)  # over those that count


def test_after_a_predicted_end_nothing_follows() -> None:
    """The reward of an end was learned from zeros, as nothing is seen after it."""
    model = make_model(dataclasses.replace(CONFIG, reward_from="next")).eval()
    for weight in model.reward[-1].parameters():
        torch.nn.init.normal_(weight)
    d, following = torch.randn(3, CONFIG.sequence.width), torch.ones(3, model.latents)
    for bias, seen in ((-9.0, following), (9.0, torch.zeros_like(following))):
        with torch.no_grad():
            list(model.termination.parameters())[-1].fill_(bias)
            reward, _ = model.predict_outcome(d, following)
            torch.testing.assert_close(reward, model.predict_reward(d, seen))


def test_an_episode_start_inside_gives_the_outputs_of_the_halves() -> None:
    model = make_model().eval()
    with torch.no_grad():
        for parameter in model.sequence.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4)
    z, action = torch.randn(2, 11, model.latents), torch.randint(0, ACTIONS, (2, 11))
    is_first = torch.zeros(2, 11, dtype=torch.bool)
    is_first[:, 0] = is_first[:, 5] = True
    d, _ = model(z, action, is_first)
    left, _ = model(z[:, :5], action[:, :5], is_first[:, :5])
    right, _ = model(z[:, 5:], action[:, 5:], is_first[:, 5:])
    torch.testing.assert_close(d, torch.cat([left, right], dim=1), atol=1e-4, rtol=1e-4)
    is_first[:, 5] = False
    joined, _ = model(z, action, is_first)
    assert (joined - d)[:, 5:8].abs().max() > 0.01


def test_steps_equal_the_parallel_form() -> None:
    model = make_model().eval()
    z, action = torch.randn(2, 7, model.latents), torch.randint(0, ACTIONS, (2, 7))
    is_first = torch.zeros(2, 7, dtype=torch.bool)
    is_first[0, 3] = True
    d, _ = model(z, action, is_first)
    state = model.initial_state(2)
    for t in range(7):
        one, state = model.step(z[:, t], action[:, t], is_first[:, t], state)
        torch.testing.assert_close(one, d[:, t], atol=1e-4, rtol=1e-4)


def test_encoding_in_evaluation_mode_stands_alone() -> None:
    """Each frame is encoded as if it were alone, and no statistic moves; in training mode neither holds."""
    model = make_model()
    obs = make_batch(3, 4).obs[LONE]
    model.train()
    together, alone = model.encode({LONE: obs}), model.encode({LONE: obs[:1]})
    assert (together[:1] - alone).abs().max() > 1e-3

    model.eval()
    before = statistics(model)
    together, alone = model.encode({LONE: obs}), model.encode({LONE: obs[1:2, 2:3]})
    torch.testing.assert_close(together[1:2, 2:3], alone, atol=1e-5, rtol=1e-5)
    assert before
    for name, value in statistics(model).items():
        assert torch.equal(value, before[name])


def test_updates_leave_both_networks_in_evaluation_mode() -> None:
    """Only the world model's own update moves its batch-norm statistics and its weights."""
    config = preset("debug")
    torch.manual_seed(0)
    learner = Learner(config, frames(config, 1, ACTIONS), torch.device("cpu"))
    batch = make_batch(4, 6, config.env.frame_size[0])

    def in_evaluation_mode() -> bool:
        return not any(m.training for net in (learner.world_model, learner.agent) for m in net.modules())

    assert in_evaluation_mode()
    fresh = statistics(learner.world_model)
    metrics = learner.update_world_model(batch)
    assert in_evaluation_mode()
    assert not any(value.requires_grad for value in metrics.values())
    updated = {name: value.clone() for name, value in learner.world_model.state_dict().items()}
    assert any(not torch.equal(updated[name], value) for name, value in fresh.items())

    agent_before = {name: value.clone() for name, value in learner.agent.named_parameters()}
    metrics = learner.update_agent(batch)
    assert in_evaluation_mode()
    assert not any(value.requires_grad for value in metrics.values())
    for name, value in learner.world_model.state_dict().items():
        assert torch.equal(value, updated[name]), name
    for name, value in learner.agent.named_parameters():
        assert not torch.equal(value, agent_before[name]), name


def test_the_papers_world_model() -> None:
    """About 7.1 million parameters with six actions, and the layers of the paper's table."""
    config = preset("paper")
    model = WorldModel(config.world_model, frames(config, 3, 6))
    assert 7.0e6 < sum(p.numel() for p in model.parameters()) < 7.3e6
    assert (model.latents, model.width, model.features) == (1024, 512, 1536)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    for name, shape in {
        "posterior.0.weight": (1024, 1024),
        "decoder.obs.stem.weight": (1024, 1024),
        "stem.0.weight": (512, 1030),
        "prior.weight": (1024, 512),
        "reward.0.weight": (256, 512),
        "reward.3.weight": (255, 256),
        "termination.0.weight": (256, 512),
        "termination.3.weight": (1, 256),
        "sequence.mixers.0.in_proj.weight": (2096, 512),
        "sequence.mixers.1.out_proj.weight": (512, 1024),
        "sequence.mixers.1.conv1d.weight": (1056, 1, 4),
        "sequence.mixers.1.A_log": (16,),
        "sequence.final_norm.weight": (512,),
    }.items():
        assert shapes[name] == shape, name
    assert sum(name.endswith("in_proj.weight") for name in shapes) == 2
    loss = config.world_model
    assert (loss.dynamics_scale, loss.representation_scale, loss.free_bits, loss.latent.unimix) == (1.0, 0.1, 1.0, 0.01)
    torch.testing.assert_close(model.two_hot.bins[[0, 127, 254]], torch.tensor([-20.0, 0.0, 20.0]))


def test_tokens_are_the_latent_and_the_one_hot_action() -> None:
    """With an identity stem and sequence model, the token's columns say which is which."""
    model = make_model()
    model.stem = nn.Sequential()
    seen = {}

    def note(x: Tensor, is_first: Tensor, state: object) -> tuple[Tensor, object]:
        seen["x"], seen["is_first"] = x, is_first
        return x, state

    model.sequence.forward = note  # type: ignore[method-assign,assignment]
    z, action, is_first = torch.randn(1, 3, 8), torch.tensor([[2, 0, 1]]), torch.tensor([[True, False, False]])
    model(z, action, is_first)
    assert torch.equal(seen["x"][..., :8], z)
    assert seen["x"][..., 8:].tolist() == [[[0, 0, 1], [1, 0, 0], [0, 1, 0]]]
    assert torch.equal(seen["is_first"], is_first)


def test_harmony_divides_each_loss_by_a_size_that_follows_it() -> None:
    """Where `L / sigma + log(1 + sigma)` is least, `sigma^2 = L (1 + sigma)`."""
    harmony = Harmony()
    sizes = {"reconstruction": 50.0, "reward": 0.02, "dynamics": 3.0, "representation": 0.3, "termination": 0.5}
    losses = {name: torch.tensor(value, dtype=torch.float64, requires_grad=True) for name, value in sizes.items()}
    least = {}
    for part, size in {"observation": 50.0, "reward": 0.02, "latent": 3.3}.items():
        least[part] = (size + math.sqrt(size**2 + 4 * size)) / 2
        harmony.log_sigma[part].data = torch.tensor(least[part], dtype=torch.float64).log()
    harmony(losses).backward()
    for s in harmony.parameters():
        assert s.grad is not None
        assert s.grad.item() == pytest.approx(0, abs=1e-9)
    weights = {name: loss.grad.item() for name, loss in losses.items() if loss.grad is not None}
    expected = {"reconstruction": "observation", "reward": "reward", "dynamics": "latent", "representation": "latent"}
    assert weights == pytest.approx({name: 1 / least[part] for name, part in expected.items()} | {"termination": 1})


def test_the_world_model_learns_the_sizes_of_its_losses() -> None:
    plain, model = make_model(), make_model(dataclasses.replace(CONFIG, balance="harmony"))
    batch = make_batch(2, 6)
    torch.manual_seed(0)
    fixed = plain.loss(batch)
    torch.manual_seed(0)
    losses = model.loss(batch)
    losses["loss"].backward()
    # At first each sigma is 1: the plain sum, and log 2 for each.
    assert losses["loss"].item() == pytest.approx(fixed["loss"].item() + 3 * math.log(2), rel=1e-5)
    assert all(s.grad is not None and s.grad != 0 for s in model.balance.parameters())
