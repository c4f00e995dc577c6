"""Processes of the tests which fork from one that has imported what most of them use.

Importing takes three CPU seconds, and the tests start over a hundred processes. Each process of the
tests has one server of forks, multiprocessing's, which ends with it.
"""

import atexit
from collections.abc import Callable
import multiprocessing
import multiprocessing.process
import os
import pathlib
import runpy
import sys
import tempfile
from typing import Any

import pytest

from tests import worlds

ROOT = pathlib.Path(__file__).resolve().parents[1]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.preloaded"])


def start(
    target: Callable[..., Any],
    *arguments: Any,
    argv: tuple[str, ...] = (),
    stdin: pathlib.Path | str = os.devnull,
    stdout: pathlib.Path | str = os.devnull,
    stderr: pathlib.Path | str = "",
    **environment: str,
) -> multiprocessing.process.BaseProcess:
    """Starts `target(*arguments)` in a process and returns that.

    Args:
      target: a function of a module.
      *arguments: what it is called with; connections of `pipe` among them.
      argv: the arguments of the process's command line.
      stdin: the file that it reads.
      stdout: the file to whose end it writes.
      stderr: the same for errors; empty: `stdout`.
      **environment: variables that are added to the environment.
    """
    files = [str(stdin), str(stdout), str(stderr or stdout)]
    environment = {worlds.VARIABLE: os.environ.get(worlds.VARIABLE, ""), **environment}
    process = _SERVER.Process(
        target=_begin, args=(target, arguments, argv, files, environment), daemon=True
    )
    process.start()
    return process


def pipe():
    """Two connected ends, one for this process and one for an argument of `start`."""
    return _SERVER.Pipe()


def call(target: Callable[..., Any], *arguments: Any, **environment: str) -> Any:
    """Returns what `target(*arguments)` returns in a process."""
    here, there = pipe()
    with tempfile.NamedTemporaryFile("r") as output:
        process = start(_answer, there, target, arguments, stdout=output.name, **environment)
        there.close()
        try:
            return here.recv()
        except EOFError:
            process.join()
            pytest.fail(f"{target.__name__} ended with {process.exitcode}:\n{output.read()}")


def _answer(end, target, arguments) -> None:
    end.send(target(*arguments))


def run_script(name: str) -> None:
    """The target that is `python -m scripts.NAME`."""
    runpy.run_module(f"scripts.{name}", run_name="__main__", alter_sys=True)


def _begin(target, arguments, argv, files, environment) -> None:
    import jax

    os.chdir(ROOT)
    os.environ.update(environment)
    # jax read these when it was imported
    jax.config.update("jax_compilation_cache_dir", os.environ.get("JAX_COMPILATION_CACHE_DIR"))
    least = os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", float(least))
    for number, file in enumerate(files):
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
        opened = os.open(file, flags, 0o644)
        os.dup2(opened, number)
        os.close(opened)
    worlds.share()
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 it lasts as long as the process
    sys.argv = [getattr(target, "__name__", "python"), *argv]
    try:
        target(*arguments)
    finally:
        # multiprocessing leaves these out, and jax says goodbye to other processes in one
        atexit._run_exitfuncs()
