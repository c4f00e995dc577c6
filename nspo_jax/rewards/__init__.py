"""Rewards, one interface for all: see `reward.Reward`."""

from nspo_jax.rewards.guard import Guard, load_guard
from nspo_jax.rewards.refusals import OverRefusal, is_refusal
from nspo_jax.rewards.reward import Reward
from nspo_jax.rewards.rules import StoryJudge, WorldJudge, is_world_refusal

__all__ = [
    "Guard",
    "OverRefusal",
    "Reward",
    "StoryJudge",
    "WorldJudge",
    "is_refusal",
    "is_world_refusal",
    "load_guard",
]
