"""The problems of LiveCodeBench's code generation: its prompt, its tests, the judgement of answers.

Source: Jain et al., "LiveCodeBench: Holistic and Contamination Free Evaluation of Large Language
Models for Code" (arXiv 2403.07974). The data are hf:livecodebench/code_generation_lite; the prompt
is that of its repository for chat models (see NOTICE). Tests are long: a problem reads its own from
the file when it is judged.
"""

import base64
import binascii
from collections.abc import Iterator
import io
import json
import logging
import pathlib
import pickle
from typing import Any, NamedTuple
import zlib

from nspo_jax.data import fields
from nspo_jax.evaluation import contest_tests, execution

FILES = "test.jsonl, test2.jsonl, ... test6.jsonl"
HOME = f"hf:livecodebench/code_generation_lite ({FILES})"
RELEASE_V6 = 1055  # problems in all six files
NEW_TOKENS, STOP = 2000, "###"  # its own settings for an answer
SYSTEM = (
    "You are an expert Python programmer. You will be given a question (problem specification) and "
    "will generate a correct Python program that matches the specification and passes all tests."
)
_WITH_STARTER = (
    "You will use the following starter code to write the solution to the problem and enclose your "
    "code within delimiters."
)
_WITHOUT_STARTER = (
    "Read the inputs from stdin solve the problem and write the answer to stdout (do not directly "
    "test on the sample inputs). Enclose your code within delimiters as follows. Ensure that when "
    "the python program runs, it reads the inputs, runs the algorithm and writes output to STDOUT."
)
_TEST_FIELDS = ("public_test_cases", "private_test_cases", "metadata")
_LARGEST = 1 << 30  # bytes of a problem's tests
_log = logging.getLogger(__name__)


class Problem(NamedTuple):
    """One problem.

    identifier: its platform and id, such as atcoder/abc301_a.
    content: the question.
    starter: the code to begin with; "" if the program reads standard input.
    function: the method that tests call; "" as well.
    path, offset: the file, and the byte where the problem's line begins.
    """

    identifier: str
    content: str
    starter: str
    function: str
    path: pathlib.Path
    offset: int

    @property
    def text(self) -> str:
        """A prompt to be continued, which there is none of: a chat model is asked."""
        return ""

    def messages(self) -> list[dict[str, str]]:
        """Returns the conversation that asks for a solution."""
        form, code = (_WITH_STARTER, self.starter) if self.starter else (
            _WITHOUT_STARTER, "# YOUR CODE HERE",
        )  # fmt: skip
        asked = (
            f"### Question:\n{self.content}\n\n### Format: {form}\n```python\n{code}\n```\n\n"
            "### Answer: (use the provided format with backticks)\n\n"
        )
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]

    def tests(self) -> list[contest_tests.Test]:
        """Reads the problem's tests, the public ones first."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return _read_tests(json.loads(file.readline()), self.function)

    def judge(
        self, sandbox: execution.Sandbox, answer: str, *, chat: bool = True
    ) -> dict[str, Any]:
        """Judges an answer by all tests; see `contest_tests.judge`."""
        del chat
        return contest_tests.judge(sandbox, extract_code(answer), self.tests(), self.function)


def extract_code(answer: str) -> str:
    """Returns the lines between an answer's last two fences; "" if there are not two."""
    lines = answer.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) > 1 else ""


def read(directory: pathlib.Path, most: int | None = None) -> list[Problem]:
    """Reads the problems of all files in a directory, and checks their tests without keeping them.

    Args:
      directory: holds some of the published files, or lines of them, as .jsonl.
      most: so many of the first problems; None: all.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: for a file without tests, a row that cannot be read, or one that comes twice.
    """
    paths = sorted(directory.glob("*.jsonl")) if directory.is_dir() else []
    if not paths:
        raise FileNotFoundError(
            f"There is no .jsonl file in {directory}; expected the published ones of "
            f"livecodebench, {HOME}: copy them there, or give the directory above it."
        )
    found: dict[str, Problem] = {}
    for path in paths:
        for number, offset, line in _lines(path):
            if most is not None and len(found) == most:
                return [*found.values()]
            where = f"Line {number} of {path}"
            problem = _problem(line, where, path, offset)
            if problem.identifier in found:
                raise ValueError(
                    f"{where} has the problem {problem.identifier}, which is in "
                    f"{found[problem.identifier].path.name} already: keep each file once."
                )
            found[problem.identifier] = problem
    if not found:
        raise ValueError(f"{directory} has no problem; expected those of livecodebench, {HOME}.")
    if most is None and len(found) != RELEASE_V6:
        _log.warning(
            "livecodebench: %d problems in %s; release_v6 has %d, in %s",
            len(found), ", ".join(path.name for path in paths), RELEASE_V6, FILES,
        )  # fmt: skip
    return [*found.values()]


def read_private(text: str) -> Any:
    """Reads private tests: JSON, or base64 of zlib of a pickle of JSON in a text.

    The pickle is read by an unpickler that knows no name, so that nothing in it can run.

    Raises:
      fields.SchemaError: for anything else.
    """
    if text.lstrip().startswith("["):
        return _json(text, "private_test_cases")
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(text, validate=True), _LARGEST)
    except (binascii.Error, ValueError, zlib.error) as error:
        raise fields.SchemaError(f"private_test_cases is no packed JSON ({error})") from error
    if not unpacker.eof:
        raise fields.SchemaError(
            f"private_test_cases has more than {_LARGEST} bytes, or its end is missing"
        )
    try:
        value = _TextUnpickler(io.BytesIO(content)).load()
    except Exception as error:  # a damaged pickle may raise any
        raise fields.SchemaError(
            f"private_test_cases is a pickle of more than a text, which is not read ({error})"
        ) from error
    if not isinstance(value, str):
        raise fields.SchemaError(
            f"private_test_cases is a pickle of {type(value).__name__}, expected a text"
        )
    return _json(value, "private_test_cases")


class _TextUnpickler(pickle.Unpickler):
    """An unpickler of texts: it finds no class and no function by name, and so calls none."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")


def _lines(path: pathlib.Path) -> Iterator[tuple[int, int, bytes]]:
    """Yields number, offset and text of the lines that are not blank."""
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, offset, line
            offset += len(line)


def _problem(line: bytes, where: str, path: pathlib.Path, offset: int) -> Problem:
    """Reads a problem; raises ValueError with its place if it or one of its tests is damaged."""
    try:
        row = _json(line, "the row")
        if not isinstance(row, dict):
            raise fields.SchemaError(f"it is {type(row).__name__}, expected named fields")
        if missing := [name for name in _TEST_FIELDS if name not in row]:
            raise ValueError(
                f"{where} lacks {', '.join(missing)}: the file holds questions without tests, and "
                f"no program can be judged by it. Take the published files with tests: {HOME}."
            )
        metadata = _json(fields.text(row, "metadata"), "metadata")
        function = metadata.get("func_name") if isinstance(metadata, dict) else 0
        if function is not None and not (isinstance(function, str) and function.isidentifier()):
            raise fields.SchemaError(f"metadata is {metadata!r}, expected func_name or none")
        _read_tests(row, function or "")
        return Problem(
            f"{fields.text(row, 'platform')}/{fields.text(row, 'question_id')}",
            fields.text(row, "question_content"), fields.text(row, "starter_code", blank=True),
            function or "", path, offset,
        )  # fmt: skip
    except (fields.SchemaError, KeyError) as error:
        raise ValueError(
            f"{where} is no problem: {type(error).__name__} {error}. Take the published files, "
            f"{HOME}."
        ) from error


def _read_tests(row: dict[str, Any], function: str) -> list[contest_tests.Test]:
    """Reads a row's tests; raises fields.SchemaError for others than its kind."""
    kind = "functional" if function else "stdin"
    given = [
        *_list(_json(fields.text(row, "public_test_cases"), "public_test_cases")),
        *_list(read_private(fields.text(row, "private_test_cases"))),
    ]
    if not given:
        raise fields.SchemaError("it has no tests")
    tests = []
    for each in given:
        if not isinstance(each, dict):
            raise fields.SchemaError(f"a test is {type(each).__name__}, expected named fields")
        fields.one_of(each, "testtype", (kind,))
        test = contest_tests.Test(
            fields.text(each, "input", blank=True), fields.text(each, "output", blank=True)
        )
        if len(test.given.encode()) > contest_tests.LIMITS.file_bytes // 2:
            raise fields.SchemaError(f"a test's input has {len(test.given)} characters")
        if function:
            for text in (*test.given.split("\n"), test.expected):
                _json(text, "a test")
        tests.append(test)
    return tests


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise fields.SchemaError(f"the tests are {type(value).__name__}, expected a list")
    return value


def _json(text: str | bytes, name: str) -> Any:
    try:
        return json.loads(text, parse_int=str)  # int() refuses more than 4300 digits
    except (ValueError, RecursionError) as error:
        raise fields.SchemaError(f"{name} is not JSON: {error}") from error
