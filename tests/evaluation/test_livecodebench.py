"""LiveCodeBench's problems in files of its layout; programs that are right, wrong or hostile."""

import ast
import base64
import functools
import gzip
import itertools
import json
import pathlib
import pickle
import zlib

import pytest

from nspo_jax.data import fields
from nspo_jax.evaluation import coding, contest_tests, execution, livecodebench

SECRET = "xyzzy-4711"  # an output that no program can guess


def packed(tests):
    """Private tests as they are published: base64 of zlib of a pickle of JSON."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def cases_of(kind, *pairs):
    return [{"input": given, "output": told, "testtype": kind} for given, told in pairs]


def row(identifier, public, private, *, starter="", function=None, **changes):
    values = {
        "question_title": "t", "question_content": f"Solve {identifier}.", "platform": "atcoder",
        "question_id": identifier, "contest_id": "c", "contest_date": "2025-01-04T00:00:00",
        "starter_code": starter, "difficulty": "easy", "public_test_cases": json.dumps(public),
        "private_test_cases": private,
        "metadata": json.dumps({"func_name": function} if function else {}),
    }  # fmt: skip
    return values | changes


ADD = row(
    "add", cases_of("stdin", ("1 2\n", "3\n")),
    packed(cases_of("stdin", ("5 5\n", "10"), ("-1 1\n", "0\n"))),
)  # fmt: skip
PAIRS = row(
    "pairs", cases_of("functional", ("[1, 2]\n3", "[[1, 3], [2, 3]]")),
    packed(cases_of("functional", ("[]\n0", "[]"))),
    starter="class Solution:\n    def pairs(self, a: List[int], b: int) -> List[List[int]]:\n",
    function="pairs", platform="leetcode",
)  # fmt: skip
LINES = row(
    "lines", cases_of("stdin", ("2\n", "0\n1\n")), json.dumps(cases_of("stdin", ("1\n", "0\n"))),
    platform="codeforces",
)  # fmt: skip
ANSWERS = {
    "atcoder/add": "```python\na, b = map(int, input().split())\nprint(a + b)\n```",
    "leetcode/pairs": "```python\nclass Solution:\n    def pairs(self, a: List[int], b: int):\n"
    "        print('a debugging line')\n        return [[x, b] for x in a]\n```",
    "codeforces/lines": "```\nwhile True:\n    pass\n```",
}


def write(folder, *rows, name="test.jsonl"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps(each) + "\n" for each in rows))
    return folder


@pytest.fixture(scope="module")
def sandbox():
    for unsafe in (False, True):
        try:
            return execution.open_sandbox(unsafe=unsafe)
        except execution.RefusedError as error:
            reason = error
    pytest.skip(f"programs cannot be limited here: {reason}")


def judge(sandbox, code, *pairs, function=""):
    tests = [contest_tests.Test(*pair) for pair in pairs]
    return contest_tests.judge(sandbox, code, tests, function)


# ------------------------------------------------------------------------------------ the files


def test_problems_are_read_with_all_their_tests(tmp_path):
    write(tmp_path / "livecodebench", ADD, name="test.jsonl")
    write(tmp_path / "livecodebench", LINES, PAIRS, name="test2.jsonl")
    add, lines, pairs = coding.read("livecodebench", tmp_path)
    assert [p.identifier for p in (add, lines, pairs)] == [
        "atcoder/add", "codeforces/lines", "leetcode/pairs",
    ]  # fmt: skip
    assert add.tests() == [("1 2\n", "3\n"), ("5 5\n", "10"), ("-1 1\n", "0\n")]
    assert lines.tests() == [("2\n", "0\n1\n"), ("1\n", "0\n")]
    assert pairs.tests() == [("[1, 2]\n3", "[[1, 3], [2, 3]]"), ("[]\n0", "[]")]
    assert (add.function, pairs.function) == ("", "pairs")
    assert coding.read("livecodebench", tmp_path, 2) == [add, lines]


def test_the_prompt_is_the_published_one(tmp_path):
    write(tmp_path, ADD, PAIRS)
    add, pairs = livecodebench.read(tmp_path)
    system, asked = add.messages()
    assert system == {
        "role": "system",
        "content": "You are an expert Python programmer. You will be given a question (problem "
        "specification) and will generate a correct Python program that matches the specification "
        "and passes all tests.",
    }
    stdin = """\
### Question:
Solve add.

### Format: Read the inputs from stdin solve the problem and write the answer to stdout (do not \
directly test on the sample inputs). Enclose your code within delimiters as follows. Ensure that \
when the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT.
```python
# YOUR CODE HERE
```

### Answer: (use the provided format with backticks)

"""
    method = f"""\
### Question:
Solve pairs.

### Format: You will use the following starter code to write the solution to the problem and \
enclose your code within delimiters.
```python
{PAIRS["starter_code"]}
```

### Answer: (use the provided format with backticks)

"""
    assert asked == {"role": "user", "content": stdin}
    assert pairs.messages() == [system, {"role": "user", "content": method}]
    given = coding.generation_kwargs("livecodebench", chat=True)
    assert given == {"until": ["###"], "max_gen_toks": 2000, "do_sample": False}
    with pytest.raises(ValueError, match="--apply_chat_template is missing"):
        coding.generation_kwargs("livecodebench", chat=False)


def test_the_code_stands_between_the_last_two_fences():
    for answer, code in {
        "First\n```python\na\n```\nbetter:\n```python\nb\nc\n```\nDone.": "b\nc",
        "```\na\n```": "a",
        "```python\nnever closed": "",
        "print(1)": "",
        "<think>\n```\na\n```\n</think>\n```python\nb\n```": "b",
    }.items():
        assert livecodebench.extract_code(answer) == code


def test_questions_without_tests_are_refused(shared_data, tmp_path):
    with pytest.raises(ValueError, match="without tests, and no program can be judged") as error:
        coding.read("livecodebench", shared_data)
    assert "lacks public_test_cases, private_test_cases, metadata" in str(error.value)
    assert "hf:livecodebench/code_generation_lite" in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"no .jsonl file in .*code_generation_lite"):
        coding.read("livecodebench", tmp_path)


class Evil:
    """An object whose pickle makes a file when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    mark = tmp_path / "ran"
    for value in (Evil(mark), ["[]", Evil(mark)]):
        content = pickle.dumps(value)
        text = base64.b64encode(zlib.compress(content)).decode()
        write(tmp_path / "livecodebench", ADD, LINES | {"private_test_cases": text})
        with pytest.raises(ValueError, match="Line 2 .* pickle of more than a text") as error:
            coding.read("livecodebench", tmp_path)
        assert "it names pathlib" in str(error.value) and not mark.exists()
        pickle.loads(content)  # what an ordinary reader would have done
        assert mark.exists()
        mark.unlink()


def test_damaged_rows_are_told(tmp_path):
    wrong = base64.b64encode(zlib.compress(pickle.dumps(["[]"]))).decode()
    cut = base64.b64encode(zlib.compress(pickle.dumps("[]" * 99))[:-6]).decode()
    cases = {
        "pickle of list, expected a text": ADD | {"private_test_cases": wrong},
        "its end is missing": ADD | {"private_test_cases": cut},
        "no packed JSON": ADD | {"private_test_cases": "?"},
        "it has no tests": ADD | {"private_test_cases": "[]", "public_test_cases": "[]"},
        "testtype is 'functional', expected one of stdin": PAIRS | {"metadata": "{}"},
        "a test is not JSON": PAIRS
        | {"public_test_cases": json.dumps(cases_of("functional", ("a", "1")))},
        "KeyError 'platform'": {name: ADD[name] for name in ADD if name != "platform"},
    }
    for words, each in cases.items():
        write(tmp_path, each)
        with pytest.raises(ValueError, match="Line 1 .* is no problem") as error:
            livecodebench.read(tmp_path)
        assert words in str(error.value), (words, error.value)
    write(tmp_path, ADD, LINES, ADD)
    with pytest.raises(ValueError, match="Line 3 .* atcoder/add, which is in test.jsonl already"):
        livecodebench.read(tmp_path)
    with pytest.raises(fields.SchemaError):
        livecodebench.read_private("")


# ------------------------------------------------------------------------------- the comparison


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("3\n", "3", True), ("  3  \n\n", "3\n", True), ("1\n2", "1\n2\n", True),
        ("1 2", "1\n2", False), ("1\n\n2", "1\n2", False), ("", "", True), ("", "0", False),
        ("0.50", "0.5", True), ("1e1 2", "10 2.0", True), ("0.1", "0.10000000000000001", False),
        ("50000000000000001", "50000000000000000", False), ("YES", "Yes", False),
        ("a  b", "a b", False), ("sNaN", "nan", False), ("nan", "nan", True), ("NaN", "nan", False),
        ("3\r\n4\r\n", "3\n4", True),
    ],
)  # fmt: skip
def test_lines_are_compared_as_its_checker_does(output, expected, same):
    assert (contest_tests.difference(output, expected) == "") is same


@pytest.mark.parametrize(
    ("output", "expected", "same"),
    [
        ("[1, 2]", "[1,2]", True), ("1.0", "1", True), ("true", "1", True), ("null", "[]", False),
        ("[[1], [2]]", "[[2], [1]]", False), ('"a"', '"b"', False), ("", "1", False),
        ('{"a": 1}', '{"a": 1.0}', True), ("1" * 5000, "1" * 5000, True), ("[" * 99999, "1", False),
        ("0.30000000000000004", "0.3", False),
    ],
)  # fmt: skip
def test_values_are_compared_as_python_does(output, expected, same):
    assert (contest_tests.difference(output, expected, as_json=True) == "") is same


# --------------------------------------------------------------------------------- the programs

READERS = {
    "input": "print(int(input()) + int(input()))",
    "sys.stdin": "import sys\nprint(sum(map(int, sys.stdin)))",
    "from sys": "from sys import stdin, stdout\nstdout.write(str(sum(map(int, stdin))))",
    "bytes": "import sys\nread = sys.stdin.buffer.read\nprint(sum(map(int, read().split())))",
    "descriptors": "import os\nos.write(1, b'%d' % sum(map(int, os.read(0, 99).split())))",
    "open": "print(sum(map(int, open(0))))",
    "a main block": "def main():\n    print(sum(map(int, sys.stdin)))\n"
    "if __name__ == '__main__':\n    main()",
    "an exit": "print(sum(map(int, sys.stdin)))\nexit()",
    "noise": "import sys\nprint('debug', file=sys.stderr)\nprint(sum(map(int, sys.stdin)))",
    "a thread": "import threading\ndef work():\n    print(sum(map(int, sys.stdin)))\n"
    "threading.stack_size(1 << 27)\nt = threading.Thread(target=work)\nt.start()\nt.join()",
    "a return": "print(sum(map(int, sys.stdin)))\nreturn",
    "no imports": "print(reduce(add, [int(line) for line in stdin]))",
}


@pytest.mark.parametrize("name", READERS)
def test_a_program_reads_and_writes_in_any_way(sandbox, name):
    found = judge(sandbox, READERS[name], ("3\n4\n", "7\n"))
    assert (found["outcome"], found["detail"]) == (execution.PASSED, ""), found


def test_large_inputs_and_outputs_are_whole(sandbox):
    numbers = "".join(f"{n}\n" for n in range(200_000))
    code = "import sys\nfor line in sys.stdin:\n    print(line.strip())"
    found = judge(sandbox, code, (numbers, numbers))
    assert found["outcome"] == execution.PASSED, found["detail"]
    assert len(found["output"]) == execution.TAIL
    found = judge(sandbox, code, (numbers, numbers.replace("199999", "0")))
    assert "its line 200000 is '199999', expected '0'" in found["detail"]


METHODS = {
    "a tuple": ("class Solution:\n    def f(self, a, b):\n        return a + b, b", "[3, 2]"),
    "a function": ("def f(a, b):\n    return [a + b, b]", "[3, 2]"),
    "numpy": ("import numpy\nclass Solution:\n    def f(self, a, b): return numpy.int64(a)", "1"),
    "names taken": ("list = json = isinstance = getattr = None\nclass Solution:\n"
                    "    def f(self, a, b):\n        return 7", "7"),
    "a data class": ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
                     "class Solution:\n    def f(self, a, b):\n        return P(a).x", "1"),
    "a large number": ("class Solution:\n    def f(self, a, b):\n        return 10 ** 5000",
                       "1" + "0" * 5000),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_called_with_its_arguments(sandbox, name):
    code, expected = METHODS[name]
    found = judge(sandbox, code, ("1\n2", expected), function="f")
    assert (found["outcome"], found["detail"]) == (execution.PASSED, ""), found


def test_published_solutions_pass(sandbox, shared_data):
    """LeetCodeDataset has solutions of the same kind, with their examples as assertions."""
    path = shared_data / "leetcode" / "LeetCodeDataset-v0.1.0-test.jsonl.gz"
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 12)]
    tasks, changed, counts = [], [], []
    for each in rows:
        name = each["entry_point"].removeprefix("Solution().")
        tests = []
        for node in ast.walk(ast.parse(each["test"])):
            if isinstance(node, ast.Assert):
                call, (expected,) = node.test.left, node.test.comparators
                given = [ast.literal_eval(keyword.value) for keyword in call.keywords]
                tests.append((given, ast.literal_eval(expected)))
        found = [
            contest_tests.Test("\n".join(map(json.dumps, given)), json.dumps(expected))
            for given, expected in tests
        ]
        wrong = found[-1]._replace(expected=json.dumps([tests[-1][1]]))
        counts.append(len(found))
        judged = functools.partial(contest_tests.judge, sandbox, each["completion"])
        tasks.append(functools.partial(judged, found, name))
        changed.append(functools.partial(judged, [*found[:-1], wrong], name))
    passed = execution.run_parallel(tasks, workers=2)
    assert [each["right"] for each in passed] == counts and min(counts) > 0
    assert {each["outcome"] for each in passed} == {execution.PASSED}, passed
    failed = execution.run_parallel(changed, workers=2)
    assert [each["right"] + 1 for each in failed] == counts
    assert {each["outcome"] for each in failed} == {execution.FAILED}


SEARCH = f"""
import gc, sys
def search():
    found, frame = [], sys._getframe()
    while frame:
        found += [*frame.f_locals.values(), *frame.f_globals.values()]
        frame = frame.f_back
    start = "-".join(["{SECRET[:5]}", ""])
    for each in [*gc.get_objects(), *found]:
        values = each.values() if type(each) is dict else each
        for value in [each, *(values if type(each) in (dict, list, tuple) else ())]:
            if type(value) in (str, bytes) and (at := str(value).find(start)) >= 0:
                return str(value)[at:at + {len(SECRET)}]
    return "nothing"
"""
FORGERS = {
    "the answer, and no end": ("import os\nprint(1, flush=True)\nos._exit(0)", "1", "ended with"),
    "the answer, and an error": ("print(1)\n1 / 0", "1", "ZeroDivisionError"),
    "a search of memory": (f"{SEARCH}print(search())", SECRET, "is 'nothing'"),
    "the protocol": ("import os\nfor n in range(3, 20):\n    try:\n        os.write(n, b'ready\\n"
                     "token ' + b'0' * 32 + b'\\n{}\\n')\n    except OSError: pass", SECRET,
                     "is ''"),
    "nothing": ("# YOUR CODE HERE", "1", "empty body"),
    "no Python": ("for", "1", "SyntaxError"),
    "a global of another scope": ("n = 1\ndef f():\n    global n\n    n += 1\nf()\nprint(n)", "2",
                                  "NameError"),  # as in LiveCodeBench's own function
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERS)
def test_printing_forges_nothing(sandbox, name):
    code, expected, words = FORGERS[name]
    found = judge(sandbox, code, ("", expected))
    assert found["outcome"] == execution.FAILED and words in found["detail"], found
    assert found["detail"].startswith("Test 1 of 1: ") and found["right"] == 0


def test_a_search_of_memory_finds_what_is_there(sandbox):
    found = judge(sandbox, f"{SEARCH}print(search())", (SECRET, SECRET))
    assert found["outcome"] == execution.PASSED, found


CALLED_FORGERS = {
    "equal to everything": ("class A:\n    def __eq__(self, other): return True\n"
                            "class Solution:\n    def f(self): return A()", "has a A"),
    "a list equal to everything": ("class A(list):\n    def __eq__(self, other): return True\n"
                                   "class Solution:\n    def f(self): return A()", "it gave '[]'"),
    "told in its place": ("import os\nclass Solution:\n    def f(self):\n        for n in range(9):"
                          "\n            try: os.write(n, b'1')\n            except OSError: pass\n"
                          "        os._exit(0)", "ended with"),
    "a search of memory": (f"{SEARCH}class Solution:\n    def f(self): return search()",
                           """it gave '"nothing"'"""),
    "nested tuples": ("class Solution:\n    def f(self): return [(1, 2)]", "has a tuple"),
    "an exit": ("class Solution:\n    def f(self): exit()", "SystemExit"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLED_FORGERS)
def test_results_forge_nothing(sandbox, name):
    code, words = CALLED_FORGERS[name]
    code = code.replace("def f(self)", "def f(self, x)")
    expected = "[[1, 2]]" if "tuple" in name else json.dumps(SECRET)
    found = judge(sandbox, code, ("0", expected), function="f")
    assert found["outcome"] == execution.FAILED and words in found["detail"], found


def test_a_model_s_answers_are_scored(sandbox, tmp_path, monkeypatch):
    code_scores = pytest.importorskip("nspo_jax.evaluation.code_scores", reason="the extra eval")
    monkeypatch.setattr(contest_tests, "LIMITS", contest_tests.LIMITS._replace(seconds=1.5))
    write(tmp_path / "livecodebench", ADD, PAIRS, LINES)
    asked = []

    class Model:
        """A model that knows the answers, and spoils every second one."""

        def apply_chat_template(self, messages):
            return json.dumps(messages)

        def generate_until(self, requests):
            asked.extend(request.args for request in requests)
            texts = []
            for number, request in enumerate(requests):
                (name,) = [n for n in ANSWERS if f"Solve {n.split('/')[1]}." in request.args[0]]
                texts.append(ANSWERS[name].replace("+", "-" if number % 2 else "+"))
            return texts

    problems = code_scores.load(["livecodebench"], tmp_path)
    samples = code_scores.answer(Model(), problems, chat_template=True, samples=2)
    code_scores.run(sandbox, problems, samples, chat_template=True, bar=False)
    rows = {(each["problem"], each["sample"]): each for each in samples["livecodebench"]}
    found = {key: (each["outcome"], each["right"], each["tests"]) for key, each in rows.items()}
    assert found == {
        ("atcoder/add", 0): ("passed", 3, 3), ("atcoder/add", 1): ("failed", 0, 3),
        ("leetcode/pairs", 0): ("passed", 2, 2), ("leetcode/pairs", 1): ("passed", 2, 2),
        ("codeforces/lines", 0): ("timed out", 0, 2), ("codeforces/lines", 1): ("timed out", 0, 2),
    }  # fmt: skip
    assert rows["atcoder/add", 1]["detail"] == "Test 1 of 3: its line 1 is '-1', expected '3'."
    scores = code_scores.score(samples)["livecodebench"]
    assert scores["pass@1"] == pytest.approx(0.5) and scores["n"] == 3
    assert scores["outcomes"] == {"passed": 3, "failed": 1, "timed out": 2, "out of memory": 0}
    prompt, given = asked[0]
    assert json.loads(prompt) == problems["livecodebench"][0].messages()
    assert (given["until"], given["max_gen_toks"], given["temperature"]) == (["###"], 2000, 0.8)
    assert json.dumps(samples)
    found = problems["livecodebench"][0].judge(sandbox, "I cannot.")
    assert (found["outcome"], found["right"], found["tests"]) == ("failed", 0, 3)
    assert found["detail"] == "The answer holds no program."
    fresh = functools.partial(contest_tests.judge, sandbox, "print(1)", [])
    with pytest.raises(ValueError, match="There are no tests"):
        fresh()
