"""An evaluation by suites: what is asked, the answers, the verdicts and the results, in order.

Everything that can be wrong with names, files, judges and another model's directory is told before
a model is loaded. What is on disk already is not made again.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import logging
import pathlib
from typing import NamedTuple

import jax

from nspo_jax import distributed, files, models, ownership
from nspo_jax.data import chat, suites
from nspo_jax.evaluation import (
    answering,
    answers,
    judges,
    judging,
    paired,
    references,
    shared_judge,
)
from nspo_jax.evaluation import programs as programs_lib

_log = logging.getLogger(__name__)


class Results(NamedTuple):
    """The outcome of `evaluate`.

    rates: every rate; differences: from the other model, if there is one.
    lengths: those of answers that are compared with references.
    path: the file that holds them all.
    """

    rates: list[judging.Rate]
    differences: list[paired.Difference]
    lengths: list[references.Lengths]
    path: pathlib.Path


def ask(
    model: str,
    named: Sequence[str],
    folder: pathlib.Path | None,
    *,
    sampling: answers.Sampling,
    samples: int = 1,
    limit: int | None = None,
    seed: int = 0,
    dtype: str = "float32",
) -> tuple[answers.Asked, chat.ChatFormat]:
    """Prepares the questions to a model, and the format in which they are asked.

    Args:
      model: a language model's directory.
      named: suites, as NAME or NAME=PATH, with several paths joined by +.
      folder: the folder of the suites whose paths are not named; see `suites.locate`.
      sampling: the way of drawing.
      samples: answers to each prompt.
      limit: the first prompts of each suite; None: all.
      seed: the seed of the draws.
      dtype: the dtype of weights and activations.

    Raises:
      ValueError: for the reasons of `suites.load` and `answering.check_options`, several greedy
        answers to one prompt, or a system message for a model without a chat template.
      FileNotFoundError: for those of `suites.locate` and `programs.load_format`.
    """
    if samples > 1 and not sampling.temperature:
        raise ValueError(
            f"{samples} greedy answers to a prompt would all be the same: draw them, "
            "--sampling=paper, or ask for one."
        )
    chat_format = programs_lib.load_format(model)
    options = answers.options(sampling, chat_format)
    answering.check_options(options, models.load_config(model).max_length)
    if chat_format.chat:
        chat_format = dataclasses.replace(chat_format, system=sampling.system)
    elif sampling.system:
        raise ValueError(
            f"{model} has no chat template, and a system message is given: leave --system out."
        )
    prompts = {}
    for each in named:
        name, _, paths = each.partition("=")
        where = paths.split("+") if paths else suites.locate(name, folder)
        prompts[name] = suites.load(name, where, limit)
    template = chat_format.tokenizer.chat_template
    asked = answers.Asked(
        model=model, weights=models.stored_fingerprint(model), prompts=prompts, sampling=sampling,
        samples=samples, seed=seed, dtype=dtype, chat=chat_format.chat,
        template=answers.digest(str(template)) if template else "",
    )  # fmt: skip
    return asked, chat_format


def check_judges(named: Mapping[str, str], asked: answers.Asked) -> None:
    """Checks judges against the suites that they are to judge, without loading one.

    Args:
      named: judge -> its directory or address; see `judges.open_judge`.
      asked: what is asked.

    Raises:
      ValueError, FileNotFoundError: those of `judges.check`; ValueError for a judge or a suite that
        would be left over.
    """
    for name, place in named.items():
        judges.check(name, place)
    for suite in asked.prompts:
        if not any(judging.fits(suite, name) for name in named):
            about, own = suites.find(suite).measures, suites.find(suite).judge
            if about == suites.PREFERENCE:  # a model whose answers are another one's references
                _log.warning("%s is answered and not judged: no judge measures %s", suite, about)
                continue
            raise ValueError(
                f"No judge among {', '.join(named) or 'none'} measures {about}, which the suite "
                f"{suite!r} is about. Add one to --judges; its authors' or the paper's is {own}."
            )
    for name in named:
        if not any(judging.fits(suite, name) for suite in asked.prompts):
            raise ValueError(
                f"The judge {name!r} measures {judges.find(name).measures}, and none of the suites "
                f"{', '.join(asked.prompts)} does: leave it out; --judges= asks none."
            )


def evaluate(
    asked: answers.Asked,
    chat_format: chat.ChatFormat,
    named: Mapping[str, str],
    directory: pathlib.Path,
    mesh: jax.sharding.Mesh,
    *,
    batch: int,
    against: str | None = None,
) -> Results | None:
    """Answers and judges what is not done yet, and writes results.json. Collective.

    Args:
      asked: the questions.
      chat_format: the model's.
      named: judge -> its directory or address.
      directory: keeps answers, verdicts and results.
      mesh: the mesh for the model and the judges.
      batch: rows a batch, a multiple of the mesh's shards.
      against: the directory of another model's evaluation. Its answers are the references of
        suites of preference; the rates of the other suites are compared.

    Returns:
      The results; None in other processes than the first.

    Raises:
      ValueError, FileNotFoundError: for another directory that cannot be compared, references that
        are missing, answers to other questions in `directory`, or a judge that cannot be opened.
    """
    others: dict[str, judging.Verdicts] = {}
    texts: references.Texts = {}
    compared = [name for name in named if judges.find(name).measures != "preference"]
    if distributed.is_primary():
        texts = references.find(asked, named, against)
        if against:
            others = {name: judging.read_verdicts(against, name, asked) for name in compared}
    with ownership.own(directory, "output"):
        shared = {
            name: shared_judge.SharedJudge(
                lambda name=name, place=place: judges.open_judge(
                    name, place, mesh, batch_size=batch
                )
            )
            for name, place in named.items() if judges.find(name).kind == "model"
        }  # fmt: skip
        if not distributed.is_primary():
            _answer(asked, chat_format, None, mesh, batch)
            for judge in shared.values():
                judge.follow()
            return None
        store = answers.Store(directory, asked)
        _answer(asked, chat_format, store, mesh, batch)
        given, verdicts = store.answers(), {}
        abouts = {
            name: {"place": place, "template_sha256": judges.template_hash(name, place)}
            for name, place in named.items()
        }
        for name, place in named.items():
            verdicts[name] = judging.judge_answers(
                directory, name, abouts[name],
                [
                    answer if name in compared
                    else answer._replace(reference=texts[answer.place])
                    for answer in given if judging.fits(answer.place.suite, name)
                ],
                lambda name=name, place=place: shared[name] if name in shared else (
                    judges.open_judge(name, place, cache=directory / "judge_cache")
                ),
            )  # fmt: skip
            if name in shared:
                shared[name].end()
        found = judging.rates(verdicts)
        differences = judging.compare(verdicts, others)
        lengths = references.lengths(given, texts, against)
        path = directory / "results.json"
        results = {
            "asked": asked.settings,
            "judges": abouts,
            "rates": [rate._asdict() for rate in found],
            "categories": {
                f"{rate.suite} {rate.judge}": judging.categories(
                    given, verdicts[rate.judge], rate.suite, rate.judge
                )
                for rate in found
            },
            "against": [difference._asdict() for difference in differences],
            "references": [each._asdict() for each in lengths],
        }
        files.write_text(path, json.dumps(results, indent=2))
    return Results(found, differences, lengths, path)


def _answer(asked, chat_format, store: answers.Store | None, mesh, batch: int) -> None:
    """Answers what the store lacks; other processes, without a store, follow."""
    count = str(len(store.missing())) if store else ""
    if distributed.several():
        count = distributed.broadcast_text(count)
    if count == "0":
        return
    model_config, params = programs_lib.load_model(asked.model, mesh, asked.dtype)
    programs = programs_lib.Programs(model_config, params, mesh)
    if store is None:
        programs.follow()
        return
    answers.complete(store, programs, chat_format, batch=batch)
    programs.end()
