"""The base model of a run, with its task, its text and the projectors made from it.

The first run of a seed makes these files, each whole or not at all, and later runs reuse them:

    WORKSPACE/data/                       the chat world's splits (TFDS, array_record)
    WORKSPACE/seed_S/base/                the base model, a Hugging Face directory
    WORKSPACE/seed_S/base_recipe.json     the settings that it was pretrained with
    WORKSPACE/seed_S/projectors/RULE/     bases, spectra, provenance
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

import jax

from nspo_jax import (
    artifacts,
    distributed,
    general_text,
    model_files,
    models,
    nullspace,
    rendering,
    settings,
    sharding,
    tasks,
)
from nspo_jax.data import chat


class BaseModel:
    """A base model on a mesh, with its task.

    Attributes:
      model_config: its architecture.
      path: its directory.
      chat_format: turns its conversations into tokens, and tokens into text.
      task: prompts, suites, reward.
      calibration: the task's general conversations, encoded: see `data.chat`.
      held_out: general conversations disjoint from calibration's, encoded.
      mesh: the device mesh.
    """

    def __init__(
        self,
        *,
        model_config: models.ModelConfig,
        path: pathlib.Path,
        chat_format: chat.ChatFormat,
        task: tasks.Task,
        calibration: general_text.Batch,
        held_out: general_text.Batch,
        mesh: jax.sharding.Mesh,
        load_params: Callable[[], Any],
    ):
        self.model_config, self.path, self.chat_format = model_config, path, chat_format
        self.task, self.calibration, self.held_out = task, calibration, held_out
        self.mesh = mesh
        self._load_params = load_params
        self._params: Any = None

    @property
    def params(self) -> Any:
        """The parameters, float32, sharded over the mesh; the first access loads them."""
        if self._params is None:
            self._params = self._load_params()
        return self._params

    def release(self) -> None:
        """Frees `params`; the next access loads them again."""
        self._params = None


def seed_directory(run: settings.Run) -> pathlib.Path:
    """Returns the directory of this seed's base model and projectors."""
    name = f"seed_{run.seed}"
    if run.pretraining_seed != run.seed:
        name += f"_pretraining_{run.pretraining.seed}"
    return pathlib.Path(run.workspace) / name


def open_base(run: settings.Run, mesh: jax.sharding.Mesh) -> BaseModel:
    """Opens the base model and its task; makes the task's own base model if it is absent."""
    kind = tasks.kind_of(run.task)
    path = pathlib.Path(run.model.path or seed_directory(run) / "base")
    if run.model.path:
        model_files.check_directory(path, "model.path")
    else:

        def pretrain():
            if distributed.is_primary():
                kind.pretrain(run, path)

        artifacts.make_once(path, "base model", pretrain, kind.base_recipe(run, path))
    model_config = models.load_config(path)
    general_text.check_lengths(run, model_config)
    if run.model.preset:
        models.check_preset(run.model.preset, model_config, path)
    model_config = dataclasses.replace(
        model_config, compute_dtype=run.model.compute_dtype, remat=run.model.remat
    )

    def load_params():
        return models.load_model(path, shardings=functools.partial(_place, mesh))[1]

    chat_format = rendering.open_format(run, path)
    task = kind.make(run, model_config, load_params, chat_format)
    calibration = general_text.encode_conversations(
        run, chat_format, task.calibration, cut=task.cuts_answers
    )
    if run.calibration.completions == "generated":
        calibration = general_text.generate(
            run, model_config, load_params(), chat_format, task.calibration
        )
    return BaseModel(
        model_config=model_config,
        path=path,
        chat_format=chat_format,
        task=task,
        calibration=calibration,
        held_out=general_text.encode_conversations(
            run, chat_format, task.held_out, cut=task.cuts_answers
        ),
        mesh=mesh,
        load_params=load_params,
    )


def load_policy(base: BaseModel, directory: str | pathlib.Path) -> Any:
    """Loads a model that was made from the base model: float32, on its mesh.

    Args:
      base: the base model, opened by the config that the policy was trained with.
      directory: a policy or an export of one, in any dtype, or a delta.

    Raises:
      FileNotFoundError, ValueError: those of `models.load_model`, and ValueError if the policy has
        another architecture or was trained with another date in its chat template.
    """
    date = model_files.recorded_date(model_files.check_directory(directory, "The policy"))
    if base.chat_format.date and date not in (None, base.chat_format.date):
        raise ValueError(
            f"The policy in {directory} was trained with the date {date} in its chat template, and "
            f"this workspace's is {base.chat_format.date}: set --config.data.date={date}."
        )
    policy_config, policy = models.load_model(
        directory, shardings=lambda params: sharding.shardings(base.mesh, params)
    )
    wanted = base.model_config
    policy_config = dataclasses.replace(
        policy_config,
        compute_dtype=wanted.compute_dtype,
        remat=wanted.remat,
        absent_ids=wanted.absent_ids,
    )
    differences = [
        f"{name} {found!r} against {expected!r}"
        for name, expected in dataclasses.asdict(wanted).items()
        if (found := getattr(policy_config, name)) != expected
    ]
    if differences:
        raise ValueError(
            f"The policy in {directory} is not of the base model's architecture "
            f"({'; '.join(differences)}). Give the config that it was trained with."
        )
    return policy


def check_delta(base: BaseModel, directory: str | pathlib.Path) -> None:
    """Raises ValueError unless the base inside a delta is this one."""
    inside = models.stored_fingerprint(pathlib.Path(directory) / models.DELTA_BASE)
    if inside != models.fingerprint(base.params):
        raise ValueError(
            f"The delta in {directory} changes another base model than {base.path}: give the "
            "config that it was trained with."
        )


def open_projectors(run: settings.Run, base: BaseModel) -> nullspace.Projectors:
    """Loads this seed's projectors for the configured rank rule, or calibrates them.

    Raises:
      ValueError: if the projectors on disk belong to another model or other calibration text.
    """
    return nullspace.open_projectors(
        projectors_directory(run),
        base.model_config,
        _layer_source(run, base),
        nullspace.Text(
            general_text.split_batches(base.calibration, run.calibration.batch_size),
            general_text.data_digest(base.calibration),
            rendering.text_fields(run, base.chat_format),
        ),
        rank_rule=run.calibration.rank_rule.replace(" ", ""),
        statistics=run.calibration.statistics,
        first_token=run.calibration.first_token,
        mesh=base.mesh,
    )


def preview_projectors(
    run: settings.Run, base: BaseModel, rules: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Previews rank rules' protected directions for the run's text; see `nullspace.preview`."""
    return nullspace.preview(
        base.model_config,
        _layer_source(run, base),
        general_text.split_batches(base.calibration, run.calibration.batch_size),
        rules,
        statistics=run.calibration.statistics,
        first_token=run.calibration.first_token,
        mesh=base.mesh,
    )


def _layer_source(run: settings.Run, base: BaseModel) -> models.LayerSource:
    """Opens the base model for calibration from its files, so that it need not be in memory."""
    if run.calibration.statistics == "gradients":  # gradients need the whole model
        return models.ParamsSource(base.model_config, base.params)
    return models.FileSource(
        base.path,
        compute_dtype=base.model_config.compute_dtype,
        shardings=functools.partial(_place, base.mesh),
    )


def projectors_directory(run: settings.Run) -> pathlib.Path:
    """Returns the directory of the projectors of this seed, rank rule and choice of statistics."""
    choices = run.calibration
    rule = choices.rank_rule.replace(" ", "").replace("/", ".")
    parts = [rule, f"{choices.rows}_rows"]
    if choices.completions != "given":
        parts.append(choices.completions)
    if choices.statistics != "inputs":
        parts.append(f"{choices.statistics}_of_{choices.batch_size}")
    if choices.first_token != "keep":
        parts.append(f"first_{choices.first_token}")
    return seed_directory(run) / "projectors" / "_".join(parts)


def _place(mesh: jax.sharding.Mesh, params: Any) -> Any:
    """Returns the shardings of parameters, each of which must have a rule."""
    sharding.check_rules(params)
    return sharding.shardings(mesh, params)
