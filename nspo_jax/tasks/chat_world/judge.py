"""Who judges the chat world: rules that know the right answers."""

import numpy as np

from nspo_jax.rewards import reward
from nspo_jax.tasks.chat_world import world


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
