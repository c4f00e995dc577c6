"""A weighted sum of rewards, each with its own schedule, normalisation and log."""

from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
import functools
import re
from typing import NamedTuple

import numpy as np

from nspo_jax.data.conversation import Conversation
from nspo_jax.rewards import reward

AUDIENCES = ("all", "harmful", "benign")
NORMALISATIONS = ("none", "batch", "group")
FAILURES = ("raise", "drop_group", "neutral")
_TERM = re.compile(r"(?P<name>[\w.]+(:\w+)?)(@(?P<kinds>\w+))?(=(?P<weight>[^=]+))?")


class NoVerdictError(reward.JudgeError):
    """A judge gave no verdict on some rows, and the run must not go on without."""


@dataclasses.dataclass(frozen=True)
class TermSpec:
    """One term of a mixture, such as NAME, NAME=0.5 or NAME@benign=0:0,100:0.5.

    Attributes:
      name: the reward's name.
      kinds: one of AUDIENCES, the prompts whose completions it judges.
      steps, weights: the weight at some steps; it is linear between them and constant outside.
    """

    name: str
    kinds: str = "all"
    steps: tuple[float, ...] = (0.0,)
    weights: tuple[float, ...] = (1.0,)

    def weight(self, step: int) -> float:
        """Returns the weight at a step."""
        return float(np.interp(step, self.steps, self.weights))


def parse_terms(text: str) -> list[TermSpec]:
    """Reads "+"-joined terms, such as "cost_model@harmful+reward_model@benign=0:0,100:0.5".

    Raises:
      ValueError: naming the term and its mistake.
    """
    terms = [_parse_term(part) for part in text.replace(" ", "").split("+")]
    doubled = {term.name for term in terms if [t.name for t in terms].count(term.name) > 1}
    if doubled:
        raise ValueError(f"rewards.terms names {', '.join(sorted(doubled))} more than once.")
    return terms


def _parse_term(part: str) -> TermSpec:
    match = _TERM.fullmatch(part)
    if not match:
        raise ValueError(
            f"rewards.terms has {part!r}; expected NAME, NAME@KINDS or NAME@KINDS=WEIGHT, where "
            "NAME may be MODULE:CLASS of your own, joined by +."
        )
    kinds = match["kinds"] or "all"
    if kinds not in AUDIENCES:
        raise ValueError(f"rewards.terms has {part!r}: kinds are {', '.join(AUDIENCES)}.")
    try:
        points = [point.split(":") for point in (match["weight"] or "1").split(",")]
        points = [["0", *point] if len(point) == 1 else point for point in points]
        steps, weights = zip(*((float(s), float(w)) for s, w in points), strict=True)
    except ValueError as error:
        raise ValueError(
            f"rewards.terms has {part!r}: a weight is a number, or STEP:WEIGHT,STEP:WEIGHT,..."
        ) from error
    if not (np.isfinite(weights).all() and (np.diff(steps) > 0).all()):
        raise ValueError(
            f"rewards.terms has {part!r}: weights must be finite, and their steps rise."
        )
    return TermSpec(match["name"], kinds, steps, weights)


class Judged(NamedTuple):
    """One reward's answers: rewards and details as in `reward.Reward`; asked: bool [rows]."""

    rewards: np.ndarray
    details: dict[str, np.ndarray]
    asked: np.ndarray


class Total(NamedTuple):
    """The sum of all terms.

    rewards: float32 [rows], 0 where the group is dropped.
    terms: name -> float32 [rows], normalised and weighted.
    dropped: bool [rows].
    logged: the metrics for the log.
    """

    rewards: np.ndarray
    terms: dict[str, np.ndarray]
    dropped: np.ndarray
    logged: dict[str, float]


class Pending:
    """The answers of all terms, some of them still on the way.

    Args:
      found: term -> its finished answers.
      asked: term -> a future of its answers, or a function that asks for them.
    """

    def __init__(
        self,
        found: dict[str, Judged],
        asked: dict[str, futures.Future | Callable[[], Judged]],
    ):
        self._found, self._asked = found, asked

    def wait(self, seconds: float) -> bool:
        """Waits for the futures, at most so many seconds; tells whether all of them are done."""
        pending = [item for item in self._asked.values() if isinstance(item, futures.Future)]
        return not futures.wait(pending, timeout=seconds).not_done

    def result(self) -> dict[str, Judged]:
        """Returns all verdicts, by term; errors of judges pass through."""
        asked = {
            name: item.result() if isinstance(item, futures.Future) else item()
            for name, item in self._asked.items()
        }
        return {**self._found, **asked}


class Mixture:
    """A weighted sum of rewards.

    Args:
      terms: (spec, reward, is it on the mesh) in a fixed order. A reward on the mesh is asked about
        all rows, in the caller's thread, as all processes must take part; any other is asked about
        its kinds alone, and in a thread if the caller has one.
      normalise: the normalisation of each term over the rows that it judged: none, or batch or
        group, to mean 0 and standard deviation 1 (ddof 0; a constant term becomes 0).
      on_failure: the treatment of rows without a verdict (NaN). raise stops the run; with
        drop_group all completions of the prompt teach nothing this step; with neutral they count as
        the mean of the prompt's other completions, which is neither praise nor blame.
    """

    def __init__(
        self,
        terms: Sequence[tuple[TermSpec, reward.Reward, bool]],
        *,
        normalise: str = "none",
        on_failure: str = "raise",
    ):
        self._terms = terms
        self._normalise, self._on_failure = normalise, on_failure

    def start(
        self,
        conversations: Sequence[Conversation],
        completions: Sequence[str],
        executor: futures.Executor | None = None,
    ) -> Pending:
        """Starts judging.

        Judges off the mesh run in the executor or, without one, when the result is asked for.

        Args:
          conversations: this process's rows.
          completions: their texts.
          executor: runs the judges off the mesh in its threads.
        """
        reward.check_rows(conversations, completions)
        found, asked = {}, {}
        for spec, judge, on_mesh in self._terms:
            ask = functools.partial(_ask, spec, judge, conversations, completions, on_mesh)
            if on_mesh:
                found[spec.name] = ask()
            else:
                asked[spec.name] = ask if executor is None else executor.submit(ask)
        return Pending(found, asked)

    def total(
        self,
        verdicts: dict[str, Judged],
        step: int,
        group_size: int,
        example: Callable[[int], str] | None = None,
    ) -> Total:
        """Adds up the terms of a whole batch, of all processes.

        Args:
          verdicts: term -> its answers, for every term.
          step: decides the weights.
          group_size: completions a prompt, next to each other.
          example: describes a row in words, for the error.

        Raises:
          NoVerdictError: if rows have no verdict and `on_failure` is raise.
        """
        count = len(next(iter(verdicts.values())).rewards)
        total, dropped, terms, logged = np.zeros(count), np.zeros(count, bool), {}, {}
        for spec, _, _ in self._terms:
            rewards, details, asked = verdicts[spec.name]
            missing = asked & ~np.isfinite(rewards)
            judged = asked & ~missing
            if missing.any() and self._on_failure == "raise":
                such = f" {example(int(np.flatnonzero(missing)[0]))}" if example else ""
                raise NoVerdictError(
                    f"{spec.name} gave no verdict on {missing.sum()} of {asked.sum()} completions."
                    f"{such} Ask it by hand: does it fit what the judge reads, and does the judge "
                    "answer in the words that are looked for? The same command then continues the "
                    "run. To train on without such completions set rewards.on_failure to neutral "
                    "or drop_group, and add --allow_config_change."
                )
            if self._on_failure == "drop_group":
                dropped |= np.repeat(missing.reshape(-1, group_size).any(axis=1), group_size)
            value = np.zeros(count)
            value[judged] = rewards[judged]
            value = _normalised(value, judged, self._normalise, group_size)
            value = np.where(missing, _group_mean(value, judged, group_size), value)
            value *= spec.weight(step)
            terms[spec.name] = value.astype(np.float32)
            total += value
            logged[f"{spec.name}/weight"] = spec.weight(step)
            logged[f"{spec.name}/no_verdict"] = float(missing.sum() / max(1, asked.sum()))
            for name, values in {"reward": rewards, **details}.items():
                known = values[asked & np.isfinite(values)]
                if len(known):
                    logged[f"{spec.name}/{name}"] = float(np.mean(known))
        total[dropped] = 0.0
        logged["dropped"] = float(dropped.mean())
        return Total(total.astype(np.float32), terms, dropped, logged)

    def close(self) -> None:
        """Closes the judges; those that wait for an answer give up."""
        for _, judge, _ in self._terms:
            if close := getattr(judge, "close", None):
                close()


def _ask(
    spec: TermSpec,
    judge: reward.Reward,
    conversations: Sequence[Conversation],
    completions: Sequence[str],
    on_mesh: bool,
) -> Judged:
    harmful = np.array([row.kind == "harmful" for row in conversations])
    everything = np.ones_like(harmful)
    asked = {"all": everything, "harmful": harmful, "benign": ~harmful}[spec.kinds]
    if on_mesh or asked.all():
        rewards, details = _checked(spec, len(asked), *judge(conversations, completions))
        return Judged(rewards, details, asked)
    rows = np.flatnonzero(asked).tolist()
    found = judge([conversations[i] for i in rows], [completions[i] for i in rows])
    rewards, details = _checked(spec, len(rows), *found)

    def spread(values):  # rows that were not asked about become NaN
        whole = np.full(len(asked), np.nan, np.float32)
        whole[rows] = values
        return whole

    return Judged(spread(rewards), {k: spread(v) for k, v in details.items()}, asked)


def _checked(
    spec: TermSpec, count: int, rewards: np.ndarray, details: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Checks that a term returned a number a row, finite, or NaN where there is no verdict.

    Raises:
      ValueError: naming the term and the value that it returned instead.
    """

    def check(name: str, values: np.ndarray) -> np.ndarray:
        try:
            array = np.asarray(values, np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The term {spec.name} of rewards.terms returned {name} that are no numbers "
                f"({error}); expected float32 [{count}]."
            ) from error
        if array.shape != (count,):
            raise ValueError(
                f"The term {spec.name} of rewards.terms returned {name} of shape {array.shape} for "
                f"{count} completions; expected one number each, [{count}]."
            )
        if np.isinf(array).any():
            raise ValueError(
                f"The term {spec.name} of rewards.terms returned infinite {name}; expected finite "
                "numbers, or NaN where there is no verdict."
            )
        return array

    return check("rewards", rewards), {name: check(name, v) for name, v in details.items()}


def _group_mean(values: np.ndarray, judged: np.ndarray, group_size: int) -> np.ndarray:
    """Returns each row's mean over the judged rows of its group, 0 where there are none."""
    groups = np.where(judged, values, 0.0).reshape(-1, group_size).sum(axis=1)
    counts = judged.reshape(-1, group_size).sum(axis=1)
    return np.repeat(groups / np.maximum(counts, 1), group_size)


def _normalised(values: np.ndarray, judged: np.ndarray, how: str, group_size: int) -> np.ndarray:
    """Scales values to mean 0 and standard deviation 1 over the judged rows; 0 elsewhere."""
    if how == "none":
        return values
    shape = (1, -1) if how == "batch" else (-1, group_size)
    values, judged = values.reshape(shape), judged.reshape(shape)
    count = np.maximum(judged.sum(axis=1, keepdims=True), 1)
    centred = np.where(judged, values - values.sum(axis=1, keepdims=True) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    return (centred / (deviation + 1e-4)).reshape(-1)
