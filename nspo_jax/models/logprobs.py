"""Log-probabilities of tokens, of whole sequences, and of texts."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nspo_jax import sharding
from nspo_jax.models import architecture, generation, heads, transformer


def token_logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Returns log p of tokens int32 [batch, time] under logits [batch, time, vocab], in float32."""
    normaliser = jax.nn.logsumexp(logits, axis=-1)  # [batch, time]
    chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
    return chosen - normaliser


@functools.partial(jax.jit, static_argnums=0)
def sequence_logprobs(
    model_config: architecture.ModelConfig,
    params: transformer.Params,
    tokens: jax.Array,
    mask: jax.Array,
) -> jax.Array:
    """Returns log p of each token given those before it.

    Args:
      model_config: a language model's config.
      params: its parameters.
      tokens: int32 [batch, time].
      mask: bool [batch, time], False at padding, which is before or after a sequence.

    Returns:
      float32 [batch, time - 1] in nats. Entry t belongs to token t + 1, and is 0 if that is padding
      or the first of its sequence.
    """
    hidden = transformer.forward(model_config, params, tokens, mask).hidden[:, :-1]
    found = _following_logprobs(model_config, params, hidden, tokens[:, 1:])
    return jnp.where(mask[:, 1:] & mask[:, :-1], found, 0.0)


def predicting_states(
    model_config: architecture.ModelConfig, params, batch: Any, samples: int = 1
) -> jax.Array:
    """Returns final hidden states before each completion token: [batch, completion_length, d].

    They are at the positions that predict the token, and know no more than its draw did. With
    `samples` above 1 so many neighbouring rows have one prompt, which is read once for all of them:
    the same states to rounding, from P + samples T tokens a group instead of samples (P + T).
    """
    if samples > 1:
        return _states_after_shared_prompts(model_config, params, batch, samples)
    tokens = jnp.concatenate([batch.prompts, batch.completions], axis=1)
    mask = jnp.concatenate([batch.prompt_mask, batch.completion_mask], axis=1)
    hidden = transformer.forward(model_config, params, tokens, mask).hidden
    start = batch.prompts.shape[1] - 1  # the last prompt position predicts the first answer token
    return hidden[:, start : start + batch.completions.shape[1]]


def _states_after_shared_prompts(model_config, params, batch, samples):
    """Reads prompts into a cache, repeats it, and runs the completions behind it."""
    count = batch.prompts.shape[0] // samples
    prompts, mask = (
        sharding.shard_rows(array.reshape(count, samples, -1)[:, 0])
        for array in (batch.prompts, batch.prompt_mask)
    )
    # the cache has the slots that the longer of the two needs: see transformer.forward
    more = max(batch.completions.shape[1] - batch.prompts.shape[1], 0)
    read = generation.prefill(
        model_config, params, prompts, mask, samples=samples, max_new_tokens=more
    )
    first = sharding.shard_rows(read.hidden[:, None])
    if batch.completions.shape[1] == 1:
        return first
    rest = transformer.forward(
        model_config, params, batch.completions[:, :-1], batch.completion_mask[:, :-1], read.cache
    ).hidden
    return jnp.concatenate([first, rest], axis=1)


def completion_logprobs(
    model_config: architecture.ModelConfig,
    params,
    batch: Any,
    temperature: float = 1.0,
    samples: int = 1,
) -> jax.Array:
    """Returns log p of the completion tokens: float32 [batch, completion_length].

    Logits are computed only at the positions that predict a completion token, and a chunk at a time
    if the vocabulary is large.

    Args:
      model_config: the model.
      params: its parameters.
      batch: anything with the first four fields of `rl.train_step.RolloutBatch`.
      temperature: divides the logits.
      samples: see `predicting_states`.
    """
    predicting = predicting_states(model_config, params, batch, samples)
    return _following_logprobs(model_config, params, predicting, batch.completions, temperature)


def _following_logprobs(
    model_config: architecture.ModelConfig,
    params: transformer.Params,
    hidden: jax.Array,
    tokens: jax.Array,
    temperature: float = 1.0,
) -> jax.Array:
    """Returns log p, float32, of tokens [batch, time] from states [batch, time, d] before them."""
    # the head alone is gathered, once and not for every chunk
    name = model_config.head_part
    head = params | sharding.gather({name: params[name]}, model_config.compute_dtype)

    def logprobs(hidden: jax.Array, tokens: jax.Array) -> jax.Array:
        return token_logprobs(heads.logits(model_config, head, hidden) / temperature, tokens)

    return heads.map_positions(model_config, logprobs, hidden, tokens)


def text_logprobs(
    model_config: architecture.ModelConfig,
    params: transformer.Params,
    tokenizer: Any,
    texts: Sequence[str],
) -> list[np.ndarray]:
    """Returns log p of each token of plain texts given those before it; see `sequence_logprobs`.

    Args:
      model_config: a language model's config, as `load_model` gives it.
      params: its parameters.
      tokenizer: the model's tokenizer, as `model_files.load_tokenizer` gives it, which may begin a
        text with a token of its own.
      texts: at least one text; they go through the model at once.

    Returns:
      For each text float32 [its tokens - 1], in nats; the first token has none before it.

    Raises:
      ValueError: naming a text of less than two tokens, or one longer than the model's context.
    """
    ids = [tokenizer(text)["input_ids"] for text in texts]
    for text, row in zip(texts, ids, strict=True):
        if not 2 <= len(row) <= model_config.max_length:
            raise ValueError(
                f"The text {text[:60]!r} has {len(row)} tokens; expected 2 or more, and at most "
                f"the {model_config.max_length} of the model's context."
            )
    longest = max(map(len, ids), default=2)
    tokens = np.array([np.pad(row, (0, longest - len(row))) for row in ids], np.int32)
    mask = np.array([np.arange(longest) < len(row) for row in ids])
    found = np.asarray(sequence_logprobs(model_config, params, tokens, mask))
    return [logprobs[: len(row) - 1] for logprobs, row in zip(found, ids, strict=True)]
