"""Rows and their lines, out of every format, packed or not; damage is named."""

import json

import pyarrow
from pyarrow import parquet
import pytest

from nspo_jax.data import raw
from tests.data import public_files


def read(path, columns=None):
    problems = raw.Problems()
    rows = [(row.line, row.value) for row in raw.read(path, path.name, problems, columns)]
    return rows, problems.examples


@pytest.mark.parametrize("pack", ["", ".gz", ".xz"])
def test_json_lines_with_a_broken_one(tmp_path, pack):
    text = '{"a": "x\u2028y"}\n\n{"a": \n[1]\n{"a": 2}'  # U+2028 ends no line of JSON lines
    rows, problems = read(public_files.write(tmp_path / f"rows.jsonl{pack}", text))
    assert rows == [(1, {"a": "x\u2028y"}), (4, [1]), (5, {"a": 2})]
    assert [(file, line) for file, line, _ in problems] == [(f"rows.jsonl{pack}", 3)]
    assert "is not JSON" in problems[0][2]


def test_a_line_that_is_not_utf8_is_one_broken_row(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n{"a": "\xff"}\n{"a": 3}\n')
    rows, problems = read(tmp_path / "rows.jsonl")
    assert [line for line, _ in rows] == [1, 3] and problems[0][1] == 2


def test_csv_lines_are_where_rows_begin(tmp_path):
    text = 'a,b\r\n1,"two\r\nlines, ""quoted"""\r\n\r\n3\r\n4,5,6\r\n7,8\r\n'
    rows, problems = read(public_files.write(tmp_path / "rows.csv", text))
    assert rows == [
        (2, {"a": "1", "b": 'two\r\nlines, "quoted"'}),
        (7, {"a": "7", "b": "8"}),
    ]
    assert problems == [
        ("rows.csv", 5, "has 1 cells, expected 2"),
        ("rows.csv", 6, "has 3 cells, expected 2"),
    ]


def test_an_unclosed_quote_is_no_cell(tmp_path):
    rows, problems = read(public_files.write(tmp_path / "rows.csv", 'a,b\n1,2\n3,"4\n5,6\n'))
    assert rows == [(2, {"a": "1", "b": "2"})]
    assert problems[0][1] == 3 and "unexpected end of data" in problems[0][2]


def test_csv_without_a_header_and_with_a_mark(tmp_path):
    path = public_files.write(tmp_path / "rows.csv", "\ufeff1,2\n3,4\n")
    assert read(path, ["a", "b"])[0] == [(1, {"a": "1", "b": "2"}), (2, {"a": "3", "b": "4"})]
    assert read(path)[0] == [(2, {"1": "3", "2": "4"})]  # the mark is no part of the name
    assert raw.first_cells(path) == ["1", "2"]


def test_json_lists_keep_their_lines(tmp_path):
    rows = [{"a": 1}, {"a": "[x],\n"}, {"a": 3}]
    whole = json.dumps(rows, indent=1)
    found, _ = read(public_files.write(tmp_path / "rows.json", f"{whole}\n{whole}\n"))
    assert [value for _, value in found] == rows * 2  # one list after the other
    assert [line for line, _ in found] == [2, 5, 8, 13, 16, 19]
    path = public_files.write(tmp_path / "rows.json", '[{"a": 1},\n {"a": }]')
    with pytest.raises(raw.SourceError, match=r"rows.json is not JSON.*line 2"):
        read(path)


def test_parquet_rows_are_numbered(tmp_path):
    rows = [{"q": "x", "choices": ["1", "2"]}, {"q": None, "choices": []}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == ([(1, rows[0]), (2, rows[1])], [])


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl.xz", "rows.parquet", "rows.csv"])
def test_damaged_files_are_named(tmp_path, name):
    path = public_files.write(tmp_path / name, '{"a": 1}\n' * 100)
    path.write_bytes(path.read_bytes()[:40] + b"\xff\xfe")
    with pytest.raises(raw.SourceError, match=name):
        read(path)


def test_all_problems_are_counted_and_the_first_kept():
    problems = raw.Problems()
    for line in range(raw.Problems.KEPT + 50):
        problems.add("a.csv", line, "is odd")
    problems.add("b.csv", 7, "is odd")
    assert problems.total == raw.Problems.KEPT + 51
    assert problems.counts == {"a.csv": raw.Problems.KEPT + 50, "b.csv": 1}
    assert problems.examples[-1] == ("b.csv", 7, "is odd")
    assert len(problems.examples) == raw.Problems.KEPT + 1


def test_a_csv_cell_may_be_longer_than_pythons_limit(tmp_path):
    long = "x " * 70000 + "\nsecond line, with comma\nthird"
    path = tmp_path / "long.csv"
    path.write_text(f'text,n\nshort,1\n"{long}",2\nafter,3\n', newline="")
    problems = raw.Problems()
    rows = list(raw.read(path, "long.csv", problems))
    assert [row.value["text"] for row in rows] == ["short", long, "after"]
    assert problems.total == 0


def test_pandas_index_is_no_column_of_a_parquet_file(tmp_path):
    rows = [{"prompt": "a", "__index_level_0__": 7}, {"prompt": "b", "__index_level_0__": 9}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    read = raw.read(tmp_path / "a.parquet", "a.parquet", raw.Problems())
    assert [row.value for row in read] == [{"prompt": "a"}, {"prompt": "b"}]
