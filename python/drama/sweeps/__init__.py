"""Many runs on Ray (extra `sweep`): `drama.sweep` starts them; `trainable` is one, for Tune scripts of one's own.

Nothing heavy is imported here: a worker of Ray imports this first, and torch reads the environment when it is loaded.
"""

from drama.sweeps.trial import trainable

__all__ = ["trainable"]
