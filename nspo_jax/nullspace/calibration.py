"""Calibration: general text through the base model -> second moments -> eigenvectors -> projectors.

For an input site with inputs `x [tokens, in]` the second moment is `C = sum(x^T x) / tokens`, taken
over the real tokens alone (NSPO, arXiv 2512.11391). Products are float32 at highest precision
(bfloat16 statistics put rounding noise above the paper's threshold), sums across batches float64,
and the eigendecomposition is LAPACK's in float64 on the host.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from nspo_jax import models
from nspo_jax.nullspace import projection, rank_rules
from nspo_jax.nullspace import projectors as projectors_lib

Batch = dict[str, np.ndarray]  # "tokens" int32 [batch, time], "mask" bool [batch, time]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Input second moments: site name -> float64 [*stack, in, in], and the number of tokens."""

    sites: dict[str, np.ndarray]
    tokens: int


@functools.partial(jax.jit, static_argnums=0)
def _batch_moments(config: models.ModelConfig, params, tokens: jax.Array, mask: jax.Array):
    keep = mask.reshape(-1, 1)  # [batch * time, 1]

    def moment(site: str, x: jax.Array) -> jax.Array:
        del site
        x = jnp.where(keep, x.astype(jnp.float32), 0.0)  # [batch * time, in]
        return jnp.einsum("ti,tj->ij", x, x, precision=jax.lax.Precision.HIGHEST)

    return models.forward(config, params, tokens, mask, observe=moment).observations


def second_moments(config: models.ModelConfig, params, batches: Iterable[Batch]) -> Moments:
    """Accumulates the second moment of every input site of the base model.

    Args:
      config: the model's configuration.
      params: the base model's parameters.
      batches: general conversations, prompt and answer, chat template applied.

    Raises:
      ValueError: if there are no tokens, or a moment is not finite.
    """
    total, count = None, 0
    for batch in tqdm.tqdm(batches, desc="calibrate", unit="batch", leave=False):
        observed = _batch_moments(config, params, batch["tokens"], batch["mask"])
        observed = {site: np.asarray(value, np.float64) for site, value in observed.items()}
        total = observed if total is None else {s: total[s] + observed[s] for s in total}
        count += int(np.sum(batch["mask"]))
    if not count:
        raise ValueError("There are no calibration tokens: every batch is empty or all padding.")
    bad = [site for site, value in total.items() if not np.isfinite(value).all()]
    if bad:
        raise ValueError(f"The input moments of {', '.join(bad)} are not finite: check the model.")
    return Moments({site: value / count for site, value in total.items()}, count)


def build_projectors(
    config: models.ModelConfig, moments: Moments, rank_rule: str, provenance: dict
) -> projectors_lib.Projectors:
    """Eigendecomposes every site and keeps what the rule protects, stored where it is thinner.

    Args:
      config: the model's configuration: which kernels read which site.
      moments: from `second_moments`.
      rank_rule: for example "energy(0.05)"; see `rank_rules.RankRules`.
      provenance: `model` and `data`, to be recorded; the rule and the token count are added.

    Raises:
      ValueError: for an unknown rule, or one for a site that is none. A site without a free
        direction is recorded as such, and refused by the transforms when it is used.
    """
    rules, inputs = rank_rules.RankRules.parse(rank_rule), models.input_sites(config)
    rules.check_sites(list(inputs))
    sites, spectra = {}, {}
    for name, kernels in inputs.items():
        sites[name], spectra[name] = _split(kernels, moments.sites[name], rules.of(name))
    provenance = {**provenance, "rule": str(rules), "tokens": moments.tokens}
    return projectors_lib.Projectors(sites, spectra, provenance)


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
    return _split(kernels, moment, rank_rules.RankRule.parse(rank_rule))[0]


def _split(
    kernels: Sequence[str], moment: np.ndarray, rule: rank_rules.RankRule
) -> tuple[projection.Site, np.ndarray]:
    """The site of a moment [*stack, in, in] and its spectrum, float32 [*stack, in], descending."""
    size = moment.shape[-1]
    values, vectors = np.linalg.eigh(moment)
    values, vectors = values[..., ::-1], vectors[..., ::-1]  # descending
    protected = np.array([rule.rank(spectrum) for spectrum in values.reshape(-1, size)])
    thin = protected.max() <= (size - protected).max()
    columns = [
        basis[:, :rank] if thin else basis[:, rank:]
        for basis, rank in zip(vectors.reshape(-1, size, size), protected, strict=True)
    ]
    ranks = protected if thin else size - protected
    stack = moment.shape[:-2]
    site = projection.Site(
        kernels=tuple(kernels),
        basis=projection.stack_bases(columns).reshape(*stack, size, -1),
        side=projection.PROTECTED if thin else projection.NULL,
        ranks=ranks.reshape(stack).astype(np.int32),
    )
    return site, values.astype(np.float32)


def calibrate(
    config: models.ModelConfig,
    params,
    batches: Iterable[Batch],
    *,
    rank_rule: str = "energy(0.05)",
    data: str = "",
) -> projectors_lib.Projectors:
    """Calibrates projectors for every linear site of a base model.

    Args:
      config: the model's configuration.
      params: the base model's parameters.
      batches: general conversations; see `second_moments`.
      rank_rule: see `rank_rules.RankRules`.
      data: a name or digest of the calibration text, recorded in the provenance.
    """
    moments = second_moments(config, params, batches)
    provenance = {"model": models.fingerprint(params), "data": data}
    return build_projectors(config, moments, rank_rule, provenance)
