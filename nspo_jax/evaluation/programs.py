"""The four compiled programs of a language model on a mesh that a harness asks, in every process.

Process 0 decides what is computed; the others run the same programs on the same arrays, since each
process holds a part of the model. With one process nothing travels.
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from nspo_jax import distributed, models, sharding
from nspo_jax.data import chat
from nspo_jax.models import architecture, generation, heads, logprobs, transformer
from nspo_jax.models import cache as cache_lib

_NAMES = ("score_rows", "score_shared", "begin", "advance")
_END = "end"


def load_model(
    directory: str | pathlib.Path, mesh: jax.sharding.Mesh, dtype: str
) -> tuple[architecture.ModelConfig, transformer.Params]:
    """Loads a language model onto a mesh, weights and activations in one dtype. Collective.

    Raises:
      FileNotFoundError, ValueError: those of `models.load_model`.
    """
    model_config, params = models.load_model(
        directory, dtype=np.dtype(dtype), shardings=functools.partial(sharding.shardings, mesh)
    )
    return dataclasses.replace(model_config, compute_dtype=dtype), params


def load_format(directory: str | pathlib.Path) -> chat.ChatFormat:
    """Opens a directory's tokenizer, template and stop ids, without its weights.

    Raises:
      FileNotFoundError: if the directory or its tokenizer is missing.
      ValueError: if a file is damaged, or the model is a classifier.
    """
    model_config = models.load_config(directory)
    if model_config.head != "logits":
        raise ValueError(
            f"{directory} is a classifier: it gives a score and no probabilities of tokens. Give "
            "a language model's directory."
        )
    chat_format = chat.load_format(directory)
    return dataclasses.replace(chat_format, chat=bool(chat_format.tokenizer.chat_template))


class Programs:
    """A language model's programs; `ask` runs one of them in every process. Collective.

    Attributes:
      model_config: the model's.
      mesh: the device mesh, which shares the rows of every batch.
    """

    def __init__(
        self,
        model_config: architecture.ModelConfig,
        params: transformer.Params,
        mesh: jax.sharding.Mesh,
    ):
        self.model_config, self.mesh = model_config, mesh
        self._params = params
        self._decoding: generation.Decoding | None = None

    @property
    def shards(self) -> int:
        """The number that divides the rows of every batch."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def ask(self, name: str, *arrays: np.ndarray, **options: Any) -> Any:
        """Runs a method of this class in every process; host arrays in and out.

        Args:
          name: score_rows, score_shared, begin or advance.
          *arrays: the method's arrays, on the host; their rows are a multiple of `shards`.
          **options: the method's numbers.
        """
        if distributed.several():
            forms = [(array.shape, str(array.dtype)) for array in arrays]
            distributed.broadcast_text(json.dumps([name, forms, options]))
            for array in arrays:
                multihost_utils.broadcast_one_to_all(_bytes(array))
        return self._run(name, arrays, options)

    def follow(self) -> None:
        """Runs the programs that process 0 asks for, until `end`; every other process calls it."""
        while True:
            name, forms, options = json.loads(distributed.broadcast_text(""))
            if name == _END:
                return
            arrays = []
            for shape, dtype in forms:
                empty = np.zeros(shape, dtype)
                raw = np.asarray(multihost_utils.broadcast_one_to_all(_bytes(empty)))
                arrays.append(raw.astype(np.uint8).view(dtype).reshape(shape))
            self._run(name, arrays, options)

    def end(self) -> None:
        """Ends `follow` in the other processes."""
        if distributed.several():
            distributed.broadcast_text(json.dumps([_END, [], {}]))

    def _run(self, name: str, arrays: Any, options: dict[str, Any]) -> Any:
        if name not in _NAMES:
            raise ValueError(f"There is no program {name!r}; expected one of {', '.join(_NAMES)}.")
        with jax.set_mesh(self.mesh):
            placed = sharding.shard_batch(self.mesh, tuple(arrays))
            return distributed.fetch(getattr(self, name)(*placed, **options))

    def score_rows(self, tokens: jax.Array, mask: jax.Array, targets: jax.Array) -> Any:
        """Scores the ends of rows.

        Args:
          tokens: int32 [rows, time], left-padded, without each row's last token.
          mask: bool [rows, time].
          targets: int32 [rows, count], the tokens behind the last `count` tokens.

        Returns:
          log p of each target, float32 [rows, count] in nats, and the most likely token in its
          place, int32 [rows, count].
        """
        return _score_rows(self.model_config, self._params, tokens, mask, targets)

    def score_shared(
        self, tokens: jax.Array, mask: jax.Array, endings: jax.Array, endings_mask: jax.Array
    ) -> Any:
        """Scores several endings of each row; the row is computed once.

        Args:
          tokens: int32 [rows, time], left-padded.
          mask: bool [rows, time].
          endings: int32 [rows, endings, count], right-padded.
          endings_mask: bool, same shape.

        Returns:
          The results of `score_rows`, both [rows, endings, count].
        """
        return _score_shared(self.model_config, self._params, tokens, mask, endings, endings_mask)

    def begin(self, tokens: jax.Array, mask: jax.Array, *, slots: int) -> Any:
        """Reads prompts, int32 and bool [rows, time], left-padded; the cache has so many slots."""
        self._decoding = None  # the former batch's memory is free before the next is taken
        self._decoding = _begin(self.model_config, self._params, tokens, mask, slots=slots)
        return ()

    def advance(
        self, done: jax.Array, seeds: jax.Array, *, slots: int, stop_ids: list[int], **options: Any
    ) -> Any:
        """Draws up to `steps` further tokens of the prompts that `begin` read.

        Args:
          done: bool [rows], True for rows that have their answer.
          seeds: int32 [rows], the seed of each row's draws.
          slots: the cache's slots from now on, no fewer than before.
          stop_ids: end a row.
          **options: steps, temperature, top_k and top_p, as in `generation.generate`.

        Returns:
          Tokens, int32, and a mask of the real ones, bool, both [rows, steps].
        """
        state, self._decoding = self._decoding, None
        if state is None:
            raise ValueError("advance was asked for before begin: there is no prompt.")
        if slots > state.cache.valid.shape[1]:
            state = state._replace(cache=_grow(state.cache, slots=slots))
        self._decoding, drawn = _advance(
            self.model_config, self._params, state, done, seeds, stop_ids=tuple(stop_ids), **options
        )
        return drawn


def _candidates(
    model_config: architecture.ModelConfig,
    params: transformer.Params,
    hidden: jax.Array,
    ids: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns log p of candidates [rows, time, k] behind states [rows, time, d], and the best."""
    name = model_config.head_part
    head = params | sharding.gather({name: params[name]}, model_config.compute_dtype)

    def score(hidden: jax.Array, ids: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = heads.logits(model_config, head, hidden)
        each = jax.vmap(logprobs.token_logprobs, in_axes=(None, -1), out_axes=-1)
        return each(logits, ids), jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return heads.map_positions(model_config, score, hidden, ids)


@functools.partial(jax.jit, static_argnums=0)
def _score_rows(model_config, params, tokens, mask, targets):
    hidden = transformer.forward(model_config, params, tokens, mask).hidden[:, -targets.shape[1] :]
    found, best = _candidates(model_config, params, hidden, targets[..., None])
    return found[..., 0], best


@functools.partial(jax.jit, static_argnums=0)
def _score_shared(model_config, params, tokens, mask, endings, endings_mask):
    rows, count, length = endings.shape
    # the cache has the slots that the longer of the two needs: see transformer.forward
    more = max(length - tokens.shape[1], 0)
    read = generation.prefill(model_config, params, tokens, mask, samples=1, max_new_tokens=more)
    first, best = _candidates(model_config, params, read.hidden[:, None], endings[:, None, :, 0])
    first, best = first[:, 0, :, None], jnp.repeat(best[:, :, None], count, axis=1)
    if length == 1:
        return first, best
    flat, flat_mask = endings.reshape(-1, length), endings_mask.reshape(-1, length)
    past = cache_lib.repeat_cache(read.cache, count)
    hidden = transformer.forward(model_config, params, flat[:, :-1], flat_mask[:, :-1], past).hidden
    rest, rest_best = _candidates(model_config, params, hidden, flat[:, 1:, None])
    return (
        jnp.concatenate([first, rest[..., 0].reshape(rows, count, -1)], axis=-1),
        jnp.concatenate([best, rest_best.reshape(rows, count, -1)], axis=-1),
    )


@functools.partial(jax.jit, static_argnames=("model_config", "slots"))
def _begin(model_config, params, tokens, mask, *, slots):
    params = sharding.gather(params, model_config.compute_dtype)
    new = slots - tokens.shape[1]
    return generation.prefill(model_config, params, tokens, mask, samples=1, max_new_tokens=new)


@functools.partial(jax.jit, static_argnames="slots")
def _grow(cache: cache_lib.Cache, *, slots: int) -> cache_lib.Cache:
    def grow(array, axis):
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, slots - array.shape[axis])
        return sharding.shard_rows(jnp.pad(array, widths), axis - 1)

    return cache._replace(
        keys=grow(cache.keys, 2), values=grow(cache.values, 2), valid=grow(cache.valid, 1)
    )


@functools.partial(
    jax.jit,
    static_argnames=("model_config", "steps", "stop_ids", "temperature", "top_k", "top_p"),
    donate_argnames="state",
)
def _advance(
    model_config, params, state, done, seeds, *, steps, stop_ids, temperature, top_k, top_p
):
    params = sharding.gather(params, model_config.compute_dtype)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), seeds)

    def running(carry):
        count, state, _ = carry
        return (count < steps) & ~jnp.all(state.done)

    def step(carry):
        count, state, output = carry
        after, (token, _, live) = generation.decode(
            model_config, params, state, keys,
            stop_ids=stop_ids, temperature=temperature, top_k=top_k, top_p=top_p,
        )  # fmt: skip
        tokens, lives = output
        return count + 1, after, (tokens.at[:, count].set(token), lives.at[:, count].set(live))

    empty = (jnp.zeros((len(done), steps), jnp.int32), jnp.zeros((len(done), steps), bool))
    state = state._replace(done=state.done | done)
    _, state, drawn = jax.lax.while_loop(running, step, (jnp.int32(0), state, empty))
    return state, drawn


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
