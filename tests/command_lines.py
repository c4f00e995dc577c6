"""Runs many command lines of the scripts in little time: what they import is imported once.

As a program it reads [[name, [argument, ...]], ...] as JSON from its standard input, runs each in a
fork of itself, and prints [[exit status, stdout, stderr], ...].
"""

import json
import os
import pathlib
import runpy
import subprocess
import sys
import tempfile
import traceback
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Answer(NamedTuple):
    """What a command line came to: its exit status and what it printed."""

    code: int
    out: str
    err: str


def run(lines: list[tuple[str, list[str]]]) -> list[Answer]:
    """Runs `python -m scripts.NAME ARGUMENT...` for each line, from the repository's root."""
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=ROOT, input=json.dumps(lines), capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [Answer(*answer) for answer in json.loads(done.stdout)]


def _fork(name: str, arguments: list[str]) -> Answer:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            os._exit(_code(name, arguments))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
        return Answer(status, *texts)


def _code(name: str, arguments: list[str]) -> int:
    sys.argv = [name, *arguments]
    try:
        runpy.run_module(f"scripts.{name}", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    import nspo_jax.dry_run.plan  # noqa: F401 what the scripts have in common, and no flags
    import scripts.launch  # noqa: F401

    print(json.dumps([_fork(name, arguments) for name, arguments in json.load(sys.stdin)]))
