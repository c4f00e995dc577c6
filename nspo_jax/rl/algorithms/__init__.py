"""The algorithms: each is a file with its additions to the common run, and a row of ALGORITHMS."""

from collections.abc import Callable
from typing import Any, Protocol

import optax

from nspo_jax import base_model, metrics, models, settings
from nspo_jax.rl import train_step
from nspo_jax.rl.algorithms.dpo import DPO
from nspo_jax.rl.algorithms.policy_gradient import PolicyGradient
from nspo_jax.rl.algorithms.ppo_lagrangian import PPOLagrangian


class Batches(Protocol):
    """The source of a run's batches; its position is saved with every checkpoint."""

    def sample(self, params: Any, step: int, clock: metrics.Stopwatch) -> tuple[Any, dict]:
        """Returns one step's batch (host arrays) and its metrics for the log. Collective."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Returns the position, JSON-able and equal in all processes."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from such a position; raises ValueError if it belongs to other data."""
        ...

    def example(self) -> str:
        """Describes an example of the last batch, in words."""
        ...

    def hurry(self) -> None:
        """Ends all waiting for judges; safe in a signal's handler."""
        ...

    def close(self) -> None:
        """Frees the threads and connections that it holds."""
        ...


class Algorithm(Protocol):
    """The additions of one algorithm to the common run.

    Attributes:
      generates: True if the policy's completions are sampled and judged.
      needs_reference: True if the update compares the policy with the base model.
      rows: the number of rows of a step, which minibatches and microbatches divide.
      row: the name of these rows, for messages.
      group: the number of neighbouring rows that every minibatch and microbatch holds together.
      fields: the settings, by dotted name, that it reads and that some other algorithm does not.
    """

    generates: bool
    needs_reference: bool
    rows: int
    row: str
    group: int
    fields: tuple[str, ...]

    def __init__(self, run: settings.Run): ...

    def check(self) -> None:
        """Raises ValueError for settings that cannot work, before anything expensive starts."""
        ...

    def open_batches(self, base: base_model.BaseModel) -> Batches:
        """Opens the source of its batches."""
        ...

    def abstract_batch(self, array: Callable[[tuple[int, ...], Any], Any]) -> Any:
        """Describes a minibatch by `array(shape, dtype)`, for the dry run."""
        ...

    def init_extra(self, base: base_model.BaseModel) -> Any:
        """Returns `TrainState.critics`, on the mesh; None if only the policy learns."""
        ...

    def abstract_extra(self, model_config: models.ModelConfig) -> tuple[Any, tuple[str, ...]]:
        """Describes `init_extra`, and names the assumptions in words, for the dry run."""
        ...

    def make_step(
        self, model_config: models.ModelConfig, optimizer: optax.GradientTransformation
    ) -> train_step.Step:
        """Builds the jitted update, which donates the state; see `train_step.make_update`."""
        ...


ALGORITHMS: dict[str, type[Algorithm]] = {
    "policy_gradient": PolicyGradient,
    "dpo": DPO,
    "ppo_lagrangian": PPOLagrangian,
}


def of(run: settings.Run) -> Algorithm:
    """Returns the algorithm that a run names; `rl.ranges` checks the name."""
    return ALGORITHMS[run.rl.algorithm](run)
