"""Encoders and decoders of the parts of an observation: images by convolutions, numbers by perceptrons."""

from __future__ import annotations

from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from drama.config import VectorConfig, WorldModelConfig
from drama.interface import Image, Interface
from drama.models.heads import mlp, symexp, symlog
from drama.models.losses import reconstruction_losses
from drama.models.norm import batch_norms
from drama.models.vision import Decoder, Encoder

Parts: TypeAlias = dict[str, Tensor]
"""An observation by part: images `[..., H, W, C]`, numbers `[..., N]`."""
ENCODED_AT_ONCE = 64
"""Frames that an encoder takes together on a CPU when nothing is learned."""


def _spread(errors: Tensor, steps: Tensor, length: int) -> Tensor:
    """The `errors[B, N]` at their `steps[N]` of `[B, length]`, zeros elsewhere, with the mean as it was."""
    spread = errors.new_zeros(errors.shape[0], length)
    return spread.index_copy(1, steps, errors * (length / steps.numel()))


class VectorEncoder(nn.Module):
    """Numbers `[..., N]` to features `[..., units]`."""

    def __init__(self, config: VectorConfig, size: int) -> None:
        super().__init__()
        self.layers = mlp(size, config.units, config.layers, config.units)
        self.features = config.units

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(symlog(x.float()))


class ObservationEncoder(nn.ModuleDict):
    """Observations by part to features `[..., features]`: an encoder for each part, side by side."""

    def __init__(self, config: WorldModelConfig, interface: Interface) -> None:
        super().__init__()
        for name, part in interface.observation.items():
            if isinstance(part, Image):
                self[name] = Encoder(config.vision, part.shape[0], part.shape[2])
            else:
                self[name] = VectorEncoder(config.vector, len(part.labels))
        self.features = sum(cast("Encoder", encoder).features for encoder in self.values())

    def forward(self, obs: Parts) -> Tensor:
        found = [self._encoded(encoder, obs[name]) for name, encoder in self.items()]
        return found[0] if len(found) == 1 else torch.cat([x.float() for x in found], dim=-1)

    def _encoded(self, encoder: nn.Module, x: Tensor) -> Tensor:
        statistics = any(norm.training for norm in batch_norms(encoder))  # these are of all frames together
        if not isinstance(encoder, Encoder) or torch.is_grad_enabled() or statistics or x.device.type != "cpu":
            return encoder(x)
        frames = x.flatten(0, -4)  # in parts whose activations stay in the cache: up to twice as fast
        return torch.cat([encoder(part) for part in frames.split(ENCODED_AT_ONCE)]).unflatten(0, x.shape[:-3])


class ObservationDecoder(nn.ModuleDict):
    """Latents `[..., inputs]` to observations by part: images in [0, 1], numbers in symlog space."""

    def __init__(self, config: WorldModelConfig, interface: Interface, inputs: int) -> None:
        super().__init__()
        self._motion_scale, self._share = config.motion_scale, config.decoded_share
        local = config.latent.local and interface.is_image
        for name, part in interface.observation.items():
            if isinstance(part, Image):
                self[name] = Decoder(config.vision, part.shape[0], part.shape[2], inputs, local)
            else:
                self[name] = mlp(inputs, config.vector.units, config.vector.layers, len(part.labels))

    def forward(self, z: Tensor) -> Parts:
        return {name: decoder(z) for name, decoder in self.items()}

    def losses(self, z: Tensor, obs: Parts) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Squared errors `[B, T]` of what `z[B, T, inputs]` becomes, of all images and of the numbers, summed over
        each; those to minimise, and those to watch, in which all pixels weigh the same.

        Where only a share of the images is decoded (`world_model.decoded_share`), the errors of the others are 0 and
        those of the drawn ones count for more, so that the means are right in expectation.
        """
        losses: dict[str, Tensor] = {}
        watched: dict[str, Tensor] = {}
        steps, length = None, z.shape[1]
        if self._share < 1:
            count = max(1, round(self._share * length))
            steps = torch.rand(length, device=z.device).argsort()[:count]
        for name, decoder in self.items():
            if isinstance(decoder, Decoder):  # in patches: where a pixel lies makes no difference to its error
                target = decoder.as_patches(obs[name])
                drawn = z if steps is None else z.index_select(1, steps)
                found = reconstruction_losses(decoder.patches(drawn), target, self._motion_scale, steps)
                weighted, plain = found if steps is None else (_spread(error, steps, length) for error in found)
                losses["reconstruction"] = losses.get("reconstruction", 0) + weighted
                watched["reconstruction"] = watched.get("reconstruction", 0) + plain.detach()
            else:
                error = (decoder(z).float() - symlog(obs[name].float())).square().sum(-1)
                losses["vector"], watched["vector"] = error, error.detach()
        return losses, watched

    def set_mean_pixel(self, obs: Parts) -> None:
        """Start the output biases of images at their mean pixels, so that training starts from them."""
        for name, decoder in self.items():
            if isinstance(decoder, Decoder):
                decoder.set_mean_pixel(obs[name])

    def observed(self, predicted: Parts) -> Parts:
        """What was predicted as the environment would show it: images uint8, numbers as they are."""
        return {
            name: (x.float().clamp(0, 1) * 255).round().to(torch.uint8)
            if isinstance(self[name], Decoder)
            else symexp(x.float())
            for name, x in predicted.items()
        }
