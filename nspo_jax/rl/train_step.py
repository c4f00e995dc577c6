"""The jitted policy update: loss, gradient, and an optax chain that ends in the projection.

`make_update` is what all algorithms share, around any loss; `policy_gradient_loss` is the one that
learns from advantages. `make_train_step` puts the two together.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nspo_jax import models, sharding
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.rl import losses

LossOf = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
Step = Callable[..., tuple[Any, dict[str, jax.Array]]]


class TrainState(NamedTuple):
    """What an update changes, and a checkpoint holds.

    step: int32 scalar, updates done; trainable: what is trained, see `optimizer.open_master` (None
    where frozen); opt_state: optax state, with the projector bases in it; critics: what else
    learns, see `lagrangian.Critics`.
    """

    step: jax.Array
    trainable: Any
    opt_state: optax.OptState
    critics: Any = None


class Rollouts(NamedTuple):
    """A batch for `train_step`; arrays are [batch, ...].

    prompts: int32 [batch, prompt_length], left-padded; prompt_mask: bool.
    completions: int32 [batch, completion_length], right-padded; completion_mask: bool.
    old_logprobs: float32 [batch, completion_length], of the sampler.
    advantages: float32 [batch], or [batch, completion_length] for each token's own.
    outcomes: float32 [batch, 2], reward and cost of each completion, where an algorithm asks for
      them apart.
    """

    prompts: jax.Array
    prompt_mask: jax.Array
    completions: jax.Array
    completion_mask: jax.Array
    old_logprobs: jax.Array
    advantages: jax.Array
    outcomes: jax.Array | None = None


def predicting_states(config: models.ModelConfig, params, batch: Any) -> jax.Array:
    """Final hidden states before each completion token: [batch, completion_length, d].

    They are at the positions that predict it: what is known when it is drawn.
    """
    tokens = jnp.concatenate([batch.prompts, batch.completions], axis=1)
    mask = jnp.concatenate([batch.prompt_mask, batch.completion_mask], axis=1)
    hidden = models.forward(config, params, tokens, mask).hidden
    start = batch.prompts.shape[1] - 1  # the last prompt position predicts the first answer token
    return hidden[:, start : start + batch.completions.shape[1]]


def completion_logprobs(
    config: models.ModelConfig, params, batch: Any, temperature: float = 1.0
) -> jax.Array:
    """log p of the completion tokens: float32 [batch, completion_length].

    Logits are computed at the positions that predict a completion token, nowhere else, and a chunk
    at a time where the vocabulary is large.

    Args:
      config: the model.
      params: its parameters.
      batch: anything with the first four fields of `Rollouts`.
      temperature: divides the logits.
    """
    predicting = predicting_states(config, params, batch)
    # of the head alone, once and not for every chunk
    name = "embed" if config.tie_embeddings else "head"
    head = params | sharding.gather({name: params[name]}, config.compute_dtype)

    def logprobs(hidden: jax.Array, tokens: jax.Array) -> jax.Array:
        return models.token_logprobs(models.logits(config, head, hidden) / temperature, tokens)

    return models.map_positions(config, logprobs, predicting, batch.completions)


def policy_gradient_loss(
    config: models.ModelConfig,
    *,
    loss: str = "grpo",
    aggregation: str = "sequence_mean",
    clip: float = 0.2,
    clip_high: float = 0.0,
    dual_clip: float = 0.0,
    kl_coefficient: float = 0.0,
    kl_estimator: str = "k3",
    importance_cap: float = 0.0,
    temperature: float = 1.0,
) -> LossOf:
    """The loss of advantages, for `make_update` with batches of `Rollouts`.

    `loss` is one of `losses.LOSSES`; the other options are `losses.clipped_loss`'s. With an
    `importance_cap` above 0 tokens get `losses.importance_weights`, trainer against sampler, and
    the ratio's denominator is the trainer's own probability at the start of the update: of the
    policy being trained, so that the ratio is 1 and no clip acts. That is right for one update a
    batch, however old the sampler's weights. In a second one the weights would hold the first one's
    change too, and nothing would clip it: `checks.check_config` refuses more minibatches.
    """
    policy_loss = functools.partial(
        losses.LOSSES[loss],
        aggregation=aggregation,
        clip=clip,
        clip_high=clip_high,
        dual_clip=dual_clip,
        kl_coefficient=kl_coefficient,
        kl_estimator=kl_estimator,
    )

    def loss_of(params, reference, batch: Rollouts, tokens: jax.Array):
        reference_logprobs = None
        if reference is not None:
            reference_logprobs = completion_logprobs(config, reference, batch, temperature)
        logprobs = completion_logprobs(config, params, batch, temperature)
        mask, old_logprobs, weights = batch.completion_mask, batch.old_logprobs, None
        if importance_cap:
            old_logprobs = jax.lax.stop_gradient(logprobs)
            weights = losses.importance_weights(logprobs, batch.old_logprobs, mask, importance_cap)
        result = policy_loss(
            logprobs,
            old_logprobs,
            batch.advantages,
            mask,
            tokens=tokens,
            weights=weights,
            reference_logprobs=reference_logprobs,
        )
        gap = losses.sequence_mean(jnp.abs(logprobs - batch.old_logprobs), mask)
        return result.loss, {
            "loss": result.loss,
            "policy_loss": result.policy,
            "clip_share": result.clip_share,
            "kl_reference": result.kl,
            "logprob_gap": gap,  # sampler against trainer: rounding, and older updates
        }

    return loss_of


def gradient_in_parts(loss_of: Callable[..., Any], parts: int) -> Callable[..., tuple[Any, Any]]:
    """`gradient(trained, batch) -> (gradient, metrics)` of a mean over rows, in less memory.

    Args:
      loss_of: (trained, rows, tokens) -> (loss, metrics), means over the rows, `tokens` being the
        mean number of completion tokens of a part of the batch: parts that divided by their own
        would weigh tokens differently.
      parts: of the rows, which they divide: gradients of one at a time are added up in float32.
    """
    differentiate = jax.grad(loss_of, has_aux=True)

    def split(array: jax.Array) -> jax.Array:
        # every part has rows of each device's block, so that none travels
        return jnp.moveaxis(array.reshape(-1, parts, *array.shape[1:]), 1, 0)

    def gradient(trained, batch):
        tokens = jnp.maximum(jnp.sum(batch.completion_mask), 1) / parts
        if parts == 1:
            return differentiate(trained, batch, tokens)

        def part(total, rows):
            found = differentiate(trained, rows, tokens)
            return jax.tree.map(lambda t, x: t + x / parts, total, found), None

        shapes = jax.eval_shape(differentiate, trained, batch, tokens)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(part, zeros, jax.tree.map(split, batch))[0]

    return gradient


def make_update(
    loss_of: LossOf,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    compute_dtype: str = "float32",
) -> Step:
    """Builds `step(state, frozen, reference, batch) -> (state, metrics)`, not jitted yet.

    `frozen` is what `optimizer.combine` joins with `state.trainable`. `reference` is the base
    model's parameters where the loss needs them, else None. `metrics` are float32 scalars, and
    `nonfinite`, bool, see `nonfinite_tensors`.

    Args:
      loss_of: (params, reference, batch, tokens) -> (loss, metrics): see `gradient_in_parts`.
      optimizer: of the trained leaves.
      microbatches: parts of the batch's rows whose gradients are added up: the same update to
        rounding, in less memory.
      compute_dtype: of the model, which weights are formed in.
    """

    def step(state: TrainState, frozen, reference, batch):
        def of_trainable(trainable, rows, tokens):
            params = optimizer_lib.combine(trainable, frozen, compute_dtype)
            return loss_of(params, reference, rows, tokens)

        gradient, metrics = gradient_in_parts(of_trainable, microbatches)(state.trainable, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = metrics | {
            "gradient_norm": optax.tree.norm(gradient),
            "update_norm": optax.tree.norm(updates),
            "nonfinite": nonfinite((gradient, trainable)),
        }
        state = state._replace(step=state.step + 1, trainable=trainable, opt_state=opt_state)
        # what goes out lies as what came in: the next step is the same program
        return sharding.constrain(state), metrics

    return step


def make_train_step(
    config: models.ModelConfig,
    optimizer: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    **options: Any,
) -> Step:
    """The jitted policy gradient step, which donates the state.

    Args:
      config: the policy.
      optimizer: see `make_update`.
      microbatches: see `make_update`.
      **options: of `policy_gradient_loss`.
    """
    loss_of = policy_gradient_loss(config, **options)
    update = make_update(
        loss_of, optimizer, microbatches=microbatches, compute_dtype=config.compute_dtype
    )
    return jax.jit(update, donate_argnums=0)


def nonfinite(trees: Any) -> jax.Array:
    """bool [leaves]: which of them hold a NaN or inf."""
    return jnp.stack([~jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(trees)])


def nonfinite_tensors(flags, state: TrainState) -> list[str]:
    """Names the tensors behind the `nonfinite` flags of a step.

    They are the policy's gradients, then its weights; the critics' likewise, where there are any.
    """
    critics = None if state.critics is None else state.critics.params
    names = []
    for tree in (state.trainable, critics):
        paths = [optimizer_lib.path_string(path) for path, _ in jax.tree.leaves_with_path(tree)]
        names += [f"gradient of {path}" for path in paths] + paths
    return [name for name, bad in zip(names, flags, strict=True) if bad]
