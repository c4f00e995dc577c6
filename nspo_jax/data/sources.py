"""The original files of a dataset, in local files and directories or at the Hugging Face Hub.

A path is a file, a directory, or `hf:OWNER/NAME`, a dataset of the Hub. Without a path
huggingface_hub asks the dataset's home at the Hub, with its cache and environment variables.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import logging
import pathlib
import re

import huggingface_hub
from huggingface_hub import errors

from nspo_jax.data import raw

HUB_PREFIX = "hf:"
_log = logging.getLogger(__name__)
# dataset -> (Hub dataset, patterns of its files), as they are laid out there
HOMES: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    "pku_safe_rlhf": (("PKU-Alignment/PKU-SafeRLHF", ("data/*/*.jsonl",)),),
    "beavertails": (("PKU-Alignment/BeaverTails", ("round0/*/*.jsonl.*",)),),
    "general": (
        ("openai/gsm8k", ("main/*.parquet",)),
        # auxiliary_train is left out, since it holds other datasets' questions
        ("cais/mmlu", ("all/dev-*.parquet", "all/validation-*.parquet", "all/test-*.parquet")),
        ("allenai/ai2_arc", ("ARC-Challenge/*.parquet",)),
        ("openai/openai_humaneval", ("openai_humaneval/*.parquet",)),
        ("google/IFEval", ("ifeval_input_data.jsonl",)),
    ),
    "safety_prompts": (),  # their authors publish csv files in repositories of their own
    "instructions": (("tatsu-lab/alpaca_eval", ("alpaca_eval.json",)),),  # no run trains on them
}
_SPLITS = {"train": "train", "test": "test", "dev": "dev", "val": "validation",
           "valid": "validation", "validation": "validation"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SourceFile:
    """One original file.

    Attributes:
      path: the file's path.
      name: its path below the given directory or Hub dataset, with the name of that.
      split: train, test, dev or validation, by its name or its directory's; else "".
      size: "30k" or "330k", by its name or its directory's, as for BeaverTails; else "".
    """

    path: pathlib.Path
    name: str
    split: str
    size: str


def split_paths(joined: str) -> list[str]:
    """Splits a config's field at +; an empty one has no paths."""
    return joined.split("+") if joined else []


def find(dataset: str, paths: Sequence[str] = (), subset: str = "") -> list[SourceFile]:
    """Finds the original files of a dataset, in the order of their names.

    Args:
      dataset: a name of HOMES.
      paths: files, directories or `hf:OWNER/NAME`; none: the dataset's home at the Hub.
      subset: only the files in a directory of this name, such as alpaca-7b or 30k, in any case.

    Raises:
      FileNotFoundError: if there is nothing, or the Hub cannot be reached.
      ValueError: for an unknown dataset or subset.
    """
    if dataset not in HOMES:
        raise ValueError(f"The dataset is {dataset!r}; expected one of {', '.join(HOMES)}.")
    if not paths and not HOMES[dataset]:
        raise ValueError(
            f"{dataset} has no home at the Hub: give the paths of its csv or jsonl files, or "
            f"{HUB_PREFIX}OWNER/NAME of a copy with the names of its columns."
        )
    found = []
    for repository, patterns in () if paths else HOMES[dataset]:
        found += _in_directory(_download(repository, patterns), repository)
    for path in paths:
        if path.startswith(HUB_PREFIX):
            repository = path.removeprefix(HUB_PREFIX)
            patterns = tuple(f"*{end}{pack}" for end in raw.SUFFIXES for pack in ("", *raw.PACKED))
            found += _in_directory(_download(repository, patterns), repository)
        else:
            found += _local(pathlib.Path(path))
    if not subset:
        return found
    chosen = [file for file in found if subset.lower() in _directories(file)]
    if not chosen:
        directories = sorted({name for file in found for name in _directories(file)})
        raise ValueError(
            f"The subset is {subset!r}; expected the name of a directory of these files: "
            f"{', '.join(directories) or 'there is none'}."
        )
    return chosen


def digest(files: Sequence[SourceFile], reading: str = "") -> str:
    """Computes a short digest of files' names and bytes, which identifies a prepared copy.

    Args:
      files: the files, in order.
      reading: everything else that decides the rows.
    """
    total = hashlib.sha256(f"{reading}\n".encode())
    for file in files:
        content = hashlib.sha256(file.path.read_bytes()).hexdigest()
        total.update(f"{file.name}\n{content}\n".encode())
    return total.hexdigest()[:16]


def _local(path: pathlib.Path) -> list[SourceFile]:
    if path.is_dir():
        return _in_directory(path, path.resolve().name)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file or directory {path}.")
    if not raw.suffix(path):
        raise ValueError(
            f"{path} is of no known format; expected a name ending in {', '.join(raw.SUFFIXES)}, "
            f"packed or not ({', '.join(raw.PACKED)})."
        )
    return [_file(path, path.name)]


def _in_directory(directory: pathlib.Path, name: str) -> list[SourceFile]:
    inside = sorted(
        path.relative_to(directory)
        for path in directory.rglob("*")
        if path.is_file() and raw.suffix(path)
    )
    visible = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    known = {directory / path for path in inside}
    unread = sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and path not in known and not path.name.startswith(".")
    )
    if visible and unread:
        _log.warning(
            "%s: %d files are not read, of no format known here: %s",
            name, len(unread), ", ".join(unread[:5]) + (", ..." if len(unread) > 5 else ""),
        )  # fmt: skip
    if not visible:
        raise FileNotFoundError(
            f"{directory} holds no data file; expected some ending in {', '.join(raw.SUFFIXES)}, "
            f"packed or not ({', '.join(raw.PACKED)})."
        )
    return [_file(directory / path, f"{name}/{path.as_posix()}") for path in visible]


def _file(path: pathlib.Path, name: str) -> SourceFile:
    """Reads split and size off the file's name, or else off its directory's."""
    parts = pathlib.PurePosixPath(name).parts
    said = [re.split(r"[^a-z0-9]+", part.lower()) for part in (*parts[-1:], *parts[-2:-1])]
    words = [word for part in said for word in part]
    split = next((_SPLITS[word] for word in words if word in _SPLITS), "")
    size = next((word for word in words if re.fullmatch(r"\d+k", word)), "")
    return SourceFile(path, name, split, size)


def _directories(file: SourceFile) -> list[str]:
    return [part.lower() for part in pathlib.PurePosixPath(file.name).parts[:-1]]


def _download(repository: str, patterns: Sequence[str]) -> pathlib.Path:
    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(
                repository, repo_type="dataset", allow_patterns=list(patterns)
            )
        )
    except errors.GatedRepoError as error:
        raise FileNotFoundError(
            f"The Hub's dataset {repository} asks to accept its terms on its page and then to log "
            "in (hf auth login)."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"The Hub has no dataset {repository}, or it is private."
        ) from error
    except (OSError, errors.HFValidationError) as error:
        raise FileNotFoundError(
            f"The Hub's dataset {repository} can neither be fetched nor found in the cache "
            f"({error}). Give the path of a file or directory in its format instead."
        ) from error
