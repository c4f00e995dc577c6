"""What the projection promises, as tests: its algebra, exact preservation of a network, and that
every shortcut around it leaks as the design's table says."""

import warnings

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nspo_jax import models, nullspace
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.nullspace import projection

SIDES = (projection.PROTECTED, projection.NULL, projection.ROWS)
# the trailing shapes of a kernel with 12 inputs and 6 outputs, and of a plain one with 5 and 3
KERNELS = st.sampled_from([(12, (12, 6)), (12, (12, 2, 3)), (12, (3, 4, 6)), (5, (5, 3))])
fixed = hypothesis.settings(deadline=None, max_examples=25, derandomize=True)


def orthonormal(rng, *shape):
    return np.linalg.qr(rng.standard_normal(shape))[0].astype(np.float32)


@st.composite
def projections(draw):
    """(basis, side, dense float64 projection [*stack, in, in], kernel shape, random generator)."""
    size, kernel = draw(KERNELS)
    stack = draw(st.sampled_from([(), (2,)]))
    side = draw(st.sampled_from(SIDES))
    rank = draw(st.integers(1, size - 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**31 - 1)))
    if side == projection.ROWS:
        basis = np.float32(rng.permuted(np.arange(size) < rank * np.ones((*stack, 1)), axis=-1))
        basis = basis[..., None]
        dense = basis * np.eye(size)
    else:
        basis = orthonormal(rng, *stack, size, rank)
        dense = basis.astype(np.float64) @ np.swapaxes(basis, -1, -2).astype(np.float64)
        dense = np.eye(size) - dense if side == projection.PROTECTED else dense
    return basis, side, dense, (*stack, *kernel), rng


@hypothesis.given(projections(), st.floats(-1e3, 1e3))
@fixed
def test_it_is_an_orthogonal_projection(drawn, scale):
    basis, side, dense, shape, rng = drawn
    update, other = rng.standard_normal((2, *shape)).astype(np.float32)
    project = lambda value: np.asarray(nullspace.project(jnp.asarray(value), basis, side))  # noqa: E731
    projected, length = project(update), np.linalg.norm(update)
    matrix = update.reshape(*dense.shape[:-1], -1)

    assert projected.shape == shape and projected.dtype == np.float32
    np.testing.assert_allclose(projected, (dense @ matrix).reshape(shape), atol=2e-6 * length)
    np.testing.assert_allclose(project(projected), projected, atol=2e-6 * length)  # idempotent
    assert np.linalg.norm(projected) <= length * (1 + 1e-6)  # non-expansive
    assert np.sum(update * projected) >= -1e-6 * length**2  # a descent direction stays one
    np.testing.assert_allclose(  # <g, P g> = |P g|^2: how much descent is left
        np.sum(update * projected), np.sum(projected**2), atol=1e-5 * length**2
    )
    np.testing.assert_allclose(  # symmetric
        np.sum(other * projected), np.sum(project(other) * update),
        atol=1e-5 * length * np.linalg.norm(other),
    )  # fmt: skip
    np.testing.assert_allclose(  # commutes with scaling
        project(np.float32(scale) * update), np.float32(scale) * projected,
        atol=2e-6 * abs(scale) * length,
    )  # fmt: skip
    np.testing.assert_allclose(  # and with summation
        project(update + other), projected + project(other), atol=1e-5 * length
    )


@hypothesis.given(projections())
@fixed
def test_both_sides_are_the_same_projection(drawn):
    basis, side, _, shape, rng = drawn
    hypothesis.assume(side != projection.ROWS)
    ranks = np.full(basis.shape[:-2], basis.shape[-1])
    other = nullspace.Site(("w",), basis, side, ranks).complement()
    update = rng.standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(
        nullspace.project(update, basis, side),
        nullspace.project(update, other.basis, other.side),
        atol=3e-6 * np.linalg.norm(update),
    )


# ------------------------------------------------------------------------------------------------
# A linear layer, 200 steps of AdamW: the design's table.
# ------------------------------------------------------------------------------------------------


def last(optimizer, sites):
    return optax.chain(optimizer, nullspace.null_space_projection(sites))


def toy(make, *, dtype=jnp.float32, learning_rate=1e-2, steps=200):
    """Trains W [64, 8] with AdamW and weight decay, its 16 protected directions as `make` says.

    Returns:
      The largest output change on protected inputs over the run, the weights before and after, the
      basis, and the losses. The first weights are bfloat16 numbers, as those of a checkpoint are.
    """
    rng = np.random.default_rng(0)
    basis = orthonormal(rng, 64, 16)
    inputs = jnp.asarray(rng.standard_normal((32, 16)) @ basis.T, jnp.float32)
    features = jnp.asarray(rng.standard_normal((128, 64)), jnp.float32)
    labels = jnp.asarray(rng.standard_normal((128, 8)), jnp.float32)
    before = jnp.asarray(0.1 * rng.standard_normal((64, 8)), jnp.bfloat16).astype(dtype)
    sites = {"s": nullspace.Site(("w",), basis, projection.PROTECTED, np.int32(16))}
    optimizer = make(optax.adamw(learning_rate, weight_decay=0.01), sites)
    wide = lambda weights: weights.astype(jnp.float32)  # noqa: E731

    def step(carry, _):
        params, state = carry
        loss = lambda p: jnp.mean((features @ wide(p["w"]) - labels) ** 2)  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        moved = jnp.max(jnp.abs(inputs @ (wide(params["w"]) - wide(before))))
        return (params, state), (moved, value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bfloat16
        carry = {"w": before}, optimizer.init({"w": before})
    (params, _), (moved, losses) = jax.lax.scan(step, carry, length=steps)
    return float(moved.max()), np.asarray(before), np.asarray(params["w"]), basis, losses


def test_the_projection_last_is_exact_and_every_shortcut_leaks():
    """The output change on protected inputs; in brackets what it is here."""
    before_adam = lambda adam, sites: optax.chain(nullspace.null_space_projection(sites), adam)  # noqa: E731
    every_fifth = lambda adam, sites: optax.chain(  # noqa: E731
        adam, nullspace.null_space_projection(sites, period=5)
    )
    change = {
        "none": toy(lambda adam, sites: adam)[0],  # [2]
        "before Adam": toy(before_adam)[0],  # [1]
        "every fifth": toy(every_fifth)[0],  # [0.5], between its projections
        "bfloat16": toy(last, dtype=jnp.bfloat16)[0],  # [0.2]
        "last": toy(last)[0],  # [1e-6]
        "coordinates": toy(nullspace.in_null_space)[0],  # [1e-6]
    }
    assert change["last"] < 1e-5 and change["coordinates"] < 1e-5
    assert change["none"] > change["before Adam"] > change["every fifth"] > change["bfloat16"]
    assert change["bfloat16"] > 1e4 * change["last"]


def test_both_transforms_learn():
    for make in (last, nullspace.in_null_space):
        losses = toy(make)[-1]
        assert losses[-1] < 0.8 * losses[0]


def test_rounding_the_exported_weights_to_bfloat16_leaks():
    """At the paper's learning rate a third of the rounded change is in the protected subspace."""
    _, before, after, basis, _ = toy(last, learning_rate=1e-6)

    def share(exported):
        change = exported.astype(np.float64) - before
        return np.linalg.norm(basis.T @ change) / np.linalg.norm(change)

    rounded = np.asarray(jnp.asarray(after, jnp.bfloat16))
    assert 0.2 < share(rounded) < 0.5  # sqrt(16 / 64) for a random change
    assert share(after) < 5e-3  # float32 rounds it too, 2^16 times finer
    delta = (after - before).astype(np.float32)  # what export_delta writes beside the base
    np.testing.assert_allclose(share(before + delta), share(after), rtol=1e-2)


# ------------------------------------------------------------------------------------------------
# The decoder: exact mode by induction over layers.
# ------------------------------------------------------------------------------------------------

CONFIG = models.ModelConfig(
    vocab_size=29, hidden_size=16, intermediate_size=24, num_layers=3, num_heads=4,
    num_kv_heads=2, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False,
    max_length=32, qkv_bias=True, qk_norm=True,
)  # fmt: skip


def calibration_batch():
    """Ten positions, at most as many directions at any site; tokens 0 to 14 of 29."""
    tokens = np.random.default_rng(3).integers(0, 15, (2, 5)).astype(np.int32)
    return {"tokens": tokens, "mask": np.arange(5) >= np.array([[1], [0]])}


@pytest.fixture(scope="module")
def decoder():
    """The base model, the paths of its projected kernels, and a training run a projection mode.

    The embedding is one of them: the rows of tokens 15 to 28 may move.
    """
    params = models.init_params(CONFIG, jax.random.key(0))
    projectors = nullspace.calibrate(CONFIG, params, [calibration_batch()], rank_rule="fixed(10)")
    kernels = {path for site in projectors.sites.values() for path in site.kernels}
    runs = {mode: training(projectors, mode) for mode in ("update", "coordinates", "gradient")}
    return params, kernels, runs


def training(projectors, mode):
    """Jitted (params, keep) -> (params, losses): 200 steps of AdamW on other text.

    `keep` is a tree of 0 and 1: what is frozen gets no update.
    """
    text = np.random.default_rng(4).integers(0, CONFIG.vocab_size, (8, 12)).astype(np.int32)
    optimizer = optimizer_lib.build_optimizer(1e-3, projectors, mode=mode, weight_decay=0.01)

    def loss_of(params):
        hidden = models.forward(CONFIG, params, text, np.ones_like(text, bool)).hidden
        logits = models.logits(CONFIG, params, hidden)[:, :-1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean()

    def run(params, state, keep):
        def step(carry, _):
            params, state = carry
            loss, gradient = jax.value_and_grad(loss_of)(params)
            updates, state = optimizer.update(gradient, state, params)
            updates = jax.tree.map(jnp.multiply, updates, keep)
            return (optax.apply_updates(params, updates), state), loss

        (params, _), losses = jax.lax.scan(step, (params, state), length=200)
        return params, losses

    compiled = jax.jit(run)
    return lambda params, keep: compiled(params, optimizer.init(params), keep)


def logits_of(params, batch):
    hidden = models.forward(CONFIG, params, batch["tokens"], batch["mask"]).hidden
    return models.logits(CONFIG, params, hidden)[batch["mask"]]  # [real tokens, vocab]


@pytest.mark.parametrize(
    ("mode", "also_trained", "preserved"),
    [
        ("update", "", True),
        ("coordinates", "", True),
        ("gradient", "", False),  # projected before Adam
        ("update", "bias", False),  # a bias has no null space: exact mode freezes it
        ("update", "scale", False),  # nor has a norm
    ],
)
def test_exact_mode_preserves_a_decoder_by_induction(decoder, mode, also_trained, preserved):
    params, kernels, runs = decoder
    keep = jax.tree.map_with_path(
        lambda path, _: float(
            projection.path_string(path) in kernels or path[-1].key == also_trained
        ),
        params,
    )
    policy, losses = runs[mode](params, keep)
    assert losses[-1] < 0.8 * losses[0]  # it learned the other text
    moved = jax.tree.map(lambda a, b: float(np.any(a != b)), params, policy)
    assert moved == keep
    before, after = (logits_of(tree, calibration_batch()) for tree in (params, policy))
    change = float(jnp.max(jnp.abs(after - before)) / jnp.max(jnp.abs(before)))
    assert (change < 1e-4) == preserved
    assert preserved or change > 1e-2
