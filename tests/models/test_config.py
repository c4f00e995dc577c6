"""ModelConfig: validation, and both spellings of Hugging Face's config.json."""

import dataclasses

import pytest

from nspo_jax.models import config as config_lib
from nspo_jax.models import hf_config

OLD = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 64,
    "initializer_range": 0.02,
    "intermediate_size": 172,
    "max_position_embeddings": 512,
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 5,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 5e5,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "use_cache": True,
    "vocab_size": 512,
}
NEW = {k: v for k, v in OLD.items() if k not in ("rope_scaling", "rope_theta", "torch_dtype")} | {
    "dtype": "float32",
    "head_dim": 8,
    "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"},
    "transformers_version": "5.23.0",
}
CONFIG = config_lib.ModelConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=172,
    num_layers=5,
    num_heads=8,
    num_kv_heads=4,
    head_dim=8,
    rope_theta=5e5,
    rms_norm_eps=1e-5,
    tie_embeddings=True,
    max_length=512,
)


def test_both_spellings_give_the_same_config():
    assert hf_config.read_config(OLD) == CONFIG
    assert hf_config.read_config(NEW) == CONFIG


def test_absent_fields_mean_what_transformers_says():
    optional = ("num_key_value_heads", "rope_theta", "rope_scaling", "tie_word_embeddings")
    config = hf_config.read_config({k: v for k, v in OLD.items() if k not in optional})
    assert (config.num_kv_heads, config.rope_theta, config.tie_embeddings) == (8, 1e4, False)


def test_to_hf_is_read_back():
    assert hf_config.read_config(hf_config.write_config(CONFIG)) == CONFIG


def test_config_is_hashable():
    assert hash(CONFIG) == hash(dataclasses.replace(CONFIG))


@pytest.mark.parametrize("base", [OLD, NEW])
@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "mistral"},
        {"architectures": ["LlamaForTokenClassification"]},
        {"architectures": ["Qwen2ForCausalLM"]},
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0, "beta": 1}},
        {"sliding_window": 4096},
        {"quantization_config": {"bits": 4}},
    ],
)
def test_an_unsupported_field_is_named_with_its_value(base, change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError) as error:
        hf_config.read_config(base | change)
    assert name in str(error.value) and repr(value) in str(error.value)
    assert "support" in str(error.value).lower()


def test_missing_fields_are_all_named():
    with pytest.raises(ValueError, match="vocab_size, rms_norm_eps missing"):
        fields = {k: v for k, v in OLD.items() if k not in ("vocab_size", "rms_norm_eps")}
        hf_config.read_config(fields)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_layers": 0}, "num_layers is 0: give a positive integer"),
        ({"vocab_size": 512.0}, "vocab_size is 512.0"),
        ({"rope_theta": -1.0}, "rope_theta is -1.0"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
        ({"tie_embeddings": 1}, "tie_embeddings is 1"),
        ({"num_kv_heads": 3}, "num_kv_heads is 3, which does not divide num_heads 8"),
        ({"hidden_size": 60}, "hidden_size is 60, not a multiple of num_heads 8"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"compute_dtype": "fp8"}, "compute_dtype is 'fp8': give one of float32, bfloat16"),
    ],
)
def test_a_bad_value_is_named_with_the_fix(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
