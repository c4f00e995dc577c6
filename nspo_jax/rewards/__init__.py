"""Rewards, one interface for all: see `rules.Reward`."""

from nspo_jax.rewards.rules import Reward, StoryJudge, WorldJudge, is_refusal

__all__ = ["Reward", "StoryJudge", "WorldJudge", "is_refusal"]
