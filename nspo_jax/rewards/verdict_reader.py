"""The reader of verdicts: the probability that a judge on the mesh writes each of them."""

from collections.abc import Sequence
import dataclasses
import functools
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import transformers

from nspo_jax import distributed, model_files, models, sharding
from nspo_jax.rewards import batched, verdict_prompt, verdict_tree

# Rows that are not padded to one length are padded to a power of two from this on, or to one and
# a half: few programs are compiled, and at most a third of a row is padding.
_SHORTEST = 128


class Reading(NamedTuple):
    """A judge's verdicts on rows.

    Attributes:
      shares: the probability of each label among all labels, float64 [rows, labels]; NaN where
        there is no verdict.
      mass: the verdicts' share of the whole distribution, float32 [rows].
      given: there is a verdict, bool [rows].
      cut: the answer lost its end, bool [rows].
    """

    shares: np.ndarray
    mass: np.ndarray
    given: np.ndarray
    cut: np.ndarray


class Reader:
    """A judge's model, with its prompt and its verdicts.

    Args:
      model_config: the judge's, of any family, with a language-model head.
      params: the judge's parameters, on the mesh.
      prompt: renders an exchange.
      tree: the verdicts' tokens, made by `prompt.grow`.
      mesh: the device mesh.
      max_length: the most tokens of a row, verdicts included.
      batch_size: rows at a time, of all processes; a multiple of the mesh's data and fsdp axes.
      least_mass: the mass of all verdicts below which there is none.
      fixed: pads every row to max_length, so that one program is compiled; otherwise to the
        longest row of a call, rounded up.

    Raises:
      ValueError: for a batch that does not divide over the mesh, and a least_mass out of [0, 1).
    """

    def __init__(
        self,
        model_config: models.ModelConfig,
        params: Any,
        prompt: verdict_prompt.Prompt,
        tree: verdict_tree.Tree,
        mesh: jax.sharding.Mesh,
        *,
        max_length: int,
        batch_size: int,
        least_mass: float,
        fixed: bool,
    ):
        if not 0 <= least_mass < 1:
            raise ValueError(f"least_mass is {least_mass}; expected a number in [0, 1).")
        self._params, self._prompt, self._tree, self._mesh = params, prompt, tree, mesh
        self._max_length, self._batch_size = max_length, batch_size
        self._least_mass, self._fixed = least_mass, fixed
        self._read = jax.jit(functools.partial(_read, model_config, tree.longest, tree.ends))

    def __call__(self, exchanges: Sequence[tuple[str, str, str]]) -> Reading:
        """Reads the verdicts on (request, answer, context). Collective: as many rows everywhere.

        Raises:
          ValueError: if there are no rows.
        """
        tree, room = self._tree, self._max_length - self._tree.longest
        found = [
            self._prompt.encode_exchange(request, answer, room, context)
            for request, answer, context in exchanges
        ]
        ids = [[*row.ids, *branch.tail] for row in found for branch in tree.branches]
        rows = batched.pad_rows(ids, self._length(ids))
        steps, ends = batched.score_rows(
            self._read, self._params, *rows, self._mesh, self._batch_size
        )
        shape = (len(found), len(tree.branches), -1)
        logprobs = tree.logprobs(steps.reshape(*shape[:2], tree.longest), ends.reshape(shape))
        total = np.logaddexp.reduce(logprobs, axis=1)
        mass = np.exp(total)
        given = np.array([row.fits for row in found]) & (mass >= self._least_mass)
        shares = np.where(given[:, None], np.exp(logprobs - total[:, None]), np.nan)
        cut = np.array([row.cut for row in found])
        return Reading(shares, mass.astype(np.float32), given, cut)

    def _length(self, ids: list[list[int]]) -> int:
        """Returns the length that all processes pad their rows to."""
        if self._fixed:
            return self._max_length
        longest = int(distributed.gather_rows(np.array([max(map(len, ids), default=1)])).max())
        power = max(_SHORTEST, 1 << (longest - 1).bit_length())
        rounded = power * 3 // 4 if longest <= power * 3 // 4 and power > _SHORTEST else power
        return min(rounded, self._max_length)


def check(
    model_config: models.ModelConfig,
    tokenizer: transformers.PreTrainedTokenizerBase,
    prompt: verdict_prompt.Prompt,
    tree: verdict_tree.Tree,
    max_length: int,
    what: str,
) -> None:
    """Checks a judge's prompt and its verdicts' tokens against the model that reads them.

    Raises:
      ValueError: for a model without a language-model head, a max_length that it cannot read or
        that its prompt alone fills, and a tokenizer that is not the model's.
    """
    if model_config.head == "scalar":
        raise ValueError(
            f"{what} has a scalar head: it is a reward or cost model, whose score is "
            "models.scores. Give the directory of a language model."
        )
    if not 1 <= max_length <= model_config.max_length:
        raise ValueError(
            f"{what}'s max_length is {max_length}; expected 1 to {model_config.max_length}, the "
            "longest text that it was made for."
        )
    model_files.check_rows(tokenizer, model_config.vocab_size, f"{what.lower()}'s directory")
    if not prompt.encode_exchange("", "", max_length - tree.longest).fits:
        raise ValueError(
            f"{what}'s max_length is {max_length}, and its prompt alone, without a "
            "conversation, is longer: raise it."
        )


def load(
    directory: str | os.PathLike, mesh: jax.sharding.Mesh, dtype: Any
) -> tuple[models.ModelConfig, Any]:
    """Loads a judge's model, sharded over the mesh, to be held and computed in `dtype`.

    Raises:
      FileNotFoundError, ValueError: those of `models.load_model`.
    """
    model_config, params = models.load_model(
        directory, dtype, shardings=functools.partial(sharding.shardings, mesh)
    )
    return dataclasses.replace(model_config, compute_dtype=jnp.dtype(dtype).name), params


def _read(
    model_config: models.ModelConfig,
    longest: int,
    ends: tuple[int, ...],
    params: Any,
    tokens: jax.Array,
    mask: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Returns log-probabilities of the `longest` last tokens, and of tokens behind each row.

    Args:
      tokens: int32 [batch, time], with its mask, the last token last.

    Returns:
      float32 [batch, longest] and [batch, len(ends)].
    """
    hidden = models.forward(model_config, params, tokens, mask).hidden[:, -1 - longest :]
    logprobs = jax.nn.log_softmax(models.logits(model_config, params, hidden), axis=-1)
    chosen = tokens[:, tokens.shape[1] - longest :, None]
    steps = jnp.take_along_axis(logprobs[:, :-1], chosen, axis=-1)[..., 0]
    return steps, logprobs[:, -1][:, jnp.asarray(ends)]
