"""Tokenizers against embeddings, Hub names, and damaged files of a model's directory."""

import json
import logging

import jax
import numpy as np
import pytest
import tokenizers
import transformers

from nspo_jax import model_files, models
from nspo_jax.data import chat

CHATML = (
    "{% for m in messages %}<|start|>{{ m['role'] }}:{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant:{% endif %}"
)
SIZES = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}  # fmt: skip


def make(directory, rows, special=("<|start|>", "<|end|>"), template=None, end=None):
    """256 byte tokens and special ones, beside a config with so many rows."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE({letter: index for index, letter in enumerate(alphabet)}, [])
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(list(special))
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=model, eos_token=end, chat_template=template
    )
    made.save_pretrained(directory)
    (directory / "config.json").write_text(json.dumps(SIZES | {"vocab_size": rows}))
    return directory


# ------------------------------------------------------------------- ids without a row


@pytest.mark.parametrize(
    ("rows", "options", "named"),
    [
        (256, {"template": CHATML}, r"<\|start\|> \(256\), <\|end\|> \(257\)"),
        (257, {"template": CHATML}, r"none for <\|end\|> \(257\)"),
        (257, {"end": "<|end|>"}, r"none for <\|end\|> \(257\)"),  # no template, but it ends texts
        (100, {}, r"and \d+ more"),  # another model's tokenizer
    ],
)
def test_ids_without_a_row_are_refused_wherever_a_model_is_opened(tmp_path, rows, options, named):
    directory = make(tmp_path, rows, **options)
    for open_ in (models.load_config, models.load_model, chat.load_format, chat.load_tokenizer):
        with pytest.raises(ValueError, match=f"ids up to 257.*{rows} rows.*{named}") as caught:
            open_(directory)
        assert str(directory) in str(caught.value) and "resize_token_embeddings(258)" in str(
            caught.value
        )


def test_enough_rows_are_enough(tmp_path):
    directory = make(tmp_path, 258, template=CHATML, end="<|end|>")
    assert models.load_config(directory).absent_ids == ()
    assert chat.load_format(directory).vocab_size == 258


def test_a_token_that_nothing_needs_may_lack_a_row_but_not_be_read(tmp_path, caplog):
    """Gemma 3's image token: the text model's embedding ends before it."""
    special = ("<|start|>", "<|end|>", "<image>")
    directory = make(tmp_path, 258, special, CHATML, "<|end|>")
    with caplog.at_level(logging.INFO, "nspo_jax"):
        form = chat.load_format(directory)
        chat.load_format(directory)
    assert caplog.text.count("<image> (258)") == 1  # told, and once
    assert models.load_config(directory).absent_ids == ()
    assert form.encode_prompts(["Look at this."]).tokens.max() < 258
    # in a chat a special token that is spelled is text
    rows = form.encode_conversations(["Look: <image>"], ["An <image>."], 40, 40)
    assert rows.tokens.max() < 258
    assert form.decode(rows.tokens, rows.answer_mask) == ["An < image>."]
    plain = chat.load_format(directory, chat=False)
    with pytest.raises(ValueError, match=r"'<image>' \(258\).*258 rows"):
        plain.encode_prompts(["<image>"])


def test_padding_stands_on_a_row(tmp_path):
    directory = make(tmp_path, 258, ("<|start|>", "<|end|>", "<pad>"), CHATML, "<|end|>")
    form = chat.load_format(directory)
    form.tokenizer.pad_token = "<pad>"
    assert form.tokenizer.pad_token_id == 258
    assert form.encode_prompts(["a", "long"]).tokens.max() < 258


# ------------------------------------------------------------------- rows without an id


def test_rows_without_a_token_are_absent(tmp_path):
    directory = make(tmp_path, 300, template=CHATML, end="<|end|>")
    assert models.load_config(directory).absent_ids == ((258, 300),)
    document = json.loads((directory / "tokenizer.json").read_text())
    for token in document["added_tokens"]:
        token["id"] += 4  # a hole before them, as some tokenizers have
    del document["model"]["vocab"]["!"]  # and one at 0
    (directory / "tokenizer.json").write_text(json.dumps(document))
    loaded = chat.load_tokenizer(directory)
    known = {*loaded.get_vocab().values()}
    expected = [i for i in range(300) if i not in known]
    ranges = models.load_config(directory).absent_ids
    assert [i for first, end in ranges for i in range(first, end)] == expected
    assert len(ranges) > 1


def test_without_a_tokenizer_nothing_is_absent(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SIZES | {"vocab_size": 300}))
    assert models.load_config(tmp_path).absent_ids == ()


def test_a_model_saved_like_a_padded_one_is_padded(tmp_path):
    directory = make(tmp_path / "base", 300, template=CHATML, end="<|end|>")
    config = models.load_config(directory)
    params = models.init_params(config, jax.random.key(0))
    models.save_model(tmp_path / "policy", config, params, like=directory)
    assert models.load_model(tmp_path / "policy")[0] == config


@pytest.mark.parametrize("bad", [258, 299, 5000, -1])
def test_an_id_without_a_token_is_not_decoded_to_nothing(tmp_path, bad):
    form = chat.load_format(make(tmp_path, 300, template=CHATML, end="<|end|>"))
    tokens = np.array([[10, bad, 11], [10, 11, 12]], np.int32)
    with pytest.raises(ValueError, match=f"1 of 6 tokens are ids that the tokenizer lacks.*{bad}"):
        form.decode(tokens, np.ones((2, 3), bool))
    assert len(form.decode(tokens, tokens != bad)) == 2  # padding may be anything


# ---------------------------------------------------------------------- names and files


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "hf:Qwen/Qwen2.5-0.5B"])
def test_a_hub_name_is_no_directory(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for open_ in (models.load_config, models.load_model, chat.load_format, chat.load_tokenizer):
        with pytest.raises(
            FileNotFoundError,
            match="no such directory.*hf download Qwen/Qwen2.5-0.5B --local-dir models/Qwen2",
        ):
            open_(name)
    with pytest.raises(FileNotFoundError, match="rewards.guard.path is .*no such directory"):
        model_files.check_directory(name, "rewards.guard.path")


def test_a_path_is_no_hub_name(tmp_path):
    for path in (tmp_path / "a", "/no/where", "./no/where"):
        with pytest.raises(FileNotFoundError, match="does not exist") as caught:
            models.load_config(path)
        assert "hf download" not in str(caught.value)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="which is a file"):
        models.load_config(tmp_path / "file")


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
)
@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    directory = make(tmp_path, 258)
    (directory / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} (is not valid JSON|holds a list)"):
        chat.load_tokenizer(directory)


def test_a_tokenizer_of_other_content_is_named(tmp_path):
    directory = make(tmp_path, 258)
    (directory / "tokenizer.json").write_text('{"added_tokens": [], "model": 3}')
    with pytest.raises(FileNotFoundError, match=f"No tokenizer can be loaded from {directory}"):
        chat.load_tokenizer(directory)
