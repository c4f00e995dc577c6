"""The certificate: what a run preserved, measured on the policy that came out of it.

For every linear site, with inputs `x` that the *base* model's layer sees on calibration text,
kernel `W` and weight change `dW`:

- `output_change`: |x dW| / |x W| (Frobenius norms over tokens): what the site's output moved by;
- `output_bound`: the most that it can be, from the spectrum alone. With the second moment
  `C = sum(x^T x) / tokens`, |x dW|^2 = tokens * tr(dW^T C dW). C is diagonal in its eigenvectors,
  so the protected part of dW costs at most lambda_1 each, the free part at most lambda_{rank+1},
  and nothing mixes: |x dW|^2 <= tokens * (lambda_1 |U^T dW|^2 + lambda_{rank+1} |N^T dW|^2);
- `protected_share`: |U^T dW| / |dW|: the part of the weight change inside the protected subspace.
  Float32 leaves about 1e-7 to 1e-6 of a projected run, and a random change sqrt(rank / in).

For the whole network: the drift of the output distribution on calibration and on held-out text.
"""

from collections.abc import Iterable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nspo_jax import distributed, models
from nspo_jax.nullspace import projection
from nspo_jax.nullspace import projectors as projectors_lib

Batch = dict[str, np.ndarray]  # "tokens" int32, "mask" bool, "answer_mask" bool: [batch, time]
HIGHEST = jax.lax.Precision.HIGHEST
# Eigenvalues of float32 inputs are known to this fraction of the largest.
NOISE = float(np.finfo(np.float32).eps)
# Two measurements of the same text differ by rounding alone; other text differs by more.
SAME_TEXT = 1e-3


@functools.partial(jax.jit, static_argnums=0)
def _drift_sums(config: models.ModelConfig, base, policy, batch: dict[str, jax.Array]):
    def hidden(params):
        return models.forward(config, params, batch["tokens"], batch["mask"]).hidden

    def compare(before, after, following):  # at a chunk of positions; see map_positions
        before, after = models.logits(config, base, before), models.logits(config, policy, after)
        log_p, log_q = jax.nn.log_softmax(before), jax.nn.log_softmax(after)
        return (
            jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1),  # [batch, chunk]
            -jnp.take_along_axis(log_q, following[..., None], -1)[..., 0],
            jnp.argmax(before, axis=-1) == jnp.argmax(after, axis=-1),
            jnp.max(jnp.abs(after - before), axis=-1),
        )

    # position t predicts token t + 1: score the positions whose next token is in the answer
    scored = jnp.pad(batch["answer_mask"][:, 1:], ((0, 0), (0, 1)))
    following = jnp.pad(batch["tokens"][:, 1:], ((0, 0), (0, 1)))
    kl, loss, agree, moved = models.map_positions(
        config, compare, hidden(base), hidden(policy), following
    )
    return {
        "positions": jnp.sum(scored),
        "kl": jnp.sum(jnp.where(scored, kl, 0.0)),
        "loss": jnp.sum(jnp.where(scored, loss, 0.0)),
        "top1_agreement": jnp.sum(scored & agree),
        "max_logit_change": jnp.max(jnp.where(batch["mask"], moved, 0.0)),
    }


def drift(config: models.ModelConfig, base, policy, batches: Iterable[Batch]) -> dict[str, float]:
    """How far the policy's next-token distributions are from the base model's.

    Returns:
      kl: KL(base || policy) in nats, mean over the positions that predict answer tokens;
      loss: the policy's negative log-likelihood of those answer tokens in nats, mean;
      top1_agreement: share of those positions with the same most likely token;
      max_logit_change: the largest absolute change of any logit at any real position.

    Raises:
      ValueError: if there is no answer position.
    """
    means = ("kl", "loss", "top1_agreement")
    total = dict.fromkeys(("positions", *means, "max_logit_change"), 0.0)
    for batch in batches:
        sums = distributed.fetch(_drift_sums(config, base, policy, batch))
        for name in ("positions", *means):
            total[name] += float(sums[name])
        total["max_logit_change"] = max(total["max_logit_change"], float(sums["max_logit_change"]))
    if not total["positions"]:
        raise ValueError("No answer position to compare: the batches hold no answer tokens.")
    return {
        **{name: total[name] / total["positions"] for name in means},
        "max_logit_change": total["max_logit_change"],
    }


@functools.partial(jax.jit, static_argnums=0)
def _site_sums(config: models.ModelConfig, base, changes: dict[str, Any], bases, batch):
    """Sums over the real tokens, by layer.

    Returns:
      kernel -> float32 [2, *stack]: |x dW|^2 and |x W|^2;
      site -> float32 [2, *stack]: |x U|^2 and |x|^2.
    """
    inputs = models.forward(
        config, base, batch["tokens"], batch["mask"], observe=lambda site, x: x
    ).observations
    keep = batch["mask"].reshape(-1, 1)
    inputs = {site: jnp.where(keep, x.astype(jnp.float32), 0.0) for site, x in inputs.items()}
    kernels = projection.leaves_by_path(base)

    def energy(x, kernel):
        out = jnp.einsum("...ti,...io->...to", x, kernel, precision=HIGHEST)
        return jnp.sum(out * out, axis=(-2, -1))  # [*stack]

    outputs = {
        path: jnp.stack([energy(inputs[site], change), energy(inputs[site], kernels[path])])
        for site, paths in models.input_sites(config).items()
        for path in paths
        if (change := changes.get(path)) is not None
    }
    sites = {
        site: jnp.stack([energy(inputs[site], basis), jnp.sum(inputs[site] ** 2, axis=(-2, -1))])
        for site, basis in bases.items()
    }
    return outputs, sites


def certify(
    config: models.ModelConfig,
    base,
    policy,
    projectors: projectors_lib.Projectors,
    calibration: Iterable[Batch],
    held_out: Iterable[Batch],
) -> dict[str, Any]:
    """Measures what the policy kept of the base model.

    Args:
      config: the model's configuration.
      base: the base model's parameters, the ones that the projectors were calibrated on.
      policy: the trained parameters.
      projectors: every site to report on, whether or not the run projected it.
      calibration: batches of the text that the projectors were calibrated on.
      held_out: batches of general text that they never saw.

    Returns:
      A JSON-able dict: `sites` (a row per kernel and layer), `protected_share` of the whole run,
      the largest `output_change` and `output_bound`, `unprotected` (changed parameters without a
      projector, by relative norm), `calibration` and `held_out` (see `drift`), `provenance` (that
      of the projectors, and the `policy`'s fingerprint). A bound holds on the text that its
      spectrum is of: it is None where `calibration` measures otherwise.

    Raises:
      ValueError: if the projectors belong to another base model.
    """
    projectors.check_model(models.fingerprint(base))
    calibration = list(calibration)
    before = projection.leaves_by_path(base)
    after = projection.leaves_by_path(policy)
    changes = {path: after[path] - before[path] for path in before}
    bases = {name: jnp.asarray(site.protected_basis()) for name, site in projectors.sites.items()}

    outputs: dict[str, np.ndarray] = {}
    inputs: dict[str, np.ndarray] = {}
    for batch in calibration:
        sums = distributed.fetch(_site_sums(config, base, changes, bases, batch))
        for total, part in zip((outputs, inputs), sums, strict=True):
            for name, pair in part.items():
                total[name] = total.get(name, 0.0) + np.asarray(pair, np.float64)
    tokens = int(sum(np.sum(batch["mask"]) for batch in calibration))

    rows, inside_total, change_total = [], 0.0, 0.0
    projected = {path for site in projectors.sites.values() for path in site.kernels}
    for name, site in projectors.sites.items():
        basis, ranks = bases[name], np.asarray(site.protected_ranks)
        for path in site.kernels:
            inside = projection.coordinates(changes[path], basis)
            inside = np.asarray(distributed.fetch(inside), np.float64)
            change = np.asarray(distributed.fetch(changes[path]), np.float64)
            layers = range(basis.shape[0]) if basis.ndim > 2 else (Ellipsis,)
            for layer in layers:
                inside_energy, change_energy = _energy(inside[layer]), _energy(change[layer])
                moved, original = outputs[path][:, layer]
                spectrum, rank = projectors.spectra[name][layer], int(ranks[layer])
                bound = None
                if _is_spectrum_of(spectrum, rank, inputs[name][:, layer] / tokens):
                    outside = max(change_energy - inside_energy, 0.0)
                    most = tokens * _largest_output(spectrum, rank, inside_energy, outside)
                    bound = _ratio(most, original)
                rows.append({
                    "kernel": path,
                    "site": name,
                    "layer": layer if basis.ndim > 2 else None,
                    "relative_change": _ratio(change_energy, _energy(before[path][layer])),
                    "protected_share": _ratio(inside_energy, change_energy),
                    "output_change": _ratio(moved, original),
                    "output_bound": bound,
                })  # fmt: skip
                inside_total += inside_energy
                change_total += change_energy
    bounds = [row["output_bound"] for row in rows]
    unprotected = {
        path: _ratio(_energy(change), _energy(before[path]))
        for path, change in changes.items()
        if path not in projected and np.any(change)
    }
    return {
        "sites": rows,
        "protected_share": _ratio(inside_total, change_total),
        "output_change": max(row["output_change"] for row in rows),
        "output_bound": None if None in bounds else max(bounds),
        "unprotected": unprotected,
        "calibration": drift(config, base, policy, calibration),
        "held_out": drift(config, base, policy, held_out),
        "provenance": {**projectors.provenance, "policy": models.fingerprint(policy)},
    }


def format_certificate(report: dict[str, Any]) -> str:
    """The certificate as a table for people."""
    lines = [
        f"{'kernel':32} {'layer':>5} {'|dW|/|W|':>9} {'protected':>10} {'output':>10} {'bound':>10}"
    ]
    for row in report["sites"]:
        layer = "" if row["layer"] is None else row["layer"]
        bound = "-" if row["output_bound"] is None else f"{row['output_bound']:.1e}"
        lines.append(
            f"{row['kernel']:32} {layer:>5} {row['relative_change']:9.2e} "
            f"{row['protected_share']:10.1e} {row['output_change']:10.1e} {bound:>10}"
        )
    lines.append("")
    if report["output_bound"] is None:
        lines.append("no bound: the spectra are of other text than the one measured here")
    lines.append(f"weight change inside the protected subspace  {report['protected_share']:.1e}")
    for name, text in (("calibration", "calibration text"), ("held_out", "held-out text")):
        part = report[name]
        lines.append(
            f"{text}: KL {part['kl']:.2e}, same top token {part['top1_agreement']:.2%}, "
            f"largest logit change {part['max_logit_change']:.2e}"
        )
    if report["unprotected"]:
        changed = ", ".join(f"{path} {size:.1e}" for path, size in report["unprotected"].items())
        lines.append(f"changed without a projector: {changed}")
    provenance = ", ".join(f"{name} {value}" for name, value in report["provenance"].items())
    lines.append(f"of {provenance}")
    return "\n".join(lines)


def _is_spectrum_of(spectrum: np.ndarray, rank: int, measured: np.ndarray) -> bool:
    """Whether the inputs' energy a token, protected and in all, is the one the spectrum says."""
    expected = np.array([spectrum[:rank].sum(), spectrum.sum()], np.float64)
    return bool(np.all(np.abs(measured - expected) <= SAME_TEXT * expected[1]))


def _largest_output(spectrum: np.ndarray, rank: int, inside: float, outside: float) -> float:
    """The most |x dW|^2 a token, given |dW|^2 inside and outside the protected subspace."""
    free = max(float(spectrum[rank]), NOISE * float(spectrum[0])) if rank < len(spectrum) else 0.0
    return float(spectrum[0]) * inside + free * outside


def _energy(array) -> float:
    return float(np.sum(np.square(np.asarray(distributed.fetch(array), np.float64))))


def _ratio(part: float, whole: float) -> float:
    """The ratio of two norms given their squares; 0 where nothing changed."""
    return float(np.sqrt(part / whole)) if whole > 0 else 0.0
