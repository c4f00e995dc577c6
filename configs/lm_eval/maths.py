"""The grading of final answers to maths problems, for the task files beside this one.

The last boxed expression is the answer, or else what follows "the answer is", or else the last
number: the order of Qwen2.5-Math's evaluation. math-verify (extra eval) parses it and the reference
and compares them as mathematics: 1/2 is 0.5, and (0, 1] is not (0, 1).
"""

import re
from typing import Any

from lm_eval.tasks.hendrycks_math import utils as hendrycks_math
import math_verify

_BOXED = math_verify.LatexExtractionConfig(boxed_match_priority=0)
_READ = [_BOXED, math_verify.ExprExtractionConfig()]


def math500(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Grades an answer to a problem of MATH-500, whose reference is one expression."""
    return {"exact_match": float(is_right(doc["answer"], results[0]))}


def olympiadbench(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Grades an answer to an open-ended problem of OlympiadBench, with its tolerance if it has one.

    Only the first of `final_answer` counts, as in Qwen2.5-Math's evaluation; it lists several
    values in one text, divided by commas.
    """
    (reference,) = doc["final_answer"][:1]
    return {"exact_match": float(is_right(reference, results[0], doc.get("error")))}


def is_right(reference: str, answer: str, error: str | None = None) -> bool:
    """Tells whether an answer's final expression is the reference.

    Args:
      reference: LaTeX, with dollar signs or without.
      answer: the model's text.
      error: the largest distance between two numbers that are the same answer; None: none.
    """
    boxed = re.sub(r"^\$|\$$", "", reference.strip())
    wanted = math_verify.parse(rf"\boxed{{{boxed}}}", extraction_config=[_BOXED])
    # math-verify would take several boxed expressions for a set
    last = hendrycks_math.last_boxed_only_string(answer)
    found = math_verify.parse(last or answer, extraction_config=_READ)
    if math_verify.verify(wanted, found):
        return True
    if not error or not wanted or not found:
        return False
    try:
        return abs(float(wanted[0]) - float(found[0])) <= float(error)
    except (TypeError, ValueError):  # an expression that is no number
        return False
