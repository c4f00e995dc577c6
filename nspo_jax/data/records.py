"""The schemas of public datasets: one record a row, with everything that is published.

`conversation()` is what training and evaluation take of a record. A record's fields are all text,
booleans, integers or tuples of text, so that `data.public` can store any of them.
"""

import dataclasses
import re

from nspo_jax.data.conversation import Conversation

# Of PKU-SafeRLHF: Ji et al., arXiv 2406.15513, in the order of its files.
HARM_CATEGORIES = (
    "Endangering National Security",
    "Insulting Behavior",
    "Discriminatory Behavior",
    "Endangering Public Health",
    "Copyright Issues",
    "Violence",
    "Drugs",
    "Privacy Violation",
    "Economic Crime",
    "Mental Manipulation",
    "Human Trafficking",
    "Physical Harm",
    "Sexual Content",
    "Cybercrime",
    "Disrupting Public Order",
    "Environmental Damage",
    "Psychological Harm",
    "White-Collar Crime",
    "Animal Abuse",
)
SEVERITIES = (0, 1, 2, 3)  # safe, then minor, moderate and severe harm
UNKNOWN = -1  # the severity in releases that do not publish it
# Of BeaverTails: Ji et al., arXiv 2307.04657.
BEAVERTAILS_CATEGORIES = (
    "animal_abuse",
    "child_abuse",
    "controversial_topics,politics",
    "discrimination,stereotype,injustice",
    "drug_abuse,weapons,banned_substance",
    "financial_crime,property_crime,theft",
    "hate_speech,offensive_language",
    "misinformation_regarding_ethics,laws_and_safety",
    "non_violent_unethical_behavior",
    "privacy_violation",
    "self_harm",
    "sexually_explicit,adult_content",
    "terrorism,organized_crime",
    "violence,aiding_and_abetting,incitement",
)
LETTERS = "ABCDE"
PROMPT_KINDS = ("harmful", "borderline", "general")


@dataclasses.dataclass(frozen=True)
class PreferencePair:
    """PKU-SafeRLHF: a prompt and two answers, each judged for itself and against the other.

    Attributes:
      prompt, prompt_source: the question, and who wrote it.
      response_0, response_1: the answers; response_K_source: the model that gave it.
      is_response_0_safe, is_response_1_safe: the safety flag of each.
      response_0_harm_category, response_1_harm_category: of HARM_CATEGORIES, those that apply.
      response_0_severity_level, response_1_severity_level: of SEVERITIES, or UNKNOWN.
      better_response_id: 0 or 1, the more helpful.
      safer_response_id: 0 or 1, the less harmful: the other one, where the two disagree. Both
        answers may be unsafe, or both safe, and are still ranked.
      response_0_sha256, response_1_sha256: of prompt and answer together.
    """

    prompt: str
    response_0: str
    response_1: str
    prompt_source: str
    response_0_source: str
    response_1_source: str
    is_response_0_safe: bool
    is_response_1_safe: bool
    response_0_harm_category: tuple[str, ...]
    response_1_harm_category: tuple[str, ...]
    response_0_severity_level: int
    response_1_severity_level: int
    better_response_id: int
    safer_response_id: int
    response_0_sha256: str
    response_1_sha256: str

    @property
    def categories(self) -> tuple[str, ...]:
        """The harm categories of either answer, in the order of HARM_CATEGORIES."""
        either = {*self.response_0_harm_category, *self.response_1_harm_category}
        return tuple(name for name in HARM_CATEGORIES if name in either)

    def conversation(self) -> Conversation:
        """The prompt with its safer answer, if that one is safe; else with none."""
        safer = (self.response_0, self.response_1)[self.safer_response_id]
        safe = (self.is_response_0_safe, self.is_response_1_safe)[self.safer_response_id]
        return _harmful(self.prompt, safer if safe else "", self.categories)


@dataclasses.dataclass(frozen=True)
class JudgedAnswer:
    """BeaverTails: a question, an answer, and its harms. Questions come back with other answers.

    Attributes:
      prompt, response: the question and the answer.
      is_safe: the safety flag.
      category: of BEAVERTAILS_CATEGORIES, those that apply to the answer.
    """

    prompt: str
    response: str
    is_safe: bool
    category: tuple[str, ...]

    @property
    def categories(self) -> tuple[str, ...]:
        """As `category`."""
        return self.category

    def conversation(self) -> Conversation:
        """The question with its answer, if that is safe; else with none."""
        return _harmful(self.prompt, self.response if self.is_safe else "", self.category)


@dataclasses.dataclass(frozen=True)
class GeneralQuestion:
    """GSM8K, MMLU, ARC, HumanEval or IFEval: what a model should still be able to do.

    Attributes:
      question: as published.
      choices: of a multiple-choice question, in order; else empty.
      answer: as published; of a multiple-choice question the letter of LETTERS, by position; of
        IFEval none.
      family: maths, knowledge, code or instruction.
      source: gsm8k, mmlu, arc, humaneval or ifeval.
      category: MMLU's subject, ARC's Challenge or Easy; else "".
      identifier: as published; "" where there is none.
      details: JSON of what else is published: HumanEval's test and entry point, IFEval's
        instructions; "" where there is nothing.
    """

    question: str
    choices: tuple[str, ...]
    answer: str
    family: str
    source: str
    category: str
    identifier: str
    details: str

    @property
    def prompt(self) -> str:
        """The question, with a line for each choice."""
        lines = [f"{LETTERS[i]}. {choice}" for i, choice in enumerate(self.choices)]
        return "\n".join([self.question, *lines, "Answer:"] if lines else [self.question])

    @property
    def categories(self) -> tuple[str, ...]:
        """The source, with the subject if there is one: mmlu/abstract_algebra."""
        return (f"{self.source}/{self.category}" if self.category else self.source,)

    def conversation(self) -> Conversation:
        """The prompt and its answer; GSM8K's without the calculator's annotations <<2*3=6>>."""
        answer = self.answer
        if self.source == "gsm8k":
            answer = re.sub(r"<<[^<>]*>>", "", answer)
        return Conversation(self.prompt, answer, self.family, "general")


@dataclasses.dataclass(frozen=True)
class SafetyPrompt:
    """A prompt to be judged on: of AdvBench, HarmBench, JailbreakBench, StrongREJECT, XSTest, or a
    table of one's own.

    Attributes:
      request: the prompt as published.
      context: HarmBench's text that a contextual behaviour is about; else "".
      kind: of PROMPT_KINDS; XSTest's safe prompts are borderline: they look harmful.
      target: AdvBench's opening of a complying answer; else "".
      source: advbench, harmbench, jailbreakbench, strongreject, xstest or custom.
      category: as published: HarmBench's SemanticCategory, XSTest's type; "" of AdvBench.
      detail: HarmBench's FunctionalCategory and tags, StrongREJECT's source, XSTest's focus and
        note; joined by "; ".
      identifier: as published; "" where there is none.
    """

    request: str
    context: str
    kind: str
    target: str
    source: str
    category: str
    detail: str
    identifier: str

    @property
    def prompt(self) -> str:
        """The request, below its context: as HarmBench's own baselines join the two."""
        return f"{self.context}\n\n---\n\n{self.request}" if self.context else self.request

    @property
    def categories(self) -> tuple[str, ...]:
        """The source, with the category if there is one: xstest/homonyms."""
        return (f"{self.source}/{self.category}" if self.category else self.source,)

    def conversation(self) -> Conversation:
        """The prompt, without an answer."""
        return Conversation(self.prompt, "", self.categories[0], self.kind)


Record = PreferencePair | JudgedAnswer | GeneralQuestion | SafetyPrompt


def _harmful(prompt: str, answer: str, categories: tuple[str, ...]) -> Conversation:
    return Conversation(prompt, answer, categories[0] if categories else "none", "harmful")


def names(record: type) -> tuple[str, ...]:
    """The names of a record's fields, in order."""
    return tuple(field.name for field in dataclasses.fields(record))
