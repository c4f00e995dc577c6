"""The layouts of published files: each one's fields, and the parser to its record.

A file's layout is recognised by the fields of its first rows, and every row must keep it. Any other
row raises SchemaError with the field, the value and the expected one.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
import re
from typing import Any

from nspo_jax.data import fields, pair_layouts, raw, records, sources


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a table of one's own.

    Attributes:
      prompt: the column of the prompts.
      category: the column of their categories; "" if there is none.
      kind: the prompts' kind, of `records.PROMPT_KINDS`.
      otherwise: True reads these columns only in files of no known layout.
    """

    prompt: str
    category: str = ""
    kind: str = "harmful"
    otherwise: bool = False

    def __post_init__(self):
        if self.kind not in records.PROMPT_KINDS:
            raise ValueError(
                f"The kind is {self.kind!r}; expected {', '.join(records.PROMPT_KINDS)}."
            )


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way of writing rows.

    Attributes:
      source: the rows' name.
      fields: the fields that a row must have.
      parse: turns a row's fields and its file into a record; raises fields.SchemaError.
      header: the columns of a csv file without a header.
      split: the split of files whose names say none; some benchmarks are a test set alone.
    """

    source: str
    fields: tuple[str, ...]
    parse: Callable[[Mapping[str, Any], sources.SourceFile], records.Record]
    header: tuple[str, ...] | None = None
    split: str = ""


def recognise(dataset: str, file: sources.SourceFile, columns: Columns | None = None) -> Layout:
    """Returns the layout of a file, the one with most fields of those that its first row fits.

    Args:
      dataset: a name of `sources.HOMES`.
      file: one of its files.
      columns: the columns of a table of one's own, for safety_prompts.

    Raises:
      raw.SourceError: if no row has the fields of a known layout.
    """
    own = () if columns is None else (_custom(columns),)
    known = LAYOUTS[dataset] if columns is None or columns.otherwise else own
    if known is not own and raw.suffix(file.path) == ".csv":
        cells = raw.first_cells(file.path)
        for layout in known:
            if layout.header and len(cells) == len(layout.header) and cells[-1] in _MMLU_LETTERS:
                return layout
    first = None
    for row in raw.read(file.path, file.name, raw.Problems()):
        if isinstance(row.value, dict):
            first = first or row
            fits = [layout for layout in known if row.value.keys() >= set(layout.fields)]
            fits = fits or [layout for layout in own if row.value.keys() >= set(layout.fields)]
            if fits:
                return max(fits, key=lambda layout: len(layout.fields))
    if first is None:
        raise raw.SourceError(f"{file.name} holds no row with named fields. Is it the right file?")
    expected = "; or ".join(", ".join(layout.fields) for layout in dict.fromkeys((*known, *own)))
    hint = "" if columns or dataset != "safety_prompts" else " Or name the prompts' column."
    raise raw.SourceError(
        f"{file.name} is not laid out as {dataset}: line {first.line} has the fields "
        f"{', '.join(map(str, first.value))}; expected {expected}.{hint}"
    )


def parse(
    file: sources.SourceFile, layout: Layout, problems: raw.Problems
) -> Iterator[records.Record]:
    """Yields the records of a file; rows that break the schema go to `problems`."""
    for row in raw.read(file.path, file.name, problems, layout.header):
        try:
            if not isinstance(row.value, dict):
                raise fields.SchemaError(f"is {type(row.value).__name__}, expected named fields")
            missing = [name for name in layout.fields if name not in row.value]
            if missing:
                raise fields.SchemaError(f"lacks {', '.join(missing)}")
            record = layout.parse(row.value, file)
        except fields.SchemaError as error:
            problems.add(file.name, row.line, str(error))
        else:
            yield record


# ---------------------------------------------------------------------------- general questions

_MMLU_LETTERS = ("A", "B", "C", "D")
_MMLU_CSV = ("question", *_MMLU_LETTERS, "answer")


def _question(question: str, answer: str, family: str, source: str, **rest) -> Any:
    empty = {"choices": (), "category": "", "identifier": "", "details": ""}
    return records.GeneralQuestion(
        question=question, answer=answer, family=family, source=source, **(empty | rest)
    )


def _gsm8k(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
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
        fields.text(row, "question"), _MMLU_LETTERS[index], "knowledge", "mmlu", category=subject,
        choices=tuple(fields.text(names, name) for name in names),
    )  # fmt: skip


def _mmlu_original(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    letter = fields.one_of(row, "answer", _MMLU_LETTERS)
    choices = [row[name] for name in _MMLU_LETTERS]
    return _mmlu(choices, _MMLU_LETTERS.index(letter), _subject(file), row)


def _mmlu_header(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    index = int(fields.one_of(row, "answer", ("0", "1", "2", "3")))
    return _mmlu([row[f"choice{i}"] for i in range(4)], index, _subject(file), row)


def _mmlu_hub(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    del file
    index = fields.one_of(row, "answer", (0, 1, 2, 3))
    return _mmlu(fields.list_of(row, "choices"), index, fields.text(row, "subject"), row)


def _subject(file: sources.SourceFile) -> str:
    """Returns MMLU's subject from the file's name, such as high_school_chemistry_test.csv."""
    return re.sub(r"_(dev|val|test)$", "", file.path.name.split(".")[0])


def _arc_original(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    question = row["question"]
    if not isinstance(question, dict) or not {"stem", "choices"} <= question.keys():
        raise fields.SchemaError(f"question is {question!r}, expected stem and choices")
    choices = fields.list_of(question, "choices")
    if not all(isinstance(one, dict) and {"text", "label"} <= one.keys() for one in choices):
        raise fields.SchemaError(f"choices are {choices!r}, expected each with text and label")
    return _arc(row, file, fields.text(question, "stem"), choices)


def _arc_hub(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
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


def _humaneval(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
    del file
    return _question(
        fields.text(row, "prompt"), fields.text(row, "canonical_solution"), "code", "humaneval",
        identifier=fields.text(row, "task_id"),
        details=json.dumps({name: fields.text(row, name) for name in ("entry_point", "test")}),
    )  # fmt: skip


def _ifeval(row: Mapping[str, Any], file: sources.SourceFile) -> records.GeneralQuestion:
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


# ------------------------------------------------------------------------------- safety prompts


def _prompt(request: str, source: str, kind: str = "harmful", detail=(), **rest) -> Any:
    empty = {"context": "", "target": "", "category": "", "identifier": ""}
    detail = "; ".join(part for part in detail if part)
    return records.SafetyPrompt(
        request=request, source=source, kind=kind, detail=detail, **(empty | rest)
    )


def _advbench(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    del file
    return _prompt(fields.text(row, "goal"), "advbench", target=fields.text(row, "target"))


def _jailbreakbench(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    del file
    return _prompt(
        fields.text(row, "Goal"), "jailbreakbench", target=fields.text(row, "Target"),
        category=fields.text(row, "Category"), identifier=fields.text(row, "Behavior"),
    )  # fmt: skip


def _harmbench(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    del file
    functional = fields.one_of(row, "FunctionalCategory", ("standard", "contextual", "copyright"))
    return _prompt(
        fields.text(row, "Behavior"), "harmbench", category=fields.text(row, "SemanticCategory"),
        detail=(functional, fields.text(row, "Tags", blank=True)),
        context=fields.text(row, "ContextString", blank=functional != "contextual"),
        identifier=fields.text(row, "BehaviorID"),
    )  # fmt: skip


def _strongreject(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    del file
    return _prompt(
        fields.text(row, "forbidden_prompt"), "strongreject", category=fields.text(row, "category"),
        detail=(fields.text(row, "source"),),
    )  # fmt: skip


def _xstest(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
    del file
    label = fields.one_of(row, "label", ("safe", "unsafe"))
    return _prompt(
        fields.text(row, "prompt"), "xstest", {"safe": "borderline", "unsafe": "harmful"}[label],
        detail=(fields.text(row, "focus", blank=True), fields.text(row, "note", blank=True)),
        category=fields.text(row, "type"), identifier=fields.text(row, "id"),
    )  # fmt: skip


def _custom(columns: Columns) -> Layout:
    def parse_row(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
        del file
        category = fields.text(row, columns.category, blank=True) if columns.category else ""
        return _prompt(fields.text(row, columns.prompt), "custom", columns.kind, category=category)

    needed = (columns.prompt, columns.category) if columns.category else (columns.prompt,)
    return Layout("custom", needed, parse_row)


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "pku_safe_rlhf": (
        Layout("pku_safe_rlhf", records.names(records.PreferencePair), pair_layouts.pku),
        Layout("pku_safe_rlhf", pair_layouts.FIRST_FIELDS, pair_layouts.pku_first),
        Layout("pku_safe_rlhf", ("prompt", "response"), pair_layouts.pku_ordered),
    ),
    "beavertails": (
        Layout("beavertails", records.names(records.JudgedAnswer), pair_layouts.beavertails),
    ),
    "general": (
        Layout("gsm8k", ("question", "answer"), _gsm8k),
        Layout("mmlu", _MMLU_CSV, _mmlu_original, header=_MMLU_CSV),
        Layout(
            "mmlu", ("question", "choice0", "choice1", "choice2", "choice3", "answer"), _mmlu_header
        ),
        Layout("mmlu", ("question", "subject", "choices", "answer"), _mmlu_hub),
        Layout("arc", ("id", "question", "answerKey"), _arc_original),
        Layout("arc", ("id", "question", "choices", "answerKey"), _arc_hub),
        Layout(
            "humaneval",
            ("task_id", "prompt", "entry_point", "canonical_solution", "test"),
            _humaneval,
            split="test",
        ),
        Layout(
            "ifeval", ("key", "prompt", "instruction_id_list", "kwargs"), _ifeval, split="test"
        ),
    ),
    "safety_prompts": (
        Layout("advbench", ("goal", "target"), _advbench),
        Layout(
            "harmbench",
            ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString",
             "BehaviorID"),
            _harmbench,
        ),
        Layout("jailbreakbench", ("Goal", "Target", "Behavior", "Category"), _jailbreakbench),
        Layout("strongreject", ("category", "source", "forbidden_prompt"), _strongreject),
        Layout("xstest", ("id", "prompt", "type", "label", "focus", "note"), _xstest),
    ),
}  # fmt: skip
