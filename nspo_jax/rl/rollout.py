"""Sampling completions: one prefill per prompt, then a compiled decode loop with a KV cache."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from nspo_jax import models


class Completions(NamedTuple):
    """Sampled answers; row i * samples + j is sample j of prompt i.

    tokens: int32 [prompts * samples, max_new_tokens], right-padded, with the stop token.
    logprobs: float32, of each sampled token under the distribution it was drawn from.
    mask: bool, the real tokens.
    """

    tokens: jax.Array
    logprobs: jax.Array
    mask: jax.Array


@functools.partial(jax.jit, static_argnames=("config", "samples", "max_new_tokens", "stop_ids"))
def rollout(
    config: models.ModelConfig,
    params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    key: jax.Array,
    *,
    samples: int = 1,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    temperature: float | jax.Array = 1.0,
) -> Completions:
    """Samples `samples` completions for every prompt.

    Args:
      config: the model's configuration.
      params: the policy.
      prompts: int32 [prompts, prompt_length], left-padded: the last column is the last token.
      prompt_mask: bool, same shape.
      key: PRNG key; the same key gives the same completions.
      samples: completions per prompt; the prompt is prefilled once.
      max_new_tokens: completions are cut off here.
      stop_ids: a completion ends with the first of these, which belongs to it.
      temperature: logits are divided by it; 0 takes the most likely token.
    """
    count, length = prompts.shape
    # the barrier keeps XLA from folding the attention to empty slots at compile time, for seconds
    cache = jax.lax.optimization_barrier(models.empty_cache(config, count, length + max_new_tokens))
    prefill = models.forward(config, params, prompts, prompt_mask, cache)
    rows = count * samples
    cache = models.repeat_cache(prefill.cache, samples)
    hidden = jnp.repeat(prefill.hidden[:, -1], samples, axis=0)  # [rows, d]
    temperature = jnp.asarray(temperature, jnp.float32)
    stop = jnp.asarray(stop_ids, jnp.int32)

    def running(carry):
        step, _, _, done, _ = carry
        return (step < max_new_tokens) & ~jnp.all(done)

    def decode(carry):
        step, hidden, cache, done, (tokens, logprobs, mask) = carry
        logits = models.logits(config, params, hidden)  # [rows, vocab]
        logits = logits / jnp.where(temperature > 0, temperature, 1.0)
        sampled = jax.random.categorical(jax.random.fold_in(key, step), logits)
        token = jnp.where(temperature > 0, sampled, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
        logprob = jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], axis=-1)[:, 0]
        live = ~done
        output = (
            tokens.at[:, step].set(jnp.where(live, token, 0)),
            logprobs.at[:, step].set(jnp.where(live, logprob, 0.0)),
            mask.at[:, step].set(live),
        )
        done = done | jnp.any(token[:, None] == stop, axis=-1)
        out = models.forward(config, params, token[:, None], live[:, None], cache)
        return step + 1, out.hidden[:, 0], out.cache, done, output

    empty = (
        jnp.zeros((rows, max_new_tokens), jnp.int32),
        jnp.zeros((rows, max_new_tokens), jnp.float32),
        jnp.zeros((rows, max_new_tokens), bool),
    )
    carry = (jnp.int32(0), hidden, cache, jnp.zeros((rows,), bool), empty)
    return Completions(*jax.lax.while_loop(running, decode, carry)[-1])
