"""The task safety: prompts of public datasets for training, calibration and evaluation.

Training prompts are unique, and none equals an evaluation prompt or shares a passage with one. A
hash of the prompt divides the general questions that have an answer: calibration and replay in the
RL batch use one side, drift is measured on the other. Prompts that are longer than the run's block
are left out, and general answers that are longer are cut; log and summary count both.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import logging
import pathlib
from typing import Any

import numpy as np

from nspo_jax import models, rewards, settings
from nspo_jax.data import chat, division, filtering, layouts, public, sources, split
from nspo_jax.data import suites as suites_lib
from nspo_jax.data.conversation import Conversation
from nspo_jax.tasks import task

TRAINING = ("pku_safe_rlhf", "beavertails", "safety_prompts")  # datasets of harmful prompts
HELD_OUT_SHARE = 0.3  # the share of the general questions that drift is measured on
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Source:
    """A part of a public dataset; `public.load` explains the fields.

    Attributes:
      split_field: the config's field that names the split, for messages.
    """

    name: str
    split: str = ""
    paths: Sequence[str] = ()
    subset: str = ""
    columns: layouts.Columns | None = None
    split_field: str = "split"


@dataclasses.dataclass(frozen=True)
class Prompts:
    """All prompts of a run.

    Attributes:
      train: harmful prompts that RL batches are drawn from.
      calibration: general conversations with answers, which define the protected directions.
      replay: general conversations of the same side, for RL batches.
      borderline: prompts that only look harmful, for RL batches; perhaps none.
      held_out: general conversations disjoint from calibration and replay.
      suites: evaluation sets by name: harmful ones by their source (advbench, harmbench, ...), and
        those whose prompts only look harmful, such as xstest_safe.
      left_out: set -> the number of its prompts that were too long.
    """

    train: list[Conversation]
    calibration: list[Conversation]
    replay: list[Conversation]
    borderline: list[Conversation]
    held_out: list[Conversation]
    suites: dict[str, list[Conversation]]
    left_out: dict[str, int]


def load(
    data_dir: str | pathlib.Path,
    chat_format: chat.ChatFormat,
    prompt_length: int,
    *,
    train: Source,
    general: Source,
    evaluation: Source | None,
    named: Mapping[str, str] | None = None,
    borderline: Source | None = None,
    calibration_rows: int,
    suite_rows: int,
    seed: int,
    max_broken: float = 1.0,
) -> Prompts:
    """Loads, filters and divides the prompts.

    Args:
      data_dir: the directory in which TFDS keeps prepared datasets.
      chat_format: turns prompts into tokens.
      prompt_length: the most tokens of a prompt.
      train: a part of one of TRAINING.
      general: a part of the dataset general.
      evaluation: files of safety_prompts: XSTest and files of harmful prompts; None: none.
      named: suites of `data.suites` -> their files.
      borderline: files of safety_prompts with prompts that only look harmful; their harmful ones
        are left out.
      calibration_rows: the number of conversations to calibrate on.
      suite_rows: the most rows of each evaluation set and of the held-out conversations; larger
        sets are sampled.
      seed: the seed of the draws.
      max_broken: see `public.load`.

    Raises:
      ValueError: if a set ends up empty, if there are too few general questions to calibrate on, or
        for the reasons of `public.load`.
      FileNotFoundError: for the reasons of `public.load`.
    """
    read = functools.partial(_read, data_dir, max_broken)
    left_out: dict[str, int] = {}

    def fitting(rows: list[Conversation], name: str) -> list[Conversation]:
        kept = _fitting(chat_format, prompt_length, rows, name)
        left_out[name] = len(rows) - len(kept)
        return kept

    found = _suites(read(evaluation) if evaluation else [])
    for name, path in (named or {}).items():
        if name in found:
            raise ValueError(
                f"evaluation.suites has {name}, which data.evaluation holds too: leave one out."
            )
        found[name] = suites_lib.conversations(name, path)
    _require_kinds(found)
    evaluated = {name: [row.prompt for row in rows] for name, rows in found.items()}
    suites = {name: _draw(fitting(rows, name), suite_rows, seed) for name, rows in found.items()}

    def training(rows: list[Conversation], name: str, source: Source) -> list[Conversation]:
        rows = filtering.deduplicate(rows)
        _log.info("%s: %d different prompts of %s", name, len(rows), source.name)
        rows, matches = filtering.decontaminate(rows, evaluated)
        _log.info("%s: %d prompts left out that evaluation sets have too", name, len(matches))
        return _require_rows(fitting(rows, name), name)

    looking = []
    if borderline is not None:
        looking = [row for row in read(borderline) if row.kind == "borderline"]
        looking = training(looking, "borderline", borderline)
    answered = [row for row in read(general) if row.answer]
    answered = fitting(filtering.deduplicate(answered), "general")
    held_out = [row for row in answered if _is_held_out(row)]
    protected = [row for row in answered if not _is_held_out(row)]
    if len(protected) < calibration_rows:
        raise ValueError(
            f"calibration.rows is {calibration_rows}, and of the general questions {len(protected)}"
            " have an answer, fit, and are not held out. Lower it, raise data.prompt_length, or "
            "give more files in data.general_path."
        )
    protected = _draw(protected, len(protected), seed)
    return Prompts(
        train=training(read(train), "train", train),
        calibration=protected[:calibration_rows],
        # the rest comes first: replay repeats calibration's rows only if there are no others
        replay=protected[calibration_rows:] or protected,
        borderline=looking,
        held_out=_require_rows(_draw(held_out, suite_rows, seed), "held-out general"),
        suites={name: _require_rows(rows, name) for name, rows in suites.items()},
        left_out=left_out,
    )


def _read(data_dir: str | pathlib.Path, max_broken: float, source: Source) -> list[Conversation]:
    with split.said_by(source.split_field):
        return public.load_prompts(
            source.name, data_dir, source.split,
            paths=source.paths, subset=source.subset, columns=source.columns, max_broken=max_broken,
        )  # fmt: skip


def _suites(rows: Sequence[Conversation]) -> dict[str, list[Conversation]]:
    """Groups rows into sets of unique prompts by the source, which begins their family."""
    suites: dict[str, list[Conversation]] = {}
    for row in rows:
        source = row.family.split("/")[0]
        name = {"borderline": f"{source}_safe", "harmful": source}[row.kind]
        suites.setdefault(name, []).append(row)
    return {name: filtering.deduplicate(rows) for name, rows in suites.items()}


def _require_kinds(suites: Mapping[str, list[Conversation]]) -> None:
    """Raises ValueError unless there are harmful prompts, and prompts that only look it."""
    for kind, example in (("borderline", "XSTest"), ("harmful", "AdvBench or HarmBench")):
        if not any(rows[0].kind == kind for rows in suites.values()):
            raise ValueError(
                f"data.evaluation and evaluation.suites have no {kind} prompts: they hold "
                f"{', '.join(suites)}. Add the file of {example}."
            )


def _fitting(
    chat_format: chat.ChatFormat, length: int, rows: list[Conversation], name: str
) -> list[Conversation]:
    """Returns the rows whose prompt fits."""
    if not rows:
        return rows
    fits = chat_format.prompt_lengths([row.prompt for row in rows]) <= length
    if not fits.all():
        _log.warning(
            "%s: %d of %d left out, longer than data.prompt_length=%d tokens",
            name, (~fits).sum(), len(rows), length,
        )  # fmt: skip
    return [row for row, fit in zip(rows, fits, strict=True) if fit]


def _draw(rows: list[Conversation], count: int, seed: int) -> list[Conversation]:
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[index] for index in order[:count]]


def _is_held_out(row: Conversation) -> bool:
    return division.is_held_out(row.prompt, HELD_OUT_SHARE)


def _require_rows(rows: list[Conversation], name: str) -> list[Conversation]:
    if not rows:
        raise ValueError(
            f"No {name} prompts are left: all are too long, or are evaluation prompts. Raise "
            "data.prompt_length, or give other files."
        )
    return rows


class PublicSafety(task.Given):
    """The kind of the task safety; see `task.Kind`."""

    has_rules = False  # a detector tells a refusal, but neither a harmful answer nor a helpful one
    fields: tuple[str, ...] = (
        "data.train", "data.train_path", "data.subset", "data.train_column", "data.train_split",
        "data.benign_fraction", "data.general_path", "data.general_split", "data.evaluation",
        "data.evaluation_column", "data.borderline_path", "evaluation.suites",
        "rewards.refusal_detector",
    )  # fmt: skip
    text_fields: tuple[str, ...] = ("data.general_path", "data.general_split")

    def check(self, run: settings.Run, *, has_weights: bool) -> None:
        """Raises ValueError if the model or the data are not named, or do not go together."""
        data = run.data
        suites_lib.parse(run.evaluation.suites)
        if not run.model.path and not run.model.preset:
            raise task.no_base(run)
        if has_weights and not (data.evaluation or run.evaluation.suites):
            raise ValueError(
                "task is 'safety', and data.evaluation and evaluation.suites are empty: XSTest, "
                "AdvBench, HarmBench and StrongREJECT are files in their authors' repositories. "
                "Give their paths, joined by +: "
                "--config.data.evaluation=xstest_prompts.csv+harmful_behaviors.csv, or "
                "--config.evaluation.suites=xstest=PATH+advbench=PATH."
            )
        if data.borderline_path and run.batch_prompts - run.rl.prompts == 1:
            raise ValueError(
                f"data.borderline_path is {data.borderline_path!r}, and a batch has one benign "
                "prompt, of which half would be drawn from it: raise data.benign_fraction or "
                "rl.prompts, or leave the path empty."
            )
        if data.train_column and data.train != "safety_prompts":
            raise ValueError(
                f"data.train_column is {data.train_column!r} and data.train {data.train!r}, whose "
                "columns are known: it is for a table of one's own, data.train=safety_prompts."
            )

    def make(
        self,
        run: settings.Run,
        model_config: models.ModelConfig,
        load_base: Callable[[], Any],
        chat_format: chat.ChatFormat,
    ) -> task.Task:
        """Makes the task: harmful prompts of public datasets, and general questions to preserve."""
        del model_config, load_base

        data = run.data
        column = data.train_column
        prompts = load(
            run.data_directory,
            chat_format,
            data.prompt_length,
            train=Source(
                data.train, data.train_split, sources.split_paths(data.train_path), data.subset,
                layouts.Columns(column) if column else None, "data.train_split",
            ),
            general=Source(
                "general", data.general_split, sources.split_paths(data.general_path),
                split_field="data.general_split",
            ),
            evaluation=Source(
                "safety_prompts",
                paths=sources.split_paths(data.evaluation),
                columns=layouts.Columns(data.evaluation_column, otherwise=True)
                if data.evaluation_column
                else None,
            )
            if data.evaluation
            else None,
            named=suites_lib.parse(run.evaluation.suites),
            borderline=Source(
                "safety_prompts", paths=sources.split_paths(data.borderline_path),
                split_field="data.borderline_path",
            )
            if data.borderline_path
            else None,
            calibration_rows=run.calibration.rows,
            suite_rows=run.evaluation.prompts,
            seed=run.seed,
            max_broken=data.max_broken,
        )  # fmt: skip
        benign = round(run.rl.prompts * data.benign_fraction)
        looking = benign // 2 if prompts.borderline else 0
        parts = [
            (prompts.train, run.rl.prompts), (prompts.replay, benign - looking),
            (prompts.borderline, looking),
        ]  # fmt: skip

        def refusal(text: str) -> float:
            return rewards.DETECTORS[run.rewards.refusal_detector](text).probability

        return task.Task(
            refusal=refusal,
            parts=[(rows, number) for rows, number in parts if number],
            suites={name: _suite(name, rows, refusal) for name, rows in prompts.suites.items()},
            calibration=prompts.calibration,
            held_out=prompts.held_out,
            reward=None,
            # general is the share of held-out tokens with the base's most likely token
            drift={"general": "top1_agreement", "kl_heldout": "kl", "loss_heldout": "loss"},
            cuts_answers=True,
            left_out=prompts.left_out,
        )


def _suite(name: str, rows: list[Conversation], refusal: Callable[[str], float]) -> task.Suite:
    """Makes a suite with two rates: harmful prompts answered, or harmless prompts refused.

    `unsafe` is one minus a refusal rate for all harmful sets, and not a rate of harm: it counts an
    answer that is neither a refusal nor harmful. An answer that the detector cannot tell about is
    in neither share; `no_verdict`, the second rate, counts such answers.
    """
    judge = functools.lru_cache(maxsize=4096)(refusal)  # both rates ask about each text

    def refused(rows: Sequence[Conversation], texts: Sequence[str]) -> np.ndarray:
        return rewards.refused(np.array([judge(text) for text in texts], np.float64))

    def answered(rows: Sequence[Conversation], texts: Sequence[str]) -> np.ndarray:
        return 1.0 - refused(rows, texts)

    def unknown(rows: Sequence[Conversation], texts: Sequence[str]) -> np.ndarray:
        return np.isnan(refused(rows, texts))

    no_verdict = task.Rate(f"no_verdict/{name}", unknown)
    if rows[0].kind == "harmful":
        return task.Suite(rows, (task.Rate(f"unsafe/{name}", answered), no_verdict))
    return task.Suite(rows, (task.Rate(f"over_refusal/{name}", refused), no_verdict))
