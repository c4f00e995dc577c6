"""The update: in parts it is the update of the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax import models
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.rl import train_step
from tests import test_sharding

CONFIG = test_sharding.CONFIG


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.1])
def test_gradients_added_up_over_microbatches_are_the_batch_s(kl_coefficient):
    params = models.init_params(CONFIG, jax.random.key(0))
    reference = models.init_params(CONFIG, jax.random.key(1)) if kl_coefficient else None
    optimizer = test_sharding.optimizer(params)
    batch = test_sharding.rollouts()
    found = {}
    for count in (1, 4, 16):
        trainable, frozen = optimizer_lib.partition(params, "mlp+attention+head", "freeze")
        trainable = jax.tree.map(jnp.copy, trainable)
        state = train_step.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
        step = train_step.make_train_step(
            CONFIG, optimizer, kl_coefficient=kl_coefficient, microbatches=count
        )
        state, metrics = step(state, frozen, reference, batch)
        moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
        found[count] = jax.device_get((metrics, moments, state.trainable))
    for count in (4, 16):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=3e-7),
            found[count][:2], found[1][:2],
        )  # fmt: skip
        # a first step of Adam is a sign: only where the gradient is rounding does it differ
        changes = [
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(found[n][2])]) for n in (count, 1)
        ]
        assert np.mean(np.abs(changes[0] - changes[1]) > 1e-5) < 1e-3
    assert found[1][0]["gradient_norm"] > 1e-3 and not found[4][0]["nonfinite"].any()
