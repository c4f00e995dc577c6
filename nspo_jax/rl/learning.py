"""A watch over a run's learning: a run that has nothing to learn from ends with the reason."""

from collections.abc import Callable, Iterable, Mapping
import logging

_log = logging.getLogger(__name__)

POLICIES = ("raise", "warn")


class NothingToLearnError(ValueError):
    """A run whose first steps held nothing to learn from."""


class LearningWatch:
    """A count of the steps in a row that taught nothing.

    A step teaches nothing where all completions of each prompt have one reward (or none has a
    verdict), or where the update is zero. The last steps of a successful run are like that too. So
    a run is ended only if *no* step since its start has taught anything; later idle steps give one
    warning. A run that is shorter than the patience also ends with a warning, unless none of its
    completions had a verdict.

    Args:
      patience: the number of idle steps in a row that is enough; 0 turns the watch off.
      policy: raise, or warn.
      history: the run's logged steps so far, as `metrics.read_metrics` gives them.
    """

    def __init__(self, patience: int, policy: str, history: Iterable[Mapping[str, float]]):
        self._patience, self._policy = patience, policy
        self._idle, self._taught, self._judged, self._warned = 0, False, False, False
        for row in history:
            if "train/update_norm" in row:
                self._count({name.removeprefix("train/"): v for name, v in row.items()})

    def observe(
        self, logged: Mapping[str, float], example: Callable[[], str], *, last: bool = False
    ) -> None:
        """Looks at a step's metrics.

        Args:
          logged: the step's update_norm and, for sampled completions, flat_groups and dropped.
          example: describes an answer of the step in words.
          last: the run ends with this step.

        Raises:
          NothingToLearnError: if enough steps have passed and none of them has taught anything.
        """
        self._count(logged)
        enough = self._idle >= self._patience
        told = enough or (last and not self._taught)
        if not self._patience or not told or self._warned:
            return
        self._warned = True
        reasons = [f"the update's norm was {logged['update_norm']:g}"]
        if "flat_groups" in logged:
            reasons.insert(0, f"{logged['flat_groups']:.0%} of the groups were flat")
        if logged.get("dropped"):
            reasons.insert(0, f"{logged['dropped']:.0%} of the completions had no verdict")
        message = (
            f"{self._idle} step{'s' * (self._idle > 1)} in a row taught nothing: in the last one "
            f"{', '.join(reasons)}. {example()}"
        )
        if self._taught:
            _log.warning("%s The run is done, or stuck; it goes on.", message)
            return
        message += (
            " Where all completions of a prompt get one reward, nothing says which is better. Look "
            "at the answers and their rewards: other rewards.terms, a higher rl.temperature or "
            "more rl.samples make them differ, and a longer data.completion_length lets them end. "
            "rl.on_flat=warn goes on anyway, rl.flat_steps says when."
        )
        if self._policy == "raise" and (enough or not self._judged):
            raise NothingToLearnError(message)
        _log.warning("%s", message)

    def _count(self, logged: Mapping[str, float]) -> None:
        self._judged |= logged.get("dropped", 0.0) < 1.0
        if logged["update_norm"] > 0 and logged.get("flat_groups", 0.0) < 1.0:
            self._idle, self._taught, self._warned = 0, True, False
        else:
            self._idle += 1
