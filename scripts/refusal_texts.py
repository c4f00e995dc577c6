"""Made-up refusals and answers in the styles of several models, for scripts/fit_refusals.py.

They are made of the phrases of refusal_phrases.txt, by chance but the same at each call. A phrase
is a template whose braces are filled with deeds, groups of people, events and so on.
"""

from collections.abc import Sequence
import functools
import pathlib
import random

PHRASES = pathlib.Path(__file__).with_name("refusal_phrases.txt")
_BREAK = "\n\n"
_CLOSINGS = (
    "",
    " It is important to respect all people.",
    " Is there something else I can help you with?",
    " If you have any other questions, feel free to ask.",
)


@functools.cache
def phrases() -> dict[str, list[str]]:
    """Reads the lists of phrases by their headings."""
    lists: dict[str, list[str]] = {}
    for line in PHRASES.read_text("utf-8").splitlines():
        if line.startswith("["):
            lists[line.strip("[]")] = []
        elif line and not line.startswith("#"):
            lists[next(reversed(lists))].append(line)
    return lists


def refusals(count: int, seed: int, bodies: Sequence[str]) -> list[str]:
    """Returns made-up refusals; some decline and then give one of the bodies all the same."""
    rng, lists = random.Random(seed), phrases()
    kinds = ("decline", "moral", "against", "history", "private", "odd")
    found = []
    for _ in range(count):
        kind = rng.choices(kinds, (6, 4, 4, 2, 1, 1))[0]
        parts = [rng.choice(lists[kind])]
        if kind == "decline" and rng.random() < 0.2:
            parts.append(rng.choice(lists["moral"]))
        if kind != "decline" and rng.random() < 0.15:
            parts.insert(0, rng.choice(lists["ai"]))
        if kind == "decline" and rng.random() < 0.25:  # it talks about something, then declines
            start = " ".join(rng.choice(bodies).split()[: rng.randint(20, 150)])
            start = start.replace("{", "(").replace("}", ")")  # no place of a template
            parts.insert(0, start.rpartition(". ")[0] + ".")
        reasons = rng.choices((0, 1, 2, 3), (3, 3, 3, 1))[0]
        if kind in ("moral", "against", "history"):  # without a reason they might be answers
            reasons = max(reasons, 1)
        parts += rng.sample(lists["reasons"], reasons)
        if rng.random() < 0.5:
            parts += rng.sample(lists["redirects"], rng.choice((1, 1, 2)))
        text = _fill(" ".join(parts), rng)
        if kind in ("decline", "odd") and rng.random() < 0.2:
            body = rng.choice(bodies)
            text += f"{rng.choice((' ', _BREAK))}{rng.choice(lists['but'])}{_BREAK}{body}"
        found.append(text)
    return found


def answers(count: int, seed: int, bodies: Sequence[str]) -> list[str]:
    """Returns made-up answers that read like refusals in places; most have one of the bodies."""
    rng, lists = random.Random(seed), phrases()
    kinds = ("before", "after", "both", "definition", "nonsense", "opinion", "complies", "story")
    found = []
    for _ in range(count):
        kind, body = rng.choices(kinds, (30, 20, 15, 8, 14, 10, 10, 8))[0], rng.choice(bodies)
        gap = rng.choice((" ", _BREAK))
        if kind == "before":
            text = rng.choice(lists["caveats"]) + gap + body
        elif kind == "after":
            text = body + gap + rng.choice(lists["after"])
        elif kind == "both":
            text = f"{rng.choice(lists['caveats'])} {body} {rng.choice(lists['after'])}"
        elif kind == "definition":
            text = _fill(rng.choice(lists["definitions"]), rng)
            text += rng.choice(("", " " + rng.choice(lists["after"])))
        elif kind == "nonsense":
            text = _fill(rng.choice(lists["nonsense"]), rng) + rng.choice(_CLOSINGS)
        elif kind == "opinion":
            chosen = rng.sample(lists["opinions"], rng.choice((1, 2)))
            text = " ".join(_fill(part, rng) for part in chosen)
        elif kind == "complies":
            text = _fill(rng.choice(lists["complies"]), rng)
            text += rng.choice(("", gap + rng.choice(lists["after"])))
        else:
            text = rng.choice(lists["stories"]).format(answer=body)
        found.append(text)
    return found


def _fill(template: str, rng: random.Random) -> str:
    """Fills the places of a template with deeds, groups and so on."""
    lists = phrases()
    deed, thing = rng.choice(lists["deeds"]), rng.choice(lists["things"])
    group, act = rng.choice(lists["groups"]).split("|")
    event, what = rng.choice(lists["events"]).split("|")
    harmless, word = rng.choice(lists["harmless"]).split("|")
    return template.format(
        deed=deed,
        Deed=deed.capitalize(),
        group=group,
        Group=group[0].upper() + group[1:],
        act=act,
        Event=event,
        what=what,
        secret=rng.choice(lists["secrets"]),
        harmless=harmless,
        word=word,
        thing=thing.lower(),
        Thing=thing,
    )
