"""Differences between two models on the same documents, from the samples that lm-eval logs.

A document's own difficulty is in both scores and cancels in their difference, so that pairs show a
change that two separate intervals would hide.
"""

from collections.abc import Iterable, Mapping, Sequence
import json
import pathlib
import statistics
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from nspo_jax.reports import intervals, tables

Samples = Mapping[str, Sequence[Mapping[str, Any]]]  # task -> rows, as lm-eval logs them


class Difference(NamedTuple):
    """One metric of one task, of two models on the same documents.

    task, metric, filter: lm-eval's names.
    n: the number of documents; other, own: both models' means; difference: own - other.
    low, high: the interval of the difference, with `intervals.CONFIDENCE`.
    p: the two-sided probability of a difference as large if the models were alike.
    """

    task: str
    metric: str
    filter: str
    n: int
    other: float
    own: float
    difference: float
    low: float
    high: float
    p: float


def samples_path(directory: str | pathlib.Path, task: str) -> pathlib.Path:
    """Returns the file of a task's samples in a directory."""
    return pathlib.Path(directory) / f"samples_{task.replace('/', '_')}.jsonl"


def read_samples(directory: str | pathlib.Path, tasks: Iterable[str]) -> dict[str, list[Any]]:
    """Reads the samples of tasks that `scripts.evaluate --log_samples` left in a directory.

    Raises:
      FileNotFoundError: if a task has no file there.
      ValueError: for a file that is damaged.
    """
    found = {}
    for task in tasks:
        path = samples_path(directory, task)
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {path}; expected the samples of {task}: evaluate the other model on "
                f"the same tasks first, with --output={directory} --log_samples."
            )
        try:
            found[task] = [json.loads(line) for line in path.read_text().splitlines()]
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} is damaged ({error}): evaluate that model again, into another --output."
            ) from error
    return found


def compare(own: Samples, other: Samples) -> tuple[list[Difference], list[str]]:
    """Compares two models task by task and metric by metric.

    Args:
      own: the samples of the model in question.
      other: those of the model that it is compared with, of the same tasks at least.

    Returns:
      The differences, and the names of metrics that are left out because a document's value is no
      number.

    Raises:
      ValueError: if the two were asked about other documents, or in another way.
    """
    differences, left_out = [], []
    for task, rows in own.items():
        pairs = _pair(task, rows, other[task])
        for kept in dict.fromkeys(row["filter"] for row in rows):
            chosen = [pair for pair in pairs if pair[0]["filter"] == kept]
            for metric in chosen[0][0]["metrics"]:
                values = [[row[metric] for row in pair] for pair in chosen]
                if all(isinstance(value, bool | int | float) for pair in values for value in pair):
                    ours, theirs = np.asarray(values, np.float64).T
                    found = paired_difference(ours, theirs)
                    means = (float(theirs.mean()), float(ours.mean()))
                    differences.append(Difference(task, metric, kept, len(values), *means, *found))
                else:
                    left_out.append(f"{task} {metric}")
    return differences, left_out


def paired_difference(own: np.ndarray, other: np.ndarray) -> tuple[float, float, float, float]:
    """Computes the mean difference of paired scores, its interval and its p-value.

    Scores of 0 and 1 get the adjusted Wald interval of Bonett and Price, "Adjusted Wald confidence
    interval for a difference of binomial proportions based on paired data" (J. Educ. Behav. Stat.
    37, 2012), which has a width where no document differs too, and McNemar's exact test. Other
    scores get Student's t.

    Args:
      own: float [n], one model's scores.
      other: float [n], the other's scores of the same documents.

    Returns:
      The mean of own - other, the interval's ends and p.

    Raises:
      ValueError: for fewer than two documents.
    """
    count, differences = len(own), own - other
    if count < 2:
        raise ValueError(f"{count} documents have no interval; expected two or more.")
    mean = float(differences.mean())
    if set(np.unique([own, other])) <= {0.0, 1.0}:
        better, worse = int(np.sum(differences > 0)), int(np.sum(differences < 0))
        gained, lost = (better + 1) / (count + 2), (worse + 1) / (count + 2)
        z = statistics.NormalDist().inv_cdf((1 + intervals.CONFIDENCE) / 2)
        spread = z * np.sqrt((gained + lost - (gained - lost) ** 2) / (count + 2))
        ends = np.clip([gained - lost - spread, gained - lost + spread], -1.0, 1.0)
        moved = better + worse
        p = stats.binomtest(better, moved).pvalue if moved else 1.0
        return mean, float(ends[0]), float(ends[1]), float(p)
    if not np.any(differences):
        return 0.0, 0.0, 0.0, 1.0
    test: Any = stats.ttest_1samp(differences, 0.0)  # scipy's types leave out its results
    ends = test.confidence_interval(intervals.CONFIDENCE)
    return mean, float(ends.low), float(ends.high), float(test.pvalue)


def format_differences(differences: Sequence[Difference]) -> str:
    """Formats a line a metric, in points (hundredths of the metric), and what they can exclude."""
    if not differences:
        return "No metric has a number for each document: nothing is compared."
    header = ("task", "metric", "filter", "n", "other", "this", "difference", "95 %", "p")
    lines = [
        (
            d.task, d.metric, d.filter, str(d.n), f"{100 * d.other:.1f}", f"{100 * d.own:.1f}",
            f"{100 * d.difference:+.1f}", f"{100 * d.low:+.1f} to {100 * d.high:+.1f}",
            f"{d.p:.3f}",
        )
        for d in differences
    ]  # fmt: skip
    table = tables.format_table([header, *lines], left=3)
    return f"{table}\n\n{_conclusion(differences)}"


def _conclusion(differences: Sequence[Difference]) -> str:
    """Names the metrics that fell, and how large a loss the others may hide."""
    fell = [d for d in differences if d.high < 0]
    said = [f"{d.task} {d.metric} fell by {-100 * d.difference:.1f} points" for d in fell]
    others = [d for d in differences if d.high >= 0]
    if others:
        largest = max(others, key=lambda d: -d.low)
        said.append(
            f"{'on the others' if fell else 'Here'} no loss is detectable above "
            f"{max(0.0, -100 * largest.low):.1f} points ({largest.task} {largest.metric})"
        )
    return f"{'; '.join(said)}."


def _pair(task: str, own: Sequence[Any], other: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Pairs the rows of a document and filter."""
    theirs = {(row["filter"], row["doc_id"]): row for row in other}
    ours = {(row["filter"], row["doc_id"]): row for row in own}
    if ours.keys() != theirs.keys():
        counts = [len({place for _, place in rows}) for rows in (ours, theirs)]
        raise ValueError(
            f"{task}: this model has {counts[0]} documents and the other {counts[1]}, which are "
            "not the same: evaluate both with one --limit and one task file."
        )
    for place, row in ours.items():
        for key, why in (
            ("doc_hash", "another text: their data differ"),
            ("prompt_hash", "another prompt: --num_fewshot, --apply_chat_template or the template"),
        ):
            if row[key] != theirs[place][key]:
                raise ValueError(
                    f"{task}: document {place[1]} has {why}. Only answers to the same questions "
                    "can be compared; evaluate both models in one way."
                )
    return [(row, theirs[place]) for place, row in ours.items()]
