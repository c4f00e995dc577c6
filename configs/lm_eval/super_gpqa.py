"""The prompt and the grading of SuperGPQA (arXiv 2502.14739), zero-shot as its authors ask it."""

import re
from typing import Any

_LETTERS = "ABCDEFGHIJ"
_ASKED = """\
Answer the following multiple choice question. There is only one correct answer. The last line of \
your response should be in the format 'Answer: $LETTER' (without quotes), where LETTER is one of \
A, B, C, D, E, F, G, H, I, or J.

{question}
{options}
"""
# in this order; the last match of the first pattern that matches counts
_PATTERNS = (
    r"[Tt]he\s+(?:\w+\s+){0,2}answer\s+is:?\W*([A-J])\b(?![a-z])",
    r"[Aa]nswer\W*:\W*([A-J])\b",
    r"^\W*([A-J])\b",
)


def prompt(doc: dict[str, Any]) -> str:
    """Writes the question with its options."""
    options = "\n".join(
        f"{letter}) {option}" for letter, option in zip(_LETTERS, doc["options"], strict=False)
    )
    return _ASKED.format(question=doc["question"], options=options)


def grade(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Compares the letter that an answer ends with; an answer without a letter is wrong.

    `no_letter` is the share of those.
    """
    for pattern in _PATTERNS:
        if found := re.findall(pattern, results[0], re.MULTILINE):
            return {"acc": float(found[-1] == doc["answer_letter"]), "no_letter": 0.0}
    return {"acc": 0.0, "no_letter": 1.0}
