"""Ids that a tokenizer lacks: no probability, against float64 numpy on the others alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax import models, nullspace
from nspo_jax.models import generation
from nspo_jax.rl import train_step

ABSENT = ((3, 5), (20, 24))
CONFIG = models.ModelConfig(
    vocab_size=24, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1,
    head_dim=8, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False, max_length=32,
    absent_ids=ABSENT,
)  # fmt: skip
WHOLE = dataclasses.replace(CONFIG, absent_ids=())
PRESENT = np.array([i for i in range(24) if not any(a <= i < b for a, b in ABSENT)])


@pytest.fixture(scope="module")
def params():
    """A model that would say absent ids most of the time, and a changed one."""
    base = models.init_params(WHOLE, jax.random.key(0))
    kernel = 4 * jax.random.normal(jax.random.key(1), (16, 24))
    return [base | {"head": {"kernel": kernel * scale}} for scale in (1.0, 1.3)]


@pytest.fixture(scope="module")
def completions(params):
    prompts = np.random.default_rng(0).choice(PRESENT, (64, 4)).astype(np.int32)
    done = generation.generate(
        CONFIG, params[0], prompts, np.ones((64, 4), bool), jax.random.key(2),
        max_new_tokens=8, stop_ids=(2,), temperature=2.0,
    )  # fmt: skip
    return prompts, jax.tree.map(np.asarray, done)


def restricted(logits):
    """Log-probabilities over the present ids, float64, from logits of all."""
    logits = np.asarray(logits, np.float64)[..., PRESENT]
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def batch_of(completions):
    prompts, done = completions
    ones = np.ones(prompts.shape, bool)
    return train_step.RolloutBatch(
        prompts, ones, done.tokens, done.mask, done.logprobs, np.ones(64, np.float32)
    )


def test_they_are_never_drawn_and_sampler_and_trainer_agree(params, completions):
    prompts, done = completions
    drawn = done.tokens[done.mask]
    assert len(drawn) > 200 and np.isin(drawn, PRESENT).all()
    # without the mask this model would draw them, so that the test could fail
    whole = generation.generate(
        WHOLE, params[0], prompts, np.ones(prompts.shape, bool), jax.random.key(2),
        max_new_tokens=8, stop_ids=(2,), temperature=2.0,
    )  # fmt: skip
    assert not np.isin(np.asarray(whole.tokens)[np.asarray(whole.mask)], PRESENT).all()
    batch = batch_of(completions)
    trained = models.completion_logprobs(CONFIG, params[0], batch, temperature=2.0)
    gap = np.abs(np.asarray(trained) - done.logprobs)[done.mask]
    assert gap.max() < 1e-4  # the ratio is 1
    states = models.predicting_states(WHOLE, params[0], batch)
    logits = np.asarray(models.logits(WHOLE, params[0], states), np.float64) / 2.0
    place = np.searchsorted(PRESENT, done.tokens)
    expected = np.take_along_axis(restricted(logits), place[..., None], -1)[..., 0]
    np.testing.assert_allclose(np.asarray(trained)[done.mask], expected[done.mask], atol=1e-4)


def test_probabilities_sum_to_one_over_the_others(params):
    hidden = jax.random.normal(jax.random.key(3), (5, 16))
    masked = np.asarray(jax.nn.softmax(models.logits(CONFIG, params[0], hidden)), np.float64)
    assert (np.delete(masked, PRESENT, axis=1) == 0).all()
    expected = np.exp(restricted(models.logits(WHOLE, params[0], hidden)))
    np.testing.assert_allclose(masked[:, PRESENT], expected, atol=1e-6)


def test_divergences_are_of_what_can_be_said(params, completions):
    prompts, done = completions
    tokens = np.concatenate([prompts, done.tokens], axis=1)
    mask = np.concatenate([np.ones(prompts.shape, bool), done.mask], axis=1)
    answer = np.concatenate([np.zeros(prompts.shape, bool), done.mask], axis=1)
    found = nullspace.drift(
        CONFIG, *params, [{"tokens": tokens, "mask": mask, "answer_mask": answer}]
    )
    states = models.predicting_states(WHOLE, params[0], batch_of(completions))
    log_p, log_q = (restricted(models.logits(WHOLE, p, states)) for p in params)
    expected = np.sum(np.exp(log_p) * (log_p - log_q), axis=-1)[done.mask].mean()
    assert expected > 1e-3
    np.testing.assert_allclose(found["kl"], expected, rtol=1e-3)


def test_their_rows_of_the_head_have_no_gradient(params):
    hidden = jax.random.normal(jax.random.key(3), (1, 5, 16))
    tokens = jnp.array([[0, 1, 2, 7, 19]])

    def loss(head):
        return models.token_logprobs(models.logits(CONFIG, params[0] | head, hidden), tokens).sum()

    gradient = np.asarray(jax.grad(loss)({"head": params[0]["head"]})["head"]["kernel"])
    assert np.isfinite(gradient).all() and np.abs(gradient[:, PRESENT]).max() > 0.1
    assert (np.delete(gradient, PRESENT, axis=1) == 0).all()


@pytest.mark.parametrize("ranges", [((5, 3),), ((20, 25),), ((3, 5), (4, 6))])
def test_ranges_that_are_none(ranges):
    with pytest.raises(ValueError, match="absent_ids is .*vocab_size 24"):
        dataclasses.replace(CONFIG, absent_ids=ranges)
