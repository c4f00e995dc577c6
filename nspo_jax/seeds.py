"""Which seed a part of a run draws by: the world's, the base model's, or that of RL."""

import ml_collections

FOLLOW = -1  # pretraining.seed and rl.seed: config.seed


def pretraining_seed(config: ml_collections.ConfigDict) -> int:
    """By which the chat world's base model is made."""
    return _of(config, config.pretraining.seed)


def rl_seed(config: ml_collections.ConfigDict) -> int:
    """By which prompts are ordered, completions and random subspaces drawn, policies evaluated."""
    return _of(config, config.rl.seed)


def _of(config: ml_collections.ConfigDict, own: int) -> int:
    return config.seed if own == FOLLOW else own
