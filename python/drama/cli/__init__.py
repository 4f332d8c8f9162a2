"""The command line."""

from drama.cli.main import main

__all__ = ["main"]
