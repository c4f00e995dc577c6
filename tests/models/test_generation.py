"""Rollouts: the sampler against a full forward pass, stopping, groups, randomness."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax import models
from nspo_jax.models import generation
from nspo_jax.rl import train_step

CONFIG = models.ModelConfig(
    vocab_size=13, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False,
    max_length=64,
)  # fmt: skip
STOP = (2, 5)


@pytest.fixture(scope="module")
def params():
    scaled = models.init_params(CONFIG, jax.random.key(0))
    scaled["head"]["kernel"] *= 40.0  # far from uniform, so that a wrong context shows
    return scaled


def prompts():
    tokens = np.array([[0, 0, 3, 4], [6, 7, 8, 9], [0, 1, 1, 3]], np.int32)
    mask = np.array([[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]], bool)
    return jnp.asarray(tokens), jnp.asarray(mask)


def sample(params, seed=0, **changes):
    options = {"samples": 4, "max_new_tokens": 10, "stop_ids": STOP, **changes}
    return generation.generate(CONFIG, params, *prompts(), jax.random.key(seed), **options)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_logprobs_equal_the_training_forward(params, temperature):
    done = sample(params, temperature=temperature)
    tokens, mask = (jnp.repeat(part, 4, axis=0) for part in prompts())
    batch = train_step.RolloutBatch(
        tokens, mask, done.tokens, done.mask, done.logprobs, jnp.zeros(len(tokens))
    )
    expected = models.completion_logprobs(CONFIG, params, batch, temperature)
    np.testing.assert_allclose(
        np.where(done.mask, expected, 0.0), np.where(done.mask, done.logprobs, 0.0), atol=2e-5
    )


def test_completions_end_with_their_first_stop_token(params):
    done = sample(params, samples=32)
    tokens, mask = np.asarray(done.tokens), np.asarray(done.mask)
    ended = 0
    for row, live in zip(tokens, mask, strict=True):
        length = live.sum()
        assert live[:length].all()  # right-padded
        stops = np.flatnonzero(np.isin(row[:length], STOP))
        assert len(stops) == 0 and length == 10 or stops.tolist() == [length - 1]
        ended += len(stops)
    assert 0 < ended < len(tokens) * 2


def test_randomness_follows_the_key_and_differs_between_samples(params):
    first, again, other = sample(params), sample(params), sample(params, seed=1)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.tokens != other.tokens).any()
    assert len(np.unique(np.asarray(first.tokens)[:4], axis=0)) > 1


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 20, "top_p": 0.9},
    ],
    ids=["greedy", "sampled", "top-k and top-p"],
)
def test_a_row_gets_what_it_gets_alone(shared_data, options):
    """Prompts of four lengths in one batch of a trained model, against each without padding."""
    directory = shared_data / "checkpoints" / "tinystories-260k"
    config, params = models.load_model(directory)
    rows = [
        p["input_ids"] for p in json.loads((directory / "expected.json").read_text())["prompts"]
    ]
    assert len({len(row) for row in rows}) > 2
    longest = max(map(len, rows))
    tokens = np.array([[0] * (longest - len(row)) + row for row in rows], np.int32)
    mask = np.array([[False] * (longest - len(row)) + [True] * len(row) for row in rows])
    keys = jax.random.split(jax.random.key(7), 2 * len(rows))
    options = {"samples": 2, "max_new_tokens": 40, "stop_ids": (2,), **options}
    together = generation.generate(config, params, tokens, mask, keys, **options)
    again = generation.generate(config, params, tokens, mask, jax.random.key(7), **options)
    np.testing.assert_array_equal(together.tokens, again.tokens)  # one key is split into these
    for index, row in enumerate(rows):
        place = slice(2 * index, 2 * index + 2)
        row = np.array([row], np.int32)
        ones = np.ones(row.shape, bool)
        alone = generation.generate(config, params, row, ones, keys[place], **options)
        np.testing.assert_array_equal(alone.tokens, together.tokens[place])
        np.testing.assert_array_equal(alone.mask, together.mask[place])
        np.testing.assert_allclose(alone.logprobs, together.logprobs[place], atol=2e-5)
        streamed = list(
            generation.stream(
                config, params, row[0], ones[0], keys[2 * index],
                **{name: value for name, value in options.items() if name != "samples"},
            )
        )  # fmt: skip
        np.testing.assert_array_equal(streamed, alone.tokens[0][alone.mask[0]])


def test_every_step_draws_anew(params):
    """Uniform logits: a token equals the one before it as often as chance says."""
    uniform = {**params, "head": {"kernel": jnp.zeros_like(params["head"]["kernel"])}}
    done = generation.generate(
        CONFIG, uniform, *prompts(), jax.random.key(4), samples=100, max_new_tokens=10, stop_ids=()
    )
    tokens = np.asarray(done.tokens)
    assert abs(np.mean(tokens[:, 1:] == tokens[:, :-1]) - 1 / 13) < 0.03  # 6 standard deviations


@pytest.mark.parametrize(
    ("options", "message"), [({"top_p": 0.0}, "top_p"), ({"top_k": -3}, "top_k")]
)
def test_a_filter_that_means_nothing_is_named(params, options, message):
    with pytest.raises(ValueError, match=f"{message} is"):
        sample(params, **options)


def test_samples_follow_the_models_distribution(params):
    """The first token of 4000 samples against the exact probabilities (chi-squared)."""
    tokens, mask = prompts()
    done = generation.generate(
        CONFIG, params, tokens[:1], mask[:1], jax.random.key(3),
        samples=4000, max_new_tokens=1, stop_ids=STOP,
    )  # fmt: skip
    hidden = models.forward(CONFIG, params, tokens[:1], mask[:1]).hidden[0, -1]
    expected = 4000 * np.asarray(jax.nn.softmax(models.logits(CONFIG, params, hidden)))
    counts = np.bincount(np.asarray(done.tokens)[:, 0], minlength=13)
    statistic = np.sum((counts - expected) ** 2 / np.maximum(expected, 1e-9))
    assert statistic < 32.9  # 0.1 % point at 12 degrees of freedom
