"""A reader of public benchmarks' files, JSON lines or CSV, for the task files beside this one.

lm-eval calls `load` with the task's dataset_kwargs and metadata. The folder comes from
`python -m scripts.evaluate --lm_eval_data=DIR`, or from lm-eval's own
`--metadata '{"data_dir": "DIR"}'`.
"""

import csv
import json
import pathlib
from typing import Any

import datasets


def load(
    files: dict[str, str], data_dir: str | None = None, **metadata: Any
) -> dict[str, datasets.Dataset]:
    """Reads split -> its rows.

    Args:
      files: split -> path under `data_dir`.
      data_dir: the folder of all benchmarks.
      **metadata: the task's other metadata, which do not concern its data.

    Raises:
      ValueError: if no folder is given.
      FileNotFoundError: if a file is not in it.
    """
    if not data_dir:
        raise ValueError(
            f"its data are local files ({', '.join(files.values())}) and no folder is given: set "
            "--lm_eval_data=DIR"
        )
    return {
        split: datasets.Dataset.from_list(_rows(pathlib.Path(data_dir) / file))
        for split, file in files.items()
    }


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: docs/evaluation.md says what it holds")
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            return list(csv.DictReader(file))
        return [json.loads(line) for line in file if line.strip()]
