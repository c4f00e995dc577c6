"""The table of evaluation suites: what each measures, by whose judge, under which licence.

A suite of harmful or of borderline prompts is answered and judged (`evaluation.answers`,
`evaluation.judging`). Suites that lm-eval has, or that run code, name the flag that runs them.
"""

from collections.abc import Sequence
import dataclasses
import difflib
import logging
import pathlib
import re

from nspo_jax.data import layouts, raw, records, sources
from nspo_jax.data.conversation import Conversation

HARM, OVER_REFUSAL, PREFERENCE = "harm", "over_refusal", "preference"
CAPABILITY = "capability"
_KINDS = {HARM: "harmful", OVER_REFUSAL: "borderline"}  # of prompts that a run answers
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Suite:
    """A row of the table.

    Attributes:
      measures: harm (answers to harmful prompts), over_refusal (of prompts that look harmful),
        preference (over reference answers), or capability.
      licence: the data's.
      home: where its authors publish it.
      judge: the judge of its authors or of the NSPO paper, a name of `judges.JUDGES`.
      layout: the name of its rows in `data.layouts`; "" for suites that flags of their own run.
      dataset: the dataset of that layout.
      split: files whose names say another split are passed over; "": none is.
      kind: the rows of this kind alone; "": all.
      leaves_out: rows whose detail begins with this word are left out; "": none.
      most: so many of the first prompts; 0: all.
      flag: the flag of `scripts.evaluate` that runs it; "": --suites.
    """

    measures: str
    licence: str
    home: str
    judge: str = ""
    layout: str = ""
    dataset: str = "safety_prompts"
    split: str = ""
    kind: str = ""
    leaves_out: str = ""
    most: int = 0
    flag: str = ""


def _lm_eval(name: str, licence: str, home: str) -> Suite:
    local = " --lm_eval_tasks=configs/lm_eval --lm_eval_data=DATA" if "_local" in name else ""
    return Suite(CAPABILITY, licence, home, flag=f"--lm_eval={name}{local}")


def _code(name: str, licence: str, home: str) -> Suite:
    return Suite(CAPABILITY, licence, home, flag=f"--code={name} --code_data=DATA --execute_code")


SUITES: dict[str, Suite] = {
    # the paper's seven of safety (section 5.1); temperature 1, empty system message, 512 tokens
    "advbench": Suite(
        HARM, "MIT", "github.com/llm-attacks/llm-attacks", judge="remote_advbench",
        layout="advbench",
    ),
    "pku_safe": Suite(
        HARM, "CC BY-NC 4.0", "hf:PKU-Alignment/PKU-SafeRLHF (test)", judge="remote",
        layout="pku_safe_rlhf", dataset="pku_safe_rlhf", split="test",
    ),
    "harmbench": Suite(
        HARM, "MIT", "github.com/centerforaisafety/HarmBench", judge="harmbench",
        layout="harmbench", leaves_out="copyright",  # judged by hashes of the texts, not by a model
    ),
    "harmfulqa": Suite(
        HARM, "Apache-2.0", "hf:declare-lab/HarmfulQA", judge="remote_harmfulqa", layout="harmfulqa"
    ),
    "jailbreakbench": Suite(
        HARM, "MIT", "hf:JailbreakBench/JBB-Behaviors (harmful-behaviors.csv)",
        judge="llama_guard_3", layout="jailbreakbench",
    ),
    "alert": Suite(
        HARM, "CC BY-NC-SA 4.0", "github.com/Babelscape/ALERT (alert.jsonl)",
        judge="llama_guard_3", layout="alert", most=2500,
    ),
    "sorry_bench": Suite(
        HARM, "SORRY-Bench's own: accept it at hf:sorry-bench/sorry-bench-202406",
        "hf:sorry-bench/sorry-bench-202406 (question.jsonl)", judge="sorry_bench",
        layout="sorry_bench",
    ),
    "strongreject": Suite(
        HARM, "MIT", "github.com/alexandrasouly/strongreject", judge="strongreject",
        layout="strongreject",
    ),
    "simple_safety_tests": Suite(
        HARM, "CC BY 4.0", "github.com/bertiev/SimpleSafetyTests", judge="llama_guard_3",
        layout="simple_safety_tests",
    ),
    "beavertails_evaluation": Suite(
        HARM, "CC BY-NC 4.0", "hf:PKU-Alignment/BeaverTails-Evaluation", judge="llama_guard_3",
        layout="beavertails_evaluation",
    ),
    "xstest_unsafe": Suite(
        HARM, "CC BY 4.0", "github.com/paul-rottger/exaggerated-safety", judge="refusals",
        layout="xstest", kind="harmful",
    ),
    "xstest": Suite(
        OVER_REFUSAL, "CC BY 4.0", "github.com/paul-rottger/exaggerated-safety", judge="refusals",
        layout="xstest", kind="borderline",
    ),
    "or_bench": Suite(
        OVER_REFUSAL, "CC BY 4.0", "hf:bench-llm/or-bench", judge="refusals", layout="or_bench",
        kind="borderline",
    ),
    # the paper's general ones, and those that its reviewers and users expect
    "alpaca_eval": Suite(
        PREFERENCE, "CC BY-NC 4.0", "hf:tatsu-lab/alpaca_eval (alpaca_eval.json)",
        judge="remote_preference", layout="alpaca_eval", dataset="instructions",
    ),
    "mmlu": _lm_eval("mmlu", "MIT", "hf:cais/mmlu"),
    "gsm8k": _lm_eval("gsm8k", "MIT", "hf:openai/gsm8k"),
    "math": _lm_eval("math500_local", "MIT", "hf:HuggingFaceH4/MATH-500 (test.jsonl)"),
    "olympiadbench": _lm_eval(
        "olympiadbench_local", "MIT", "github.com/OpenBMB/OlympiadBench (OE_TO_maths_en_COMP)"
    ),
    "super_gpqa": _lm_eval("super_gpqa_local", "ODC-BY", "hf:m-a-p/SuperGPQA"),
    "arc_challenge": _lm_eval("arc_challenge", "CC BY-SA 4.0", "hf:allenai/ai2_arc"),
    "arc_easy": _lm_eval("arc_easy", "CC BY-SA 4.0", "hf:allenai/ai2_arc"),
    "hellaswag": _lm_eval("hellaswag", "MIT", "hf:Rowan/hellaswag"),
    "piqa": _lm_eval("piqa", "AFL-3.0", "hf:ybisk/piqa"),
    "openbookqa": _lm_eval("openbookqa", "Apache-2.0", "hf:allenai/openbookqa"),
    "winogrande": _lm_eval("winogrande", "CC BY 4.0", "hf:allenai/winogrande"),
    "ifeval": _lm_eval("ifeval", "Apache-2.0", "hf:google/IFEval"),
    "humaneval": _code("humaneval", "MIT", "github.com/openai/human-eval"),
    "mbpp": _code("mbpp", "CC BY 4.0", "github.com/google-research/google-research (mbpp)"),
    "livecodebench": _code("livecodebench", "MIT", "hf:livecodebench/code_generation_lite"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A suite's prompt.

    Attributes:
      text: what the model is asked, context and request.
      request: the request alone, and `context`, for judges that read them apart.
      category: the published category; "" if there is none.
      reference: an answer in the file that a model's own is compared with; "" if there is none.
    """

    text: str
    request: str
    context: str
    category: str
    reference: str = ""


def parse(text: str) -> dict[str, str]:
    """Reads suites with their files, NAME=PATH joined by +, as name -> path.

    Raises:
      ValueError: for an unknown suite, one that needs reference answers, one without a path, or one
        that is there twice.
    """
    found: dict[str, str] = {}
    for each in text.split("+") if text else ():
        name, _, path = each.partition("=")
        if find(name).measures not in _KINDS:
            raise ValueError(
                f"The suite {name!r} measures {find(name).measures}, for which a run has no judge: "
                "evaluate the policy by it after the run, with scripts.evaluate --suites."
            )
        if not path or name in found:
            raise ValueError(
                f"The suites are {text!r}; expected each once with its file or folder, such as "
                f"{name}=PATH, joined by +."
            )
        found[name] = path
    return found


def conversations(name: str, path: str) -> list[Conversation]:
    """Reads a suite's prompts as conversations without an answer; see `load`."""
    kind = _KINDS[find(name).measures]
    return [
        Conversation(
            prompt.text, "", f"{name}/{prompt.category}" if prompt.category else name, kind
        )
        for prompt in load(name, [path])
    ]


def find(name: str) -> Suite:
    """Returns a row of the table.

    Raises:
      ValueError: for an unknown name, and for a suite that another flag runs.
    """
    if name not in SUITES:
        near = difflib.get_close_matches(name, SUITES, 3, 0.5)
        guess = f" The nearest are {', '.join(near)}." if near else ""
        asked = ", ".join(key for key, suite in SUITES.items() if not suite.flag)
        raise ValueError(f"There is no suite {name!r}.{guess} Expected some of {asked}.")
    if flag := SUITES[name].flag:
        raise ValueError(
            f"The suite {name!r} is not judged: run it with {flag} in place of --suites."
        )
    return SUITES[name]


def load(name: str, paths: Sequence[str], most: int | None = None) -> list[Prompt]:
    """Reads a suite's prompts from files in its published layout, each prompt once.

    Args:
      name: a name of `SUITES`.
      paths: files, directories or `hf:OWNER/NAME`, see `sources.find`; their files of other layouts
        are passed over and told.
      most: so many of the first prompts, if the suite has no smaller number of its own.

    Raises:
      ValueError: for the reasons of `find`, and for files of other layouts alone.
      FileNotFoundError: if there is no file.
    """
    suite, problems = find(name), raw.Problems()
    found: list[records.Record] = []
    others: list[str] = []
    for file in sources.find(suite.dataset, paths):
        if suite.split and file.split not in ("", suite.split):
            others.append(f"{file.name} is of the split {file.split}")
            continue
        try:
            layout = layouts.recognise(suite.dataset, file)
        except raw.SourceError as error:
            others.append(str(error).split(";")[0])
            continue
        if layout.source != suite.layout:
            others.append(f"{file.name} is laid out as {layout.source}")
            continue
        found += layouts.parse(file, layout, problems)
    kept = [row for row in found if not suite.kind or getattr(row, "kind", "") == suite.kind]
    if suite.leaves_out:
        whole, begins = len(kept), suite.leaves_out
        kept = [row for row in kept if not getattr(row, "detail", "").startswith(begins)]
        _log.warning("%s: %d prompts of %s are left out", name, whole - len(kept), begins)
    if not kept:
        reasons = "".join(f" {other}." for other in others[:3])
        raise ValueError(
            f"The suite {name!r} has no prompt in {', '.join(paths)}.{reasons} Give its files as "
            f"published: {suite.home}, licence {suite.licence}."
        )
    for told in others:
        _log.warning("%s: passed over: %s", name, told)
    if problems.total:
        file, line, reason = problems.examples[0]
        _log.warning(
            "%s: %d rows are broken and left out, first %s:%d %s",
            name, problems.total, file, line, reason,
        )  # fmt: skip
    unique: dict[str, Prompt] = {}
    for row in kept:
        unique.setdefault(row.prompt, _prompt(row, suite))
    prompts = list(unique.values())
    if doubled := len(kept) - len(prompts):
        _log.warning("%s: %d prompts that come again are left out", name, doubled)
    limits = [number for number in (suite.most, most) if number]
    return prompts[: min(limits)] if limits else prompts


def locate(name: str, folder: pathlib.Path | None) -> list[str]:
    """Returns the paths of a suite in a folder of suites: its subfolder of the layout's name.

    Raises:
      FileNotFoundError: if there is none.
    """
    suite = find(name)
    inside = sorted(folder.iterdir()) if folder is not None and folder.is_dir() else []
    for path in inside:
        if path.is_dir() and _letters(path.name) == _letters(suite.layout):
            return [str(path)]
    where = "no --suite_data is given" if folder is None else f"{folder} has no {suite.layout}"
    raise FileNotFoundError(
        f"The suite {name!r} has no files: {where}. It is published at {suite.home} (licence "
        f"{suite.licence}): put its files into a folder {suite.layout} there, or name them, "
        f"--suites={name}=PATH."
    )


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _prompt(row: records.Record, suite: Suite) -> Prompt:
    if isinstance(row, records.SafetyPrompt):
        reference = row.target if suite.measures == PREFERENCE else ""
        return Prompt(row.prompt, row.request, row.context, row.category, reference)
    return Prompt(row.prompt, row.prompt, "", "")
