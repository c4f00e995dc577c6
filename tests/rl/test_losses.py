"""Advantages and the GRPO loss against float64 formulas written out in numpy."""

import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax.rl import advantages, losses


@hypothesis.given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**31 - 1))
@hypothesis.settings(deadline=None)
def test_group_advantages_are_normalised_inside_the_group(groups, size, seed):
    rewards = np.random.default_rng(seed).standard_normal((groups, size))
    result = advantages.group_advantages(rewards.reshape(-1), size).reshape(groups, size)
    np.testing.assert_allclose(result.mean(axis=1), 0.0, atol=1e-5)
    expected = (rewards - rewards.mean(1, keepdims=True)) / (rewards.std(1, keepdims=True) + 1e-4)
    np.testing.assert_allclose(result, expected, atol=1e-5)


def test_a_constant_group_teaches_nothing_and_bad_rewards_are_refused():
    assert not advantages.group_advantages(np.full(10, -1.0), 5).any()
    with pytest.raises(ValueError, match="whole groups"):
        advantages.group_advantages(np.zeros(7), 5)
    with pytest.raises(ValueError, match="1 of 4 rewards are not finite"):
        advantages.group_advantages(np.array([0, 1, np.nan, 0]), 2)


def reference_loss(logprobs, old, advantage, mask, clip, beta, reference):
    """GRPO eq. 3 and the k3 penalty, token by token in float64."""
    total = 0.0
    for row in range(len(mask)):
        terms = []
        for t in np.flatnonzero(mask[row]):
            ratio = np.exp(logprobs[row, t] - old[row, t])
            clipped = np.clip(ratio, 1 - clip, 1 + clip)
            term = -min(ratio * advantage[row], clipped * advantage[row])
            difference = reference[row, t] - logprobs[row, t]
            terms.append(term + beta * (np.exp(difference) - difference - 1))
        total += np.mean(terms) if terms else 0.0
    return total / len(mask)


def test_grpo_loss_matches_the_formula():
    rng = np.random.default_rng(0)
    shape = (6, 7)
    logprobs, old, reference = -np.abs(rng.standard_normal((3, *shape)))
    old = logprobs + 0.3 * rng.standard_normal(shape)
    advantage = rng.standard_normal(6)
    mask = np.arange(7) < np.array([7, 3, 1, 0, 5, 2])[:, None]
    for beta in (0.0, 0.2):
        result = losses.grpo_loss(
            *(jnp.asarray(x, jnp.float32) for x in (logprobs, old, advantage)),
            jnp.asarray(mask),
            clip=0.2,
            kl_coefficient=beta,
            reference_logprobs=jnp.asarray(reference, jnp.float32),
        )
        expected = reference_loss(logprobs, old, advantage, mask, 0.2, beta, reference)
        np.testing.assert_allclose(result.loss, expected, rtol=1e-5)
        assert result.kl > 0 and 0 < result.clip_share < 1


def test_padding_contributes_nothing_even_when_it_holds_garbage():
    mask = jnp.array([[True, True, False], [True, False, False]])
    logprobs = jnp.array([[-1.0, -2.0, -jnp.inf], [-0.5, jnp.nan, 3e4]])
    old = jnp.where(mask, logprobs, -1e4)

    def loss(values):
        return losses.grpo_loss(values, old, jnp.array([1.0, -1.0]), mask).loss

    value, gradient = jax.value_and_grad(loss)(logprobs)
    np.testing.assert_allclose(value, 0.0, atol=1e-6)
    assert np.isfinite(np.where(mask, gradient, 0)).all()
    np.testing.assert_allclose(gradient[0, :2], -0.25, rtol=1e-6)  # -A / (tokens * sequences)
    np.testing.assert_allclose(gradient[1, 0], 0.5, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(gradient)[~np.asarray(mask)], 0.0)


def test_clipping_stops_the_gradient_only_on_the_far_side():
    mask = jnp.ones((1, 1), bool)
    gradient = jax.grad(
        lambda value, advantage: losses.grpo_loss(value, jnp.zeros((1, 1)), advantage, mask).loss
    )
    up, down = jnp.full((1, 1), jnp.log(1.5)), jnp.full((1, 1), jnp.log(0.5))
    assert gradient(up, jnp.array([1.0])) == 0 and gradient(up, jnp.array([-1.0])) != 0
    assert gradient(down, jnp.array([-1.0])) == 0 and gradient(down, jnp.array([1.0])) != 0


def test_token_logprobs_and_their_gradient_have_the_closed_form():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((2, 3, 11))
    tokens = rng.integers(0, 11, (2, 3))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.take_along_axis(probabilities, tokens[..., None], -1)[..., 0]
    result = losses.token_logprobs(jnp.asarray(logits, jnp.float32), jnp.asarray(tokens))
    np.testing.assert_allclose(result, np.log(chosen), rtol=1e-5)
    gradient = jax.grad(lambda x: losses.token_logprobs(x, jnp.asarray(tokens)).sum())(
        jnp.asarray(logits, jnp.float32)
    )
    np.testing.assert_allclose(gradient, np.eye(11)[tokens] - probabilities, atol=1e-6)
