"""Filters of rows: duplicates, evaluation sets' prompts, seeded subsets by category.

Every function takes any rows with a `prompt`, keeps their order, and returns the rows taken out.
"""

import collections
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib
import re
from typing import Protocol, TypeVar
import unicodedata

NGRAM = 8  # so many words in common make two prompts the same task
SHORTEST = 4  # evaluation prompts of fewer words match only as a whole


class Prompted(Protocol):
    """Anything with a prompt, such as a record or a `Conversation`."""

    @property
    def prompt(self) -> str: ...


class Categorised(Prompted, Protocol):
    """Anything with a prompt and its categories, such as a record."""

    @property
    def categories(self) -> tuple[str, ...]: ...


Row = TypeVar("Row", bound=Prompted)
Labelled = TypeVar("Labelled", bound=Categorised)


@dataclasses.dataclass(frozen=True)
class Match:
    """A prompt that an evaluation set has, or shares a passage with.

    Attributes:
      index: the row's index.
      suite: the evaluation set.
      passage: the words in common, normalised.
      whole: True if these are the whole of both prompts.
    """

    index: int
    suite: str
    passage: str
    whole: bool


def words(text: str) -> tuple[str, ...]:
    """Splits a text into words without case, spacing, punctuation and Unicode forms.

    Copies of a text may differ in these. Symbols with a meaning in maths and code stay: operators,
    brackets, decimal points, and a minus before a number, but no hyphen between words.
    """
    # invisible characters (zero-width and soft hyphen, direction marks, all Cf) must hide no copy
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"['’`´]", "", text)  # don't becomes dont
    return tuple(
        re.findall(r"\d+(?:[.,]\d+)*|[^\W\d_]+|[-−](?=\s*\d)|[+*/^=<>%$&|~@#\\()\[\]{}]", text)
    )


def duplicates(rows: Sequence[Prompted]) -> list[list[int]]:
    """Lists the indices of rows with the same `words`, one list for each prompt that recurs."""
    groups: dict[tuple[str, ...], list[int]] = collections.defaultdict(list)
    for index, row in enumerate(rows):
        groups[_key(row.prompt)].append(index)
    return [group for group in groups.values() if len(group) > 1]


def deduplicate(rows: Sequence[Row]) -> list[Row]:
    """Keeps the first row of every prompt; see `duplicates`."""
    later = {index for group in duplicates(rows) for index in group[1:]}
    return [row for index, row in enumerate(rows) if index not in later]


def contamination(rows: Sequence[Prompted], suites: Mapping[str, Iterable[str]]) -> list[Match]:
    """Finds rows whose prompt is an evaluation set's, or shares NGRAM words in a row with one.

    An evaluation prompt of SHORTEST to NGRAM - 1 words counts if a row contains all of it. A
    shorter one counts if a row is equal to it. Words are split at spaces, so text in scripts
    without spaces is compared as a whole.

    Args:
      rows: the training prompts.
      suites: name -> the prompts of an evaluation set.

    Returns:
      One match per row, by index: a whole prompt in any suite, or else the first passage.
    """
    whole: dict[tuple[str, ...], str] = {}
    passages: dict[tuple[str, ...], str] = {}
    for suite, prompts in suites.items():
        for prompt in prompts:
            text = _key(prompt)
            whole.setdefault(text, suite)
            text = _spoken(text)
            if len(text) >= SHORTEST:
                for gram in _ngrams(text, min(NGRAM, len(text))):
                    passages.setdefault(gram, suite)
    lengths = sorted({len(gram) for gram in passages}, reverse=True)
    found = []
    for index, row in enumerate(rows):
        text = _key(row.prompt)
        if text in whole:
            found.append(Match(index, whole[text], " ".join(text), True))
            continue
        spoken = _spoken(text)
        grams = (gram for length in lengths for gram in _ngrams(spoken, length))
        gram = next((gram for gram in grams if gram in passages), None)
        if gram is not None:
            found.append(Match(index, passages[gram], " ".join(gram), False))
    return found


def decontaminate(
    rows: Sequence[Row], suites: Mapping[str, Iterable[str]]
) -> tuple[list[Row], list[Match]]:
    """Returns the rows without `contamination`, and the matches of those taken out."""
    found = contamination(rows, suites)
    out = {match.index for match in found}
    return [row for index, row in enumerate(rows) if index not in out], found


def sample(rows: Sequence[Labelled], counts: Mapping[str, int], seed: int) -> list[Labelled]:
    """Draws a seeded subset with so many rows of every category, in their old order.

    A row is drawn by a hash of the seed and its prompt, so that rows of other categories, and their
    order, do not change the draw. A row of several categories counts for each that drew it.

    Args:
      rows: the rows to draw from.
      counts: category -> the number of its rows.
      seed: the draw's seed.

    Raises:
      ValueError: if a category has fewer rows than asked for.
    """
    chosen: set[int] = set()
    for category, count in counts.items():
        members = [index for index, row in enumerate(rows) if category in row.categories]
        if count < 0 or len(members) < count:
            known = sorted({name for row in rows for name in row.categories})
            raise ValueError(
                f"{count} rows of {category!r} are asked for and {len(members)} are there. The "
                f"categories of these rows: {', '.join(known) or 'none'}."
            )
        members.sort(key=lambda index: (_rank(seed, rows[index].prompt), index))
        chosen |= set(members[:count])
    return [rows[index] for index in sorted(chosen)]


def _key(text: str) -> tuple[str, ...]:
    return words(text) or (text.strip(),)  # a prompt of symbols alone is its own key


def _spoken(text: tuple[str, ...]) -> tuple[str, ...]:
    """Drops the symbols, since those of a link or a formula would make an empty passage."""
    return tuple(word for word in text if word[0].isalnum())


def _ngrams(text: tuple[str, ...], length: int) -> Iterable[tuple[str, ...]]:
    return (text[start : start + length] for start in range(len(text) - length + 1))


def _rank(seed: int, prompt: str) -> bytes:
    return hashlib.sha256(f"{seed} {prompt}".encode()).digest()
