"""`in_null_space`: any optax optimizer stays inside, and what its state weighs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nspo_jax import nullspace
from nspo_jax.nullspace import coordinates, projection

OPTIMIZERS = {
    "sgd with momentum": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2, weight_decay_rate=0.1),
    "lion": lambda: optax.lion(0.1, weight_decay=0.1),
    "muon": lambda: optax.contrib.muon(0.1),
    "rmsprop after clipping": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.rmsprop(0.1)
    ),
    "multi_transform": lambda: optax.multi_transform(
        {"a": optax.lamb(0.1), "b": optax.sgd(0.1)}, {"w": "a", "qkv": "a", "bias": "b"}
    ),
}


def orthonormal(rng, *shape):
    return np.linalg.qr(rng.standard_normal(shape))[0].astype(np.float32)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_stays_in_the_null_space(name):
    """A kernel and a stack of attention kernels that share a basis of two ranks; a free bias."""
    rng = np.random.default_rng(0)
    shapes = {"w": (2, 12, 5), "qkv": (2, 12, 3, 4), "bias": (5,)}
    draw = lambda: {  # noqa: E731
        key: jnp.asarray(rng.standard_normal(shape), jnp.float32) for key, shape in shapes.items()
    }
    ranks = np.array([4, 7])
    basis = projection.stack_bases([orthonormal(rng, 12, rank) for rank in ranks])
    sites = {"in": nullspace.Site(("w", "qkv"), basis, projection.PROTECTED, ranks)}
    optimizer = nullspace.in_null_space(OPTIMIZERS[name](), sites)
    before = params = draw()
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for _ in range(3):
        updates, state = update(draw(), state, params)
        params = optax.apply_updates(params, updates)
    for key in shapes:
        change = params[key] - before[key]
        assert np.linalg.norm(change) > 1e-3
        if key != "bias":
            inside = projection.coordinates(change, jnp.asarray(basis))
            assert np.linalg.norm(inside) < 3e-6 * np.linalg.norm(params[key])


def test_moments_have_the_null_space_s_size_and_other_parameters_their_own():
    rng = np.random.default_rng(3)
    params = {"w": jnp.zeros((16, 4)), "bias": jnp.zeros((4,))}
    sites = {"s": nullspace.Site(("w",), orthonormal(rng, 16, 12), "protected", np.int32(12))}
    state = nullspace.in_null_space(optax.adam(1e-3), sites).init(params)
    assert state.inner[0].mu["w"].shape == (4, 4)  # 16 - 12 free directions
    assert state.inner[0].mu["bias"].shape == (4,)


def test_arguments_beyond_optax_s_three_reach_the_optimizer():
    rng = np.random.default_rng(4)
    sites = {"s": nullspace.Site(("w",), orthonormal(rng, 8, 3), "protected", np.int32(3))}
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0)
    optimizer = nullspace.in_null_space(optax.chain(optax.sgd(1.0), plateau), sites)
    params = {"w": jnp.ones((8, 2))}
    state = optimizer.init(params)
    gradient = {"w": jnp.asarray(rng.standard_normal((8, 2)), jnp.float32)}
    sizes = []
    for _ in range(4):  # the loss does not fall, and so the step does
        updates, state = optimizer.update(gradient, state, params, value=1.0)
        sizes.append(float(np.linalg.norm(updates["w"])))
    assert sizes[-1] < 0.6 * sizes[0]


def test_rows_of_seen_tokens_stay_whatever_the_optimizer_does():
    site = nullspace.embedding_site("embedding", 6, np.array([1, 4]))
    optimizer = nullspace.in_null_space(optax.add_noise(1.0, 0.5, key=0), {"embed": site})
    gradient = {"embedding": jnp.ones((6, 3))}
    updates, _ = optimizer.update(gradient, optimizer.init(gradient))
    assert np.flatnonzero(~np.any(updates["embedding"], axis=1)).tolist() == [1, 4]


@pytest.mark.parametrize(("free", "ratio"), [(0.1, 0.143), (0.5, 0.6), (0.75, 1.0), (0.9, 1.286)])
def test_the_memory_of_the_state_is_as_the_docstring_says(free, ratio):
    """Bytes of Adam in coordinates over bytes of Adam and the projection, kernel [200, 200]."""
    size = out = 200
    columns = round(free * size)
    null = orthonormal(np.random.default_rng(5), size, columns)
    site = nullspace.Site(("w",), null, projection.NULL, np.int32(columns))
    site = site if free <= 0.5 else site.complement()  # stored where it is thinner
    params = {"w": jnp.zeros((size, out))}

    def weight(optimizer):
        state = optimizer.init(params)
        return sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)  # no counters

    update = weight(optax.chain(optax.adam(1e-6), nullspace.null_space_projection({"s": site})))
    inside = weight(nullspace.in_null_space(optax.adam(1e-6), {"s": site}))
    assert update == 4 * (2 * size * out + round(min(free, 1 - free) * size) * size)
    assert inside == 4 * (2 * columns * out + columns * size)
    assert inside / update == pytest.approx(ratio, abs=1e-3)


def sides(basis, rank, rng):
    """One null space from either side, of the columns of a basis [in, in], turned at random."""
    parts = {projection.PROTECTED: basis[:, :rank], projection.NULL: basis[:, rank:]}
    return [
        nullspace.Site(
            ("w",),
            np.float32(part @ np.linalg.qr(rng.standard_normal((part.shape[1],) * 2))[0]),
            side,
            np.int32(part.shape[1]),
        )
        for side, part in parts.items()
    ]


def hard_basis(name, size):
    rng = np.random.default_rng(6)
    columns = rng.standard_normal((size, size))
    if name == "equal rows":  # every axis has the same share of every direction
        columns = np.array([[1.0]])
        while len(columns) < size:
            columns = np.block([[columns, columns], [columns, -columns]])
    elif name == "axes":
        columns = np.eye(size)
    elif name == "twins and dead":  # inputs that are always equal, and inputs that are always 0
        columns[1:4], columns[10:16] = columns[0], 0
    return np.linalg.qr(columns)[0]


@pytest.mark.parametrize("name", ["random", "equal rows", "axes", "twins and dead"])
@pytest.mark.parametrize("rank", [0, 1, 9, 16, 20, 32])
def test_the_nearest_basis_is_the_null_space_s_own(name, rank):
    rng, basis = np.random.default_rng(7), hard_basis(name, 32)
    protected, null = sides(basis, rank, rng)
    found = nullspace.nearest_basis(protected).astype(np.float64)
    assert found.shape == (32, 32 - rank)
    np.testing.assert_allclose(found.T @ found, np.eye(32 - rank), atol=3e-7)
    np.testing.assert_allclose(basis[:, :rank].T @ found, 0, atol=3e-7)
    np.testing.assert_allclose(nullspace.nearest_basis(null), found, atol=1e-5)
    if 0 < rank < 32:  # nearest to axes: at theirs it is symmetric, positive definite
        thin = coordinates._independent_rows(basis[:, :rank] if rank <= 16 else basis[:, rank:])
        at = found[np.setdiff1d(np.arange(32), thin) if rank <= 16 else thin]
        np.testing.assert_allclose(at, at.T, atol=1e-6)
        assert np.linalg.eigvalsh(at)[0] > 0.01


def test_the_optimizer_does_not_see_which_side_is_stored():
    """A stack of two ranks, through calibration's own choice of the side; Adam, whose steps turn
    with the coordinates."""
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2, 200, 16)) * 0.7 ** np.arange(16)
    site = nullspace.site_from_moment(("w",), np.einsum("sti,stj->sij", x, x), "energy(0.01)")
    targets, inputs = rng.standard_normal((2, 64, 8)), rng.standard_normal((2, 64, 16))

    def loss(params):
        outputs = jnp.einsum("sti,sio->sto", jnp.float32(inputs), params["w"])
        return jnp.mean(jnp.square(outputs - jnp.float32(targets)))

    def train(site):
        optimizer = nullspace.in_null_space(optax.adamw(1e-2), {"s": site})
        params = {"w": jnp.zeros((2, 16, 8))}
        state = optimizer.init(params)

        @jax.jit
        def step(params, state):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        for _ in range(50):
            params, state = step(params, state)
        return params["w"]

    weights, others = train(site), train(site.complement())
    assert np.linalg.norm(weights) > 1
    assert np.linalg.norm(weights - others) < 1e-5 * np.linalg.norm(weights)


def test_a_state_of_another_basis_goes_on_in_that_basis():
    """As a checkpoint of an earlier version has it: the same shapes, and its own columns."""
    protected, null = sides(hard_basis("random", 32), 20, np.random.default_rng(9))
    rng = np.random.default_rng(10)
    optimizer = nullspace.in_null_space(optax.adam(0.1), {"s": protected})
    params = {"w": jnp.zeros((32, 4))}
    fresh = jax.eval_shape(optimizer.init, params)
    old = optimizer.init(params)._replace(bases={"s": jnp.asarray(null.basis)})
    assert jax.tree.map(jnp.shape, old) == jax.tree.map(lambda leaf: leaf.shape, fresh)
    gradients = [{"w": jnp.asarray(rng.standard_normal((32, 4)), jnp.float32)} for _ in range(3)]
    adam = optax.adam(0.1)
    inner = adam.init(jnp.zeros((12, 4)))
    for gradient in gradients:
        updates, old = optimizer.update(gradient, old, params)
        step, inner = adam.update(null.basis.T @ gradient["w"], inner)
        np.testing.assert_allclose(updates["w"], null.basis @ step, atol=1e-6)
    np.testing.assert_array_equal(old.bases["s"], null.basis)
