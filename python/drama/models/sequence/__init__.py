"""Sequence models by name. `register` takes a user's own; `build` makes the one that a config asks for."""

from __future__ import annotations

from collections.abc import Callable

from drama.config import SequenceConfig
from drama.models.sequence.base import ResidualStack, SequenceModel
from drama.models.sequence.mamba import Mamba
from drama.models.sequence.mamba2 import Mamba2
from drama.models.sequence.transformer import TransformerLayer

Builder = Callable[[SequenceConfig], SequenceModel]
_builders: dict[str, Builder] = {}


def register(name: str) -> Callable[[Builder], Builder]:
    """Register a function `SequenceConfig -> SequenceModel` as the backend `name`."""

    def add(builder: Builder) -> Builder:
        if name in _builders:
            raise ValueError(f"sequence backend {name!r} is registered already")
        _builders[name] = builder
        return builder

    return add


def build(config: SequenceConfig) -> SequenceModel:
    """Make the sequence model that `config.backend` names."""
    if config.backend not in _builders:
        raise ValueError(
            f"world_model.sequence.backend: {config.backend!r} is unknown; there are {', '.join(_builders)}"
        )
    return _builders[config.backend](config)


@register("mamba2")
def _mamba2(config: SequenceConfig) -> SequenceModel:
    def mixer() -> Mamba2:
        return Mamba2(
            config.width,
            d_state=config.state,
            d_conv=config.conv,
            expand=config.expand,
            headdim=config.head_dim,
            ngroups=config.groups,
            chunk_size=config.chunk,
            kernels=config.kernels,
        )

    return ResidualStack([mixer() for _ in range(config.layers)], config.width)


@register("mamba")
def _mamba(config: SequenceConfig) -> SequenceModel:
    def mixer() -> Mamba:
        return Mamba(config.width, d_state=config.state, d_conv=config.conv, expand=config.expand)

    return ResidualStack([mixer() for _ in range(config.layers)], config.width)


@register("transformer")
def _transformer(config: SequenceConfig) -> SequenceModel:
    def mixer() -> TransformerLayer:
        return TransformerLayer(config.width, heads=config.heads, window=config.window, dropout=config.dropout)

    return ResidualStack([mixer() for _ in range(config.layers)], config.width)


__all__ = ["ResidualStack", "SequenceModel", "build", "register"]
