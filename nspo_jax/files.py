"""Files of this package, written whole or not at all and read with errors that name them."""

from collections.abc import Callable
import json
import pathlib
import shutil
import tempfile
from typing import Any


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text and a line end, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n", encoding="utf-8")
    temporary.replace(path)


def write_directory(target: pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Lets `write` fill a temporary folder, and gives it the target's name.

    An old target is renamed aside first and removed last: a process killed between the two renames
    leaves both the old and the new folder complete, beside the target.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(prefix=f"{target.name}.partial-", dir=target.parent))
    try:
        write(partial)
        partial.chmod(0o755)  # mkdtemp makes a private folder
        if not target.exists():
            partial.rename(target)
            return
        previous = tempfile.mkdtemp(prefix=f"{target.name}.previous-", dir=target.parent)
        target.rename(previous)  # the rename replaces the empty directory
        partial.rename(target)
        shutil.rmtree(previous)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # the folder is still there after a failure


def read_json(path: pathlib.Path, remedy: str) -> dict[str, Any]:
    """Reads the object in a JSON file that this package wrote.

    Args:
      path: the path of an existing file.
      remedy: the advice for a damaged file, such as "delete it".

    Raises:
      ValueError: naming the file, if it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged: its {path.stat().st_size} bytes are no JSON ({error}). It was cut "
            f"short, or edited: {remedy}."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path} is damaged: it holds a {type(content).__name__}, not an object. {remedy}."
        )
    return content
