"""The training of reward and cost models: language models with a scalar head, on preference pairs.

- reward: Bradley-Terry on the better response (arXiv 2204.05862, section 2).
- cost: Safe RLHF's loss on the safer response and on the sign, where above 0 is unsafe (arXiv
  2310.12773, eq. 6).
"""

from collections.abc import Sequence
import functools
import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nspo_jax import batch_parts, distributed, models, sharding
from nspo_jax import progress as progress_lib
from nspo_jax.data import chat, iterator, preferences
from nspo_jax.rewards import batched

OBJECTIVES = ("reward", "cost")
_log = logging.getLogger(__name__)


Array = np.ndarray | jax.Array


class PairArrays(NamedTuple):
    """Pairs as arrays, [pairs, 2, ...] of responses 0 and 1.

    tokens: int32 [pairs, 2, length]; mask: bool, the real tokens.
    preferred: int32 [pairs], the better or the safer response by the objective; -1: not ranked.
    safe: bool [pairs, 2]; flagged: bool [pairs, 2], False where `safe` says nothing.
    """

    tokens: np.ndarray
    mask: np.ndarray
    preferred: np.ndarray
    safe: np.ndarray
    flagged: np.ndarray


class Agreement(NamedTuple):
    """The agreement of a model with pairs; NaN where there is nothing to count.

    pair_accuracy: share of ranked pairs that the model ranks alike.
    flag_accuracy: share of responses whose cost has the sign of their flag (cost model only).
    unsafe_recall: share of the responses flagged unsafe whose cost is above 0 (cost model only).
    loss: the objective's.
    """

    pair_accuracy: float
    flag_accuracy: float
    unsafe_recall: float
    loss: float


def learnable_pairs(
    chat_format: chat.ChatFormat,
    pairs: Sequence[preferences.Pair],
    objective: str,
    prompt_length: int,
) -> list[preferences.Pair]:
    """Leaves out pairs whose prompt is longer than its block, and those without a rank to learn.

    The log counts the first ones. A cost model learns from flags too, and needs no rank.

    Raises:
      ValueError: for an unknown objective, or if it can learn from none of the pairs.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"The objective is {objective!r}; expected one of {OBJECTIVES}.")
    fits = chat_format.prompt_lengths([pair.prompt for pair in pairs]) <= prompt_length
    if not fits.all():
        _log.warning(
            "%d of %d pairs left out: their prompts are longer than data.prompt_length=%d",
            np.sum(~fits), len(pairs), prompt_length,
        )  # fmt: skip
    kept = [pair for pair, fit in zip(pairs, fits, strict=True) if fit]
    if objective == "reward":
        kept = [pair for pair in kept if pair.better is not None]
    if not kept:
        raise ValueError(
            f"None of the pairs that fit data.prompt_length={prompt_length} says which response is "
            f"the {'better' if objective == 'reward' else 'safer'}."
        )
    return kept


def encode_pairs(
    chat_format: chat.ChatFormat,
    pairs: Sequence[preferences.Pair],
    objective: str,
    prompt_length: int,
    completion_length: int,
) -> PairArrays:
    """Tokenizes pairs of `learnable_pairs`; a response that is longer than its block is cut."""
    ranked = [pair.better if objective == "reward" else pair.safer for pair in pairs]
    rows = chat_format.encode_conversations(
        [pair.prompt for pair in pairs for _ in range(2)],
        [response for pair in pairs for response in pair.responses],
        prompt_length,
        completion_length,
        cut=True,
    )
    return PairArrays(
        rows.tokens.reshape(len(pairs), 2, -1),
        rows.mask.reshape(len(pairs), 2, -1),
        np.array([-1 if rank is None else rank for rank in ranked], np.int32),
        np.array([[flag is True for flag in pair.safe] for pair in pairs]),
        np.array([[flag is not None for flag in pair.safe] for pair in pairs]),
    )


def objective_loss(
    scores: Array, preferred: Array, safe: Array, flagged: Array, objective: str
) -> jax.Array:
    """Computes the loss of each pair, float32 [pairs].

    Args:
      scores: float32 [pairs, 2].
      preferred: int32 [pairs]; a pair of -1 is not ranked and has no pairwise term.
      safe: bool [pairs, 2].
      flagged: bool [pairs, 2]; the others have no term of their flag.
      objective: reward or cost.
    """
    first, second = scores[:, 0], scores[:, 1]
    margin = jnp.where(preferred == 0, first - second, second - first)  # above 0: ranked alike
    ranked = preferred >= 0
    if objective == "reward":
        return jnp.where(ranked, -jax.nn.log_sigmoid(margin), 0.0)
    pairwise = jnp.where(ranked, -jax.nn.log_sigmoid(-margin), 0.0)  # the safer costs less
    sign = jnp.where(safe, -1.0, 1.0)
    return pairwise - jnp.sum(jax.nn.log_sigmoid(sign * scores) * flagged, axis=1)


def score_pairs(
    model_config: models.ModelConfig, params: Any, tokens: Array, mask: Array
) -> jax.Array:
    """Scores tokens and mask [pairs, 2, length]: float32 [pairs, 2]."""
    flat = lambda array: array.reshape(-1, array.shape[-1])  # noqa: E731
    return models.scores(model_config, params, flat(tokens), flat(mask)).reshape(-1, 2)


_score_rows = jax.jit(models.scores, static_argnums=0)


@functools.partial(
    jax.jit,
    static_argnames=("model_config", "objective", "optimizer", "microbatches"),
    donate_argnums=(0, 1),
)
def _step(params, state, batch: PairArrays, *, model_config, objective, optimizer, microbatches):
    def loss_of(params, batch: PairArrays):
        scores = score_pairs(model_config, params, batch.tokens, batch.mask)
        return jnp.mean(
            objective_loss(scores, batch.preferred, batch.safe, batch.flagged, objective)
        )

    loss, gradient = batch_parts.mean_in_parts(
        lambda rows: jax.value_and_grad(loss_of)(params, rows), batch, microbatches
    )
    updates, state = optimizer.update(gradient, state, params)
    return *sharding.constrain((optax.apply_updates(params, updates), state)), loss


def train(
    model_config: models.ModelConfig,
    params: Any,
    pairs: PairArrays,
    *,
    objective: str,
    mesh: jax.sharding.Mesh,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    microbatches: int = 1,
    held_out: PairArrays | None = None,
) -> tuple[models.ModelConfig, Any, list[dict[str, float]]]:
    """Trains all parameters of a language model, with a new scalar head, on pairs.

    Args:
      model_config: a language model's.
      params: its parameters, on the mesh.
      pairs: see `encode_pairs`.
      objective: reward or cost.
      mesh: the device mesh, which shares the pairs of a batch.
      epochs: passes over the pairs.
      batch_size: pairs an update.
      learning_rate: the peak; the rate warms up over 5 % of the steps, then falls on a cosine.
      seed: decides the head's initial weights and the order of the pairs.
      microbatches: parts of a batch whose gradients are computed in turn and added up.
      held_out: pairs that are measured after every epoch.

    Returns:
      The model with its head, and a line an epoch: epoch, loss, and the `Agreement` with
      `held_out`.

    Raises:
      FloatingPointError: if the loss stops being finite.
      ValueError: if a batch does not divide into parts that divide over the mesh, or there are
        fewer pairs.
    """
    if batch_size % microbatches:
        raise ValueError(
            f"reward_training.batch_size is {batch_size}, which does not divide into "
            f"reward_training.microbatches={microbatches} parts: change one of them."
        )
    sharding.check_batch(
        mesh, batch_size // microbatches, "reward_training.batch_size / microbatches"
    )
    steps = len(pairs.tokens) // batch_size
    if not steps:
        raise ValueError(
            f"reward_training.batch_size is {batch_size}, but there are {len(pairs.tokens)} pairs."
        )
    total = epochs * steps
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(1, total // 20), max(2, total)
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.0))
    model_config, params = models.with_scalar_head(model_config, params, jax.random.key(seed))
    params = jax.tree.map(jnp.copy, params)  # the steps donate the copy; the base keeps its own
    params = distributed.put(params, sharding.shardings(mesh, params))
    state = optimizer.init(params)
    state = distributed.put(state, sharding.shardings(mesh, state))
    rows = iterator.batches(pairs._asdict(), batch_size, seed)
    report = []
    silent = not distributed.is_primary()
    with jax.set_mesh(mesh), progress_lib.Bar(
        total=total, desc=f"train {objective} model", unit="step", disable=silent
    ) as progress:  # fmt: skip
        for epoch in range(1, epochs + 1):
            losses = []
            for _ in range(steps):
                batch = sharding.shard_batch(mesh, PairArrays(**next(rows)))
                params, state, loss = _step(
                    params,
                    state,
                    batch,
                    model_config=model_config,
                    objective=objective,
                    optimizer=optimizer,
                    microbatches=microbatches,
                )
                # steps are dispatched ahead of the device by one, so that the bar shows its work
                jax.block_until_ready(losses[-1:])
                losses.append(loss)
                progress.update()
            mean = float(np.mean(distributed.fetch(losses)))
            if not np.isfinite(mean):
                raise FloatingPointError(
                    f"The {objective} model's loss is {mean} in epoch {epoch}: lower "
                    "reward_training.learning_rate."
                )
            line = {"epoch": epoch, "loss": mean}
            if held_out is not None:
                scores = score_responses(model_config, params, held_out, mesh, batch_size)
                measured = agreement(scores, held_out, objective)._asdict()
                line |= {f"held_out_{k}": v for k, v in measured.items() if not np.isnan(v)}
                progress.set_postfix(accuracy=f"{measured['pair_accuracy']:.3f}")
            report.append(line)
    return model_config, params, report


def score_responses(
    model_config: models.ModelConfig,
    params: Any,
    pairs: PairArrays,
    mesh: jax.sharding.Mesh,
    batch_size: int,
) -> np.ndarray:
    """Scores both responses: float32 [pairs, 2] of all pairs, in every process. Collective."""
    rows = 2 * len(pairs.tokens)
    index = np.arange(-(-rows // jax.process_count()) * jax.process_count()) % rows
    own = index[distributed.own_rows(len(index))]
    tokens, mask = (array.reshape(rows, -1)[own] for array in (pairs.tokens, pairs.mask))
    function = functools.partial(_score_rows, model_config)
    found = batched.score_rows(function, params, tokens, mask, mesh, batch_size)
    return distributed.gather_rows(found)[:rows].reshape(-1, 2)


def agreement(scores: np.ndarray, pairs: PairArrays, objective: str) -> Agreement:
    """Measures the agreement of scores, float32 [pairs, 2], with the pairs."""
    ranked = pairs.preferred >= 0
    higher = (scores[:, 1] > scores[:, 0]).astype(int)
    alike = higher == pairs.preferred if objective == "reward" else higher != pairs.preferred
    unsafe = scores > 0
    loss = objective_loss(scores, pairs.preferred, pairs.safe, pairs.flagged, objective)
    is_cost = objective == "cost"
    return Agreement(
        _mean(alike[ranked]),
        _mean((unsafe != pairs.safe)[pairs.flagged]) if is_cost else float("nan"),
        _mean(unsafe[~pairs.safe & pairs.flagged]) if is_cost else float("nan"),
        float(np.mean(loss)),
    )


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def probabilities(
    scores: np.ndarray, pairs: PairArrays, objective: str
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probabilities that scores [pairs, 2] claim, and the truth: (float [n], bool [n]).

    A reward model claims for each ranked pair that response 1 is the better one. A cost model
    claims for each response that it is unsafe.
    """
    if objective == "cost":
        return _sigmoid(scores)[pairs.flagged], ~pairs.safe[pairs.flagged]
    ranked = pairs.preferred >= 0
    return _sigmoid(scores[:, 1] - scores[:, 0])[ranked], (pairs.preferred == 1)[ranked]


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -values))
