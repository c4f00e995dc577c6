"""The update: in parts it is the update of the whole, and off-policy tokens are weighed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nspo_jax import models
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.rl import train_step
from nspo_jax.rl.algorithms import policy_gradient
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
        step = policy_gradient.make_train_step(
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


def gradient_descent(batches, **options):
    """Each batch's (change of the head, gap) after a step of descent from the same weights."""
    params = models.init_params(CONFIG, jax.random.key(0))
    trainable, frozen = optimizer_lib.partition(params, "head", "freeze")
    optimizer = optax.sgd(1.0)
    step = policy_gradient.make_train_step(CONFIG, optimizer, **options)
    found = []
    for batch in batches:
        copied = jax.tree.map(jnp.copy, trainable)
        state = train_step.TrainState(jnp.int32(0), copied, optimizer.init(copied))
        state, metrics = jax.device_get(step(state, frozen, None, batch))
        change = state.trainable["head"]["kernel"] - np.asarray(trainable["head"]["kernel"])
        found.append((change, metrics["logprob_gap"]))
    return found


@pytest.mark.parametrize(
    "options",
    [
        {"aggregation": "token_mean", "loss": "gspo"},
        {"aggregation": "constant", "importance_cap": 1.5},
    ],
)
def test_every_aggregation_is_the_batch_s_in_microbatches_of_unequal_tokens(options):
    batch = test_sharding.rollouts()
    parts = np.reshape(batch.completion_mask, (-1, 2, test_sharding.COMPLETION)).sum((0, 2))
    assert parts[0] != parts[1]
    whole, halves = (gradient_descent([batch], microbatches=n, **options)[0][0] for n in (1, 2))
    assert np.abs(whole).max() > 1e-3
    np.testing.assert_allclose(halves, whole, rtol=1e-4, atol=1e-7)


def test_the_importance_cap_weighs_tokens_by_trainer_over_sampler():
    """A sampler that found every token a constant less likely: the gradient times that, capped."""
    batch = test_sharding.rollouts()
    params = models.init_params(CONFIG, jax.random.key(0))
    own = np.asarray(models.completion_logprobs(CONFIG, params, batch))
    shifts = np.log(np.float32([1.0, 1.5, 5.0]))
    batches = [batch._replace(old_logprobs=own - shift) for shift in shifts]
    ((plain, _),) = gradient_descent(batches[:1])
    found = gradient_descent(batches, importance_cap=2.0)
    for (change, gap), weight, shift in zip(found, (1.0, 1.5, 2.0), shifts, strict=True):
        np.testing.assert_allclose(change, weight * plain, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(gap, shift, atol=1e-5)
