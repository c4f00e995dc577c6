"""The features of an answer by which the learned detector tells refusals: speech acts by sentence.

An answer is plain text in sentences, and `speech_acts` finds what each sentence does. Preambles and
closings are a model's manner ("I'm happy to help!", "Is there anything else?"): they are set aside.
The features are the acts of the first sentence, those of the first and second sentence behind a
preamble, among the first three, behind these and in the last one, the share of all sentences, the
answer's shape, and some products. All sentences are read.
"""

import re
import unicodedata

import numpy as np

from nspo_jax.rewards import speech_acts

ACTS = tuple(speech_acts.PATTERNS)
_AT = {act: number for number, act in enumerate(ACTS)}
_SEARCHES = tuple(re.compile(pattern).search for pattern in speech_acts.PATTERNS.values())
_PLACES = ("first", "lead", "next", "opening", "share", "rest", "last")
_SHAPE = (
    "sentences", "log_length", "one_sentence", "two_sentences", "list_share", "has_list",
    "is_short", "is_long", "first_length", "has_code", "digit_share",
)  # fmt: skip
_PRODUCTS = (
    "decline_first", "decline_opening", "decline_whole", "decline_whole*no_list",
    "firm_whole", "firm_last*no_list",
    "decline_first*list", "decline_opening*list",
    "decline_first*many_sentences", "moral_first*no_decline", "moral_two*no_decline*list",
    "moral_two*no_decline*no_list", "sense*premise*no_decline", "sense*premise*decline",
    "premise*equality*no_sense", "premise*equality*sense", "definition*moral_first",
    "definition*moral_first*no_equality", "offer*no_decline", "offer*decline", "redirect*moral_two",
    "redirect*no_moral*no_decline", "sorry*decline", "sorry*no_decline", "no_decline*no_moral",
    "no_access*privacy", "no_access*no_privacy",
)  # fmt: skip
_DECLINES = ("decline", "decline_word", "decline_impersonal")
_CLOSING = ("anything_else", "my_best")
_PREAMBLE = ("as_an_ai", "no_opinion", "happy_start", "i_understand", "sure", "greeting")
_SUBSTANCE = (  # a sentence with one of these is no preamble
    *_DECLINES, "sorry_but", "no_access", "bad", "not_good", "is_not_good", "is_not_moral",
    "is_not_true", "no_reason", "i_condemn", "discourage", "however", "here_are", "premise",
    "no_sense", "not_coherent", "fiction_or_science", "colon", "list_item", "question",
)  # fmt: skip
NAMES = (*(f"{place}:{act}" for place in _PLACES for act in ACTS), *_SHAPE, *_PRODUCTS)
_SPEAKS = r"\b(?:said|says|asked|replie[sd]|answered|cried|whispered|shouted|told|muttered)\b"
_SAID = (
    re.compile(rf'"[^"\n]{{0,300}}"(?=,? ?(?:\w+ ){{0,3}}?{_SPEAKS})'),
    re.compile(r'(?<=[,:] )"[^"\n]{0,300}"'),
)
_OPENED = re.compile(r"<(think|thinking|thought|reasoning)>", re.IGNORECASE)
_CLOSED = re.compile(r"</(?:think|thinking|thought|reasoning)>", re.IGNORECASE)


def strip_thoughts(text: str) -> str:
    """Returns the answer behind a reasoning model's thoughts, which a prompt may have opened.

    Thoughts that were cut off have no answer behind them: the result is "".
    """
    text = _CLOSED.split(text)[-1]
    opened = _OPENED.search(text)
    return (text[: opened.start()] if opened else text).strip()


def plain(text: str) -> str:
    """Rewrites a text in lower case: negations and "I'm" written out, no quotes and emphasis."""
    text = unicodedata.normalize("NFKC", text).lower().replace("\u2019", "'").replace("\u2018", "'")
    text = re.sub(r"[\u201c\u201d]", '"', text)
    for said in _SAID:  # what a character says is not what the author does
        text = said.sub(" ", text)
    text = re.sub(r'["*_`]', "", text)
    text = re.sub(r"\bcan't\b|\bcannot\b|\bcant\b", "can not", text).replace("won't", "will not")
    text = text.replace("n't", " not").replace("i'd rather", "i would rather")
    text = re.sub(r"\b(it|that|there|what|he|she)'s ", r"\1 is ", text)
    text = text.replace("i'm ", "i am ").replace("i've ", "i have ")
    return text.replace("we're ", "we are ").replace("you're ", "you are ")


def sentences(text: str) -> list[str]:
    """Splits a plain text at full stops, other ends and line breaks; decimal points stay."""
    text = re.sub(r"(\d)\.(?=\d)", r"\1,", text)
    found = (part.strip() for part in re.split(r"(?<=[.!?:])\s+|\n+", text.strip()))
    return [part for part in found if part] or [""]


def read(text: str) -> np.ndarray:
    """Returns the features of an answer without thoughts, float64 [len(NAMES)]."""
    parts = sentences(plain(text))
    acts = np.array([[search(part) is not None for search in _SEARCHES] for part in parts])
    acts = acts.astype(np.float64)
    none = np.zeros(len(ACTS))
    core = _core(acts)
    places = [
        acts[0],
        core[0],
        core[1] if len(core) > 1 else none,
        core[:3].max(axis=0),
        core.mean(axis=0),
        core[3:].max(axis=0, initial=0.0),
        core[-1] if len(core) > 1 else none,
    ]
    return np.concatenate([*places, _shape(text, parts, acts), _products(core)])


def _core(acts: np.ndarray) -> np.ndarray:
    """Returns the rows of the sentences but for a preamble of up to two and for closings.

    Both are a model's manner and say little about the answer: "As an AI, I do not have opinions",
    "Let me know if I can help with something else". At least one sentence stays.
    """
    start, end = 0, len(acts)
    while (
        end > 1
        and _any(acts[end - 1], *_CLOSING)
        and not _any(acts[end - 1], *_DECLINES, "sorry_but", "no_access")
    ):
        end -= 1
    while start < min(2, end - 1) and _any(acts[start], *_PREAMBLE):
        if _any(acts[start], *_SUBSTANCE):
            break
        start += 1
    return acts[start:end]


def _any(found: np.ndarray, *names: str) -> float:
    """Returns 1 where one of the named acts is among those found [acts], else 0."""
    return max(found[_AT[name]] for name in names)


def _shape(text: str, parts: list[str], acts: np.ndarray) -> np.ndarray:
    lists, count = acts[:, _AT["list_item"]], len(parts)
    return np.array(
        [
            min(count, 20) / 20, np.log1p(len(text)) / 8, count == 1, count <= 2, lists.mean(),
            lists.sum() >= 3, len(text) < 150, len(text) > 900, min(len(parts[0]), 1000) / 200,
            "```" in text, np.mean([any(c.isdigit() for c in part) for part in parts]),
        ],
        np.float64,
    )  # fmt: skip


def _products(acts: np.ndarray) -> np.ndarray:
    morals = ("is_not_good", "bad", "i_condemn", "premise", "not_good")
    first, two, opening, whole = acts[0], acts[:2].max(axis=0), acts[:3].max(axis=0), acts.max(0)
    decline_first, decline = _any(first, *_DECLINES), _any(opening, *_DECLINES)
    moral_first, moral = _any(first, *morals), _any(two, *morals)
    late = _any(whole, *_DECLINES)
    firm, firm_last = (_any(f, "decline_firmly") for f in (whole, acts[-2:].max(axis=0)))
    listed = float(acts[:, _AT["list_item"]].sum() >= 2)
    sense = _any(whole, "fiction_or_science", "no_sense")
    premise = _any(opening, "premise", "no_reason", "is_not_good", "negation")
    equality = _any(whole, "dignity", "should_be_treated", "to_respect")
    defined = _any(first, "definition") * moral_first
    offer = _any(opening, "here_are", "happy_start", "sure")
    redirect = _any(whole, "seek_help", "instead_do", "if_you_struggle")
    sorry = _any(opening, "sorry", "sorry_but")
    no = 1 - decline
    no_access, privacy = _any(opening, "no_access"), _any(whole, "privacy")
    return np.array([
        decline_first, decline, late, late * (1 - listed),
        firm, firm_last * (1 - listed), decline_first * listed, decline * listed,
        decline_first * (len(acts) > 6), moral_first * no, moral * no * listed,
        moral * no * (1 - listed), sense * premise * no, sense * premise * decline,
        premise * equality * (1 - sense), premise * equality * sense, defined,
        defined * (1 - equality), offer * no, offer * decline, redirect * moral,
        redirect * (1 - moral) * no, sorry * decline, sorry * no, no * (1 - moral),
        no_access * privacy, no_access * (1 - privacy),
    ])  # fmt: skip
