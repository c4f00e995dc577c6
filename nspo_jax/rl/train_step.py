"""The jitted policy update: loss, gradient, and an optax chain that ends in the projection."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from nspo_jax import models, sharding
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.rl import losses


class TrainState(NamedTuple):
    """What an update changes, and a checkpoint holds.

    step: int32 scalar, updates done; trainable: the trained leaves of the parameters (None where
    frozen); opt_state: optax state, with the projector bases in it.
    """

    step: jax.Array
    trainable: Any
    opt_state: optax.OptState


class Rollouts(NamedTuple):
    """A batch for `train_step`; arrays are [batch, ...].

    prompts: int32 [batch, prompt_length], left-padded; prompt_mask: bool.
    completions: int32 [batch, completion_length], right-padded; completion_mask: bool.
    old_logprobs: float32 [batch, completion_length], of the sampler.
    advantages: float32 [batch], or [batch, completion_length] for each token's own.
    """

    prompts: jax.Array
    prompt_mask: jax.Array
    completions: jax.Array
    completion_mask: jax.Array
    old_logprobs: jax.Array
    advantages: jax.Array


def completion_logprobs(
    config: models.ModelConfig, params, batch: Rollouts, temperature: float = 1.0
) -> jax.Array:
    """log p of the completion tokens: float32 [batch, completion_length].

    Logits are computed at the positions that predict a completion token, nowhere else, and a chunk
    at a time where the vocabulary is large.
    """
    tokens = jnp.concatenate([batch.prompts, batch.completions], axis=1)
    mask = jnp.concatenate([batch.prompt_mask, batch.completion_mask], axis=1)
    hidden = models.forward(config, params, tokens, mask).hidden
    start = batch.prompts.shape[1] - 1  # the last prompt position predicts the first answer token
    predicting = hidden[:, start : start + batch.completions.shape[1]]
    # of the head alone, once and not for every chunk
    name = "embed" if config.tie_embeddings else "head"
    head = params | sharding.gather({name: params[name]}, config.compute_dtype)

    def logprobs(hidden: jax.Array, tokens: jax.Array) -> jax.Array:
        return losses.token_logprobs(models.logits(config, head, hidden) / temperature, tokens)

    return models.map_positions(config, logprobs, predicting, batch.completions)


def make_train_step(
    config: models.ModelConfig,
    optimizer: optax.GradientTransformation,
    *,
    loss: str = "grpo",
    aggregation: str = "sequence_mean",
    clip: float = 0.2,
    dual_clip: float = 0.0,
    kl_coefficient: float = 0.0,
    kl_estimator: str = "k3",
    importance_cap: float = 0.0,
    temperature: float = 1.0,
    microbatches: int = 1,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the jitted `step(state, frozen, reference, batch) -> (state, metrics)`.

    `state` is donated. `frozen` holds the leaves that `state.trainable` lacks. `reference` is the
    base model's parameters when kl_coefficient > 0, else None. `metrics` are float32 scalars, and
    `nonfinite`, bool [trained tensors], in the order of the tree's leaves.

    With `microbatches`, which divide the batch's rows, gradients are computed for a part of the
    rows at a time and added up in float32: the same update to rounding, in less memory.

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
        dual_clip=dual_clip,
        kl_coefficient=kl_coefficient,
        kl_estimator=kl_estimator,
    )

    def loss_of(trainable, frozen, reference, batch: Rollouts, tokens: jax.Array):
        params = optimizer_lib.combine(trainable, frozen)
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
        return result.loss, (result, gap)

    def gradient_of(trainable, frozen, reference, batch: Rollouts):
        """(gradient, (PolicyLoss, gap)), means over the microbatches."""
        differentiate = jax.grad(loss_of, has_aux=True)
        # of the whole batch: parts that divided by their own would weigh tokens differently
        tokens = jnp.maximum(jnp.sum(batch.completion_mask), 1) / microbatches
        if microbatches == 1:
            return differentiate(trainable, frozen, reference, batch, tokens)

        def part(total, rows):
            found = differentiate(trainable, frozen, reference, rows, tokens)
            return jax.tree.map(lambda t, x: t + x / microbatches, total, found), None

        shapes = jax.eval_shape(differentiate, trainable, frozen, reference, batch, tokens)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(part, zeros, jax.tree.map(split, batch))[0]

    def split(array: jax.Array) -> jax.Array:
        # every microbatch has rows of each device's block, so that none travels
        return jnp.moveaxis(array.reshape(-1, microbatches, *array.shape[1:]), 1, 0)

    def step(state: TrainState, frozen, reference, batch: Rollouts):
        gradient, (result, gap) = gradient_of(state.trainable, frozen, reference, batch)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {
            "loss": result.loss,
            "clip_share": result.clip_share,
            "kl_reference": result.kl,
            "logprob_gap": gap,  # sampler against trainer: rounding, and older updates
            "gradient_norm": optax.tree.norm(gradient),
            "update_norm": optax.tree.norm(updates),
            "nonfinite": jnp.stack(
                [~jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves((gradient, trainable))]
            ),
        }
        # what goes out lies as what came in: the next step is the same program
        return sharding.constrain(TrainState(state.step + 1, trainable, opt_state)), metrics

    return jax.jit(step, donate_argnums=0)


def nonfinite_tensors(flags, trainable) -> list[str]:
    """Names the tensors behind the `nonfinite` flags of a step: gradients first, then weights."""
    paths = [optimizer_lib.path_string(path) for path, _ in jax.tree.leaves_with_path(trainable)]
    names = [f"gradient of {path}" for path in paths] + paths
    return [name for name, bad in zip(names, flags, strict=True) if bad]
