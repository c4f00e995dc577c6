"""Settings of runs for tests, made without a look at their ranges: some tests are about those."""

from nspo_jax import settings


def made(config, changes=None):
    """The settings that a config says, with other values of some dotted fields."""
    return settings._build(settings.Run, settings._flatten_config(config) | dict(changes or {}))


def changed(run, changes):
    """Other settings than a run's in some dotted fields."""
    return settings._build(settings.Run, settings.flatten(run) | dict(changes))
