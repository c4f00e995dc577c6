"""The tasks: each is a file or a folder here, and a row of KINDS."""

from nspo_jax.tasks.chat_world.task import ChatWorld
from nspo_jax.tasks.public_safety import PublicSafety
from nspo_jax.tasks.stories import Stories
from nspo_jax.tasks.task import Completed, Kind, Scores, Task

__all__ = ["KINDS", "Completed", "Kind", "Scores", "Task"]

KINDS: dict[str, Kind] = {
    "chat_world": ChatWorld(),
    "stories": Stories(),
    "safety": PublicSafety(),
}
