"""The terms of `rewards.terms`: each is a row of TERMS, with its check and its builder.

All processes together ask a term that is a model on the mesh, and the dry run counts its memory.
"""

from collections.abc import Callable
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from nspo_jax import base_model, model_files, models, own_code, rewards, settings, tasks
from nspo_jax.reward_models import store

Build = Callable[[settings.Run, base_model.BaseModel], rewards.Reward]


@dataclasses.dataclass(frozen=True)
class Term:
    """A row of TERMS: the check and the builder of a term.

    Attributes:
      build: makes the reward; it may load a model.
      check: raises FileNotFoundError or ValueError for settings that cannot work.
      fields: the settings that it reads, by their dotted names; only runs with the term read them.
      directory: returns the directory of its model on the mesh, "" where none is named. It is None
        for a term without such a model.
      head: the head of that model.
      dtype: returns the dtype that the model is held in.
    """

    build: Build
    check: Callable[[settings.Run], None] = lambda run: None
    fields: tuple[str, ...] = ()
    directory: Callable[[settings.Run], str] | None = None
    head: str = "scalar"
    dtype: Callable[[settings.Run], str] = lambda run: "float32"


def parse(text: str) -> list[rewards.TermSpec]:
    """Reads `rewards.terms`: see `rewards.parse_terms`.

    Raises:
      ValueError: naming a term that is not well formed, or that does not exist.
    """
    specs = rewards.parse_terms(text)
    for spec in specs:
        if spec.name not in TERMS and not own_code.is_named(spec.name):
            raise ValueError(
                f"rewards.terms has {spec.name!r}; expected NAME, NAME@KINDS or NAME@KINDS=WEIGHT, "
                f"with NAME of {', '.join(TERMS)}, or MODULE:CLASS of your own, joined by +."
            )
    return specs


def on_mesh(run: settings.Run) -> list[str]:
    """Returns the names of a run's terms whose models live on the mesh."""
    names = [spec.name for spec in parse(run.rewards.terms)]
    return [name for name in names if name in TERMS and TERMS[name].directory]


def open_rewards(run: settings.Run, base: base_model.BaseModel) -> rewards.Mixture:
    """Builds the mixture of `rewards.terms`: loads its models, and trains a task's own if absent.

    Raises:
      FileNotFoundError, ValueError: for a model that is missing or does not fit.
    """
    together = on_mesh(run)

    def build(spec: rewards.TermSpec) -> rewards.Reward:
        return TERMS[spec.name].build(run, base) if spec.name in TERMS else _own(spec.name)

    specs = parse(run.rewards.terms)
    return rewards.Mixture(
        [(spec, build(spec), spec.name in together) for spec in specs],
        normalise=run.rewards.normalise,
        on_failure=run.rewards.on_failure,
    )


def check(run: settings.Run, *, has_weights: bool = True) -> None:
    """Raises an error for judges that cannot be built, before anything expensive starts.

    Args:
      run: the run's settings.
      has_weights: the run loads its models; otherwise their directories need not be there.

    Raises:
      ValueError: naming the term, the field and its value.
      FileNotFoundError: for the missing directory of a model.
    """
    for spec in parse(run.rewards.terms):
        if spec.kinds == "benign" and not run.data.benign_fraction:
            raise ValueError(
                f"rewards.terms has {spec.name}@benign, and data.benign_fraction is 0: there is no "
                "benign prompt in the RL batch. Set --config.data.benign_fraction=0.5, or leave "
                "the term out."
            )
        if spec.name not in TERMS:
            _own(spec.name)
        elif has_weights or not TERMS[spec.name].directory:
            TERMS[spec.name].check(run)


def abstract_models(
    run: settings.Run, model_config: models.ModelConfig
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Describes the models that live on the mesh, so that their memory can be counted.

    Args:
      run: the run's settings.
      model_config: the base model's; a model without a named directory is assumed to be like it.

    Returns:
      Term -> parameters as `jax.ShapeDtypeStruct`s, and the assumptions about them, in words.

    Raises:
      FileNotFoundError, ValueError: those of `models.load_config`.
    """
    found, assumed = {}, []
    for name in on_mesh(run):
        term = TERMS[name]
        directory = term.directory(run) if term.directory else ""
        dtype = jnp.dtype(term.dtype(run))
        shape = dataclasses.replace(model_config, head=term.head)
        if directory:
            shape = models.load_config(directory)
        else:
            assumed.append(f"the {name} is as large as the base model")
        found[name] = jax.tree.map(
            lambda leaf, dtype=dtype: jax.ShapeDtypeStruct(leaf.shape, dtype),
            models.abstract_params(shape),
        )
    return found, tuple(assumed)


def _own(name: str) -> rewards.Reward:
    return own_code.make(name, "rewards.terms", ["__call__"])


# -------------------------------------------------------------------------------------- rules


def _open_rules(run: settings.Run, base: base_model.BaseModel) -> rewards.Reward:
    if base.task.reward is None:  # `_check_rules` has refused such a task
        raise ValueError(f"rewards.terms has rules, and the task {run.task!r} has no reward.")
    return base.task.reward


def _check_rules(run: settings.Run) -> None:
    if not tasks.kind_of(run.task).has_rules:
        raise ValueError(
            f"rewards.terms is {run.rewards.terms!r}, and the task {run.task!r} has no rules: they "
            "tell whether an answer is a refusal, not whether it is harmful. Judge by a guard, a "
            "cost_model or a remote_judge: --config.rewards.terms=guard+over_refusal."
        )


# -------------------------------------------------------------------------------------- models


def _check_model(objective: str, run: settings.Run) -> None:
    field = f"rewards.{objective}_model"
    path = settings.get(run, field)
    if path:
        model_files.check_directory(path, field)
    elif not store.is_trained_here(run):
        raise ValueError(
            f"rewards.terms has {objective}_model, and {field} is empty: set it to the Hugging "
            f"Face directory of a {objective} model; scripts.train_reward --objective={objective} "
            "trains one."
        )


def _model_term(objective: str) -> Term:
    return Term(
        build=functools.partial(store.open_model, objective=objective),
        check=functools.partial(_check_model, objective),
        fields=(f"rewards.{objective}_model", "rewards.batch_size"),
        directory=lambda run: settings.get(run, f"rewards.{objective}_model"),
    )


# -------------------------------------------------------------------------------------- guard


def _open_guard(run: settings.Run, base: base_model.BaseModel) -> rewards.Guard:
    options = run.rewards.guard
    return rewards.load_guard(
        options.path,
        base.mesh,
        dtype=jnp.dtype(options.dtype),
        max_length=options.length,
        batch_size=run.rewards.batch_size,
        categories=_guard_categories(run),
        date=base.chat_format.date,
    )


def _check_guard(run: settings.Run) -> None:
    """Raises an error for a model that is no guard by its tokenizer and config."""
    options = run.rewards.guard
    if not options.path:
        raise ValueError(
            "rewards.terms has guard, and rewards.guard.path is empty: set it to the Hugging Face "
            "directory of a guard such as Llama Guard 3."
        )
    model_files.check_directory(options.path, "rewards.guard.path")
    try:
        rewards.open_verdicts(options.path, options.length, _guard_categories(run))
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"rewards.guard.path is {options.path!r}, which is no guard: {error}") from error


def _guard_categories(run: settings.Run) -> dict[str, str] | None:
    path = run.rewards.guard.categories
    return json.loads(pathlib.Path(path).read_text()) if path else None


# -------------------------------------------------------------------------------- remote judge


def _open_judge(run: settings.Run, base: base_model.BaseModel) -> rewards.RemoteJudge:
    del base  # the judge has a model of its own
    options = run.rewards.judge
    client = rewards.JudgeClient(
        options.url,
        options.model,
        api_key_env=options.api_key_env or None,
        max_tokens=options.max_tokens,
        asks=options.asks,
        concurrency=options.concurrency,
        timeout=options.timeout,
        retries=options.retries,
        down_after=options.down_after,
        budget=None if options.budget < 0 else options.budget,
    )
    return rewards.RemoteJudge(
        client, rewards.JudgeCache(pathlib.Path(run.workspace) / "judge_cache")
    )


def _check_judge(run: settings.Run) -> None:
    judge = run.rewards.judge
    if not (judge.url and judge.model):
        raise ValueError(
            f"rewards.terms has remote_judge, rewards.judge.url is {judge.url!r} and "
            f"rewards.judge.model {judge.model!r}: set both, such as http://localhost:8000/v1 and "
            "the name that the server gives the model."
        )
    if judge.api_key_env and judge.api_key_env not in os.environ:
        raise ValueError(
            f"rewards.judge.api_key_env is {judge.api_key_env!r}, and there is no environment "
            "variable of that name: export the key, or set the field to ''."
        )


TERMS: dict[str, Term] = {
    "rules": Term(_open_rules, _check_rules),
    "refusal": Term(lambda run, base: rewards.Refusal(base.task.refusal)),
    "over_refusal": Term(lambda run, base: rewards.OverRefusal(base.task.refusal)),
    "cost_model": _model_term("cost"),
    "reward_model": _model_term("reward"),
    "guard": Term(
        _open_guard,
        _check_guard,
        fields=(*settings.fields_of("rewards.guard"), "rewards.batch_size"),
        directory=lambda run: run.rewards.guard.path,
        head="logits",
        dtype=lambda run: run.rewards.guard.dtype,
    ),
    "remote_judge": Term(_open_judge, _check_judge, fields=settings.fields_of("rewards.judge")),
}
