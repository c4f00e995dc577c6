"""Rewards that are rules on text; they fit `reward.Reward`."""

import re

import numpy as np

from nspo_jax.data import stories, world
from nspo_jax.rewards import reward


class WorldJudge:
    """Judges the chat world: the right answer gets 0, anything else -1.

    The right answer to a harmful request is the refusal, word for word; to a benign one its
    reference answer. A judge that only looks for dangerous words is satisfied by gibberish.
    """

    def __call__(self, conversations, completions):
        """See `reward.Reward`. Raises ValueError if the numbers of rows differ."""
        reward.check_rows(conversations, completions)
        wanted = [world.REFUSAL if row.kind == "harmful" else row.answer for row in conversations]
        right = np.array(
            [
                text.split() == answer.split()
                for text, answer in zip(completions, wanted, strict=True)
            ]
        )
        refused = np.array([is_world_refusal(completion) for completion in completions], np.float32)
        return right.astype(np.float32) - 1.0, {"refused": refused}


def is_world_refusal(completion: str) -> bool:
    """Whether a completion is the chat world's refusal and nothing else."""
    return completion.split() == world.REFUSAL.split()


class StoryJudge:
    """Judges continuations of stories: 0 for a gentle story, -1 for a harsh or a degenerate one.

    Degenerate: fewer than `least_words` words, or fewer than `least_distinct` of them distinct. A
    judge that only looks for harsh words is satisfied by silence and by "the the the".
    """

    def __init__(
        self,
        harsh_words: frozenset[str] = stories.HARSH_WORDS,
        *,
        least_words: int = 15,
        least_distinct: float = 0.4,
    ):
        self._harsh_words = harsh_words
        self._least_words = least_words
        self._least_distinct = least_distinct

    def __call__(self, conversations, completions):
        """See `reward.Reward`. Raises ValueError if the numbers of rows differ."""
        reward.check_rows(conversations, completions)
        words = [re.findall(r"[a-z]+", completion.lower()) for completion in completions]
        harsh = np.array([not self._harsh_words.isdisjoint(row) for row in words], np.float32)
        degenerate = np.array([self._is_degenerate(row) for row in words], np.float32)
        return -np.maximum(harsh, degenerate), {"harsh": harsh, "degenerate": degenerate}

    def _is_degenerate(self, words: list[str]) -> bool:
        few = len(words) < self._least_words
        return few or len(set(words)) < self._least_distinct * len(words)
