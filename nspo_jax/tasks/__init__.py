"""The tasks: each is a file or a folder here, and a row of KINDS."""

import functools

from nspo_jax import own_code
from nspo_jax.tasks.chat_world.task import ChatWorld
from nspo_jax.tasks.public_safety import PublicSafety
from nspo_jax.tasks.stories import Stories
from nspo_jax.tasks.task import Completed, Given, Kind, Rate, Scores, Suite, Task

__all__ = ["KINDS", "Completed", "Given", "Kind", "Rate", "Scores", "Suite", "Task", "kind_of"]

KINDS: dict[str, Kind] = {
    "chat_world": ChatWorld(),
    "stories": Stories(),
    "safety": PublicSafety(),
}
_NEEDED = (
    "pretrains", "has_rules", "has_pairs", "fields", "text_fields", "check", "make", "pairs",
    "pretrain", "base_recipe",
)  # fmt: skip


def kind_of(name: str) -> Kind:
    """Returns the kind of a task that a config names: one of KINDS, or a user's own MODULE:CLASS.

    Raises:
      ValueError: if no kind has that name, or the user's class is no kind.
    """
    if own_code.is_named(name):
        return _own(name)
    if name not in KINDS:
        raise ValueError(
            f"task is {name!r}; expected one of {', '.join(KINDS)}, or MODULE:CLASS of your own."
        )
    return KINDS[name]


@functools.cache
def _own(name: str) -> Kind:
    """Makes one instance a process, as KINDS does: a run asks for its task in several places."""
    return own_code.make(name, "task", _NEEDED)
