"""The prompts of judges: request and answer inside a judge's own text, which they cannot forge.

A prompt is rendered by the chat template of the judge's tokenizer (`ChatPrompt`) or by a text with
placeholders (`TextPrompt`). What the user and the policy wrote is material: a token of the judge or
a mark of its prompt that they spell out gets a blank behind its first character.
"""

import abc
from collections.abc import Hashable, Mapping
import re
from typing import Any, NamedTuple, cast

import jinja2
import transformers

from nspo_jax.data import template as template_lib
from nspo_jax.rewards import verdict_tree

# The marks of guards' prompts, besides the tokenizer's own tokens; a text must not forge them.
MARKS = r"<<?/?(?:BEGIN|END|SYS)\b|\[/?INST\]|^(?:User|Agent|USER|ASSISTANT):"
# The placeholders of published templates -> what stands in their place.
_PLACES = {
    "behavior": "request", "prompt": "request", "question": "request", "goal": "request",
    "generation": "answer", "response": "answer", "answer": "answer", "context": "context",
}  # fmt: skip
_PLACE = re.compile(r"\{(" + "|".join(_PLACES) + r")\}")
# What sets the parts of a template apart: tags, and the labels at the beginning of a line.
_TAG = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]|<(?:BEGIN|END) [A-Z]+>")
_LABEL = re.compile(r"^(?:#+ )?[A-Z]\w*(?: \w+){0,2}:", re.MULTILINE)


class Encoded(NamedTuple):
    """An exchange as tokens.

    Attributes:
      ids: the tokens up to the verdicts.
      cut: the answer lost its end.
      fits: the rest is whole; otherwise there can be no verdict.
    """

    ids: list[int]
    cut: bool
    fits: bool


class Prompt(abc.ABC):
    """A judge's prompt.

    Args:
      tokenizer: the judge's.
      marks: a pattern of the marks that a text must not write, besides the tokenizer's tokens.
      longest: the most tokens of an answer that the judge reads; None: what fits.
    """

    lead: list[int] = []  # the tokens behind the prompt that are taken as given

    def __init__(
        self,
        tokenizer: transformers.PreTrainedTokenizerBase,
        marks: str,
        longest: int | None = None,
    ):
        self._tokenizer, self._longest = tokenizer, longest
        tokens = (token.content.strip() for token in tokenizer.added_tokens_decoder.values())
        self._forged = template_lib.spellings(tokens, marks)

    @abc.abstractmethod
    def render(self, request: str, answer: str, context: str = "") -> str:
        """Renders the prompt's text up to the judge's own words; it defuses nothing."""

    def tokenize(self, text: str) -> list[int]:
        """Tokenizes a rendered text. The template writes BOS itself where the model wants it."""
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def grow(
        self, texts: Mapping[str, Hashable], what: str, *, alone: bool = False
    ) -> verdict_tree.Tree:
        """Builds the tree of the verdicts; its lead, if any, ends every prompt from now on.

        Args:
          texts: a verdict's text -> its label.
          what: the judge's name, for messages.
          alone: tokenizes verdicts by themselves, not behind the prompt, and takes their common
            beginning as given, so that the mass says nothing of it.

        Raises:
          ValueError: see `verdict_tree.build`.
        """
        before = "" if alone else self.render("a", "b")
        tree = verdict_tree.build(self._tokenizer, texts, before, self.tokenize, what, lead=alone)
        self.lead = [*tree.lead]
        return tree

    def encode_exchange(self, request: str, answer: str, length: int, context: str = "") -> Encoded:
        """Returns the ids up to the verdict, at most `length`, and two bools: cut, and fits.

        The texts are plain: a token or a mark of the prompt that they spell out gets a blank behind
        its first character, and ends or begins nothing. An answer that is too long loses its end
        (cut). The exchange does not fit if the rest alone is too long.
        """
        request, answer, context = map(self._defuse, (request, answer, context))
        short = answer if self._longest is None else self._shorten(answer, self._longest)
        cut, answer = short != answer, short
        ids = self._ids(request, answer, context)
        cut = cut or len(ids) > length
        while len(ids) > length and answer:
            answer = self._shorten(answer, len(ids) - length, drop=True)
            ids = self._ids(request, answer, context)
        return Encoded(ids[-length:], cut, len(ids) <= length)

    def _shorten(self, answer: str, count: int, *, drop: bool = False) -> str:
        """Keeps the first `count` tokens of a text, or drops so many at its end."""
        ids = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        if len(ids) <= count and not drop:
            return answer
        kept = ids[: max(0, len(ids) - count) if drop else count]
        text = cast(str, self._tokenizer.decode(kept))  # one sequence gives one string
        shorter = self._defuse(text).rstrip("\ufffd")
        return shorter if len(shorter) < len(answer) else answer[: len(answer) // 2]

    def _ids(self, request: str, answer: str, context: str) -> list[int]:
        return [*self.tokenize(self.render(request, answer, context)), *self.lead]

    def _defuse(self, text: str) -> str:
        return template_lib.defuse(text, self._forged)


class ChatPrompt(Prompt):
    """A prompt in the chat template of the judge's tokenizer: a message of each side.

    Args:
      tokenizer: the judge's.
      what: the judge's name, for messages.
      date: the day that a template with a clock reads; None: today.
      longest: see `Prompt`.
      options: variables of the template.
      shown: texts that the template must show besides request and answer.

    Raises:
      ValueError: if there is no chat template, or it leaves out something that it should render.
    """

    def __init__(
        self,
        tokenizer: transformers.PreTrainedTokenizerBase,
        what: str,
        *,
        date: str | None = None,
        longest: int | None = None,
        options: Mapping[str, Any] | None = None,
        shown: tuple[str, ...] = (),
    ):
        super().__init__(tokenizer, MARKS, longest)
        if not tokenizer.chat_template:
            raise ValueError(
                f"{what}'s tokenizer has no chat template: put one in its tokenizer_config.json "
                "or chat_template.jinja."
            )
        self._template = template_lib.pin(tokenizer, date)
        self._options, self._shown, self._blocks = dict(options or {}), shown, False
        if not self._renders():  # templates of multimodal guards read a list of content blocks
            self._blocks = True
            if not self._renders():
                raise ValueError(
                    f"{what}'s chat template leaves out the request, the answer or the "
                    "categories. Correct it in its tokenizer_config.json or chat_template.jinja."
                )

    def messages(self, request: str, answer: str, context: str) -> list[tuple[str, str]]:
        """Returns (role, content) of the messages that the template renders."""
        return [("user", ask(request, context)), ("assistant", answer)]

    def render(self, request: str, answer: str, context: str = "") -> str:
        block = lambda text: [{"type": "text", "text": text}] if self._blocks else text  # noqa: E731
        messages: Any = [
            {"role": role, "content": block(text)}
            for role, text in self.messages(request, answer, context)
        ]
        rendered = self._tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
            chat_template=self._template,
            **self._options,
        )
        return cast(str, rendered)  # `tokenize` decides the type

    def _renders(self) -> bool:
        wanted = ["the-request-itself", "the-answer-itself", *self._shown]
        try:
            text = self.render(*wanted[:2])
        except (jinja2.TemplateError, TypeError):  # the template expects blocks and not text
            return False
        return all(part in text for part in wanted)


class TextPrompt(Prompt):
    """A prompt in a published text with placeholders, tokenized with BOS where the model has it.

    Args:
      tokenizer: the judge's.
      text: the template, with `{behavior}`, `{prompt}`, `{question}` or `{goal}` for the request
        and `{generation}`, `{response}` or `{answer}` for the answer.
      with_context: the template of exchanges with a context, with `{context}` too; "": the context
        stands before the request.
      longest: see `Prompt`.
    """

    def __init__(
        self,
        tokenizer: transformers.PreTrainedTokenizerBase,
        text: str,
        *,
        with_context: str = "",
        longest: int | None = None,
    ):
        super().__init__(tokenizer, marks_of(text + "\n" + with_context), longest)
        self._text, self._with_context = text, with_context
        first = tokenizer("")["input_ids"][:1]
        self._bos = first if first and first[0] == tokenizer.bos_token_id else []

    def render(self, request: str, answer: str, context: str = "") -> str:
        if context and self._with_context:
            return fill(self._with_context, request, answer, context)
        return fill(self._text, ask(request, context), answer)

    def tokenize(self, text: str) -> list[int]:
        """Tokenizes a rendered text behind BOS, where the tokenizer writes one."""
        return [*self._bos, *super().tokenize(text)]


def ask(request: str, context: str) -> str:
    """Joins a behaviour's context and the request, as HarmBench asks models."""
    return f"{context}\n\n---\n\n{request}" if context else request


def fill(template: str, request: str, answer: str, context: str = "") -> str:
    """Fills a published template once: a placeholder that a text spells out stays as it is."""
    values = {"request": request, "answer": answer, "context": context}
    return _PLACE.sub(lambda place: values[_PLACES[place[1]]], template)


def marks_of(template: str) -> str:
    """Makes the pattern of the marks that a template's parts are set apart by."""
    bare = _PLACE.sub("", template)
    tags = sorted({re.escape(tag) for tag in _TAG.findall(bare)}, reverse=True)
    labels = sorted({re.escape(label) for label in _LABEL.findall(bare)}, reverse=True)
    return "|".join([*tags, *(f"^{label}" for label in labels)]) or "(?!)"
