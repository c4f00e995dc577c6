"""The fields that only some runs read; a run that sets one and does not read it is refused.

An ignored field is a mistake that nobody sees, such as a run on one's own prompts that trains on
the chat world's. A field counts as set if it differs from its default. Tasks, algorithms and terms
list the fields that they read.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any

from nspo_jax import settings, tasks
from nspo_jax.rl import algorithms, batches, terms
from nspo_jax.rl.algorithms import policy_gradient


@dataclasses.dataclass(frozen=True)
class Use:
    """Some fields and the runs that read them.

    Attributes:
      when: the condition on the settings, in words.
      holds: tells whether a run's settings meet it.
      fields: the fields' dotted names.
    """

    when: str
    holds: Callable[[settings.Run], bool]
    fields: tuple[str, ...]


CONDITIONAL = (
    Use(
        "an empty model.path and model.preset",
        lambda run: not (run.model.path or run.model.preset),
        (
            "model.hidden_size", "model.intermediate_size", "model.num_layers", "model.num_heads",
            "model.num_kv_heads", "pretraining.seed", "pretraining.steps",
            "pretraining.batch_size", "pretraining.learning_rate",
        ),
    ),
    Use("data.chat=True", lambda run: run.data.chat, ("data.system_prompt", "data.date")),
    Use(
        "data.chat=True with a model.path or a model.preset",
        lambda run: run.data.chat and bool(run.model.path or run.model.preset),
        ("data.thinking",),
    ),
    Use(
        "calibration.completions=generated",
        lambda run: run.calibration.completions == "generated",
        ("calibration.temperature", "calibration.seed"),
    ),
    Use(
        "a projection.mode other than none", lambda run: run.projection.mode != "none",
        ("projection.basis",),
    ),
    Use(
        "rl.algorithm=policy_gradient and an rl.kl_coefficient above 0",
        lambda run: run.rl.algorithm == "policy_gradient" and run.rl.kl_coefficient > 0,
        ("rl.kl_estimator",),
    ),
    Use(
        "a public reward_training.dataset",
        lambda run: run.reward_training.dataset not in tasks.KINDS,
        tuple(f"reward_training.{name}" for name in ("path", "subset", "split", "held_out_split")),
    ),
)  # fmt: skip
# field -> the reason why some runs do not read it, or the field that they read instead
INSTEAD = {
    **dict.fromkeys(tasks.KINDS["safety"].fields, "The prompts of the other tasks are made up."),
    "rewards.refusal_detector": "The chat world has an exact detector of its own.",
    "data.train_split": "The story task draws from all of its openings.",
    "data.benign_fraction": "The story task has nothing to replay.",
    "data.wrapped_fraction": "The wrappers are the chat world's.",
    **dict.fromkeys(
        (*batches.FIELDS, *policy_gradient.LOSS_FIELDS), "DPO samples nothing and asks no judge."
    ),
    "rl.kl_coefficient": "What holds the policy to the base model is rl.dpo_beta for dpo, and "
    "lagrangian.kl, a part of the rewards, for ppo_lagrangian.",
    "rl.advantage": "Pairs have none, and a critic's are made from values.",
}


def uses_of(run: settings.Run) -> list[Use]:
    """Returns all uses, those of the run's own task included, which may read fields too."""

    def asks(names: tuple[str, ...], run: settings.Run) -> bool:
        asked = {spec.name for spec in terms.parse(run.rewards.terms)}
        return algorithms.of(run).generates and not asked.isdisjoint(names)

    kinds = tasks.KINDS | {run.task: tasks.kind_of(run.task)}
    return [
        *_uses(_fields(kinds), "task={}", "", lambda names, run: run.task in names),
        *CONDITIONAL,
        *_uses(
            _fields(algorithms.ALGORITHMS), "rl.algorithm={}", "",
            lambda names, run: run.rl.algorithm in names,
        ),
        *_uses(_fields(terms.TERMS), "a {}", " in rewards.terms", asks),
    ]  # fmt: skip


def _fields(table: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    return {name: row.fields for name, row in table.items()}


def _uses(
    table: Mapping[str, Sequence[str]],
    said: str,
    end: str,
    holds: Callable[[tuple, settings.Run], bool],
) -> list[Use]:
    """Makes a use for each set of rows that share fields; a field that all rows read needs none."""
    readers: dict[str, list[str]] = {}
    for name, fields in table.items():
        for field in fields:
            readers.setdefault(field, []).append(name)
    shared: dict[tuple[str, ...], list[str]] = {}
    for field, names in readers.items():
        shared.setdefault(tuple(names), []).append(field)
    return [
        Use(
            _one_of([said.format(name) for name in names]) + end,
            functools.partial(holds, names),
            tuple(fields),
        )
        for names, fields in shared.items()
        if len(names) < len(table)
    ]


def _one_of(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def check_uses(run: settings.Run, *, is_run: bool = True) -> None:
    """Raises ValueError listing the fields that are set but not read, and the runs that read them.

    Args:
      run: settings whose fields are all in their ranges.
      is_run: a policy is trained; otherwise fields of rewards may be set for a later run.
    """
    flat, defaults = settings.flatten(run), settings.flatten(settings.Run())
    found = []
    for use in uses_of(run):
        unread = [
            name
            for name in use.fields
            if flat[name] != defaults[name] and (is_run or not name.startswith("rewards."))
        ]
        if unread and not use.holds(run):
            values = [
                f"{name} is {flat[name]!r} (by default {defaults[name]!r})" for name in unread
            ]
            instead = dict.fromkeys(INSTEAD[name] for name in unread if name in INSTEAD)
            them = "them" if len(unread) > 1 else "it"
            words = [f"{'; '.join(values)}: only {use.when} reads {them}.", *instead]
            found.append(" ".join(words))
    if found:
        raise ValueError(
            f"This run would ignore what its config says. {' '.join(found)} Leave such a field at "
            "its default, or set what reads it."
        )
