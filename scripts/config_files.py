"""Config files of the command line: FILE.py with get_config(), or FILE.py:ARM with get_config(ARM).

A file that is missing, does not run, or makes another kind of config is a mistake, which is
explained in words with its line in the file.
"""

from collections.abc import Callable
import pathlib
import runpy
import traceback
from typing import Any

import ml_collections

# kind -> a field that no other kind of config has, a description, and the script that takes it
CONFIG_KINDS = {
    "run": ("rl", "a run, such as configs/tiny.py:nspo", "scripts.train"),
    "sweep": ("arms", "a sweep, such as configs/sweeps/tiny_arms.py", "scripts.sweep"),
}


def load(text: str, *, kind: str, said_by: str = "--config") -> ml_collections.ConfigDict:
    """Makes the config that "FILE.py" or "FILE.py:ARM" names.

    Args:
      text: the value on the command line.
      kind: the key of CONFIG_KINDS that the config must have.
      said_by: the flag or field that has the text.

    Raises:
      FileNotFoundError, ValueError: naming the mistake and its place.
    """
    path, *arm = text.split(":", 1)
    return call(read(path, said_by), path, arm, kind=kind, said_by=said_by)


def read(path: str, said_by: str) -> Callable[..., Any]:
    """Returns the `get_config` of a file; raises the errors of `load`."""
    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(
            f"{said_by} is {path!r}, and there is no such file: give a config file, such as "
            "configs/tiny.py:nspo."
        )
    try:
        found = runpy.run_path(path)
    except Exception as error:
        raise ValueError(_describe_error(error, path, said_by)) from error
    if not callable(found.get("get_config")):
        raise ValueError(
            f"{said_by} is {path!r}, which has no function get_config: a config file defines "
            "get_config(), or get_config(ARM), and returns a config."
        )
    return found["get_config"]


def call(
    get_config: Callable[..., Any], path: str, arm: list[str], *, kind: str, said_by: str
) -> ml_collections.ConfigDict:
    """Makes the config of an arm ([]: none) by `get_config`; raises the errors of `load`."""
    try:
        config = get_config(*arm)
    except ValueError:
        raise  # the file itself explains it, such as an unknown arm
    except Exception as error:
        raise ValueError(_describe_error(error, path, said_by, arm)) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ValueError(
            f"{said_by} is {path!r}, whose get_config returns {type(config).__name__}; expected an "
            "ml_collections.ConfigDict."
        )
    field, what, _ = CONFIG_KINDS[kind]
    if field not in config:
        other = [
            words for name, words in CONFIG_KINDS.items() if name != kind and words[0] in config
        ]
        takes = "".join(f", which {script} takes" for *_, script in other)
        is_of = other[0][1].split(",")[0] if other else "something else"
        raise ValueError(
            f"{said_by} is {path!r}, the config of {is_of}{takes}; expected the config of {what}."
        )
    return config


def _describe_error(error: Exception, path: str, said_by: str, arm: list[str] = ()) -> str:
    """Describes in words the error that a config file raised, and its line there."""
    place = pathlib.Path(path).resolve()
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if pathlib.Path(frame.filename).resolve() == place
    ]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    where = f", line {lines[-1]}" if lines else ""
    reason = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
    if isinstance(error, TypeError) and not lines:  # it was called with an arm, or without
        reason = (
            f"its get_config takes no arm, and {said_by} gives {arm[0]!r}"
            if arm
            else f"its get_config needs an arm: write {path}:ARM"
        )
    return f"{said_by} is {path!r}, which makes no config{where}: {reason}."
