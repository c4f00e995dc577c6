"""Logits a chunk at a time, and scalar heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax import models
from nspo_jax.models import heads
from nspo_jax.rl import losses, train_step

CONFIG = models.ModelConfig(
    vocab_size=97, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False,
    max_length=64,
)  # fmt: skip


def rollouts(config, rows=3, prompt=4, completion=7):
    key = jax.random.key(1)
    shape = (rows, completion)
    return train_step.RolloutBatch(
        prompts=jax.random.randint(key, (rows, prompt), 0, config.vocab_size),
        prompt_mask=jnp.ones((rows, prompt), bool),
        completions=jax.random.randint(key, shape, 0, config.vocab_size),
        completion_mask=jnp.ones(shape, bool).at[0, 5:].set(False),
        old_logprobs=jnp.full(shape, -3.0),
        advantages=jnp.linspace(-1.0, 1.0, rows),
    )


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
def test_chunks_change_nothing(monkeypatch, chunk):
    params, batch = models.init_params(CONFIG, jax.random.key(0)), rollouts(CONFIG)

    def loss(params):
        logprobs = models.completion_logprobs(CONFIG, params, batch)
        return jnp.sum(jnp.sin(logprobs)), logprobs

    (_, whole), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", chunk * 3 * CONFIG.vocab_size)
    (_, pieces), in_pieces = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(pieces, whole, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), in_pieces, gradient)


def test_several_results_and_shapes_survive_the_chunks(monkeypatch):
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", 2 * 2 * CONFIG.vocab_size)
    x = jnp.arange(2 * 5 * 3.0).reshape(2, 5, 3)
    flags = jnp.arange(10).reshape(2, 5) % 3 == 0
    result = models.map_positions(CONFIG, lambda x, f: {"x": 2 * x, "sum": x.sum(-1) * f}, x, flags)
    np.testing.assert_array_equal(result["x"], 2 * x)
    np.testing.assert_array_equal(result["sum"], x.sum(-1) * flags)


def test_a_large_vocabulary_is_never_materialised_whole():
    """XLA's own account of a step's temporaries, against one array of all logits."""
    config = dataclasses.replace(CONFIG, vocab_size=152064, max_length=1024)
    params = models.abstract_params(config)
    batch = jax.eval_shape(lambda: rollouts(config, rows=16, prompt=4, completion=512))

    def loss(params, batch):
        logprobs = models.completion_logprobs(config, params, batch)
        return losses.grpo_loss(
            logprobs, batch.old_logprobs, batch.advantages, batch.completion_mask
        ).loss

    compiled = jax.jit(jax.grad(loss)).lower(params, batch).compile()
    everything = 16 * 512 * config.vocab_size * 4  # 5 GB
    # a chunk's logits, their exponentials and their gradient
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4 * heads.CHUNK_ELEMENTS
    assert 4 * 4 * heads.CHUNK_ELEMENTS < 0.9 * everything


@pytest.mark.parametrize("remat", ["dots", "none"])
def test_what_gradients_keep_changes_no_gradient(remat):
    params, batch = models.init_params(CONFIG, jax.random.key(0)), rollouts(CONFIG)

    def gradient(config):
        def loss(params):
            return jnp.sum(models.completion_logprobs(config, params, batch))

        return jax.jit(jax.grad(loss)).lower(params).compile()

    default, other = gradient(CONFIG), gradient(dataclasses.replace(CONFIG, remat=remat))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        other(params),
        default(params),
    )
    kept = [c.memory_analysis().temp_size_in_bytes for c in (default, other)]
    assert kept[0] < kept[1]


def test_a_score_is_the_value_at_the_last_real_token():
    config, params = models.with_scalar_head(
        CONFIG, models.init_params(CONFIG, jax.random.key(0)), jax.random.key(2)
    )
    tokens = jax.random.randint(jax.random.key(1), (3, 6), 0, 97)
    mask = jnp.array([[1] * 6, [0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], bool)
    hidden = models.forward(config, params, tokens, mask).hidden
    values = models.values(config, params, hidden)
    assert values.shape == (3, 6) and values.dtype == jnp.float32
    expected = np.array([values[0, 5], values[1, 5], values[2, 2]])
    np.testing.assert_allclose(models.scores(config, params, tokens, mask), expected, atol=1e-6)
    assert "score" not in models.input_sites(config) and "head/in" not in models.input_sites(config)


def test_values_of_a_language_model_are_refused():
    params = models.init_params(CONFIG, jax.random.key(0))
    with pytest.raises(ValueError, match="head is 'logits': values need .* with_scalar_head"):
        models.scores(CONFIG, params, jnp.zeros((1, 2), jnp.int32), jnp.ones((1, 2), bool))
