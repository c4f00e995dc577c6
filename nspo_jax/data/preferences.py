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
      safe: the safety flag of each.
    """

    prompt: str
    responses: tuple[str, str]
    better: int | None
    safer: int | None
    safe: tuple[bool, bool]


def from_records(rows: Sequence[records.PreferencePair]) -> list[Pair]:
    """Returns PKU-SafeRLHF's pairs as published, in which two unsafe responses are still ranked."""
    return [
        Pair(
            row.prompt,
            (row.response_0, row.response_1),
            row.better_response_id,
            row.safer_response_id,
            (row.is_response_0_safe, row.is_response_1_safe),
        )
        for row in rows
    ]


def is_held_out(prompt: str) -> bool:
    """Tells whether the pairs of a prompt are for evaluation, as those of one prompt in ten are."""
    return division.is_held_out(prompt, HELD_OUT_SHARE)
