"""The algorithms: what each adds to the common run. Each is a file, and a row of ALGORITHMS."""

from collections.abc import Callable
from typing import Any, Protocol

import optax

from nspo_jax import base_model, metrics, models, settings
from nspo_jax.rl import train_step
from nspo_jax.rl.algorithms.dpo import DPO
from nspo_jax.rl.algorithms.policy_gradient import PolicyGradient
from nspo_jax.rl.algorithms.ppo_lagrangian import PPOLagrangian


class Batches(Protocol):
    """Where a run's batches come from; its position is saved with every checkpoint."""

    def sample(self, params: Any, step: int, clock: metrics.Stopwatch) -> tuple[Any, dict]:
        """One step's batch (host arrays), and what to log of it. Collective."""
        ...

    def get_state(self) -> dict[str, Any]:
        """The position, JSON-able; equal in all processes."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from such a position; raises ValueError if it is one among other data."""
        ...

    def example(self) -> str:
        """What the last batch learned from, in words."""
        ...

    def hurry(self) -> None:
        """Ends what waits for others; safe in a signal's handler."""
        ...

    def close(self) -> None:
        """Frees what it holds."""
        ...


class Algorithm(Protocol):
    """What one algorithm adds to the common run.

    Attributes:
      generates: whether the policy's completions are sampled and judged.
      needs_reference: whether the update compares the policy with the base model.
      rows: of a step: what minibatches and microbatches divide.
      row: what one of them is, for messages.
      fields: the settings, by dotted name, that it reads and that some other algorithm does not.
    """

    generates: bool
    needs_reference: bool
    rows: int
    row: str
    fields: tuple[str, ...]

    def __init__(self, run: settings.Run): ...

    def check(self) -> None:
        """Raises ValueError for settings that cannot work, before anything expensive starts."""
        ...

    def open_batches(self, base: base_model.BaseModel) -> Batches:
        """Where its batches come from."""
        ...

    def abstract_batch(self, array: Callable[[tuple[int, ...], Any], Any]) -> Any:
        """Shapes and dtypes of a minibatch, made by `array(shape, dtype)`: for the dry run."""
        ...

    def init_extra(self, base: base_model.BaseModel) -> Any:
        """What else learns: `TrainState.critics`, on the mesh; None where nothing does."""
        ...

    def abstract_extra(self, model_config: models.ModelConfig) -> tuple[Any, tuple[str, ...]]:
        """Its shapes and dtypes, and what was assumed of them, in words: for the dry run."""
        ...

    def make_step(
        self, model_config: models.ModelConfig, optimizer: optax.GradientTransformation
    ) -> train_step.Step:
        """The jitted update, which donates the state; see `train_step.make_update`."""
        ...


ALGORITHMS: dict[str, type[Algorithm]] = {
    "policy_gradient": PolicyGradient,
    "dpo": DPO,
    "ppo_lagrangian": PPOLagrangian,
}


def of(run: settings.Run) -> Algorithm:
    """The algorithm that a run names; its name is checked by `rl.ranges`."""
    return ALGORITHMS[run.rl.algorithm](run)
