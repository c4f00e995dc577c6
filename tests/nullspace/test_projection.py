"""The transforms on every tree, shape and optax wrapper; test_theory.py has what they promise."""

import warnings

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nspo_jax import nullspace
from nspo_jax.nullspace import projection


def orthonormal(rng, size, rank):
    return np.linalg.qr(rng.standard_normal((size, rank)))[0].astype(np.float32)


def site(basis, side=projection.PROTECTED, kernels=("w",)):
    basis = np.asarray(basis)
    stack = basis.shape[:-2]
    return nullspace.Site(kernels, basis, side, np.full(stack, basis.shape[-1], np.int32))


def test_attention_kernels_keep_their_shape_and_stacks_their_own_basis():
    rng = np.random.default_rng(0)
    bases = np.stack([orthonormal(rng, 12, 5) for _ in range(3)])  # three layers
    flat = rng.standard_normal((3, 12, 8)).astype(np.float32)
    expected = np.asarray(nullspace.project(jnp.asarray(flat), bases, projection.PROTECTED))
    for layer in range(3):
        alone = nullspace.project(jnp.asarray(flat[layer]), bases[layer], projection.PROTECTED)
        np.testing.assert_allclose(expected[layer], alone, atol=1e-6)
    for shape in ((3, 12, 2, 4), (3, 3, 4, 8)):  # [d, heads, head_dim] and [heads, head_dim, d]
        shaped = nullspace.project(jnp.asarray(flat.reshape(shape)), bases, projection.PROTECTED)
        assert shaped.shape == shape
        np.testing.assert_allclose(shaped.reshape(flat.shape), expected, atol=1e-6)


def test_complement_is_the_other_side_with_padding():
    rng = np.random.default_rng(1)
    ranks = np.array([2, 5], np.int32)
    basis = projection.stack_bases([orthonormal(rng, 9, rank) for rank in ranks])
    protected = nullspace.Site(("w",), basis, projection.PROTECTED, ranks)
    null = protected.complement()
    assert null.side == projection.NULL and null.basis.shape == (2, 9, 7)
    np.testing.assert_array_equal(null.ranks, 9 - ranks)
    update = jnp.asarray(rng.standard_normal((2, 9, 4)), jnp.float32)
    np.testing.assert_allclose(
        nullspace.project(update, protected.basis, protected.side),
        nullspace.project(update, null.basis, null.side),
        atol=1e-6,
    )


def test_a_period_lets_updates_through_and_then_projects_their_sum():
    rng = np.random.default_rng(2)
    basis = orthonormal(rng, 10, 4)
    params = {"w": jnp.zeros((10, 3))}
    transform = nullspace.null_space_projection({"s": site(basis)}, period=3)
    state = transform.init(params)
    leaks = []
    for step in range(1, 7):
        updates = {"w": jnp.asarray(rng.standard_normal((10, 3)), jnp.float32)}
        updates, state = jax.jit(transform.update)(updates, state)
        params = optax.apply_updates(params, updates)
        leaks.append(float(np.linalg.norm(basis.T @ params["w"])))
        assert (leaks[-1] < 1e-5) == (step % 3 == 0)


def test_bases_live_in_the_state():
    rng = np.random.default_rng(3)
    params = {"w": jnp.zeros((16, 4)), "bias": jnp.zeros((4,))}
    sites = {"s": site(orthonormal(rng, 16, 12))}
    state = nullspace.null_space_projection(sites).init(params)
    assert state.bases["s"].shape == (16, 12)


def test_nnx_state_linen_tree_and_dict_are_matched_alike():
    rng = np.random.default_rng(4)
    sites = {"s": site(orthonormal(rng, 6, 3), kernels=("layer/kernel",))}
    gradient = jnp.asarray(rng.standard_normal((6, 2)), jnp.float32)

    class Model(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(6, 2, rngs=nnx.Rngs(0))

    transform = nullspace.null_space_projection(sites)
    expected = nullspace.project(gradient, sites["s"].basis, projection.PROTECTED)
    tree = {"layer": {"kernel": gradient, "bias": jnp.ones(2)}}
    updates, _ = transform.update(tree, transform.init(tree))
    np.testing.assert_allclose(updates["layer"]["kernel"], expected, atol=1e-6)
    np.testing.assert_array_equal(updates["layer"]["bias"], np.ones(2))  # no projector: unchanged
    state = nnx.state(Model(), nnx.Param)
    state["layer"]["kernel"] = state["layer"]["kernel"].replace(gradient)
    updates, _ = transform.update(state, transform.init(state))
    np.testing.assert_allclose(jax.tree.leaves(updates)[1], expected, atol=1e-6)


def test_masked_and_accumulated_gradients():
    rng = np.random.default_rng(5)
    basis = orthonormal(rng, 8, 5)
    params = {"w": jnp.ones((8, 2)), "other": jnp.ones((3,))}
    transform = optax.MultiSteps(
        optax.chain(
            optax.adam(0.1),
            optax.masked(
                nullspace.null_space_projection({"s": site(basis)}), {"w": True, "other": False}
            ),
        ),
        every_k_schedule=2,
    )
    state = transform.init(params)
    before = params["w"]
    for _ in range(4):
        gradient = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), params)
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    assert np.linalg.norm(params["w"] - before) > 0.1
    assert np.linalg.norm(basis.T @ (params["w"] - before)) < 1e-5


def test_misuse_is_named():
    rng = np.random.default_rng(6)
    basis = orthonormal(rng, 8, 5)
    transform = nullspace.null_space_projection({"mlp": site(basis, kernels=("mlp/kernel",))})
    with pytest.raises(ValueError, match=r"mlp/kernel \(site mlp\): no such parameter"):
        transform.init({"dense": {"kernel": jnp.zeros((8, 2))}})
    with pytest.raises(ValueError, match=r"shape \(9, 2\).*does not start with \(8,\)"):
        transform.init({"mlp": {"kernel": jnp.zeros((9, 2))}})
    with pytest.raises(ValueError, match="period is 0"):
        nullspace.null_space_projection({"s": site(basis)}, period=0)
    with pytest.raises(ValueError, match="null space of s is empty"):
        nullspace.null_space_projection({"s": site(np.eye(4, dtype=np.float32))})
    with pytest.raises(ValueError, match="more than one site: w"):
        nullspace.null_space_projection({"a": site(basis), "b": site(basis)})
    with pytest.raises(ValueError, match="non-empty"):
        nullspace.null_space_projection({})


def test_narrow_weights_are_warned_of_once_a_reason():
    transform = nullspace.null_space_projection({"s": site(np.eye(8, 5, dtype=np.float32))})
    projection._warn_once.cache_clear()  # another test may have been warned
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for dtype in (jnp.bfloat16, jnp.float32, jnp.bfloat16, jnp.float16):
            jax.eval_shape(transform.init, {"w": jnp.zeros((8, 2), dtype)})
            transform.init({"w": jnp.zeros((8, 2), dtype)})
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2 and all("keep float32 master weights" in text for text in texts)
    assert "bfloat16" in texts[0] and "float16" in texts[1]


def test_products_are_at_highest_precision():
    """A CPU would not show it: accelerators multiply float32 in bfloat16 or TF32 unless asked."""
    sites = {"s": site(np.eye(8, 5, dtype=np.float32))}
    params = {"w": jnp.zeros((8, 2))}
    for transform in (
        nullspace.null_space_projection(sites),
        nullspace.null_space_projection(sites, period=2),
        nullspace.in_null_space(optax.adamw(0.1), sites),
    ):
        program = str(jax.make_jaxpr(transform.update)(params, transform.init(params), params))
        products = program.count("dot_general")
        assert products and program.count("Precision.HIGHEST, Precision.HIGHEST") == products


@pytest.mark.parametrize("side", [projection.PROTECTED, projection.NULL])
def test_a_site_projects_by_itself_and_shows_its_projector(side):
    rng = np.random.default_rng(12)
    bases = np.stack([orthonormal(rng, 12, 5) for _ in range(2)])  # a stack of two
    stored = site(bases, side)
    outer = np.einsum("sik,sjk->sij", np.float64(bases), np.float64(bases))
    dense = outer if side == projection.NULL else np.eye(12) - outer
    found = stored.dense_projector()
    assert found.dtype == np.float32 and found.shape == (2, 12, 12)
    np.testing.assert_allclose(found, dense, atol=1e-6)
    np.testing.assert_allclose(stored.complement().dense_projector(), dense, atol=1e-6)
    update = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)  # [stack, heads, head_dim, out]
    kept = stored.project(update)
    assert kept.shape == update.shape
    np.testing.assert_allclose(
        np.reshape(kept, (2, 12, 5)), dense @ update.reshape(2, 12, 5), atol=2e-6
    )
    with pytest.raises(ValueError, match=r"shape \(2, 5, 12\) for w: expected .* with \(2, 12\)"):
        stored.project(np.zeros((2, 5, 12)))
    rows = nullspace.embedding_site("e", 6, np.array([1, 4]))
    np.testing.assert_array_equal(rows.dense_projector(), np.diag([1.0, 0, 1, 1, 0, 1]))
