"""Calibration: general text through the base model -> second moments -> eigenvectors -> projectors.

For an input site with inputs `x [tokens, in]` the second moment is `C = sum(x^T x) / tokens`, taken
over the real tokens alone (NSPO, arXiv 2512.11391). Products are float32 at highest precision
(bfloat16 statistics put rounding noise above the paper's threshold), sums across batches float64,
and the eigendecomposition is LAPACK's in float64 on the host.

The model is run a layer at a time on all batches: what is in memory is one layer's moments and the
activations between two layers, whatever the depth.
"""

from collections.abc import Iterable, Iterator, Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from nspo_jax import distributed, models
from nspo_jax.nullspace import projection, rank_rules
from nspo_jax.nullspace import projectors as projectors_lib

Batch = dict[str, np.ndarray]  # "tokens" int32 [batch, time], "mask" bool [batch, time]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Input second moments: site name -> float64 [*stack, in, in], and the number of tokens."""

    sites: dict[str, np.ndarray]
    tokens: int


def _moment(mask: jax.Array, x: jax.Array) -> jax.Array:
    """The sum of x^T x over real tokens, float32 [in, in], of x [batch * time, in]."""
    x = jnp.where(mask.reshape(-1, 1), x.astype(jnp.float32), 0.0)
    return jnp.einsum("ti,tj->ij", x, x, precision=jax.lax.Precision.HIGHEST)


_embed = jax.jit(models.embed, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _run_layer(config: models.ModelConfig, layer, window, x: jax.Array, mask: jax.Array):
    observe = lambda site, inputs: _moment(mask, inputs)  # noqa: E731  a name would hide the mask
    return models.run_layer(config, layer, window, x, mask, observe)


@functools.partial(jax.jit, static_argnums=0)
def _head_moment(config: models.ModelConfig, params, x: jax.Array, mask: jax.Array):
    return _moment(mask, models.final_norm(config, params, x))


def layer_moments(
    config: models.ModelConfig, params, batches: Iterable[Batch]
) -> Iterator[dict[str, np.ndarray]]:
    """Runs the base model a layer at a time; yields each layer's moments, then the head's.

    Args:
      config: the model's configuration.
      params: the base model's parameters.
      batches: general conversations, prompt and answer, chat template applied.

    Yields:
      Site name -> float64 [in, in], the mean of x^T x over the real tokens: of the sites of layer
      0, 1, ..., and, unless the head is no site, of "head/in".

    Raises:
      ValueError: if there are no tokens, or a moment is not finite.
    """
    batches = [{name: batch[name] for name in ("tokens", "mask")} for batch in batches]
    count = sum(int(np.sum(batch["mask"])) for batch in batches)
    if not count:
        raise ValueError("There are no calibration tokens: every batch is empty or all padding.")
    hidden = [_embed(config, {"embed": params["embed"]}, batch["tokens"]) for batch in batches]
    for layer in range(config.num_layers):
        weights = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["layers"])
        window = config.windows[layer] if config.windows else 0
        total: dict[str, np.ndarray] = {}
        for index, batch in enumerate(batches):
            hidden[index], observed = _run_layer(
                config, weights, window, hidden[index], batch["mask"]
            )
            for site, moment in observed.items():
                total[site] = total.get(site, 0.0) + np.asarray(
                    distributed.fetch(moment), np.float64
                )
        yield _mean(total, count, f" in layer {layer}")
    if "head/in" in models.input_sites(config):
        norm = {"norm": params["norm"]}
        moments = [
            np.asarray(distributed.fetch(_head_moment(config, norm, x, batch["mask"])), np.float64)
            for x, batch in zip(hidden, batches, strict=True)
        ]
        yield _mean({"head/in": sum(moments)}, count, "")


def _mean(total: dict[str, np.ndarray], count: int, where: str) -> dict[str, np.ndarray]:
    bad = [site for site, moment in total.items() if not np.isfinite(moment).all()]
    if bad:
        raise ValueError(
            f"The input moments of {', '.join(bad)}{where} are not finite: check the model."
        )
    return {site: moment / count for site, moment in total.items()}


def second_moments(config: models.ModelConfig, params, batches: Iterable[Batch]) -> Moments:
    """The second moments of every input site at once, for a model that is small enough.

    Arguments and errors are those of `layer_moments`.
    """
    batches = list(batches)
    parts: dict[str, list[np.ndarray]] = {}
    for moments in layer_moments(config, params, batches):
        for site, moment in moments.items():
            parts.setdefault(site, []).append(moment)
    sites = {s: np.stack(m) if s.startswith("layers/") else m[0] for s, m in parts.items()}
    return Moments(sites, sum(int(np.sum(batch["mask"])) for batch in batches))


def site_from_moment(kernels: Sequence[str], moment: np.ndarray, rank_rule: str) -> projection.Site:
    """A site from a second moment that you collected yourself, for a model that is not ours.

    Args:
      kernels: parameter paths, joined by "/", of the kernels that read this input.
      moment: [*stack, in, in], `x^T x` over the base model's inputs `x [tokens, in]`, summed in
        float64; as a mean over tokens where the rule is absolute(VALUE).
      rank_rule: for example "energy(0.05)"; see `rank_rules.RankRule`.

    Raises:
      ValueError: for an unknown rule, or a moment that is not square or not finite.
    """
    moment = np.asarray(moment, np.float64)
    if moment.ndim < 2 or moment.shape[-1] != moment.shape[-2] or not np.isfinite(moment).all():
        raise ValueError(
            f"The moment for {', '.join(kernels)} has shape {moment.shape}; expected finite "
            "[*stack, in, in], the sum of x^T x over inputs x [tokens, in]."
        )
    rule, size = rank_rules.RankRule.parse(rank_rule), moment.shape[-1]
    splits = [_split(part, rule) for part in moment.reshape(-1, size, size)]
    return _join(kernels, splits, moment.shape[:-2])[0]


class _Split(NamedTuple):
    """One moment, split by a rule.

    basis: float32 [in, k], eigenvectors of the thinner side; side: which; rank: protected
    directions; spectrum: float32 [in], descending.
    """

    basis: np.ndarray
    side: str
    rank: int
    spectrum: np.ndarray


def _split(moment: np.ndarray, rule: rank_rules.RankRule) -> _Split:
    """The thinner side of a moment, float64 [in, in]."""
    values, vectors = np.linalg.eigh(moment)
    values, vectors = values[::-1], vectors[:, ::-1]  # descending
    rank = rule.rank(values)
    protected = rank <= len(values) - rank
    basis = vectors[:, :rank] if protected else vectors[:, rank:]
    side = projection.PROTECTED if protected else projection.NULL
    return _Split(basis.astype(np.float32), side, rank, values.astype(np.float32))


def _join(
    kernels: Sequence[str], splits: Sequence[_Split], stack: tuple[int, ...]
) -> tuple[projection.Site, np.ndarray]:
    """The site of a stack of splits, all from the thinner side of the thickest of them."""
    size = len(splits[0].spectrum)
    protected = np.array([split.rank for split in splits])
    side = projection.PROTECTED if protected.max() <= (size - protected).max() else projection.NULL
    ranks = protected if side == projection.PROTECTED else size - protected
    columns = [split.basis if split.side == side else _other_side(split) for split in splits]
    site = projection.Site(
        kernels=tuple(kernels),
        basis=projection.stack_bases(columns).reshape(*stack, size, -1),
        side=side,
        ranks=ranks.reshape(stack).astype(np.int32),
    )
    return site, np.stack([split.spectrum for split in splits]).reshape(*stack, size)


def _other_side(split: _Split) -> np.ndarray:
    site = projection.Site(("",), split.basis, split.side, np.int32(split.basis.shape[1]))
    return np.asarray(site.complement().basis)


def calibrate(
    config: models.ModelConfig,
    params,
    batches: Iterable[Batch],
    *,
    rank_rule: str = "energy(0.05)",
    data: str = "",
) -> projectors_lib.Projectors:
    """Calibrates projectors for every linear site of a base model, a layer at a time.

    Every site is stored from its thinner side. One without a free direction is recorded as such,
    and refused by the transforms when it is used.

    Args:
      config: the model's configuration: which kernels read which site.
      params: the base model's parameters.
      batches: general conversations; see `layer_moments`.
      rank_rule: for example "energy(0.05)"; see `rank_rules.RankRules`.
      data: a name or digest of the calibration text, recorded in the provenance.

    Raises:
      ValueError: for an unknown rule, or one for a site that is none; and as `layer_moments`.
    """
    rules, inputs = rank_rules.RankRules.parse(rank_rule), models.input_sites(config)
    rules.check_sites(list(inputs))
    batches = list(batches)
    splits: dict[str, list[_Split]] = {name: [] for name in inputs}
    steps = layer_moments(config, params, batches)
    total = config.num_layers + ("head/in" in inputs)
    for moments in tqdm.tqdm(
        steps, desc="calibrate", unit="layer", total=total, leave=False,
        disable=not distributed.is_primary(),
    ):  # fmt: skip
        for name, moment in moments.items():
            splits[name].append(_split(moment, rules.of(name)))
    sites, spectra = {}, {}
    for name, kernels in inputs.items():
        stack = (config.num_layers,) if name.startswith("layers/") else ()
        sites[name], spectra[name] = _join(kernels, splits[name], stack)
    provenance = {
        "model": models.fingerprint(params),
        "data": data,
        "rule": str(rules),
        "tokens": sum(int(np.sum(batch["mask"])) for batch in batches),
    }
    return projectors_lib.Projectors(sites, spectra, provenance)
