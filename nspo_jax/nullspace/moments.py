"""Second moments of the base model's inputs of layers on general text, or of gradients on it.

For a site with inputs `x [tokens, in]` the second moment is `C = sum(x^T x) / tokens`, taken over
the real tokens alone (NSPO, arXiv 2512.11391). Products are float32 at highest precision, since
bfloat16 statistics put rounding noise above the paper's threshold. Sums across batches are
compensated, two float32 numbers an entry, and so exact to about 48 bits, on the device.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nspo_jax import distributed, models, trees
from nspo_jax.nullspace import activations, eigen, projection

FIRST_TOKENS = ("keep", "drop", "separate")


@dataclasses.dataclass(frozen=True)
class Moment:
    """The second moment of one site's inputs in one layer, and the number of tokens in it.

    `layer_moments` gives those of a model of this package. For another, begin with `empty` and
    `add`, in float32 with compensated sums, on the device.

    Attributes:
      high, low: float32 [in, in], whose sum is the sum of x^T x.
      count: the divisor of that sum, the number of tokens.
      first: float32 [distinct, in], the inputs of first tokens, left out of the sum and kept apart,
        a row a distinct token; or None.
      first_counts: int [distinct], the number of times that each occurs.

    Examples:
      >>> import numpy as np
      >>> import nspo_jax
      >>> moment = nspo_jax.Moment.empty(3)
      >>> mask = np.array([[False, True]])  # [batch, time]: a padded row
      >>> moment = moment.add(np.array([[[9.0, 9.0, 9.0], [1.0, 2.0, 0.0]]]), mask)
      >>> moment = moment.add(np.array([[3.0, 0.0, 0.0]]))
      >>> moment.count, moment.float64().tolist()
      (2, [[5.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    """

    high: jax.Array
    low: jax.Array
    count: int
    first: np.ndarray | None = None
    first_counts: np.ndarray | None = None

    @classmethod
    def empty(cls, size: int) -> "Moment":
        """Returns the moment of no tokens yet, for inputs of a size."""
        return cls(jnp.zeros((size, size)), jnp.zeros((size, size)), 0)

    def add(self, inputs: jax.Array | np.ndarray, mask: Any = None) -> "Moment":
        """Returns the moment of these inputs too.

        Args:
          inputs: [..., in], any float dtype, the inputs of a linear layer of the base model.
          mask: bool [...], the real tokens; None: all are.

        Raises:
          ValueError: if the shapes do not fit.
        """
        inputs, size = jnp.asarray(inputs, jnp.float32), self.high.shape[-1]
        mask = np.ones(inputs.shape[:-1], bool) if mask is None else np.asarray(mask, bool)
        if inputs.shape[-1:] != (size,) or mask.shape != inputs.shape[:-1]:
            raise ValueError(
                f"Inputs of shape {inputs.shape} with a mask of shape {mask.shape} for a moment of "
                f"{size} inputs: expected [..., {size}] and [...]."
            )
        high, low = _add_inputs(self.high, self.low, inputs.reshape(-1, size), mask.reshape(-1))
        return dataclasses.replace(self, high=high, low=low, count=self.count + int(mask.sum()))

    def float64(self) -> np.ndarray:
        """Returns the mean of x^T x over the tokens, [in, in], on the host."""
        high, low = distributed.fetch((self.high, self.low))
        return (np.asarray(high, np.float64) + np.asarray(low, np.float64)) / self.count

    def matrix(self) -> np.ndarray | jax.Array:
        """Returns [in, in] to decompose, in float64 if that happens on the host, else float32."""
        if self.high.shape[-1] <= eigen.full_size():
            return self.float64()
        return _mean(self.high, self.low, self.count)

    def check(self, site: str) -> None:
        """Raises ValueError, naming the site, for no tokens or a number that is not finite."""
        if not self.count:
            raise ValueError(f"The input moments of {site} are of no tokens: add some.")
        if not _finite(self.high):
            raise ValueError(
                f"The input moments of {site} are not finite: check the model and its compute "
                "dtype on this text."
            )


def layer_moments(
    source: models.LayerSource,
    batches: Iterable[activations.Batch],
    *,
    first_token: str = "keep",
    done: frozenset[int] = frozenset(),
    mesh: jax.sharding.Mesh | None = None,
) -> Iterator[dict[str, Moment]]:
    """Runs the base model a layer at a time, and yields each layer's moments.

    Args:
      source: the base model.
      batches: general conversations, prompt and answer, chat template applied.
      first_token: the treatment of every row's first real token, which attends to itself alone and
        draws massive activations. "keep" counts it like any other, "drop" leaves it out and
        unprotected, "separate" keeps it out of the sum and gives its inputs in `Moment.first`.
      done: layers whose moments are not wanted; they are run and yield {}.
      mesh: see `Activations`.

    Yields:
      Site name -> moment, for the sites of layer 0, 1, ..., and for "head/in" if the head is a
      site.

    Raises:
      ValueError: if there are no tokens, or a moment is not finite.
    """
    batches = [
        {
            "tokens": batch["tokens"],
            "mask": batch["mask"],
            "first": np.argmax(batch["mask"], axis=1).astype(np.int32),  # [batch]
        }
        for batch in batches
    ]
    count = sum(int(np.sum(batch["mask"])) for batch in batches)
    if first_token == "drop":
        count -= sum(int(np.sum(batch["mask"].any(axis=1))) for batch in batches)
    if not count:
        raise ValueError(
            "There are no calibration tokens: every batch is empty or all padding, or has first "
            f"tokens alone (calibration.first_token is {first_token!r})."
        )
    observe, separate = OBSERVE[first_token], first_token == "separate"
    firsts = _first_tokens(batches) if separate else None
    run = activations.Activations(source, batches, mesh)
    for layer in range(source.model_config.num_layers):
        if layer in done:
            run.run_layer()
            yield {}
        else:
            yield _moments(run.run_layer(observe, _fold), count, firsts, f" in layer {layer}")
    if "head/in" in models.input_sites(source.model_config):
        yield _moments(run.run_head(observe, _fold), count, firsts, "")


def gradient_moments(
    model_config: models.ModelConfig, params: Any, batches: Iterable[activations.Batch]
) -> Iterator[dict[str, Moment]]:
    """Yields the moments of general-task gradients, `C = sum(G G^T) / batches` for each site.

    G [in, out] is the gradient of a batch's loss, its answers' mean negative log-likelihood, with
    respect to a kernel; a site sums over its kernels. An update outside the span of the gradients'
    columns leaves these losses unchanged to first order (orthogonal gradient descent, Farajtabar
    and others, arXiv 1910.07104, on the input side). A batch gives one gradient, so smaller batches
    protect more. All layers' moments are held at once.

    Args:
      model_config: the model.
      params: its parameters.
      batches: batches with "answer_mask" bool [batch, time] beside "tokens" and "mask".

    Yields:
      The same as `layer_moments`, with the number of batches as the count.

    Raises:
      ValueError: if there is no batch with an answer, or a moment is not finite.
    """
    sums: dict[str, tuple[jax.Array, jax.Array]] = {}
    count = 0
    for batch in batches:
        if not np.any(batch["answer_mask"][:, 1:]):
            continue
        arrays = {name: batch[name] for name in ("tokens", "mask", "answer_mask")}
        for site, square in _gradient_squares(model_config, params, arrays).items():
            sums[site] = _add(sums.get(site), square)
        count += 1
    if not count:
        raise ValueError("There are no answers to take gradients on: every batch is without.")
    for layer in range(model_config.num_layers):
        moments = {
            site: Moment(high[layer], low[layer], count)
            for site, (high, low) in sums.items()
            if trees.is_stacked(site)
        }
        for site, moment in moments.items():
            moment.check(f"{site} in layer {layer}")
        yield moments
    if "head/in" in sums:
        moment = Moment(*sums["head/in"], count)
        moment.check("head/in")
        yield {"head/in": moment}


def second_moments(
    model_config: models.ModelConfig, params: Any, batches: Iterable[activations.Batch]
) -> dict[str, np.ndarray]:
    """Computes the second moments of every input site at once, for a model that is small enough.

    Returns:
      Site name -> float64 [*stack, in, in], means over the real tokens.

    Raises:
      ValueError: for the reasons of `layer_moments`.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for moments in layer_moments(models.ParamsSource(model_config, params), batches):
        for site, moment in moments.items():
            parts.setdefault(site, []).append(moment.float64())
    return {s: np.stack(m) if trees.is_stacked(s) else m[0] for s, m in parts.items()}


# ------------------------------------------------------------------------------ on the device


def _square(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Sums x^T x over a mask's tokens: float32 [in, in] of x [batch * time, in]."""
    x = jnp.where(mask.reshape(-1, 1), x, 0.0)
    return jnp.einsum("ti,tj->ij", x, x, precision=eigen.HIGHEST)


def _observe_all(site: str, x: jax.Array, batch: dict[str, jax.Array], extra: Any):
    del site, extra
    return {"square": _square(x, batch["mask"])}


def _observe_rest(site: str, x: jax.Array, batch: dict[str, jax.Array], extra: Any):
    del site, extra
    time = batch["mask"].shape[1]
    later = jnp.arange(time)[None, :] != batch["first"][:, None]  # [batch, time]
    return {"square": _square(x, batch["mask"] & later)}


def _observe_apart(site: str, x: jax.Array, batch: dict[str, jax.Array], extra: Any):
    rows, time = batch["mask"].shape
    first = x[jnp.arange(rows) * time + batch["first"]]  # [batch, in]
    return {**_observe_rest(site, x, batch, extra), "first": first}


OBSERVE: dict[str, activations.ObserveBatch] = dict(
    zip(FIRST_TOKENS, (_observe_all, _observe_rest, _observe_apart), strict=True)
)


def _two_sum(high: jax.Array, low: jax.Array, term: jax.Array):
    """Computes high + low + term by Knuth's two-sum, which keeps the rounding of high in low."""
    total = high + term
    part = total - high
    return total, low + ((high - (total - part)) + (term - part))


_compensated = jax.jit(_two_sum, donate_argnums=(0, 1))


@jax.jit
def _add_inputs(high: jax.Array, low: jax.Array, x: jax.Array, mask: jax.Array):
    return _two_sum(high, low, _square(x, mask))


def _add(sums: tuple[jax.Array, jax.Array] | None, term: jax.Array):
    if sums is None:
        return term, jnp.zeros_like(term)
    return _compensated(*sums, term)


@jax.jit
def _mean(high: jax.Array, low: jax.Array, count: int) -> jax.Array:
    return (high + low) / count


@jax.jit
def _finite(array: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(array))


@functools.partial(jax.jit, static_argnums=0)
def _gradient_squares(model_config: models.ModelConfig, params: Any, batch: dict[str, jax.Array]):
    """Returns site -> float32 [*stack, in, in], the sum over its kernels of G G^T."""
    scored = batch["answer_mask"][:, 1:]
    following = batch["tokens"][:, 1:]

    def loss(params):
        hidden = models.forward(model_config, params, batch["tokens"], batch["mask"]).hidden[:, :-1]

        def negative(hidden, tokens):
            logprobs = jax.nn.log_softmax(models.logits(model_config, params, hidden))
            return -jnp.take_along_axis(logprobs, tokens[..., None], -1)[..., 0]

        losses = models.map_positions(model_config, negative, hidden, following)
        return jnp.sum(jnp.where(scored, losses, 0.0)) / jnp.sum(scored)

    gradients = projection.leaves_by_path(jax.grad(loss)(params))
    return {
        site: sum(
            jnp.einsum(
                "...io,...jo->...ij", gradients[path], gradients[path], precision=eigen.HIGHEST
            )
            for path in paths
        )
        for site, paths in models.input_sites(model_config).items()
    }


# ------------------------------------------------------------------------------ on the host


def _fold(total: dict | None, observed: dict[str, dict[str, jax.Array]]) -> dict:
    """Returns site -> {"square": (high, low), "first": [one a batch]}."""
    total = {} if total is None else total
    for site, parts in observed.items():
        into = total.setdefault(site, {"square": None, "first": []})
        into["square"] = _add(into["square"], parts["square"])
        if "first" in parts:
            into["first"].append(np.asarray(parts["first"]))
    return total


class _Firsts(NamedTuple):
    """The places of distinct first tokens, (batch, row), and the number of rows that begin so."""

    places: list[tuple[int, int]]
    counts: np.ndarray


def _first_tokens(batches: list[activations.Batch]) -> _Firsts:
    places: dict[int, tuple[int, int]] = {}
    counts: dict[int, int] = {}
    for index, batch in enumerate(batches):
        for row in np.flatnonzero(batch["mask"].any(axis=1)):
            token = int(batch["tokens"][row, batch["first"][row]])
            places.setdefault(token, (index, int(row)))
            counts[token] = counts.get(token, 0) + 1
    return _Firsts(list(places.values()), np.array([counts[token] for token in places]))


def _moments(total: dict, count: int, firsts: _Firsts | None, where: str) -> dict[str, Moment]:
    moments = {}
    for site, parts in total.items():
        apart: dict[str, Any] = {}
        if firsts is not None:
            vectors = np.stack([parts["first"][index][row] for index, row in firsts.places])
            apart = {"first": vectors, "first_counts": firsts.counts}
        high, low = parts["square"]
        moments[site] = Moment(high, low, count, **apart)
        moments[site].check(f"{site}{where}")
    return moments
