"""The tokenizer inside a GGUF file, rebuilt for Hugging Face's libraries.

GGUF holds the vocabulary, the kinds of its tokens, merges or scores, and the *name* of the regular
expression that cuts texts before merging (tokenizer.ggml.pre). Two kinds are read: byte-level BPE
("gpt2") and SentencePiece's BPE ("llama"). The meaning of the names is that of llama.cpp's
src/llama-vocab.cpp, and of the tokenizer.json of the models that the names come from.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import tokenizers
from tokenizers import decoders, normalizers, pre_tokenizers, processors
import transformers

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class Cutting:
    """The meaning of a name of tokenizer.ggml.pre.

    Attributes:
      split: the regular expression of the pieces; "": GPT-2's, which is `tokenizers`' own.
      digits: every digit is cut off first.
      nfc: texts are normalised to NFC.
      whole: a piece that is a token is taken without merging (`ignore_merges`).
      bos: a text begins with BOS, unless the file says whether it does.
    """

    split: str = ""
    digits: bool = False
    nfc: bool = False
    whole: bool = False
    bos: bool = False


_LLAMA3 = Cutting(_LLAMA3_SPLIT, whole=True, bos=True)
CUTTINGS = {
    "gpt-2": Cutting(),
    "smollm": Cutting(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": Cutting(_QWEN2_SPLIT, nfc=True),
}
MODELS = ("gpt2", "llama")
# the kinds of tokenizer.ggml.token_type
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 2, 3, 4, 5, 6
_SPACE = "\u2581"  # SentencePiece writes it for a space
_SPECIAL = {
    "bos_token": "bos_token_id", "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id", "pad_token": "padding_token_id",
}  # fmt: skip
Fields = Mapping[str, Any]


def build_tokenizer(fields: Fields, rows: int, length: int) -> transformers.PreTrainedTokenizerFast:
    """Builds the tokenizer that a GGUF file describes, with its chat template.

    Args:
      fields: the file's metadata by key, of which `tokenizer.*` is read.
      rows: rows of the embedding.
      length: positions of the model, for `model_max_length`.

    Raises:
      ValueError: the file has no tokenizer, one of a kind that is not read, one whose parts do not
        fit together, or one that does not fit the embedding.
    """
    kind, name = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind not in MODELS:
        raise ValueError(
            f"tokenizer.ggml.model is {kind!r}: this tokenizer cannot be converted; expected "
            "'gpt2' (byte-level BPE) or 'llama' (SentencePiece). Take the tokenizer from the "
            "original model's directory, or another file."
        )
    if kind == "gpt2" and name not in CUTTINGS:
        raise ValueError(
            f"tokenizer.ggml.pre is {name!r}: how this tokenizer cuts texts is not known here; "
            f"expected one of {', '.join(CUTTINGS)}. Convert the original model by a newer "
            "llama.cpp if the field is missing, or take the original's tokenizer."
        )
    tokens, kinds = _vocabulary(fields, rows)
    vocab = {
        token: index
        for index, (token, type_) in enumerate(zip(tokens, kinds, strict=True))
        if not (type_ == _UNUSED and token == f"[PAD{index}]")  # such tokens only pad the list
    }
    special = _special_tokens(fields, tokens)
    cutting = CUTTINGS[str(name)] if kind == "gpt2" else Cutting(bos=True)
    try:
        if kind == "gpt2":
            tokenizer = _byte_level(fields, vocab, cutting)
        else:
            tokenizer = _sentence_piece(fields, tokens, kinds, vocab, special.get("unk_token"))
    except Exception as error:  # the library raises Exception itself
        if isinstance(error, ValueError):
            raise
        raise ValueError(
            f"The file's tokenizer ({kind}, {len(vocab)} tokens) cannot be converted: {error}. "
            "Its vocabulary and merges do not belong together: fetch the file again."
        ) from error
    added = [
        tokenizers.AddedToken(token, normalized=False, special=type_ != _USER_DEFINED)
        for token, type_ in zip(tokens, kinds, strict=True)
        if type_ in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token in vocab
    ]
    tokenizer.add_tokens(added)
    _add_ends(tokenizer, fields, vocab, special, cutting)
    if tokenizer.get_vocab_size(with_added_tokens=True) != len(vocab):
        raise ValueError(
            f"The file's tokenizer has {len(vocab)} tokens, and "
            f"{tokenizer.get_vocab_size(with_added_tokens=True)} once converted; expected the same "
            "number: one of its special tokens is not in its vocabulary. Fetch the file again."
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **special,
        chat_template=fields.get("tokenizer.chat_template"),
        model_max_length=length,
        clean_up_tokenization_spaces=False,
    )


def end_ids(fields: Fields) -> list[int]:
    """Returns the ids that end an answer, the ends of a text, a turn and a message."""
    names = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = [fields.get(f"tokenizer.ggml.{name}") for name in names]
    return list(dict.fromkeys(index for index in found if index is not None))


def _vocabulary(fields: Fields, rows: int) -> tuple[list[str], list[int]]:
    """Returns the tokens by id, and their kinds."""
    tokens, kinds = (fields.get(f"tokenizer.ggml.{name}") for name in ("tokens", "token_type"))
    if not tokens or not kinds or len(kinds) != len(tokens):
        raise ValueError(
            f"tokenizer.ggml.tokens has {len(tokens or ())} entries and tokenizer.ggml.token_type "
            f"{len(kinds or ())}; expected as many, and some. Fetch or convert the file again."
        )
    if len(tokens) > rows:
        raise ValueError(
            f"The file's tokenizer has {len(tokens)} tokens and its embedding {rows} rows; "
            "expected a row for every token. Fetch or convert the file again."
        )
    if fields["tokenizer.ggml.model"] == "llama":  # the matched text has plain spaces
        tokens = [
            token.replace(_SPACE, " ") if type_ == _USER_DEFINED else token
            for token, type_ in zip(tokens, kinds, strict=True)
        ]
    if len(set(tokens)) < len(tokens):
        first = {token: index for index, token in reversed(list(enumerate(tokens)))}
        twice = next((i, t) for i, t in enumerate(tokens) if first[t] != i)
        raise ValueError(
            f"The tokens {first[twice[1]]} and {twice[0]} of tokenizer.ggml.tokens are both "
            f"{twice[1]!r}; expected different ones: this tokenizer cannot be converted. Take the "
            "tokenizer from the original model's directory."
        )
    return tokens, kinds


def _special_tokens(fields: Fields, tokens: list[str]) -> dict[str, str]:
    """Returns the tokens of `_SPECIAL` by transformers' name."""
    found = {}
    for name, key in _SPECIAL.items():
        index = fields.get(f"tokenizer.ggml.{key}")
        if index is None:
            continue
        if not 0 <= index < len(tokens):
            raise ValueError(
                f"tokenizer.ggml.{key} is {index}; expected an id below {len(tokens)}, the number "
                "of tokens. Fetch or convert the file again."
            )
        found[name] = tokens[index]
    return found


def _byte_level(fields: Fields, vocab: dict[str, int], cutting: Cutting) -> tokenizers.Tokenizer:
    """Builds byte-level BPE in GPT-2's way."""
    pairs = [tuple(merge.split(" ")) for merge in fields.get("tokenizer.ggml.merges") or ()]
    wrong = next((pair for pair in pairs if len(pair) != 2 or "".join(pair) not in vocab), None)
    if wrong is not None or not pairs:
        raise ValueError(
            f"tokenizer.ggml.merges has {len(pairs)} entries, among them {wrong!r}; expected pairs "
            "of tokens that make a token. Fetch or convert the file again."
        )
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=pairs, ignore_merges=cutting.whole)  # pyright: ignore[reportArgumentType]  # tuples of two
    )
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cutting.digits else []
    if cutting.split:
        steps.append(pre_tokenizers.Split(tokenizers.Regex(cutting.split), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not cutting.split))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    if cutting.nfc:
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _sentence_piece(
    fields: Fields, tokens: list[str], kinds: list[int], vocab: dict[str, int], unknown: str | None
) -> tokenizers.Tokenizer:
    """Builds SentencePiece's BPE, where pieces merge by scores and bytes stand for the rest."""
    for key in ("remove_extra_whitespaces", "precompiled_charsmap"):
        if fields.get(f"tokenizer.ggml.{key}"):
            raise ValueError(
                f"tokenizer.ggml.{key} is set: this tokenizer changes texts before it cuts them, "
                "and cannot be converted; expected one of Llama 2's or Gemma's kind. Take the "
                "tokenizer from the original model's directory."
            )
    scores = fields.get("tokenizer.ggml.scores") or []
    if len(scores) != len(tokens):
        raise ValueError(
            f"tokenizer.ggml.scores has {len(scores)} entries and tokenizer.ggml.tokens "
            f"{len(tokens)}; expected a score for every token. Fetch or convert the file again."
        )
    # Merging never makes tokens that are matched in the text, nor bytes.
    apart = (_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE)
    normal = {t for t, type_ in zip(tokens, kinds, strict=True) if type_ not in apart}
    ranked = []
    for token in normal:
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair[0] in normal and pair[1] in normal:
                ranked.append((-scores[vocab[token]], vocab[pair[0]], vocab[pair[1]], pair))
    merges = [pair for *_, pair in sorted(ranked)]
    in_bytes = sum(type_ == _BYTE for type_ in kinds) == 256
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab=vocab,
            merges=merges,
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=in_bytes,
        )
    )
    prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    replaced: list[Any] = [normalizers.Replace(" ", _SPACE)]
    first = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*first, *replaced])
    last = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    )
    return tokenizer


def _add_ends(
    tokenizer: tokenizers.Tokenizer,
    fields: Fields,
    vocab: dict[str, int],
    special: dict[str, str],
    cutting: Cutting,
) -> None:
    """Puts BOS and EOS around texts as far as the file asks for it."""
    wanted = {
        "bos_token": fields.get("tokenizer.ggml.add_bos_token", cutting.bos),
        "eos_token": fields.get("tokenizer.ggml.add_eos_token", False),
    }
    for name, asked in wanted.items():
        if asked and name not in special:
            raise ValueError(
                f"tokenizer.ggml.add_{name} is true and tokenizer.ggml.{name}_id is missing; "
                "expected its id. Fetch or convert the file again."
            )
    first = [special["bos_token"]] if wanted["bos_token"] else []
    last = [special["eos_token"]] if wanted["eos_token"] else []
    if first or last:
        second = [f"{token}:1" for token in (*first, "$B", *last)]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=[*first, "$A", *last],
            pair=[*first, "$A", *last, *second],
            special_tokens=[(token, vocab[token]) for token in dict.fromkeys(first + last)],
        )
