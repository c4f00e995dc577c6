"""Reference answers, which judges of preference compare a model's own answers with.

They are another model's answers, kept in the directory of its evaluation, or those in the suite's
file, such as the published baseline of AlpacaEval.
"""

from collections.abc import Iterable, Mapping, Sequence
import pathlib
import statistics
from typing import NamedTuple

from nspo_jax import files
from nspo_jax.data import suites
from nspo_jax.evaluation import answers, judging

IN_FILE = "the suite's file"
Texts = dict[answers.Place, str]


class Lengths(NamedTuple):
    """Mean lengths of the answers that are compared, in characters, thoughts included.

    suite: the suite; source: where the references come from.
    own: of the model's answers; reference: of the references.
    """

    suite: str
    source: str
    own: float
    reference: float


def find(asked: answers.Asked, judges: Iterable[str], against: str | None) -> Texts:
    """Returns the references to all answers of suites that a judge compares with them.

    Args:
      asked: what is asked.
      judges: the names of the judges.
      against: the directory of another model's evaluation; None: references are in the files.

    Raises:
      FileNotFoundError: if the directory has no answers.
      ValueError: if its answers are to other questions or not complete, or if there is no directory
        and no reference in the file.
    """
    names = [*judges]
    wanted = [
        suite for suite in asked.prompts
        if suites.find(suite).measures == suites.PREFERENCE
        and any(judging.fits(suite, judge) for judge in names)
    ]  # fmt: skip
    if wanted and against:
        return _of_directory(asked, wanted, pathlib.Path(against))
    for suite in wanted:
        if not any(prompt.reference for prompt in asked.prompts[suite]):
            raise ValueError(
                f"The suite {suite!r} compares answers with references, and there are none: give "
                "--against=DIR, another model's --output with the same suite, or a file with a "
                f"model's answers (output), such as {suites.find(suite).home}."
            )
    return {
        place: asked.prompts[place.suite][place.row].reference
        for place in asked.places()
        if place.suite in wanted
    }


def lengths(
    given: Sequence[answers.Answer], texts: Mapping[answers.Place, str], against: str | None
) -> list[Lengths]:
    """Computes the mean lengths of both sides of every suite that has references."""
    found = []
    for suite in dict.fromkeys(place.suite for place in texts):
        pairs = [(a.text, texts[a.place]) for a in given if a.place.suite == suite]
        own, reference = (
            statistics.fmean(len(text) for text in side) for side in zip(*pairs, strict=True)
        )
        found.append(Lengths(suite, against or IN_FILE, own, reference))
    return found


def format_lengths(found: Sequence[Lengths]) -> str:
    """Formats a line a suite."""
    return "\n".join(
        f"{each.suite}: mean length {each.own:,.0f} characters, of the references "
        f"{each.reference:,.0f} (from {each.source}); judges tend to prefer longer answers"
        for each in found
    )


def _of_directory(asked: answers.Asked, wanted: Sequence[str], directory: pathlib.Path) -> Texts:
    """Reads another model's answers to the questions of suites."""
    settings, path = directory / answers.SETTINGS, directory / answers.ANSWERS
    for needed in (settings, path):
        if not needed.is_file():
            raise FileNotFoundError(
                f"There is no {needed}: let the other model answer first, with "
                f"--suites={','.join(wanted)} --output={directory}; --judges= asks no judge."
            )
    there = files.read_json(settings, "evaluate that model again")
    ours = asked.settings
    ours["prompts"] = {name: ours["prompts"][name] for name in wanted}
    answers.check_comparable(settings, there, ours)
    found = {answers.Place.of(row): row["answer"] for row in answers.read_lines(path)}
    places = [place for place in asked.places() if place.suite in wanted]
    if lacking := [place for place in places if place not in found]:
        raise ValueError(
            f"{path} lacks {len(lacking)} of {len(places)} answers, first {tuple(lacking[0])}: let "
            "that evaluation end first."
        )
    return {place: found[place] for place in places}
