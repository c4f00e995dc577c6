"""What the runs of one seed share: the base model, its task, and its projectors.

Each is made once, written whole or not at all, and reused by every later run:

    WORKSPACE/data/                       the chat world's splits (TFDS, array_record)
    WORKSPACE/seed_S/base/                the base model, a Hugging Face directory
    WORKSPACE/seed_S/base_recipe.json     the fields that it was pretrained with
    WORKSPACE/seed_S/projectors/RULE/     bases, spectra, provenance
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import logging
import pathlib
from typing import Any

import jax

from nspo_jax import (
    distributed,
    general_text,
    model_files,
    models,
    nullspace,
    ownership,
    rendering,
    settings,
    sharding,
    tasks,
)
from nspo_jax.data import chat

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Workspace:
    """A base model on a mesh with its task.

    Attributes:
      config: the model's configuration.
      path: the base model's directory.
      format: how its conversations become tokens, and tokens text.
      task: prompts, suites, reward.
      calibration: the task's general conversations, encoded: see `data.chat`.
      held_out: general conversations disjoint from those, encoded.
      mesh: the device mesh.
      load_base: loads `base`.
    """

    config: models.ModelConfig
    path: pathlib.Path
    format: chat.ChatFormat
    task: tasks.Task
    calibration: general_text.Batch
    held_out: general_text.Batch
    mesh: jax.sharding.Mesh
    load_base: Callable[[], Any]

    @functools.cached_property
    def base(self) -> Any:
        """The base model's parameters, float32, sharded over the mesh; loaded when asked for."""
        return self.load_base()

    def release_base(self) -> None:
        """Lets go of `base`; it is loaded again when it is asked for again."""
        self.__dict__.pop("base", None)


def seed_directory(config: settings.Run) -> pathlib.Path:
    """Where this seed's base model and projectors live."""
    name = f"seed_{config.seed}"
    if config.pretraining_seed != config.seed:
        name += f"_pretraining_{config.pretraining.seed}"
    return pathlib.Path(config.workspace) / name


def open_workspace(config: settings.Run, mesh: jax.sharding.Mesh) -> Workspace:
    """Opens the base model and its task; pretrains the chat world's model if it is absent."""
    kind = tasks.kind_of(config.task)
    path = pathlib.Path(config.model.path or seed_directory(config) / "base")
    if config.model.path:
        model_files.check_directory(path, "model.path")
    else:

        def pretrain():
            if distributed.is_primary():
                kind.pretrain(config, path)

        ownership.make_once(path, "base model", pretrain)
        kind.check_base(config, path)
    model_config = models.load_config(path)
    general_text.check_lengths(config, model_config)
    if config.model.preset:
        models.check_preset(config.model.preset, model_config, path)
    model_config = dataclasses.replace(
        model_config, compute_dtype=config.model.compute_dtype, remat=config.model.remat
    )

    def load_base():
        return models.load_model(path, shardings=functools.partial(_place, mesh))[1]

    chat_format = rendering.open_format(config, path)
    task = kind.make(config, model_config, load_base, chat_format)
    calibration = general_text.encode(config, chat_format, task.calibration)
    if config.calibration.completions == "generated":
        calibration = general_text.generate(
            config, model_config, load_base(), chat_format, task.calibration
        )
    return Workspace(
        config=model_config,
        path=path,
        format=chat_format,
        task=task,
        calibration=calibration,
        held_out=general_text.encode(config, chat_format, task.held_out),
        mesh=mesh,
        load_base=load_base,
    )


def load_policy(workspace: Workspace, directory: str | pathlib.Path) -> Any:
    """Loads a model that was made from the workspace's base: float32, on its mesh.

    Args:
      workspace: of the config that the policy was trained with.
      directory: a policy or an export of one, in any dtype, or a delta.

    Raises:
      FileNotFoundError, ValueError: as `models.load_model`, and if it has another architecture or
        was trained with another date in its chat template.
    """
    date = model_files.recorded_date(model_files.check_directory(directory, "The policy"))
    if workspace.format.date and date not in (None, workspace.format.date):
        raise ValueError(
            f"The policy in {directory} was trained with the date {date} in its chat template, and "
            f"this workspace's is {workspace.format.date}: set --config.data.date={date}."
        )
    policy_config, policy = models.load_model(
        directory, shardings=lambda params: sharding.shardings(workspace.mesh, params)
    )
    base = workspace.config
    policy_config = dataclasses.replace(
        policy_config,
        compute_dtype=base.compute_dtype,
        remat=base.remat,
        absent_ids=base.absent_ids,
    )
    differences = [
        f"{field.name} {getattr(policy_config, field.name)!r} against {getattr(base, field.name)!r}"
        for field in dataclasses.fields(base)
        if getattr(policy_config, field.name) != getattr(base, field.name)
    ]
    if differences:
        raise ValueError(
            f"The policy in {directory} is not of the base model's architecture "
            f"({'; '.join(differences)}). Give the config that it was trained with."
        )
    return policy


def check_delta(workspace: Workspace, directory: str | pathlib.Path) -> None:
    """Raises ValueError unless the base inside a delta is the workspace's."""
    inside = models.stored_fingerprint(pathlib.Path(directory) / models.DELTA_BASE)
    if inside != models.fingerprint(workspace.base):
        raise ValueError(
            f"The delta in {directory} changes another base model than {workspace.path}: give the "
            "config that it was trained with."
        )


def open_projectors(config: settings.Run, workspace: Workspace) -> nullspace.Projectors:
    """Loads this seed's projectors for the configured rank rule, or calibrates them.

    Raises:
      ValueError: if those on disk belong to another model or other calibration text.
    """
    directory = projectors_directory(config)
    source = _source(config, workspace)
    digest = general_text.data_digest(workspace.calibration)
    wanted = rendering.text_fields(config, workspace.format)

    def calibrate():
        _log.info("calibrating projectors into %s", directory)
        projectors = nullspace.calibrate(
            workspace.config,
            source,
            general_text.split_batches(workspace.calibration, config.calibration.batch_size),
            rank_rule=config.calibration.rank_rule.replace(" ", ""),
            statistics=config.calibration.statistics,
            first_token=config.calibration.first_token,
            data=digest,
            mesh=workspace.mesh,
            scratch=directory.with_name(f"{directory.name}.unfinished"),
        )
        provenance = projectors.provenance | {"text": wanted}
        projectors = dataclasses.replace(projectors, provenance=provenance)
        if distributed.is_primary():
            projectors.save(directory)

    ownership.make_once(directory, "projectors", calibrate)
    projectors = nullspace.load_projectors(directory)
    try:
        projectors.check_model(workspace.config, source.fingerprint())
        if projectors.provenance["data"] != digest:
            found = projectors.provenance.get("text")
            raise ValueError(
                "These projectors were calibrated on other text than the config's: "
                + (settings.differences(wanted, found) or "the data has changed" if found else
                   f"one of {', '.join(wanted)} has changed, or the data")
                + "."
            )  # fmt: skip
    except ValueError as error:
        raise ValueError(
            f"{error} (Found in {directory}; delete it to calibrate anew, or set another "
            "config.workspace.)"
        ) from error
    return projectors


def preview_projectors(
    config: settings.Run, workspace: Workspace, rules: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """What rank rules would protect with the config's text; see `nullspace.preview`."""
    return nullspace.preview(
        workspace.config,
        _source(config, workspace),
        general_text.split_batches(workspace.calibration, config.calibration.batch_size),
        rules,
        statistics=config.calibration.statistics,
        first_token=config.calibration.first_token,
        mesh=workspace.mesh,
    )


def _source(config: settings.Run, workspace: Workspace) -> models.LayerSource:
    """The base model for calibration: from its files, so that it need not be in memory."""
    if config.calibration.statistics == "gradients":  # which take the whole model
        return models.ParamsSource(workspace.config, workspace.base)
    return models.FileSource(
        workspace.path,
        compute_dtype=workspace.config.compute_dtype,
        shardings=functools.partial(_place, workspace.mesh),
    )


def projectors_directory(config: settings.Run) -> pathlib.Path:
    """Where the projectors of this seed, rank rule and choice of statistics live."""
    choices = config.calibration
    rule = choices.rank_rule.replace(" ", "").replace("/", ".")
    parts = [rule, f"{choices.rows}_rows"]
    if choices.completions != "given":
        parts.append(choices.completions)
    if choices.statistics != "inputs":
        parts.append(f"{choices.statistics}_of_{choices.batch_size}")
    if choices.first_token != "keep":
        parts.append(f"first_{choices.first_token}")
    return seed_directory(config) / "projectors" / "_".join(parts)


def _place(mesh: jax.sharding.Mesh, params: Any) -> Any:
    """The shardings of parameters; every one must have a rule."""
    sharding.check_rules(params)
    return sharding.shardings(mesh, params)
