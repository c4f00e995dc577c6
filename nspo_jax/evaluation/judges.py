"""Judges of answers behind one interface: guards, fine-tuned classifiers, an API, detectors.

    judges.check("wildguard", "models/wildguard")             # cheap: no weights are read
    judge = judges.open_judge("wildguard", "models/wildguard")
    score, details = judge([judges.Exchange("How do I ...?", "I can't help with that.")])

`judge_rows.JUDGES` is the table. A verdict that is missing is NaN and counted in `no_verdict`; it
is never dropped and never safe. Nothing is sampled, so there is no seed.
"""

from collections.abc import Callable, Mapping, Sequence
import difflib
import hashlib
import os
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from nspo_jax import model_files, models, sharding
from nspo_jax.data import chat
from nspo_jax.data.conversation import Conversation
from nspo_jax.evaluation import judge_questions
from nspo_jax.evaluation.judge_rows import JUDGES, Row
from nspo_jax.rewards import (
    judge_address,
    judge_cache,
    judge_client,
    refusal_features,
    refusals,
    remote,
    verdict_prompt,
    verdict_reader,
    verdict_tree,
)

__all__ = ["JUDGES", "Exchange", "Row", "Verdicts", "check", "find", "open_judge", "template_hash"]

_ROWS_PER_SHARD = 8


class Exchange(NamedTuple):
    """A request and the answer to judge.

    context: that of HarmBench's contextual behaviours.
    reference: another answer, for judges of preference.
    """

    request: str
    answer: str
    context: str = ""
    reference: str = ""


class Verdicts(NamedTuple):
    """The verdicts on exchanges.

    Attributes:
      score: float32 [rows] in [0, 1], NaN where there is no verdict.
      details: float32 [rows] each. Always `verdict_mass` (the probability of all verdicts together;
        NaN where a judge gives no probabilities), `no_verdict` and `cut` (1 where the answer lost
        its end), and the row's `others` and `readings`. A judge of preference has `contradicts` (1
        where the two orders have different verdicts).
    """

    score: np.ndarray
    details: dict[str, np.ndarray]


Judge = Callable[[Sequence[Exchange]], Verdicts]


def find(name: str) -> Row:
    """Returns a row of JUDGES.

    Raises:
      ValueError: for an unknown name; it names the nearest.
    """
    if name in JUDGES:
        return JUDGES[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), JUDGES, 1, 0.0)[0]
    raise ValueError(
        f"There is no judge {name!r}; the nearest is {near!r}. Expected one of {', '.join(JUDGES)}."
    )


def check(name: str, place: str | os.PathLike) -> None:
    """Checks that a judge can be opened, without its weights.

    Args:
      name: a key of JUDGES.
      place: the directory of a model, the address of an API and the model's name there as
        URL#MODEL, or "" for a detector.

    Raises:
      ValueError: for an unknown judge, a place of the wrong kind, a tokenizer that cannot tell the
        verdicts apart, or a chat template that is no judge's.
      FileNotFoundError: for a directory that is not there or lacks a file.
    """
    row, place = find(name), os.fspath(place)
    if row.kind == "model":
        _prepare(row, place)
    elif row.kind == "remote":
        _address(row, place)
        _ = row.template
    elif place:
        raise ValueError(
            f"The judge {name} is a function of this package, and its place is {place!r}: leave "
            "the place empty."
        )


def template_hash(name: str, place: str | os.PathLike) -> str:
    """Returns the sha256 of the template that a judge is used with, for the record of a result.

    It is the row's where the row has a published text, that of the chat template in a model's
    directory, that of a remote judge's question about two empty texts, that of the learned
    detector's weights, and "" for the rules.

    Raises:
      FileNotFoundError, ValueError: those of `find` and `chat.load_tokenizer`.
    """
    row = find(name)
    if row.template_sha256:
        return row.template_sha256
    if name == "refusals":
        return hashlib.sha256(refusals.WEIGHTS.read_bytes()).hexdigest()
    text = ""
    if row.kind == "model":
        text = chat.load_tokenizer(place).get_chat_template()
    elif row.kind == "remote":
        text = _question(row).ask("", "")[0]["content"]
    return hashlib.sha256(text.encode("utf-8")).hexdigest() if text else ""


def open_judge(
    name: str,
    place: str | os.PathLike,
    mesh: jax.sharding.Mesh | None = None,
    *,
    dtype: Any = jnp.bfloat16,
    batch_size: int | None = None,
    cache: str | os.PathLike = "runs/judge_cache",
    api_key_env: str | None = None,
    max_tokens: int = 1024,
) -> Judge:
    """Opens a judge: loads its model, or connects its client.

    Args:
      name: a key of JUDGES.
      place: see `check`.
      mesh: the mesh of a judge that is a model; None: all devices in the data axis.
      dtype: the dtype that a model is held and computed in.
      batch_size: a model's rows at a time, of all processes; None: 8 for each shard of rows.
      cache: the folder that keeps a remote judge's verdicts.
      api_key_env: the environment variable that holds the key of a remote judge's API.
      max_tokens: tokens of a remote judge's answer, thoughts included.

    Returns:
      A function from exchanges to `Verdicts`. With a model it is collective: every process passes
      as many exchanges. A remote judge's raises `reward.JudgeError` if the judge is down. No
      exchanges are a ValueError.

    Raises:
      FileNotFoundError, ValueError: those of `check`, before weights are loaded, and those of
        `models.load_model` and `sharding.check_batch`.
    """
    row, place = find(name), os.fspath(place)
    if row.kind != "model":
        check(name, place)
    if row.kind == "detector":
        detector = {"refusals": refusals.learned, "refusal_rules": refusals.rules}[name]
        return lambda exchanges: _detect(detector, _rows(exchanges))
    if row.kind == "remote":
        url, model = _address(row, place)
        client = judge_client.JudgeClient(
            url, model, api_key_env=api_key_env, max_tokens=max_tokens
        )
        question = _question(row)
        asked = remote.RemoteJudge(
            client, judge_cache.JudgeCache(cache), question=question.ask, parse=question.read
        )
        return lambda exchanges: _ask(row, asked, _rows(exchanges))
    mesh = sharding.make_mesh() if mesh is None else mesh
    rows = batch_size or _ROWS_PER_SHARD * mesh.shape["data"] * mesh.shape["fsdp"]
    sharding.check_batch(mesh, rows, f"The batch_size of the judge {name}")
    prompt, tree, length = _prepare(row, place)
    model_config, params = verdict_reader.load(place, mesh, dtype)
    reader = verdict_reader.Reader(
        model_config,
        params,
        prompt,
        tree,
        mesh,
        max_length=length,
        batch_size=rows,
        least_mass=row.least_mass,
        fixed=False,
    )
    return lambda exchanges: _read(row, reader, tree, _rows(exchanges))


# --------------------------------------------------------------------------- judges that are models


def _prepare(row: Row, place: str) -> tuple[verdict_prompt.Prompt, verdict_tree.Tree, int]:
    """Returns the prompt, the verdicts' tokens and the length of rows; see `check`."""
    what = f"The judge {row.name}"
    if not place or "://" in place:
        raise ValueError(
            f"{what} is a model, and its place is {place!r}: give the directory of {row.model} "
            "in Hugging Face's layout. A server's model is asked by a judge whose name begins "
            "with remote."
        )
    model_files.check_directory(place, f"The place of the judge {row.name}")
    model_config, tokenizer = models.load_config(place), chat.load_tokenizer(place)
    template = row.template
    if template is None:
        prompt = verdict_prompt.ChatPrompt(tokenizer, what, longest=row.longest)
        if "unsafe" not in prompt.render("a", "b").lower():
            raise ValueError(
                f"{what} has a chat template that asks for no verdict in {place}: expected that "
                f"of {row.model}, which lists unsafe content. Copy its tokenizer_config.json or "
                "chat_template.jinja."
            )
    else:
        prompt = verdict_prompt.TextPrompt(
            tokenizer, template, with_context=row.context_template, longest=row.longest
        )
    tree = prompt.grow(row.answers(), what)
    length = min(row.length, model_config.max_length)
    verdict_reader.check(model_config, tokenizer, prompt, tree, length, what)
    return prompt, tree, length


def _read(
    row: Row,
    reader: verdict_reader.Reader,
    tree: verdict_tree.Tree,
    exchanges: Sequence[Exchange],
) -> Verdicts:
    texts, silent = _answers(row, [each.answer for each in exchanges])
    read = reader(
        [(each.request, text, each.context) for each, text in zip(exchanges, texts, strict=True)]
    )
    shares = np.where(silent[:, None], np.nan, read.shares)
    names, labels = list(row.fields), cast(tuple[tuple[str, ...], ...], tree.labels)

    def mean(field: str, values: Mapping[str, float]) -> np.ndarray:
        """Returns the mean value of a field of the answer, float32 [rows]."""
        place = names.index(field)
        column = np.array([values[words[place]] for words in labels])
        return (shares * column).sum(axis=1).astype(np.float32)

    details = {name: mean(name, values) for name, values in row.others.items()}
    details |= {name: mean("verdict", values) for name, values in row.readings.items()}
    return _verdicts(
        mean("verdict", row.verdicts),
        verdict_mass=np.where(silent, np.nan, read.mass),
        cut=read.cut & ~silent,
        **details,
    )


# ------------------------------------------------------------------------ judges that are not ours


def _address(row: Row, place: str) -> tuple[str, str]:
    """Returns the url and the model's name of an address."""
    url, mark, model = place.partition("#")
    if not (url and mark and model):
        raise ValueError(
            f"The judge {row.name} is asked through an API, and its place is {place!r}: expected "
            "URL#MODEL, such as http://localhost:8000/v1#meta-llama/Llama-3.3-70B-Instruct."
        )
    judge_address.check_url(url)
    return url, model


def _question(row: Row) -> judge_questions.Question:
    template = row.template
    if row.measures == "preference":
        if template is None:
            return judge_questions.preference()
        return judge_questions.published_preference(template)
    if template is not None:
        return judge_questions.published(template)
    return judge_questions.of_suite(row.suite) if row.suite else judge_questions.general()


def _ask(row: Row, asked: remote.RemoteJudge, exchanges: Sequence[Exchange]) -> Verdicts:
    texts, silent = _answers(row, [each.answer for each in exchanges])
    spoken = np.flatnonzero(~silent)
    said = [texts[index] for index in spoken]
    paired = row.measures == "preference"
    if paired:
        others, _ = _answers(row, [each.reference for each in exchanges])
        pairs = [(texts[index], others[index]) for index in spoken]
        said = [judge_questions.join_pair(*pair) for pair in pairs]
        said += [judge_questions.join_pair(second, first) for first, second in pairs]
    found = np.full((1 + paired, len(exchanges)), np.nan, np.float32)
    if len(spoken):
        requests = [verdict_prompt.ask(each.request, each.context) for each in exchanges]
        rows = [Conversation(requests[index], "", row.name, "") for index in spoken]
        scores, _ = asked(rows * len(found), said)
        found[:, spoken] = np.reshape(scores, (len(found), len(spoken)))
    details = {}
    if paired:
        found[1] = 1 - found[1]  # the reference came first
        missing = np.isnan(found).any(axis=0)
        details["contradicts"] = np.where(missing, np.nan, found[0] != found[1])
    score = found.mean(axis=0)
    nothing = {"verdict_mass": np.full(len(score), np.nan), "cut": np.zeros(len(score))}
    return _verdicts(score, **nothing, **details)


def _detect(detector: refusals.Detector, exchanges: Sequence[Exchange]) -> Verdicts:
    score = np.array([detector(each.answer).probability for each in exchanges], np.float32)
    return _verdicts(score, verdict_mass=np.full(len(score), np.nan), cut=np.zeros(len(score)))


# -------------------------------------------------------------------------------------------- all


def _rows(exchanges: Sequence[Exchange]) -> Sequence[Exchange]:
    if not len(exchanges):
        raise ValueError("There are no exchanges to judge: give at least one.")
    return exchanges


def _answers(row: Row, answers: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Returns the answers to judge, and where there are thoughts alone, bool [rows]."""
    if not row.strips_thoughts:
        return [*answers], np.zeros(len(answers), bool)
    texts = []
    for answer in answers:
        text = refusal_features.strip_thoughts(answer)
        texts.append(answer if text == answer.strip() else text)  # blanks stay too
    pairs = zip(texts, answers, strict=True)
    return texts, np.array([not text and bool(answer.strip()) for text, answer in pairs])


def _verdicts(score: np.ndarray, **details: np.ndarray) -> Verdicts:
    details["no_verdict"] = np.isnan(score)
    return Verdicts(score, {name: value.astype(np.float32) for name, value in details.items()})
