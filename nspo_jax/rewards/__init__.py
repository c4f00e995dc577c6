"""Rewards, one interface for all: see `reward.Reward`."""

from nspo_jax.rewards.judge_cache import JudgeCache
from nspo_jax.rewards.judge_client import JudgeClient, JudgeError
from nspo_jax.rewards.remote import RemoteJudge
from nspo_jax.rewards.reward import Reward
from nspo_jax.rewards.rules import StoryJudge, WorldJudge, is_refusal

__all__ = [
    "JudgeCache",
    "JudgeClient",
    "JudgeError",
    "RemoteJudge",
    "Reward",
    "StoryJudge",
    "WorldJudge",
    "is_refusal",
]
