"""Exact expectations and closed-form gradients: KL estimators, logits, padding through a model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax import models
from nspo_jax.rl import losses, train_step
from tests import test_sharding

CONFIG = test_sharding.CONFIG


# -------------------------------------------------------------- KL, by enumeration in float64


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


def expected_estimate(logits, reference, estimator):
    """The mean estimate over all tokens that a policy may draw, which the gradient does not see."""
    logprobs = jax.nn.log_softmax(logits)[None]  # [1, tokens]
    reference = reference[None]
    estimate = losses.kl_estimate(logprobs, reference, jnp.ones(logprobs.shape, bool), estimator)
    return jnp.sum(jax.lax.stop_gradient(jnp.exp(logprobs)) * estimate)


@pytest.mark.parametrize("distance", [0.1, 2.0])
def test_kl_estimators_in_expectation_and_their_gradients(distance):
    rng = np.random.default_rng(0)
    base = rng.standard_normal(9)
    logits = base + distance * rng.standard_normal(9)
    p, q = softmax(logits), softmax(base)
    kl = np.sum(p * np.log(p / q))
    with jax.enable_x64(True):
        value, gradient = {}, {}
        for name in losses.KL_ESTIMATORS:
            value[name], gradient[name] = jax.device_get(
                jax.value_and_grad(expected_estimate)(jnp.asarray(logits), np.log(q), name)
            )
    # as values: k1 and k3 are unbiased, k2 is not
    np.testing.assert_allclose([value["k1"], value["k3"]], kl, rtol=1e-12)
    assert abs(value["k2"] / kl - 1) > 0.01 * distance
    # in a loss: nothing, the gradient of KL(p || q), the gradient of KL(q || p)
    np.testing.assert_allclose(gradient["k1"], 0.0, atol=1e-15)
    np.testing.assert_allclose(gradient["k2"], p * (np.log(p / q) - kl), atol=1e-14)
    np.testing.assert_allclose(gradient["k3"], p - q, atol=1e-14)
    error = np.linalg.norm(gradient["k3"] - gradient["k2"]) / np.linalg.norm(gradient["k2"])
    assert error < distance  # the same to first order


@pytest.mark.parametrize("estimator", losses.KL_ESTIMATORS)
def test_kl_estimates_of_single_tokens(estimator):
    rng, mask = np.random.default_rng(1), np.arange(50) < 40
    logprobs, reference = -np.abs(rng.standard_normal((2, 1, 50))).astype(np.float32)
    logprobs[:, 45], reference[:, 46] = -np.inf, np.nan
    logprobs, reference, mask = jnp.asarray(logprobs), jnp.asarray(reference), mask[None]
    found = losses.kl_estimate(logprobs, reference, mask, estimator)
    assert not losses.kl_estimate(logprobs, logprobs, mask, estimator).any()
    assert not found[0, 40:].any() and np.all(found[0, :40] != 0)
    assert np.all(found >= 0) == (estimator != "k1")


# ------------------------------------------------------------ gradients with respect to logits


@pytest.mark.parametrize("loss", losses.LOSSES.values())
@pytest.mark.parametrize("how", losses.AGGREGATIONS)
def test_the_gradient_of_logits_at_ratio_one_has_the_closed_form(loss, how):
    """-A w (onehot - p), with the weight w that the aggregation gives a token."""
    rng, (rows, time, vocabulary) = np.random.default_rng(0), (3, 4, 6)
    logits = rng.standard_normal((rows, time, vocabulary))
    tokens = rng.integers(0, vocabulary, (rows, time))
    advantages, lengths = rng.standard_normal(rows), np.array([4, 2, 1])
    mask = np.arange(time) < lengths[:, None]
    old = models.token_logprobs(jnp.asarray(logits, jnp.float32), jnp.asarray(tokens))
    gradient = jax.grad(
        lambda logits: loss(
            models.token_logprobs(logits, jnp.asarray(tokens)), old, jnp.asarray(advantages),
            jnp.asarray(mask), aggregation=how,
        ).loss
    )(jnp.asarray(logits, jnp.float32))  # fmt: skip
    weight = {
        "sequence_mean": 1 / (lengths * rows),
        "token_mean": np.full(rows, 1 / lengths.sum()),
        "sequence_sum": np.full(rows, 1 / rows),
        "constant": np.full(rows, 1 / (rows * time)),
    }[how]
    expected = -(advantages * weight)[:, None, None] * (
        np.eye(vocabulary)[tokens] - softmax(logits)
    )
    np.testing.assert_allclose(gradient, expected * mask[..., None], rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------------- through a model


def padded(left, right):
    """Three prompts and completions of unequal lengths, with random tokens at padding."""
    rng, filler = np.random.default_rng(0), np.random.default_rng(left + 10 * right)
    prompts = [rng.integers(0, CONFIG.vocab_size, n) for n in (3, 1, 4)]
    completions = [rng.integers(0, CONFIG.vocab_size, n) for n in (2, 4, 1)]
    batch = train_step.RolloutBatch(
        prompts=filler.integers(0, CONFIG.vocab_size, (3, 4 + left)),
        prompt_mask=np.zeros((3, 4 + left), bool),
        completions=filler.integers(0, CONFIG.vocab_size, (3, 4 + right)),
        completion_mask=np.zeros((3, 4 + right), bool),
        old_logprobs=None,
        advantages=np.array([1.5, -1.0, 0.5], np.float32),
    )
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        batch.prompts[row, -len(prompt) :] = prompt
        batch.prompt_mask[row, -len(prompt) :] = True
        batch.completions[row, : len(completion)] = completion
        batch.completion_mask[row, : len(completion)] = True
    return batch, prompts, completions


def logprobs_and_gradient(params, batch, temperature):
    """Of the real tokens, row by row; of the loss at ratio 1, for every parameter."""

    def loss(params):
        logprobs = models.completion_logprobs(CONFIG, params, batch, temperature)
        old, mask = jax.lax.stop_gradient(logprobs), jnp.asarray(batch.completion_mask)
        return losses.grpo_loss(logprobs, old, jnp.asarray(batch.advantages), mask).loss, logprobs

    gradient, logprobs = jax.jit(jax.grad(loss, has_aux=True))(params)
    return np.asarray(logprobs)[batch.completion_mask], jax.device_get(gradient)


def test_padding_on_either_side_moves_neither_logprobs_nor_gradients():
    """Against wider padding of other tokens, and against float64 sums over unpadded rows."""
    params, temperature = models.init_params(CONFIG, jax.random.key(0)), 0.7
    params = jax.tree.map(lambda leaf: 8 * leaf if leaf.ndim > 1 else leaf, params)  # peaked
    batch, prompts, completions = padded(0, 0)
    logprobs, gradient = logprobs_and_gradient(params, batch, temperature)
    wider = logprobs_and_gradient(params, padded(3, 2)[0], temperature)
    np.testing.assert_allclose(wider[0], logprobs, rtol=1e-5, atol=1e-5)
    rounding = 1e-6 * max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=rounding), wider[1], gradient
    )

    head = np.asarray(params["head"]["kernel"], np.float64)
    expected, alone = np.zeros_like(head), []
    for prompt, completion, advantage in zip(prompts, completions, batch.advantages, strict=True):
        tokens = np.concatenate([prompt, completion])[None]
        hidden = models.forward(CONFIG, params, tokens, np.ones(tokens.shape, bool)).hidden[0]
        hidden = np.asarray(hidden, np.float64)[len(prompt) - 1 : -1]
        p = softmax(hidden @ head / temperature)
        alone.append(np.log(p[np.arange(len(completion)), completion]))
        toward = (np.eye(CONFIG.vocab_size)[completion] - p) / temperature
        expected -= advantage / (len(completion) * 3) * hidden.T @ toward
    np.testing.assert_allclose(logprobs, np.concatenate(alone), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradient["head"]["kernel"], expected, rtol=0, atol=rounding)
    assert np.abs(expected).max() > 0.1 and np.ptp(logprobs) > 0.5
