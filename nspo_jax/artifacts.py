"""The artifacts that one run makes and others share: a base model, projectors, reward models.

Each is a directory, written whole or not at all. Its recipe is the settings that it was made by.
"""

from collections.abc import Callable, Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

from nspo_jax import distributed, files, ownership


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings that an artifact is made by, and the file beside it that records them.

    Attributes:
      fields: name -> value of the run's settings, JSON-able.
      file: a JSON file; if it is absent, the artifact is not checked.
      key: the field of the JSON object that holds the recipe; "": the object itself.
      remedy: the sentence that tells a user how to deal with an artifact of another recipe.
    """

    fields: Mapping[str, Any]
    file: pathlib.Path
    remedy: str
    key: str = ""

    def write(self, **rest: Any) -> None:
        """Records the recipe; `rest` is written beside it if the recipe has a key."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = {self.key: dict(self.fields), **rest} if self.key else dict(self.fields)
        files.write_text(self.file, json.dumps(content, indent=1))

    def check(self, directory: pathlib.Path, what: str) -> None:
        """Raises ValueError if the artifact in a directory was made by another recipe."""
        if not self.file.exists():
            return
        found = files.read_json(self.file, "delete it")
        changed = differences(self.fields, found[self.key] if self.key else found)
        if changed:
            raise ValueError(
                f"The {what} in {directory} was made by another config: {changed}. {self.remedy}"
            )


def make_once(
    directory: str | os.PathLike,
    what: str,
    make: Callable[[], Any],
    recipe: Recipe | None = None,
) -> None:
    """Makes a directory unless it exists; a second run waits and then finds it. Collective.

    Args:
      directory: the directory that `make` makes, whole or not at all.
      what: its name in messages, such as "base model".
      make: makes the directory; every process calls it.
      recipe: the recipe that the artifact must have, whoever made it.

    Raises:
      ValueError: if the existing artifact was made by another recipe.
    """
    directory = pathlib.Path(directory)
    if not distributed.primary_says(directory.exists()):
        with ownership.own(directory, what, wait=True):
            if distributed.primary_says(not directory.exists()):
                make()
            distributed.barrier(f"{what} is there")
    if recipe is not None:
        recipe.check(directory, what)


def differences(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Describes in words the differences of a found recipe from the wanted one; "" if none."""
    return "; ".join(
        f"{name} is {found.get(name)!r} there and {value!r} now"
        for name, value in wanted.items()
        if found.get(name) != value
    )
