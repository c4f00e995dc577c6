"""Problems, prompts and scores of HumanEval and MBPP, against lm-eval's own task files."""

import gzip
import itertools
import json
import pathlib
import shutil

import numpy as np
import pytest

from nspo_jax.evaluation import coding, execution
from tests import command_lines


@pytest.fixture(scope="module")
def lm_eval_files():
    lm_eval = pytest.importorskip("lm_eval", reason="the extra eval")
    yaml = pytest.importorskip("yaml")

    class Loader(yaml.SafeLoader):
        """A loader that leaves `!function` alone."""

    Loader.add_constructor("!function", lambda loader, node: node.value)
    folder = pathlib.Path(lm_eval.__file__).parent / "tasks"

    def read(name):
        return yaml.load((folder / name).read_text(), Loader)

    return read


def render(template, row):
    jinja2 = pytest.importorskip("jinja2")
    return jinja2.Environment(keep_trailing_newline=True).from_string(template).render(**row)


def test_humaneval_is_that_of_lm_eval(shared_data, lm_eval_files):
    task, chat = (lm_eval_files(f"humaneval/{n}.yaml") for n in ("humaneval", "humaneval_instruct"))
    with gzip.open(shared_data / coding.PATHS["humaneval"], "rt") as file:
        rows = [json.loads(line) for line in file]
    problems = coding.read("humaneval", shared_data)
    assert len(problems) == len(rows) == 164
    for problem, row in zip(problems, rows, strict=True):
        assert problem.text == problem.head == render(task["doc_to_text"], row)
        assert problem.message == render(chat["doc_to_text"], row)
        assert problem.checks == render(task["doc_to_target"], row) + "\n"
        assert problem.identifier == row["task_id"]
    given = coding.generation_kwargs("humaneval", chat=False)
    assert given == task["generation_kwargs"]


def test_mbpp_is_that_of_lm_eval(shared_data, lm_eval_files):
    task = lm_eval_files("mbpp/mbpp.yaml")
    lines = (shared_data / coding.PATHS["mbpp"]).read_bytes().splitlines()
    rows = {row["task_id"]: row for row in map(json.loads, lines)}
    problems = coding.read("mbpp", shared_data)
    assert [p.identifier for p in problems] == [f"MBPP/{n}" for n in range(11, 511)]
    before = "".join(
        render(task["doc_to_text"], rows[n])
        + render(task["doc_to_target"], rows[n] | {"is_fewshot": True}) + "\n\n"
        for n in (2, 3, 4)
    )  # fmt: skip
    for problem in problems:
        row = rows[int(problem.identifier.split("/")[1])]
        assert problem.text == before + render(task["doc_to_text"], row)
        assert problem.checks.endswith(render(task["doc_to_target"], row))
    given = coding.generation_kwargs("mbpp", chat=False)
    assert given == task["generation_kwargs"] | {"max_gen_toks": 256}  # lm-eval's default


def test_the_function_that_mbpp_asks_for_is_the_reference_s(shared_data):
    problems = coding.read("mbpp", shared_data)
    named = [p for p in problems if coding._defines(p.reference, p.entry_point)]
    assert len(named) > 0.98 * len(problems)


def test_code_is_taken_out_of_a_chat_s_answer():
    block = "def add(a, b):\n    return a + b"
    for answer, code in {
        f"Sure!\n```python\n{block}\n```\nIt adds.": block,
        f"```\n{block}\n```": block,
        f"First:\n```bash\npip install x\n```\nthen\n```py\n{block}\n```": block,
        f"```python\nprint(1)\n```\n```python\n{block}\n```\n```python\nadd(1, 2)\n```": block,
        f"```python\n{block}": block,
        block: block,
        "```python\n    return a + b\n```": "    return a + b",
    }.items():
        assert coding.extract_code(answer, "add") == code


def test_a_chat_s_answer_keeps_the_helpers_of_the_prompt():
    head = 'import math\n\n\ndef half(a):\n    return a / 2\n\n\ndef add(a, b):\n    """Adds."""\n'
    problem = coding.Problem("x", head, "", head, "add", "assert add(2, 2) == 3", "")
    for code in ("def add(a, b):\n    return half(a) + math.ceil(b)", "    return half(a) + b"):
        module = {}
        exec(problem.program(f"```python\n{code}\n```", chat=True).solution, module)
        assert module["add"](2, 2) == 3


def test_pass_at_k_is_the_mean_over_all_draws():
    for samples, passed in ((5, 0), (5, 2), (5, 5), (7, 3)):
        outcomes = [1] * passed + [0] * (samples - passed)
        for k in range(1, samples + 1):
            draws = [max(draw) for draw in itertools.combinations(outcomes, k)]
            np.testing.assert_allclose(coding.pass_at_k(samples, passed, k), np.mean(draws))
    with pytest.raises(ValueError, match="3 of 2 samples passed, and k is 1"):
        coding.pass_at_k(2, 3, 1)


def test_scores_are_means_over_problems():
    code_scores = pytest.importorskip("nspo_jax.evaluation.code_scores", reason="the extra eval")
    passed = {"a": [1] * 10, "b": [0] * 10, "c": [1] + [0] * 9, "d": [0] * 10}
    rows = [
        {"problem": name, "outcome": execution.PASSED if p else execution.TIMED_OUT}
        for name, each in passed.items() for p in each
    ]  # fmt: skip
    found = code_scores.score({"humaneval": rows})["humaneval"]
    assert (found["n"], found["samples"]) == (4, 10)
    np.testing.assert_allclose([found["pass@1"], found["pass@10"]], [1.1 / 4, 0.5])
    assert found["low"] < found["pass@1"] < found["high"]
    assert found["outcomes"] == {"passed": 11, "failed": 0, "timed out": 29, "out of memory": 0}
    table = code_scores.format_scores({"humaneval": found}).splitlines()
    assert table[0].split()[:5] == ["task", "n", "samples", "pass@1", "pass@10"]
    assert "0.2750" in table[2]


def test_damaged_files_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="mbpp.jsonl; expected the published file of mbpp"):
        coding.read("mbpp", tmp_path)
    path = tmp_path / coding.PATHS["mbpp"]
    path.parent.mkdir()
    row = {"task_id": 2, "text": "x", "code": "y", "test_setup_code": "", "test_list": ["a"] * 3}
    for rows, words in {
        (json.dumps(row),): "no task_id 3, which is an example",
        (json.dumps(row), json.dumps(row | {"test_list": []})): "Line 2 .* expected three tests",
        ("{",): "Line 1 of mbpp.jsonl is no row",
        (json.dumps({"task_id": 2}),): "Line 1 .* is no problem: KeyError 'test_list'",
    }.items():
        path.write_text("\n".join(rows))
        with pytest.raises(ValueError, match=words):
            coding.read("mbpp", tmp_path)
    with pytest.raises(ValueError, match="no problems 'apps'; expected some of humaneval, mbpp"):
        coding.read("apps", tmp_path)


def test_the_command_runs_nothing_that_it_was_not_told_to(shared_data, tmp_path):
    """The directory lacks its weights: an error about them comes last."""
    pytest.importorskip("lm_eval", reason="the extra eval")
    model = tmp_path / "model"
    shutil.copytree(shared_data / "checkpoints" / "tinystories-260k", model)
    (model / "model.safetensors").unlink()
    data = [f"--model={model}", f"--code_data={shared_data}"]
    given = ["--code=mbpp", *data]
    cases = {
        "--execute_code is missing. With that flag each program": given,
        "--code_data is missing": [f"--model={model}", "--code=mbpp", "--execute_code"],
        "no problems 'apps'": ["--code=apps", *data, "--execute_code"],
        "humaneval lets an answer have 1024 tokens, and the model has 512": [
            "--code=humaneval", *data, "--execute_code",
        ],
        "livecodebench is asked by its prompt for chat models": [
            "--code=livecodebench", *data, "--execute_code",
        ],
        "given: --model, --lm_eval, --code.": [*given, "--execute_code", "--lm_eval=x"],
        "--execute_code goes with --code": [*data[:1], "--lm_eval=x", "--execute_code"],
        "given: --config, --code.": ["--config=configs/tiny.py:base", "--code=mbpp"],
        "Give a temperature above 0": [
            *given, "--execute_code", "--samples=2", "--temperature=0",
        ],
        "has no chat template": [*given, "--execute_code", "--apply_chat_template"],
    }  # fmt: skip
    for words, arguments in cases.items():
        answer = command_lines.run("evaluate", *arguments)
        assert answer.returncode == 1 and "Traceback" not in answer.stderr, (words, answer.stderr)
        assert words in answer.stderr, (words, answer.stderr)


def test_two_models_are_compared_problem_by_problem():
    pytest.importorskip("lm_eval", reason="the extra eval")
    from nspo_jax.evaluation import code_scores

    def samples(*outcomes):
        return {"mbpp": [
            {"problem": str(i // 2), "sample": i % 2, "prompt": "p", "outcome": outcome}
            for i, outcome in enumerate(outcomes)
        ]}  # fmt: skip

    own = samples("passed", "passed", "passed", "failed", "timeout", "failed")
    other = samples("passed", "failed", "failed", "failed", "failed", "failed")
    (found,) = code_scores.compare(own, other)
    assert (found.metric, found.n) == ("pass@1", 3)
    assert (found.own, found.other) == (0.5, pytest.approx(1 / 6))
    assert found.difference == pytest.approx(1 / 3)
    assert found.low < found.difference < found.high
    with pytest.raises(ValueError, match="3 documents and the other 2, which are not the same"):
        code_scores.compare(own, samples(*["failed"] * 4))


def test_the_command_prints_a_table_and_keeps_results(shared_data, tmp_path):
    pytest.importorskip("lm_eval", reason="the extra eval")
    try:
        execution.open_sandbox()
        unsafe = []
    except execution.RefusedError:
        unsafe = ["--unsafe_exec"]
    (tmp_path / "other").mkdir()
    others = [
        {"problem": problem.identifier, "sample": 0, "prompt": problem.text, "outcome": "passed"}
        for problem in coding.read("mbpp", shared_data, 3)
    ]
    (tmp_path / "other" / "samples_mbpp.jsonl").write_text("\n".join(map(json.dumps, others)))
    answer = command_lines.run(
        "evaluate", f"--model={shared_data / 'checkpoints' / 'tinystories-260k'}", "--code=mbpp",
        f"--code_data={shared_data}", "--execute_code", "--limit=3", "--samples=2",
        f"--output={tmp_path}", "--log_samples", f"--against={tmp_path / 'other'}", *unsafe,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    line = next(line.split() for line in answer.stdout.splitlines() if line.startswith("mbpp"))
    assert line[:4] == ["mbpp", "3", "2", "0.0000"]  # a teller of stories writes no program
    assert " -100.0 " in answer.stdout and "no loss is detectable above" in answer.stdout
    assert (tmp_path / "against.png").stat().st_size > 5000
    results = json.loads((tmp_path / "results_code.json").read_text())
    assert [row["difference"] for row in results["against"]] == [-1.0]
    assert results["results"]["mbpp"]["outcomes"]["failed"] == 6
    assert results["temperature"] == 0.8
    assert results["isolated"] is not bool(unsafe)
    rows = [json.loads(text) for text in (tmp_path / "samples_mbpp.jsonl").read_text().splitlines()]
    assert [(row["problem"], row["sample"]) for row in rows][:3] == [
        ("MBPP/11", 0), ("MBPP/11", 1), ("MBPP/12", 0),
    ]  # fmt: skip
    assert rows[0]["answer"] != rows[1]["answer"] and "[BEGIN]" in rows[0]["prompt"]
    assert all(row["outcome"] == "failed" and row["detail"] for row in rows)
