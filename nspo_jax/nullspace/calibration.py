"""Calibration: general text through the base model -> second moments -> eigenvectors -> projectors.

It runs a layer, gathers its sites' moments, decomposes them, keeps the thinner side, and goes on.
Memory holds one layer's weights and moments, the activations between two layers, and the bases so
far. With a scratch directory an interrupted calibration continues after its last whole layer.
"""

from collections.abc import Iterable, Iterator, Sequence
import logging
import os
import time
from typing import Any

import jax
import numpy as np

from nspo_jax import distributed, models, progress, trees
from nspo_jax.nullspace import activations, projection, rank_rules, special_sites, splits
from nspo_jax.nullspace import moments as moments_lib
from nspo_jax.nullspace import projectors as projectors_lib
from nspo_jax.nullspace import spectrum as spectrum_lib

STATISTICS = ("inputs", "gradients")
# One direction alone decides a rule if it holds more than _MASSIVE of a site's energy and the rule
# protects no more than _NEARLY_NOTHING of the site's directions.
_NEARLY_NOTHING = 0.02
_MASSIVE = 0.5
_log = logging.getLogger(__name__)


def calibrate(
    model_config: models.ModelConfig,
    params: Any,
    batches: Iterable[activations.Batch],
    *,
    rank_rule: str | rank_rules.RankRule | rank_rules.RankRules = "energy(0.05)",
    statistics: str = "inputs",
    first_token: str = "keep",
    data: str = "",
    mesh: jax.sharding.Mesh | None = None,
    scratch: str | os.PathLike | None = None,
) -> projectors_lib.Projectors:
    """Calibrates projectors for every linear site of a base model, a layer at a time.

    Every site is stored from its thinner side. A site without a free direction is recorded as such,
    and the transforms refuse it. An embedding that is not also the head gets a site of its own, the
    rows of the text's tokens.

    Args:
      model_config: the model's configuration, from which the kernels of a site follow.
      params: the base model's parameters, or a `models.LayerSource` such as `models.FileSource`.
      batches: general conversations; see `moments.layer_moments`.
      rank_rule: for example "energy(0.05)" or RankRule("energy", 0.05); see
        `rank_rules.RankRules`.
      statistics: "inputs" takes moments of what the layers see (NSPO). "gradients" takes those of
        the loss's gradients and needs `params` in memory; see `moments.gradient_moments`.
      first_token: keep, drop or separate; see `moments.layer_moments`.
      data: a name or digest of the calibration text, recorded in the provenance.
      mesh: the device mesh, which shares the batches' rows; None: one device.
      scratch: a directory for finished layers, removed at the end. Layers there are taken over if
        they belong to the same model, text and rule.

    Raises:
      ValueError: for an unknown rule or choice, for a rule that names no site, and for the reasons
        of `moments.layer_moments`.

    Examples:
      >>> import jax, numpy as np
      >>> import nspo_jax
      >>> from nspo_jax import models
      >>> config = models.ModelConfig(
      ...     vocab_size=9, hidden_size=4, intermediate_size=6, num_layers=2, num_heads=2,
      ...     num_kv_heads=1, head_dim=2, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=True,
      ...     max_length=8,
      ... )
      >>> params = models.init_params(config, jax.random.key(0))
      >>> tokens = np.arange(8, dtype=np.int32).reshape(2, 4)
      >>> text = [{"tokens": tokens, "mask": tokens >= 0}]
      >>> projectors = nspo_jax.calibrate(config, params, text, rank_rule="fixed(3)")
      >>> site = projectors.sites["layers/mlp/in"]
      >>> site.kernels, site.protected_ranks.tolist()  # ranks of both layers
      (('layers/mlp/gate/kernel', 'layers/mlp/up/kernel'), [3, 3])
    """
    rules, inputs = rank_rules.as_rules(rank_rule), models.input_sites(model_config)
    rules.check_sites(list(inputs))
    check_choices(statistics, first_token)
    source, batches = _source(model_config, params), list(batches)
    provenance = projectors_lib.provenance(
        model_config,
        model=source.fingerprint(),
        data=data,
        rule=str(rules),
        tokens=sum(int(np.sum(batch["mask"])) for batch in batches),
        statistics=statistics,
        first_token=first_token,
    )
    store = splits.Store(scratch, provenance)
    distributed.barrier("the finished layers are known")
    done, started = store.done(), time.monotonic()
    found: dict[str, list[splits.Split]] = {name: [] for name in inputs}
    for layer, moments in _progress(
        model_config, source, batches, statistics, first_token, mesh, done
    ):
        if not moments:
            parts = store.read(layer)
        else:
            parts = {
                name: splits.split(moment, rules.of(name), _expected_rank(found[name]))
                for name, moment in moments.items()
            }
            store.write(layer, parts)
        for name, part in parts.items():
            found[name].append(part)
    sites, spectra = {}, {}
    for name, kernels in inputs.items():
        stack = (model_config.num_layers,) if trees.is_stacked(name) else ()
        sites[name], spectra[name] = splits.join(kernels, found.pop(name), stack)
    if not model_config.tie_embeddings:
        tokens = np.concatenate([batch["tokens"][batch["mask"]] for batch in batches])
        site, spectrum = _embedding(model_config, tokens)
        sites["embed/tokens"], spectra["embed/tokens"] = site, spectrum
    distributed.barrier("the finished layers are read")
    store.remove()
    _log.info(
        "calibrated %d layers on %d tokens in %.0f s",
        model_config.num_layers, provenance["tokens"], time.monotonic() - started,
    )  # fmt: skip
    projectors = projectors_lib.Projectors(sites, spectra, provenance)
    _warn_of_massive_directions(projectors, rules)
    return projectors


def preview(
    model_config: models.ModelConfig,
    params: Any,
    batches: Iterable[activations.Batch],
    candidates: Sequence[str | rank_rules.RankRule | rank_rules.RankRules],
    *,
    statistics: str = "inputs",
    first_token: str = "keep",
    mesh: jax.sharding.Mesh | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Tabulates what each of several rank rules would protect; keeps no basis.

    Arguments and errors are those of `calibrate`; `candidates` are the rules.

    Returns:
      Rule -> the rows of `Projectors.summary`, with the thinner side's "bytes".
    """
    all_rules = [rank_rules.as_rules(rule) for rule in candidates]
    inputs = models.input_sites(model_config)
    for rules in all_rules:
        rules.check_sites(list(inputs))
    check_choices(statistics, first_token)
    source, batches = _source(model_config, params), list(batches)
    rows: dict[str, list[dict[str, Any]]] = {str(rules): [] for rules in all_rules}
    guesses: dict[str, int] = {}
    for layer, moments in _progress(
        model_config, source, batches, statistics, first_token, mesh, frozenset()
    ):
        for name, moment in moments.items():
            ranks, spectrum = splits.ranks(
                moment, [rules.of(name) for rules in all_rules], guesses.get(name, 0)
            )
            guesses[name] = max(ranks)
            for rules, rank in zip(all_rules, ranks, strict=True):
                row = projectors_lib.summary_row(
                    name,
                    layer if trees.is_stacked(name) else None,
                    rank,
                    spectrum,
                    4 * spectrum.size * min(rank, spectrum.size - rank),
                )
                rows[str(rules)].append(row)
    return {rule: sorted(found, key=lambda row: row["site"]) for rule, found in rows.items()}


def site_from_moment(
    kernels: Sequence[str],
    moment: np.ndarray | moments_lib.Moment,
    rank_rule: str | rank_rules.RankRule,
) -> projection.Site:
    """Makes a site of a second moment that you collected yourself, for a model of any library.

    Args:
      kernels: parameter paths, joined by "/", of the kernels that read this input.
      moment: [*stack, in, in], `x^T x` over the base model's inputs `x [tokens, in]`, summed in
        float64; the rule absolute(VALUE) needs the mean over tokens. A `Moment` sums and counts for
        you.
      rank_rule: for example "energy(0.05)" or RankRule("energy", 0.05).

    Raises:
      ValueError: for an unknown rule, or a moment that is not square, not finite, or of no tokens.

    Examples:
      >>> import numpy as np
      >>> import nspo_jax
      >>> inputs = np.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])  # [tokens, in]
      >>> site = nspo_jax.site_from_moment(("w",), inputs.T @ inputs, "fixed(2)")
      >>> int(site.protected_ranks), np.abs(site.dense_projector()).round(3).diagonal().tolist()
      (2, [0.0, 0.0, 1.0])
    """
    rule = rank_rules.as_rule(rank_rule)
    if isinstance(moment, moments_lib.Moment):
        moment.check(", ".join(kernels))
        return splits.join(kernels, [splits.split(moment, rule)], ())[0]
    moment = np.asarray(moment, np.float64)
    if moment.ndim < 2 or moment.shape[-1] != moment.shape[-2] or not np.isfinite(moment).all():
        raise ValueError(
            f"The moment for {', '.join(kernels)} has shape {moment.shape}; expected finite "
            "[*stack, in, in], the sum of x^T x over inputs x [tokens, in]."
        )
    size = moment.shape[-1]
    parts = [splits.split_matrix(part, rule) for part in moment.reshape(-1, size, size)]
    return splits.join(kernels, parts, moment.shape[:-2])[0]


def check_choices(statistics: str, first_token: str) -> None:
    """Raises ValueError for unknown values of calibration.statistics and first_token."""
    for name, value, known in (
        ("statistics", statistics, STATISTICS),
        ("first_token", first_token, moments_lib.FIRST_TOKENS),
    ):
        if value not in known:
            raise ValueError(
                f"calibration.{name} is {value!r}; expected one of {', '.join(known)}."
            )
    if statistics == "gradients" and first_token != "keep":
        raise ValueError(
            f"calibration.first_token is {first_token!r} with calibration.statistics='gradients', "
            "whose loss is on answers alone. Set calibration.first_token=keep."
        )


def _source(model_config: models.ModelConfig, params: Any) -> models.LayerSource:
    return models.ParamsSource(model_config, params) if isinstance(params, dict) else params


def _progress(
    model_config: models.ModelConfig,
    source: models.LayerSource,
    batches: list[activations.Batch],
    statistics: str,
    first_token: str,
    mesh: jax.sharding.Mesh | None,
    done: frozenset[int],
) -> Iterator[tuple[int, dict[str, moments_lib.Moment]]]:
    """Yields (layer, its moments), the head's last, behind a bar that shows the time to come."""
    if statistics == "gradients":
        if not isinstance(source, models.ParamsSource):
            raise ValueError(
                "calibration.statistics is 'gradients', which needs the parameters in memory: give "
                "them instead of a file's."
            )
        steps = moments_lib.gradient_moments(model_config, source.params, batches)
    else:
        steps = moments_lib.layer_moments(
            source, batches, first_token=first_token, done=done, mesh=mesh
        )
    total = model_config.num_layers + ("head/in" in models.input_sites(model_config))
    bar = progress.Bar(
        steps, desc="calibrate", unit="layer", total=total, leave=False,
        disable=not distributed.is_primary(),
    )  # fmt: skip
    for layer, moments in enumerate(bar):
        yield layer, {} if layer in done else moments


def _expected_rank(before: list[splits.Split]) -> int:
    """Guesses the rank of a site, as that of the layer before."""
    return before[-1].rank if before else 0


def _embedding(
    model_config: models.ModelConfig, tokens: np.ndarray
) -> tuple[projection.Site, spectrum_lib.Spectrum]:
    """Makes the embedding's site; the moment of its one-hot inputs is the tokens' frequencies."""
    site = special_sites.embedding_site("embed/embedding", model_config.vocab_size, tokens)
    counts = np.sort(np.bincount(tokens, minlength=model_config.vocab_size))[::-1]
    return site, spectrum_lib.single(counts / len(tokens), 1.0, model_config.vocab_size)


def _warn_of_massive_directions(
    projectors: projectors_lib.Projectors, rules: rank_rules.RankRules
) -> None:
    """Logs the sites where one direction's energy leaves a rule of shares nearly nothing else."""
    found = {}
    for name, site in projectors.sites.items():
        if site.side == projection.ROWS or rules.of(name).known_rank is not None:
            continue
        ranks, layers = site.protected_ranks.reshape(-1), []
        for layer, (rank, spectrum) in enumerate(
            zip(ranks, projectors.spectra[name].layers(), strict=True)
        ):
            first = int(spectrum.first)  # the first tokens' directions are set apart
            rest = spectrum.trace - float(np.sum(spectrum.values[:first], dtype=np.float64))
            massive = first < len(spectrum.values) and spectrum.values[first] > _MASSIVE * rest
            if massive and rank - first <= _NEARLY_NOTHING * site.size:
                layers.append(layer)
        if layers:
            where = f" in layers {', '.join(map(str, layers))}" if site.basis.ndim > 2 else ""
            most = max(int(ranks[layer]) for layer in layers)
            found[name] = f"{name}{where} (rank {most} or less of {site.size})"
    if not found:
        return
    made = projectors.provenance
    if made["first_token"] == "keep" and made["statistics"] == "inputs":
        advice = (
            "In large models it is the first token's, which is then nearly all that is protected: "
            "set calibration.first_token=separate"
        )
    else:
        advice = "Protect more there with SITE=fixed(RANK) in calibration.rank_rule"
    _log.warning(
        "calibration.rank_rule=%s leaves next to nothing protected at %s: one direction holds more "
        "than half of the energy there and decides for all others. %s.",
        rules, "; ".join(found.values()), advice,
    )  # fmt: skip
