"""Tokenizers out of GGUF files: against real ones, SentencePiece, and transformers' own reading."""

import io
import pathlib

import numpy as np
import pytest
import tokenizers
import transformers

from nspo_jax.data import chat
from nspo_jax.models import gguf, gguf_file, gguf_tokenizer
from tests.models import gguf_files

TEXTS = [
    "How do I bake a cake?", " one blank", "  two", "    four\n\n\n  lines \t tabs\r\n", "",
    "def f(x):\n    return {'a': x**2 + 12345}  # 0x1F\n\n\tpass", "I'm sure we'll SAY'S don't",
    "été über façade", "日本語 中文 한국어 مرحبا ไทย",
    "🙂👩‍👩‍👧 🇫🇷", "3.14159 1,000,000 and 2024-01-02",
    "a\u00a0b\u200bc \ufeff", "trailing   ", "x" * 60, "<|im_start|>user\nhi<|im_end|>", "</s><s>",
]  # fmt: skip
DIGITS = ["a  12 b   345\n 6", "  7"]  # blanks before digits, which the kinds cut differently


def build(fields, rows=None):
    size = len(fields["tokenizer.ggml.tokens"])
    return gguf_tokenizer.build_tokenizer(fields, rows or size, 512)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.fixture(scope="module")
def smollm(shared_data):
    return shared_data / "tokenizers" / "smollm_chatml"


@pytest.fixture(scope="module")
def fields(smollm):
    return gguf_files.byte_level(smollm, "smollm")


@pytest.fixture(scope="module")
def imported(fields, tmp_path_factory):
    """A directory with SmolLM's tokenizer that came through a file, and that file."""
    folder = tmp_path_factory.mktemp("smollm")
    size = {"block_count": 1, "context_length": 512, "embedding_length": 4,
            "feed_forward_length": 4, "attention.head_count": 1, "rope.freq_base": 1e4,
            "attention.layer_norm_rms_epsilon": 1e-5}  # fmt: skip
    shapes = {path: (4, 4) for path in gguf_file.TENSORS if "/kernel" in path or "embed" in path}
    shapes |= {"embed/embedding": (49152, 4)}
    arrays = {
        name.format(0): np.ones(shapes.get(path, (4,)), np.float32)
        for path, name in gguf_file.TENSORS.items()
        if not any(part in path for part in ("bias", "q_norm", "k_norm", "post_norm", "head/"))
    }
    gguf_files.write(folder / "model.gguf", "llama", size | fields, arrays.items())
    gguf.import_gguf(folder / "model.gguf", folder / "out")
    return folder / "out", folder / "model.gguf"


def test_a_real_byte_level_tokenizer_comes_through_whole(imported, smollm):
    original = tokenizers.Tokenizer.from_file(str(smollm / "tokenizer.json"))
    written = tokenizers.Tokenizer.from_file(str(imported[0] / "tokenizer.json"))
    assert written.get_vocab() == original.get_vocab()
    loads = (chat.load_tokenizer, transformers.AutoTokenizer.from_pretrained)
    both = [load(imported[0]) for load in loads]
    for text in TEXTS + DIGITS:
        expected = original.encode(text).ids
        assert written.encode(text).ids == expected, text
        for loaded in both:
            assert loaded(text)["input_ids"] == expected, text
            assert loaded.decode(expected) == text


def test_a_real_chat_template_and_its_special_tokens(imported, smollm):
    loaded = transformers.AutoTokenizer.from_pretrained(imported[0])
    original = transformers.PreTrainedTokenizerFast.from_pretrained(smollm)
    messages = [{"role": "user", "content": "Hi  12"}, {"role": "assistant", "content": "Yes 🙂"}]
    for turns in (messages[:1], messages):
        for options in ({"tokenize": False}, {"add_generation_prompt": True}):
            theirs = original.apply_chat_template(turns, **options)
            assert loaded.apply_chat_template(turns, **options) == theirs
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        assert getattr(loaded, name) == getattr(original, name)
    ours = chat.load_format(imported[0])
    assert "<|im_end|>" in {ours.tokenizer.decode([index]) for index in ours.stop_ids}


def test_transformers_reads_the_same_file_to_the_same_tokens(imported):
    pytest.importorskip("torch")
    out, path = imported
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ours = transformers.AutoTokenizer.from_pretrained(out)
    assert ours.get_vocab() == theirs.get_vocab()
    for text in TEXTS:
        assert ids(ours, text) == ids(theirs, text), text
    # transformers 5.24 does not know "smollm", and cuts blanks before digits as GPT-2 does
    assert [ids(ours, text) == ids(theirs, text) for text in DIGITS] == [False, False]


def test_qwens_cutting_is_that_of_transformers_own_class(smollm):
    fields = gguf_files.byte_level(smollm, "qwen2")
    tokens = fields["tokenizer.ggml.tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    theirs = transformers.Qwen2Tokenizer(vocab=vocab, merges=merges)
    ours = build(fields)
    for text in [*TEXTS[:-2], *DIGITS, "e\u0301tude"]:  # their special tokens are others
        assert ids(ours, text) == ids(theirs, text), text


def test_llama_3s_cutting_is_that_of_transformers_reading(imported, smollm):
    reading = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    fields = gguf_files.byte_level(smollm, "llama-bpe")
    content = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in fields.items()
        if key.startswith("tokenizer.ggml.")
    }
    content |= {"tokenizer_type": "gpt2", "pre_tokenizer_type": "llama-bpe"}
    theirs, _ = reading.convert_gguf_tokenizer("llama", content)
    ours = build(fields)
    for text in TEXTS + DIGITS:
        assert ids(ours, text) == theirs.encode(text).ids, text


def test_a_piece_that_is_a_token_needs_no_merges_in_llama_3():
    """As in its tokenizer.json (ignore_merges), and in llama.cpp."""
    fields = gguf_files.small_vocabulary(262)
    tokens = fields["tokenizer.ggml.tokens"]
    tokens[260] = "llo"  # nothing merges to it
    fields["tokenizer.ggml.token_type"][260] = gguf_files.NORMAL
    llama = build(fields | {"tokenizer.ggml.pre": "llama-bpe"})
    gpt = build(fields)
    assert ids(llama, "llo") == [260] and ids(gpt, "llo") != [260]
    assert llama("hel")["input_ids"] == [0, tokens.index("hel")]  # BOS, though no field asks
    assert gpt("hel")["input_ids"] == [tokens.index("hel")]


def test_llama_2s_sentence_piece_model(shared_data):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = shared_data / "tokenizers" / "llama2" / "tokenizer.model"
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ours = build(gguf_files.sentence_piece(processor, prefix=True))
    for text in [*TEXTS[:-1], *DIGITS]:
        expected = processor.encode(text)
        assert ids(ours, text) == expected, text
        assert ours(text)["input_ids"] == [1, *expected]
        assert ours.decode(expected) == processor.decode(expected)
    assert ids(ours, "a</s>")[-1] == 2


def test_a_sentence_piece_model_of_gemmas_kind(shared_data):
    """No blank in front, user-defined runs of blanks and line ends, bytes for the rest."""
    sentencepiece = pytest.importorskip("sentencepiece")
    source = pathlib.Path(gguf.__file__).read_text() * 2 + " ".join(TEXTS)
    made, runs = io.BytesIO(), ["▁▁", "▁▁▁▁", "\n", "\n\n", "<start_of_turn>"]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(source.split("\n")), model_writer=made, vocab_size=600,
        model_type="bpe", byte_fallback=True, add_dummy_prefix=False, minloglevel=2,
        remove_extra_whitespaces=False, normalization_rule_name="identity",
        user_defined_symbols=runs, pad_id=0, eos_id=1, bos_id=2, unk_id=3, num_threads=1,
    )  # fmt: skip
    processor = sentencepiece.SentencePieceProcessor(model_proto=made.getvalue())
    fields = gguf_files.sentence_piece(processor, prefix=False, user_defined=runs)
    ours, used = build(fields), set()
    for text in [*TEXTS[:-1], *DIGITS, "<start_of_turn>user\n\n    hi  there\n", source[:3000]]:
        expected = processor.encode(text)
        assert ids(ours, text) == expected, text
        assert ours.decode(expected) == text
        used |= {*expected}
    assert {processor.piece_to_id(piece) for piece in runs} <= used
    assert any(processor.is_byte(index) for index in used)
