"""TFDS builders of public datasets, whose files are checked and stored once as array_record.

    loaded = public.load("pku_safe_rlhf", "runs/data", "train[:40%]", subset="alpaca-7b")
    loaded.rows[0].safer_response_id, loaded.problems.total

The rows keep the order of the files, so that a slice is the one that others take of the same files.
A prepared copy is recognised by the files' names and bytes, and changed files are prepared anew.
Rows that broke the schema are stored beside the others and told at every load.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import logging
import pathlib
from typing import Any, cast

import numpy as np
import tensorflow_datasets as tfds

from nspo_jax.data import builders, layouts, raw, records, sources
from nspo_jax.data import split as split_lib
from nspo_jax.data.conversation import Conversation

_log = logging.getLogger(__name__)
UNNAMED = "rows"  # the split of files whose names say none


@dataclasses.dataclass
class FilesConfig(tfds.core.BuilderConfig):
    """The files of a dataset.

    Attributes:
      files: split -> its files, each with its layout, in the order of the rows.
    """

    files: dict[str, list[tuple[sources.SourceFile, layouts.Layout]]] = dataclasses.field(
        default_factory=dict
    )


class _Public(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A dataset of one kind of record."""

    RECORD: type

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {field.name: _feature(field.type) for field in dataclasses.fields(self.RECORD)}
            ),
            description=self.RECORD.__doc__,
            disable_shuffling=True,  # a slice takes the rows in the order of the files
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # the files are there
        problems = raw.Problems()
        files = cast(FilesConfig, self.builder_config).files  # TFDS leaves its type open
        return {split: self._generate_examples(files[split], problems) for split in files}

    def _generate_examples(self, files, problems: raw.Problems) -> Iterator[tuple[int, Any]]:
        index = -1
        for file, layout in files:
            for record in layouts.parse(file, layout, problems):
                index += 1
                yield index, _stored(record)
        if index < 0:
            name, line, reason = problems.examples[-1]
            raise raw.SourceError(
                f"Every row of {', '.join(file.name for file, _ in files)} is broken: "
                f"line {line} of {name} {reason}."
            )
        found = {"counts": problems.counts, "examples": problems.examples}
        cast(dict, self.info.metadata)["problems"] = found  # `_info` makes it a dict


class PkuSafeRlhf(_Public):
    """PKU-SafeRLHF, with every published field."""

    VERSION = tfds.core.Version("1.0.0")  # it rises when files are turned into other records
    RECORD = records.PreferencePair


class Beavertails(_Public):
    """BeaverTails."""

    VERSION = tfds.core.Version("1.0.0")
    RECORD = records.JudgedAnswer


class General(_Public):
    """General questions: the sources of `records.GeneralQuestion`."""

    VERSION = tfds.core.Version("1.0.0")
    RECORD = records.GeneralQuestion


class SafetyPrompts(_Public):
    """Safety prompts: the sources of `records.SafetyPrompt`."""

    VERSION = tfds.core.Version("1.0.0")
    RECORD = records.SafetyPrompt


BUILDERS = {builder.name: builder for builder in (PkuSafeRlhf, Beavertails, General, SafetyPrompts)}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A dataset, or a part of it.

    Attributes:
      rows: its records, in the order of the files.
      splits: every split of the dataset, with its number of rows.
      files: the names of the original files.
      problems: the rows of all files that break the schema, which are not among `rows`.
    """

    rows: list[records.Record]
    splits: dict[str, int]
    files: list[str]
    problems: raw.Problems


def load(
    name: str,
    data_dir: str | pathlib.Path,
    split: str = "",
    *,
    paths: Sequence[str] = (),
    subset: str = "",
    columns: layouts.Columns | None = None,
    max_broken: float = 1.0,
) -> Loaded:
    """Loads a public dataset, and prepares it first if that is not done.

    Args:
      name: a name of BUILDERS.
      data_dir: the directory of prepared datasets, for TFDS.
      split: one of the dataset's splits, or a slice such as "train[:40%]"; "": all of them. Files
        name theirs (train, test, dev, validation; else "rows"). BeaverTails has 30k_train,
        30k_test, 330k_train and 330k_test. The splits of safety_prompts are its sources: advbench,
        harmbench, harmbench_validation, strongreject, xstest, custom.
      paths: the original files; see `sources.find`.
      subset: only the files in a directory of this name; see `sources.find`.
      columns: the columns of a table of one's own, for safety_prompts.
      max_broken: the largest share of rows that may break the schema. They are always told.

    Raises:
      ValueError: for an unknown dataset, subset or split, for files of another dataset or with too
        many broken rows, and for prepared files that cannot be read.
      FileNotFoundError: if the original files are not there.
    """
    if columns and name != "safety_prompts":
        raise ValueError(f"Columns can be named for safety_prompts alone, not for {name}.")
    config = _config(name, sources.find(name, paths, subset), columns)
    wanted = split_lib.parse(split) if split else None
    if wanted and wanted.name not in config.files:
        raise ValueError(
            f"The split is {split!r}; expected one of {', '.join(config.files)}, with a slice if "
            "wanted, such as train[:40%]."
        )
    make = functools.partial(
        BUILDERS[name], config=config, data_dir=str(data_dir), file_format="array_record"
    )
    try:
        builder = builders.prepare(make)
        if wanted and (size := builder.info.splits[wanted.name].num_examples):
            wanted.check_rows(size)
        parts = [str(wanted)] if wanted else list(config.files)
        rows = [
            _read(builder.RECORD, row)
            for part in parts
            if builder.info.splits[part].num_examples  # TFDS cannot read an empty slice
            for row in builder.as_data_source(split=part)  # pyright: ignore[reportCallIssue]  # the decorator hides it
        ]
        stored = cast(dict, builder.info.metadata)["problems"]  # `_info` makes it a dict
        splits = {part: builder.info.splits[part].num_examples for part in config.files}
    except (raw.SourceError, split_lib.SplitError):
        raise
    except builders.DAMAGED as error:
        directory = pathlib.Path(data_dir) / name / config.name
        raise ValueError(
            f"The dataset in {directory} cannot be read or written ({error}). Delete that "
            "directory to prepare it anew, or give another data directory."
        ) from error
    names = [file.name for part in config.files.values() for file, _ in part]
    if not rows:
        raise ValueError(
            f"The dataset {name}{f' ({split})' if split else ''} holds no rows: of "
            f"{', '.join(names)}."
        )
    problems = raw.Problems(stored["counts"], [tuple(example) for example in stored["examples"]])
    _tell_broken(name, problems, sum(splits.values()), max_broken)
    return Loaded(rows, splits, names, problems)


def load_prompts(
    name: str,
    data_dir: str | pathlib.Path,
    split: str = "",
    *,
    paths: Sequence[str] = (),
    subset: str = "",
    columns: layouts.Columns | None = None,
    max_broken: float = 1.0,
) -> list[Conversation]:
    """Loads conversations as `load` does, with a reference answer if there is a safe one.

    Prompts come as often as the dataset has them. `filtering` makes them unique and takes out those
    of the evaluation sets.
    """
    loaded = load(
        name, data_dir, split, paths=paths, subset=subset, columns=columns, max_broken=max_broken
    )
    return [row.conversation() for row in loaded.rows]


def _tell_broken(name: str, problems: raw.Problems, good: int, most: float) -> None:
    """Logs the number of broken rows and the first; raises SourceError for too large a share."""
    if not problems.total:
        return
    total = good + problems.total
    first = "; ".join(f"{file}:{line} {reason}" for file, line, reason in problems.examples[:3])
    message = f"{name}: {problems.total} of {total} rows are broken and left out, first {first}"
    if problems.total > most * total:
        raise raw.SourceError(
            f"{message}. That is more than data.max_broken={most:g} of them: mend the files, or "
            "raise it. `python -m scripts.inspect_data` lists them."
        )
    _log.warning("%s", message)


def _config(
    name: str, files: Sequence[sources.SourceFile], columns: layouts.Columns | None
) -> FilesConfig:
    parts: dict[str, list[tuple[sources.SourceFile, layouts.Layout]]] = {}
    for file in files:
        layout = layouts.recognise(name, file, columns)
        said = file.split or layout.split
        if name == "safety_prompts":
            split = "_".join(part for part in (layout.source, file.split) if part)
        elif name == "beavertails":
            split = "_".join(part for part in (file.size, said) if part)
        else:
            split = said
        parts.setdefault(split or UNNAMED, []).append((file, layout))
    digest = sources.digest(files, str(columns or ""))
    return FilesConfig(name=digest, description=f"Made of {len(files)} files.", files=parts)


def _feature(kind: Any) -> Any:
    return {
        str: tfds.features.Text(),
        bool: np.bool_,
        int: np.int32,
        tuple[str, ...]: tfds.features.Sequence(tfds.features.Text()),
    }[kind]


def _stored(record: records.Record) -> dict[str, Any]:
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _read(record: type, row: dict[str, Any]) -> records.Record:
    """Makes the record of a stored row, whose texts come as bytes and numbers as numpy's."""
    text = lambda value: bytes(value).decode()  # noqa: E731
    readers = {str: text, bool: bool, int: int, tuple[str, ...]: lambda v: tuple(map(text, v))}
    return record(**{
        field.name: readers[field.type](row[field.name]) for field in dataclasses.fields(record)
    })  # fmt: skip
