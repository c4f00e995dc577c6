"""Text to tokens and back, through a transformers tokenizer and its chat template.

A conversation is two blocks: the prompt, padded on the left, then the answer, padded on the right.
Rollouts have the same layout, so that training sees what sampling saw.
"""

from collections.abc import Sequence
import pathlib
from typing import NamedTuple

import numpy as np
import tokenizers
import transformers

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user> {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}<assistant> {{ message['content'] }} <end> "
    "{% else %}{{ raise_exception('no template for the role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Encoded(NamedTuple):
    """Prompts: tokens int32 [rows, length], left-padded; mask bool, the real tokens."""

    tokens: np.ndarray
    mask: np.ndarray


class EncodedConversations(NamedTuple):
    """Conversations, [rows, prompt_length + answer_length].

    tokens: int32; mask: bool, the real tokens; answer_mask: bool, the answer's tokens with its end.
    """

    tokens: np.ndarray
    mask: np.ndarray
    answer_mask: np.ndarray


def build_tokenizer(words: Sequence[str]) -> transformers.PreTrainedTokenizerFast:
    """A word-level tokenizer with a chat template, for a world with a closed vocabulary."""
    special = ["<pad>", "<unk>", "<end>", "<user>", "<assistant>"]
    vocabulary = {word: index for index, word in enumerate([*special, *words])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        extra_special_tokens=["<user>", "<assistant>"],
        chat_template=TEMPLATE,
    )


def load_tokenizer(directory: str | pathlib.Path) -> transformers.PreTrainedTokenizerBase:
    """Loads a tokenizer from local files.

    Raises:
      FileNotFoundError: if the directory is absent or has no tokenizer in it.
    """
    directory = pathlib.Path(directory)
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
        if loaded.get_vocab().keys() <= loaded.added_tokens_encoder.keys():
            raise ValueError("it has special tokens alone")  # what no tokenizer.json is made up to
        return loaded
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"No tokenizer can be loaded from {directory} ({str(error).splitlines()[0]}). Copy "
            "tokenizer.json and tokenizer_config.json into the model's directory."
        ) from error


def stop_ids(tokenizer: transformers.PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Tokens that end an answer.

    Raises:
      ValueError: if the tokenizer has no end-of-sequence token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("The tokenizer has no eos_token: answers would never end. Set one.")
    return (tokenizer.eos_token_id,)


def encode_prompts(
    tokenizer: transformers.PreTrainedTokenizerBase,
    prompts: Sequence[str],
    length: int,
    *,
    chat: bool = True,
) -> Encoded:
    """Renders and tokenizes prompts up to where the answer starts.

    Args:
      tokenizer: any transformers tokenizer.
      prompts: requests as a user writes them.
      length: columns of the result.
      chat: apply the chat template with its generation prompt; False takes the text as it is, with
        the tokens that the tokenizer adds (BOS).

    Raises:
      ValueError: for no prompts, a prompt that is too long, or a missing chat template.
    """
    ids = _prompt_ids(tokenizer, prompts, chat)
    _check_lengths(ids, length, prompts, "prompt")
    tokens = np.full((len(ids), length), _pad_id(tokenizer), np.int32)
    mask = np.zeros((len(ids), length), bool)
    for row, sequence in enumerate(ids):
        tokens[row, length - len(sequence) :] = sequence
        mask[row, length - len(sequence) :] = True
    return Encoded(tokens, mask)


def encode_conversations(
    tokenizer: transformers.PreTrainedTokenizerBase,
    prompts: Sequence[str],
    answers: Sequence[str],
    prompt_length: int,
    answer_length: int,
    *,
    chat: bool = True,
) -> EncodedConversations:
    """Tokenizes prompts with their answers; the end token follows each answer that has room.

    Args:
      tokenizer: any transformers tokenizer.
      prompts: requests.
      answers: one for each prompt.
      prompt_length: columns of the prompt block.
      answer_length: columns of the answer block.
      chat: see `encode_prompts`. With False, prompt and answer are tokenized as one text, and an
        answer is cut where the block ends: text goes on, an answer in a chat ends.

    Raises:
      ValueError: as `encode_prompts`, for unequal numbers, and for a chat answer that is too long.
    """
    if len(prompts) != len(answers):
        raise ValueError(f"{len(prompts)} prompts but {len(answers)} answers.")
    encoded = encode_prompts(tokenizer, prompts, prompt_length, chat=chat)
    end = tokenizer.eos_token_id
    if chat:
        ids = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
        ids = [[*sequence, end] for sequence in ids]
        _check_lengths(ids, answer_length, answers, "completion")
    else:
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        starts = encoded.mask.sum(axis=1)
        whole = tokenizer(texts)["input_ids"]
        ids = [s[start:][:answer_length] for s, start in zip(whole, starts, strict=True)]
    tokens = np.full((len(ids), answer_length), _pad_id(tokenizer), np.int32)
    mask = np.zeros((len(ids), answer_length), bool)
    for row, sequence in enumerate(ids):
        tokens[row, : len(sequence)] = sequence
        mask[row, : len(sequence)] = True
    return EncodedConversations(
        np.concatenate([encoded.tokens, tokens], axis=1),
        np.concatenate([encoded.mask, mask], axis=1),
        np.concatenate([np.zeros_like(encoded.mask), mask], axis=1),
    )


def decode(
    tokenizer: transformers.PreTrainedTokenizerBase, tokens: np.ndarray, mask: np.ndarray
) -> list[str]:
    """Texts of the real tokens of each row [rows, length], special tokens left out."""
    rows = [row[keep] for row, keep in zip(tokens, mask, strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


def _prompt_ids(tokenizer, prompts: Sequence[str], chat: bool) -> list[list[int]]:
    if not len(prompts):
        raise ValueError("The set of prompts is empty: there is nothing to encode.")
    if not chat:
        return tokenizer(list(prompts))["input_ids"]
    if not tokenizer.chat_template:
        raise ValueError(
            "The tokenizer has no chat template. Put one in its tokenizer_config.json or "
            "chat_template.jinja, or, for a base model that continues text, set "
            "--config.data.chat=False."
        )
    texts = tokenizer.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        tokenize=False,
        add_generation_prompt=True,
    )
    # the template writes BOS itself where the model wants it: adding special tokens would double it
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def _check_lengths(ids, length: int, texts: Sequence[str], block: str) -> None:
    row = max(range(len(ids)), key=lambda index: len(ids[index]))
    if len(ids[row]) > length:
        count = sum(len(sequence) > length for sequence in ids)
        raise ValueError(
            f"{count} of {len(ids)} texts are longer than data.{block}_length={length} tokens; the "
            f"longest has {len(ids[row])}: {texts[row][:80]!r}. Raise it to {len(ids[row])} with "
            f"--config.data.{block}_length={len(ids[row])}, or leave such texts out."
        )


def _pad_id(tokenizer) -> int:
    """Any id will do where there is no pad token: the mask is False there."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
