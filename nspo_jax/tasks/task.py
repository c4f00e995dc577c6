"""What a run needs to know of a task, and what a task must have to be one."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any, Protocol

import numpy as np

from nspo_jax import artifacts, models, rewards, settings
from nspo_jax.data import chat, preferences
from nspo_jax.data.conversation import Conversation

Texts = tuple[Sequence[Conversation], Sequence[str]]  # conversations, and a completion of each
Completed = dict[str, Texts]
Scores = dict[str, float]
NEEDED = ("unsafe", "general", "kl_heldout")  # what the trainer shows and stops by


@dataclasses.dataclass(frozen=True)
class Rate:
    """A score: the share of a suite's completions that something holds of.

    Attributes:
      name: of the score. One with a slash, such as general/maths, is a part: the mean of all parts
        is the score before the slash.
      metric: (conversations, completions) to bool [rows].
      label: the heading of its column in tables; "": it has none.
      lower_is_better: which end of several seeds is the worst.
    """

    name: str
    metric: Callable[[Sequence[Conversation], Sequence[str]], np.ndarray]
    label: str = ""
    lower_is_better: bool = True


@dataclasses.dataclass(frozen=True)
class Suite:
    """Conversations whose prompts are answered at every evaluation, and what is measured there."""

    rows: list[Conversation]
    rates: tuple[Rate, ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """What a run needs to know of the world.

    Attributes:
      parts: the RL batch: (conversations to draw from, how many a step).
      suites: sets that are sampled from and scored, by name.
      calibration: general conversations that define what to preserve.
      held_out: general conversations disjoint from those.
      reward: judges completions; None: the task has no judge of its own, and a run brings one.
      drift: score -> its name in `nullspace.drift` on held-out text.
      is_refusal: tells a completion that refuses.

    Raises:
      ValueError: for two scores of one name, or without one of NEEDED.
    """

    parts: list[tuple[list[Conversation], int]]
    suites: dict[str, Suite]
    calibration: list[Conversation]
    held_out: list[Conversation]
    reward: rewards.Reward | None
    drift: Mapping[str, str]
    is_refusal: Callable[[str], bool] = rewards.is_refusal

    def __post_init__(self):
        names = [*self.drift, *(rate.name for rate in self._rates())]
        if doubled := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"The task has several scores called {', '.join(sorted(doubled))}.")
        there = {name.split("/")[0] for name in names}
        if missing := [name for name in NEEDED if name not in there]:
            raise ValueError(
                f"The task has no score {', '.join(missing)}; it has {', '.join(sorted(there))}. "
                "Give one of its suites such a rate, or name it in `drift`."
            )

    def _rates(self) -> list[Rate]:
        return [rate for suite in self.suites.values() for rate in suite.rates]

    def score(self, completed: Completed, drift: Mapping[str, float]) -> Scores:
        """Measures every rate of every suite, the means of parts, and the drift.

        Args:
          completed: suite -> conversations and completions.
          drift: what `nullspace.drift` measured on held-out text.
        """
        scores: Scores = {}
        for name, suite in self.suites.items():
            for rate in suite.rates:
                whole, slash, _ = rate.name.partition("/")
                if slash:
                    scores.setdefault(whole, np.nan)  # stands before its parts
                scores[rate.name] = float(np.mean(rate.metric(*completed[name])))
        for whole, parts in self._parts().items():
            scores[whole] = float(np.mean([scores[part] for part in parts]))
        return scores | {name: drift[measured] for name, measured in self.drift.items()}

    def _parts(self) -> dict[str, list[str]]:
        """The scores that are means -> their parts."""
        found: dict[str, list[str]] = {}
        for rate in self._rates():
            if "/" in rate.name:
                found.setdefault(rate.name.split("/")[0], []).append(rate.name)
        return found

    @property
    def counts(self) -> dict[str, int]:
        """Rate -> the prompts that it is a share of, for its sampling error; of a mean of k rates
        as many as it is worth: its variance is p (1 - p) sum(1 / n) / k^2 where they are alike.
        """
        sizes = {rate.name: len(s.rows) for s in self.suites.values() for rate in s.rates}
        means = {
            whole: round(len(parts) ** 2 / sum(1 / sizes[part] for part in parts))
            for whole, parts in self._parts().items()
        }
        return sizes | means

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """Rate -> `label` and `lower_is_better` of its column in tables."""
        return {
            rate.name: {"label": rate.label, "lower_is_better": rate.lower_is_better}
            for rate in self._rates()
            if rate.label
        }


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

    def check(self, run: settings.Run, *, has_weights: bool) -> None:
        """Raises ValueError for settings that cannot work, before anything expensive starts.

        Args:
          run: the run's.
          has_weights: models are loaded; without, what names them and data may be empty.
        """
        ...

    def make(
        self,
        run: settings.Run,
        model_config: models.ModelConfig,
        load_base: Callable[[], Any],
        chat_format: chat.ChatFormat,
    ) -> Task:
        """The task, for a base model, which is loaded if the task needs it."""
        ...

    def pairs(self, run: settings.Run) -> list[preferences.Pair] | None:
        """Its own preference pairs; None: it has none."""
        ...

    def pretrain(self, run: settings.Run, directory: pathlib.Path) -> None:
        """Makes its base model; called where `pretrains`."""
        ...

    def base_recipe(self, run: settings.Run, directory: pathlib.Path) -> artifacts.Recipe | None:
        """The settings that its base model is made by, for who finds one in the directory."""
        ...


def no_base(run: settings.Run) -> ValueError:
    """What is raised where a task's base model is to be given, and is not."""
    return ValueError(
        f"task is {run.task!r} and model.path is empty: only the chat world's base can be "
        "pretrained here. Set --config.model.path to a Hugging Face directory."
    )


class Given:
    """The part of a kind whose base model and pairs are given from outside."""

    pretrains = False
    has_pairs = False
    fields: tuple[str, ...] = ()
    text_fields: tuple[str, ...] = ()

    def pairs(self, run: settings.Run) -> list[preferences.Pair] | None:
        """None."""
        return None

    def pretrain(self, run: settings.Run, directory: pathlib.Path) -> None:
        """Raises ValueError: there is nothing to make it of."""
        raise no_base(run)

    def base_recipe(self, run: settings.Run, directory: pathlib.Path) -> artifacts.Recipe | None:
        """None: it was made elsewhere."""
        return None
