"""Environments. `make_atari` needs the `atari` extra."""

from drama.envs.atari import AtariEnv, atari_games, make_atari

__all__ = ["AtariEnv", "atari_games", "make_atari"]
