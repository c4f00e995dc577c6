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
