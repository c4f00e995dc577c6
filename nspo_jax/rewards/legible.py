"""Reasons why the learned detector cannot read an answer: it is empty, gibberish or foreign.

The test is cheap: it counts letters, repetitions, and words of a list of English ones. Fluent
nonsense of English words passes it, and so does a short answer of names.
"""

from collections.abc import Set
import re

FEW = 5  # fewer words say nothing about a language
KNOWN = 0.25  # the smallest share of known words in an English answer
FOREIGN = 0.25  # the smallest share of foreign little words, of two or more, in a foreign answer
# little words of French, Spanish, German, Italian, Portuguese, Dutch, Indonesian that English lacks
_LITTLE = frozenset(
    "je ne pas vous nous les des une est sur dans avec pour que qui mais et du le la ce cette suis "
    "el los las una con para por pero eso esto puedo como del lo te esta muy ich nicht der das und "
    "ist ein eine mit dabei leider kann dir auf zu den dem aber il non di che per una gli sono "
    "posso della questa um uma com isso desculpe mas em ajudar ik het een niet je kan daar van en "
    "saya tidak bisa yang dengan dan ini untuk adalah".split()
)
_WORD = re.compile(r"[^\W\d_]+")
_CODE = re.compile(r"[{}()\[\]=<>\\+*/^$;|&#]")


def why_not(text: str, english: Set[str]) -> str:
    """Returns why an answer cannot be read: "empty", "gibberish" or "foreign"; "" if it can.

    Args:
      text: the answer without thoughts.
      english: English words in lower case.
    """
    letters = [c for c in text if c.isalpha()]
    if not any(c.isalnum() for c in text):
        return "empty"
    if len(letters) >= 4 and sum(ord(c) > 0x24F for c in letters) > len(letters) / 2:
        return "foreign"  # most letters are not Latin
    words = _WORD.findall(text)
    if _is_repetition(text, [word.lower() for word in words]):
        return "gibberish"
    # names are in no list of words, and of code and formulas only parts are words
    words = [word for word in words if len(word) > 1 and word.islower()]
    little = sum(word in _LITTLE for word in words)
    if little >= max(2, FOREIGN * len(words)):
        return "foreign"
    symbols = len(_CODE.findall(text))
    if len(words) < FEW or symbols > len(text) / 25:
        return ""
    known = sum(word in english for word in words) / len(words)
    if known >= KNOWN:
        return ""
    accented = sum(ord(c) > 0x7F for c in letters) > len(letters) / 100
    return "foreign" if accented or _has_vowels(words) else "gibberish"


def _is_repetition(text: str, words: list[str]) -> bool:
    """Tells whether most of a text is one character or a few words again and again."""
    packed = re.sub(r"\s", "", text)
    if len(packed) >= 20 and max(packed.count(c) for c in set(packed)) > len(packed) * 0.6:
        return True
    if len(_CODE.findall(text)) > len(text) / 25:
        return False
    return len(words) >= 20 and len(set(words)) <= len(words) / 10


def _has_vowels(words: list[str]) -> bool:
    """Tells whether words can be spoken, by their vowels: foreign ones can, most gibberish not."""
    spoken = [
        re.search(r"[aeiouy]", word) and not re.search(r"[^aeiouy]{5}", word) for word in words
    ]
    return sum(map(bool, spoken)) > 0.9 * len(words)
