"""The grading of the task files in configs/lm_eval that have rules of their own."""

import importlib
import json
import pathlib
import sys

import pytest

from nspo_jax.evaluation import lm_eval_tasks

TASKS = pathlib.Path(__file__).resolve().parents[2] / "configs" / "lm_eval"


@pytest.fixture(scope="module")
def graders():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(TASKS))
        yield [importlib.import_module(name) for name in ("maths", "super_gpqa")]
    for name in ("maths", "super_gpqa"):
        del sys.modules[name]


def every(path, step):
    return [json.loads(line) for line in path.read_text().splitlines()][::step]


def test_reference_solutions_are_right_and_others_wrong(graders, shared_data):
    """Of all rows 500 of 500 solutions and 675 of 675 answers are right; here a part of them."""
    maths, _ = graders
    rows = every(shared_data / "math" / "math500.jsonl", 12)
    assert [maths.math500(row, [row["solution"]])["exact_match"] for row in rows] == [1.0] * 42
    (path,) = (shared_data / "olympiadbench").glob("*.jsonl")
    olympiad = every(path, 16)
    for row in olympiad:
        said = rf"So it is \boxed{{{row['final_answer'][0].strip('$')}}}."
        assert maths.olympiadbench(row, [said]) == {"exact_match": 1.0}, row["final_answer"]
    taken = [
        maths.math500(row, [rf"\boxed{{{other['answer']}}}"])["exact_match"]
        for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
    ]
    assert sum(taken) <= 1  # two problems may have one answer


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        (r"\frac{1}{2}", "The answer is 0.5.", True),
        (r"\frac{1}{2}", r"First \boxed{3}, no: \boxed{\dfrac12}.", True),
        ("(0,1]", r"\boxed{(0,1)}", False),
        ("3, 5, 7", r"\boxed{7,5,3}", True),
        ("12", "It was 12 at first. Then it is 13.", False),
        ("12", "I cannot help with that.", False),
        ("12", "", False),
    ],
)
def test_answers_are_compared_as_mathematics(graders, reference, answer, right):
    assert graders[0].is_right(reference, answer) is right


def test_a_tolerance_is_used_where_there_is_one(graders):
    near = r"\boxed{4.25}"
    assert graders[0].is_right("4.2", near, "1e-1") and not graders[0].is_right("4.2", near)
    assert not graders[0].is_right("4.2", r"\boxed{4.5}", "1e-1")


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("Thinking of A.\nAnswer: B", (1.0, 0.0)),
        ("**Answer: $B$**", (1.0, 0.0)),
        ("The correct answer is: (B)", (1.0, 0.0)),
        ("B) because", (1.0, 0.0)),
        ("Answer: A", (0.0, 0.0)),
        ("Because of this", (0.0, 1.0)),
        ("", (0.0, 1.0)),
    ],
)
def test_the_letter_at_the_end_counts(graders, answer, grade):
    doc = {"question": "Which?", "options": ["one", "two", "three"], "answer_letter": "B"}
    assert tuple(graders[1].grade(doc, [answer]).values()) == grade
    assert "A) one\nB) two\nC) three\n" in graders[1].prompt(doc)


def test_the_files_load_as_tasks(shared_data, tmp_path):
    rows = [{"question": "Which?", "options": ["one", "two"], "answer_letter": "B"}] * 2
    (tmp_path / "super_gpqa").mkdir()
    (tmp_path / "super_gpqa" / "SuperGPQA-all.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = lm_eval_tasks.load(["math500_local", "olympiadbench_local"], TASKS, shared_data)
    assert [len(task.test_docs()) for task in found.each.values()] == [500, 675]
    found = lm_eval_tasks.load(["super_gpqa_local"], TASKS, tmp_path)
    assert len(found.each["super_gpqa_local"].test_docs()) == 2
