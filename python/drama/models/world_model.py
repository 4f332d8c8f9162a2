"""The world model: observations to categorical latents, a sequence model over them, and what it predicts.

Time convention (one for the package): at step t the agent sees frame o_t, acts a_t, and receives r_t and terminated_t.
`d_t = f(d_{t-1}, z_t, a_t)`; from `d_t` come the prior of z_{t+1}, r_t, and whether a_t ended the episode.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drama.config import WorldModelConfig
from drama.interface import LONE, Choices, Interface
from drama.models import latent, sequence
from drama.models.heads import TwoHot, mlp
from drama.models.losses import Harmony, Sum, kl_losses
from drama.models.norm import RMSNorm
from drama.models.observation import ObservationDecoder, ObservationEncoder, Parts
from drama.models.sequence.base import State
from drama.models.vision import CellPosterior, Encoder, logits
from drama.runtime.device import lowered


class Batch(NamedTuple):
    """Sequences from the replay, as tensors on the model's device."""

    obs: Parts  # by part: [B, T, H, W, C] uint8 or [B, T, N] float32
    action: Tensor  # [B, T] or [B, T, K], int64 or float32
    reward: Tensor  # [B, T] float32
    ended: Tensor  # [B, T] bool: terminated, or a life was lost
    is_first: Tensor  # [B, T] bool


class Belief(NamedTuple):
    """What is known at a step before its action is taken. Nothing of it is kept in the model."""

    z: Tensor  # [B, latents], of the present observation: seen, or predicted
    d: Tensor  # [B, width], the output after the step before; zero at an episode's start
    first: Tensor | None  # [B] bool, where the step opens an episode; None: nowhere
    state: State  # of the sequence model after the step before

    @property
    def features(self) -> Tensor:
        """What the agent sees, `[B, features]`."""
        return torch.cat([self.z, self.d], dim=-1).float()


class WorldModel(nn.Module):
    """Encoder, posterior, sequence model, prior, decoder, reward and termination heads.

    `observe` and `advance` are the two ways a belief goes on: by what is seen, and by what is done. Losses are
    returned, never stepped. Outside of a world-model update the model must be in evaluation mode, because batch norm
    answers differently in training mode.

    Args:
        config: sizes and losses.
        interface: what the environment shows and takes.
        precision: of products and convolutions, wherever the caller has not chosen one by autocast.
    """

    def __init__(self, config: WorldModelConfig, interface: Interface, precision: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.interface = interface
        self.precision = precision
        self.latents = config.latent.variables * config.latent.classes
        self.width = config.sequence.width
        self.encoder = ObservationEncoder(config, interface)
        gain = config.latent.posterior_gain
        self.posterior = nn.Sequential(*logits(self.encoder.features, self.latents, gain))
        if config.latent.local and interface.is_image:
            self.posterior = CellPosterior(cast("Encoder", self.encoder[LONE]).shape, self.latents, gain)
        self.decoder = ObservationDecoder(config, interface, self.latents)
        tokens = self.latents + interface.action.width
        self.stem = nn.Sequential(nn.Linear(tokens, self.width, bias=False), RMSNorm(self.width), nn.SiLU())
        self.sequence = sequence.build(config.sequence)
        self.prior = nn.Linear(self.width, self.latents)
        seen = self.latents if config.reward_from == "next" else 0
        self.reward = mlp(self.width + seen, config.head_units, 1, config.bins, output_scale=0.0)
        self.termination = mlp(self.width, config.head_units, 1, 1)
        self.two_hot = TwoHot(config.bins, config.bin_limit, config.two_hot_mean)
        self.balance = Harmony() if config.balance == "harmony" else Sum()
        counts = interface.action.counts if isinstance(interface.action, Choices) else ()
        offsets = torch.tensor([sum(counts[:i]) for i in range(len(counts))])
        self.register_buffer("offsets", offsets, persistent=False)

    offsets: Tensor

    @property
    def features(self) -> int:
        """Width of the agent's input `[z_t, d_{t-1}]`."""
        return self.latents + self.width

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.offsets.device

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of this model as an autocast context."""
        return lowered(self.precision, self.device)

    # Beliefs

    def initial_belief(self, batch: int) -> Belief:
        """Before the first step of an episode, nothing seen."""
        zeros = torch.zeros(batch, self.latents + self.width, device=self.device)
        first = torch.ones(batch, dtype=torch.bool, device=self.device)
        return Belief(zeros[:, : self.latents], zeros[:, self.latents :], first, self.initial_state(batch))

    @torch.no_grad()
    def observe(self, belief: Belief, obs: Parts, first: Tensor) -> Belief:
        """The belief after `obs`, by part `[B, ...]`, is seen; where `first[B]`, all before it is forgotten."""
        z = self.sample(self.encode(obs))
        return Belief(z, belief.d.masked_fill(self.forgets(first)[:, None], 0.0), first, belief.state)

    @torch.no_grad()
    def advance(self, belief: Belief, action: Tensor, *, give_up: bool = False) -> Belief:
        """The belief after `action[B]` or `[B, K]`, with the latent that is predicted for what comes.

        With `give_up` the state of `belief`, which must not open an episode, may be written over.
        """
        if give_up:
            d, state = self.step_(belief.z, action, belief.state)
        else:
            d, state = self.step(belief.z, action, belief.first, belief.state)
        return Belief(self.sample(self.predict_latent(d)), d.float(), None, state)

    @torch.no_grad()
    def recall(self, z: Tensor, action: Tensor, is_first: Tensor) -> Belief:
        """The belief at the last of real steps `z[B, T, latents]`, `action[B, T]` and `is_first[B, T]`, T at least 2.

        The last action is not used: it has not been taken.
        """
        d, state = self(z[:, :-1], action[:, :-1], is_first[:, :-1])
        last_first = is_first[:, -1]
        return Belief(z[:, -1], d[:, -1].masked_fill(self.forgets(last_first)[:, None], 0.0), last_first, state)

    def beliefs(self, z: Tensor, d: Tensor, is_first: Tensor) -> Tensor:
        """What an agent sees at each of the steps `z[B, T, latents]` with the outputs `d[B, T, width]` of the model:
        features `[B, T, features]` as of `Belief`. The first step has the `d` of an episode's start."""
        before = torch.cat([torch.zeros_like(d[:, :1]), d[:, :-1]], dim=1)
        return torch.cat([z, before.masked_fill(self.forgets(is_first)[..., None], 0.0)], dim=-1).float()

    # Parts

    def encode(self, obs: Parts) -> Tensor:
        """Posterior log-probabilities `[..., variables, classes]` of observations by part."""
        features = self.encoder(obs)
        logits = self.posterior(features.reshape(-1, self.encoder.features))
        return self._log_probs(logits.reshape(*features.shape[:-1], self.latents))

    def decode(self, z: Tensor) -> Parts:
        """Images `[..., H, W, C]` in [0, 1] and numbers `[..., N]` in symlog space of flat latents `[..., latents]`."""
        parts: Parts = self.decoder(z)
        return parts

    def show(self, z: Tensor) -> Parts:
        """As `decode`, as the environment would show it: images uint8, numbers as they are."""
        return self.decoder.observed(self.decode(z))

    def predict_latent(self, d: Tensor) -> Tensor:
        """Prior log-probabilities `[..., variables, classes]` of the next latent from `d[..., width]`."""
        return self._log_probs(self.prior(d))

    def predict_outcome(self, d: Tensor, following: Tensor) -> tuple[Tensor, Tensor]:
        """Reward logits `[..., bins]` and termination logits `[...]` of the action that led to `d[..., width]` and, if
        the episode goes on, to the latent `following[..., latents]`."""
        termination = self.predict_termination(d)
        if self.config.reward_from == "next":
            following = following * (termination <= 0).unsqueeze(-1)
        return self.predict_reward(d, following), termination

    def predict_termination(self, d: Tensor) -> Tensor:
        """Termination logits `[...]` of the action that led to `d[..., width]`."""
        return self.termination(d).squeeze(-1)

    def predict_reward(self, d: Tensor, following: Tensor) -> Tensor:
        """Reward logits `[..., bins]` of the action that led to `d[..., width]` and to the latent
        `following[..., latents]`, which is zeros where nothing follows."""
        return self.reward(torch.cat([d, following], dim=-1) if self.config.reward_from == "next" else d)

    def sample(self, log_probs: Tensor) -> Tensor:
        """One flat one-hot sample `[..., latents]`, without gradient."""
        return latent.sample(log_probs).flatten(-2)

    def forward(self, z: Tensor, action: Tensor, is_first: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        """`d[B, T, width]` after each step of `z[B, T, latents]` and `action[B, T]`, and the state after the last."""
        return self.sequence(self._tokens(z, action), self.forgets(is_first), state)

    def step(self, z: Tensor, action: Tensor, is_first: Tensor | None, state: State) -> tuple[Tensor, State]:
        """`d[B, width]` after one step of `z[B, latents]` and `action[B]`, and the next state."""
        return self.sequence.step(self._tokens(z, action), None if is_first is None else self.forgets(is_first), state)

    def step_(self, z: Tensor, action: Tensor, state: State) -> tuple[Tensor, State]:
        """As `step` inside an episode, for a `state` that the caller gives up: it may be overwritten. No gradients."""
        return self.sequence.step_(self._tokens(z, action), None, state)

    def forgets(self, is_first: Tensor) -> Tensor:
        """Where the state and `d` are dropped before a step: at episode starts, unless the config says never."""
        return is_first if self.config.reset_state else torch.zeros_like(is_first)

    def initial_state(self, batch: int) -> State:
        """The sequence model's state before the first step of an episode."""
        return self.sequence.initial_state(batch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars of one batch: `loss` (to minimise), its parts, and what is only watched."""
        return self.evaluate(batch)[0]

    @torch.no_grad()
    def kl(self, batch: Batch) -> Tensor:
        """Mean KL of posterior and prior over one batch, in nats per step, before the free bits."""
        posterior = self.encode(batch.obs)
        d, _ = self(self.sample(posterior), batch.action, batch.is_first)
        return kl_losses(posterior, self.predict_latent(d), batch.is_first, 0.0)[2]

    def evaluate(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """The scalars of `loss`, the latents `[B, T, latents]` that were sampled for them, and the outputs
        `[B, T, width]` that came of them, the latter two detached."""
        posterior = self.encode(batch.obs)
        z = latent.straight_through_sample(posterior).flatten(-2)
        d, _ = self(z, batch.action, batch.is_first)
        prior = self.predict_latent(d)
        termination = self.predict_termination(d)
        losses, watched = self.decoder.losses(z, batch.obs)
        losses["reward"] = self._reward_losses(d, z, batch)
        losses["termination"] = F.binary_cross_entropy_with_logits(
            termination.float(), batch.ended.float(), reduction="none"
        )
        for name, value in losses.items():
            assert value.shape == batch.reward.shape, f"{name}: {value.shape}, expected {batch.reward.shape}"
        means = {name: value.mean() for name, value in losses.items()}
        # The free bits clip the mean over the batch, as published.
        means["dynamics"], means["representation"], kl = kl_losses(
            posterior, prior, batch.is_first, self.config.free_bits
        )
        scales = self.scales
        assert means.keys() == scales.keys(), means.keys() ^ scales.keys()
        loss = self.balance({name: scale * means[name] for name, scale in scales.items()})
        scalars = {name: value.mean() for name, value in watched.items()}
        scalars |= {name: means[name].detach() for name in ("reward", "termination")}
        entropy = -(posterior.exp() * posterior).sum((-2, -1)).mean().detach()
        return {"loss": loss, **scalars, "kl": kl, "posterior_entropy": entropy}, z.detach(), d.detach()

    def _reward_losses(self, d: Tensor, z: Tensor, batch: Batch) -> Tensor:
        """The cross-entropy of the rewards, `[B, T]`. What followed the last step is not in the batch: it counts only
        where that is not asked for, or where nothing did."""
        if self.config.reward_from == "output":
            return self.two_hot.loss(self.reward(d), batch.reward)
        following = torch.zeros_like(z)
        following[:, :-1] = z[:, 1:] * ~batch.is_first[:, 1:, None]
        losses = self.two_hot.loss(self.predict_reward(d, following), batch.reward)
        known = torch.ones_like(batch.ended)
        known[:, -1] = batch.ended[:, -1]
        return losses * known * (known.numel() / known.sum())

    @property
    def scales(self) -> dict[str, float]:
        """The weight of each loss, by name."""
        config = self.config
        scales = {"reconstruction": config.reconstruction_scale} if self.interface.images else {}
        scales |= {"vector": config.vector_scale} if self.interface.vectors else {}
        return scales | {
            "reward": 1.0,
            "termination": 1.0,
            "dynamics": config.dynamics_scale,
            "representation": config.representation_scale,
        }

    def _log_probs(self, logits: Tensor) -> Tensor:
        config = self.config.latent
        return latent.mixed_log_probs(logits.unflatten(-1, (config.variables, config.classes)), config.unimix)

    def _tokens(self, z: Tensor, action: Tensor) -> Tensor:
        if isinstance(self.interface.action, Choices):
            chosen = action[..., None] if self.interface.action.single else action + self.offsets
            # Not F.one_hot: it reads the largest action, for which the host would wait.
            told = z.new_zeros(*z.shape[:-1], self.interface.action.width).scatter_(-1, chosen, 1.0)
        else:
            told = action / action.abs().clamp(min=1)  # as the environment takes it
        return self.stem(torch.cat([z, told.to(z.dtype)], dim=-1))
