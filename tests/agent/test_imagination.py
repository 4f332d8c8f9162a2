"""Rollouts in the world model: which output answers for which action, ends, starts, and dreams."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from drama.agent.actor_critic import ActorCritic
from drama.agent.imagination import Trajectory, dream, imagine, recorded_imagination
from drama.config import AgentConfig, LatentConfig, SequenceConfig, VisionConfig, WorldModelConfig
from drama.interface import LONE, Choices, Interface
from drama.models.heads import TwoHot
from drama.models.sequence.base import SequenceModel, State
from drama.models.world_model import Belief, WorldModel
from drama.training.pictures import dream_strip, dream_video

SIZE, ACTIONS, WIDTH, CLASSES = 8, 3, 12, 4
LATENTS = 3 * CLASSES
CONFIG = WorldModelConfig(
    vision=VisionConfig(channels=(4, 6), strides=(2, 2)),
    latent=LatentConfig(variables=3, classes=CLASSES),
    sequence=SequenceConfig(width=WIDTH, layers=2, state=5, head_dim=6, groups=2, chunk=4),
    head_units=8,
    bins=41,  # with limit 20 the bins are the whole numbers of symlog space
)
FRAMES = Interface.of_frames((SIZE, SIZE, 1), ACTIONS)


class Scripted:
    """A policy that plays fixed actions and notes what it was shown."""

    def __init__(self, actions: Tensor) -> None:
        self.actions = actions
        self.seen: list[Tensor] = []

    def act(self, features: Tensor) -> Tensor:
        self.seen.append(features)
        return self.actions[:, len(self.seen) - 1]


class Echo(SequenceModel):
    """A sequence model without memory whose output begins with the one-hot action of its token."""

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 1)

    def forward(self, x: Tensor, is_first: Tensor | None = None, state: State = None) -> tuple[Tensor, State]:
        del is_first
        action = x[..., LATENTS:]
        return torch.cat([action, torch.zeros(*action.shape[:-1], WIDTH - ACTIONS)], dim=-1), state

    def step(self, x: Tensor, is_first: Tensor | None, state: State) -> tuple[Tensor, State]:
        y, state = self(x[:, None], None if is_first is None else is_first[:, None], state)
        return y[:, 0], state


class Table(nn.Module):
    """A head that looks its answer up by the action at the beginning of its input."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, d: Tensor) -> Tensor:
        return d[..., :ACTIONS] @ self.rows


class Steps(NamedTuple):
    """Real steps."""

    obs: Tensor
    action: Tensor
    is_first: Tensor


def make_model(seed: int = 0, backend: str = "mamba2") -> WorldModel:
    """A small model whose parameters are large enough for everything it is told to show in what it predicts."""
    torch.manual_seed(seed)
    config = dataclasses.replace(CONFIG, sequence=dataclasses.replace(CONFIG.sequence, backend=backend, heads=3))
    model = WorldModel(config, FRAMES).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "decoder" not in name:
                parameter.mul_(4)
    return model


def make_steps(batch: int, length: int, starts: dict[int, tuple[int, ...]] | None = None) -> Steps:
    """Random steps; `starts` gives the positions of the episode starts of each row."""
    generator = torch.Generator().manual_seed(3)
    obs = torch.randint(0, 256, (batch, length, SIZE, SIZE, 1), dtype=torch.uint8, generator=generator)
    action = torch.randint(0, ACTIONS, (batch, length), generator=generator)
    is_first = torch.zeros(batch, length, dtype=torch.bool)
    for row, positions in (starts or {}).items():
        is_first[row, list(positions)] = True
    return Steps(obs, action, is_first)


def observe(model: WorldModel, obs: Tensor, action: Tensor, is_first: Tensor) -> Belief:
    """The belief at the last of real steps, from their own posteriors."""
    return model.recall(model.sample(model.encode({LONE: obs})), action, is_first)


def random_actions(batch: int, horizon: int) -> Tensor:
    return torch.randint(0, ACTIONS, (batch, horizon), generator=torch.Generator().manual_seed(4))


def test_shapes() -> None:
    model = make_model()
    start = observe(model, *make_steps(5, 4))
    assert start.z.shape == (5, LATENTS)
    assert start.d.shape == (5, WIDTH)
    trajectory = imagine(model, Scripted(random_actions(5, 7)), start, 7)
    assert trajectory.features.shape == (5, 8, LATENTS + WIDTH)
    for value in trajectory[1:]:
        assert value.shape == (5, 7)
        assert not value.requires_grad
    assert trajectory.features.dtype == trajectory.reward.dtype == torch.float32
    assert torch.equal(trajectory.features[..., :LATENTS].reshape(5, 8, 3, CLASSES).sum(-1), torch.ones(5, 8, 3))


def test_the_policy_sees_the_features_it_acted_on() -> None:
    model = make_model()
    start = observe(model, *make_steps(2, 4))
    policy = Scripted(random_actions(2, 5))
    trajectory = imagine(model, policy, start, 5)
    assert torch.equal(torch.stack(policy.seen, dim=1), trajectory.features[:, :-1])
    assert torch.equal(trajectory.features[:, 0], torch.cat([start.z, start.d], dim=-1))
    assert torch.equal(trajectory.features[:, 0], start.features)
    assert torch.equal(trajectory.action, policy.actions)


def test_outcomes_come_from_the_output_after_the_action() -> None:
    """Rewards 0, e - 1, e^2 - 1 for actions 0, 1, 2; action 2 ends; action k leads to class k of every variable."""
    model = make_model()
    model.stem = nn.Sequential()
    model.sequence = Echo()
    model.reward = nn.Sequential(Table(torch.eye(41)[[20, 21, 22]] * 100))
    model.termination = nn.Sequential(Table(torch.tensor([[-1.0], [-1.0], [1.0]])))
    with torch.no_grad():
        model.prior.weight.zero_()[:, :ACTIONS] = torch.eye(CLASSES)[:ACTIONS].repeat(1, 3).T * 100
        model.prior.bias.zero_()
    model.config = dataclasses.replace(CONFIG, latent=dataclasses.replace(CONFIG.latent, unimix=0.0))
    actions = torch.tensor([[0, 1, 2, 1, 0], [1, 1, 0, 0, 1], [2, 2, 1, 0, 0]])
    start = Belief(torch.zeros(3, LATENTS), torch.zeros(3, WIDTH), torch.ones(3, dtype=torch.bool), torch.zeros(3, 1))
    trajectory = imagine(model, Scripted(actions), start, 5)

    rewards = torch.tensor([0.0, math.e - 1, math.e**2 - 1])
    torch.testing.assert_close(trajectory.reward, rewards[actions], atol=1e-4, rtol=1e-4)
    assert trajectory.cont.tolist() == [[1, 1, 0, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]
    assert trajectory.weight.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    one_hot = torch.eye(CLASSES)[actions]
    assert torch.equal(trajectory.features[:, 1:, :LATENTS], one_hot.repeat(1, 1, 3))
    assert torch.equal(trajectory.features[:, 1:, LATENTS : LATENTS + ACTIONS], torch.eye(ACTIONS)[actions])


def test_an_uncertain_end_goes_on() -> None:
    """A termination logit of exactly 0 is no predicted end; the least above it is."""
    model = make_model()
    model.stem, model.sequence = nn.Sequential(), Echo()
    model.termination = nn.Sequential(Table(torch.tensor([[0.0], [1e-3], [-5.0]])))
    start = Belief(torch.zeros(1, LATENTS), torch.zeros(1, WIDTH), torch.ones(1, dtype=torch.bool), torch.zeros(1, 1))
    trajectory = imagine(model, Scripted(torch.tensor([[0, 1, 2]])), start, 3)
    assert trajectory.cont.tolist() == [[1, 0, 1]]
    assert trajectory.weight.tolist() == [[1, 1, 0]]


def test_observe_at_an_episode_start_forgets() -> None:
    """Row 1 opens an episode at its last frame: d is 0 there, and what it imagines is what a fresh start imagines."""
    model = make_model()
    steps = make_steps(2, 5, {1: (4,)})
    start = observe(model, *steps)
    assert start.d[0].abs().min() > 0
    assert torch.equal(start.d[1], torch.zeros(WIDTH))
    assert start.first is not None
    assert start.first.tolist() == [False, True]

    actions = random_actions(2, 4)
    torch.manual_seed(0)
    ours = imagine(model, Scripted(actions), start, 4)
    blank = start._replace(d=torch.zeros(2, WIDTH), state=model.initial_state(2))
    torch.manual_seed(0)
    fresh = imagine(model, Scripted(actions), blank, 4)
    torch.testing.assert_close(ours.features[1], fresh.features[1], atol=1e-5, rtol=1e-5)
    assert (ours.features[0] - fresh.features[0]).abs().max() > 0.1


def test_observe_does_not_use_the_last_action() -> None:
    model = make_model()
    steps = make_steps(2, 4)
    other = steps.action.clone()
    other[:, -1] = (other[:, -1] + 1) % ACTIONS
    torch.manual_seed(0)
    ours = observe(model, *steps)
    torch.manual_seed(0)
    theirs = observe(model, steps.obs, other, steps.is_first)
    assert torch.equal(ours.z, theirs.z)
    assert torch.equal(ours.d, theirs.d)


@pytest.mark.parametrize("context", [2, 4, 5, 6])
def test_imagination_equals_the_parallel_form(context: int) -> None:
    """Steps from an observed start give the outputs of one pass over context and imagination with the same latents."""
    model = make_model()
    steps = make_steps(4, context, {0: (0,), 1: (1,), 2: (context - 1,)})
    torch.manual_seed(5)
    z = model.sample(model.encode({LONE: steps.obs}))
    torch.manual_seed(5)
    start = observe(model, *steps)
    assert torch.equal(start.z, z[:, -1])
    trajectory = imagine(model, Scripted(random_actions(4, 6)), start, 6)

    imagined = trajectory.features[:, 1:-1, :LATENTS]
    latents = torch.cat([z, imagined], dim=1)
    actions = torch.cat([steps.action[:, :-1], trajectory.action], dim=1)
    is_first = torch.cat([steps.is_first, torch.zeros(4, 5, dtype=torch.bool)], dim=1)
    d, _ = model(latents, actions, is_first)
    torch.testing.assert_close(trajectory.features[:, 1:, LATENTS:], d[:, context - 1 :], atol=1e-4, rtol=1e-4)
    carried = d[:, context - 2] * ~steps.is_first[:, -1:]
    torch.testing.assert_close(trajectory.features[:, 0, LATENTS:], carried, atol=1e-4, rtol=1e-4)
    reward, termination = model.predict_outcome(d[:, context - 1 :], trajectory.features[:, 1:, :LATENTS])
    torch.testing.assert_close(trajectory.reward, model.two_hot.decode(reward), atol=1e-4, rtol=1e-4)
    assert torch.equal(trajectory.cont, (termination <= 0).float())


class Tape(TorchDispatchMode):
    """What a CUDA graph is, on a CPU: the operations with the very tensors that they read and wrote."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.operations:
            again = func(*args, **kwargs)
            several = isinstance(result, tuple | list)
            for old, new in zip(result, again, strict=True) if several else [(result, again)]:
                if old is not None and old.data_ptr() != new.data_ptr():  # no view and not in place
                    old.copy_(new)


def record_tape(run: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    with Tape() as tape:
        result = run()
    return tape.replay, result


def make_agent(model: WorldModel) -> ActorCritic:
    return ActorCritic(
        AgentConfig(actor_units=8, critic_units=8), model.features, Choices((ACTIONS,)), TwoHot(41, 20)
    ).eval()


def seeded(imagination: Callable[[Belief], Trajectory], start: Belief) -> Trajectory:
    torch.manual_seed(9)
    return Trajectory(*(t.clone() for t in imagination(start)))


@pytest.mark.parametrize("backend", ["mamba2", "mamba", "transformer"])
@pytest.mark.parametrize("low", [False, True])
def test_a_recorded_imagination_follows_starts_and_weights(backend: str, low: bool) -> None:
    model = make_model(backend=backend)
    agent = make_agent(model)
    recorder = Mock(side_effect=record_tape)
    recorded = recorded_imagination(model, agent, 5, recorder)
    for step, rows in enumerate([3, 3, 3, 2, 2]):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):  # anew, as it keeps the weights that it has cast
            start = observe(model, *make_steps(rows, 4 + step, {0: (2,), 1: (3 + step,)}))
            kept = copy.deepcopy(start)
            found = seeded(recorded, start)
            assert recorder.call_count == (1 if rows == 3 else 2)
            if step not in (0, 3):  # these have recorded and compared, by which the random state moved on
                expected = seeded(lambda start: imagine(model, agent, start, 5), start)
                assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))
        torch.testing.assert_close(start, kept, atol=0, rtol=0)
        with torch.no_grad():
            for p in [*model.parameters(), *agent.parameters()]:
                p.add_(0.1 * torch.randn_like(p))
        agent.observe_features(found.features)


def stale(run: Callable[[], Trajectory]) -> tuple[Callable[[], None], Trajectory]:
    return lambda: None, run()


@pytest.mark.parametrize(
    ("record", "problem"),
    [(stale, r"differs from what comes without it"), (RuntimeError("not permitted"), r"fails \(not permitted\)")],
)
def test_a_bad_recording_is_not_used(record: Any, problem: str) -> None:
    model = make_model()
    agent = make_agent(model)
    recorder = Mock(side_effect=record)
    recorded = recorded_imagination(model, agent, 5, recorder)
    start = observe(model, *make_steps(3, 4))
    with pytest.warns(UserWarning, match=f"train.cuda_graph: the recorded imagination {problem}; going on without"):
        recorded(start)
    found, expected = seeded(recorded, start), seeded(lambda start: imagine(model, agent, start, 5), start)
    assert recorder.call_count == 1
    assert all(torch.equal(left, right) for left, right in zip(found, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_imagines_the_same() -> None:
    model = make_model().cuda()
    agent = make_agent(model).cuda()
    recorded = recorded_imagination(model, agent, 5)
    recorded(observe(model, *(t.cuda() for t in make_steps(3, 4))))
    start = observe(model, *(t.cuda() for t in make_steps(3, 5, {0: (4,)})))
    found, expected = seeded(recorded, start), seeded(lambda start: imagine(model, agent, start, 5), start)
    torch.testing.assert_close(found.features[:, :2], expected.features[:, :2], atol=1e-3, rtol=1e-3)


def dreams(model: WorldModel, steps: Steps, context: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    reconstruction, dreamt = dream(model, {LONE: steps.obs}, steps.action, steps.is_first, context)
    assert reconstruction.keys() == dreamt.keys() == {LONE}
    return reconstruction[LONE], dreamt[LONE]


def test_dream_begins_with_the_reconstruction() -> None:
    model = make_model()
    reconstruction, dreamt = dreams(model, make_steps(2, 9), 4)
    assert reconstruction.shape == dreamt.shape == (2, 9, SIZE, SIZE, 1)
    assert reconstruction.dtype == dreamt.dtype == torch.uint8
    assert torch.equal(reconstruction[:, :4], dreamt[:, :4])
    for t in range(4, 9):
        assert not torch.equal(reconstruction[:, t], dreamt[:, t])


def test_dream_sees_no_real_frame_after_the_context() -> None:
    model = make_model()
    steps = make_steps(2, 9)
    later = steps.obs.clone()
    later[:, 4:] = 255 - later[:, 4:]
    reconstruction, dreamt = dreams(model, steps, 4)
    other_reconstruction, other_dreamt = dreams(model, steps._replace(obs=later), 4)
    assert torch.equal(dreamt, other_dreamt)
    assert not torch.equal(reconstruction[:, 4:], other_reconstruction[:, 4:])


def test_dream_depends_on_the_context() -> None:
    model = make_model()
    steps = make_steps(2, 9)
    context = steps.obs.clone()
    context[:, :4] = 255 - context[:, :4]
    assert not torch.equal(dreams(model, steps, 4)[1][:, 4:], dreams(model, steps._replace(obs=context), 4)[1][:, 4:])


def test_dream_follows_each_action_from_the_frame_after_it() -> None:
    """Another action at step 5 leaves the frames up to 5 as they are and changes those after; the last is not used."""
    model = make_model()
    steps = make_steps(8, 9)
    _, dreamt = dreams(model, steps, 4)
    for t in (3, 5):
        other = steps.action.clone()
        other[:, t] = (other[:, t] + 1) % ACTIONS
        _, changed = dreams(model, steps._replace(action=other), 4)
        assert torch.equal(changed[:, : t + 1], dreamt[:, : t + 1])
        assert not torch.equal(changed[:, t + 1], dreamt[:, t + 1])
    other = steps.action.clone()
    other[:, 8] = (other[:, 8] + 1) % ACTIONS
    assert torch.equal(dreams(model, steps._replace(action=other), 4)[1], dreamt)


def test_dream_resets_where_its_context_ends_in_an_episode_start() -> None:
    """With a start at the last frame of the context, the frames before it do not reach the dream."""
    model = make_model()
    steps = make_steps(2, 9, {0: (3,), 1: (3,)})
    before = steps.obs.clone()
    before[:, :3] = 255 - before[:, :3]
    ours, other = dreams(model, steps, 4)[1], dreams(model, steps._replace(obs=before), 4)[1]
    assert torch.equal(ours[:, 3:], other[:, 3:])
    assert not torch.equal(ours[:, :3], other[:, :3])


def test_shown_images_are_rounded_and_clamped() -> None:
    shown = make_model().decoder.observed({LONE: torch.tensor([-0.5, 0.0, 0.2, 0.9999, 1.0, 3.0])})[LONE]
    assert shown.tolist() == [0, 0, 51, 255, 255, 255]
    assert shown.dtype == torch.uint8


def test_dream_video_layout() -> None:
    """Three rows of two sequences, each frame in a border of one pixel, and a bar that turns from green to red."""
    real, reconstruction, dreamt = (
        {LONE: torch.full((2, 6, 5, 5, 1), level, dtype=torch.uint8)} for level in (60, 120, 180)
    )
    interface = Interface.of_frames((5, 5, 1), ACTIONS)
    video = dream_video(interface, real, reconstruction, dreamt, context=2, scale=2)
    assert video.dtype == np.uint8
    assert video.shape == (6, 3 * 7 * 2 + 4, 2 * 7 * 2, 3)
    for row, level in enumerate((60, 120, 180)):
        assert (video[:, row * 14 + 2 : row * 14 + 12, 2:12] == level).all()
        assert (video[:, row * 14 : row * 14 + 2] == 0).all()
    assert (video[:2, -4:] == (0, 200, 0)).all()
    assert (video[2:, -4:] == (200, 0, 0)).all()


def test_dream_strip_spans_the_video() -> None:
    video = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((9, 4, 5, 3), np.uint8)
    strip = dream_strip(video, columns=3)
    assert strip.shape == (4, 15, 3)
    assert strip[0, ::5, 0].tolist() == [0, 4, 8]
    assert dream_strip(video, columns=50).shape == (4, 45, 3)
