"""Sites from second moments that a caller collected."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import nspo_jax
from nspo_jax.nullspace import projection


def test_a_site_spans_the_inputs_that_the_moment_saw():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2, 5, 16))  # [stack, tokens, in]: rank 5 of 16
    moment = np.einsum("sti,stj->sij", inputs, inputs)
    site = nspo_jax.site_from_moment(("a/kernel", "b/kernel"), moment, "relative_max(1e-6)")
    assert site.kernels == ("a/kernel", "b/kernel")
    assert site.side == projection.PROTECTED and site.ranks.tolist() == [5, 5]
    np.testing.assert_allclose(
        np.einsum("sti,sik,sjk->stj", inputs, site.basis, site.basis), inputs, atol=1e-5
    )
    mean = nspo_jax.site_from_moment(("a/kernel",), moment / 10, "energy(0.05)")
    total = nspo_jax.site_from_moment(("a/kernel",), moment, "energy(0.05)")
    np.testing.assert_array_equal(mean.protected_ranks, total.protected_ranks)


def test_axes_before_the_input_are_a_stack_of_one_repeated_moment():
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((5, 16))  # [tokens, d]
    moment = np.broadcast_to(inputs.T @ inputs, (2, 3, 16, 16))  # kernel [2, heads, d, head_dim]
    site = nspo_jax.site_from_moment(("kv",), moment, "relative_max(1e-6)")
    optimizer = optax.chain(optax.adam(0.1), nspo_jax.null_space_projection({"kv": site}))
    params = {"kv": jnp.zeros((2, 3, 16, 4))}
    gradient = {"kv": jnp.asarray(rng.standard_normal((2, 3, 16, 4)), jnp.float32)}
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    assert np.abs(updates["kv"]).max() > 0.1
    np.testing.assert_allclose(np.einsum("td,ckdh->ctkh", inputs, updates["kv"]), 0, atol=1e-5)


def test_the_thinner_side_is_stored():
    moment = np.diag(np.arange(8, 0, -1.0))
    site = nspo_jax.site_from_moment(("w",), moment, "fixed(6)")
    assert site.side == projection.NULL and site.basis.shape == (8, 2)
    assert site.protected_ranks == 6


@pytest.mark.parametrize("moment", [np.ones(3), np.ones((3, 4)), np.full((3, 3), np.nan)])
def test_a_moment_that_is_none_is_named(moment):
    with pytest.raises(ValueError, match=r"The moment for w has shape .*expected finite"):
        nspo_jax.site_from_moment(("w",), moment, "energy(0.05)")
