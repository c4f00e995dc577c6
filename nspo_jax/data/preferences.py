"""Preference pairs: a prompt, two responses, and the labels of help, harm and safety."""

from collections.abc import Sequence
import dataclasses

from nspo_jax.data import division, records

HELD_OUT_SHARE = 0.1  # the share of prompts whose pairs are for evaluation


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two responses to a prompt.

    Attributes:
      prompt: the request.
      responses: the two responses.
      better: 0 or 1, the more helpful one; None if neither is.
      safer: 0 or 1, the less harmful one; None if neither is.
      safe: the safety flag of each; None for a second mention of an answer that stands alone.
      categories: the kinds of harm in each, by the dataset's names.
    """

    prompt: str
    responses: tuple[str, str]
    better: int | None
    safer: int | None
    safe: tuple[bool | None, bool | None]
    categories: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())


def from_records(rows: Sequence[records.PreferencePair]) -> list[Pair]:
    """Returns PKU-SafeRLHF's pairs as published, in which two unsafe responses are still ranked."""
    return [
        Pair(
            row.prompt,
            (row.response_0, row.response_1),
            row.better_response_id,
            row.safer_response_id,
            (row.is_response_0_safe, row.is_response_1_safe),
            (row.response_0_harm_category, row.response_1_harm_category),
        )
        for row in rows
    ]


def from_answers(rows: Sequence[records.JudgedAnswer]) -> list[Pair]:
    """Pairs BeaverTails' answers to one prompt, in their order, each answer once.

    A safe and an unsafe answer rank by safety; no answer is called more helpful. An answer without
    a partner stands beside itself, with one flag.
    """
    answers: dict[str, list[records.JudgedAnswer]] = {}
    for row in rows:
        answers.setdefault(row.prompt, []).append(row)
    pairs = []
    for prompt, given in answers.items():
        safe = [row for row in given if row.is_safe]
        unsafe = [row for row in given if not row.is_safe]
        mixed = min(len(safe), len(unsafe))
        alone = [*safe[mixed:], *unsafe[mixed:]]  # these have one flag
        pairs += [_pair(prompt, *both) for both in zip(safe[:mixed], unsafe[:mixed], strict=True)]
        pairs += [_pair(prompt, *both) for both in zip(alone[::2], alone[1::2], strict=False)]
        if len(alone) % 2:
            last = alone[-1]
            responses = (last.response, last.response)
            categories = (last.category, ())
            pairs.append(Pair(prompt, responses, None, None, (last.is_safe, None), categories))
    return pairs


def _pair(prompt: str, first: records.JudgedAnswer, second: records.JudgedAnswer) -> Pair:
    flags = (first.is_safe, second.is_safe)
    safer = None if first.is_safe == second.is_safe else flags.index(True)
    categories = (first.category, second.category)
    return Pair(prompt, (first.response, second.response), None, safer, flags, categories)


def is_held_out(prompt: str) -> bool:
    """Tells whether the pairs of a prompt are for evaluation, as those of one prompt in ten are."""
    return division.is_held_out(prompt, HELD_OUT_SHARE)
