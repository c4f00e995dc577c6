"""Which parameters train, and that the chain keeps the constraint end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nspo_jax import models, nullspace
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.nullspace import projection

CONFIG = models.ModelConfig(
    vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=2, num_heads=2,
    num_kv_heads=2, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False,
    max_length=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    return models.init_params(CONFIG, jax.random.key(0))


@pytest.fixture(scope="module")
def projectors(params):
    tokens = np.random.default_rng(0).integers(0, 11, (4, 8)).astype(np.int32)
    batch = {"tokens": tokens, "mask": np.ones((4, 8), bool)}
    projectors = nullspace.calibrate(CONFIG, params, [batch], rank_rule="fixed(3)")
    return projectors.select("mlp+attention+head")


@pytest.mark.parametrize(
    ("targets", "untargeted", "trained"),
    [
        ("mlp", "freeze", {"gate", "up", "down"}),
        ("mlp+attention+head", "freeze", {"gate", "up", "down", "q", "k", "v", "o", "head"}),
        ("head", "freeze", {"head"}),
        ("mlp+embed", "freeze", {"gate", "up", "down", "embed"}),
    ],
)
def test_partition_and_combine(params, targets, untargeted, trained):
    trainable, frozen = optimizer_lib.partition(params, targets, untargeted)
    names = {path.split("/")[-2] for path in projection.leaves_by_path(trainable)}
    assert names == trained
    whole = optimizer_lib.combine(trainable, frozen)
    assert jax.tree.structure(whole) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, whole, params)


def test_untargeted_train_freezes_nothing(params):
    trainable, frozen = optimizer_lib.partition(params, "mlp", "train")
    assert not jax.tree.leaves(frozen)
    assert len(jax.tree.leaves(trainable)) == len(jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("options", "exact"),
    [
        ({"mode": "update"}, True),
        ({"mode": "coordinates"}, True),
        ({"mode": "update", "period": 5}, True),  # exact after every fifth update
        ({"mode": "gradient"}, False),
        ({"mode": "none"}, False),
    ],
)
def test_the_chain_stays_in_the_null_space(params, projectors, options, exact):
    optimizer = optimizer_lib.build_optimizer(1e-2, projectors, weight_decay=0.01, **options)
    trained, _ = optimizer_lib.partition(params, "mlp+attention+head", "freeze")
    state, before = optimizer.init(trained), trained
    rng = np.random.default_rng(1)

    @jax.jit
    def step(trained, state, gradient):
        updates, state = optimizer.update(gradient, state, trained)
        return optax.apply_updates(trained, updates), state

    for _ in range(10):
        gradient = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), trained)
        trained, state = step(trained, state, gradient)
    change = projection.leaves_by_path(jax.tree.map(lambda a, b: a - b, trained, before))
    for site in projectors.sites.values():
        basis = jnp.asarray(site.protected_basis())
        for path in site.kernels:
            inside = np.linalg.norm(projection.coordinates(change[path], basis))
            share = inside / np.linalg.norm(change[path])
            assert (share < 1e-5) == exact


def test_unknown_values_are_named(params, projectors):
    with pytest.raises(ValueError, match="mlp,attention.*joined by '\\+'"):
        optimizer_lib.partition(params, "mlp,attention", "freeze")
    with pytest.raises(ValueError, match="untargeted is 'frozen'"):
        optimizer_lib.partition(params, "mlp", "frozen")
    with pytest.raises(ValueError, match="mode is 'last'"):
        optimizer_lib.build_optimizer(1e-3, projectors, mode="last")
    with pytest.raises(ValueError, match="period is 5"):
        optimizer_lib.build_optimizer(1e-3, projectors, mode="gradient", period=5)
    with pytest.raises(ValueError, match="needs projectors"):
        optimizer_lib.build_optimizer(1e-3)


def _train(optimizer, trained, base, steps=1000):
    """Random gradients with a constant part, as a run's have; what was trained, in the end."""
    drift = jax.random.normal(jax.random.key(1), base.shape)

    def step(carry, key):
        trained, state = carry
        gradient = {"w": drift + jax.random.normal(key, base.shape)}
        updates, state = optimizer.update(gradient, state, trained)
        return (optax.apply_updates(trained, updates), state), None

    keys = jax.random.split(jax.random.key(2), steps)
    start = (trained, optimizer.init(trained))
    return jax.jit(lambda start: jax.lax.scan(step, start, keys)[0][0])(start)["w"]


@pytest.mark.parametrize("mode", ["update", "coordinates"])
def test_a_change_stays_in_the_null_space_at_the_paper_s_learning_rate(mode):
    """Weights near 1, 1,000 steps at 1e-6: a change is exact to 1e-6, weights are not to 5e-4."""
    draw = np.random.default_rng(0)
    protected = np.linalg.qr(draw.standard_normal((128, 32)))[0]
    site = projection.Site(("w",), protected.astype(np.float32), "protected", np.int32(32))
    base = jnp.asarray(1 + 0.1 * draw.standard_normal((128, 64)), jnp.float32)
    optimizer = optimizer_lib.build_optimizer(1e-6, {"in": site}, mode=mode)

    def share(change):
        change = np.asarray(change, np.float64)
        return np.linalg.norm(protected.T @ change) / np.linalg.norm(change)

    trained, _ = optimizer_lib.open_master({"mlp": {"w": base}}, "mlp", "train", "change")
    assert not np.any(trained["mlp"]["w"])
    change = _train(optimizer, trained["mlp"], base)
    assert 1e-5 < np.abs(change).max() < 2e-3
    assert share(change) < 1e-6
    weights = _train(optimizer, {"w": base}, base)
    assert share(np.asarray(weights, np.float64) - np.asarray(base, np.float64)) > 5e-4


def test_weights_are_formed_of_a_change_and_what_it_is_of():
    base = {
        "layers": {"mlp": {"up": {"kernel": jnp.full((2, 3, 4), 1.0, jnp.bfloat16)}}},
        "final_norm": {"scale": jnp.ones(3)},
    }
    trained, fixed = optimizer_lib.open_master(base, "mlp", "freeze", "change")
    trained = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32) + 1e-4, trained)
    whole = optimizer_lib.combine(trained, fixed)
    kernel = whole["layers"]["mlp"]["up"]["kernel"]
    assert kernel.dtype == jnp.float32 and np.allclose(kernel, 1.0001, atol=1e-7)
    assert whole["final_norm"]["scale"] is base["final_norm"]["scale"]
    narrow = optimizer_lib.combine(trained, fixed, "bfloat16")
    assert narrow["layers"]["mlp"]["up"]["kernel"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="optimizer.master is 'delta'; expected one of change"):
        optimizer_lib.open_master(base, "mlp", "freeze", "delta")


def test_sgd_falls_with_the_gradient_and_adam_does_not():
    first = []
    for name in optimizer_lib.NAMES:
        optimizer = optimizer_lib.build_optimizer(0.1, name=name, mode="none", b1=0.5)
        params = {"w": jnp.ones(4)}
        updates, state = optimizer.update({"w": jnp.ones(4)}, optimizer.init(params), params)
        again, _ = optimizer.update({"w": jnp.full(4, 1e-3)}, state, params)
        first.append((updates["w"][0], again["w"][0]))
    (adam, adam_again), (sgd, sgd_again) = first
    # clipped to a norm of 1, so 0.5 each; then 0.5 of it and the new one
    np.testing.assert_allclose([sgd, sgd_again], [-0.05, -0.1 * (0.25 + 1e-3)], rtol=1e-5)
    assert adam_again / adam > 0.3
    with pytest.raises(ValueError, match="optimizer.name is 'lion'; expected one of adam, sgd"):
        optimizer_lib.build_optimizer(0.1, name="lion")
