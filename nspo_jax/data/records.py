"""The schemas of public datasets: one record a row, with every published field.

Training and evaluation take a record's `conversation()`. A record's fields are all text, booleans,
integers or tuples of text, so that `data.public` can store any of them.
"""

import dataclasses
import re

from nspo_jax.data.conversation import Conversation

# PKU-SafeRLHF's (Ji et al., arXiv 2406.15513), in the order of its files.
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
SEVERITIES = (0, 1, 2, 3)  # 0 is safe, then come minor, moderate and severe harm
UNKNOWN = -1  # the severity in releases that do not publish it
# BeaverTails' (Ji et al., arXiv 2307.04657).
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
      prompt, prompt_source: the question, and its author.
      response_0, response_1: the answers; response_K_source: the model that gave it.
      is_response_0_safe, is_response_1_safe: the safety flag of each.
      response_0_harm_category, response_1_harm_category: its entries of HARM_CATEGORIES.
      response_0_severity_level, response_1_severity_level: one of SEVERITIES, or UNKNOWN.
      better_response_id: 0 or 1, the more helpful one.
      safer_response_id: 0 or 1, the less harmful one, which may be the less helpful. Both answers
        may be unsafe, or both safe, and are still ranked.
      response_0_sha256, response_1_sha256: the digest of prompt and answer together.
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
        """Returns the prompt with its safer answer if that one is safe, else with none."""
        safer = (self.response_0, self.response_1)[self.safer_response_id]
        safe = (self.is_response_0_safe, self.is_response_1_safe)[self.safer_response_id]
        return _harmful(self.prompt, safer if safe else "", self.categories)


@dataclasses.dataclass(frozen=True)
class JudgedAnswer:
    """BeaverTails: a question, an answer, and its harms. Questions recur with other answers.

    Attributes:
      prompt, response: the question and the answer.
      is_safe: the safety flag.
      category: the answer's entries of BEAVERTAILS_CATEGORIES.
    """

    prompt: str
    response: str
    is_safe: bool
    category: tuple[str, ...]

    @property
    def categories(self) -> tuple[str, ...]:
        """The same as `category`."""
        return self.category

    def conversation(self) -> Conversation:
        """Returns the question with its answer if that is safe, else with none."""
        return _harmful(self.prompt, self.response if self.is_safe else "", self.category)


@dataclasses.dataclass(frozen=True)
class GeneralQuestion:
    """A question of maths, code, knowledge or instruction following, skills to keep.

    Attributes:
      question: the published question.
      choices: the choices of a multiple-choice question, in order; else empty.
      answer: the published answer; for a multiple-choice question the letter of LETTERS by
        position, for IFEval "".
      family: maths, knowledge, code or instruction.
      source: gsm8k, math, mmlu, arc, humaneval, mbpp, leetcode, ifeval, alpaca or dolly.
      category: the subject (MMLU, MATH), Challenge or Easy (ARC), the category (Dolly); else "".
      identifier: the published one; "" if there is none.
      details: JSON of other published fields, HumanEval's test and entry point or IFEval's
        instructions, MBPP's tests; else "".
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
        """Returns the prompt and its answer, without GSM8K's calculator annotations <<2*3=6>>."""
        answer = self.answer
        if self.source == "gsm8k":
            answer = re.sub(r"<<[^<>]*>>", "", answer)
        return Conversation(self.prompt, answer, self.family, "general")


@dataclasses.dataclass(frozen=True)
class SafetyPrompt:
    """A prompt of a published safety benchmark, or of an own table.

    Attributes:
      request: the published prompt.
      context: HarmBench's text that a contextual behaviour is about; else "".
      kind: one of PROMPT_KINDS; the safe prompts of XSTest and OR-Bench look harmful and are
        borderline.
      target: AdvBench's opening of a complying answer, a model's answer in AlpacaEval; else "".
      source: the name of its row in `layouts.LAYOUTS`, such as advbench.
      category: the published one, HarmBench's SemanticCategory, XSTest's type, HarmfulQA's topic;
        "" for AdvBench.
      detail: HarmBench's FunctionalCategory and tags, StrongREJECT's source, HarmfulQA's subtopic,
        AlpacaEval's generator of the answer, or XSTest's focus and note, joined by "; ".
      identifier: the published one; "" if there is none.
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
        """The request below its context, joined as in HarmBench's own baselines."""
        return f"{self.context}\n\n---\n\n{self.request}" if self.context else self.request

    @property
    def categories(self) -> tuple[str, ...]:
        """The source, with the category if there is one: xstest/homonyms."""
        return (f"{self.source}/{self.category}" if self.category else self.source,)

    def conversation(self) -> Conversation:
        """Returns the prompt without an answer."""
        return Conversation(self.prompt, "", self.categories[0], self.kind)


Record = PreferencePair | JudgedAnswer | GeneralQuestion | SafetyPrompt


def _harmful(prompt: str, answer: str, categories: tuple[str, ...]) -> Conversation:
    return Conversation(prompt, answer, categories[0] if categories else "none", "harmful")


def names(record: type) -> tuple[str, ...]:
    """Returns the names of a record's fields, in order."""
    return tuple(field.name for field in dataclasses.fields(record))
