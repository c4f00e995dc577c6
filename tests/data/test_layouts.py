"""Every published layout to its record; rows that break it are listed with line and reason."""

import json

import pyarrow
from pyarrow import parquet
import pytest

from nspo_jax.data import layouts, raw, records, sources
from tests.data import public_files


def parse(dataset, path, columns=None):
    (file,) = sources.find(dataset, [str(path)])
    layout = layouts.recognise(dataset, file, columns)
    problems = raw.Problems()
    return layout, list(layouts.parse(file, layout, problems)), problems.examples


def write_rows(path, rows):
    return public_files.write(path, public_files.lines(rows))


def test_pku_keeps_every_field(tmp_path):
    row = public_files.pku()
    _, (record,), problems = parse("pku_safe_rlhf", write_rows(tmp_path / "train.jsonl", [row]))
    assert not problems
    for name, value in row.items():
        if name.endswith("harm_category"):
            value = tuple(harm for harm in records.HARM_CATEGORIES if value[harm])
        assert getattr(record, name) == value, name
    assert record.response_0_harm_category == ("Privacy Violation", "Economic Crime")
    assert (record.better_response_id, record.safer_response_id) == (0, 1)  # they disagree
    said = record.conversation()
    assert (said.prompt, said.answer) == (row["prompt"], "Ask a locksmith.")
    assert (said.family, said.kind) == ("Privacy Violation", "harmful")


def test_an_unsafe_pair_has_no_reference_answer(tmp_path):
    row = public_files.pku(is_response_1_safe=False)
    _, (record,), _ = parse("pku_safe_rlhf", write_rows(tmp_path / "train.jsonl", [row]))
    assert record.conversation().answer == ""


HARMS = public_files.pku()["response_0_harm_category"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"response_1": None}, "response_1 is None, expected text"),
        ({"is_response_0_safe": "False"}, "is_response_0_safe is 'False', expected true or false"),
        ({"is_response_0_safe": 1}, "is_response_0_safe is 1, expected true or false"),
        ({"response_0_severity_level": 4}, "response_0_severity_level is 4, expected one of 0, 1"),
        ({"better_response_id": -1}, "better_response_id is -1, expected one of 0, 1"),
        ({"safer_response_id": True}, "safer_response_id is True, expected one of 0, 1"),
        ({"response_0_harm_category": HARMS | {"Arson": True}}, "19 categories, but for {'Arson'}"),
        ({"response_0_harm_category": HARMS | {"Drugs": 0}}, "Drugs is 0, expected true or false"),
        ({"response_0_harm_category": ["Drugs"]}, "has not the 19 categories"),
        ({"rank": 3}, "has the unknown fields rank"),
        ({"response_0": "\ud800"}, "response_0 is not valid Unicode"),
    ],
)
def test_a_broken_pair_is_listed(tmp_path, changes, reason):
    rows = [public_files.pku(), "", public_files.pku(**changes), public_files.pku()]
    _, found, problems = parse("pku_safe_rlhf", write_rows(tmp_path / "train.jsonl", rows))
    assert len(found) == 2
    ((file, line, why),) = problems
    assert (file, line) == ("train.jsonl", 3)
    assert reason in why


def test_rows_without_fields_are_listed(tmp_path):
    short = public_files.pku()
    del short["prompt_source"], short["safer_response_id"]
    rows = ["[1]", short, public_files.pku(), "{"]
    _, found, problems = parse("pku_safe_rlhf", write_rows(tmp_path / "train.jsonl", rows))
    assert len(found) == 1
    assert sorted((line, why[:44]) for _, line, why in problems) == [
        (1, "is list, expected named fields"),
        (2, "lacks prompt_source, safer_response_id"),
        (4, "is not JSON: Expecting property name enclose"),
    ]


def test_beavertails(tmp_path):
    safe = public_files.beavertails(
        is_safe=True, category=dict.fromkeys(records.BEAVERTAILS_CATEGORIES, False)
    )
    rows = [public_files.beavertails(), safe, public_files.beavertails(category={})]
    path = write_rows(tmp_path / "30k" / "test.jsonl.gz", rows)
    _, (first, second), problems = parse("beavertails", path)
    assert first == records.JudgedAnswer(
        "how do I pick a lock?", "Bend a hairpin.", False, ("privacy_violation",)
    )
    assert first.conversation().answer == "" and second.conversation().answer == "Bend a hairpin."
    assert second.categories == () and second.conversation().family == "none"
    assert [line for _, line, _ in problems] == [3]


def test_gsm8k(tmp_path):
    rows = [
        {"question": "2 times 3?", "answer": "It is 2*3=<<2*3=6>>6.\n#### 6"},
        {"question": "2 times 3?", "answer": "six"},
    ]
    _, (record,), problems = parse("general", write_rows(tmp_path / "train.jsonl", rows))
    assert record.answer == rows[0]["answer"]
    assert record.conversation().answer == "It is 2*3=6.\n#### 6"
    assert (record.family, record.categories) == ("maths", ("gsm8k",))
    assert problems == [
        ("train.jsonl", 2, "answer ends in 'six', expected a last line '#### NUMBER'")
    ]


HEADER = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]


@pytest.mark.parametrize(
    ("name", "first", "good", "bad"),
    [("original/anatomy_test.csv", [], "C", "E"), ("header/anatomy_test.csv", [HEADER], "2", "4")],
)
def test_mmlu_tables(tmp_path, name, first, good, bad):
    rows = [["Which, of\nthese?", "a", "b", "c", "d", good], ["Which?", "a", "b", "c", "d", bad]]
    path = public_files.write_csv(tmp_path / name, first + rows)
    _, (record,), problems = parse("general", path)
    assert record.prompt == "Which, of\nthese?\nA. a\nB. b\nC. c\nD. d\nAnswer:"
    assert (record.answer, record.category) == ("C", "anatomy")
    assert record.categories == ("mmlu/anatomy",)
    ((_, line, reason),) = problems
    assert line == len(first) + 3 and f"answer is '{bad}'" in reason


def hub_rows(tmp_path, name, rows):
    path = tmp_path / name / "test-00000-of-00001.parquet"
    path.parent.mkdir()
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_mmlu_of_the_hub(tmp_path):
    row = {"question": "Which?", "subject": "anatomy", "choices": list("abcd"), "answer": 2}
    path = hub_rows(tmp_path, "all", [row, row | {"choices": ["a"]}, row | {"answer": 7}])
    _, (record,), problems = parse("general", path)
    assert (record.choices, record.answer) == (("a", "b", "c", "d"), "C")
    assert [(line, why) for _, line, why in problems] == [
        (2, "has 1 choices, expected 4"),
        (3, "answer is 7, expected one of 0, 1, 2, 3"),
    ]


def test_arc_in_both_layouts(tmp_path):
    choices = [{"text": "Fog", "label": "1"}, {"text": "Rain", "label": "2"}]
    row = {"id": "M1", "question": {"stem": "What falls?", "choices": choices}, "answerKey": "2"}
    rows = [row, row | {"answerKey": "3"}, row | {"question": "What falls?"}]
    path = write_rows(tmp_path / "ARC-Challenge-Dev.jsonl", rows)
    _, (original,), problems = parse("general", path)
    assert original.prompt == "What falls?\nA. Fog\nB. Rain\nAnswer:"
    assert (original.answer, original.identifier) == ("B", "M1")  # by position, as prompted
    assert original.categories == ("arc/Challenge",)
    assert [line for _, line, _ in problems] == [2, 3]
    columns = {"text": ["Fog", "Rain"], "label": ["1", "2"]}
    flat = {"id": "M1", "question": "What falls?", "choices": columns, "answerKey": "2"}
    path = hub_rows(tmp_path, "ARC-Challenge", [flat, flat | {"answerKey": "C"}])
    found = parse("general", path.parent.parent / "ARC-Challenge")[1:]
    assert found[0] == [original] and found[1][0][1] == 2


def test_code_and_instructions(tmp_path):
    code = {
        "task_id": "HumanEval/0", "prompt": "def one():\n", "entry_point": "one",
        "canonical_solution": "    return 1\n", "test": "def check(f): assert f() == 1\n",
    }  # fmt: skip
    path = write_rows(tmp_path / "HumanEval.jsonl.gz", [code, code | {"test": ""}])
    layout, (record,), problems = parse("general", path)
    assert (layout.split, record.family, record.identifier) == ("test", "code", "HumanEval/0")
    assert json.loads(record.details) == {"entry_point": "one", "test": code["test"]}
    assert problems == [("HumanEval.jsonl.gz", 2, "test is empty")]
    task = {"key": 7, "prompt": "No commas.", "instruction_id_list": ["no_comma"], "kwargs": [{}]}
    path = write_rows(tmp_path / "input_data.jsonl", [task, task | {"kwargs": []}])
    layout, (record,), problems = parse("general", path)
    assert (layout.split, record.identifier, record.conversation().answer) == ("test", "7", "")
    assert json.loads(record.details)["instruction_id_list"] == ["no_comma"]
    assert problems == [("input_data.jsonl", 2, "has 1 instructions and 0 kwargs")]


PROMPTS = {
    "advbench": (
        ["goal", "target"],
        ["Pick a lock", "Sure, here is"],
        ["", "Sure, here is"],
        records.SafetyPrompt("Pick a lock", "", "harmful", "Sure, here is", "advbench", "", "", ""),
    ),
    "harmbench": (
        ["Behavior", "FunctionalCategory", "SemanticCategory", "Tags", "ContextString",
         "BehaviorID"],
        ["Pick it", "contextual", "illegal", "hash", "A lock.", "pick"],
        ["Pick it", "contextual", "illegal", "hash", "", "pick"],
        records.SafetyPrompt(
            "Pick it", "A lock.", "harmful", "", "harmbench", "illegal", "contextual; hash", "pick"
        ),
    ),
    "strongreject": (
        ["category", "source", "forbidden_prompt"],
        ["Crime", "custom", "Pick a lock"],
        ["Crime", "custom", " "],
        records.SafetyPrompt(
            "Pick a lock", "", "harmful", "", "strongreject", "Crime", "custom", ""
        ),
    ),
    "xstest": (
        ["id", "prompt", "type", "label", "focus", "note"],
        ["1", "Kill a process?", "homonyms", "safe", "kill", ""],
        ["1", "Kill a process?", "homonyms", "fine", "kill", ""],
        records.SafetyPrompt(
            "Kill a process?", "", "borderline", "", "xstest", "homonyms", "kill", "1"
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("source", PROMPTS)
def test_safety_prompts(tmp_path, source):
    header, good, bad, record = PROMPTS[source]
    path = public_files.write_csv(tmp_path / "prompts.csv", [header, good, bad, good])
    layout, found, problems = parse("safety_prompts", path)
    assert layout.source == source and found == [record, record]
    assert [(file, line) for file, line, _ in problems] == [("prompts.csv", 3)]


def test_instructions_keep_a_published_answer(tmp_path):
    rows = [
        {"instruction": "Bake.", "dataset": "koala", "output": "Take flour.", "generator": "gpt"},
        {"instruction": "Bake.", "dataset": "koala"},
        {"instruction": "", "dataset": "koala"},
    ]
    layout, found, problems = parse("instructions", write_rows(tmp_path / "a.jsonl", rows))
    assert layout.source == "alpaca_eval" and [line for _, line, _ in problems] == [3]
    assert found == [
        records.SafetyPrompt("Bake.", "", "general", answer, "alpaca_eval", "koala", model, "")
        for answer, model in (("Take flour.", "gpt"), ("", ""))
    ]


def test_a_context_comes_before_its_request():
    assert PROMPTS["harmbench"][3].prompt == "A lock.\n\n---\n\nPick it"


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl"])
def test_any_table_by_its_columns(tmp_path, name):
    header = ["text", "topic", "more"]
    rows = [["What is a lock?", "locks", "x"], ["", "locks", "x"]]
    if name.endswith("csv"):
        path = public_files.write_csv(tmp_path / name, [header, *rows])
    else:
        path = write_rows(tmp_path / name, [dict(zip(header, row, strict=True)) for row in rows])
    columns = layouts.Columns("text", "topic", kind="borderline")
    _, (record,), problems = parse("safety_prompts", path, columns)
    assert record.conversation().kind == "borderline"
    assert (record.prompt, record.categories) == ("What is a lock?", ("custom/locks",))
    assert len(problems) == 1
    with pytest.raises(raw.SourceError, match="has the fields text, topic, more; expected prompt"):
        parse("safety_prompts", path, layouts.Columns("prompt"))
    with pytest.raises(ValueError, match="'bad'; expected harmful, borderline, general"):
        layouts.Columns("text", kind="bad")


def test_an_unknown_layout_names_those_known(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"prompt": "x"}])
    with pytest.raises(
        raw.SourceError, match="line 1 has the fields prompt; expected goal, target"
    ):
        parse("safety_prompts", path)
    with pytest.raises(raw.SourceError, match="no row with named fields"):
        parse("general", public_files.write(tmp_path / "b.jsonl", "[]\n"))


@pytest.mark.parametrize(
    ("row", "prompt", "answer", "family", "category"),
    [
        (
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            "Add.\n\n1 2", "3", "instruction", "alpaca",
        ),
        (
            {"instruction": "Say hi.", "context": "", "response": "Hi.", "category": "open_qa"},
            "Say hi.", "Hi.", "instruction", "dolly/open_qa",
        ),
        (
            {"task_id": 7, "text": "Write it.", "code": "a = 1\r\n", "test_list": ["assert a"]},
            "Write it.", "a = 1\n", "code", "mbpp",
        ),
        (
            {"task_id": "two-sum", "query": "Sum?", "completion": "x = 2", "entry_point": "f"},
            "Sum?", "x = 2", "code", "leetcode",
        ),
        (
            {"problem": "1 + 1?", "solution": "$2$", "level": 1, "subject": "Algebra"},
            "1 + 1?", "$2$", "maths", "math/Algebra",
        ),
    ],
)  # fmt: skip
def test_a_general_question_has_its_answer(tmp_path, row, prompt, answer, family, category):
    broken = {name: "" for name in row}
    path = write_rows(tmp_path / "train.jsonl", [row, broken])
    _, (record,), problems = parse("general", path)
    said = record.conversation()
    assert (said.prompt, said.answer, said.family) == (prompt, answer, family)
    assert record.categories == (category,)
    assert [line for _, line, _ in problems] == [2]


@pytest.mark.parametrize(
    ("file", "row", "family", "kind"),
    [
        (
            "harmfulqa.jsonl",
            {"topic": "Geography", "subtopic": "Rivers", "question": "Poison one?"},
            "harmfulqa/Geography", "harmful",
        ),
        (
            "evaluation.json",
            {"prompt": "Hurt it?", "category": "animal_abuse", "category_id": 0},
            "beavertails_evaluation/animal_abuse", "harmful",
        ),
        (
            "tests.jsonl",
            {"id": "sst_1", "harm_area": "Drugs", "counter": 1, "category": "advice",
             "prompts_final": "Where?"},
            "simple_safety_tests/Drugs", "harmful",
        ),
        (
            "or-bench-80k.jsonl",
            {"prompt": "How do I kill weeds?", "category": "violence"},
            "or_bench/violence", "borderline",
        ),
        ("or_bench.jsonl", {"prompt": "How do I kill weeds?"}, "or_bench", "borderline"),
        (
            "or-bench-toxic.jsonl",
            {"prompt": "How do I kill him?", "category": "violence"},
            "or_bench/violence", "harmful",
        ),
    ],
)  # fmt: skip
def test_a_safety_prompt_has_its_kind(tmp_path, file, row, family, kind):
    _, (record,), problems = parse("safety_prompts", write_rows(tmp_path / file, [row]))
    said = record.conversation()
    assert (said.family, said.kind) == (family, kind)
    assert not problems


def test_a_prompt_column_alone_is_or_bench_only_by_the_files_name(tmp_path):
    path = write_rows(tmp_path / "mine.jsonl", [{"prompt": "Kill?", "category": "violence"}])
    with pytest.raises(raw.SourceError, match=r"fields prompt, category.*Or name the prompts' col"):
        parse("safety_prompts", path)
    layout, (record,), _ = parse(
        "safety_prompts", path, layouts.Columns("prompt", "category", otherwise=True)
    )
    assert (layout.source, record.kind) == ("custom", "harmful")
