"""Rewards behind one interface, `reward.Reward`, and their weighted sum, `mixture.Mixture`."""

from nspo_jax.rewards.guard import Guard, load_guard, open_verdicts
from nspo_jax.rewards.judge_cache import JudgeCache
from nspo_jax.rewards.judge_client import JudgeClient
from nspo_jax.rewards.mixture import (
    FAILURES,
    NORMALISATIONS,
    Mixture,
    NoVerdictError,
    Pending,
    TermSpec,
    Total,
    parse_terms,
)
from nspo_jax.rewards.refusals import (
    DETECTORS,
    OverRefusal,
    Refusal,
    Verdict,
    is_refusal,
    refusal_probability,
    refused,
)
from nspo_jax.rewards.remote import RemoteJudge
from nspo_jax.rewards.reward import JudgeError, Reward
from nspo_jax.rewards.scored import ModelReward

__all__ = [
    "DETECTORS",
    "FAILURES",
    "NORMALISATIONS",
    "Guard",
    "JudgeCache",
    "JudgeClient",
    "JudgeError",
    "Mixture",
    "ModelReward",
    "NoVerdictError",
    "OverRefusal",
    "Refusal",
    "Pending",
    "RemoteJudge",
    "Reward",
    "TermSpec",
    "Total",
    "Verdict",
    "is_refusal",
    "load_guard",
    "open_verdicts",
    "parse_terms",
    "refusal_probability",
    "refused",
]
