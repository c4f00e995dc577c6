"""A user's own class, which a config names as MODULE:CLASS.

No other code of a user is imported. The module must be importable: installed, on PYTHONPATH, or in
the directory where the command is started.
"""

from collections.abc import Sequence
import importlib
import re
from typing import Any

_NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def is_named(text: str) -> bool:
    """Tells whether a text has the form MODULE:CLASS, such as my_package.rewards:Polite."""
    return _NAMED.fullmatch(text) is not None


def make(named: str, field: str, needed: Sequence[str]) -> Any:
    """Makes an instance of the class, without arguments.

    Args:
      named: MODULE:CLASS.
      field: the field of the config that names it, for messages.
      needed: the attributes that an instance must have.

    Raises:
      ValueError: naming the field and the mistake: there is no such module or class, it cannot be
        imported or made, or it lacks an attribute.
    """
    said = f"{field} names {named}"
    module_name, _, class_name = named.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise ValueError(
                f"{said}, and there is no module {error.name}: install it, or set PYTHONPATH to "
                "the directory that holds it."
            ) from error
        raise ValueError(f"{said}, whose module cannot be imported: {error}.") from error
    except Exception as error:  # a user's module may raise any error
        kind = type(error).__name__
        raise ValueError(f"{said}, whose module cannot be imported: {kind}: {error}") from error
    made = getattr(module, class_name, None)
    if not isinstance(made, type):
        classes = [name for name, value in vars(module).items() if isinstance(value, type)]
        raise ValueError(
            f"{said}, and {module_name} has no class {class_name}; it has "
            f"{', '.join(classes) or 'none'}."
        )
    try:
        instance = made()
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(
            f"{said}, which cannot be made without arguments: {kind}: {error}"
        ) from error
    if lacking := [name for name in needed if not hasattr(instance, name)]:
        raise ValueError(f"{said}, which lacks {', '.join(lacking)}: see docs/extending.md.")
    return instance
