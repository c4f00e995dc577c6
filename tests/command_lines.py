"""Runs command lines of the scripts in little time: what they import is imported once.

As a program it imports that, reads [name, [argument, ...], stdin, environment] as a line of JSON
from its standard input, runs it in a fork of itself, and answers [exit status, stdout, stderr]; it
imports the module of a line [module], and answers [].
"""

import atexit
import functools
import importlib
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

    returncode: int
    stdout: str
    stderr: str


def run(name: str, *arguments, stdin: str = "", **environment: str) -> Answer:
    """Runs `python -m scripts.NAME ARGUMENT...` from the repository's root."""
    return Answer(*_ask([name, [*map(str, arguments)], stdin, environment]))


def preload(module: str) -> None:
    """Imports what the command lines from here on have in common, once for all of them."""
    _ask([module])


def _ask(question: list) -> list:
    server = _server()
    print(json.dumps(question), file=server.stdin)
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, f"the process that forks ended with status {server.wait(60)}"
    return json.loads(answer)


@functools.cache
def _server() -> subprocess.Popen:
    """One for each process of the tests; it ends with that, when its input does."""
    server = subprocess.Popen(
        [sys.executable, __file__],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    def end():
        server.stdin.close()
        server.wait(60)
        server.stdout.close()

    atexit.register(end)
    return server


def _fork(name: str, arguments: list[str], stdin: str, environment: dict[str, str]) -> Answer:
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, \
            tempfile.TemporaryFile() as err:  # fmt: skip
        given.write(stdin.encode())
        given.seek(0)
        child = os.fork()
        if not child:
            for number, file in enumerate((given, out, err)):
                os.dup2(file.fileno(), number)
            os.environ.update(environment)
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
    from tests import without_torch

    without_torch.hide_torch()
    import nspo_jax.dry_run.plan  # noqa: F401 what the scripts have in common, and no flags
    import nspo_jax.rl.trainer  # noqa: F401
    import scripts.launch  # noqa: F401

    for line in sys.stdin:
        question = json.loads(line)
        if len(question) == 1:
            importlib.import_module(*question)
            answer = []
        else:
            answer = _fork(*question)
        print(json.dumps(answer), flush=True)
