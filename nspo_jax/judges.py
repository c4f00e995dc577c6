"""Who judges a run: the rewards that `config.rewards` names, and the models among them.

The chat world's reward and cost models are trained when they are first asked for, like its base:

    WORKSPACE/seed_S/cost_model/               a Hugging Face directory (sequence classification)
    WORKSPACE/seed_S/cost_model_report.json    recipe, agreement with held-out pairs by epoch
    WORKSPACE/seed_S/cost_model_calibration.png
"""

import dataclasses
import functools
import json
import logging
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from nspo_jax import (
    distributed,
    files,
    model_files,
    models,
    own_code,
    ownership,
    rendering,
    reward_training,
    rewards,
    settings,
    tasks,
    workspace,
)
from nspo_jax.data import preferences, public, records, sources, split
from nspo_jax.reports import figures

ON_MESH = ("cost_model", "reward_model", "guard")  # which all processes ask together
_log = logging.getLogger(__name__)


def open_rewards(config: settings.Run, work: workspace.Workspace) -> rewards.Mixture:
    """The mixture of `config.rewards`; loads its models, and trains the chat world's if absent.

    Raises:
      FileNotFoundError, ValueError: for a model that is not there or does not fit.
    """
    build = {
        "rules": lambda config, work: work.task.reward,
        "over_refusal": lambda config, work: rewards.OverRefusal(work.task.is_refusal),
        "cost_model": functools.partial(_open_model, objective="cost"),
        "reward_model": functools.partial(_open_model, objective="reward"),
        "guard": _open_guard,
        "remote_judge": _open_judge,
    }
    terms = [
        (
            spec,
            _own(spec.name) if own_code.is_named(spec.name) else build[spec.name](config, work),
            spec.name in ON_MESH,
        )
        for spec in rewards.parse_terms(config.rewards.terms)
    ]
    return rewards.Mixture(
        terms, normalise=config.rewards.normalise, on_failure=config.rewards.on_failure
    )


def check_terms(config: settings.Run, *, has_weights: bool = True) -> None:
    """Raises an error for judges that cannot be there, before anything expensive starts.

    Args:
      config: the run's.
      has_weights: the run loads its models; without, their directories need not be there.

    Raises:
      ValueError: naming the term, the field and its value.
      FileNotFoundError: for the directory of a model that is not there.
    """
    options = config.rewards
    terms = {spec.name: spec for spec in rewards.parse_terms(options.terms)}
    for name in filter(own_code.is_named, terms):
        _own(name)
    if "rules" in terms and not tasks.kind_of(config.task).has_rules:
        raise ValueError(
            f"rewards.terms is {options.terms!r}, and the task {config.task!r} has no rules: they "
            "tell whether an answer is a refusal, not whether it is harmful. Judge by a guard, a "
            "cost_model or a remote_judge: --config.rewards.terms=guard+over_refusal."
        )
    for name, spec in terms.items():
        if spec.kinds == "benign" and not config.data.benign_fraction:
            raise ValueError(
                f"rewards.terms has {name}@benign, and data.benign_fraction is 0: there is no "
                "benign prompt in the RL batch. Set --config.data.benign_fraction=0.5, or leave "
                "the term out."
            )
    judge = options.judge
    if "remote_judge" in terms and not (judge.url and judge.model):
        raise ValueError(
            f"rewards.terms has remote_judge, rewards.judge.url is {judge.url!r} and "
            f"rewards.judge.model {judge.model!r}: set both, such as http://localhost:8000/v1 and "
            "the name that the server gives the model."
        )
    if "remote_judge" in terms and judge.api_key_env and judge.api_key_env not in os.environ:
        raise ValueError(
            f"rewards.judge.api_key_env is {judge.api_key_env!r}, and there is no environment "
            "variable of that name: export the key, or set the field to ''."
        )
    for name in sorted(terms.keys() & set(ON_MESH)) if has_weights else ():
        field, path = _model_field(config, name)
        if not path and not (name != "guard" and is_trained_here(config)):
            raise ValueError(
                f"rewards.terms has {name}, and {field} is empty: set it to the Hugging Face "
                f"directory of a {name.replace('_', ' ')}"
                + (" such as Llama Guard 3." if name == "guard" else "; scripts.train_reward "
                   f"--objective={name.removesuffix('_model')} trains one.")
            )  # fmt: skip
        if path:
            model_files.check_directory(path, field)
        if name == "guard":
            _check_guard(config)


def _own(name: str) -> rewards.Reward:
    return own_code.make(name, "rewards.terms", ["__call__"])


def _check_guard(config: settings.Run) -> None:
    """Raises an error for a guard that is none, as far as its tokenizer and config tell."""
    options = config.rewards.guard
    try:
        rewards.open_verdicts(options.path, options.length, _guard_categories(config))
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"rewards.guard.path is {options.path!r}, which is no guard: {error}") from error


def _model_field(config: settings.Run, term: str) -> tuple[str, str]:
    """The field that says where the model of a term of ON_MESH is, and its value."""
    if term == "guard":
        return "rewards.guard.path", config.rewards.guard.path
    return f"rewards.{term}", settings.get(config, f"rewards.{term}")


def is_trained_here(config: settings.Run) -> bool:
    """Whether reward models are made where they are absent: the chat world's own are, as its base.

    They would be made of any other base as well, but not without being asked to.
    """
    return tasks.kind_of(config.task).pretrains and not config.model.path


def abstract_models(
    config: settings.Run, base: models.ModelConfig
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The judges that live on the mesh, without weights: what they take there can be counted.

    Args:
      config: the run's.
      base: of the base model: a model whose directory is not named is taken to be like it.

    Returns:
      Term -> parameters as `jax.ShapeDtypeStruct`s, and what was assumed of them, in words.

    Raises:
      FileNotFoundError, ValueError: as `models.load_config`.
    """
    found, assumed = {}, []
    for spec in rewards.parse_terms(config.rewards.terms):
        if spec.name not in ON_MESH:
            continue
        is_guard = spec.name == "guard"
        _, directory = _model_field(config, spec.name)
        dtype = jnp.dtype(config.rewards.guard.dtype if is_guard else "float32")
        model = dataclasses.replace(base, head="logits" if is_guard else "scalar")
        if directory:
            model = models.load_config(directory)
        else:
            assumed.append(f"the {spec.name} is as large as the base model")
        found[spec.name] = jax.tree.map(
            lambda leaf, dtype=dtype: jax.ShapeDtypeStruct(leaf.shape, dtype),
            models.abstract_params(model),
        )
    return found, tuple(assumed)


def model_directory(config: settings.Run, objective: str) -> pathlib.Path:
    """Where the reward or cost model of a config is."""
    name = f"{objective}_model"
    return pathlib.Path(
        settings.get(config, f"rewards.{name}") or workspace.seed_directory(config) / name
    )


def train_reward_model(
    config: settings.Run,
    work: workspace.Workspace,
    objective: str,
    directory: pathlib.Path,
) -> list[dict[str, float]]:
    """Trains a reward or cost model from the base, and writes it with a report and a figure.

    Returns:
      A line an epoch: see `reward_training.train`. Collective.

    Raises:
      ValueError: for pairs that cannot be read, encoded or learned from.
    """
    options = config.reward_training
    lengths = config.data.prompt_length, config.data.completion_length
    pairs, held_out = (
        reward_training.encode(work.format, rows, objective, *lengths)
        for rows in load_pairs(config)
    )
    model, params, report = reward_training.train(
        work.config,
        work.base,
        pairs,
        objective=objective,
        mesh=work.mesh,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=config.seed,
        held_out=held_out,
    )
    work.release_base()
    scores = reward_training.score(model, params, held_out, work.mesh, options.batch_size)
    if distributed.is_primary():
        directory.parent.mkdir(parents=True, exist_ok=True)
        predicted, observed = reward_training.probabilities(scores, held_out, objective)
        figures.plot_calibration(predicted, observed, _beside(directory, "calibration.png"))
        content = {"recipe": _recipe(config, objective), "pairs": len(pairs.tokens),
                   "held_out_pairs": len(held_out.tokens), "epochs": report}  # fmt: skip
        files.write_text(_beside(directory, "report.json"), json.dumps(content, indent=1))
    models.save_model(directory, model, params, like=work.path)
    if distributed.is_primary():
        model_files.record_date(directory, work.format.date)
    distributed.barrier("the reward model is written")
    return report


def load_pairs(
    config: settings.Run,
) -> tuple[list[preferences.Pair], list[preferences.Pair]]:
    """The pairs to train on, and those held out.

    Raises:
      ValueError: for an unknown dataset, or files that cannot be read.
    """
    options = config.reward_training
    if options.dataset == "chat_world":
        pairs = tasks.KINDS["chat_world"].pairs(config) or []
        held_out = [pair for pair in pairs if preferences.is_held_out(pair.prompt)]
        return [pair for pair in pairs if not preferences.is_held_out(pair.prompt)], held_out
    if options.dataset != "pku_safe_rlhf":
        raise ValueError(
            f"reward_training.dataset is {options.dataset!r}; expected chat_world or pku_safe_rlhf."
        )
    paths = sources.split_paths(options.path)

    def load(field: str) -> list[preferences.Pair]:
        with split.said_by(f"reward_training.{field}"):
            loaded = public.load(
                "pku_safe_rlhf",
                config.data_directory,
                settings.get(config, f"reward_training.{field}"),
                paths=paths,
                subset=options.subset,
                max_broken=config.data.max_broken,
            )
        rows = [row for row in loaded.rows if isinstance(row, records.PreferencePair)]  # all are
        return preferences.from_records(rows)

    return load("split"), load("held_out_split")


def _open_guard(config: settings.Run, work: workspace.Workspace) -> rewards.Guard:
    options = config.rewards.guard
    return rewards.load_guard(
        options.path,
        work.mesh,
        dtype=jnp.dtype(options.dtype),
        max_length=options.length,
        batch_size=config.rewards.batch_size,
        categories=_guard_categories(config),
        date=work.format.date,
    )


def _guard_categories(config: settings.Run) -> dict[str, str] | None:
    path = config.rewards.guard.categories
    return json.loads(pathlib.Path(path).read_text()) if path else None


def _open_judge(config: settings.Run, work: workspace.Workspace) -> rewards.RemoteJudge:
    del work  # it brings a model of its own
    options = config.rewards.judge
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
    cache = rewards.JudgeCache(pathlib.Path(config.workspace) / "judge_cache")
    return rewards.RemoteJudge(client, cache)


def _open_model(
    config: settings.Run, work: workspace.Workspace, objective: str
) -> rewards.ModelReward:
    directory = model_directory(config, objective)
    if not settings.get(config, f"rewards.{objective}_model") and is_trained_here(config):

        def make():
            _log.info("training the %s model into %s", objective, directory)
            train_reward_model(config, work, objective, directory)

        ownership.make_once(directory, f"{objective} model", make)
        _check_recipe(config, objective, directory)
    return rewards.ModelReward(
        directory,
        rendering.open_format(config, directory),  # as in training
        work.mesh,
        is_cost=objective == "cost",
        prompt_length=config.data.prompt_length,
        completion_length=config.data.completion_length,
        batch_size=config.rewards.batch_size,
        compute_dtype=config.model.compute_dtype,
    )


def _recipe(config: settings.Run, objective: str) -> dict[str, Any]:
    return {"objective": objective, **dataclasses.asdict(config.reward_training)}


def _check_recipe(config: settings.Run, objective: str, directory: pathlib.Path) -> None:
    """Raises ValueError if the model was trained by another recipe than the config's."""
    report = _beside(directory, "report.json")
    wanted = _recipe(config, objective)
    found = files.read_json(report, "delete it")["recipe"] if report.exists() else wanted
    if changed := settings.differences(wanted, found):
        raise ValueError(
            f"The {objective} model in {directory} was trained with another config: "
            f"{changed}. Delete that directory to train anew, or set "
            f"rewards.{objective}_model to another."
        )


def _beside(directory: pathlib.Path, what: str) -> pathlib.Path:
    return directory.with_name(f"{directory.name}_{what}")
