"""A tokenizer's chat template: its texts on a fixed date, its marks, and the openings of answers.

Templates may read the clock (`strftime_now`), which would change all texts overnight, and may open
thoughts in the generation prompt, where a given answer does not belong. Users and models may spell
the marks that set turns apart; these are defused, or a turn could be forged.
"""

from collections.abc import Iterable, Sequence
import datetime
import functools
import logging
import os
import re
from typing import NamedTuple, cast

import jinja2
import transformers

Tokenizer = transformers.PreTrainedTokenizerBase
Id = int | None  # a special token's id; the stubs of transformers allow strings and lists too
_log = logging.getLogger(__name__)
_CLOCK = "strftime_now"
# a call that spells out its format, as in all known templates
_READS_CLOCK = re.compile(
    _CLOCK + r"""\s*\(\s*(?:format\s*=\s*)?(?P<mark>["'])(?P<format>[^"'\\]*)(?P=mark)\s*\)"""
)
_ASKED, _PROBE = "the-request-itself", "the-answer-itself"
_BRACKETED = re.compile(r"<[^\s<>]+>|\[[^\s\[\]]+\]")
_THOUGHTS = re.compile("think|thought|reason", re.IGNORECASE)
_SYSTEM_MARKS = ("<<SYS>>", "<</SYS>>")  # Llama 2's tokenizer has no such tokens


class Opening(NamedTuple):
    """The template's beginnings of a generated answer and of a given one.

    generated: the end of the generation prompt that a given answer's turn lacks, an opened
    `<think>`. given: the text in that place of a given answer's turn, closed thoughts or nothing.
    closing: the tag that ends thoughts, "" if there are none; an answer that holds it brings its
    own thoughts.
    """

    generated: str
    given: str
    closing: str


def reads_clock(tokenizer: Tokenizer) -> bool:
    """Tells whether the chat template's text depends on the day of rendering."""
    return bool(tokenizer.chat_template) and _CLOCK in tokenizer.get_chat_template()


def pin(tokenizer: Tokenizer, date: str | None) -> str:
    """Returns the chat template with the clock's readings written out, at midnight of a day.

    Args:
      tokenizer: a tokenizer with a chat template.
      date: the day, such as 2026-11-25; None leaves the clock in.

    Raises:
      ValueError: for a template that computes the format of its date.
    """
    template = tokenizer.get_chat_template()
    if date is None or _CLOCK not in template:
        return template
    day = datetime.datetime.fromisoformat(date)
    pinned = _READS_CLOCK.sub(lambda call: f"({day.strftime(call['format'])!r})", template)
    if re.search(_CLOCK + r"\s*\(", pinned):
        raise ValueError(
            f"The chat template calls {_CLOCK} with a format that it computes, and its date cannot "
            f"be held fixed: write {_CLOCK}('%d %b %Y') or the like into the model's "
            "tokenizer_config.json or chat_template.jinja."
        )
    return pinned


def render(
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[tuple[str, str]]],
    *,
    add_generation_prompt: bool,
    system: str | None,
    thinking: bool,
    date: str | None,
) -> list[str]:
    """Renders conversations of (role, content), each after the system message.

    Raises:
      ValueError: if there is no template, or it refuses or ignores the system message.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "The tokenizer has no chat template. Put one in its tokenizer_config.json or "
            "chat_template.jinja, or, for a base model that continues text, set "
            "--config.data.chat=False."
        )
    options = {
        "tokenize": False, "add_generation_prompt": add_generation_prompt,
        "enable_thinking": thinking, "chat_template": pin(tokenizer, date),
    }  # fmt: skip

    def apply(system: str | None) -> list[str]:
        first = [] if system is None else [("system", system)]
        messages = [
            [{"role": role, "content": content} for role, content in [*first, *turns]]
            for turns in conversations
        ]
        texts = tokenizer.apply_chat_template(messages, **options)
        return cast(list[str], texts)  # the type depends on `tokenize`

    try:
        texts = apply(system)
    except jinja2.TemplateError as error:
        try:
            apply(None)
        except jinja2.TemplateError as own:
            raise ValueError(
                f"The chat template refuses a conversation of user and assistant: {own}. "
                "Correct it in the model's tokenizer_config.json or chat_template.jinja."
            ) from own
        raise ValueError(
            f"The chat template has no system role: {error}. Unset config.data.system_prompt "
            f"(now {(system or '')[:80]!r})."
        ) from error
    if system and system.strip() not in texts[0]:
        raise ValueError(
            "The chat template has no system role: it leaves out the message "
            f"{system[:80]!r}. Unset config.data.system_prompt."
        )
    return texts


def around_answer(tokenizer: Tokenizer, **options) -> tuple[str, str]:
    """Returns the template's text before and after an assistant's answer.

    Args:
      tokenizer: a tokenizer with a chat template.
      **options: system, thinking and date of `render`.

    Raises:
      ValueError: for the reasons of `render`, and for a template that does not write answers.
    """
    turns = [("user", "a"), ("assistant", _PROBE)]
    (text,) = render(tokenizer, [turns], add_generation_prompt=False, **options)
    before, found, after = text.rpartition(_PROBE)
    if not found:
        raise ValueError(
            f"The chat template does not write what the assistant says: {text[-80:]!r}. "
            "Correct it in the model's tokenizer_config.json or chat_template.jinja."
        )
    return before, after


def opening(tokenizer: Tokenizer, **options) -> Opening:
    """Compares the generation prompt with a whole conversation; see `around_answer`."""
    before, _ = around_answer(tokenizer, **options)
    (prompt,) = render(tokenizer, [[("user", "a")]], add_generation_prompt=True, **options)
    shared = os.path.commonprefix([prompt, before])
    shared = re.sub(r"[<\[][^>\]]*$", "", shared)  # <think> and </think> stay whole
    generated, given = prompt[len(shared) :], before[len(shared) :]
    if not generated.strip() and not given.strip():  # only blanks differ, and the prompt's stay
        return Opening("", "", "")
    tag = re.search(r"([<\[])/?([^<>\[\]/|]+)([>\]])", generated + given)
    return Opening(generated, given, f"{tag[1]}/{tag[2]}{tag[3]}" if tag else "")


def turn_marks(tokenizer: Tokenizer, closing: str, **options) -> re.Pattern[str]:
    """Finds the marks that set turns apart, which no user or model may write.

    These are the tokenizer's special tokens and the template's brackets after a user's message,
    whether tokens (`<|im_end|>`) or not (`[/INST]`). Tags of thoughts are not among them, since
    answers have them.

    Args:
      tokenizer: a tokenizer with a chat template.
      closing: the tag that ends thoughts, "" if there are none; see `Opening`.
      **options: the options of `render`; the system message is not used, and may write any mark.

    Raises:
      ValueError: for the reasons of `render`.
    """
    turns = [("user", _ASKED), ("assistant", _PROBE), ("user", _ASKED)]
    options = {**options, "system": None, "add_generation_prompt": True}
    (text,) = render(tokenizer, [turns], **options)
    _, _, after = text.partition(_ASKED)  # the template's own system message may come before
    added = tokenizer.added_tokens_decoder.values()
    marks = {token.content.strip() for token in added if token.special}
    marks |= {*_BRACKETED.findall(after)}
    marks |= {mark for mark in _SYSTEM_MARKS if mark in tokenizer.get_chat_template()}
    marks -= {closing, closing.replace("/", "", 1)}
    return spellings(mark for mark in marks if not _THOUGHTS.search(mark))


def spellings(marks: Iterable[str], pattern: str = "(?!)") -> re.Pattern[str]:
    """Makes the pattern of marks and of another pattern's finds; a single letter is no mark."""
    spelled = sorted({re.escape(mark) for mark in marks if len(mark) > 1}, reverse=True)
    return re.compile("|".join([*spelled, pattern]), re.MULTILINE)


def defuse(text: str, marks: re.Pattern[str]) -> str:
    """Puts a blank behind the first character of each mark, so that a tokenizer reads words."""
    while found := marks.findall(text):  # marks may overlap, so one pass may leave some
        for mark in found:
            _tell(mark)
        text = marks.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    return text


@functools.cache
def _tell(mark: str) -> None:
    """Logs a mark once, however many texts spell it."""
    _log.info("texts spell %r, which the chat template alone may write: it is read as text", mark)
