"""The way from text to tokens and back, by a transformers tokenizer and its chat template.

A conversation is two blocks: the prompt, padded on the left, then the answer, padded on the right.
Rollouts have the same layout, so that training and sampling see the same tokens.
"""

from collections.abc import Sequence
import dataclasses
import functools
import logging
import pathlib
import re
from typing import Any, NamedTuple, cast

import numpy as np
import tokenizers
import transformers

from nspo_jax import model_files
from nspo_jax.data import template

TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<user> {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}<assistant> {{ message['content'] }} <end> "
    "{% else %}{{ raise_exception('no template for the role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_log = logging.getLogger(__name__)


class Encoded(NamedTuple):
    """Prompts, left-padded: tokens int32 [rows, length], and a bool mask of the real ones."""

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
    """Builds a word-level tokenizer with a chat template, for a world with a closed vocabulary."""
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


load_tokenizer = model_files.load_tokenizer


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """One model's format of conversations, from text to tokens and back.

    In a chat the template alone sets turns apart. A prompt or an answer that spells a mark such as
    <|im_end|> is encoded with < |im_end|>, which is text.

    Attributes:
      tokenizer: any transformers tokenizer.
      chat: True applies the chat template; False takes texts as they are, with the tokens that the
        tokenizer adds (BOS).
      system: the system message of every conversation; None leaves it to the template (some insert
        one of their own), "" is an empty one. Plain text has none.
      thinking: the template's enable_thinking.
      extra_stop_ids: further ids that end a completion.
      date: the day that a template with a clock reads, such as 2026-11-25; None: today.
      vocab_size: rows of the model's embedding; texts with an id that has no row are refused. None
        checks nothing.
    """

    tokenizer: transformers.PreTrainedTokenizerBase
    chat: bool = True
    system: str | None = None
    thinking: bool = False
    extra_stop_ids: tuple[int, ...] = ()
    date: str | None = None
    vocab_size: int | None = None

    @functools.cached_property
    def end_id(self) -> int:
        """The token that ends an answer: the template's after an answer, or else eos.

        Raises:
          ValueError: if neither exists, or the template does not write answers.
        """
        written = self._written_end() if self.chat else None
        end = cast(template.Id, self.tokenizer.eos_token_id) if written is None else written
        if end is None:
            raise ValueError(
                "Nothing ends an answer: the tokenizer has no eos_token and its chat template "
                "writes no special token after an answer. Set eos_token in tokenizer_config.json."
            )
        return end

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Every id that ends a completion, sorted: end_id, eos and extra_stop_ids."""
        ids = {self.end_id, cast(template.Id, self.tokenizer.eos_token_id), *self.extra_stop_ids}
        return tuple(sorted(token for token in ids if token is not None))

    @property
    def reads_clock(self) -> bool:
        """Tells whether the text of a conversation depends on the day."""
        return self.chat and template.reads_clock(self.tokenizer)

    def encode_prompts(self, prompts: Sequence[str], length: int | None = None) -> Encoded:
        """Renders and tokenizes prompts up to the start of the answer.

        Args:
          prompts: requests as a user writes them.
          length: columns of the result; None: as many as the longest prompt needs.

        Raises:
          ValueError: for no prompts, a prompt that is too long or spells a token without a row in
            the embedding, a missing chat template, or a system message that the template has no
            role for.
        """
        return self._pad_left(self._prompt_ids(prompts), prompts, length)

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

        Without a chat, prompt and answer are tokenized as one text, and an answer is cut at the end
        of its block: text goes on, an answer in a chat ends.

        If the generation prompt opens thoughts, an answer without thoughts of its own is encoded as
        the template writes it in a whole conversation, with closed thoughts or with none. An answer
        that closes thoughts continues those that the prompt opened.

        Args:
          prompts: requests.
          answers: one for each prompt.
          prompt_length: columns of the prompt block.
          answer_length: columns of the answer block.
          cut: True cuts chat answers that are too long, as a rollout would; they have no end token.

        Raises:
          ValueError: for the reasons of `encode_prompts`, for unequal numbers, and for a chat
            answer that is too long.
        """
        if len(prompts) != len(answers):
            raise ValueError(f"{len(prompts)} prompts but {len(answers)} answers.")
        encoded = self._pad_left(self._prompt_ids(prompts, answers), prompts, prompt_length)
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
        """Counts the tokens that `encode_prompts` needs for each, int [rows]; raises its errors."""
        return np.array([len(sequence) for sequence in self._prompt_ids(prompts)])

    def answer_lengths(self, answers: Sequence[str]) -> np.ndarray:
        """Counts the tokens of each answer in a chat, with its end, int [rows]."""
        return np.array([len(sequence) for sequence in self._answer_ids(answers)])

    def decode(self, tokens: np.ndarray, mask: np.ndarray) -> list[str]:
        """Returns the texts of each row's real tokens [rows, length], without special tokens.

        Raises:
          ValueError: for an id that the tokenizer lacks, which would vanish from the text.
        """
        real = np.asarray(tokens)[np.asarray(mask)]
        inside = (real >= 0) & (real < len(self._known))
        lacking = real[~(inside & self._known[np.where(inside, real, 0)])]
        if lacking.size:
            raise ValueError(
                f"{lacking.size} of {real.size} tokens are ids that the tokenizer lacks, such as "
                f"{lacking[0]}: they have no text. Sample with the config that "
                "models.load_config reads beside the tokenizer, which gives them no probability."
            )
        # the end of a turn may be an added token that its tokenizer does not call special
        rows = [row[keep] for row, keep in zip(tokens, mask & (tokens != self.end_id), strict=True)]
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True)

    @functools.cached_property
    def _opening(self) -> template.Opening:
        """The beginnings of answers; plain text has no turns."""
        if not self.chat:
            return template.Opening("", "", "")
        found = template.opening(self.tokenizer, **self._rendering)
        if found != ("", "", ""):
            _log.info(
                "answers that are generated begin after %r in the chat template, those that are "
                "given after %r: given answers are encoded so", found.generated, found.given,
            )  # fmt: skip
        return found

    @functools.cached_property
    def _marks(self) -> re.Pattern[str]:
        """The marks that prompts and answers may not write; plain text has no turns."""
        if not self.chat:
            return template.spellings(())
        return template.turn_marks(self.tokenizer, self._opening.closing, **self._rendering)

    @functools.cached_property
    def _known(self) -> np.ndarray:
        """The ids that the tokenizer has, bool [ids]."""
        ids = list(model_files.token_ids(self.tokenizer))
        known = np.zeros(max(ids) + 1, bool)
        known[ids] = True
        return known

    @property
    def _rendering(self) -> dict[str, Any]:
        return {"system": self.system, "thinking": self.thinking, "date": self.date}

    @property
    def _pad_id(self) -> int:
        """The id at padding. Any will do if no pad token has a row: the mask is False there."""
        pad = cast(template.Id, self.tokenizer.pad_token_id)
        rows = np.inf if self.vocab_size is None else self.vocab_size
        return self.end_id if pad is None or pad >= rows else pad

    def _prompt_ids(
        self, prompts: Sequence[str], answers: Sequence[str] | None = None
    ) -> list[list[int]]:
        """Encodes prompts up to the start of an answer, a generated one or each of those given."""
        if not len(prompts):
            raise ValueError("The set of prompts is empty: there is nothing to encode.")
        if not self.chat:
            return self._text_ids(prompts)
        texts = template.render(
            self.tokenizer, [[("user", prompt)] for prompt in self._defused(prompts)],
            add_generation_prompt=True, **self._rendering,
        )  # fmt: skip
        generated, given, _ = self._opening if answers is not None else ("", "", "")
        if generated and answers is not None:
            texts = [
                text if self._thinks(answer) else text.removesuffix(generated) + given
                for text, answer in zip(texts, answers, strict=True)
            ]
        # the template writes BOS itself if the model wants it, and special tokens would double it
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return self._with_rows(ids, prompts)

    def _answer_ids(self, answers: Sequence[str]) -> list[list[int]]:
        texts = [self._begin(answer) for answer in self._defused(answers)]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return self._with_rows([[*sequence, self.end_id] for sequence in ids], answers)

    def _defused(self, texts: Sequence[str]) -> list[str]:
        return [template.defuse(text, self._marks) for text in texts]

    def _thinks(self, answer: str) -> bool:
        """Tells whether a given answer brings thoughts of its own."""
        return bool(self._opening.closing) and self._opening.closing in answer

    def _begin(self, answer: str) -> str:
        """Returns the text of the answer's block."""
        generated, given, _ = self._opening
        if self._thinks(answer):  # the prompt or the answer opens the thoughts, not both
            opened = generated if answer.startswith(generated) else generated.strip()
            return answer.removeprefix(opened)
        return answer if generated else given + answer

    def _text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer(list(texts))["input_ids"]
        # the tokenizer adds a second BOS to a text that begins with one
        twice = [bos is not None and sequence[:2] == [bos, bos] for sequence in ids]
        ids = [sequence[double:] for sequence, double in zip(ids, twice, strict=True)]
        return self._with_rows(ids, texts)

    def _with_rows(self, ids: list[list[int]], texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids; raises ValueError for one that has no row in the embedding."""
        rows = self.vocab_size
        if rows is None or len(self._known) <= rows:
            return ids
        for sequence, text in zip(ids, texts, strict=True):
            if max(sequence, default=0) >= rows:
                beyond = max(sequence)
                raise ValueError(
                    f"A text has the token {self.tokenizer.convert_ids_to_tokens(beyond)!r} "
                    f"({beyond}), and the model's embedding has {rows} rows (vocab_size): "
                    f"{text[:80]!r}. Leave it out, or give the token a row."
                )
        return ids

    def _pad_left(
        self, ids: list[list[int]], prompts: Sequence[str], length: int | None
    ) -> Encoded:
        """Pads prompts to `length` columns, or to as many as the longest needs."""
        if length is None:
            length = max(map(len, ids))
        _check_lengths(ids, length, prompts, "prompt")
        tokens = np.full((len(ids), length), self._pad_id, np.int32)
        mask = np.zeros((len(ids), length), bool)
        for row, sequence in enumerate(ids):
            tokens[row, length - len(sequence) :] = sequence
            mask[row, length - len(sequence) :] = True
        return Encoded(tokens, mask)

    def _written_end(self) -> int | None:
        """Returns the first special or added token that the template writes after an answer."""
        _, after = template.around_answer(self.tokenizer, **self._rendering)
        # added tokens need not be declared special; added runs of blanks end no answer
        marks = {i for i, t in self.tokenizer.added_tokens_decoder.items() if t.content.strip()}
        ids = self.tokenizer(after, add_special_tokens=False)["input_ids"]
        return next((token for token in ids if token in marks), None)


def load_format(
    directory: str | pathlib.Path,
    *,
    chat: bool = True,
    system: str | None = None,
    thinking: bool = False,
    date: str | None = None,
) -> ChatFormat:
    """Reads the format of a model's directory: its tokenizer, generation_config.json's stop ids.

    Args:
      directory: the model's directory.
      chat: see `ChatFormat`, also for system and thinking.
      system: the system message of every conversation.
      thinking: the template's enable_thinking.
      date: the day that a template with a clock reads; None: the day in the model's directory, if
        it records one.

    Raises:
      FileNotFoundError: for the reasons of `load_tokenizer`.
      ValueError: for the reasons of `load_tokenizer`, if eos_token_id of generation_config.json is
        neither an id nor a list of ids, or if a file is not JSON.
    """
    home = model_files.config_directory(directory)
    rows = model_files.read_optional_json(home / model_files.CONFIG).get("vocab_size")
    return ChatFormat(
        load_tokenizer(directory),
        chat=chat,
        system=system,
        thinking=thinking,
        extra_stop_ids=_generation_stops(home / "generation_config.json"),
        date=date or model_files.recorded_date(directory),
        vocab_size=rows if type(rows) is int else None,
    )


def _generation_stops(path: pathlib.Path) -> tuple[int, ...]:
    stops = model_files.read_optional_json(path).get("eos_token_id")
    ids = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if not all(type(stop) is int for stop in ids):
        raise ValueError(
            f"eos_token_id in {path} is {stops!r}; expected a token's id or a list of them."
        )
    return tuple(ids)


def _check_lengths(ids, length: int, texts: Sequence[str], block: str) -> None:
    row = max(range(len(ids)), key=lambda index: len(ids[index]))
    if len(ids[row]) > length:
        count = sum(len(sequence) > length for sequence in ids)
        raise ValueError(
            f"{count} of {len(ids)} texts are longer than data.{block}_length={length} tokens; the "
            f"longest has {len(ids[row])}: {texts[row][:80]!r}. Raise it to {len(ids[row])} with "
            f"--config.data.{block}_length={len(ids[row])}, or leave such texts out."
        )
