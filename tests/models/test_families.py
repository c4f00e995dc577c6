"""Every family against transformers on torch: random small models, both directions.

The models are drawn far from their initialisation (large weights, norms away from one), so that
attention is not uniform and a missing bias, norm, window or soft cap shows.
"""

import copy
import dataclasses
import json

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from nspo_jax import models
from nspo_jax.models import generation, hf

torch = pytest.importorskip("torch", reason="torch is the independent check of the models")
transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 67, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip
TWO_ROPES = {
    "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
    "sliding_attention": {"rope_theta": 1e3, "rope_type": "default"},
}
ALTERNATING = ["sliding_attention", "full_attention"] * 2
CASES = {
    "llama2": ("llama", {"num_key_value_heads": 4}),
    "llama3": ("llama", {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
    "llama3.1": ("llama", {"head_dim": 6, "rope_parameters": LLAMA3}),
    "llama3.2": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "mistral 0.1": ("mistral", {"sliding_window": 4}),
    "mistral 0.3": (
        "mistral", {"sliding_window": None, "head_dim": 6, "rope_parameters": {
            "rope_theta": 1e6, "rope_type": "default"}},
    ),
    "qwen2.5": ("qwen2", {}),
    "qwen2.5 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2.5 windows": (
        "qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "qwen3": ("qwen3", {"head_dim": 12}),
    "qwen3 tied": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "gemma": ("gemma", {"head_dim": 10, "num_key_value_heads": 1}),
    "gemma, legacy name of its activation": ("gemma", {"head_dim": 10, "hidden_act": "gelu"}),
    "gemma2": (
        "gemma2", {"head_dim": 10, "sliding_window": 4, "query_pre_attn_scalar": 7,
                   "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "gemma3_text", {"head_dim": 10, "sliding_window": 4, "query_pre_attn_scalar": 7,
                        "layer_types": ALTERNATING, "rope_parameters": TWO_ROPES},
    ),
}  # fmt: skip
FIRST = {"llama": "llama3.1", "mistral": "mistral 0.1", "qwen2": "qwen2.5", "qwen3": "qwen3",
         "gemma": "gemma", "gemma2": "gemma2", "gemma3_text": "gemma3"}  # fmt: skip


def make(case, architecture="AutoModelForCausalLM", **changes):
    """A random model of transformers, of this file's size."""
    model_type, fields = CASES[case]
    return random_model(model_type, {**SMALL, **fields, **changes}, architecture)


def random_model(model_type, fields, architecture="AutoModelForCausalLM"):
    """Far from its initialisation. Eager attention: the fast one knows no soft cap."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **fields)
    model = getattr(transformers, architecture).from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """case -> (transformers' model, its directory), made on first use."""
    made = {}

    def get(case):
        if case not in made:
            model, directory = make(case), tmp_path_factory.mktemp("model")
            model.save_pretrained(directory)
            made[case] = model, directory
        return made[case]

    return get


def batch():
    """Rows without padding, padded on the left, and on the right."""
    tokens = np.random.default_rng(0).integers(3, SMALL["vocab_size"], (3, 12))
    mask = np.ones((3, 12), bool)
    mask[1, :5] = False
    mask[2, 7:] = False
    return np.where(mask, tokens, 0), mask


def their_inputs(tokens, mask):
    return {
        "input_ids": torch.tensor(tokens),
        "attention_mask": torch.tensor(mask.astype(np.int64)),
        "position_ids": torch.tensor(np.maximum(np.cumsum(mask, axis=1) - 1, 0)),
    }


def their_logits(model, tokens, mask):
    with torch.no_grad():
        return model(**their_inputs(tokens, mask)).logits.float().numpy()


def our_logits(config, params, tokens, mask):
    @jax.jit
    def run(params, tokens, mask):
        hidden = models.forward(config, params, tokens, mask).hidden
        return models.logits(config, params, hidden)

    return np.asarray(run(params, jnp.asarray(tokens), jnp.asarray(mask)))


# ------------------------------------------------------------------------------------------------
# What the models compute.
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_logits_with_padding_on_either_side(saved, case):
    theirs, directory = saved(case)
    config, params = models.load_model(directory)
    tokens, mask = batch()
    expected = their_logits(theirs, tokens, mask)
    actual = our_logits(config, params, tokens, mask)
    assert np.abs(expected[mask]).max() > 2
    np.testing.assert_allclose(actual[mask], expected[mask], atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_greedy_generation_through_the_cache(saved, case):
    """Past the window, from prompts of different lengths padded on the left."""
    theirs, directory = saved(case)
    config, params = models.load_model(directory)
    tokens, mask = (array[:2] for array in batch())
    new = 12
    with torch.no_grad():
        generated = theirs.generate(
            input_ids=torch.tensor(tokens), attention_mask=torch.tensor(mask.astype(np.int64)),
            max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0,
        ).numpy()[:, tokens.shape[1] :]  # fmt: skip
    done = generation.generate(
        config, params, jnp.asarray(tokens, jnp.int32), jnp.asarray(mask), jax.random.key(0),
        max_new_tokens=new, stop_ids=(SMALL["vocab_size"],), temperature=0.0,
    )  # fmt: skip
    assert len({*generated.reshape(-1)}) > 2
    np.testing.assert_array_equal(done.tokens, generated)


@pytest.mark.parametrize("case", ["llama3.1", "qwen2.5 windows", "qwen3", "gemma", "gemma2",
                                  "gemma3"])  # fmt: skip
def test_gradients_of_the_loss(saved, case):
    """One family of each kind of attention: plain, windowed, normalised, soft-capped, and both
    normalised and windowed."""
    theirs, directory = saved(case)
    config, params = models.load_model(directory)
    tokens, mask = batch()
    targets = np.where(mask[:, 1:] & mask[:, :-1], tokens[:, 1:], -100)

    theirs.zero_grad()
    logits = theirs(**their_inputs(tokens, mask)).logits[:, :-1]
    torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), torch.tensor(targets).reshape(-1), ignore_index=-100
    ).backward()
    expected = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}

    def loss(params):
        hidden = models.forward(config, params, jnp.asarray(tokens), jnp.asarray(mask)).hidden
        logprobs = models.token_logprobs(
            models.logits(config, params, hidden[:, :-1]), jnp.maximum(targets, 0)
        )
        return -jnp.sum(jnp.where(targets >= 0, logprobs, 0.0)) / np.sum(targets >= 0)

    gradients = jax.jit(jax.grad(loss))(params)
    actual = as_tensors(config, gradients)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = np.abs(gradient).max()
        assert scale > 1e-4, name
        np.testing.assert_allclose(actual[name], gradient, atol=1e-4 * scale, err_msg=name)


def as_tensors(config, tree):
    """A tree shaped like parameters, by transformers' names and layouts."""
    leaves = traverse_util.flatten_dict(tree, sep="/")
    tensors = {}
    for name, (path, layer, _) in hf.expected_tensors(config).items():
        value = np.asarray(leaves[path] if layer is None else leaves[path][layer])
        tensors[name] = value.T if hf.is_transposed(path) else value
    return tensors


@pytest.mark.parametrize("family", FIRST)
def test_bfloat16_compute_stays_close_to_transformers_in_bfloat16(saved, family):
    """Both round; ours must not be further from float32 than a few of bfloat16's steps."""
    theirs, directory = saved(FIRST[family])
    config, params = models.load_model(directory)
    tokens, mask = batch()
    exact = our_logits(config, params, tokens, mask)[mask]
    half = dataclasses.replace(config, compute_dtype="bfloat16")
    actual = our_logits(half, params, tokens, mask)[mask]
    reference = their_logits(copy.deepcopy(theirs).to(torch.bfloat16), tokens, mask)
    error, their_error = np.abs(actual - exact).mean(), np.abs(reference[mask] - exact).mean()
    assert 0 < error < 1.5 * their_error


# ------------------------------------------------------------------------------------------------
# Files.
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_an_exported_model_is_loaded_by_transformers(saved, case, tmp_path):
    theirs, directory = saved(case)
    config, params = models.load_model(directory)
    models.save_model(tmp_path / "ours", config, params)
    assert models.read_config(json.loads((tmp_path / "ours/config.json").read_text())) == config
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "ours", attn_implementation="eager"
    ).eval()
    tokens, mask = batch()
    np.testing.assert_array_equal(
        their_logits(reloaded, tokens, mask), their_logits(theirs, tokens, mask)
    )


@pytest.mark.parametrize("family", FIRST)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_import_then_export_is_bit_identical(family, dtype, tmp_path):
    theirs = make(FIRST[family]).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="30KB")
    assert len(list((tmp_path / "theirs").glob("model-*.safetensors"))) > 1
    config, params = models.load_model(tmp_path / "theirs")
    models.save_model(
        tmp_path / "ours", config, params, like=tmp_path / "theirs", dtype=dtype, shard_bytes=30_000
    )
    for name in ("config.json", "generation_config.json"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text()
    before, after = read_all(tmp_path / "theirs"), read_all(tmp_path / "ours")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        np.testing.assert_array_equal(after[name], tensor)
    index = json.loads((tmp_path / "ours/model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == before.keys()
    for file in {*index["weight_map"].values()}:
        names = {name for name, where in index["weight_map"].items() if where == file}
        assert safetensors_numpy.load_file(tmp_path / "ours" / file).keys() == names


def read_all(directory):
    tensors = {}
    for file in directory.glob("model*.safetensors"):
        tensors |= safetensors_numpy.load_file(file)
    return tensors


def test_a_tied_model_may_store_its_head(saved, tmp_path):
    """Qwen3-0.6B is published so."""
    _, directory = saved("qwen3 tied")
    config, params = models.load_model(directory)
    tensors = read_all(directory)
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    safetensors_numpy.save_file(tensors, tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, models.load_model(tmp_path)[1], params)
    tensors["lm_head.weight"][3, 4] += 1
    safetensors_numpy.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"extra lm_head\.weight"):
        models.load_model(tmp_path)


# ------------------------------------------------------------------------------------------------
# Scalar heads.
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FIRST)
def test_scores_are_those_of_a_classifier_with_one_label(family, tmp_path):
    theirs = make(FIRST[family], "AutoModelForSequenceClassification", num_labels=1)
    theirs.save_pretrained(tmp_path / "theirs")
    config, params = models.load_model(tmp_path / "theirs")
    assert config.head == "scalar" and "head" not in params
    tokens, mask = batch()
    with torch.no_grad():
        expected = theirs(**their_inputs(tokens, mask)).logits.numpy()[:, 0]
    actual = models.scores(config, params, jnp.asarray(tokens), jnp.asarray(mask))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-4)

    models.save_model(tmp_path / "ours", config, params, like=tmp_path / "theirs")
    reloaded = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "ours", attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        again = reloaded(**their_inputs(tokens, mask)).logits.numpy()[:, 0]
    np.testing.assert_array_equal(again, expected)


@pytest.mark.parametrize("family", FIRST)
def test_a_language_model_becomes_a_reward_model(saved, family, tmp_path):
    _, directory = saved(FIRST[family])
    config, params = models.load_model(directory)
    config, params = models.with_scalar_head(config, params, jax.random.key(0))
    models.save_model(tmp_path / "reward", config, params, like=directory)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "reward", attn_implementation="eager"
    ).eval()
    tokens, mask = batch()
    with torch.no_grad():
        expected = theirs(**their_inputs(tokens, mask)).logits.numpy()[:, 0]
    np.testing.assert_allclose(
        models.scores(config, params, jnp.asarray(tokens), jnp.asarray(mask)), expected, atol=1e-4
    )
    hidden = models.forward(config, params, jnp.asarray(tokens), jnp.asarray(mask)).hidden
    values = models.values(config, params, hidden)  # [batch, time]
    np.testing.assert_allclose(values[0, -1], expected[0], atol=1e-4)
    np.testing.assert_allclose(values[2, 6], expected[2], atol=1e-4)
