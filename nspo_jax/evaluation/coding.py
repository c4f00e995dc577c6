"""The problems of HumanEval and MBPP: their prompts, and the programs that judge completions.

The benchmarks of programs are named here, LiveCodeBench (`livecodebench`) among them.

Sources: Chen et al., "Evaluating Large Language Models Trained on Code" (2021); Austin et al.,
"Program Synthesis with Large Language Models" (2021). Without a chat template prompts, stop strings
and lengths are those of lm-eval's tasks `humaneval` and `mbpp`. In a template the user's message is
that of its `_instruct` tasks, and the answer is free: its fenced block of code is taken.
"""

from collections.abc import Callable, Sequence
import math
import pathlib
import re
from typing import Any, NamedTuple

from nspo_jax.data import fields, raw
from nspo_jax.evaluation import contest_tests, execution, livecodebench

PATHS = {
    "humaneval": "humaneval/HumanEval.jsonl.gz", "mbpp": "mbpp/mbpp.jsonl",
    "livecodebench": "livecodebench",  # a folder
}  # fmt: skip
NAMES = tuple(PATHS)
# MBPP's official split, by task_id
MBPP_SPLIT = {"prompt": (1, 10), "test": (11, 510), "validation": (511, 600), "train": (601, 974)}
MBPP_SHOTS = (2, 3, 4)
_STOPS = {"humaneval": ("\nclass", "\ndef", "\n#", "\nif", "\nprint"), "mbpp": ("[DONE]",)}
_CHAT_STOPS = {"livecodebench": (livecodebench.STOP,)}
_NEW_TOKENS = {"humaneval": 1024, "mbpp": 256}
_CHAT_NEW_TOKENS = {"livecodebench": livecodebench.NEW_TOKENS}
_CHAT_DEFAULT_NEW_TOKENS = 1024
_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)


class Problem(NamedTuple):
    """One problem.

    identifier: such as HumanEval/0 or MBPP/11.
    text: the prompt that a completion continues.
    message: the user's message in a chat template.
    head: stands before the completion in the program; HumanEval's prompt.
    entry_point: the function that is asked for; "" if none is named.
    checks: run after the program; they raise an exception if it is wrong.
    reference: the published solution, without `head`.
    """

    identifier: str
    text: str
    message: str
    head: str
    entry_point: str
    checks: str
    reference: str

    def messages(self) -> list[dict[str, str]]:
        """Returns the conversation that asks for a solution."""
        return [{"role": "user", "content": self.message}]

    def judge(
        self, sandbox: execution.Sandbox, answer: str, *, chat: bool = False
    ) -> dict[str, Any]:
        """Judges an answer: its program and checks, and the fields of their `execution.Result`."""
        program = self.program(answer, chat=chat)
        result = sandbox.run(program)
        return {"program": program.solution, "checks": program.checks, **result._asdict()}

    def program(self, completion: str, *, chat: bool = False) -> execution.Program:
        """Builds the program that judges a completion, or with `chat` a whole answer."""
        if not chat:
            return execution.Program(self.head + completion, self.checks)
        return execution.Program(_join(self.head, extract_code(completion, self.entry_point)),
                                 self.checks)  # fmt: skip


AnyProblem = Problem | livecodebench.Problem


def read(name: str, directory: pathlib.Path, most: int | None = None) -> Sequence[AnyProblem]:
    """Reads the problems of a benchmark that a model is scored on, in the order of the file.

    Args:
      name: humaneval (164 problems), mbpp (its test split, 500) or livecodebench.
      directory: holds the file or folder of `PATHS`.
      most: so many of the first problems; None: all.

    Raises:
      FileNotFoundError: if the file is not there.
      ValueError: for an unknown name or a row that cannot be read.
    """
    _check_name(name)
    path = directory / PATHS[name]
    if name == "livecodebench":
        return livecodebench.read(path, most)
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}; expected the published file of {name}: copy it there, or give "
            "the directory above it."
        )
    problems = raw.Problems()
    rows = list(raw.read(path, path.name, problems))
    if problems.examples:
        file, line, reason = problems.examples[0]
        raise ValueError(f"Line {line} of {file} is no row: {reason}. Take the published file.")
    found = _mbpp(rows, path) if name == "mbpp" else _each(rows, path, _humaneval)
    if not found:
        raise ValueError(f"{path} has no problem; expected those of {name}.")
    return found[:most]


def limits(name: str) -> execution.Limits:
    """Returns the limits of a benchmark's programs."""
    return contest_tests.LIMITS if name == "livecodebench" else execution.Limits()


def generation_kwargs(
    name: str, *, chat: bool, temperature: float = 0.0, top_p: float = 1.0
) -> dict[str, Any]:
    """Returns lm-eval's generation_kwargs of a benchmark; temperature 0 is greedy.

    Raises:
      ValueError: for an unknown name, and for livecodebench without a chat template.
    """
    _check_name(name)
    if name == "livecodebench" and not chat:
        raise ValueError(
            "livecodebench is asked by its prompt for chat models, and --apply_chat_template is "
            "missing: add the flag. Its prompt for other models needs examples that are not here."
        )
    given: dict[str, Any] = {
        "until": [*_CHAT_STOPS.get(name, ())] if chat else [*_STOPS[name]],
        "max_gen_toks": (
            _CHAT_NEW_TOKENS.get(name, _CHAT_DEFAULT_NEW_TOKENS) if chat else _NEW_TOKENS[name]
        ),
        "do_sample": temperature > 0,
    }
    return given | ({"temperature": temperature, "top_p": top_p} if temperature > 0 else {})


def extract_code(answer: str, entry_point: str = "") -> str:
    """Returns the code of a chat's answer: a fenced block of it, or all of it without a fence.

    The first block that defines `entry_point` is taken, or else the first one. An answer that was
    cut before its closing fence counts to its end.
    """
    blocks = _FENCE.findall(answer)
    defining = [block for block in blocks if _defines(block, entry_point)]
    return [*defining, *blocks, answer][0]


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Estimates without bias the chance that one of k samples passes, from `samples` of them.

    1 - C(n - c, k) / C(n, k), equation 1 of Chen et al. (2021).

    Raises:
      ValueError: unless 0 <= passed <= samples and 1 <= k <= samples.
    """
    if not (0 <= passed <= samples and 1 <= k <= samples):
        raise ValueError(
            f"{passed} of {samples} samples passed, and k is {k}; expected k from 1 to the samples."
        )
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def _check_name(name: str) -> None:
    if name not in NAMES:
        raise ValueError(f"There are no problems {name!r}; expected some of {', '.join(NAMES)}.")


def _join(head: str, code: str) -> str:
    """Puts code behind the head: as its continuation if it is indented, or as a new definition."""
    return f"{head}{code}" if code[:1] in (" ", "\t") else f"{head}\n\n{code}"


def _defines(code: str, entry_point: str) -> bool:
    return bool(re.search(rf"^def\s+{re.escape(entry_point)}\b", code, re.MULTILINE))


def _each(
    rows: Sequence[raw.Row], path: pathlib.Path, build: Callable[[Any], Problem]
) -> list[Problem]:
    """Builds a problem of each row; raises ValueError with the place of a row that has none."""
    found = []
    for row in rows:
        try:
            found.append(build(row.value))
        except (fields.SchemaError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"Line {row.line} of {path} is no problem: {type(error).__name__} {error}. Take "
                "the published file."
            ) from error
    return found


def _humaneval(row: Any) -> Problem:
    prompt, entry_point = fields.text(row, "prompt"), fields.text(row, "entry_point")
    return Problem(
        identifier=fields.text(row, "task_id"),
        text=prompt,
        message=(
            "Write a solution to the following problem and make sure that it passes the tests:\n"
            f"```python\n{prompt}\n```\n"
        ),
        head=prompt,
        entry_point=entry_point,
        checks=f"{fields.text(row, 'test')}\ncheck({entry_point})\n",
        reference=fields.text(row, "canonical_solution"),
    )


def _mbpp(rows: Sequence[raw.Row], path: pathlib.Path) -> list[Problem]:
    """Returns the test split, each with the three examples of the split `prompt` before it."""
    asked = {p.identifier: p for p in _each(rows, path, _mbpp_problem)}
    missing = [number for number in MBPP_SHOTS if f"MBPP/{number}" not in asked]
    if missing:
        raise ValueError(
            f"{path} has no task_id {missing[0]}, which is an example in every prompt; expected "
            "the published file with all splits."
        )
    shots = [asked[f"MBPP/{number}"] for number in MBPP_SHOTS]
    before = "".join(f"{shot.text}{shot.reference}\n[DONE]\n\n" for shot in shots)
    first, last = MBPP_SPLIT["test"]
    numbers = [f"MBPP/{number}" for number in range(first, last + 1)]
    return [asked[n]._replace(text=before + asked[n].text) for n in numbers if n in asked]


def _mbpp_problem(row: Any) -> Problem:
    tests = row["test_list"]
    if not isinstance(tests, list) or len(tests) < 3 or not all(isinstance(t, str) for t in tests):
        raise fields.SchemaError(f"test_list is {tests!r}, expected three tests or more")
    task, shown = fields.text(row, "text"), "\n".join(tests[:3])
    setup = fields.text(row, "test_setup_code", blank=True)  # it uses classes of the solution
    return Problem(
        identifier=f"MBPP/{int(row['task_id'])}",
        text=(
            f"You are an expert Python programmer, and here is your task: {task} Your code should "
            f"pass these tests:\n\n{shown}\n[BEGIN]\n"
        ),
        message=(
            f"You are an expert Python programmer, and here is your task:\n{task}\nYour code "
            f"should pass these tests:\n{shown}"
        ),
        head="",
        entry_point=_called(tests[0]),
        checks="\n".join([setup, *tests]),
        reference=fields.text(row, "code"),
    )


def _called(test: str) -> str:
    """Returns the first function that a test calls, past brackets and builtins around it."""
    names = re.findall(r"([A-Za-z_]\w*)\s*\(", test.removeprefix("assert"))
    outer = {"set", "sorted", "list", "tuple", "str", "int", "len", "not", "round", "abs"}
    return next((name for name in names if name not in outer), "")
