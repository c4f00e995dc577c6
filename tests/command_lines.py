"""Runs command lines of the scripts, in processes that have imported what those import."""

import pathlib
import tempfile
from typing import NamedTuple

from tests import forks

ROOT = forks.ROOT


class Answer(NamedTuple):
    """What a command line came to: its exit status and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run(name: str, *arguments, stdin: str = "", **environment: str) -> Answer:
    """Runs `python -m scripts.NAME ARGUMENT...` from the repository's root."""
    with tempfile.TemporaryDirectory() as folder:
        given, out, err = (pathlib.Path(folder) / name for name in ("stdin", "stdout", "stderr"))
        given.write_text(stdin)
        process = forks.start(
            forks.run_script, name, argv=tuple(map(str, arguments)),
            stdin=given, stdout=out, stderr=err, **environment,
        )  # fmt: skip
        process.join()
        return Answer(process.exitcode, out.read_text(), err.read_text())
