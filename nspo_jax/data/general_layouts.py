"""The row layouts of general questions, which test skills to keep."""

from collections.abc import Mapping
import json
import re
from typing import Any

from nspo_jax.data import fields, records, sources

MMLU_LETTERS = ("A", "B", "C", "D")
MMLU_CSV = ("question", *MMLU_LETTERS, "answer")
MMLU_WITH_HEADER = ("question", "choice0", "choice1", "choice2", "choice3", "answer")


def _question(question: str, answer: str, family: str, source: str, **rest) -> Any:
    empty = {"choices": (), "category": "", "identifier": "", "details": ""}
    return records.GeneralQuestion(
        question=question, answer=answer, family=family, source=source, **(empty | rest)
    )


def gsm8k(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    del file
    answer = fields.text(row, "answer")
    if not re.search(r"\n#### \S+$", answer.rstrip()):
        raise fields.SchemaError(
            f"answer ends in {answer[-20:]!r}, expected a last line '#### NUMBER'"
        )
    return _question(fields.text(row, "question"), answer, "maths", "gsm8k")


def _mmlu(choices: list[Any], index: int, subject: str, row) -> records.GeneralQuestion:
    names = {f"choice {letter}": value for letter, value in zip("ABCD", choices, strict=False)}
    if len(choices) != 4:
        raise fields.SchemaError(f"has {len(choices)} choices, expected 4")
    return _question(
        fields.text(row, "question"), MMLU_LETTERS[index], "knowledge", "mmlu", category=subject,
        choices=tuple(fields.text(names, name) for name in names),
    )  # fmt: skip


def mmlu_original(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    letter = fields.one_of(row, "answer", MMLU_LETTERS)
    choices = [row[name] for name in MMLU_LETTERS]
    return _mmlu(choices, MMLU_LETTERS.index(letter), _subject(file), row)


def mmlu_header(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    index = int(fields.one_of(row, "answer", ("0", "1", "2", "3")))
    return _mmlu([row[f"choice{i}"] for i in range(4)], index, _subject(file), row)


def mmlu_hub(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    del file
    index = fields.one_of(row, "answer", (0, 1, 2, 3))
    return _mmlu(fields.list_of(row, "choices"), index, fields.text(row, "subject"), row)


def _subject(file: sources.SourceFile) -> str:
    """Returns MMLU's subject from the file's name, such as high_school_chemistry_test.csv."""
    return re.sub(r"_(dev|val|test)$", "", file.path.name.split(".")[0])


def arc_original(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    question = row["question"]
    if not isinstance(question, dict) or not {"stem", "choices"} <= question.keys():
        raise fields.SchemaError(f"question is {question!r}, expected stem and choices")
    choices = fields.list_of(question, "choices")
    if not all(isinstance(one, dict) and {"text", "label"} <= one.keys() for one in choices):
        raise fields.SchemaError(f"choices are {choices!r}, expected each with text and label")
    return _arc(row, file, fields.text(question, "stem"), choices)


def arc_hub(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    value = row["choices"]
    if not isinstance(value, dict) or not {"text", "label"} <= value.keys():
        raise fields.SchemaError(f"choices are {value!r}, expected text and label")
    texts, labels = fields.list_of(value, "text"), fields.list_of(value, "label")
    if len(texts) != len(labels):
        raise fields.SchemaError(f"choices have {len(texts)} texts and {len(labels)} labels")
    choices = [{"text": t, "label": n} for t, n in zip(texts, labels, strict=True)]
    return _arc(row, file, fields.text(row, "question"), choices)


def _arc(row, file: sources.SourceFile, stem: str, choices) -> records.GeneralQuestion:
    labels = [choice["label"] for choice in choices]  # they are A to E, or 1 to 5
    if not 2 <= len(choices) <= len(records.LETTERS):
        raise fields.SchemaError(
            f"has {len(choices)} choices, expected 2 to {len(records.LETTERS)}"
        )
    key = fields.one_of(row, "answerKey", tuple(labels))
    which = re.search("challenge|easy", file.name, re.IGNORECASE)
    return _question(
        stem, records.LETTERS[labels.index(key)], "knowledge", "arc",
        choices=tuple(fields.text(choice, "text") for choice in choices),
        identifier=fields.text(row, "id"), category=which[0].title() if which else "",
    )  # fmt: skip


def humaneval(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    """Reads HumanEval."""
    del file
    return _question(
        fields.text(row, "prompt"), fields.text(row, "canonical_solution"), "code", "humaneval",
        identifier=fields.text(row, "task_id"),
        details=json.dumps({name: fields.text(row, name) for name in ("entry_point", "test")}),
    )  # fmt: skip


def ifeval(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    """Reads IFEval."""
    del file
    instructions, arguments = (
        fields.list_of(row, "instruction_id_list"),
        fields.list_of(row, "kwargs"),
    )
    if len(instructions) != len(arguments):
        raise fields.SchemaError(
            f"has {len(instructions)} instructions and {len(arguments)} kwargs"
        )
    return _question(
        fields.text(row, "prompt"), "", "instruction", "ifeval", identifier=str(row["key"]),
        details=json.dumps({"instruction_id_list": instructions, "kwargs": arguments}),
    )  # fmt: skip


def instruction(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    """Reads Alpaca, and Dolly in the same form; the input stands below the instruction."""
    del file
    category = fields.text(row, "category", blank=True) if "category" in row else ""
    source = "dolly" if "category" in row else "alpaca"
    return _instruction(row, "input", "output", source, category)


def dolly(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    """Reads Dolly as published; the context stands below the instruction."""
    del file
    return _instruction(row, "context", "response", "dolly", fields.text(row, "category"))


def _instruction(
    row: Mapping[str, Any], below: str, answer: str, source: str, category: str
) -> records.GeneralQuestion:
    parts = (fields.text(row, "instruction"), fields.text(row, below, blank=True))
    return _question(
        "\n\n".join(part for part in parts if part.strip()), fields.text(row, answer),
        "instruction", source, category=category,
    )  # fmt: skip


def mbpp(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    """Reads MBPP, whose answer is the program and whose `details` are the tests."""
    del file
    tests = {name: row.get(name, []) for name in ("test_setup_code", "test_list")}
    return _question(
        fields.text(row, "text"), fields.text(row, "code").replace("\r\n", "\n"), "code", "mbpp",
        identifier=str(row["task_id"]), details=json.dumps(tests),
    )  # fmt: skip


def leetcode(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    """Reads LeetCodeDataset, whose answer is the program alone."""
    del file
    return _question(
        fields.text(row, "query"), fields.text(row, "completion"), "code", "leetcode",
        identifier=fields.text(row, "task_id"),
    )  # fmt: skip


def math(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    """Reads MATH, whose answer is the worked solution."""
    del file
    subject = "subject" if "subject" in row else "type"
    return _question(
        fields.text(row, "problem"), fields.text(row, "solution"), "maths", "math",
        category=fields.text(row, subject),
    )  # fmt: skip
