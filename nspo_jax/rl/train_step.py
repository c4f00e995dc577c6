"""The policy update that all algorithms share: a loss, its gradient, and an optax chain.

The chain ends in the projection. A loss takes a batch: `RolloutBatch`, or an algorithm's own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nspo_jax import batch_parts, sharding
from nspo_jax import optimizer as optimizer_lib

Array = np.ndarray | jax.Array  # a batch is made on the host
LossOf = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
Step = Callable[..., tuple[Any, dict[str, jax.Array]]]


class TrainState(NamedTuple):
    """The state that an update changes and a checkpoint holds.

    step: int32 scalar, updates done.
    trainable: the trained leaves (None where frozen), see `optimizer.open_master`.
    opt_state: optax state, with the projector bases in it.
    critics: an algorithm's other learners, see `ppo_lagrangian.Critics`.
    """

    step: jax.Array
    trainable: Any
    opt_state: optax.OptState
    critics: Any = None


class RolloutBatch(NamedTuple):
    """Completions to learn from; arrays are [batch, ...].

    prompts: int32 [batch, prompt_length], left-padded; prompt_mask: bool.
    completions: int32 [batch, completion_length], right-padded; completion_mask: bool.
    old_logprobs: float32 [batch, completion_length], of the sampler.
    advantages: float32 [batch], or [batch, completion_length] for each token's own.
    outcomes: float32 [batch, 2], reward and cost of each completion, for an algorithm that needs
      them apart.
    """

    prompts: Array
    prompt_mask: Array
    completions: Array
    completion_mask: Array
    old_logprobs: Array
    advantages: Array
    outcomes: Array | None = None


def gradient_in_parts(
    loss_of: Callable[..., Any], parts: int, group: int = 1
) -> Callable[..., tuple[Any, Any]]:
    """Builds `gradient(trained, batch) -> (gradient, metrics)` of a mean over rows.

    Args:
      loss_of: (trained, rows, tokens) -> (loss, metrics), means over the rows. `tokens` is the mean
        number of completion tokens of a part of the batch: parts that divided by their own number
        would weigh tokens differently.
      parts: the number of equal parts of the rows. Their gradients are computed one at a time, in
        less memory, and added up in float32.
      group: the number of neighbouring rows that a part holds together.
    """
    differentiate = jax.grad(loss_of, has_aux=True)

    def gradient(trained, batch):
        tokens = jnp.maximum(jnp.sum(batch.completion_mask), 1) / parts
        return batch_parts.mean_in_parts(
            lambda rows: differentiate(trained, rows, tokens), batch, parts, group
        )

    return gradient


def make_update(
    loss_of: LossOf,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    group: int = 1,
    compute_dtype: str = "float32",
) -> Step:
    """Builds `step(state, frozen, reference, batch) -> (state, metrics)`, not jitted yet.

    `optimizer.combine` joins `frozen` with `state.trainable`. `reference` holds the base model's
    parameters where the loss needs them, else None. `metrics` are float32 scalars and the bool
    array `nonfinite`, see `nonfinite_tensors`.

    Args:
      loss_of: (params, reference, batch, tokens) -> (loss, metrics): see `gradient_in_parts`.
      optimizer: transforms the gradients of the trained leaves.
      microbatches: parts of the batch's rows whose gradients are added up: the same update to
        rounding, in less memory.
      group: see `gradient_in_parts`.
      compute_dtype: the model's, in which weights are formed.
    """

    def step(state: TrainState, frozen, reference, batch):
        def of_trainable(trainable, rows, tokens):
            params = optimizer_lib.combine(trainable, frozen, compute_dtype)
            return loss_of(params, reference, rows, tokens)

        differentiate = gradient_in_parts(of_trainable, microbatches, group)
        gradient, metrics = differentiate(state.trainable, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = metrics | {
            "gradient_norm": optax.tree.norm(gradient),
            "update_norm": optax.tree.norm(updates),
            "nonfinite": nonfinite((gradient, trainable)),
        }
        state = state._replace(step=state.step + 1, trainable=trainable, opt_state=opt_state)
        # the result has the shardings of the argument: the next step is the same program
        return sharding.constrain(state), metrics

    return step


def nonfinite(trees: Any) -> jax.Array:
    """Returns bool [leaves]: True for each leaf that holds a NaN or inf."""
    return jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trees)])


def nonfinite_tensors(flags, state: TrainState) -> list[str]:
    """Names the tensors behind the `nonfinite` flags of a step.

    The policy's gradients come first, then its weights, then the critics' likewise if there are
    any.
    """
    critics = None if state.critics is None else state.critics.params
    names = []
    for tree in (state.trainable, critics):
        paths = [optimizer_lib.path_string(path) for path, _ in jax.tree.leaves_with_path(tree)]
        names += [f"gradient of {path}" for path in paths] + paths
    return [name for name, bad in zip(names, flags, strict=True) if bad]
