"""The projection inside other libraries' trees, trainers and optax's wrappers."""

from flax import linen, nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nspo_jax import nullspace
from nspo_jax.nullspace import projection
from nspo_jax.nullspace import spectrum as spectrum_lib


def orthonormal(rng, *shape):
    return np.linalg.qr(rng.standard_normal(shape))[0].astype(np.float32)


def dense_site(basis, *kernels):
    return nullspace.Site(kernels, basis, projection.PROTECTED, np.int32(basis.shape[-1]))


MAKERS = {
    "update": lambda adam, sites: optax.chain(adam, nullspace.null_space_projection(sites)),
    "coordinates": nullspace.in_null_space,
}
both = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


@both
def test_a_linen_model_with_attention_kernels(make):
    """Kernels [d, heads, head_dim] and back; biases, which have no null space, are frozen."""
    rng = np.random.default_rng(0)
    model = linen.MultiHeadDotProductAttention(num_heads=2, qkv_features=8, out_features=6)
    basis, after_heads = orthonormal(rng, 10, 4), orthonormal(rng, 8, 3)
    x = jnp.asarray(rng.standard_normal((5, 10)), jnp.float32)
    protected = jnp.asarray(rng.standard_normal((5, 4)) @ basis.T, jnp.float32)
    params = model.init(jax.random.key(0), x)
    sites = {
        "in": dense_site(basis, *(f"params/{name}/kernel" for name in ("query", "key", "value"))),
        "out": dense_site(after_heads, "params/out/kernel"),
    }
    labels = jax.tree.map_with_path(lambda path, _: path[-1].key, params)
    transform = optax.multi_transform(
        {"kernel": make(optax.adamw(0.1), sites), "bias": optax.set_to_zero()}, labels
    )
    state, trained = transform.init(params), params

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: jnp.sum((model.apply(p, x) - 1.0) ** 2))(params)
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(5):
        trained, state = step(trained, state)
    before, after = (projection.leaves_by_path(tree) for tree in (params, trained))
    for name in ("query", "key", "value"):
        kernel = f"params/{name}/kernel"
        assert after[kernel].shape == (10, 2, 4) and jnp.any(after[kernel] != before[kernel])
        change = jnp.einsum("ti,ihd->thd", protected, after[kernel] - before[kernel])
        assert np.abs(change).max() < 1e-5
        np.testing.assert_array_equal(after[f"params/{name}/bias"], before[f"params/{name}/bias"])
    change = (after["params/out/kernel"] - before["params/out/kernel"]).reshape(8, 6)
    assert np.linalg.norm(change) > 0.1 and np.linalg.norm(after_heads.T @ change) < 1e-5


@both
def test_a_trainer_of_another_library(make):
    """`nnx.Optimizer` hands its own `nnx.State` to the transform."""
    rng = np.random.default_rng(1)
    basis = orthonormal(rng, 10, 4)

    class Model(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(10, 3, use_bias=False, rngs=nnx.Rngs(0))])

        def __call__(self, x):
            return self.layers[0](x)

    model = Model()
    sites = {"in": dense_site(basis, "layers/0/kernel")}
    optimizer = nnx.Optimizer(model, make(optax.adamw(0.1), sites), wrt=nnx.Param)
    x = jnp.asarray(rng.standard_normal((20, 10)), jnp.float32)
    protected = jnp.asarray(rng.standard_normal((5, 4)) @ basis.T, jnp.float32)
    kept, before = model(protected), model(x)

    @nnx.jit
    def step(model, optimizer):
        gradient = nnx.grad(lambda model: jnp.mean((model(x) - 1.0) ** 2))(model)
        optimizer.update(model, gradient)

    for _ in range(10):
        step(model, optimizer)
    np.testing.assert_allclose(model(protected), kept, atol=1e-5)
    assert np.abs(model(x) - before).max() > 0.1


@both
def test_accumulated_micro_batches_are_the_whole_batch(make):
    rng = np.random.default_rng(2)
    params = {"w": jnp.asarray(rng.standard_normal((8, 2)), jnp.float32), "other": jnp.ones(3)}
    sites = {"s": dense_site(orthonormal(rng, 8, 5), "w")}
    whole = make(optax.adamw(0.1, weight_decay=0.1), sites)
    parts = optax.MultiSteps(make(optax.adamw(0.1, weight_decay=0.1), sites), every_k_schedule=4)
    states, results = [whole.init(params), parts.init(params)], [params, params]
    update = [jax.jit(whole.update), jax.jit(parts.update)]
    for _ in range(3):
        shapes = {name: (4, *leaf.shape) for name, leaf in params.items()}
        gradients = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}
        mean = jax.tree.map(lambda g: g.mean(0), gradients)
        updates, states[0] = update[0](mean, states[0], results[0])
        results[0] = optax.apply_updates(results[0], updates)
        for part in range(4):
            gradient = {name: leaf[part] for name, leaf in gradients.items()}
            updates, states[1] = update[1](gradient, states[1], results[1])
            results[1] = optax.apply_updates(results[1], updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)
    assert np.abs(results[0]["w"] - params["w"]).max() > 0.1


@pytest.mark.parametrize(
    ("place", "exact"),
    [
        (lambda project: [optax.adam(0.1), project], True),
        (lambda project: [optax.adam(0.1), project, optax.scale(0.5)], True),  # no mixing after it
        (lambda project: [project, optax.adam(0.1)], False),
        (lambda project: [project, optax.scale_by_sign()], False),
        (lambda project: [optax.sgd(0.1), project, optax.add_decayed_weights(-0.1)], False),
        (lambda project: [optax.adam(0.1), optax.masked(project, {"w": True, "b": False})], True),
    ],
    ids=["last", "then a scale", "before Adam", "before a sign", "before decay", "masked"],
)
def test_where_in_the_chain(place, exact):
    rng = np.random.default_rng(3)
    basis = orthonormal(rng, 8, 5)
    sites = {"s": dense_site(basis, "w")}
    before = params = {"w": jnp.asarray(rng.standard_normal((8, 2)), jnp.float32), "b": jnp.ones(2)}
    transform = optax.chain(*place(nullspace.null_space_projection(sites)))
    state = transform.init(params)
    for _ in range(4):
        gradient = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape)), params)
        updates, state = transform.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    change = params["w"] - before["w"]
    assert np.linalg.norm(change) > 0.1
    leak = np.linalg.norm(basis.T @ change) / np.linalg.norm(change)
    assert leak < 1e-5 if exact else leak > 1e-2


@both
def test_rows_of_seen_tokens_never_move(make, tmp_path):
    """AdamW with weight decay, a tree from disk: rows of protected tokens stay bit for bit."""
    seen = np.array([[0, 3, 3], [7, 0, 9]])
    site = nullspace.embedding_site("embed/embedding", 12, seen)
    assert (site.size, int(site.protected_ranks)) == (12, 4)
    counts = np.sort(np.bincount(seen.ravel(), minlength=12))[::-1] / seen.size  # one-hot moments
    spectrum = spectrum_lib.single(counts, 1.0, 12)
    saved = nullspace.Projectors({"embed/in": site}, {"embed/in": spectrum}, {"model": "toy"})
    saved.save(tmp_path / "p")
    projectors = nullspace.load_projectors(tmp_path / "p")
    assert projectors.summary()[0]["rank"] == 4
    assert projectors.randomized(0).sites["embed/in"].basis.sum() == 8

    params = {"embed": {"embedding": jax.random.normal(jax.random.key(0), (12, 5))}}
    transform = make(optax.adamw(0.1, weight_decay=0.1), projectors)
    state, trained = transform.init(params), params
    for step in range(5):
        gradient = {"embed": {"embedding": jax.random.normal(jax.random.key(step), (12, 5))}}
        gradient["embed"]["embedding"] = gradient["embed"]["embedding"].at[3].set(jnp.inf)
        updates, state = jax.jit(transform.update)(gradient, state, trained)
        trained = optax.apply_updates(trained, updates)
    moved = np.any(trained["embed"]["embedding"] != params["embed"]["embedding"], axis=1)
    np.testing.assert_array_equal(np.flatnonzero(~moved), [0, 3, 7, 9])
    assert np.isfinite(trained["embed"]["embedding"]).all()


def test_what_a_row_mask_refuses():
    with pytest.raises(ValueError, match="tokens are 3 to 12; expected 0 to 11 .*tokenizer"):
        nullspace.embedding_site("embed/embedding", 12, np.array([3, 12]))
    site = nullspace.embedding_site("embed/embedding", 12, np.array([3]))
    with pytest.raises(ValueError, match="mask of rows, which is not a dense basis"):
        site.protected_basis()
    with pytest.raises(ValueError, match=r"shape \(12, 2\); expected \[\*stack, in, 1\]"):
        nullspace.Site(("w",), np.ones((12, 2), np.float32), projection.ROWS, np.int32(12))


@both
def test_an_embedding_of_which_every_row_is_seen_is_frozen(make):
    site = nullspace.embedding_site("w", 3, np.arange(3))
    params = {"w": jnp.ones((3, 2)), "free": jnp.ones(2)}
    optimizer = make(optax.adam(0.1), {"embed": site})
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert not np.any(updates["w"]) and np.all(updates["free"])


@both
@pytest.mark.parametrize("side", [projection.PROTECTED, projection.NULL])
def test_lora_leaves_protected_outputs_while_both_factors_train(make, side):
    """y = x W + (x A) B, stacked over two layers: A is projected, B is free, W is frozen."""
    rng = np.random.default_rng(4)
    ranks = np.array([4, 7])
    basis = projection.stack_bases([orthonormal(rng, 10, rank) for rank in ranks])
    input_site = nullspace.Site(("w",), basis, projection.PROTECTED, ranks)
    if side == projection.NULL:
        input_site = input_site.complement()
    protected = jnp.asarray(rng.standard_normal((2, 6, 7)) @ np.swapaxes(basis, -1, -2))
    x, target = jnp.asarray(rng.standard_normal((2, 20, 10))), jnp.ones((2, 20, 3))
    weights = jnp.asarray(rng.standard_normal((2, 10, 3)), jnp.float32)
    params = {
        "a": nullspace.init_lora_a(jax.random.key(0), input_site, 2),
        "b": jnp.zeros((2, 2, 3)),
    }
    null = input_site.null_basis()
    shares = np.std(np.swapaxes(null, -1, -2) @ params["a"], axis=(1, 2)) * np.sqrt(10 - ranks)
    assert params["a"].shape == (2, 10, 2) and 0.2 < shares.min() < shares.max() < 2
    sites = {"in": nullspace.Site(("a",), input_site.basis, input_site.side, input_site.ranks)}
    transform = make(optax.adamw(0.03, weight_decay=0.01), sites)

    def outputs(params, x):
        return x @ weights + (x @ params["a"]) @ params["b"]

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: jnp.mean((outputs(p, x) - target) ** 2))(params)
        updates, state = transform.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    trained, state = params, transform.init(params)
    for _ in range(50):
        trained, state = step(trained, state)
    kept = outputs(params, protected)
    np.testing.assert_allclose(outputs(trained, protected), kept, atol=3e-6 * np.abs(kept).max())
    assert all(np.abs(trained[name] - params[name]).max() > 0.1 for name in params)
    assert np.abs(outputs(trained, x) - outputs(params, x)).max() > 0.1
