"""World-model reinforcement learning with Mamba-2 and a Rust replay buffer.

The package root imports nothing heavy: `drama.replay` needs NumPy only, `drama.envs` needs the `atari` extra, and
everything else the `train` extra.
"""

from importlib.metadata import version

__version__ = version("drama-rl")

__all__ = ["__version__"]
