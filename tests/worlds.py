"""The chat world's rows, prepared and decoded once for all processes of the tests.

Preparing the dataset and decoding its 25,000 rows takes ten CPU seconds, and over a hundred of the
tests' processes open it.
"""

import functools
import os
import pathlib
import pickle

from nspo_jax.data import split as split_lib
from nspo_jax.tasks.chat_world import dataset

# names the directory that processes share; empty: every data directory has its own files
VARIABLE = "NSPO_TEST_WORLDS"
own_files = dataset._read


def share() -> None:
    """Reads every data directory from the one that the environment names, if it names one."""
    directory = os.environ.get(VARIABLE)
    dataset._read = functools.partial(_read, pathlib.Path(directory)) if directory else own_files


@functools.lru_cache(maxsize=64)
def _decoded(directory: pathlib.Path, seed: int, split: split_lib.Split) -> tuple:
    path = directory / f"{seed} {split}.pickle"
    if not path.exists():
        rows = own_files(str(directory), seed, split)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(pickle.dumps(rows))
        partial.rename(path)
    return pickle.loads(path.read_bytes())


def _read(directory: pathlib.Path, _: str, seed: int, split: split_lib.Split) -> tuple:
    return _decoded(directory, seed, split)
