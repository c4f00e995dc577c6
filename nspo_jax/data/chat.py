"""Text to tokens and back, through a transformers tokenizer and its chat template.

A conversation is two blocks: the prompt, padded on the left, then the answer, padded on the right.
Rollouts have the same layout, so that training sees what sampling saw.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any, NamedTuple

import jinja2
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

    tokenizer.json and SentencePiece's tokenizer.model are taken as they are written. Only without
    them is the class that tokenizer_config.json names used: in transformers 5, GPT2Tokenizer and
    its like replace the pre-tokenizer of tokenizer.json by their own (the ids of digits after
    blanks change), and LlamaTokenizer merges a tokenizer.model's pieces in another order than their
    scores say (the ids of repeated blanks change).

    Raises:
      FileNotFoundError: if the directory is absent or has no tokenizer in it.
    """
    directory = pathlib.Path(directory)
    load = transformers.AutoTokenizer.from_pretrained
    options = {}
    if (directory / "tokenizer.json").exists():
        load = transformers.PreTrainedTokenizerFast.from_pretrained
    elif (directory / "tokenizer.model").exists():
        load = transformers.PreTrainedTokenizerFast.from_pretrained
        # legacy: blanks at the start of a text stay, as in SentencePiece
        given = _read_json(directory / "tokenizer_config.json").get("add_bos_token", True)
        options = {"legacy": True, "add_bos_token": given}
    try:
        loaded = load(directory, local_files_only=True, **options)
        if loaded.get_vocab().keys() <= loaded.added_tokens_encoder.keys():
            raise ValueError("it has special tokens alone")  # what no tokenizer.json is made up to
        return loaded
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(
            f"No tokenizer can be loaded from {directory} ({str(error).splitlines()[0]}). Copy "
            "tokenizer.json and tokenizer_config.json into the model's directory; to read a "
            "SentencePiece tokenizer.model instead, pip install sentencepiece protobuf."
        ) from error


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """How conversations become tokens for one model, and tokens text.

    Attributes:
      tokenizer: any transformers tokenizer.
      chat: apply the chat template; False takes texts as they are, with the tokens that the
        tokenizer adds (BOS).
      system: system message of every conversation; None leaves it to the template (some insert one
        of their own), "" is an empty one. Plain text has none.
      thinking: given to the template as enable_thinking.
      extra_stop_ids: further ids that end a completion.
    """

    tokenizer: transformers.PreTrainedTokenizerBase
    chat: bool = True
    system: str | None = None
    thinking: bool = False
    extra_stop_ids: tuple[int, ...] = ()

    @functools.cached_property
    def end_id(self) -> int:
        """The token that ends an answer: what the template writes after one, or else eos.

        Raises:
          ValueError: if neither exists, or the template does not write answers.
        """
        written = self._written_end() if self.chat else None
        end = self.tokenizer.eos_token_id if written is None else written
        if end is None:
            raise ValueError(
                "Nothing ends an answer: the tokenizer has no eos_token and its chat template "
                "writes no special token after an answer. Set eos_token in tokenizer_config.json."
            )
        return end

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion, sorted: end_id, eos and extra_stop_ids."""
        ids = {self.end_id, self.tokenizer.eos_token_id, *self.extra_stop_ids}
        return tuple(sorted(ids - {None}))

    def encode_prompts(self, prompts: Sequence[str], length: int | None = None) -> Encoded:
        """Renders and tokenizes prompts up to where the answer starts.

        Args:
          prompts: requests as a user writes them.
          length: columns of the result; None: as many as the longest prompt needs.

        Raises:
          ValueError: for no prompts, a prompt that is too long, a missing chat template, or one
            that has no system role where there is a system message.
        """
        ids = self._prompt_ids(prompts)
        if length is None:
            length = max(map(len, ids))
        _check_lengths(ids, length, prompts, "prompt")
        tokens = np.full((len(ids), length), self._pad_id, np.int32)
        mask = np.zeros((len(ids), length), bool)
        for row, sequence in enumerate(ids):
            tokens[row, length - len(sequence) :] = sequence
            mask[row, length - len(sequence) :] = True
        return Encoded(tokens, mask)

    def encode_conversations(
        self,
        prompts: Sequence[str],
        answers: Sequence[str],
        prompt_length: int,
        answer_length: int,
        *,
        cut: bool = False,
    ) -> EncodedConversations:
        """Tokenizes prompts with their answers; in a chat, the end token follows each answer.

        Without a chat, prompt and answer are tokenized as one text, and an answer is cut where the
        block ends: text goes on, an answer in a chat ends.

        Args:
          prompts: requests.
          answers: one for each prompt.
          prompt_length: columns of the prompt block.
          answer_length: columns of the answer block.
          cut: cut chat answers that are too long, as a rollout would have: they have no end.

        Raises:
          ValueError: as `encode_prompts`, for unequal numbers, and for a chat answer that is too
            long.
        """
        if len(prompts) != len(answers):
            raise ValueError(f"{len(prompts)} prompts but {len(answers)} answers.")
        encoded = self.encode_prompts(prompts, prompt_length)
        if self.chat:
            ids = self._answer_ids(answers)
            if cut:
                ids = [sequence[:answer_length] for sequence in ids]
            _check_lengths(ids, answer_length, answers, "completion")
        else:
            texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
            starts = encoded.mask.sum(axis=1)
            whole = self._text_ids(texts)
            ids = [s[start:][:answer_length] for s, start in zip(whole, starts, strict=True)]
        tokens = np.full((len(ids), answer_length), self._pad_id, np.int32)
        mask = np.zeros((len(ids), answer_length), bool)
        for row, sequence in enumerate(ids):
            tokens[row, : len(sequence)] = sequence
            mask[row, : len(sequence)] = True
        return EncodedConversations(
            np.concatenate([encoded.tokens, tokens], axis=1),
            np.concatenate([encoded.mask, mask], axis=1),
            np.concatenate([np.zeros_like(encoded.mask), mask], axis=1),
        )

    def prompt_lengths(self, prompts: Sequence[str]) -> np.ndarray:
        """Tokens that `encode_prompts` needs for each, int [rows]; errors as there."""
        return np.array([len(sequence) for sequence in self._prompt_ids(prompts)])

    def answer_lengths(self, answers: Sequence[str]) -> np.ndarray:
        """Tokens of each answer in a chat, with its end, int [rows]."""
        return np.array([len(sequence) for sequence in self._answer_ids(answers)])

    def decode(self, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
        """Texts of the real tokens of each row [rows, length], special tokens left out."""
        # the end of a turn may be an added token that its tokenizer does not call special
        rows = [row[keep] for row, keep in zip(tokens, mask & (tokens != self.end_id), strict=True)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    @property
    def _pad_id(self) -> int:
        """Any id will do where there is no pad token: the mask is False there."""
        pad = self.tokenizer.pad_token_id
        return self.end_id if pad is None else pad

    def _prompt_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        if not len(prompts):
            raise ValueError("The set of prompts is empty: there is nothing to encode.")
        if not self.chat:
            return self._text_ids(prompts)
        texts = self._render([[("user", prompt)] for prompt in prompts], add_generation_prompt=True)
        # the template writes BOS itself where the model wants it: special tokens would double it
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def _answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        ids = self.tokenizer(list(answers), add_special_tokens=False)["input_ids"]
        return [[*sequence, self.end_id] for sequence in ids]

    def _text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer(list(texts))["input_ids"]
        # a text that has BOS written at its start gets another from the tokenizer
        twice = [bos is not None and sequence[:2] == [bos, bos] for sequence in ids]
        return [sequence[double:] for sequence, double in zip(ids, twice, strict=True)]

    def _render(
        self, conversations: Sequence[Sequence[tuple[str, str]]], *, add_generation_prompt: bool
    ) -> list[str]:
        """The template's text of conversations of (role, content), each after the system message.

        Raises:
          ValueError: if there is no template, or it refuses or ignores the system message.
        """
        if not self.tokenizer.chat_template:
            raise ValueError(
                "The tokenizer has no chat template. Put one in its tokenizer_config.json or "
                "chat_template.jinja, or, for a base model that continues text, set "
                "--config.data.chat=False."
            )
        system = [] if self.system is None else [("system", self.system)]
        messages = [
            [{"role": role, "content": content} for role, content in [*system, *turns]]
            for turns in conversations
        ]
        try:
            texts = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                enable_thinking=self.thinking,
            )
        except jinja2.TemplateError as error:
            if self.system is None:
                raise ValueError(
                    f"The chat template refuses a conversation of user and assistant: {error}. "
                    "Correct it in the model's tokenizer_config.json or chat_template.jinja."
                ) from error
            plain = dataclasses.replace(self, system=None)
            plain._render(conversations, add_generation_prompt=add_generation_prompt)  # to blame it
            raise ValueError(
                f"The chat template has no system role: {error}. Unset config.data.system_prompt "
                f"(now {self.system[:80]!r})."
            ) from error
        if self.system and self.system.strip() not in texts[0]:
            raise ValueError(
                "The chat template has no system role: it leaves out the message "
                f"{self.system[:80]!r}. Unset config.data.system_prompt."
            )
        return texts

    def _written_end(self) -> int | None:
        """The first special or added token that the template writes after an answer."""
        answer = "the-answer-itself"
        turns = [("user", "a"), ("assistant", answer)]
        (text,) = self._render([turns], add_generation_prompt=False)
        _, found, after = text.rpartition(answer)
        if not found:
            raise ValueError(
                f"The chat template does not write what the assistant says: {text[-80:]!r}. "
                "Correct it in the model's tokenizer_config.json or chat_template.jinja."
            )
        # added tokens need not be declared special, but runs of blanks that are added end nothing
        marks = {i for i, t in self.tokenizer.added_tokens_decoder.items() if t.content.strip()}
        ids = self.tokenizer(after, add_special_tokens=False)["input_ids"]
        return next((token for token in ids if token in marks), None)


class TextStream:
    """Turns tokens into pieces of text that add up to the decoded whole.

    A piece is held back while the text ends in an incomplete character. Only the last few tokens
    are decoded at a time: those of the last piece, for what depends on a neighbour (a blank between
    words), and those after it.

    Args:
      form: of the model that speaks.
      prompt: int32 [tokens], what it answers. Plain text is decoded behind it: alone, it would lose
        a leading blank.
    """

    def __init__(self, form: ChatFormat, prompt: np.ndarray):
        self._ids = [] if form.chat else list(prompt)
        self._form = form
        self._context, self._read = 0, len(self._ids)

    def add(self, token: int) -> str:
        """The text that this token completes."""
        self._ids.append(token)
        piece = self.end()
        if not piece or piece.endswith("\ufffd"):
            return ""
        self._context, self._read = self._read, len(self._ids)
        return piece

    def end(self) -> str:
        """What was held back."""
        before = self._decode(self._ids[self._context : self._read])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        tokens = np.asarray([ids], np.int32)
        return self._form.decode(tokens, np.ones(tokens.shape, bool))[0] if ids else ""


def load_format(
    directory: str | pathlib.Path,
    *,
    chat: bool = True,
    system: str | None = None,
    thinking: bool = False,
) -> ChatFormat:
    """The format of a model's directory: its tokenizer, and generation_config.json's stop ids.

    Raises:
      FileNotFoundError: as `load_tokenizer`.
      ValueError: if eos_token_id of generation_config.json is neither an id nor a list of ids, or
        a file is not JSON.
    """
    return ChatFormat(
        load_tokenizer(directory),
        chat=chat,
        system=system,
        thinking=thinking,
        extra_stop_ids=_generation_stops(pathlib.Path(directory) / "generation_config.json"),
    )


def _generation_stops(path: pathlib.Path) -> tuple[int, ...]:
    stops = _read_json(path).get("eos_token_id")
    ids = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if not all(type(stop) is int for stop in ids):
        raise ValueError(
            f"eos_token_id in {path} is {stops!r}; expected a token's id or a list of them."
        )
    return tuple(ids)


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """An optional file's object: empty where there is no such file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object.")
    return content


def _check_lengths(ids, length: int, texts: Sequence[str], block: str) -> None:
    row = max(range(len(ids)), key=lambda index: len(ids[index]))
    if len(ids[row]) > length:
        count = sum(len(sequence) > length for sequence in ids)
        raise ValueError(
            f"{count} of {len(ids)} texts are longer than data.{block}_length={length} tokens; the "
            f"longest has {len(ids[row])}: {texts[row][:80]!r}. Raise it to {len(ids[row])} with "
            f"--config.data.{block}_length={len(ids[row])}, or leave such texts out."
        )
