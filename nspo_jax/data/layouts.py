"""The layouts of published files: each one's fields, and the parser to its record.

A file's layout is recognised by the fields of its first rows, and every row must keep it. Any other
row raises SchemaError with the field, the value and the expected one.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import re
from typing import Any

from nspo_jax.data import (
    fields,
    general_layouts,
    pair_layouts,
    prompt_layouts,
    raw,
    records,
    sources,
)


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
      named: a pattern that the file's name must have, where the fields could be anyone's.
    """

    source: str
    fields: tuple[str, ...]
    parse: Callable[[Mapping[str, Any], sources.SourceFile], records.Record]
    header: tuple[str, ...] | None = None
    split: str = ""
    named: str = ""

    def fits(self, file: sources.SourceFile, row: Mapping[str, Any]) -> bool:
        """Tells whether a file with such a row may be in this layout."""
        return row.keys() >= set(self.fields) and bool(
            re.search(self.named, file.name, re.IGNORECASE)
        )


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
            if (
                layout.header
                and len(cells) == len(layout.header)
                and cells[-1] in general_layouts.MMLU_LETTERS
            ):
                return layout
    first = None
    for row in raw.read(file.path, file.name, raw.Problems()):
        if isinstance(row.value, dict):
            first = first or row
            fits = [layout for layout in known if layout.fits(file, row.value)]
            fits = fits or [layout for layout in own if layout.fits(file, row.value)]
            if fits:
                return max(fits, key=lambda layout: len(layout.fields))
    if first is None:
        raise raw.SourceError(f"{file.name} holds no row with named fields. Is it the right file?")
    expected = "; or ".join(
        ", ".join(layout.fields)
        for layout in dict.fromkeys((*known, *own))
        if not layout.named  # the fields alone would not do
    )
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


def _custom(columns: Columns) -> Layout:
    def parse_row(row: Mapping[str, Any], file: sources.SourceFile) -> records.SafetyPrompt:
        del file
        category = fields.text(row, columns.category, blank=True) if columns.category else ""
        return prompt_layouts.prompt(
            fields.text(row, columns.prompt), "custom", columns.kind, category=category
        )

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
        Layout("gsm8k", ("question", "answer"), general_layouts.gsm8k),
        Layout(
            "mmlu",
            general_layouts.MMLU_CSV,
            general_layouts.mmlu_original,
            header=general_layouts.MMLU_CSV,
        ),
        Layout("mmlu", general_layouts.MMLU_WITH_HEADER, general_layouts.mmlu_header),
        Layout("mmlu", ("question", "subject", "choices", "answer"), general_layouts.mmlu_hub),
        Layout("arc", ("id", "question", "answerKey"), general_layouts.arc_original),
        Layout("arc", ("id", "question", "choices", "answerKey"), general_layouts.arc_hub),
        Layout(
            "humaneval",
            ("task_id", "prompt", "entry_point", "canonical_solution", "test"),
            general_layouts.humaneval,
            split="test",
        ),
        Layout(
            "ifeval",
            ("key", "prompt", "instruction_id_list", "kwargs"),
            general_layouts.ifeval,
            split="test",
        ),
        Layout("alpaca", ("instruction", "input", "output"), general_layouts.instruction),
        Layout(
            "dolly", ("instruction", "context", "response", "category"), general_layouts.dolly
        ),
        Layout("mbpp", ("task_id", "text", "code", "test_list"), general_layouts.mbpp),
        Layout(
            "leetcode",
            ("task_id", "query", "completion", "entry_point"),
            general_layouts.leetcode,
        ),
        Layout("math", ("problem", "solution", "level"), general_layouts.math),
    ),
    "safety_prompts": (
        Layout("advbench", ("goal", "target"), prompt_layouts.advbench),
        Layout(
            "harmbench",
            ("Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString",
             "BehaviorID"),
            prompt_layouts.harmbench,
        ),
        Layout(
            "jailbreakbench",
            ("Goal", "Target", "Behavior", "Category"),
            prompt_layouts.jailbreakbench,
        ),
        Layout(
            "strongreject",
            ("category", "source", "forbidden_prompt"),
            prompt_layouts.strongreject,
        ),
        Layout("harmfulqa", ("topic", "subtopic", "question"), prompt_layouts.harmfulqa),
        Layout(
            "beavertails_evaluation",
            ("prompt", "category", "category_id"),
            prompt_layouts.beavertails_evaluation,
        ),
        Layout(
            "simple_safety_tests",
            ("id", "harm_area", "counter", "category", "prompts_final"),
            prompt_layouts.simple_safety_tests,
        ),
        Layout("alert", ("id", "prompt", "category"), prompt_layouts.alert, named="alert"),
        Layout(
            "sorry_bench",
            ("question_id", "category", "turns", "prompt_style"),
            prompt_layouts.sorry_bench,
        ),
        Layout("or_bench", ("prompt",), prompt_layouts.or_bench, named="or.bench"),
        Layout("xstest", ("id", "prompt", "type", "label", "focus", "note"), prompt_layouts.xstest),
    ),
    "instructions": (
        Layout("alpaca_eval", ("instruction", "dataset"), prompt_layouts.alpaca_eval),
    ),
}  # fmt: skip
