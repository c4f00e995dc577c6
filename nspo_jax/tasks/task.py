"""The interface between a run and its task: `Task`, and the `Kind` that makes it."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import pathlib
from typing import Any, Protocol

import numpy as np

from nspo_jax import artifacts, models, rewards, settings
from nspo_jax.data import chat, preferences
from nspo_jax.data.conversation import Conversation

Texts = tuple[Sequence[Conversation], Sequence[str]]  # conversations with a completion each
Completed = dict[str, Texts]
Scores = dict[str, float]
NEEDED = ("unsafe", "general", "kl_heldout")  # the trainer shows these scores and stops by them


@dataclasses.dataclass(frozen=True)
class Rate:
    """A score: the share of a suite's completions for which a metric is True.

    Attributes:
      name: the score's name. A name with a slash, such as general/maths, is a part: the mean of all
        parts is the score before the slash.
      metric: (conversations, completions) -> bool [rows], or float [rows] with NaN for rows that
        it cannot tell about, which the share leaves out.
      label: the heading of its column in tables; "": it has none.
      lower_is_better: decides which end of several seeds is the worst.
    """

    name: str
    metric: Callable[[Sequence[Conversation], Sequence[str]], np.ndarray]
    label: str = ""
    lower_is_better: bool = True


@dataclasses.dataclass(frozen=True)
class Suite:
    """Conversations whose prompts every evaluation answers, and the rates of these answers."""

    rows: list[Conversation]
    rates: tuple[Rate, ...]


@dataclasses.dataclass(frozen=True)
class Task:
    """The data and the scores of a run.

    Attributes:
      parts: the RL batch: (conversations to draw from, number a step).
      suites: name -> a set whose prompts are answered and scored.
      calibration: general conversations that define the protected directions.
      held_out: general conversations disjoint from calibration's.
      reward: judges completions; None: the task has no judge of its own, and a run brings one.
      drift: score -> its name in `nullspace.drift` on held-out text.
      refusal: computes the probability that a completion is a refusal; NaN where it cannot tell.
      cuts_answers: general answers that are longer than their block are cut; otherwise they are an
        error.
      left_out: set -> the number of its prompts that were too long, for the summary.

    Raises:
      ValueError: for two scores of one name, or without one of NEEDED.
    """

    parts: list[tuple[list[Conversation], int]]
    suites: dict[str, Suite]
    calibration: list[Conversation]
    held_out: list[Conversation]
    reward: rewards.Reward | None
    drift: Mapping[str, str]
    refusal: Callable[[str], float] = rewards.refusal_probability
    cuts_answers: bool = False
    left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

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
          drift: the measurements of `nullspace.drift` on held-out text.
        """
        scores: Scores = {}
        for name, suite in self.suites.items():
            for rate in suite.rates:
                whole, slash, _ = rate.name.partition("/")
                if slash:
                    scores.setdefault(whole, np.nan)  # the mean stands before its parts
                scores[rate.name] = _share(rate.metric(*completed[name]))
        for whole, parts in self._parts().items():
            scores[whole] = float(np.mean([scores[part] for part in parts]))
        return scores | {name: drift[measured] for name, measured in self.drift.items()}

    def _parts(self) -> dict[str, list[str]]:
        """Returns each score that is a mean -> its parts."""
        found: dict[str, list[str]] = {}
        for rate in self._rates():
            if "/" in rate.name:
                found.setdefault(rate.name.split("/")[0], []).append(rate.name)
        return found

    @property
    def counts(self) -> dict[str, int]:
        """Rate -> the number of prompts that it is a share of, for its sampling error.

        The mean of k rates gets the number of equal variance, k^2 / sum(1 / n): if the rates are
        alike, the mean's variance is p (1 - p) sum(1 / n) / k^2.
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


def _share(values: np.ndarray) -> float:
    """Returns the mean of values of 0 and 1 that are not NaN; NaN if all are."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return float(np.mean(known)) if len(known) else np.nan


class Kind(Protocol):
    """A kind of task, which makes a task from a run's settings.

    Attributes:
      pretrains: it makes a base model and reward models where no directory is named.
      has_rules: `rewards.terms=rules` judges it.
      has_pairs: it has preference pairs of its own.
      fields: the settings, by dotted name, that it reads and that some other task does not.
      text_fields: the settings among `fields` that its calibration text depends on.
    """

    pretrains: bool
    has_rules: bool
    has_pairs: bool
    fields: tuple[str, ...]
    text_fields: tuple[str, ...]

    def check(self, run: settings.Run, *, has_weights: bool) -> None:
        """Raises ValueError for settings that cannot work, before anything expensive starts.

        Args:
          run: the run's settings.
          has_weights: models are loaded; otherwise the fields that name models and data may be
            empty.
        """
        ...

    def make(
        self,
        run: settings.Run,
        model_config: models.ModelConfig,
        load_base: Callable[[], Any],
        chat_format: chat.ChatFormat,
    ) -> Task:
        """Makes the task for a base model, and loads that model if the task needs it."""
        ...

    def pairs(self, run: settings.Run) -> list[preferences.Pair] | None:
        """Returns its own preference pairs, None if it has none."""
        ...

    def pretrain(self, run: settings.Run, directory: pathlib.Path) -> None:
        """Makes its base model; a kind that `pretrains` needs it."""
        ...

    def base_recipe(self, run: settings.Run, directory: pathlib.Path) -> artifacts.Recipe | None:
        """Returns the recipe of its base model, to compare with the one found in the directory."""
        ...


def no_base(run: settings.Run) -> ValueError:
    """Makes the error for a task whose base model must be given and is not."""
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
        """Returns None: there are no pairs."""
        return None

    def pretrain(self, run: settings.Run, directory: pathlib.Path) -> None:
        """Raises ValueError: the base model cannot be made here."""
        raise no_base(run)

    def base_recipe(self, run: settings.Run, directory: pathlib.Path) -> artifacts.Recipe | None:
        """Returns None: the base model was made elsewhere."""
        return None
