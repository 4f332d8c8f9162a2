"""The world model: frames to categorical latents, a sequence model over them, and what it predicts.

Time convention (one for the package): at step t the agent sees frame o_t, acts a_t, and receives r_t and terminated_t.
`d_t = f(d_{t-1}, z_t, a_t)`; from `d_t` come the prior of z_{t+1}, r_t, and whether a_t ended the episode.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drama.config import WorldModelConfig
from drama.models import latent, sequence
from drama.models.heads import TwoHot, mlp
from drama.models.losses import kl_losses, reconstruction_losses
from drama.models.norm import RMSNorm, batch_norms
from drama.models.sequence.base import State
from drama.models.vision import Decoder, Encoder, to_unit

ENCODED_AT_ONCE = 64
"""Frames that the encoder takes together on a CPU when nothing is learned."""


class Batch(NamedTuple):
    """Sequences from the replay, as tensors on the model's device."""

    obs: Tensor  # [B, T, H, W, C] uint8
    action: Tensor  # [B, T] int64
    reward: Tensor  # [B, T] float32
    ended: Tensor  # [B, T] bool: terminated, or a life was lost
    is_first: Tensor  # [B, T] bool


class WorldModel(nn.Module):
    """Encoder, posterior, sequence model, prior, decoder, reward and termination heads.

    Losses are returned, never stepped: the trainer owns optimizers and autocast. Outside of a world-model update the
    model must be in evaluation mode, because batch norm answers differently in training mode.
    """

    def __init__(self, config: WorldModelConfig, size: int, channels: int, actions: int) -> None:
        super().__init__()
        self.config = config
        self.actions = actions
        self.latents = config.latent.variables * config.latent.classes
        self.width = config.sequence.width
        self.encoder = Encoder(config.vision, size, channels)
        self.posterior = nn.Sequential(nn.Linear(self.encoder.features, self.latents))
        if config.latent.posterior_gain:
            norm = nn.BatchNorm1d(self.latents)
            nn.init.constant_(norm.weight, config.latent.posterior_gain)
            self.posterior.append(norm)
        self.decoder = Decoder(config.vision, size, channels, self.latents)
        self.stem = nn.Sequential(
            nn.Linear(self.latents + actions, self.width, bias=False), RMSNorm(self.width), nn.SiLU()
        )
        self.sequence = sequence.build(config.sequence)
        self.prior = nn.Linear(self.width, self.latents)
        self.reward = mlp(self.width, config.head_units, 1, config.bins, output_scale=0.0)
        self.termination = mlp(self.width, config.head_units, 1, 1)
        self.two_hot = TwoHot(config.bins, config.bin_limit, config.two_hot_mean)

    @property
    def features(self) -> int:
        """Width of the agent's input `[z_t, d_{t-1}]`."""
        return self.latents + self.width

    def encode(self, obs: Tensor) -> Tensor:
        """Posterior log-probabilities `[..., variables, classes]` of frames `[..., H, W, C]` uint8."""
        features = self._features(obs)
        logits = self.posterior(features.reshape(-1, self.encoder.features))
        return self._log_probs(logits.reshape(*features.shape[:-1], self.latents))

    def _features(self, obs: Tensor) -> Tensor:
        statistics = any(norm.training for norm in batch_norms(self.encoder))  # these are of all frames together
        if torch.is_grad_enabled() or statistics or obs.device.type != "cpu":
            return self.encoder(obs)
        frames = obs.flatten(0, -4)  # in parts whose activations stay in the cache: up to twice as fast
        return torch.cat([self.encoder(part) for part in frames.split(ENCODED_AT_ONCE)]).unflatten(0, obs.shape[:-3])

    def decode(self, z: Tensor) -> Tensor:
        """Frames `[..., H, W, C]` in [0, 1] of flat latents `[..., latents]`."""
        return self.decoder(z)

    def predict_latent(self, d: Tensor) -> Tensor:
        """Prior log-probabilities `[..., variables, classes]` of the next latent from `d[..., width]`."""
        return self._log_probs(self.prior(d))

    def predict_outcome(self, d: Tensor) -> tuple[Tensor, Tensor]:
        """Reward logits `[..., bins]` and termination logits `[...]` of the action that led to `d[..., width]`."""
        return self.reward(d), self.termination(d).squeeze(-1)

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

    def evaluate(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        """The scalars of `loss`, and the latents `[B, T, latents]` that were sampled for them, detached."""
        posterior = self.encode(batch.obs)
        z = latent.straight_through_sample(posterior).flatten(-2)
        d, _ = self(z, batch.action, batch.is_first)
        prior = self.predict_latent(d)
        reward, termination = self.predict_outcome(d)

        weighted, reconstruction = reconstruction_losses(self.decode(z), to_unit(batch.obs), self.config.motion_scale)
        reward_loss = self.two_hot.loss(reward, batch.reward).mean()
        termination_loss = F.binary_cross_entropy_with_logits(termination.float(), batch.ended.float())
        dynamics, representation, kl = kl_losses(posterior, prior, batch.is_first, self.config.free_bits)
        loss = (
            self.config.reconstruction_scale * weighted
            + reward_loss
            + termination_loss
            + self.config.dynamics_scale * dynamics
            + self.config.representation_scale * representation
        )
        losses = {
            "loss": loss,
            "reconstruction": reconstruction.detach(),
            "reward": reward_loss.detach(),
            "termination": termination_loss.detach(),
            "kl": kl,
            "posterior_entropy": -(posterior.exp() * posterior).sum((-2, -1)).mean().detach(),
        }
        return losses, z.detach()

    def _log_probs(self, logits: Tensor) -> Tensor:
        config = self.config.latent
        return latent.mixed_log_probs(logits.unflatten(-1, (config.variables, config.classes)), config.unimix)

    def _tokens(self, z: Tensor, action: Tensor) -> Tensor:
        # Not F.one_hot: it reads the largest action, for which the host would wait.
        one_hot = z.new_zeros(*action.shape, self.actions).scatter_(-1, action[..., None], 1.0)
        return self.stem(torch.cat([z, one_hot], dim=-1))
