"""ModelConfig: validation, and both spellings of Hugging Face's config.json."""

import dataclasses

import pytest

from nspo_jax.models import architecture, hf_config

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
CONFIG = architecture.ModelConfig(
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
        {"model_type": "phi3"},
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


# ------------------------------------------------------------------------------------------------
# Other families, as their published config.json spell things.
# ------------------------------------------------------------------------------------------------

GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False,
    "attn_logit_softcapping": None, "cache_implementation": "hybrid", "dtype": "bfloat16",
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152, "intermediate_size": 6912, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26,
    "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
    "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144,
}  # fmt: skip
QWEN2 = {
    "model_type": "qwen2", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50, "rms_norm_eps": 1e-6,
    "max_position_embeddings": 64, "max_window_layers": 1, "sliding_window": 8,
    "use_sliding_window": False,
}  # fmt: skip


def test_gemma3_in_both_spellings():
    config = hf_config.read_config(GEMMA3)
    assert (config.rope_theta, config.local_rope_theta, config.query_scale) == (1e6, 1e4, 256)
    assert config.windows == ((512,) * 5 + (0,)) * 4 + (512, 512) and config.tie_embeddings
    new = {k: v for k, v in GEMMA3.items() if "rope" not in k and "pattern" not in k} | {
        "_sliding_window_pattern": 6,
        "layer_types": [
            "full_attention" if window == 0 else "sliding_attention" for window in config.windows
        ],
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "default"},
            "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
        },
        "use_bidirectional_attention": False,
    }
    assert hf_config.read_config(new) == config
    assert hf_config.read_config(hf_config.write_config(config)) == config


def test_a_stretched_gemma3_scales_its_full_layers_alone():
    scaled = GEMMA3 | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    config = hf_config.read_config(scaled)
    assert config.rope_scaling == architecture.RopeScaling("linear", 8.0)
    assert hf_config.read_config(hf_config.write_config(config)) == config


def test_windows_count_only_where_they_are_used():
    assert hf_config.read_config(QWEN2).windows == ()
    used = hf_config.read_config(QWEN2 | {"use_sliding_window": True})
    assert used.windows == (0, 8, 8, 8)
    assert hf_config.read_config(hf_config.write_config(used)) == used


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        (GEMMA3, {"model_type": "gemma3"}),
        (GEMMA3, {"attn_logit_softcapping": 50.0}),
        (GEMMA3, {"use_bidirectional_attention": True}),
        (GEMMA3, {"layer_types": ["full_attention"]}),
        (GEMMA3, {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2.0}}}),
        (GEMMA3, {"hidden_activation": "gelu"}),
        (QWEN2, {"use_sliding_window": True, "sliding_window": "eight"}),
        (QWEN2, {"layer_types": ["sliding_attention"] * 4}),
        (QWEN2, {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
        (QWEN2, {"num_key_value_heads": None}),
    ],
)
def test_an_unsupported_field_of_another_family_is_named(fields, change):
    name, value = list(change.items())[-1]
    with pytest.raises(ValueError) as error:
        hf_config.read_config(fields | change)
    assert name in str(error.value)
    assert value is None or repr(value) in str(error.value)


def published(**changes):
    """What all of these say, in transformers 4's spelling."""
    fields = {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
        "initializer_range": 0.02, "torch_dtype": "bfloat16", "transformers_version": "4.40.0",
        "use_cache": True, "hidden_act": "silu", "rope_scaling": None,
    }  # fmt: skip
    return fields | changes


PUBLISHED = {
    "Llama-2-7b-hf": published(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=4096,
        intermediate_size=11008, max_position_embeddings=4096, num_attention_heads=32,
        num_hidden_layers=32, num_key_value_heads=32, pretraining_tp=1, rms_norm_eps=1e-5,
        tie_word_embeddings=False, vocab_size=32000, max_length=4096, pad_token_id=0,
    ),
    "Llama-3.1-8B-Instruct": published(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=4096,
        intermediate_size=14336, max_position_embeddings=131072, mlp_bias=False,
        num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, pretraining_tp=1,
        rms_norm_eps=1e-5, rope_theta=500000.0, tie_word_embeddings=False, vocab_size=128256,
        eos_token_id=[128001, 128008, 128009],
        rope_scaling={"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    ),
    "Mistral-7B-v0.1": published(
        architectures=["MistralForCausalLM"], model_type="mistral", hidden_size=4096,
        intermediate_size=14336, max_position_embeddings=32768, num_attention_heads=32,
        num_hidden_layers=32, num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=10000.0,
        sliding_window=4096, tie_word_embeddings=False, vocab_size=32000,
    ),
    "Mistral-7B-Instruct-v0.2": published(
        architectures=["MistralForCausalLM"], model_type="mistral", hidden_size=4096,
        intermediate_size=14336, max_position_embeddings=32768, num_attention_heads=32,
        num_hidden_layers=32, num_key_value_heads=8, rms_norm_eps=1e-5, rope_theta=1000000.0,
        sliding_window=None, tie_word_embeddings=False, vocab_size=32000,
    ),
    "gemma-2b": published(
        architectures=["GemmaForCausalLM"], model_type="gemma", head_dim=256, hidden_act="gelu",
        hidden_activation=None, hidden_size=2048, intermediate_size=16384,
        max_position_embeddings=8192, num_attention_heads=8, num_hidden_layers=18,
        num_key_value_heads=1, rms_norm_eps=1e-6, rope_theta=10000.0, vocab_size=256000,
    ),
    "Qwen3-8B": published(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", head_dim=128, hidden_size=4096,
        intermediate_size=12288, max_position_embeddings=40960, max_window_layers=36,
        num_attention_heads=32, num_hidden_layers=36, num_key_value_heads=8, rms_norm_eps=1e-6,
        rope_theta=1000000, sliding_window=None, tie_word_embeddings=False,
        use_sliding_window=False, vocab_size=151936,
    ),
    "gemma-2-2b-it": published(
        architectures=["Gemma2ForCausalLM"], model_type="gemma2", attn_logit_softcapping=50.0,
        cache_implementation="hybrid", final_logit_softcapping=30.0, head_dim=256,
        hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", hidden_size=2304,
        intermediate_size=9216, max_position_embeddings=8192, num_attention_heads=8,
        num_hidden_layers=26, num_key_value_heads=4, query_pre_attn_scalar=256,
        rms_norm_eps=1e-6, rope_theta=10000.0, sliding_window=4096, vocab_size=256000,
    ),
    "gemma-2-9b": published(
        architectures=["Gemma2ForCausalLM"], model_type="gemma2", attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0, head_dim=256, hidden_act="gelu_pytorch_tanh",
        hidden_activation="gelu_pytorch_tanh", hidden_size=3584, intermediate_size=14336,
        max_position_embeddings=8192, num_attention_heads=16, num_hidden_layers=42,
        num_key_value_heads=8, query_pre_attn_scalar=256, rms_norm_eps=1e-6, rope_theta=10000.0,
        sliding_window=4096, sliding_window_size=4096, vocab_size=256000,
        _attn_implementation_autoset=True,
    ),
}  # fmt: skip
EXPECTED = {
    "Llama-2-7b-hf": {"num_kv_heads": 32, "head_dim": 128, "rope_scaling": None, "windows": ()},
    "Llama-3.1-8B-Instruct": {
        "rope_theta": 5e5, "rope_scaling": architecture.RopeScaling("llama3", 8.0, 1.0, 4.0, 8192),
    },
    "Mistral-7B-v0.1": {"windows": (4096,) * 32, "head_dim": 128, "rope_theta": 1e4},
    "Mistral-7B-Instruct-v0.2": {"windows": (), "head_dim": 128, "rope_theta": 1e6},
    "gemma-2b": {
        "activation": "gelu_tanh", "norm_offset": True, "scale_embedding": True, "head_dim": 256,
        "post_norms": False, "query_scale": None, "tie_embeddings": True, "windows": (),
    },
    "Qwen3-8B": {"qk_norm": True, "qkv_bias": False, "head_dim": 128, "windows": ()},
    "gemma-2-2b-it": {
        "windows": (4096, 0) * 13, "query_scale": 256, "attention_softcap": 50.0,
        "logits_softcap": 30.0, "tie_embeddings": True, "local_rope_theta": None,
    },
    "gemma-2-9b": {"windows": (4096, 0) * 21, "activation": "gelu_tanh", "norm_offset": True},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_mean_what_they_say(name):
    config = hf_config.read_config(PUBLISHED[name])
    assert {field: getattr(config, field) for field in EXPECTED[name]} == EXPECTED[name]
    assert hf_config.read_config(hf_config.write_config(config)) == config


def test_a_mistral_without_the_field_has_transformers_window():
    fields = {k: v for k, v in PUBLISHED["Mistral-7B-v0.1"].items() if k != "sliding_window"}
    assert hf_config.read_config(fields).windows == (4096,) * 32


def test_a_base_inside_the_scaling_counts():
    """transformers lets it win over the field beside it."""
    scaled = OLD | {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7e3}}
    assert hf_config.read_config(scaled).rope_theta == 7e3


def test_two_spellings_must_agree():
    linear = {"rope_type": "linear", "factor": 4.0}
    with pytest.raises(ValueError, match="supported is one of them, or the same in both"):
        hf_config.read_config(NEW | {"rope_scaling": linear})
    both = NEW | {"rope_scaling": linear, "rope_parameters": {"rope_theta": 5e5, **linear}}
    assert hf_config.read_config(both).rope_scaling == architecture.RopeScaling("linear", 4.0)


@pytest.mark.parametrize(
    ("fields", "change"),
    [
        (OLD, {"rope_local_base_freq": 1e4}),
        (OLD, {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
        (OLD, {"rope_scaling": "linear"}),
        (OLD, {"hidden_size": "64"}),
        (OLD, {"num_hidden_layers": 2.0}),
        (OLD, {"num_key_value_heads": 0}),
        (GEMMA3, {"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}),
        (PUBLISHED["gemma-2-9b"], {"sliding_window_size": 1024}),
        (PUBLISHED["gemma-2b"], {"hidden_activation": "gelu"}),
        (PUBLISHED["gemma-2b"], {"hidden_act": "gelu_new"}),
        (PUBLISHED["Mistral-7B-v0.1"], {"sliding_window": 0}),
        (PUBLISHED["Mistral-7B-v0.1"], {"layer_types": ["full_attention"] * 32}),
    ],
)
def test_a_field_in_the_wrong_place_or_of_the_wrong_kind_is_named(fields, change):
    ((name, value),) = change.items()
    with pytest.raises(ValueError) as error:
        hf_config.read_config(fields | change)
    assert name in str(error.value) and repr(value) in str(error.value)


def test_a_classifier_must_have_one_label():
    fields = OLD | {"architectures": ["LlamaForSequenceClassification"]}
    assert hf_config.read_config(fields | {"num_labels": 1}).head == "scalar"
    assert hf_config.read_config(fields | {"id2label": {"0": "LABEL_0"}}).head == "scalar"
    for labels in ({}, {"id2label": {"0": "good", "1": "bad", "2": "ugly"}}):
        with pytest.raises(ValueError, match=f"has {len(labels) and 3 or 2} labels"):
            hf_config.read_config(fields | labels)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"windows": (4, 0)}, r"windows is \(4, 0\): give one number for each of 5 layers"),
        ({"windows": (4, 0, 8, 0, 0)}, "the same positive window"),
        ({"activation": "relu"}, "activation is 'relu': give one of silu, gelu_tanh"),
        ({"head": "value"}, "head is 'value': give one of logits, scalar"),
        ({"remat": "all"}, "remat is 'all': give one of layer, dots, none"),
        ({"attention_softcap": 0.0}, "attention_softcap is 0.0: give a positive number"),
    ],
)
def test_a_bad_switch_is_named_with_the_fix(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)


@pytest.mark.parametrize(
    "numbers",
    [
        ("linear", 0.5),
        ("linear", "8"),
        ("llama3", 8.0, 4.0, 1.0, 64),
        ("llama3", 8.0),
        ("yarn", 2.0),
    ],
)
def test_a_bad_rope_scaling_is_refused(numbers):
    with pytest.raises(ValueError, match="rope scaling"):
        architecture.RopeScaling(*numbers)
