"""What a run needs to know of a task, and what a task must have to be one."""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
from typing import Any, Protocol

from nspo_jax import artifacts, models, rewards, settings
from nspo_jax.data import chat, preferences
from nspo_jax.data.conversation import Conversation

Completed = dict[str, tuple[Sequence[Conversation], Sequence[str]]]
Scores = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run needs to know of the world.

    Attributes:
      parts: the RL batch: (conversations to draw from, how many a step).
      suites: sets that are sampled from and scored, by name.
      calibration: general conversations that define what to preserve.
      held_out: general conversations disjoint from those.
      reward: judges completions; None: the task has no judge of its own, and a run brings one.
      score: (suite name -> conversations and completions, drift on held-out text) to scores, rates
        as fractions; `unsafe`, `general` and `kl_heldout` are always among them. What a score is
        made of has its name before a slash: `general/maths`.
      counts: score -> the number of prompts that it is a share of, for its sampling error.
      is_refusal: tells a completion that refuses.
    """

    parts: list[tuple[list[Conversation], int]]
    suites: dict[str, list[Conversation]]
    calibration: list[Conversation]
    held_out: list[Conversation]
    reward: rewards.Reward | None
    score: Callable[[Completed, dict[str, float]], Scores]
    counts: dict[str, int]
    is_refusal: Callable[[str], bool] = rewards.is_refusal


class Kind(Protocol):
    """How a task is made of a run's settings.

    Attributes:
      pretrains: a base model, and reward models, are made here where no directory is named.
      has_rules: `rewards.terms=rules` judges it.
      has_pairs: it has preference pairs of its own.
      fields: the settings, by dotted name, that it reads and that some other task does not.
      text_fields: those of them that its calibration text depends on.
    """

    pretrains: bool
    has_rules: bool
    has_pairs: bool
    fields: tuple[str, ...]
    text_fields: tuple[str, ...]

    def check(self, config: settings.Run, *, has_weights: bool) -> None:
        """Raises ValueError for settings that cannot work, before anything expensive starts.

        Args:
          config: the run's.
          has_weights: models are loaded; without, what names them and data may be empty.
        """
        ...

    def make(
        self,
        config: settings.Run,
        model_config: models.ModelConfig,
        load_base: Callable[[], Any],
        chat_format: chat.ChatFormat,
    ) -> Task:
        """The task, for a base model, which is loaded if the task needs it."""
        ...

    def pairs(self, config: settings.Run) -> list[preferences.Pair] | None:
        """Its own preference pairs; None: it has none."""
        ...

    def pretrain(self, config: settings.Run, directory: pathlib.Path) -> None:
        """Makes its base model; called where `pretrains`."""
        ...

    def base_recipe(self, config: settings.Run, directory: pathlib.Path) -> artifacts.Recipe | None:
        """The settings that its base model is made by, for who finds one in the directory."""
        ...


def no_base(config: settings.Run) -> ValueError:
    """What is raised where a task's base model is to be given, and is not."""
    return ValueError(
        f"task is {config.task!r} and model.path is empty: only the chat world's base can be "
        "pretrained here. Set --config.model.path to a Hugging Face directory."
    )


class Given:
    """The part of a kind whose base model and pairs are given from outside."""

    pretrains = False
    has_pairs = False
    fields: tuple[str, ...] = ()
    text_fields: tuple[str, ...] = ()

    def pairs(self, config: settings.Run) -> list[preferences.Pair] | None:
        """None."""
        return None

    def pretrain(self, config: settings.Run, directory: pathlib.Path) -> None:
        """Raises ValueError: there is nothing to make it of."""
        raise no_base(config)

    def base_recipe(self, config: settings.Run, directory: pathlib.Path) -> artifacts.Recipe | None:
        """None: it was made elsewhere."""
        return None
