"""The tasks of lm-eval, which are loaded and checked before a model is, and their scores.

This module needs the extra `eval`, like `harness`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import difflib
import json
import logging
import pathlib
from typing import Any, NamedTuple

from lm_eval import evaluator as lm_eval_evaluator
from lm_eval import tasks as lm_eval_tasks
from lm_eval import utils as lm_eval_utils
import numpy as np

from nspo_jax import files, rewards
from nspo_jax.data import chat
from nspo_jax.evaluation import answering, harness, paired
from nspo_jax.reports import tables

# the beginning of lm-eval's message about a file of settings that others include
_NO_TASK = "Unknown config shape"


class Loaded(NamedTuple):
    """Tasks with their data.

    asked: tasks and groups for `lm_eval.simple_evaluate`.
    each: name -> every single task.
    manager: lm-eval's, which made them.
    """

    asked: list[Any]
    each: dict[str, Any]
    manager: lm_eval_tasks.TaskManager


def load(
    names: Sequence[str], folder: pathlib.Path | None = None, data: pathlib.Path | None = None
) -> Loaded:
    """Loads tasks, groups and tags by their names, with their data.

    Args:
      names: names of lm-eval's own tasks, or of those in `folder`, which win.
      folder: a directory with task files in YAML, in it or below.
      data: `data_dir` in the metadata of tasks with data of their own.

    Raises:
      FileNotFoundError: if folder or data does not exist.
      ValueError: for no name, an unknown name, a file in `folder` that lm-eval refuses, or a task
        that cannot be loaded.
    """
    for path, flag in ((folder, "--lm_eval_tasks"), (data, "--lm_eval_data")):
        if path is not None and not path.is_dir():
            raise FileNotFoundError(
                f"{flag} is {str(path)!r}; expected a directory that is there: check the path."
            )
    if not names or not all(names):
        raise ValueError(
            f"--lm_eval is {','.join(names)!r}; expected names of tasks, joined by commas."
        )
    manager = _find(names, folder, {"data_dir": str(data)} if data else {})
    for name in names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, 3, 0.5)
            guess = f" The nearest are {', '.join(near)}." if near else ""
            raise ValueError(
                f"lm-eval knows no task {name!r}.{guess} `lm_eval ls tasks` lists its own; task "
                "files of yours come with --lm_eval_tasks=DIR."
            )
    asked, each = [], {}
    for name in names:
        try:
            found = manager.load([name])
        except Exception as error:  # a file, its functions and the data's host may raise any error
            where = manager.task_index[name].yaml_path
            raise ValueError(
                f"lm-eval cannot load the task {name!r} ({where}): {_words(error)}. Correct the "
                "file, or make its data reachable."
            ) from error
        groups = found.get("groups") or {}
        asked += [groups[name]] if name in groups else list(found["tasks"].values())
        each |= found["tasks"]
    return Loaded(asked, each, manager)


def check(loaded: Loaded, chat_format: chat.ChatFormat, max_length: int) -> None:
    """Raises ValueError for tasks that a model of this format and context cannot do."""
    for name, task in loaded.each.items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            raise ValueError(
                f"The task {name!r} runs code that the model writes, or shows it more than text; "
                "expected tasks over text. Leave it out of --lm_eval."
            )
        if task.get_config("output_type") != "generate_until":
            continue
        try:
            options = harness.read_options(task.get_config("generation_kwargs") or {}, chat_format)
            answering.check_options(options, max_length)
        except ValueError as error:
            raise ValueError(f"The task {name!r} cannot be done: {error}") from error


def evaluate(
    model: harness.HarnessLM,
    loaded: Loaded,
    *,
    limit: int | None = None,
    shots: int | None = None,
    chat_template: bool = False,
) -> dict[str, Any]:
    """Returns lm-eval's results of the tasks, with its samples.

    Args:
      model: the model to evaluate.
      loaded: the result of `load`.
      limit: documents of each task; None: all.
      shots: examples before each document; None: each task's own number.
      chat_template: asks in the model's chat template.
    """
    found = lm_eval_evaluator.simple_evaluate(
        model,
        tasks=loaded.asked,
        task_manager=loaded.manager,
        num_fewshot=shots,
        limit=limit,
        apply_chat_template=chat_template,
    )
    assert found is not None  # only other processes than 0 get None
    return dict(found)


def format_results(results: dict[str, Any]) -> str:
    """Formats a line a metric: task, metric, filter, value, standard error, shots, documents."""
    header = ("task", "metric", "filter", "value", "stderr", "shots", "n")
    lines = []
    for task, metrics in results["results"].items():
        counts = results.get("n-samples", {}).get(task, {})
        for key, value in metrics.items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            error = metrics.get(f"{metric}_stderr,{kept}")
            shots = results.get("n-shot", {}).get(task, "")
            lines.append((
                task, metric, kept, _number(value), _number(error), str(shots),
                str(counts.get("effective", metrics.get("sample_len", ""))),
            ))  # fmt: skip
    return tables.format_table([header, *lines], left=3)


def without_refusals(results: dict[str, Any], loaded: Loaded) -> list[dict[str, Any]]:
    """Scores written answers with refusals counted as wrong, which they are, and left out.

    A refusal is one by the learned detector. The difference of both values is what a model loses by
    declining, and not by a lack of skill.

    Args:
      results: the result of `evaluate`.
      loaded: its tasks. Those that compare log-likelihoods have no answers, and no rows here.

    Returns:
      A row for each task, metric and filter with a number for each document: `task`, `metric`,
      `filter`, `n`, `refused`, `value`, and `without`, NaN if every answer is a refusal.
    """
    found = []
    for task, samples in (results.get("samples") or {}).items():
        if loaded.each[task].get_config("output_type") != "generate_until":
            continue
        for kept in dict.fromkeys(row["filter"] for row in samples):
            rows = [row for row in samples if row["filter"] == kept]
            refused = np.array([rewards.is_refusal(row["resps"][0][0]) for row in rows])
            for metric in rows[0]["metrics"]:
                values = [row[metric] for row in rows]
                if all(isinstance(value, bool | int | float) for value in values):
                    scores = np.asarray(values, np.float64)
                    rest = scores[~refused]
                    found.append({
                        "task": task, "metric": metric, "filter": kept, "n": len(rows),
                        "refused": int(refused.sum()), "value": float(scores.mean()),
                        "without": float(rest.mean()) if len(rest) else float("nan"),
                    })  # fmt: skip
    return found


def format_refusals(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the rows of `without_refusals`, a line each."""
    header = ("task", "metric", "filter", "n", "refused", "value", "without")
    lines = [tuple(_number(row[name]) for name in header) for row in rows]
    return tables.format_table([header, *lines], left=3)


def write(results: dict[str, Any], directory: pathlib.Path, *, samples: bool) -> list[pathlib.Path]:
    """Writes results.json, and with `samples` samples_TASK.jsonl of each task; returns the paths.

    A sample is a document with the model's prompt and answer, as in lm-eval's --log_samples.
    """
    directory.mkdir(parents=True, exist_ok=True)
    kept = {name: value for name, value in results.items() if name != "samples"}
    paths = [directory / "results.json"]
    files.write_text(paths[0], _json(kept, indent=2))
    for task, rows in (results.get("samples") or {}).items() if samples else ():
        paths.append(paired.samples_path(directory, task))
        files.write_text(paths[-1], "\n".join(_json(row) for row in rows))
    return paths


def _find(
    names: Sequence[str], folder: pathlib.Path | None, metadata: dict[str, Any]
) -> lm_eval_tasks.TaskManager:
    """Builds lm-eval's index of tasks, of `folder` alone if possible: its own takes seconds."""
    if folder is not None:
        with _refused() as refused:
            manager = lm_eval_tasks.TaskManager(
                include_path=str(folder), include_defaults=False, metadata=metadata
            )
        if refused:
            raise ValueError(
                f"lm-eval refuses a task file in --lm_eval_tasks: {'; '.join(refused)}. Correct it "
                "or move it away."
            )
        if all(_is_whole(manager, name) for name in names):
            return manager
    return lm_eval_tasks.TaskManager(
        include_path=str(folder) if folder else None, metadata=metadata
    )


def _is_whole(manager: lm_eval_tasks.TaskManager, name: Any) -> bool:
    """Tells whether an index has a task, or a group with all that it names; a tag may have more."""
    if not isinstance(name, str):
        return False
    if name in manager.all_groups:
        members = (manager.task_index[name].cfg or {}).get("task") or [None]
        return all(_is_whole(manager, member) for member in members)
    return name in manager.all_subtasks


@contextlib.contextmanager
def _refused() -> Iterator[list[str]]:
    """Collects the files that lm-eval's index skips, which it tells its debug log alone."""
    found: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if str(record.msg).startswith("Skip ") and isinstance(record.args, tuple):
                path, error = record.args
                if not str(error).startswith(_NO_TASK):
                    found.append(f"{path} ({_words(error)})")

    log, listener = logging.getLogger("lm_eval.tasks._index"), Listener()
    level, propagates = log.level, log.propagate
    log.addHandler(listener)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        yield found
    finally:
        log.removeHandler(listener)
        log.setLevel(level)
        log.propagate = propagates


def _words(error: Any) -> str:
    """Describes an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(
        value, indent=indent, default=lm_eval_utils.handle_non_serializable, ensure_ascii=False
    )
