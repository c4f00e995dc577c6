"""Fields that only some runs read: set where nothing reads them, they are refused.

A field that is ignored is a mistake that nobody sees: a run on one's own prompts, say, that trains
on the chat world's. A field counts as set where it differs from its default.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from nspo_jax import own_code, rewards, settings


@dataclasses.dataclass(frozen=True)
class Use:
    """What reads some fields.

    Attributes:
      when: what a config must say for that, in words.
      holds: whether a config says so.
      fields: name -> its default.
      instead: what does the work of these fields elsewhere, as a sentence; "": nothing does.
    """

    when: str
    holds: Callable[[settings.Run], bool]
    fields: Mapping[str, Any]
    instead: str = ""


def _has_term(*names: str) -> Callable[[settings.Run], bool]:
    def holds(config: settings.Run) -> bool:
        terms = {spec.name for spec in rewards.parse_terms(config.rewards.terms)}
        return config.rl.algorithm != "dpo" and not terms.isdisjoint(names)

    return holds


USES = (
    Use(
        "task=safety", lambda config: config.task == "safety" or own_code.is_named(config.task),
        {
            "data.train": "pku_safe_rlhf", "data.train_path": "", "data.subset": "",
            "data.train_column": "", "data.general_path": "", "data.general_split": "",
            "data.evaluation": "", "data.evaluation_column": "",
        },
        "The prompts of the other tasks are made up.",
    ),
    Use(
        "task=chat_world or task=safety", lambda config: config.task != "stories",
        {"data.train_split": "train", "data.benign_fraction": 0.0},
        "The story task draws from all of its openings, and has nothing to replay.",
    ),
    Use(
        "task=chat_world", lambda config: config.task == "chat_world",
        {"data.wrapped_fraction": 0.0}, "The wrappers are the chat world's.",
    ),
    Use(
        "an empty model.path and model.preset",
        lambda config: not (config.model.path or config.model.preset),
        {
            "model.hidden_size": 96, "model.intermediate_size": 256, "model.num_layers": 3,
            "model.num_heads": 4, "model.num_kv_heads": 4, "pretraining.seed": -1,
            "pretraining.steps": 1500, "pretraining.batch_size": 64,
            "pretraining.learning_rate": 3e-3,
        },
        "A checkpoint has its size, and is trained.",
    ),
    Use(
        "data.chat=True", lambda config: config.data.chat,
        {"data.system_prompt": "", "data.date": ""}, "Plain text has no chat template.",
    ),
    Use(
        "data.chat=True with a model.path or a model.preset",
        lambda config: config.data.chat and bool(config.model.path or config.model.preset),
        {"data.thinking": False}, "The chat world's template knows no thinking.",
    ),
    Use(
        "calibration.completions=generated",
        lambda config: config.calibration.completions == "generated",
        {"calibration.temperature": 1.0, "calibration.seed": 0},
    ),
    Use(
        "a projection.mode other than none", lambda config: config.projection.mode != "none",
        {"projection.basis": "null_space"},
    ),
    Use(
        "rl.algorithm=policy_gradient",
        lambda config: config.rl.algorithm == "policy_gradient",
        {"rl.kl_coefficient": 0.0, "rl.importance_cap": 0.0},
        "What holds the policy to the base model is rl.dpo_beta for dpo, and lagrangian.kl, a part "
        "of the rewards, for ppo_lagrangian.",
    ),
    Use(
        "rl.algorithm=policy_gradient",
        lambda config: config.rl.algorithm == "policy_gradient", {"rl.advantage": "grpo"},
        "Pairs have none, and a critic's are made from values.",
    ),
    Use(
        "rl.algorithm=policy_gradient and an rl.kl_coefficient above 0",
        lambda config: config.rl.algorithm == "policy_gradient" and config.rl.kl_coefficient > 0,
        {"rl.kl_estimator": "k3"},
    ),
    Use(
        "rl.algorithm=policy_gradient or rl.algorithm=ppo_lagrangian",
        lambda config: config.rl.algorithm != "dpo",
        {
            "rl.loss": "grpo", "rl.aggregation": "sequence_mean", "rl.clip": 0.2,
            "rl.clip_high": 0.0, "rl.dual_clip": 0.0, "rl.temperature": 1.0, "rl.staleness": 0,
            "rewards.terms": "rules", "rewards.normalise": "none", "rewards.on_failure": "raise",
        },
        "DPO samples nothing and asks no judge.",
    ),
    Use("rl.algorithm=dpo", lambda config: config.rl.algorithm == "dpo", {"rl.dpo_beta": 0.1}),
    Use(
        "rl.algorithm=ppo_lagrangian", lambda config: config.rl.algorithm == "ppo_lagrangian",
        {
            "lagrangian.limit": 0.05, "lagrangian.initial": 1.0, "lagrangian.learning_rate": 0.1,
            "lagrangian.largest": 10.0, "lagrangian.kl": 0.02, "lagrangian.gae_lambda": 0.95,
            "lagrangian.critic_learning_rate": 3e-4,
        },
    ),
    Use(
        "a guard, a cost_model or a reward_model in rewards.terms",
        _has_term("guard", "cost_model", "reward_model"), {"rewards.batch_size": 80},
    ),
    Use("a cost_model in rewards.terms", _has_term("cost_model"), {"rewards.cost_model": ""}),
    Use("a reward_model in rewards.terms", _has_term("reward_model"), {"rewards.reward_model": ""}),
    Use(
        "a guard in rewards.terms", _has_term("guard"),
        {
            "rewards.guard.path": "", "rewards.guard.length": 2048,
            "rewards.guard.categories": "", "rewards.guard.dtype": "bfloat16",
        },
    ),
    Use(
        "a remote_judge in rewards.terms", _has_term("remote_judge"),
        {
            "rewards.judge.url": "", "rewards.judge.model": "", "rewards.judge.api_key_env": "",
            "rewards.judge.max_tokens": 64, "rewards.judge.asks": 2,
            "rewards.judge.concurrency": 16, "rewards.judge.timeout": 60.0,
            "rewards.judge.retries": 5, "rewards.judge.down_after": 300.0,
            "rewards.judge.budget": -1,
        },
    ),
    Use(
        "reward_training.dataset=pku_safe_rlhf",
        lambda config: config.reward_training.dataset == "pku_safe_rlhf",
        {
            "reward_training.path": "", "reward_training.subset": "",
            "reward_training.split": "train", "reward_training.held_out_split": "test",
        },
        "The pairs of the chat world are made up.",
    ),
)  # fmt: skip


def check_uses(config: settings.Run, *, is_run: bool = True) -> None:
    """Raises ValueError listing the fields that are set and that nothing reads, and what would.

    Args:
      config: one whose fields are all in their ranges.
      is_run: a policy is trained; without, fields of rewards may say what a later run needs.
    """
    flat = settings.flatten(config)
    found = []
    for use in USES:
        unread = [
            f"{name} is {flat[name]!r} (by default {rest!r})"
            for name, rest in use.fields.items()
            if flat[name] != rest and (is_run or not name.startswith("rewards."))
        ]
        if unread and not use.holds(config):
            them = "them" if len(unread) > 1 else "it"
            words = f"{'; '.join(unread)}: only {use.when} reads {them}. {use.instead}"
            found.append(words.rstrip())
    if found:
        raise ValueError(
            f"This run would ignore what its config says. {' '.join(found)} Leave such a field at "
            "its default, or set what reads it."
        )
