"""Rewards, one interface for all: see `reward.Reward`."""

from nspo_jax.rewards.reward import Reward
from nspo_jax.rewards.rules import StoryJudge, WorldJudge, is_refusal

__all__ = ["Reward", "StoryJudge", "WorldJudge", "is_refusal"]
