"""The interface of all rewards: rules, models, guards and remote judges."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from nspo_jax.data.conversation import Conversation


class JudgeError(RuntimeError):
    """The failure of a judge that cannot be asked any more: the run saves its state and stops."""


class Reward(Protocol):
    """A judge of completions: `(conversations, completions) -> (rewards, details)`.

    Rewards are on NSPO's scale: -1 is unsafe or unhelpful, 0 is safe or helpful, and values between
    are allowed.
    """

    def __call__(
        self, conversations: Sequence[Conversation], completions: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Judges each completion together with the prompt that it answers.

        Args:
          conversations: each row's prompt with its reference answer, family and kind.
          completions: the texts to judge.

        Returns:
          The rewards, float32 [rows], and details for the log, each float32 [rows], with the same
          names at every call. A row without a verdict is NaN, whatever the reason: a judge that
          failed never counts as one that approved.

        Raises:
          ValueError: if the numbers of rows differ.
        """
        ...


def check_rows(conversations: Sequence, completions: Sequence) -> None:
    """Raises ValueError unless there is a completion for every conversation."""
    if len(conversations) != len(completions):
        raise ValueError(f"{len(conversations)} conversations but {len(completions)} completions.")
