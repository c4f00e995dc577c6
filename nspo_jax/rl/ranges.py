"""What each field of a config may be: the type of its value, and its range or its choices.

`FIELDS` has a line for every field of configs/default.py, and nothing else may be in a config. A
value that fits its own line may still not go with others: `checks` and `uses` look at that.
"""

from collections.abc import Callable, Sequence
import dataclasses
import datetime
import math
from typing import Any

import ml_collections
import numpy as np

from nspo_jax import models, rewards, run_directory, seeds
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.data import safety, split
from nspo_jax.models import config as model_lib
from nspo_jax.nullspace import calibration, moments, rank_rules
from nspo_jax.nullspace import projectors as projectors_lib
from nspo_jax.rl import advantages, learning, losses

ALGORITHMS = ("policy_gradient", "dpo", "ppo_lagrangian")
TASKS = ("chat_world", "stories", "safety")
DATASETS = ("chat_world", "pku_safe_rlhf")  # of preference pairs
LARGEST_SEED = 2**32 - 1  # jax's keys take 32 bits of a seed, and drop the others silently


@dataclasses.dataclass(frozen=True)
class Number:
    """Finite numbers between two ends.

    Attributes:
      kind: int, or float, which takes an int as well.
      least: the smallest of them, or with `above` what all are above.
      most: the largest of them, or with `below` what all are below; None: that of int32 or float32.
      above: whether `least` itself is left out.
      below: whether `most` itself is left out.
      off: a value beside them, which switches off what the field is about; None: there is none.
    """

    kind: type
    least: float
    most: float | None = None
    above: bool = False
    below: bool = False
    off: float | None = None

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them; NaN, an infinity and a bool never are."""
        if isinstance(value, bool) or not isinstance(value, self._kinds()):
            return False
        if self.off is not None and value == self.off:
            return True
        if self.kind is float:
            value = _to_float32(value)  # 1e-50 is 0 where it is computed with
        low = value > self.least if self.above else value >= self.least
        most = self._most()
        return low and (value < most if self.below else value <= most)

    def text(self) -> str:
        """In words: "a finite number above 0 in float32"."""
        off = "" if self.off is None else f"{self.off:g} (off), or "
        if self.kind is int:
            return f"{off}a whole number (int) from {self.least} to {self._most()}"
        low = f"{'above' if self.above else 'of at least'} {self.least:g}"
        high = (
            ""
            if self.most is None
            else f" and {'below' if self.below else 'at most'} {self.most:g}"
        )
        return f"{off}a finite number {low}{high} in float32"

    def _kinds(self) -> tuple[type, ...]:
        return (int,) if self.kind is int else (int, float)

    def _most(self) -> float:
        default = np.iinfo(np.int32).max if self.kind is int else float(np.finfo(np.float32).max)
        return default if self.most is None else self.most


def _to_float32(value: float) -> float:
    try:
        with np.errstate(over="ignore", under="ignore"):
            return float(np.float32(value))
    except OverflowError:  # an int beyond every float
        return math.inf


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: Sequence[Any]

    def holds(self, value: Any) -> bool:
        """Whether a value is one of them, and of their type."""
        return any(type(value) is type(known) and value == known for known in self.values)

    def text(self) -> str:
        """In words: "one of grpo, gspo"."""
        names = [
            "'' (nothing)" if value == "" else value if isinstance(value, str) else repr(value)
            for value in self.values
        ]
        return f"one of {', '.join(names)}"


@dataclasses.dataclass(frozen=True)
class Text:
    """Free text.

    Attributes:
      what: what it says, in words.
      parse: reads it, and raises ValueError where it cannot; None: nothing is to be read.
      empty: whether it may be "".
    """

    what: str
    parse: Callable[[str], Any] | None = None
    empty: bool = True

    def holds(self, value: Any) -> bool:
        """Whether a value is text; raises what `parse` raises."""
        if not isinstance(value, str) or not (value or self.empty):
            return False
        if self.parse is not None:
            self.parse(value)
        return True

    def text(self) -> str:
        """In words: "text: a path"."""
        return f"text{'' if self.empty else ' that is not empty'}: {self.what}"


Range = Number | Choice | Text


def check_date(date: str, what: str = "data.date") -> None:
    """Raises ValueError unless a date is empty or written as 2026-11-25."""
    try:
        wrong = bool(date) and datetime.date.fromisoformat(date).isoformat() != date
    except ValueError:
        wrong = True
    if wrong:
        raise ValueError(f"{what} is {date!r}; expected a day such as 2026-11-25, or ''.")


_SWITCH = Choice((True, False))
_COUNT = Number(int, 1)
_FROM_0 = Number(int, 0)
_SEED = Number(int, 0, LARGEST_SEED)
_OWN_SEED = Number(int, 0, LARGEST_SEED, off=seeds.FOLLOW)
_POSITIVE = Number(float, 0, above=True)
_NOT_NEGATIVE = Number(float, 0)
_SHARE = Number(float, 0, 1)
_DECAY = Number(float, 0, 1, below=True)
_AXIS = Number(int, 1, off=-1)
_DIRECTORY = Text("the directory of a model")
_PATHS = Text("files, directories or hf:OWNER/NAME, joined by +")
_SPLIT = Text(
    "a split such as train, or a slice of it such as train[:40%]", parse=split.parse, empty=False
)
_ANY_SPLIT = Text(
    "a split such as train, or a slice of it such as train[:40%]",
    parse=lambda text: text and split.parse(text),
)

FIELDS: dict[str, Range] = {
    "task": Choice(TASKS),
    "seed": _SEED,
    "workspace": Text("a directory", empty=False),
    "model.path": _DIRECTORY,
    "model.preset": Choice(("", *models.PRESETS)),
    "model.hidden_size": _COUNT,
    "model.intermediate_size": _COUNT,
    "model.num_layers": _COUNT,
    "model.num_heads": _COUNT,
    "model.num_kv_heads": _COUNT,
    "model.compute_dtype": Choice(model_lib.COMPUTE_DTYPES),
    "model.frozen_dtype": Choice(model_lib.COMPUTE_DTYPES),
    "model.remat": Choice(model_lib.REMATS),
    "pretraining.seed": _OWN_SEED,
    "pretraining.steps": _COUNT,
    "pretraining.batch_size": _COUNT,
    "pretraining.learning_rate": _POSITIVE,
    "data.chat": _SWITCH,
    "data.system_prompt": Text("a system message"),
    "data.thinking": _SWITCH,
    "data.date": Text("a day such as 2026-11-25", parse=check_date),
    "data.prompt_length": _COUNT,
    "data.completion_length": _COUNT,
    "data.benign_fraction": _SHARE,
    "data.wrapped_fraction": _SHARE,
    "data.train_split": _SPLIT,
    "data.train": Choice(safety.TRAINING),
    "data.train_path": _PATHS,
    "data.subset": Text("a directory's name"),
    "data.train_column": Text("a column's name"),
    "data.general_path": _PATHS,
    "data.general_split": _ANY_SPLIT,
    "data.evaluation": _PATHS,
    "data.evaluation_column": Text("a column's name"),
    "data.max_broken": _SHARE,
    "calibration.rows": _COUNT,
    "calibration.batch_size": _COUNT,
    "calibration.rank_rule": Text("a rank rule", parse=rank_rules.RankRules.parse),
    "calibration.statistics": Choice(calibration.STATISTICS),
    "calibration.first_token": Choice(moments.FIRST_TOKENS),
    "calibration.completions": Choice(("given", "generated")),
    "calibration.temperature": _NOT_NEGATIVE,
    "calibration.seed": _SEED,
    "projection.mode": Choice(optimizer_lib.MODES),
    "projection.targets": Text("targets", parse=projectors_lib.parse_targets),
    "projection.untargeted": Choice(("freeze", "train")),
    "projection.period": _COUNT,
    "projection.basis": Choice(("null_space", "random")),
    "optimizer.name": Choice(optimizer_lib.NAMES),
    "optimizer.master": Choice(optimizer_lib.MASTERS),
    "optimizer.learning_rate": _POSITIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "optimizer.max_gradient_norm": _POSITIVE,
    "optimizer.b1": _DECAY,
    "optimizer.b2": _DECAY,
    "rl.algorithm": Choice(ALGORITHMS),
    "rl.seed": _OWN_SEED,
    "rl.steps": _FROM_0,  # 0: the base model as it is
    "rl.prompts": _COUNT,
    "rl.samples": Number(int, 2),
    "rl.minibatches": _COUNT,
    "rl.microbatches": _COUNT,
    "rl.rollout_batches": _COUNT,
    "rl.loss": Choice(tuple(losses.LOSSES)),
    "rl.advantage": Choice(tuple(advantages.ESTIMATORS)),
    "rl.aggregation": Choice(losses.AGGREGATIONS),
    "rl.clip": _POSITIVE,
    "rl.clip_high": _NOT_NEGATIVE,
    "rl.dual_clip": Number(float, 1, above=True, off=0),
    "rl.kl_coefficient": _NOT_NEGATIVE,
    "rl.kl_estimator": Choice(losses.KL_ESTIMATORS),
    "rl.importance_cap": _NOT_NEGATIVE,
    "rl.temperature": _POSITIVE,  # at 0 a group's completions are all the same: nothing to learn
    "rl.dpo_beta": _POSITIVE,
    "rl.staleness": Choice((0, 1)),
    "rl.flat_steps": _FROM_0,
    "rl.on_flat": Choice(learning.POLICIES),
    "rl.stop_unsafe": _SHARE,
    "lagrangian.limit": _SHARE,
    "lagrangian.initial": _POSITIVE,
    "lagrangian.learning_rate": _POSITIVE,
    "lagrangian.largest": _POSITIVE,
    "lagrangian.kl": _NOT_NEGATIVE,
    "lagrangian.gae_lambda": _SHARE,
    "lagrangian.critic_learning_rate": _POSITIVE,
    "rewards.terms": Text("terms", parse=rewards.parse_terms),
    "rewards.normalise": Choice(rewards.NORMALISATIONS),
    "rewards.on_failure": Choice(rewards.FAILURES),
    "rewards.batch_size": _COUNT,
    "rewards.cost_model": _DIRECTORY,
    "rewards.reward_model": _DIRECTORY,
    "rewards.guard.path": _DIRECTORY,
    "rewards.guard.length": _COUNT,
    "rewards.guard.categories": Text("a JSON file"),
    "rewards.guard.dtype": Choice(model_lib.COMPUTE_DTYPES),
    "rewards.judge.url": Text("a server's address"),
    "rewards.judge.model": Text("a model's name"),
    "rewards.judge.api_key_env": Text("an environment variable's name"),
    "rewards.judge.max_tokens": _COUNT,
    "rewards.judge.asks": _COUNT,
    "rewards.judge.concurrency": _COUNT,
    "rewards.judge.timeout": _POSITIVE,
    "rewards.judge.retries": _FROM_0,
    "rewards.judge.down_after": _POSITIVE,
    "rewards.judge.budget": Number(int, 0, off=-1),
    "reward_training.dataset": Choice(DATASETS),
    "reward_training.path": _PATHS,
    "reward_training.subset": Text("a directory's name"),
    "reward_training.split": _SPLIT,
    "reward_training.held_out_split": _SPLIT,
    "reward_training.epochs": _COUNT,
    "reward_training.batch_size": _COUNT,
    "reward_training.learning_rate": _POSITIVE,
    "evaluation.every": _COUNT,
    "evaluation.prompts": _COUNT,
    "evaluation.batches": _COUNT,
    "evaluation.temperature": _NOT_NEGATIVE,
    "checkpoint.every": _COUNT,
    "checkpoint.keep": _COUNT,
    "checkpoint.keep_every": _FROM_0,
    "mesh.data": _AXIS,
    "mesh.fsdp": _AXIS,
    "mesh.tensor": _AXIS,
    "mesh.gather_for_rollouts": _SWITCH,
}


def check_fields(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError naming every field that is missing, unknown, or out of its range."""
    flat = run_directory.flatten(config)
    if missing := [name for name in FIELDS if name not in flat]:
        raise ValueError(
            f"The config has no field {', '.join(missing)}: begin with default.get_config() of "
            "configs/default.py, which has all of them."
        )
    if unknown := [name for name in flat if name not in FIELDS]:
        raise ValueError(
            f"The config has the field {', '.join(unknown)}, which nothing reads: delete it. "
            "configs/default.py lists every field with a comment."
        )
    wrong = []
    for name, known in FIELDS.items():
        try:
            if not known.holds(flat[name]):
                wrong.append(f"{name} is {flat[name]!r}; expected {known.text()}.")
        except ValueError as error:
            wrong.append(str(error) if name in str(error) else f"{name}: {error}")
    if wrong:
        raise ValueError(" ".join(wrong))
