"""The defaults of every field, from which the other configs start.

`--config.rl.steps=100` sets a field on the command line. Fields with several values are strings
joined by "+", such as `--config.projection.targets=mlp+attention`. `nspo_jax/settings/` declares
every field with its meaning and range; docs/configuration.md has them as a table.
"""

import ml_collections

from nspo_jax import settings


def get_config() -> ml_collections.ConfigDict:
    """Returns the defaults: NSPO on the chat world."""
    return settings.to_config(settings.Run())
