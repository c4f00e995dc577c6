"""A model's answers to the prompts of suites, kept on disk as they come.

A directory holds `asked.json`, which says what was asked in which way, and `answers.jsonl`. A
row's answer depends on its suite, number, sample and seed alone, so an evaluation that was killed
goes on, and gives what it would have given. Verdicts are kept apart: `evaluation.judging`.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
import dataclasses
import hashlib
import json
import pathlib
from typing import Any, NamedTuple
import zlib

from nspo_jax import files, progress
from nspo_jax.data import chat, suites
from nspo_jax.evaluation import answering
from nspo_jax.evaluation import programs as programs_lib

SETTINGS, ANSWERS = "asked.json", "answers.jsonl"
_BATCHES = 4  # batches between two writes


class Sampling(NamedTuple):
    """The way in which answers are drawn.

    temperature: 0 takes the likeliest token.
    max_new_tokens: an answer's most tokens.
    system: the system message; "" is an empty one, None leaves it to the chat template.
    """

    temperature: float
    max_new_tokens: int
    system: str | None


SAMPLINGS = {
    "paper": Sampling(1.0, 512, ""),  # arXiv 2512.11391, its released evaluation
    "greedy": Sampling(0.0, 512, None),
}


class Place(NamedTuple):
    """The place of an answer: its suite, the prompt's number in it, and the sample's."""

    suite: str
    row: int
    sample: int

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> "Place":
        """Reads the place in a line of answers or verdicts."""
        return cls(line["suite"], line["row"], line["sample"])


class Answer(NamedTuple):
    """An answer, the prompt that it answers, and for judges of preference a reference answer."""

    place: Place
    prompt: suites.Prompt
    text: str
    reference: str = ""


@dataclasses.dataclass(frozen=True)
class Asked:
    """Questions to a model and the way of asking; answers to other ones are not mixed with these.

    Attributes:
      model: the model's directory; weights: their `models.stored_fingerprint`.
      prompts: suite -> its prompts.
      sampling: the way of drawing.
      samples: answers to each prompt.
      seed: the seed of the draws.
      dtype: the dtype of the model's weights and activations.
      chat: prompts are asked in the model's chat template; else they are continued as they are.
      template: the digest of that template; "" without one.
    """

    model: str
    weights: str
    prompts: Mapping[str, Sequence[suites.Prompt]]
    sampling: Sampling
    samples: int
    seed: int
    dtype: str
    chat: bool
    template: str

    @property
    def settings(self) -> dict[str, Any]:
        """The content of asked.json."""
        values: dict[str, Any] = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        values["sampling"] = self.sampling._asdict()
        values["prompts"] = {
            name: {"count": len(rows), "sha256": digest("\n".join(row.text for row in rows))}
            for name, rows in self.prompts.items()
        }
        return values

    def places(self) -> Iterator[Place]:
        """Yields every answer's place, suite by suite."""
        for name, rows in self.prompts.items():
            for row in range(len(rows)):
                for sample in range(self.samples):
                    yield Place(name, row, sample)


def digest(text: str) -> str:
    """Computes the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """The answers in a directory.

    Args:
      directory: is made if it is not there.
      asked: the questions. A directory of other ones is refused; further suites may join it.

    Raises:
      ValueError: for a directory whose settings differ, or whose files are damaged.
    """

    def __init__(self, directory: str | pathlib.Path, asked: Asked):
        self.directory, self.asked = pathlib.Path(directory), asked
        self.directory.mkdir(parents=True, exist_ok=True)
        path, settings = self.directory / SETTINGS, asked.settings
        if path.exists():
            there = files.read_json(path, "delete the directory, or give another --output")
            _check_same(path, there, settings)
            settings["prompts"] = there["prompts"] | settings["prompts"]
        files.write_text(path, json.dumps(settings, indent=2))
        self._texts = {Place.of(row): row["answer"] for row in read_lines(self.directory / ANSWERS)}

    def missing(self) -> list[Place]:
        """Lists the places of what is asked and not answered."""
        return [place for place in self.asked.places() if place not in self._texts]

    def add(self, texts: Mapping[Place, str]) -> None:
        """Keeps answers on disk."""
        rows = [
            place._asdict() | {
                "prompt": self.asked.prompts[place.suite][place.row].text,
                "category": self.asked.prompts[place.suite][place.row].category,
                "answer": text,
            }
            for place, text in texts.items()
        ]  # fmt: skip
        append_lines(self.directory / ANSWERS, rows)
        self._texts |= texts

    def answers(self) -> list[Answer]:
        """Lists the answers of all that is asked, which must be there."""
        return [
            Answer(place, self.asked.prompts[place.suite][place.row], self._texts[place])
            for place in self.asked.places()
        ]


def options(sampling: Sampling, chat_format: chat.ChatFormat) -> answering.Options:
    """Returns the options of an answer's drawing."""
    return answering.Options(
        (), chat_format.stop_ids, sampling.max_new_tokens, sampling.temperature
    )


def complete(
    store: Store,
    programs: programs_lib.Programs,
    chat_format: chat.ChatFormat,
    *,
    batch: int,
    told: Callable[[str], Any] = print,
) -> None:
    """Answers what is missing, and keeps it as it comes.

    Args:
      store: the answers there are.
      programs: the model's.
      chat_format: the model's, with the system message of the questions.
      batch: rows a batch, a multiple of the mesh's shards.
      told: gets a line about prompts that lose their beginning.

    Raises:
      ValueError: for the reasons of `answering.answer`.
    """
    missing, asked = store.missing(), store.asked
    if not missing:
        return
    drawn = options(asked.sampling, chat_format)
    longest = programs.model_config.max_length
    texts = list(dict.fromkeys(asked.prompts[suite][row].text for suite, row, _ in missing))
    encoded = chat_format.encode_prompts(texts)
    ids = {
        text: tokens[mask].tolist()
        for text, tokens, mask in zip(texts, encoded.tokens, encoded.mask, strict=True)
    }
    room = longest - drawn.max_new_tokens
    if long := sum(len(found) > room for found in ids.values()):
        told(f"{long} of {len(ids)} prompts have more than {room} tokens and lose their beginning.")

    def prompt(place: Place) -> list[int]:
        return ids[asked.prompts[place.suite][place.row].text]

    missing.sort(key=lambda place: -len(prompt(place)))  # few shapes are compiled
    step = _BATCHES * batch
    with progress.Bar(total=len(missing), desc="answers", unit="answer") as bar:
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            found = answering.answer(
                programs, chat_format.tokenizer, [prompt(place) for place in part], drawn,
                batch=batch, seeds=[_seed(asked.seed, place) for place in part], told=bar.update,
            )  # fmt: skip
            store.add(dict(zip(part, found, strict=True)))


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the lines of a file that `append_lines` wrote; a last one that was cut is no line.

    Raises:
      ValueError: for any other line that is no JSON.
    """
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text.rpartition("\n")[0]
    rows = []
    for number, line in enumerate(whole.split("\n") if whole else [], 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path} is damaged in line {number} ({error}): delete the line to have it made "
                "again, or the file."
            ) from error
    return rows


def append_lines(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Appends rows as lines of JSON, in place of a last line that a kill cut."""
    with path.open("ab+") as file:
        file.seek(max(0, file.tell() - 1))
        if file.read() not in (b"", b"\n"):
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.writelines(json.dumps(row, ensure_ascii=True).encode() + b"\n" for row in rows)


def check_comparable(
    path: pathlib.Path, there: Mapping[str, Any], wanted: Mapping[str, Any]
) -> None:
    """Raises ValueError unless another model was asked the same questions in the same way."""
    _check_same(path, there, wanted, apart={"weights", "template", "dtype"})
    lacking = [name for name in wanted["prompts"] if name not in there.get("prompts", {})]
    if lacking:
        raise ValueError(
            f"{path} has no answers to {', '.join(lacking)}: evaluate that model on them first."
        )


def _check_same(path, there, wanted, apart: Collection[str] = ()) -> None:
    """Raises ValueError where a directory's answers are to other questions."""
    wanted = json.loads(json.dumps(wanted))
    theirs, ours = there.get("prompts", {}), wanted["prompts"]
    compared = wanted.keys() - {"prompts", "model", *apart}  # a copy of a model is the same model
    pairs = {name: (there.get(name), wanted[name]) for name in sorted(compared)}
    shared = [name for name in ours if name in theirs]
    pairs |= {f"the prompts of {name}": (theirs[name], ours[name]) for name in shared}
    differ = [
        f"{name}: {old!r} there, {new!r} now" for name, (old, new) in pairs.items() if old != new
    ]
    if differ:
        raise ValueError(
            f"{path} is of other answers ({'; '.join(differ)}). Give another directory, or the "
            "flags of before."
        )


def _seed(seed: int, place: Place) -> int:
    return zlib.crc32(f"{seed}/{place.suite}/{place.row}/{place.sample}".encode()) & 0x7FFFFFFF
