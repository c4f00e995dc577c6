"""A judge that is a model, in several processes: process 0 asks, and each judges its share."""

from collections.abc import Callable, Sequence
import json

import jax

from nspo_jax import distributed
from nspo_jax.evaluation import judges

Judge = Callable[[Sequence[judges.Exchange]], judges.Verdicts]


class SharedJudge:
    """A judge that process 0 calls and the others follow. Collective.

    Args:
      open_judge: loads the judge, in every process; not called before there is something to judge.
    """

    def __init__(self, open_judge: Callable[[], Judge]):
        self._open, self._judge = open_judge, None

    def __call__(self, exchanges: Sequence[judges.Exchange]) -> judges.Verdicts:
        """Judges exchanges, in process 0; the verdicts are in their order.

        Raises:
          ValueError: if there are none, or for the reasons of `open_judge`.
        """
        distributed.broadcast_text(json.dumps([list(each) for each in exchanges]))
        return self._judge_shares(exchanges)

    def end(self) -> None:
        """Ends `follow` in the other processes."""
        distributed.broadcast_text("")

    def follow(self) -> None:
        """Judges this process's shares of what process 0 asks, until `end`."""
        while text := distributed.broadcast_text(""):
            self._judge_shares([judges.Exchange(*each) for each in json.loads(text)])

    def _judge_shares(self, exchanges: Sequence[judges.Exchange]) -> judges.Verdicts:
        """Judges one share here, and joins all; the last ones are filled with the first row."""
        if self._judge is None:
            self._judge = self._open()
        missing = -len(exchanges) % jax.process_count()
        rows = [*exchanges, *[exchanges[0]] * missing]
        found = distributed.gather_rows(self._judge(rows[distributed.own_rows(len(rows))]))
        return jax.tree.map(lambda array: array[: len(exchanges)], found)
