"""Fields of config.json that change nothing are read past: on torch they do not either."""

import logging

import pytest

from nspo_jax.models import hf_config

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
# What the ungated mirrors of Llama and Gemma, exports for other runtimes, trainers, and the configs
# of transformers 4 in full add.
MIRRORS = {"unsloth_fixed": True, "unsloth_version": "2025.3.1", "pad_token_id": 31}
EXPORTS = {"transformers.js_config": {"dtype": "q4", "use_external_data_format": True}}
TRAINERS = {
    "use_sdpa": True, "use_flash_attn": False, "max_sequence_length": 2048, "resid_pdrop": 0.1,
    "tokenizer_class": "LlamaTokenizer", "model_max_length": 2048, "gradient_checkpointing": True,
}  # fmt: skip
DUMP = {
    "is_decoder": False, "tie_encoder_decoder": False, "add_cross_attention": False,
    "temperature": 0.9, "top_p": 0.6, "top_k": 7, "do_sample": True, "num_beams": 3,
    "repetition_penalty": 1.3, "min_length": 5, "length_penalty": 2.0, "early_stopping": True,
    "no_repeat_ngram_size": 2, "num_return_sequences": 2, "suppress_tokens": [3],
    "forced_eos_token_id": 2, "sep_token_id": 4, "decoder_start_token_id": 1, "pruned_heads": {},
    "task_specific_params": {"a": 1}, "tf_legacy_loss": False, "use_bfloat16": False,
    "output_scores": False, "return_dict_in_generate": False, "diversity_penalty": 0.5,
    "typical_p": 0.9, "exponential_decay_length_penalty": [5, 1.1], "bad_words_ids": [[7]],
}  # fmt: skip
ADDED = {"mirrors": MIRRORS, "exports": EXPORTS, "trainers": TRAINERS, "dump": DUMP}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma", "gemma2", "gemma3_text"])
@pytest.mark.parametrize("name", ADDED)
def test_they_change_no_config(family, name, caplog):
    fields, added = SIZES | {"model_type": family}, ADDED[name]
    hf_config._tell.cache_clear()
    with caplog.at_level(logging.INFO, "nspo_jax"):
        assert hf_config.read_config(fields | added) == hf_config.read_config(fields)
        hf_config.read_config(fields | added)
    (line,) = caplog.messages  # once, and everything that is not this family's
    assert all(key in line for key in added.keys() - {"pad_token_id"})


def test_they_change_no_logits():
    torch = pytest.importorskip("torch", reason="torch is the independent check of the fields")
    transformers = pytest.importorskip("transformers")
    tokens = torch.arange(12)[None]

    def logits(added):
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**SIZES, **added)
        model = transformers.LlamaForCausalLM(config).eval()  # without dropout
        with torch.no_grad():
            return model(tokens).logits

    added = MIRRORS | EXPORTS | TRAINERS | DUMP
    del added["tokenizer_class"], added["pad_token_id"]  # checked, and zeroed, by the class itself
    assert torch.equal(logits(added), logits({}))


@pytest.mark.parametrize(
    "change",
    [
        {"logit_scale": 0.5}, {"embedding_multiplier": 12.0}, {"add_cross_attention": True},
        {"pruned_heads": {"0": [1]}}, {"partial_rotary_factor": 0.5}, {"rope_interleaved": True},
        {"num_local_experts": 8}, {"use_qk_norm": True}, {"quantization_config": {"bits": 4}},
        {"auto_map": {"AutoModel": "modeling.Own"}}, {"attention_sink": 4}, {"lm_head_norm": True},
    ],
)  # fmt: skip
def test_what_may_change_the_output_is_refused(change):
    ((name, value),) = change.items()
    fields = SIZES | {"model_type": "llama"} | MIRRORS
    with pytest.raises(ValueError) as error:
        hf_config.read_config(fields | change)
    assert f"{name} is {value!r}" in str(error.value) and "support" in str(error.value)


def test_an_unknown_field_says_how_to_proceed():
    with pytest.raises(ValueError, match="delete the line from the model's config.json"):
        hf_config.read_config(SIZES | {"model_type": "llama", "attention_sink": 4})


@pytest.mark.parametrize("name", ["logit_scale", "partial_rotary_factor", "residual_multiplier"])
def test_what_is_off_is_harmless(name):
    fields = SIZES | {"model_type": "llama"}
    assert hf_config.read_config(fields | {name: 1.0}) == hf_config.read_config(fields)
