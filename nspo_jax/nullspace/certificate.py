"""The certificate of a run: measurements, on its policy, of how much it preserved.

For every linear site, with inputs `x` that the *base* model's layer sees on calibration text,
kernel `W` and weight change `dW`:

- `output_change` is |x dW| / |x W| (Frobenius norms over tokens), the site's relative change of
  output;
- `output_bound` is the largest that it can be, from the spectrum alone. With the second moment
  `C = sum(x^T x) / tokens`, |x dW|^2 = tokens * tr(dW^T C dW). C is diagonal in its eigenvectors,
  so the protected part of dW costs at most lambda_1 each, the free part at most lambda_{rank+1},
  and nothing mixes: |x dW|^2 <= tokens * (lambda_1 |U^T dW|^2 + lambda_{rank+1} |N^T dW|^2);
- `bound_kind` is the origin of that lambda_{rank+1}, on which the bound's tightness depends. It is
  always a bound from above, to float32's rounding (`spectrum.BOUNDS`). The vectors of a spectrum
  that is known in part are no eigenvectors, and the two parts may mix: the sum is then of norms,
  not of squares;
- `protected_share` is |U^T dW| / |dW|, the part of the weight change inside the protected subspace.
  Float32 leaves about 1e-7 to 1e-6 of a projected run, and a random change sqrt(rank / in).

The whole network has the drift of its output distribution on calibration and on held-out text.
"""

from collections.abc import Iterable
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nspo_jax import distributed, models, trees
from nspo_jax.nullspace import activations, eigen, projection
from nspo_jax.nullspace import projectors as projectors_lib
from nspo_jax.nullspace.drift import drift


def certify(
    model_config: models.ModelConfig,
    base: Any,
    policy: Any,
    projectors: projectors_lib.Projectors,
    calibration: Iterable[activations.Batch],
    held_out: Iterable[activations.Batch],
    mesh: jax.sharding.Mesh | None = None,
    *,
    change: Any = None,
) -> dict[str, Any]:
    """Measures how much the policy kept of the base model, a layer at a time.

    Args:
      model_config: the model's configuration.
      base: the base model's parameters, on which the projectors were calibrated.
      policy: the trained parameters.
      projectors: every site to report on, whether or not the run projected it.
      calibration: batches of the text that the projectors were calibrated on.
      held_out: batches of general text that they never saw.
      mesh: the device mesh, which shares the calibration text's rows; None: one device.
      change: the trained change, float32, laid out as the parameters, None at leaves that stayed;
        None takes the difference of policy and base, which contains the rounding of the policy's
        weights.

    Returns:
      A JSON-able dict: `sites` (a row per kernel and layer), `protected_share` of the whole run,
      the largest `output_change` and `output_bound`, `bound_kind` (the kinds of the rows' bounds,
      joined by "+"; None without a bound), `measured` ("change" or "difference"), `unprotected`
      (changed parameters without a projector, by relative norm), `calibration` and `held_out` (see
      `drift.drift`), `provenance` (that of the projectors, and the `policy`'s fingerprint). A bound
      holds on the text of its spectrum, and is None if `calibration` measures another one.

    Raises:
      ValueError: if the projectors belong to another base model.

    Examples:
      >>> import jax, numpy as np, optax
      >>> import nspo_jax
      >>> from nspo_jax import models
      >>> config = models.ModelConfig(
      ...     vocab_size=9, hidden_size=4, intermediate_size=6, num_layers=1, num_heads=2,
      ...     num_kv_heads=1, head_dim=2, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=True,
      ...     max_length=8,
      ... )
      >>> base = models.init_params(config, jax.random.key(0))
      >>> tokens = np.arange(8, dtype=np.int32).reshape(2, 4)
      >>> text = [{"tokens": tokens, "mask": tokens >= 0, "answer_mask": tokens >= 0}]
      >>> projectors = nspo_jax.calibrate(config, base, text, rank_rule="fixed(2)")
      >>> other = models.init_params(config, jax.random.key(1))
      >>> change = jax.tree.map(lambda a, b: 0.1 * (a - b), other, base)
      >>> projection = nspo_jax.null_space_projection(projectors)
      >>> kept, _ = projection.update(change, projection.init(base))
      >>> for each in (kept, change):  # the first was projected, the second was not
      ...     policy = optax.apply_updates(base, each)
      ...     report = nspo_jax.certify(config, base, policy, projectors, text, text)
      ...     print(report["protected_share"] < 1e-5)
      True
      False
    """
    projectors.check_model(model_config, models.fingerprint(base))
    calibration = list(calibration)
    masked = ({name: batch[name] for name in ("tokens", "mask")} for batch in calibration)
    run = activations.Activations(models.ParamsSource(model_config, base), masked, mesh)
    before, after = (projection.leaves_by_path(tree) for tree in (base, policy))
    given = None if change is None else projection.leaves_by_path(change)

    def change_of(path, at):
        if given is None:
            return after[path][at] - before[path][at]
        return given[path][at] if path in given else jnp.zeros_like(before[path][at])

    tokens = int(sum(np.sum(batch["mask"]) for batch in calibration))
    rows, changed = [], dict.fromkeys(before, 0.0)  # path -> |dW|^2
    for layer in (*range(model_config.num_layers), None):
        at = Ellipsis if layer is None else layer
        weights = {
            path: (before[path][at], change_of(path, at))
            for path in before
            if trees.is_stacked(path) == (layer is not None)
        }
        for path, (_, moved) in weights.items():
            changed[path] += _energy(moved)
        sites = {
            name: projection.Site(
                site.kernels, site.basis[at], site.side, np.asarray(site.ranks)[at]
            )
            for name, site in projectors.sites.items()
            if trees.is_stacked(name) == (layer is not None)
        }
        measured = _measure(model_config, run, sites, weights, layer)
        for name, site in sites.items():
            if site.side == projection.ROWS:
                measured |= _measure_rows(name, site, weights, calibration)
        for name, site in sites.items():
            spectrum = projectors.spectra[name].layers()[layer or 0]
            for path in site.kernels:
                row = _row(site, spectrum, weights[path], measured[name], path, tokens)
                rows.append({"kernel": path, "site": name, "layer": layer, **row})
    order = {path: place for place, path in enumerate(_kernels(projectors))}
    rows.sort(key=lambda row: (order[row["kernel"]], row["layer"] or 0))
    inside = sum(row.pop("inside") for row in rows)
    bounds, kinds = ([row[name] for row in rows] for name in ("output_bound", "bound_kind"))
    return {
        "sites": rows,
        "protected_share": _ratio(inside, sum(changed[path] for path in order)),
        "output_change": max(row["output_change"] for row in rows),
        "output_bound": None if None in bounds else max(bounds),
        "bound_kind": None if None in kinds else "+".join(sorted(set(kinds))),
        "measured": "difference" if change is None else "change",
        "unprotected": {
            path: _ratio(moved, _energy(before[path]))
            for path, moved in changed.items()
            if path not in order and moved
        },
        "calibration": drift(model_config, base, policy, calibration),
        "held_out": drift(model_config, base, policy, held_out),
        "provenance": {**projectors.provenance, "policy": models.fingerprint(policy)},
    }


def _kernels(projectors: projectors_lib.Projectors) -> list[str]:
    return [path for site in projectors.sites.values() for path in site.kernels]


def _observe(site: str, x: jax.Array, batch: dict[str, jax.Array], extra: Any):
    """Sums energies over a site's real tokens.

    `extra` is (site -> path -> (W, dW), site -> U), for the sites to look at.

    Returns:
      path -> float32 [2]: |x dW|^2 and |x W|^2; "inputs" -> float32 [2]: |x U|^2 and |x|^2.
    """
    kernels, bases = extra
    if site not in bases:
        return {}
    x = jnp.where(batch["mask"].reshape(-1, 1), x, 0.0)

    def energy(matrix):
        out = jnp.einsum("ti,io->to", x, matrix, precision=eigen.HIGHEST)
        return jnp.sum(out * out)

    outputs = {
        path: jnp.stack([energy(change), energy(kernel)])
        for path, (kernel, change) in kernels[site].items()
    }
    return {**outputs, "inputs": jnp.stack([energy(bases[site]), jnp.sum(x * x)])}


def _fold(total, observed):
    observed = jax.tree.map(lambda sums: np.asarray(sums, np.float64), observed)
    return observed if total is None else jax.tree.map(np.add, total, observed)


def _measure(config, run, sites, weights, layer) -> dict[str, Any]:
    """Runs a layer or the head: site -> the sums of `_observe` over all batches, in float64."""
    dense = {name: site for name, site in sites.items() if site.side != projection.ROWS}
    extra = (
        {name: {path: weights[path] for path in site.kernels} for name, site in dense.items()},
        {name: np.asarray(site.protected_basis()) for name, site in dense.items()},
    )
    if layer is not None:
        return run.run_layer(_observe, _fold, extra)
    return run.run_head(_observe, _fold, extra) if dense else {}


def _measure_rows(name, site, weights, batches: list[activations.Batch]) -> dict[str, Any]:
    """Measures the same of an embedding's rows, whose inputs are one-hot."""
    tokens = np.concatenate([batch["tokens"][batch["mask"]] for batch in batches])
    counts = np.bincount(tokens, minlength=site.size).astype(np.float64)
    protected = np.asarray(site.basis)[:, 0] == 0
    outputs = {}
    for path in site.kernels:
        kernel, change = (np.float64(distributed.fetch(part)) for part in weights[path])
        outputs[path] = np.array([counts @ (change**2).sum(1), counts @ (kernel**2).sum(1)])
    inputs = np.array([counts @ protected, counts.sum()])
    spectrum = np.sort(counts)[::-1] / counts.sum()
    return {name: {**outputs, "inputs": inputs, "spectrum": spectrum}}


@functools.partial(jax.jit, static_argnums=2)
def _inside(change: jax.Array, basis: np.ndarray, side: str) -> jax.Array:
    """Returns a change's protected part, as a matrix or in coordinates of U, with the same norm."""
    if side == projection.PROTECTED:
        return projection.coordinates(change, basis)
    return change - projection.project(change, basis, side)


def _row(site, spectrum, weights, measured, path, tokens) -> dict[str, Any]:
    """Makes the row of one kernel in one layer; "inside" is |U^T dW|^2."""
    kernel, change = weights
    inside = _energy(_inside(change, np.asarray(site.basis), site.side))
    rank, moved = int(site.protected_ranks), _energy(change)
    outputs, inputs = measured[path], measured["inputs"]
    bound, kind, same = None, None, spectrum.is_of(rank, *(inputs / tokens))
    if "spectrum" in measured:  # one-hot inputs have the same energy on every text
        same &= np.allclose(measured["spectrum"], spectrum.values, atol=1e-6)
    if same:
        most = tokens * spectrum.largest_output(rank, inside, max(moved - inside, 0.0))
        bound, kind = _ratio(most, outputs[1]), spectrum.largest_free(rank)[1]
    return {
        "relative_change": _ratio(moved, _energy(kernel)),
        "protected_share": _ratio(inside, moved),
        "output_change": _ratio(*outputs),
        "output_bound": bound,
        "bound_kind": kind,
        "inside": inside,
    }


def format_certificate(report: dict[str, Any]) -> str:
    """Formats the certificate as a table for people."""
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
        lines.append("no bound: the spectra are of other inputs than the ones measured here")
    elif "bound_kind" in report:
        lines.append(f"bounds are upper bounds, from {report['bound_kind'].replace('+', ' or ')}")
    else:
        lines.append("bounds of an earlier version: they may be estimates from below")
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
    lines.append(f"of {projectors_lib.format_provenance(report['provenance'])}")
    return "\n".join(lines)


def _energy(array) -> float:
    return float(np.sum(np.square(np.asarray(distributed.fetch(array), np.float64))))


def _ratio(part: float, whole: float) -> float:
    """Returns the ratio of two norms given their squares; 0 if nothing changed."""
    return float(np.sqrt(part / whole)) if whole > 0 else 0.0
