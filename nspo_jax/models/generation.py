"""The sampling of completions: one prefill per prompt, then decode steps with a KV cache.

`generate` runs the steps in a compiled loop, for RL and evaluation. `stream` runs them one at a
time from the host, for a terminal. A row's completion depends on its own prompt and key, not on its
neighbours or its place in the batch.
"""

from collections.abc import Iterator
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nspo_jax import distributed, sharding
from nspo_jax.models import architecture, heads, sampling, transformer
from nspo_jax.models import cache as cache_lib


class Completions(NamedTuple):
    """Sampled answers; row i * samples + j is sample j of prompt i.

    tokens: int32 [prompts * samples, max_new_tokens], right-padded, with the stop token.
    logprobs: float32, each sampled token's under the distribution it was drawn from.
    mask: bool, the real tokens.
    """

    tokens: jax.Array
    logprobs: jax.Array
    mask: jax.Array


class Decoding(NamedTuple):
    """The state of rows between two tokens.

    hidden: [rows, d], final hidden state of each row's last token; cache: that of all tokens so
    far; done: bool [rows], True after a stop token; step: int32 scalar, tokens drawn.
    """

    hidden: jax.Array
    cache: cache_lib.Cache
    done: jax.Array
    step: jax.Array


def prefill(
    model_config: architecture.ModelConfig,
    params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    *,
    samples: int,
    max_new_tokens: int,
) -> Decoding:
    """Runs the prompts, and repeats each `samples` times afterwards."""
    count, length = prompts.shape
    # the barrier saves XLA the seconds of folding the attention to empty slots while it compiles
    cache = jax.lax.optimization_barrier(
        cache_lib.empty_cache(model_config, count, length + max_new_tokens)
    )
    out = transformer.forward(model_config, params, prompts, prompt_mask, cache)
    assert out.cache is not None  # `forward` got a cache
    return Decoding(
        hidden=jnp.repeat(out.hidden[:, -1], samples, axis=0),
        cache=cache_lib.repeat_cache(out.cache, samples),
        done=jnp.zeros((count * samples,), bool),
        step=jnp.int32(0),
    )


def decode(
    model_config: architecture.ModelConfig,
    params,
    state: Decoding,
    keys: jax.Array,
    *,
    stop_ids: tuple[int, ...],
    temperature: float | jax.Array,
    top_k: int,
    top_p: float,
) -> tuple[Decoding, tuple[jax.Array, jax.Array, jax.Array]]:
    """Draws one token a row; returns the state after it and (token, logprob, live), each [rows]."""
    logits = heads.logits(model_config, params, state.hidden)  # [rows, vocab]
    token, logprob = sampling.sample_token(
        logits,
        jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, state.step),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    live = ~state.done
    stops = token[:, None] == jnp.asarray(stop_ids, jnp.int32)[None, :]  # [rows, stop ids]
    done = state.done | jnp.any(stops, axis=-1)
    out = transformer.forward(model_config, params, token[:, None], live[:, None], state.cache)
    assert out.cache is not None  # `forward` got a cache
    after = Decoding(out.hidden[:, 0], out.cache, done, state.step + 1)
    return after, (jnp.where(live, token, 0), jnp.where(live, logprob, 0.0), live)


@functools.partial(
    jax.jit,
    static_argnames=(
        "model_config", "samples", "max_new_tokens", "stop_ids", "top_k", "top_p", "gather",
    ),
)  # fmt: skip
def generate(
    model_config: architecture.ModelConfig,
    params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    key: jax.Array,
    *,
    samples: int = 1,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    temperature: float | jax.Array = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    gather: bool = True,
) -> Completions:
    """Samples `samples` completions for every prompt.

    Args:
      model_config: the model's configuration.
      params: the policy.
      prompts: int32 [prompts, prompt_length], left-padded, so the last column is the last token.
      prompt_mask: bool, same shape.
      key: PRNG key, or one a row [prompts * samples]; the same key gives the same completions.
      samples: completions per prompt; the prompt is prefilled once.
      max_new_tokens: the length at which completions are cut off.
      stop_ids: a completion ends with the first of these, which belongs to it.
      temperature: logits are divided by it; 0 takes the most likely token.
      top_k: see `models.sampling`, also for the next. A policy that is trained on its samples does
        without both, since its gradient is that of the whole distribution.
      top_p: 1 is off.
      gather: True brings sharded parameters together once, not at every token; each device then
        holds all of them in the compute dtype.
    """
    if gather:
        params = sharding.gather(params, model_config.compute_dtype)
    rows = len(prompts) * samples
    keys = jax.random.split(key, rows) if key.ndim == 0 else key
    state = prefill(
        model_config, params, prompts, prompt_mask, samples=samples, max_new_tokens=max_new_tokens
    )

    def running(carry):
        state, _ = carry
        return (state.step < max_new_tokens) & ~jnp.all(state.done)

    def step(carry):
        state, output = carry
        after, drawn = decode(
            model_config, params, state, keys,
            stop_ids=stop_ids, temperature=temperature, top_k=top_k, top_p=top_p,
        )  # fmt: skip
        columns = zip(output, drawn, strict=True)
        return after, Completions(*(all_.at[:, state.step].set(one) for all_, one in columns))

    empty = Completions(
        jnp.zeros((rows, max_new_tokens), jnp.int32),
        jnp.zeros((rows, max_new_tokens), jnp.float32),
        jnp.zeros((rows, max_new_tokens), bool),
    )
    return jax.lax.while_loop(running, step, (state, empty))[1]


def generate_in_batches(
    model_config: architecture.ModelConfig,
    params,
    mesh: jax.sharding.Mesh,
    prompts: np.ndarray,
    prompt_mask: np.ndarray,
    key: jax.Array,
    *,
    batches: int,
    samples: int = 1,
    **options,
) -> Completions:
    """Runs `generate` on a mesh for equal parts of the prompts in turn. Collective.

    Every row has a key of its own, so the draws do not depend on the number of parts.

    Args:
      model_config: see `generate`.
      params: the policy.
      mesh: the device mesh, which shares the rows of each part.
      prompts: int32 [prompts, prompt_length], on the host.
      prompt_mask: bool, same shape.
      key: PRNG key of all rows.
      batches: the number of parts, which divides the prompts.
      samples: completions per prompt.
      **options: the other options of `generate`.

    Returns:
      Host arrays of all rows.
    """
    keys = jnp.split(jax.random.split(key, len(prompts) * samples), batches)
    parts = [np.split(array, batches) for array in (prompts, prompt_mask)]
    found = [
        distributed.fetch(
            generate(
                model_config, params, *sharding.shard_batch(mesh, part), part_keys,
                samples=samples, **options,
            )
        )
        for *part, part_keys in zip(*parts, keys, strict=True)
    ]  # fmt: skip
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *found)


_prefill = jax.jit(prefill, static_argnames=("model_config", "samples", "max_new_tokens"))
_decode = jax.jit(
    decode, static_argnames=("model_config", "stop_ids", "top_k", "top_p"), donate_argnames="state"
)


def stream(
    model_config: architecture.ModelConfig,
    params,
    prompt: np.ndarray,
    prompt_mask: np.ndarray,
    key: jax.Array,
    *,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[int]:
    """Yields the tokens of one completion as they are drawn: those of `generate` with this row key.

    Args:
      model_config: the model's configuration.
      params: the model.
      prompt: int32 [prompt_length], left-padded.
      prompt_mask: bool, same shape.
      key: the row's PRNG key.
      max_new_tokens: the length at which the completion is cut off.
      stop_ids: it ends with the first of these.
      temperature: see `generate`, also for the rest.
      top_k: 0 is off.
      top_p: 1 is off.
    """
    state = _prefill(
        model_config,
        params,
        prompt[None],
        prompt_mask[None],
        samples=1,
        max_new_tokens=max_new_tokens,
    )
    for _ in range(max_new_tokens):
        state, (token, _, _) = _decode(
            model_config, params, state, key[None],
            stop_ids=stop_ids, temperature=temperature, top_k=top_k, top_p=top_p,
        )  # fmt: skip
        yield int(token[0])
        if state.done[0]:
            return
