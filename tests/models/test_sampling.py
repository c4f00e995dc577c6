"""Drawing tokens: against transformers' warpers, frequencies, and what a row depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax.models import sampling


def logits(rows=6, vocab=23, scale=3.0):
    return scale * jax.random.normal(jax.random.key(0), (rows, vocab))


def keys(rows, seed=1):
    return jax.random.split(jax.random.key(seed), rows)


def draw(logits, keys, **options):
    return sampling.sample_token(logits, keys, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"top_k": 1},
        {"top_k": 5},
        {"top_k": 100},
        {"top_p": 0.3},
        {"top_p": 0.9},
        {"top_p": 1e-9},
        {"temperature": 1.7, "top_k": 7, "top_p": 0.8},
    ],
)
def test_the_distribution_is_that_of_transformers(options):
    """Support and log-probabilities of 3000 draws a row, and their frequencies."""
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers").generation.logits_process
    given = logits()
    expected = torch.tensor(np.asarray(given)) / options.get("temperature", 1.0)
    if "top_k" in options:
        expected = process.TopKLogitsWarper(options["top_k"])(None, expected)
    if "top_p" in options:
        expected = process.TopPLogitsWarper(options["top_p"])(None, expected)
    expected = torch.log_softmax(expected, dim=-1).numpy()

    many = 3000
    repeated = jnp.repeat(given, many, axis=0)
    tokens, logprobs = map(np.asarray, draw(repeated, keys(len(repeated)), **options))
    tokens, logprobs = tokens.reshape(-1, many), logprobs.reshape(-1, many)
    for row, (drawn, value, wanted) in enumerate(zip(tokens, logprobs, expected, strict=True)):
        assert np.isfinite(wanted[drawn]).all(), row
        np.testing.assert_allclose(value, wanted[drawn], atol=1e-5)
        probabilities = np.exp(wanted)
        frequencies = np.bincount(drawn, minlength=len(wanted)) / many
        spread = np.sqrt(probabilities * (1 - probabilities) / many)
        assert np.all(np.abs(frequencies - probabilities) <= 5 * spread + 1e-9), row


def test_zero_temperature_takes_the_most_likely_token():
    given = logits()
    for options in ({}, {"top_k": 3, "top_p": 0.5}):
        tokens, logprobs = draw(given, keys(6), temperature=0.0, **options)
        np.testing.assert_array_equal(tokens, np.argmax(given, axis=-1))
        np.testing.assert_allclose(logprobs, np.max(jax.nn.log_softmax(given), axis=-1), atol=1e-6)


def test_a_row_depends_on_its_own_logits_and_key_alone():
    given, row_keys = logits(), keys(6)
    options = {"temperature": 1.3, "top_k": 9, "top_p": 0.95}
    together = draw(given, row_keys, **options)
    for row in range(6):
        alone = draw(given[row : row + 1], row_keys[row : row + 1], **options)
        np.testing.assert_array_equal(alone[0][0], together[0][row])
    order = np.array([3, 1, 5, 0, 4, 2])
    np.testing.assert_array_equal(draw(given[order], row_keys[order], **options)[0],
                                  together[0][order])  # fmt: skip


def test_tokens_that_tie_with_the_last_are_kept():
    given = jnp.log(jnp.array([[0.4, 0.2, 0.2, 0.2]]))
    drawn = [
        {int(draw(given, keys(1, seed), **options)[0][0]) for seed in range(200)}
        for options in ({"top_k": 2}, {"top_p": 0.5})
    ]
    assert drawn == [{0, 1, 2, 3}, {0, 1, 2, 3}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((-0.1, 0, 1.0), "temperature is -0.1"),
        ((float("nan"), 0, 1.0), "temperature is nan"),
        ((1.0, -1, 1.0), "top_k is -1"),
        ((1.0, 0, 0.0), "top_p is 0.0"),
        ((1.0, 0, 1.5), "top_p is 1.5"),
    ],
)
def test_values_that_mean_nothing_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        sampling.check_options(*options)
    sampling.check_options(0.0, 0, 1.0)
