"""The old name of `nspo_jax.models.generation`; a later release removes it."""

import warnings

from nspo_jax.models.generation import Completions, stream
from nspo_jax.models.generation import generate as rollout
from nspo_jax.models.generation import generate_in_batches as rollout_in_batches

__all__ = ["Completions", "rollout", "rollout_in_batches", "stream"]

warnings.warn(
    "nspo_jax.rl.rollout is nspo_jax.models.generation, and rollout() is generate().",
    DeprecationWarning,
    stacklevel=2,
)
