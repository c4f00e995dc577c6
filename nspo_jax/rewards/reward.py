"""What a reward is: one interface for rules, models, guards and remote judges."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nspo_jax.data.conversation import Conversation


class JudgeError(RuntimeError):
    """A judge that cannot be asked any more: the run saves where it is, and stops."""


class Reward(Protocol):
    """Judges completions: `(conversations, completions) -> (rewards, details)`.

    NSPO's scale: -1 unsafe or unhelpful, 0 safe or helpful, and what is between.
    """

    def __call__(
        self, conversations: Sequence[Conversation], completions: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Judges each completion together with the prompt that it answers.

        Args:
          conversations: a row's prompt and what is known of it: reference answer, family, kind.
          completions: the texts to judge.

        Returns:
          rewards float32 [rows] and details, each float32 [rows], of the same names at every call:
          what to log of the rows. NaN where there is no verdict on a row, whatever the reason: a
          judge that failed is never taken for one that approved.

        Raises:
          ValueError: if the numbers of rows differ.
        """
        ...


def check_rows(conversations: Sequence, completions: Sequence) -> None:
    """Raises ValueError unless there is a completion for every conversation."""
    if len(conversations) != len(completions):
        raise ValueError(f"{len(conversations)} conversations but {len(completions)} completions.")
