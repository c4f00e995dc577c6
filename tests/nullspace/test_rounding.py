"""Rounding with error feedback: less of the error inside the protected subspace, never more."""

import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax import models, nullspace
from nspo_jax.nullspace import projection, rounding
from tests.nullspace import test_artifacts as artifacts
from tests.nullspace.test_certificate import certify, params, projectors  # noqa: F401


def problem(seed, size=150, rank=30, out=40):
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    kernel = rng.standard_normal((size, out)).astype(np.float32) * rng.uniform(0.01, 1, (size, 1))
    return kernel.astype(np.float32), basis[:, :rank], basis[:, rank:]


def nearest(kernel):
    return np.asarray(jnp.asarray(kernel).astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize("seed", range(3))
def test_errors_cancel_in_the_protected_directions(seed):
    kernel, protected, null = problem(seed)
    rounded = rounding.round_kernel(kernel, protected, projection.PROTECTED)
    np.testing.assert_array_equal(rounded, nearest(rounded))  # bfloat16 holds it
    error, plain = rounded - kernel, nearest(kernel) - kernel
    assert np.linalg.norm(protected.T @ error) < 0.4 * np.linalg.norm(protected.T @ plain)
    assert np.linalg.norm(error) < 1.5 * np.linalg.norm(plain)
    # column by column, the cost that it lowers is never above the nearest neighbours'
    cost = [
        np.sum((protected.T @ e) ** 2, 0) + rounding.FREE_COST * np.sum((null.T @ e) ** 2, 0)
        for e in (error, plain)
    ]
    assert np.all(cost[0] < cost[1])
    # the other side of the same split is the same problem, ties aside
    other = rounding.round_kernel(kernel, null, projection.NULL)
    assert np.mean(rounded != other) < 0.01


def test_what_bfloat16_holds_stays_as_it_is():
    kernel, protected, _ = problem(0)
    kernel = nearest(kernel)
    np.testing.assert_array_equal(
        rounding.round_kernel(kernel, protected, projection.PROTECTED), kernel
    )
    with pytest.raises(ValueError, match="The projectors belong to another model"):
        rounding.round_kernel(kernel[:-1], protected, projection.PROTECTED)


def test_an_export_with_feedback_leaks_less(params, projectors, tmp_path):  # noqa: F811
    policy = artifacts.move(params, projectors)
    models.save_model(tmp_path / "policy", artifacts.CONFIG, policy)
    edits = {"nearest": None, "feedback": nullspace.feedback_rounding(projectors)}
    shares = {}
    for name, edit in edits.items():
        models.export_model(tmp_path / "policy", tmp_path / name, dtype="bfloat16", edit=edit)
        exported = models.load_model(tmp_path / name)[1]
        rows = certify(params, exported, projectors)["sites"]
        kernels = [row for row in rows if row["site"] != "embed/tokens"]
        shares[name] = np.array([row["protected_share"] for row in kernels])
        norm = exported["norm"]["scale"]
        np.testing.assert_array_equal(norm, nearest(policy["norm"]["scale"]))
    assert len(shares["nearest"]) == 2 * 7 + 1  # every layer of every kernel gains
    assert np.all(shares["feedback"] < 0.9 * shares["nearest"])
