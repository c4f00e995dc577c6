"""The contents of a dataset in tables: (title, rows), with a header as the first row."""

import collections
from collections.abc import Iterable, Mapping, Sequence
import hashlib
from typing import TypeVar

import numpy as np

from nspo_jax.data import filtering, public, records

Kind = TypeVar("Kind")  # a type of record
Table = tuple[str, list[list[str]]]
SHOWN = 20  # so many broken rows and contaminated prompts are listed


def describe(loaded: public.Loaded, suites: Mapping[str, Iterable[str]]) -> list[Table]:
    """Describes rows, categories, labels, lengths, duplicates, contamination and broken rows.

    Args:
      loaded: the dataset.
      suites: name -> the prompts of an evaluation set, to be found in the dataset's.
    """
    rows = loaded.rows
    tables = [_splits(loaded)]
    if pairs := _rows_of(rows, records.PreferencePair):
        tables += [_severities(pairs), _preferences(pairs)]
    elif judged := _rows_of(rows, records.JudgedAnswer):
        tables.append(_safety(judged))
    elif asked := _rows_of(rows, records.SafetyPrompt):
        tables.append(_count("kind", (row.kind for row in asked), len(asked)))
    tables.append(_categories(rows))
    tables += [_lengths(rows), _duplicates(rows), *_contradictions(rows)]
    if suites:
        tables += _contamination(rows, suites)
    return [*tables, _problems(loaded)]


def _rows_of(rows: Sequence[records.Record], kind: type[Kind]) -> list[Kind]:
    """Returns the rows of a type, which are all of a dataset's or none."""
    return [row for row in rows if isinstance(row, kind)]


def _splits(loaded: public.Loaded) -> Table:
    table = [["split", "rows"]]
    table += [[name, str(count)] for name, count in loaded.splits.items()]
    return f"splits; {len(loaded.rows)} rows are looked at", table


def _count(label: str, values: Iterable, total: int) -> Table:
    counts = collections.Counter(values)
    table = [[label, "rows", "share"]]
    for value, count in sorted(counts.items(), key=lambda item: (-item[1], str(item[0]))):
        table.append([str(value), str(count), f"{count / total:.1%}"])
    return label, table


def _categories(rows: Sequence[records.Record]) -> Table:
    names = [name for row in rows for name in (row.categories or ("none",))]
    table = _count("category", names, len(rows))[1]
    return "categories; a row may have several", table


def _severities(rows: Sequence[records.PreferencePair]) -> Table:
    table = [["severity", "response_0", "response_1"]]
    unknown = any(row.response_0_severity_level == records.UNKNOWN for row in rows)
    for level in (*records.SEVERITIES, *[records.UNKNOWN] * unknown):
        first = sum(row.response_0_severity_level == level for row in rows)
        second = sum(row.response_1_severity_level == level for row in rows)
        table.append([str(level), str(first), str(second)])
    return "severities; 0 is safe" + ", -1 not published" * unknown, table


def _preferences(rows: Sequence[records.PreferencePair]) -> Table:
    """Counts the pairs whose labels agree with each other."""

    def consistent(row: records.PreferencePair, k: int) -> bool:
        safe = getattr(row, f"is_response_{k}_safe")
        harms = getattr(row, f"response_{k}_harm_category")
        return safe == (getattr(row, f"response_{k}_severity_level") == 0) == (not harms)

    def hashed(row: records.PreferencePair, k: int) -> bool:
        text = row.prompt + getattr(row, f"response_{k}")
        return hashlib.sha256(text.encode()).hexdigest() == getattr(row, f"response_{k}_sha256")

    safe = [row.is_response_0_safe + row.is_response_1_safe for row in rows]
    one = [row for row, count in zip(rows, safe, strict=True) if count == 1]
    facts = {
        "better and safer ids agree": sum(
            row.better_response_id == row.safer_response_id for row in rows
        ),
        "both answers safe": safe.count(2),
        "one answer safe": safe.count(1),
        "one answer safe, and the safer id names it": sum(
            row.safer_response_id == int(row.is_response_1_safe) for row in one
        ),
        "no answer safe": safe.count(0),
        "safety flags, severities and categories agree": sum(
            consistent(row, 0) and consistent(row, 1) for row in rows
        ),
        "sha256 is that of prompt + response": sum(
            hashed(row, 0) and hashed(row, 1) for row in rows
        ),
    }
    if all(row.response_0_severity_level == records.UNKNOWN for row in rows):
        facts = dict(list(facts.items())[:5])  # the others need fields that are not published
    return "labels", _facts(facts, len(rows))


def _safety(rows: Sequence[records.JudgedAnswer]) -> Table:
    facts = {
        "safe": sum(row.is_safe for row in rows),
        "unsafe": sum(not row.is_safe for row in rows),
        "safety flags and categories agree": sum(row.is_safe == (not row.category) for row in rows),
    }
    return "labels", _facts(facts, len(rows))


def _facts(facts: Mapping[str, int], total: int) -> list[list[str]]:
    table = [["", "rows", "share"]]
    return table + [[name, str(n), f"{n / total:.1%}"] for name, n in facts.items()]


def _lengths(rows: Sequence[records.Record]) -> Table:
    texts = {"prompt": [row.prompt for row in rows]}
    for name in ("response", "response_0", "response_1", "answer", "target"):
        if hasattr(rows[0], name):
            texts[name] = [getattr(row, name) for row in rows]
    table = [["text", "empty", "median", "90 %", "99 %", "longest"]]
    for name, values in texts.items():
        counts = [len(value.split()) for value in values]
        shares = np.percentile(counts, [50, 90, 99, 100], method="lower")
        empty = sum(not value.strip() for value in values)
        table.append([name, str(empty), *(str(int(share)) for share in shares)])
    return "lengths, in words between spaces", table


def _duplicates(rows: Sequence[records.Record]) -> Table:
    groups = filtering.duplicates(rows)
    again = sum(len(group) - 1 for group in groups)
    most = max(groups, key=len, default=[0])
    table = [["prompts", "unique", "repeated rows", "most often"]]
    table.append([str(len(rows)), str(len(rows) - again), str(again), str(len(most))])
    return "duplicates, but for case, spacing and punctuation", table


def _contradictions(rows: Sequence[records.Record]) -> list[Table]:
    """Lists texts that recur with different labels, of which at most one can be right."""
    flags = collections.defaultdict(set)
    for row in _rows_of(rows, records.JudgedAnswer):
        flags[row.prompt, row.response].add(row.is_safe)
    for row in _rows_of(rows, records.PreferencePair):
        for k in (0, 1):
            answer = row.prompt, getattr(row, f"response_{k}")
            flags[answer].add(getattr(row, f"is_response_{k}_safe"))
    if not flags:
        return []
    both = [answer for answer, found in flags.items() if len(found) > 1]
    table = [["prompt with its answer", "different ones", "safe in one row, unsafe in another"]]
    table.append(["", str(len(flags)), str(len(both))])
    return [("contradicting labels", table)]


def _contamination(
    rows: Sequence[records.Record], suites: Mapping[str, Iterable[str]]
) -> list[Table]:
    suites = {name: list(prompts) for name, prompts in suites.items()}
    found = filtering.contamination(rows, suites)
    table = [["evaluation set", "its prompts", "rows with one", "rows with a passage"]]
    for name, prompts in suites.items():
        whole = [match.whole for match in found if match.suite == name]
        table.append([name, str(len(prompts)), str(sum(whole)), str(len(whole) - sum(whole))])
    tables = [(f"contamination: {len(found)} rows", table)]
    if found:
        listed = [["row", "evaluation set", "words in common"]]
        listed += [[str(m.index), m.suite, _cut(m.passage, 80)] for m in found[:SHOWN]]
        tables.append((f"the first {min(SHOWN, len(found))} of these", listed))
    return tables


def _problems(loaded: public.Loaded) -> Table:
    problems = loaded.problems
    table = [["broken row", "reason"]] if problems.total else [["there is none"]]
    shown = problems.examples[:SHOWN]
    table += [[f"{name}:{line}", _cut(reason, 160)] for name, line, reason in shown]
    if problems.total > SHOWN:
        table.append([f"... and {problems.total - SHOWN} more", ""])
    return f"broken rows: {problems.total} (files: {len(loaded.files)})", table


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 3]}..."
