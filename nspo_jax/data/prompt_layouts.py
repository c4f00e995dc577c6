"""The row layouts of safety prompts."""

from collections.abc import Mapping, Sequence
import re
from typing import Any

from nspo_jax.data import fields, records, sources

_ALPACA = r"\s*### Instruction:\s*(.*?)\s*### Response:\s*"


def prompt(
    request: str, source: str, kind: str = "harmful", detail: Sequence[str] = (), **rest: str
) -> records.SafetyPrompt:
    """Makes a record; the fields that are not named are empty."""
    empty = {"context": "", "target": "", "category": "", "identifier": ""}
    joined = "; ".join(part for part in detail if part)
    return records.SafetyPrompt(
        request=request, source=source, kind=kind, detail=joined, **(empty | rest)
    )


def advbench(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    del file
    return prompt(fields.text(row, "goal"), "advbench", target=fields.text(row, "target"))


def jailbreakbench(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    del file
    return prompt(
        fields.text(row, "Goal"), "jailbreakbench", target=fields.text(row, "Target"),
        category=fields.text(row, "Category"), identifier=fields.text(row, "Behavior"),
    )  # fmt: skip


def harmbench(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    del file
    functional = fields.one_of(row, "FunctionalCategory", ("standard", "contextual", "copyright"))
    return prompt(
        fields.text(row, "Behavior"), "harmbench", category=fields.text(row, "SemanticCategory"),
        detail=(functional, fields.text(row, "Tags", blank=True)),
        context=fields.text(row, "ContextString", blank=functional != "contextual"),
        identifier=fields.text(row, "BehaviorID"),
    )  # fmt: skip


def strongreject(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    del file
    return prompt(
        fields.text(row, "forbidden_prompt"), "strongreject", category=fields.text(row, "category"),
        detail=(fields.text(row, "source"),),
    )  # fmt: skip


def xstest(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    del file
    label = fields.one_of(row, "label", ("safe", "unsafe"))
    return prompt(
        fields.text(row, "prompt"), "xstest", {"safe": "borderline", "unsafe": "harmful"}[label],
        detail=(fields.text(row, "focus", blank=True), fields.text(row, "note", blank=True)),
        category=fields.text(row, "type"), identifier=fields.text(row, "id"),
    )  # fmt: skip


def harmfulqa(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    """Reads HarmfulQA with a row for each question."""
    del file
    return prompt(
        fields.text(row, "question"), "harmfulqa", category=fields.text(row, "topic"),
        detail=(fields.text(row, "subtopic"),),
    )  # fmt: skip


def beavertails_evaluation(
    row: Mapping[str, Any], file: sources.SourceFile
) -> records.SafetyPrompt:
    """Reads BeaverTails-Evaluation."""
    del file
    category = fields.one_of(row, "category", records.BEAVERTAILS_CATEGORIES)
    return prompt(fields.text(row, "prompt"), "beavertails_evaluation", category=category)


def simple_safety_tests(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    """Reads SimpleSafetyTests."""
    del file
    return prompt(
        fields.text(row, "prompts_final"), "simple_safety_tests",
        category=fields.text(row, "harm_area"), detail=(fields.text(row, "category"),),
        identifier=fields.text(row, "id"),
    )  # fmt: skip


def or_bench(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    """Reads OR-Bench: prompts that only look harmful, and its harmful ones in or-bench-toxic."""
    known = {name: fields.text(row, name) for name in ("category", "id") if name in row}
    return prompt(
        fields.text(row, "prompt"), "or_bench",
        "harmful" if "toxic" in file.name.lower() else "borderline",
        category=known.get("category", ""), identifier=known.get("id", ""),
    )  # fmt: skip


def alert(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    """Reads ALERT, without the marks of Alpaca's format around its requests: chats have their own.

    The adversarial file has attack_type too, and is refused: it is another suite.
    """
    del file
    if "attack_type" in row:
        raise fields.SchemaError("has attack_type: it is of the adversarial file, not alert.jsonl")
    wrapped = re.fullmatch(_ALPACA, fields.text(row, "prompt"), re.DOTALL)
    request = wrapped[1] if wrapped else fields.text(row, "prompt")
    return prompt(
        request, "alert", category=fields.text(row, "category"), identifier=str(row["id"])
    )


def alpaca_eval(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    """Reads AlpacaEval's instructions, and a model's answers to them where the file has some."""
    del file
    known = {name: fields.text(row, name, blank=True) for name in ("output", "generator")
             if name in row}  # fmt: skip
    return prompt(
        fields.text(row, "instruction"), "alpaca_eval", "general",
        category=fields.text(row, "dataset"), target=known.get("output", ""),
        detail=(known.get("generator", ""),),
    )  # fmt: skip


def sorry_bench(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    """Reads SORRY-Bench's base prompts; its paraphrases (another prompt_style) are refused."""
    del file
    fields.one_of(row, "prompt_style", ("base",))
    turns = fields.list_of(row, "turns")
    if len(turns) != 1 or not isinstance(turns[0], str) or not turns[0].strip():
        raise fields.SchemaError(f"turns is {turns!r}, expected a list of one text")
    return prompt(
        turns[0], "sorry_bench", category=str(row["category"]), identifier=str(row["question_id"])
    )
