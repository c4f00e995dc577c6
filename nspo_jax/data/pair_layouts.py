"""The row layouts of PKU-SafeRLHF and BeaverTails, in each of their releases."""

from collections.abc import Mapping
from typing import Any

from nspo_jax.data import fields, records, sources


def pku(row: Mapping[str, Any], file: sources.SourceFile) -> records.PreferencePair:
    del file
    fields.exactly(row, records.names(records.PreferencePair))
    values: dict[str, Any] = {
        "prompt": fields.text(row, "prompt"),
        "prompt_source": fields.text(row, "prompt_source"),
    }
    for k in (0, 1):
        answer = f"response_{k}"
        values |= {
            answer: fields.text(row, answer, blank=True),
            f"{answer}_source": fields.text(row, f"{answer}_source"),
            f"is_{answer}_safe": fields.boolean(row, f"is_{answer}_safe"),
            f"{answer}_harm_category": fields.flags(
                row, f"{answer}_harm_category", records.HARM_CATEGORIES
            ),
            f"{answer}_severity_level": fields.one_of(
                row, f"{answer}_severity_level", records.SEVERITIES
            ),
            f"{answer}_sha256": fields.text(row, f"{answer}_sha256"),
        }
    for name in ("better_response_id", "safer_response_id"):
        values[name] = fields.one_of(row, name, (0, 1))
    return records.PreferencePair(**values)


FIRST_FIELDS = (
    "prompt", "response_0", "response_1", "is_response_0_safe", "is_response_1_safe",
    "better_response_id", "safer_response_id",
)  # fmt: skip
_UNPUBLISHED: dict[str, Any] = {
    "prompt_source": "",
    **{
        f"response_{k}_{name}": value
        for k in (0, 1)
        for name, value in (
            ("source", ""), ("harm_category", ()), ("severity_level", records.UNKNOWN),
            ("sha256", ""),
        )
    },
}  # fmt: skip


def pku_first(row: Mapping[str, Any], file: sources.SourceFile) -> records.PreferencePair:
    """Reads the first releases (30K, 10K), without categories, severities, sources or digests."""
    del file
    fields.exactly(row, FIRST_FIELDS)
    values: dict[str, Any] = {"prompt": fields.text(row, "prompt")}
    for k in (0, 1):
        values[f"response_{k}"] = fields.text(row, f"response_{k}", blank=True)
        values[f"is_response_{k}_safe"] = fields.boolean(row, f"is_response_{k}_safe")
    for name in ("better_response_id", "safer_response_id"):
        values[name] = fields.one_of(row, name, (0, 1))
    return records.PreferencePair(**values, **_UNPUBLISHED)


def pku_ordered(row: Mapping[str, Any], file: sources.SourceFile) -> records.PreferencePair:
    """Reads a prompt with [safer, other], the form of DPO's trainers, whose order alone is a label.

    The first answer is taken for the safe, the safer and the better one.
    """
    del file
    if row.keys() - {"prompt", "response"}:
        raise fields.SchemaError(
            f"has the fields {', '.join(sorted(row))}, expected prompt and response"
        )
    answers = fields.list_of(row, "response")
    if len(answers) != 2:
        raise fields.SchemaError(f"response holds {len(answers)} answers, expected [safer, other]")
    named = {f"response_{k}": answer for k, answer in enumerate(answers)}
    texts = {name: fields.text(named, name, blank=True) for name in named}
    return records.PreferencePair(
        prompt=fields.text(row, "prompt"),
        **texts,
        is_response_0_safe=True,
        is_response_1_safe=False,
        better_response_id=0,
        safer_response_id=0,
        **_UNPUBLISHED,
    )


def beavertails(row: Mapping[str, Any], file: sources.SourceFile) -> records.JudgedAnswer:
    del file
    fields.exactly(row, records.names(records.JudgedAnswer))
    return records.JudgedAnswer(
        prompt=fields.text(row, "prompt"),
        response=fields.text(row, "response", blank=True),
        is_safe=fields.boolean(row, "is_safe"),
        category=fields.flags(row, "category", records.BEAVERTAILS_CATEGORIES),
    )
