"""The decoder: masks, cache, observations, gradients, and the recorded values of a real model."""

import dataclasses
import functools
import json

from flax import nnx, traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from nspo_jax import model_files, models
from nspo_jax.models import heads

CONFIG = models.ModelConfig(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    rope_theta=1e4,
    rms_norm_eps=1e-5,
    tie_embeddings=False,
    max_length=32,
)
forward = jax.jit(models.forward, static_argnames=("model_config", "observe"))
logits = jax.jit(models.logits, static_argnames="model_config")


@pytest.fixture(scope="module")
def params():
    tree = models.init_params(CONFIG, jax.random.key(0))
    # Larger than a fresh model's, so that attention is far from uniform.
    return jax.tree.map(lambda x: x * 8 if x.ndim == 3 else x, tree)


@pytest.fixture(scope="module")
def tinystories(shared_data):
    return shared_data / "checkpoints" / "tinystories-260k"


def random_tokens(*shape):
    return jax.random.randint(jax.random.key(1), shape, 0, CONFIG.vocab_size)


def raw(site, x):
    return x


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


# ------------------------------------------------------------------------------------------------
# Parameters.
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
def test_parameter_paths_and_shapes(tied):
    config = dataclasses.replace(CONFIG, tie_embeddings=tied)
    shapes = {
        "embed/embedding": (61, 32),
        "layers/attention_norm/scale": (3, 32),
        "layers/attention/q/kernel": (3, 32, 24),
        "layers/attention/k/kernel": (3, 32, 12),
        "layers/attention/v/kernel": (3, 32, 12),
        "layers/attention/o/kernel": (3, 24, 32),
        "layers/mlp_norm/scale": (3, 32),
        "layers/mlp/gate/kernel": (3, 32, 48),
        "layers/mlp/up/kernel": (3, 32, 48),
        "layers/mlp/down/kernel": (3, 48, 32),
        "norm/scale": (32,),
    } | ({} if tied else {"head/kernel": (32, 61)})
    params = flat(models.init_params(config, jax.random.key(0)))
    assert {path: value.shape for path, value in params.items()} == shapes
    assert all(value.dtype == jnp.float32 for value in params.values())
    abstract = flat(models.abstract_params(config))
    assert {path: value.shape for path, value in abstract.items()} == shapes
    assert all(isinstance(value, jax.ShapeDtypeStruct) for value in abstract.values())


def test_init_scales_and_layers_differ():
    params = flat(models.init_params(CONFIG, jax.random.key(0)))
    assert np.std(params["layers/mlp/up/kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(params["layers/mlp/down/kernel"]) == pytest.approx(0.02 / 6**0.5, rel=0.05)
    assert np.all(params["norm/scale"] == 1)
    assert np.all(params["layers/mlp/up/kernel"][0] != params["layers/mlp/up/kernel"][1])


def test_nnx_module_works_on_its_own_and_bound(params):
    tokens, mask = random_tokens(2, 5), jnp.ones((2, 5), bool)
    model = models.Transformer(CONFIG, rngs=nnx.Rngs(0))
    assert model.logits(model(tokens, mask).hidden).shape == (2, 5, 61)
    bound = models.bind(CONFIG, params)
    assert flat(nnx.to_pure_dict(nnx.state(bound))).keys() == flat(params).keys()
    np.testing.assert_allclose(
        bound(tokens, mask).hidden, forward(CONFIG, params, tokens, mask).hidden, atol=1e-5
    )


# ------------------------------------------------------------------------------------------------
# Masks, cache, gradients, dtypes.
# ------------------------------------------------------------------------------------------------


def test_padding_anywhere_gives_what_the_row_gives_alone(params):
    tokens = random_tokens(4, 9)
    mask = jnp.array(
        [
            [1, 1, 1, 1, 1, 1, 1, 1, 1],
            [0, 0, 0, 1, 1, 1, 1, 1, 1],
            [1, 1, 1, 1, 0, 0, 0, 0, 0],
            [0, 1, 1, 0, 0, 1, 0, 1, 0],
        ],
        bool,
    )
    together = forward(CONFIG, params, tokens, mask).hidden
    for row in range(4):
        alone = tokens[row][mask[row]][None]
        expected = forward(CONFIG, params, alone, jnp.ones_like(alone, bool)).hidden[0]
        np.testing.assert_allclose(together[row][mask[row]], expected, atol=1e-5)


def test_future_tokens_do_not_matter(params):
    tokens, mask = random_tokens(1, 8), jnp.ones((1, 8), bool)
    before = forward(CONFIG, params, tokens, mask).hidden
    after = forward(CONFIG, params, tokens.at[0, 5].add(1), mask).hidden
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 5:] - after[:, 5:]).max() > 1e-2


def test_fully_masked_rows_have_finite_values_and_gradients(params):
    tokens = random_tokens(2, 5)
    mask = jnp.array([[False] * 5, [False, True, True, True, False]])

    def loss(params):
        cache = models.empty_cache(CONFIG, 2, 8)
        plain = models.forward(CONFIG, params, tokens, mask).hidden
        cached = models.forward(CONFIG, params, tokens, mask, cache).hidden
        return jnp.sum(models.logits(CONFIG, params, plain + cached) ** 2)

    value, gradients = jax.jit(jax.value_and_grad(loss))(params)
    assert np.isfinite(value)
    for path, gradient in flat(gradients).items():
        assert np.all(np.isfinite(gradient)) and np.any(gradient), path


def test_prefill_and_decode_equal_one_forward(params):
    tokens = random_tokens(3, 10)
    mask = jnp.ones((3, 10), bool).at[0, :3].set(False).at[1, 2].set(False).at[2, 7:].set(False)
    full = forward(CONFIG, params, tokens, mask).hidden
    output = forward(CONFIG, params, tokens[:, :6], mask[:, :6], models.empty_cache(CONFIG, 3, 12))
    parts = [output.hidden]
    for t in range(6, 10):
        step = slice(t, t + 1)
        output = forward(CONFIG, params, tokens[:, step], mask[:, step], output.cache)
        parts.append(output.hidden)
    hidden = jnp.concatenate(parts, axis=1)
    np.testing.assert_allclose(hidden[mask], full[mask], atol=1e-5)
    assert output.cache.length == 10
    np.testing.assert_array_equal(output.cache.positions, mask.sum(axis=1))
    np.testing.assert_array_equal(output.cache.valid[:, :10], mask)


def test_repeated_cache_decodes_each_copy_as_its_row(params):
    prompts, mask = random_tokens(2, 4), jnp.array([[True] * 4, [False, True, True, True]])
    cache = forward(CONFIG, params, prompts, mask, models.empty_cache(CONFIG, 2, 6)).cache
    repeated = models.repeat_cache(cache, 3)
    tokens, ones = jnp.arange(6)[:, None], jnp.ones((6, 1), bool)
    decoded = forward(CONFIG, params, tokens, ones, repeated).hidden
    rows = jnp.array([0, 0, 0, 1, 1, 1])
    full = forward(
        CONFIG,
        params,
        jnp.concatenate([prompts[rows], tokens], axis=1),
        jnp.concatenate([mask[rows], ones], axis=1),
    ).hidden
    np.testing.assert_allclose(decoded[:, 0], full[:, -1], atol=1e-5)


def test_bfloat16_compute_is_close_and_keeps_float32_where_it_matters(params):
    config = dataclasses.replace(CONFIG, compute_dtype="bfloat16")
    tokens, mask = random_tokens(2, 8), jnp.ones((2, 8), bool)
    expected = logits(CONFIG, params, forward(CONFIG, params, tokens, mask).hidden)
    output = forward(config, params, tokens, mask, models.empty_cache(config, 2, 8))
    assert output.hidden.dtype == output.cache.keys.dtype == jnp.bfloat16
    actual = logits(config, params, output.hidden)
    assert actual.dtype == jnp.float32
    assert 0 < np.abs(actual - expected).max() < 0.1 * np.abs(expected).max()

    def loss(params):
        return jnp.sum(models.forward(config, params, tokens, mask).hidden.astype(jnp.float32))

    gradients = jax.jit(jax.grad(loss))(params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(gradients))


def test_wrong_shapes_are_refused(params):
    tokens, mask = random_tokens(2, 8), jnp.ones((2, 8), bool)
    with pytest.raises(ValueError, match=r"tokens \(2, 8\) and mask \(2, 7\)"):
        models.forward(CONFIG, params, tokens, mask[:, 1:])
    with pytest.raises(ValueError, match="33 tokens for a model of max_length 32"):
        models.forward(CONFIG, params, random_tokens(1, 33), jnp.ones((1, 33), bool))
    with pytest.raises(ValueError, match="empty_cache"):
        models.forward(CONFIG, params, tokens, mask, models.empty_cache(CONFIG, 2, 7))
    with pytest.raises(ValueError, match="33 slots for a model of max_length 32"):
        models.empty_cache(CONFIG, 2, 33)


# ------------------------------------------------------------------------------------------------
# Observations.
# ------------------------------------------------------------------------------------------------


def test_observations_are_the_inputs_of_every_site(params):
    tokens, mask = random_tokens(2, 5), jnp.ones((2, 5), bool)
    output = forward(CONFIG, params, tokens, mask, observe=raw)
    seen, sites = output.observations, models.input_sites(CONFIG)
    assert {site: x.shape for site, x in seen.items()} == {
        "layers/attention/in": (3, 10, 32),
        "layers/attention/out": (3, 10, 24),
        "layers/mlp/in": (3, 10, 32),
        "layers/mlp/out": (3, 10, 48),
        "head/in": (10, 32),
    }
    assert seen.keys() == sites.keys()
    kernels = [path for paths in sites.values() for path in paths]
    assert sorted(kernels) == sorted(path for path in flat(params) if path.endswith("/kernel"))
    for site, paths in sites.items():
        assert all(flat(params)[path].shape[-2] == seen[site].shape[-1] for path in paths)

    # The MLP's output input is what gate and up make of its input, layer by layer.
    mlp = params["layers"]["mlp"]
    gate = jnp.einsum("lnd,ldf->lnf", seen["layers/mlp/in"], mlp["gate"]["kernel"])
    up = jnp.einsum("lnd,ldf->lnf", seen["layers/mlp/in"], mlp["up"]["kernel"])
    np.testing.assert_allclose(seen["layers/mlp/out"], jax.nn.silu(gate) * up, atol=1e-4)
    np.testing.assert_array_equal(seen["head/in"], output.hidden.reshape(10, 32))


def test_observe_may_reduce_inside_the_scan(params):
    tokens, mask = random_tokens(2, 5), jnp.ones((2, 5), bool).at[1, 3:].set(False)

    @jax.jit
    def second_moments(params, tokens, mask):
        weights = mask.reshape(-1, 1)
        return models.forward(
            CONFIG, params, tokens, mask, observe=lambda site, x: {"sum": x.T @ (weights * x)}
        ).observations

    moments = second_moments(params, tokens, mask)
    inputs = forward(CONFIG, params, tokens, mask, observe=raw).observations
    x = inputs["layers/mlp/out"][:, mask.reshape(-1)]
    expected = jnp.einsum("lni,lnj->lij", x, x)
    np.testing.assert_allclose(moments["layers/mlp/out"]["sum"], expected, rtol=1e-4, atol=1e-5)


def test_a_tied_head_is_no_site():
    config = dataclasses.replace(CONFIG, tie_embeddings=True)
    params = models.init_params(config, jax.random.key(0))
    tokens, mask = random_tokens(1, 4), jnp.ones((1, 4), bool)
    seen = forward(config, params, tokens, mask, observe=raw).observations
    assert "head/in" not in seen and seen.keys() == models.input_sites(config).keys()
    assert forward(config, params, tokens, mask).observations == {}


# ------------------------------------------------------------------------------------------------
# A trained checkpoint, against values recorded from transformers.
# ------------------------------------------------------------------------------------------------


def test_logits_and_logprobs_of_a_trained_model(tinystories):
    config, params = models.load_model(tinystories)
    expected = safetensors_numpy.load_file(tinystories / "expected.safetensors")
    ids = [expected[f"prompt_{i}.input_ids"] for i in range(4)]
    longest = max(map(len, ids))
    tokens = jnp.array([np.pad(row, (longest - len(row), 0)) for row in ids])
    mask = jnp.array([np.arange(longest) >= longest - len(row) for row in ids])
    actual = logits(config, params, forward(config, params, tokens, mask).hidden)
    for i, row in enumerate(ids):
        mine = actual[i, longest - len(row) :]
        np.testing.assert_allclose(mine, expected[f"prompt_{i}.logits"], atol=1e-4)
        logprobs = jax.nn.log_softmax(mine)[np.arange(len(row) - 1), row[1:]]
        np.testing.assert_allclose(logprobs, expected[f"prompt_{i}.token_logprobs"], atol=1e-4)


def test_logprobs_of_texts_of_a_trained_model(tinystories):
    config, params = models.load_model(tinystories)
    tokenizer = model_files.load_tokenizer(tinystories)
    expected = safetensors_numpy.load_file(tinystories / "expected.safetensors")
    prompts = json.loads((tinystories / "expected.json").read_text())["prompts"]
    texts = [prompt["prompt"] for prompt in prompts]
    found = models.text_logprobs(config, params, tokenizer, texts)
    for i, logprobs in enumerate(found):
        np.testing.assert_allclose(logprobs, expected[f"prompt_{i}.token_logprobs"], atol=1e-4)
    with pytest.raises(ValueError, match="The text '' has 1 tokens; expected 2 or more"):
        models.text_logprobs(config, params, tokenizer, ["Once", ""])


def test_padding_of_either_side_and_chunks_leave_logprobs_alone(tinystories, monkeypatch):
    config, params = models.load_model(tinystories)
    ids = np.arange(100, 120)
    whole = models.sequence_logprobs(config, params, ids[None], np.ones((1, 20), bool))
    left = np.pad(ids, (3, 2))[None]
    mask = np.pad(np.ones(20, bool), (3, 2))[None]
    monkeypatch.setattr(heads, "CHUNK_ELEMENTS", 4 * config.vocab_size)
    padded = models.sequence_logprobs(config, params, left, mask)
    np.testing.assert_allclose(padded[:, 3:22], whole, atol=1e-5)
    assert not padded[:, :3].any() and not padded[:, 22:].any()


def test_cached_greedy_decoding_of_a_trained_model(tinystories):
    config, params = models.load_model(tinystories)
    prompts = json.loads((tinystories / "expected.json").read_text())["prompts"]
    longest = max(len(prompt["input_ids"]) for prompt in prompts)
    rows = [prompt["input_ids"] for prompt in prompts]
    tokens = jnp.array([[0] * (longest - len(row)) + row for row in rows])
    mask = jnp.array([[False] * (longest - len(row)) + [True] * len(row) for row in rows])

    @functools.partial(jax.jit, static_argnames="steps")
    def decode(params, tokens, mask, steps):
        def step(carry, _):
            cache, hidden = carry
            token = jnp.argmax(models.logits(config, params, hidden), axis=-1)  # [batch]
            ones = jnp.ones((len(rows), 1), bool)
            output = models.forward(config, params, token[:, None], ones, cache)
            return (output.cache, output.hidden[:, -1]), token

        cache = models.empty_cache(config, len(rows), longest + steps)
        output = models.forward(config, params, tokens, mask, cache)
        _, ids = jax.lax.scan(step, (output.cache, output.hidden[:, -1]), length=steps)
        return ids.T  # [batch, steps]

    actual = decode(params, tokens, mask, 64)
    np.testing.assert_array_equal(actual, [prompt["greedy_ids"] for prompt in prompts])
