"""The draw of the next token from its logits."""

import jax
import jax.numpy as jnp


def check_options(temperature: float, top_k: int, top_p: float) -> None:
    """Raises ValueError for values that mean nothing; see `sample_token`."""
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}: give 0 (the most likely token) or more.")
    _check_filters(top_k, top_p)


def _check_filters(top_k: int, top_p: float) -> None:
    if top_k < 0:
        raise ValueError(f"top_k is {top_k}: give the number of tokens to draw from, or 0 for all.")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}: give a probability in (0, 1]; 1 is off.")


def sample_token(
    logits: jax.Array,
    keys: jax.Array,
    *,
    temperature: float | jax.Array = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Draws one token a row, which depends on the row's own logits and key alone.

    Temperature comes first, then top-k, then top-p, as in transformers. All tokens that tie with
    the last kept one are kept.

    Args:
      logits: float32 [rows, vocab].
      keys: PRNG keys [rows].
      temperature: logits are divided by it; 0 takes the most likely token. May be traced.
      top_k: draws are from the k most likely tokens; 0: from all. Static.
      top_p: draws are from the most likely tokens that together have at least this probability;
        1: from all. Static.

    Returns:
      Tokens int32 [rows], and float32 [rows], the log-probability of each under the distribution
      that it was drawn from (the model's own at temperature 0).

    Raises:
      ValueError: while tracing, for a top_k or top_p that means nothing.
    """
    _check_filters(top_k, top_p)
    temperature = jnp.asarray(temperature, jnp.float32)
    logits = logits / jnp.where(temperature > 0, temperature, 1.0)
    greedy = jnp.argmax(logits, axis=-1)
    kept = logits
    if 0 < top_k < logits.shape[-1]:
        least = jax.lax.top_k(kept, top_k)[0][:, -1:]
        kept = jnp.where(kept < least, -jnp.inf, kept)
    if top_p < 1:
        ascending = jnp.sort(kept, axis=-1)
        below = jnp.cumsum(jax.nn.softmax(ascending), axis=-1) <= 1 - top_p
        below = below.at[:, -1].set(False)  # the most likely token is always kept
        least = jnp.min(jnp.where(below, jnp.inf, ascending), axis=-1, keepdims=True)
        kept = jnp.where(kept < least, -jnp.inf, kept)
    # at temperature 0 the log-probabilities are those of the model's own logits, without filters
    kept = jnp.where(temperature > 0, kept, logits)
    drawn = jax.vmap(jax.random.categorical)(keys, kept)
    token = jnp.where(temperature > 0, drawn, greedy).astype(jnp.int32)
    logprob = jnp.take_along_axis(jax.nn.log_softmax(kept), token[:, None], axis=-1)[:, 0]
    return token, logprob
