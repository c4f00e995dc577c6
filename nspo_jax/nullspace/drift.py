"""The distance of a policy's next-token distributions from the base model's."""

from collections.abc import Iterable
import functools
from typing import Any

import jax
import jax.numpy as jnp

from nspo_jax import distributed, models
from nspo_jax.nullspace import activations

_MEANS = ("kl", "loss", "top1_agreement")


class Reference:
    """The base model on a text: its last hidden states, on the host, and its head.

    Policies can be compared with these again and again, and the base itself need not stay.

    Args:
      model_config: the model's configuration.
      base: the base model's parameters.
      batches: the text.
    """

    def __init__(
        self, model_config: models.ModelConfig, base: Any, batches: Iterable[activations.Batch]
    ):
        self._model_config, self._batches = model_config, list(batches)
        name = model_config.head_part
        # a training step may donate the base's own head, so this is a copy, in its products' dtype
        self._head = {
            name: jax.tree.map(lambda x: jnp.array(x, model_config.compute_dtype), base[name])
        }
        self._hidden = [
            distributed.fetch(_hidden(model_config, base, batch["tokens"], batch["mask"]))
            for batch in self._batches
        ]

    def drift(self, policy: Any) -> dict[str, float]:
        """Compares a policy with the base; see `drift`."""
        total = dict.fromkeys(("positions", *_MEANS, "max_logit_change"), 0.0)
        for hidden, batch in zip(self._hidden, self._batches, strict=True):
            sums = distributed.fetch(_sums(self._model_config, self._head, hidden, policy, batch))
            for name in ("positions", *_MEANS):
                total[name] += float(sums[name])
            largest = max(total["max_logit_change"], float(sums["max_logit_change"]))
            total["max_logit_change"] = largest
        if not total["positions"]:
            raise ValueError("No answer position to compare: the batches hold no answer tokens.")
        return {
            **{name: total[name] / total["positions"] for name in _MEANS},
            "max_logit_change": total["max_logit_change"],
        }


def drift(
    model_config: models.ModelConfig, base: Any, policy: Any, batches: Iterable[activations.Batch]
) -> dict[str, float]:
    """Measures the distance of the policy's next-token distributions from the base model's.

    Returns:
      kl: KL(base || policy) in nats, mean over the positions that predict answer tokens;
      loss: the policy's negative log-likelihood of those answer tokens in nats, mean;
      top1_agreement: share of those positions with the same most likely token;
      max_logit_change: the largest absolute change of any logit at any real position.

    Raises:
      ValueError: if there is no answer position.
    """
    return Reference(model_config, base, batches).drift(policy)


@functools.partial(jax.jit, static_argnums=0)
def _hidden(model_config: models.ModelConfig, params: Any, tokens: jax.Array, mask: jax.Array):
    return models.forward(model_config, params, tokens, mask).hidden


@functools.partial(jax.jit, static_argnums=0)
def _sums(
    model_config: models.ModelConfig,
    head: Any,
    hidden: jax.Array,
    policy: Any,
    batch: dict[str, jax.Array],
):
    def compare(before, after, following):  # map_positions calls it for chunks of positions
        before, after = (
            models.logits(model_config, policy | head, before),
            models.logits(model_config, policy, after),
        )
        log_p, log_q = jax.nn.log_softmax(before), jax.nn.log_softmax(after)
        return (
            jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1),  # [batch, chunk]
            -jnp.take_along_axis(log_q, following[..., None], -1)[..., 0],
            jnp.argmax(before, axis=-1) == jnp.argmax(after, axis=-1),
            jnp.max(jnp.abs(after - before), axis=-1),
        )

    # position t predicts token t + 1, so positions whose next token is in the answer are scored
    scored = jnp.pad(batch["answer_mask"][:, 1:], ((0, 0), (0, 1)))
    following = jnp.pad(batch["tokens"][:, 1:], ((0, 0), (0, 1)))
    after = models.forward(model_config, policy, batch["tokens"], batch["mask"]).hidden
    kl, loss, agree, moved = models.map_positions(model_config, compare, hidden, after, following)
    return {
        "positions": jnp.sum(scored),
        "kl": jnp.sum(jnp.where(scored, kl, 0.0)),
        "loss": jnp.sum(jnp.where(scored, loss, 0.0)),
        "top1_agreement": jnp.sum(scored & agree),
        "max_logit_change": jnp.max(jnp.where(batch["mask"], moved, 0.0)),
    }
