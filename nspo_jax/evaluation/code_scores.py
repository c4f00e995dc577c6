"""The scores of a model that writes programs: it answers, the answers are run, and counted.

This module needs the extra `eval`, like `harness`.
"""

from collections.abc import Mapping, Sequence
import functools
import json
import pathlib
import statistics
from typing import Any

from lm_eval.api import instance

from nspo_jax import files, progress
from nspo_jax.data import chat
from nspo_jax.evaluation import answering, coding, execution, harness, paired
from nspo_jax.reports import intervals, tables

KS = (1, 10, 100)  # of pass@k, as far as there are samples
SAMPLED_TEMPERATURE, SAMPLED_TOP_P = 0.8, 0.95  # those of Chen et al. (2021) for pass@100
EQUAL_SAMPLES = (
    "--samples asks for several answers to a problem, and --temperature is 0: they would "
    "be equal. Give a temperature above 0, such as 0.8."
)
Samples = dict[str, list[dict[str, Any]]]


def load(
    names: Sequence[str], directory: pathlib.Path | None, most: int | None = None
) -> dict[str, Sequence[coding.AnyProblem]]:
    """Reads benchmarks by name, with `most` the first problems of each.

    Raises:
      FileNotFoundError: if the directory or a file in it is not there.
      ValueError: for a name that is unknown or comes twice, no directory, or a damaged file.
    """
    if directory is None:
        raise ValueError(
            "--code_data is missing: the directory that holds some of "
            f"{', '.join(coding.PATHS.values())}."
        )
    if not directory.is_dir():
        raise FileNotFoundError(
            f"--code_data is {str(directory)!r}; expected a directory that is there."
        )
    if len({*names}) < len(names):
        raise ValueError(f"--code is {','.join(names)!r}; expected each name once.")
    return {name: coding.read(name, directory, most) for name in names}


def check(
    names: Sequence[str], chat_format: chat.ChatFormat, max_length: int, *, chat_template: bool
) -> None:
    """Raises ValueError for a benchmark whose answers do not fit into a model's context.

    And for those of `coding.generation_kwargs`.
    """
    for name in names:
        given = coding.generation_kwargs(name, chat=chat_template)
        try:
            answering.check_options(harness.read_options(given, chat_format), max_length)
        except ValueError as error:
            raise ValueError(
                f"{name} lets an answer have {given['max_gen_toks']} tokens, and the model has "
                f"{max_length} positions; expected more. Take a model with a longer context, or "
                "leave the name out of --code."
            ) from error


def resolve_temperature(samples: int, temperature: float | None) -> float:
    """Returns the temperature that `answer` draws at."""
    if temperature is None:
        return SAMPLED_TEMPERATURE if samples > 1 else 0.0
    return temperature


def answer(
    model: harness.HarnessLM,
    problems: Mapping[str, Sequence[coding.AnyProblem]],
    *,
    chat_template: bool = False,
    samples: int = 1,
    temperature: float | None = None,
) -> Samples:
    """Lets a model answer every problem.

    Args:
      model: the model.
      problems: benchmark -> its problems.
      chat_template: asks in the model's chat template.
      samples: answers to each problem.
      temperature: of the draws; None: 0, which is greedy, for one sample, else
        `SAMPLED_TEMPERATURE`. Above 0 top_p is `SAMPLED_TOP_P`.

    Returns:
      benchmark -> a row of each answer: problem, sample, prompt, answer.

    Raises:
      ValueError: for several greedy samples, which would be equal.
    """
    temperature = resolve_temperature(samples, temperature)
    if samples > 1 and temperature == 0:
        raise ValueError(EQUAL_SAMPLES)
    requests, places = [], []
    for name, each in problems.items():
        given = coding.generation_kwargs(
            name, chat=chat_template, temperature=temperature, top_p=SAMPLED_TOP_P
        )
        for problem in each:
            prompt = problem.text
            if chat_template:
                prompt = model.apply_chat_template(problem.messages())
            for number in range(samples):
                row = {"problem": problem.identifier, "sample": number, "prompt": prompt}
                places.append((name, row))
                request = instance.Instance("generate_until", {}, (prompt, given), len(requests))
                requests.append(request)
    found: Samples = {name: [] for name in problems}
    for (name, row), text in zip(places, model.generate_until(requests), strict=True):
        found[name].append(row | {"answer": text})
    return found


def run(
    sandbox: execution.Sandbox,
    problems: Mapping[str, Sequence[coding.AnyProblem]],
    samples: Samples,
    *,
    chat_template: bool = False,
    bar: bool = True,
) -> None:
    """Runs every answer's program, and adds what a problem's `judge` returns to its row."""
    rows, tasks = [], []
    for name, each in problems.items():
        by_name = {problem.identifier: problem for problem in each}
        for row in samples[name]:
            problem = by_name[row["problem"]]
            rows.append(row)
            tasks.append(
                functools.partial(problem.judge, sandbox, row["answer"], chat=chat_template)
            )
    with progress.Bar(total=len(rows), desc="programs", unit="program", disable=not bar) as shown:
        results = execution.run_parallel(tasks, told=shown.update)
    for row, result in zip(rows, results, strict=True):
        row |= result


def score(samples: Samples) -> dict[str, dict[str, Any]]:
    """Scores answers that have run.

    Returns:
      benchmark -> n (problems), samples (of each), pass@k for the k of `KS`, low and high (the
      interval of pass@1 over problems; cautious for several samples), and the outcomes' counts.
    """
    scores = {}
    for name, rows in samples.items():
        passed: dict[str, list[bool]] = {}
        for row in rows:
            passed.setdefault(row["problem"], []).append(row["outcome"] == execution.PASSED)
        count = len(next(iter(passed.values())))
        values = {
            f"pass@{k}": statistics.fmean(
                coding.pass_at_k(len(each), sum(each), k) for each in passed.values()
            )
            for k in KS
            if k <= count
        }
        low, high = intervals.share_interval(values["pass@1"], len(passed))
        outcomes = [row["outcome"] for row in rows]
        counts = {outcome: outcomes.count(outcome) for outcome in execution.OUTCOMES}
        scores[name] = {
            "n": len(passed), "samples": count, **values, "low": low, "high": high,
            "outcomes": counts,
        }  # fmt: skip
    return scores


def compare(own: Samples, other: Samples) -> list[paired.Difference]:
    """Compares two models' pass@1 problem by problem.

    Args:
      own: answers that have run, of the model in question.
      other: those of the model that it is compared with, of the same benchmarks at least.

    Raises:
      ValueError: those of `paired.compare`.
    """
    return paired.compare(_documents(own), _documents(other))[0]


def _documents(samples: Samples) -> dict[str, list[dict[str, Any]]]:
    """Makes a row of each problem, as `paired.compare` reads them."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, rows in samples.items():
        passed: dict[tuple[str, str], list[bool]] = {}
        for row in rows:
            outcome = row["outcome"] == execution.PASSED
            passed.setdefault((row["problem"], row["prompt"]), []).append(outcome)
        found[name] = [
            {
                "doc_id": problem, "doc_hash": problem, "prompt_hash": prompt, "filter": "none",
                "metrics": ["pass@1"], "pass@1": statistics.fmean(each),
            }
            for (problem, prompt), each in passed.items()
        ]  # fmt: skip
    return found


def format_scores(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """Formats a line a benchmark: n, samples, pass@k, interval of pass@1, counts of outcomes."""
    ks = [f"pass@{k}" for k in KS if any(f"pass@{k}" in row for row in scores.values())]
    header = ("task", "n", "samples", *ks, "95% of pass@1", *execution.OUTCOMES)
    lines = [
        (
            name, str(row["n"]), str(row["samples"]), *(f"{row[k]:.4f}" for k in ks),
            f"{row['low']:.4f}-{row['high']:.4f}",
            *(str(row["outcomes"][outcome]) for outcome in execution.OUTCOMES),
        )
        for name, row in scores.items()
    ]  # fmt: skip
    return tables.format_table([header, *lines])


def write(results: Mapping[str, Any], samples: Samples, directory: pathlib.Path,
          *, keep_samples: bool) -> list[pathlib.Path]:  # fmt: skip
    """Writes results_code.json, and with `keep_samples` samples_TASK.jsonl; returns the paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / "results_code.json"]
    files.write_text(paths[0], json.dumps(results, indent=2))
    for name, rows in samples.items() if keep_samples else ():
        paths.append(paired.samples_path(directory, name))
        files.write_text(paths[-1], "\n".join(json.dumps(row) for row in rows))
    return paths
