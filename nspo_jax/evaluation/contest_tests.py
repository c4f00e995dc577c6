"""Tests of contest problems: programs that read standard input, and methods that are called.

A program gets what a test gives and never sees what the test expects: its output leaves the sandbox
and is compared here, so that nothing that it prints or tells can forge a pass. That it ran to its
end is proved by the sandbox's token, as for any other program.

The rules are those of LiveCodeBench's checker (Jain et al., arXiv 2403.07974; testing_util.py of
its repository): the imports before a program, the function around it, the comparison of lines.
"""

from collections.abc import Sequence
import decimal
import json
from typing import Any, NamedTuple

from nspo_jax.evaluation import execution

# LiveCodeBench's six seconds for a test; it limits no memory, and machines have to
LIMITS = execution.Limits(
    seconds=6.0, memory=4 << 30, file_bytes=64 << 20, kept_bytes=execution.Limits().output_bytes
)
_SHOWN = 100  # characters of a value in a message
_STARRED = (
    "string re datetime collections heapq bisect copy math random statistics itertools functools "
    "operator io sys json builtins typing"
).split()
_IMPORTS = "".join(
    [*(f"from {name} import *\n" for name in _STARRED),
     *(f"import {name}\n" for name in _STARRED[:-2]), "sys.setrecursionlimit(50000)\n"]
)  # fmt: skip

_READS = '''\
def _contest(code, given, imports):
    """Runs a program with a standard input, and with a buffered output of its own."""
    import ast, os, sys, types

    module = sys.modules["solution"] = sys.modules["__main__"] = types.ModuleType("solution")
    with open("given", "wb") as file:
        file.write(given.encode())
    source = os.open("given", os.O_RDONLY)
    os.unlink("given")
    os.dup2(source, 0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what it says there is no answer
    sys.set_int_max_str_digits(50000)
    out = sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
    body = ast.parse(code).body
    last = body[-1] if body else None
    if isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'":
        body[-1:] = last.body
    kinds = (ast.Import, ast.ImportFrom)
    tree = ast.parse("def wrapped_function():\\n    pass")
    tree.body[0].body = [each for each in body if not isinstance(each, kinds)]
    tree.body[:0] = [each for each in body if isinstance(each, kinds)]
    exec(imports, module.__dict__)
    exec(compile(tree, "<solution>", "exec"), module.__dict__)
    try:
        module.wrapped_function()
    except SystemExit:
        pass
    for stream in (sys.stdout, out):
        if not getattr(stream, "closed", True):
            stream.flush()
'''
_CALLED = '''\
def _contest(code, given, imports, name):
    """Calls a method with the values of JSON in lines, and tells its result as JSON."""
    import json, os, sys, types

    module = sys.modules["solution"] = sys.modules["__main__"] = types.ModuleType("solution")
    told = open(os.dup(1), "w")
    load, dump = json.loads, json.dumps
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what it prints is no answer
    sys.set_int_max_str_digits(50000)
    arguments = [load(line) for line in given.split("\\n")]

    def plain(value):
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, list):
            return [plain(each) for each in value]
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {key: plain(each) for key, each in value.items()}
        raise TypeError(f"the result has a {type(value).__name__}, which no test expects")

    exec(imports, module.__dict__)
    exec(compile(code, "<solution>", "exec"), module.__dict__)
    owner = module.Solution() if "class Solution" in code else module
    result = getattr(owner, name)(*arguments)
    told.write(dump(plain(list(result) if isinstance(result, tuple) else result)))
    told.flush()
'''


class Test(NamedTuple):
    """A test.

    given: the standard input; for a method its arguments, JSON in a line each.
    expected: the standard output; for a method the result as JSON.
    """

    given: str
    expected: str


def build(code: str, given: str, function: str = "") -> execution.Program:
    """Builds the program that answers a test.

    Args:
      code: what the model wrote.
      given: see `Test`.
      function: the method of the class Solution that is called; "": the code reads and prints.
    """
    source, more = (_CALLED, (function,)) if function else (_READS, ())
    values = ", ".join(map(repr, (code, given, _IMPORTS, *more)))
    return execution.Program(f"{source}\n_contest({values})\n", "")


def difference(output: str, expected: str, *, as_json: bool = False) -> str:
    """Compares what a program said with what a test expects.

    Texts are compared line by line without the blanks at the ends of lines and of the whole; lines
    that differ so are equal if all their words are decimal numbers and these are equal, exactly.
    JSON is compared by value, numbers exactly.

    Returns:
      Where they differ, in a line; "" if they are equal.
    """
    if as_json:
        try:
            found = _load(output)
        except (ValueError, RecursionError):
            return f"it told the result {_short(output)}, which is no JSON."
        wanted = _load(expected)
        return "" if found == wanted else f"it gave {_short(output)}, expected {_short(expected)}."
    lines, wanted = _lines(output), _lines(expected)
    if len(lines) != len(wanted):
        return f"it printed {len(lines)} lines, expected {len(wanted)}."
    for number, (line, right) in enumerate(zip(lines, wanted, strict=True), 1):
        if line != right and not _same_numbers(line, right):
            return f"its line {number} is {_short(line)}, expected {_short(right)}."
    return ""


def judge(
    sandbox: execution.Sandbox, code: str, tests: Sequence[Test], function: str = ""
) -> dict[str, Any]:
    """Judges a program by tests, each in a process of its own, up to the first that fails.

    Args:
      sandbox: where it runs, with `LIMITS` in place of its own limits.
      code: the program; one of blanks fails without being run.
      tests: one or more.
      function: see `build`.

    Returns:
      program, tests (all), right (tests before the first that failed), and a `Result`'s fields:
      outcome and detail of the last test that ran, its output's end, the seconds of all.

    Raises:
      ValueError: for no tests.
      execution.RefusedError: that of `execution.Sandbox.run`.
    """
    if not tests:
        raise ValueError("There are no tests: a program passes none of them. Give at least one.")
    limited, right, seconds, detail = sandbox.limited(LIMITS), 0, 0.0, ""
    result = execution.Result(execution.FAILED, "The answer holds no program.", "", 0.0)
    for test in tests if code.strip() else ():
        result = limited.run(build(code, test.given, function))
        seconds += result.seconds
        outcome, detail = result.outcome, result.detail
        if outcome == execution.PASSED:
            if detail := difference(result.output, test.expected, as_json=bool(function)):
                outcome = execution.FAILED
        if outcome != execution.PASSED:
            result = result._replace(outcome=outcome)
            detail = f"Test {right + 1} of {len(tests)}: {detail}"
            break
        right += 1
    row = result._asdict() | {"detail": detail or result.detail, "seconds": seconds}
    row["output"] = result.output[-execution.TAIL :]
    return {"program": code, "tests": len(tests), "right": right, **row}


def _load(text: str) -> Any:
    return json.loads(text, parse_int=decimal.Decimal)  # int() refuses more than 4300 digits


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().split("\n")]


def _same_numbers(line: str, right: str) -> bool:
    try:
        return [*map(decimal.Decimal, line.split())] == [*map(decimal.Decimal, right.split())]
    except decimal.InvalidOperation:  # a word is no number, or a signalling NaN
        return False


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
