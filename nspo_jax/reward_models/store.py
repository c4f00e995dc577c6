"""The store of a run's reward and cost models: each is made once and then opened.

WORKSPACE/seed_S/cost_model/               a Hugging Face directory (sequence classification)
WORKSPACE/seed_S/cost_model_report.json    its recipe, and what was measured on held-out pairs
WORKSPACE/seed_S/cost_model_calibration.png
"""

import dataclasses
import logging
import pathlib
from typing import NamedTuple

from nspo_jax import (
    artifacts,
    base_model,
    distributed,
    model_files,
    models,
    rendering,
    rewards,
    settings,
    tasks,
)
from nspo_jax.data import filtering, preferences, public, records, sources, split
from nspo_jax.reports import figures
from nspo_jax.reward_models import report as report_lib
from nspo_jax.reward_models import training

PUBLIC = ("pku_safe_rlhf", "beavertails")  # datasets of pairs, and of answers with flags
_log = logging.getLogger(__name__)


class Measured(NamedTuple):
    """The measures of a model on held-out pairs.

    epochs: a line an epoch, see `training.train`; categories: see `report.by_category`.
    probes: see `report.probe`.
    """

    epochs: list[dict[str, float]]
    categories: dict[str, tuple[float, int]]
    probes: list[report_lib.Probe]


def is_trained_here(run: settings.Run) -> bool:
    """Tells whether a run trains its own reward models where they are absent.

    It does so if the task pretrains its base model. Any other base would do as well, but then the
    user has to ask for it by `scripts.train_reward`.
    """
    return tasks.kind_of(run.task).pretrains and not run.model.path


def model_directory(run: settings.Run, objective: str) -> pathlib.Path:
    """Returns the directory of a run's reward or cost model."""
    name = f"{objective}_model"
    return pathlib.Path(
        settings.get(run, f"rewards.{name}") or base_model.seed_directory(run) / name
    )


def open_model(
    run: settings.Run, base: base_model.BaseModel, objective: str
) -> rewards.ModelReward:
    """Opens a reward or cost model, and trains it first where runs train their own. Collective.

    Raises:
      FileNotFoundError, ValueError: for a model that is missing, does not fit, or was trained by
        another recipe.
    """
    directory = model_directory(run, objective)
    if not settings.get(run, f"rewards.{objective}_model") and is_trained_here(run):

        def make() -> None:
            _log.info("training the %s model into %s", objective, directory)
            train_model(run, base, objective, directory)

        recipe = _recipe(run, objective, directory)
        artifacts.make_once(directory, f"{objective} model", make, recipe)
    return rewards.ModelReward(
        directory,
        rendering.open_format(run, directory),  # the format is that of its training
        base.mesh,
        is_cost=objective == "cost",
        prompt_length=run.data.prompt_length,
        completion_length=run.data.completion_length,
        batch_size=run.rewards.batch_size,
        compute_dtype=run.model.compute_dtype,
    )


def train_model(
    run: settings.Run, base: base_model.BaseModel, objective: str, directory: pathlib.Path
) -> Measured:
    """Trains a reward or cost model from the base and writes it with report and figure. Collective.

    Returns:
      What was measured.

    Raises:
      ValueError: for pairs that cannot be read, encoded or learned from.
    """
    options, lengths = run.reward_training, (run.data.prompt_length, run.data.completion_length)
    rows, held_out_rows = (
        training.learnable_pairs(base.chat_format, rows, objective, lengths[0])
        for rows in load_pairs(run)
    )
    pairs, held_out = (
        training.encode_pairs(base.chat_format, each, objective, *lengths)
        for each in (rows, held_out_rows)
    )
    model_config, params, report = training.train(
        base.model_config,
        base.params,
        pairs,
        objective=objective,
        mesh=base.mesh,
        epochs=options.epochs,
        batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        seed=run.seed,
        microbatches=options.microbatches,
        held_out=held_out,
    )
    base.release()
    scores = training.score_responses(model_config, params, held_out, base.mesh, options.batch_size)
    measured = Measured(
        report,
        report_lib.by_category(scores, held_out_rows, objective),
        report_lib.probe(
            model_config, params, base.chat_format, held_out_rows, objective, base.mesh,
            batch_size=options.batch_size, prompt_length=lengths[0], completion_length=lengths[1],
        ),
    )  # fmt: skip
    if distributed.is_primary():
        directory.parent.mkdir(parents=True, exist_ok=True)
        predicted, observed = training.probabilities(scores, held_out, objective)
        figures.plot_calibration(predicted, observed, _beside(directory, "calibration.png"))
        _recipe(run, objective, directory).write(
            pairs=len(pairs.tokens),
            held_out_pairs=len(held_out.tokens),
            epochs=report,
            categories=measured.categories,
            probes=[each._asdict() for each in measured.probes],
        )
    models.save_model(directory, model_config, params, like=base.path)
    if distributed.is_primary():
        model_files.record_date(directory, base.chat_format.date)
    distributed.barrier("the reward model is written")
    return measured


def check_dataset(name: str) -> None:
    """Raises ValueError unless a dataset of preference pairs is public, or a task's own."""
    known = [*(task for task, kind in tasks.KINDS.items() if kind.has_pairs), *PUBLIC]
    if name not in known:
        raise ValueError(
            f"reward_training.dataset is {name!r}; expected one of {', '.join(known)}."
        )


def load_pairs(
    run: settings.Run,
) -> tuple[list[preferences.Pair], list[preferences.Pair]]:
    """Loads the training pairs and the held-out pairs, which have no prompt in common.

    Where a public dataset's splits share prompts, the training pairs of those are left out, and the
    log counts them.

    Raises:
      ValueError: for an unknown dataset, or files that cannot be read.
    """
    options = run.reward_training
    check_dataset(options.dataset)
    if options.dataset in tasks.KINDS:
        pairs = tasks.KINDS[options.dataset].pairs(run) or []
        held_out = [pair for pair in pairs if preferences.is_held_out(pair.prompt)]
        return [pair for pair in pairs if not preferences.is_held_out(pair.prompt)], held_out
    paths = sources.split_paths(options.path)

    def load(field: str) -> list[preferences.Pair]:
        with split.said_by(f"reward_training.{field}"):
            loaded = public.load(
                options.dataset,
                run.data_directory,
                settings.get(run, f"reward_training.{field}"),
                paths=paths,
                subset=options.subset,
                max_broken=run.data.max_broken,
            )
        # the rows are of one of both kinds
        pairs = [row for row in loaded.rows if isinstance(row, records.PreferencePair)]
        answers = [row for row in loaded.rows if isinstance(row, records.JudgedAnswer)]
        return preferences.from_records(pairs) + preferences.from_answers(answers)

    pairs, held_out = load("split"), load("held_out_split")
    asked = {filtering.words(pair.prompt) for pair in held_out}
    kept = [pair for pair in pairs if filtering.words(pair.prompt) not in asked]
    if len(kept) < len(pairs):
        _log.info(
            "%d of %d training pairs left out: their prompts are held out too",
            len(pairs) - len(kept), len(pairs),
        )  # fmt: skip
    return kept, held_out


def _recipe(run: settings.Run, objective: str, directory: pathlib.Path) -> artifacts.Recipe:
    options = dataclasses.asdict(run.reward_training)
    del options["microbatches"]  # it decides the memory, and no result
    return artifacts.Recipe(
        {"objective": objective, **options},
        _beside(directory, "report.json"),
        f"Delete that directory to train anew, or set rewards.{objective}_model to another.",
        key="recipe",
    )


def _beside(directory: pathlib.Path, what: str) -> pathlib.Path:
    return directory.with_name(f"{directory.name}_{what}")
