"""The defaults. Other configs start from this one and change what they need.

A field is set on the command line as `--config.rl.steps=100`. Fields with several values are
strings joined by "+", such as `--config.projection.targets=mlp+attention`. `nspo_jax/settings/` has
every field, what it does and what it may be; docs/configuration.md has them as a table.
"""

import ml_collections

from nspo_jax import settings


def get_config() -> ml_collections.ConfigDict:
    """The defaults: NSPO on the chat world."""
    return settings.to_config(settings.Run())
