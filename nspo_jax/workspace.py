"""What the runs of one seed share: the base model, its task, and its projectors.

Each is made once, written whole or not at all, and reused by every later run:

    WORKSPACE/data/                       the chat world's splits (TFDS, array_record)
    WORKSPACE/seed_S/base/                the base model, a Hugging Face directory
    WORKSPACE/seed_S/base_recipe.json     the fields that it was pretrained with
    WORKSPACE/seed_S/projectors/RULE/     bases, spectra, provenance
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
from typing import Any

import jax
import numpy as np

from nspo_jax import (
    distributed,
    files,
    model_files,
    models,
    nullspace,
    ownership,
    pretraining,
    progress,
    rendering,
    settings,
    sharding,
    tasks,
)
from nspo_jax.data import builders, chat, world
from nspo_jax.models import generation

Batch = dict[str, np.ndarray]
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
    calibration: Batch
    held_out: Batch
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
    path = pathlib.Path(config.model.path or seed_directory(config) / "base")
    if config.model.path:
        model_files.check_directory(path, "model.path")
    else:

        def pretrain():
            if distributed.is_primary():
                pretrain_base(config, path)

        ownership.make_once(path, "base model", pretrain)
        _check_recipe(config, path)
    model_config = models.load_config(path)
    _check_lengths(config, model_config)
    if config.model.preset:
        models.check_preset(config.model.preset, model_config, path)
    model_config = dataclasses.replace(
        model_config, compute_dtype=config.model.compute_dtype, remat=config.model.remat
    )

    def load_base():
        return models.load_model(path, shardings=functools.partial(_place, mesh))[1]

    chat_format = rendering.open_format(config, path)
    task = tasks.from_config(config, model_config, load_base, chat_format)
    calibration = _encode(config, chat_format, task.calibration)
    if config.calibration.completions == "generated":
        calibration = _generate(config, model_config, load_base(), chat_format, task.calibration)
    return Workspace(
        config=model_config,
        path=path,
        format=chat_format,
        task=task,
        calibration=calibration,
        held_out=_encode(config, chat_format, task.held_out),
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


def pretrain_base(config: settings.Run, path: pathlib.Path) -> None:
    """Pretrains the chat world's helpful-only base model and writes it to `path`."""
    seed = config.pretraining_seed
    _log.info("pretraining the base model by seed %d into %s", seed, path)
    vocabulary = world.World(config.seed).words()
    tokenizer = chat.build_tokenizer(vocabulary)
    chat_format = chat.ChatFormat(
        tokenizer, chat=config.data.chat, system=config.data.system_prompt or None
    )
    rows = builders.load_split(tasks.data_directory(config), config.seed, "pretrain")
    model_config = models.ModelConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.model.hidden_size,
        intermediate_size=config.model.intermediate_size,
        num_layers=config.model.num_layers,
        num_heads=config.model.num_heads,
        num_kv_heads=config.model.num_kv_heads,
        head_dim=config.model.hidden_size // config.model.num_heads,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_embeddings=False,  # so that the head can be projected
        max_length=64,
    )
    _check_lengths(config, model_config)
    params = pretraining.pretrain(
        model_config,
        _encode(config, chat_format, rows),
        prompt_length=config.data.prompt_length,
        steps=config.pretraining.steps,
        batch_size=config.pretraining.batch_size,
        learning_rate=config.pretraining.learning_rate,
        seed=seed,
    )
    _recipe_file(path).parent.mkdir(parents=True, exist_ok=True)
    files.write_text(_recipe_file(path), json.dumps(_recipe(config), indent=1))
    models.save_model(path, model_config, params, tokenizer)


def open_projectors(config: settings.Run, workspace: Workspace) -> nullspace.Projectors:
    """Loads this seed's projectors for the configured rank rule, or calibrates them.

    Raises:
      ValueError: if those on disk belong to another model or other calibration text.
    """
    directory = projectors_directory(config)
    source = _source(config, workspace)
    digest = data_digest(workspace.calibration)
    wanted = rendering.text_fields(config, workspace.format)

    def calibrate():
        _log.info("calibrating projectors into %s", directory)
        projectors = nullspace.calibrate(
            workspace.config,
            source,
            split_batches(workspace.calibration, config.calibration.batch_size),
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
                + (differences(wanted, found) or "the data has changed" if found else
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
        split_batches(workspace.calibration, config.calibration.batch_size),
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


def split_batches(arrays: Batch, size: int) -> Iterator[Batch]:
    """Cuts arrays [rows, ...] into batches of `size` rows; the last is filled with masked rows."""
    rows = len(arrays["tokens"])
    for start in range(0, rows, size):
        part = {name: array[start : start + size] for name, array in arrays.items()}
        missing = size - len(part["tokens"]) if start else 0
        yield {name: np.pad(array, ((0, missing), (0, 0))) for name, array in part.items()}


def data_digest(arrays: Batch) -> str:
    """A short digest of encoded conversations, to recognise them by."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()[:16]


def _place(mesh: jax.sharding.Mesh, params: Any) -> Any:
    """The shardings of parameters; every one must have a rule."""
    sharding.check_rules(params)
    return sharding.shardings(mesh, params)


def _check_lengths(config: settings.Run, model: models.ModelConfig) -> None:
    """Raises ValueError unless prompts and completions of a run fit the model."""
    length = config.data.prompt_length + config.data.completion_length
    if length > model.max_length:
        raise ValueError(
            f"data.prompt_length is {config.data.prompt_length} and data.completion_length "
            f"{config.data.completion_length}, together more than the {model.max_length} positions "
            "that the model was made for. Lower them."
        )


def _recipe(config: settings.Run) -> dict[str, Any]:
    """The fields that made the pretrained base what it is."""
    names = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
    fields = [f"model.{name}" for name in names]
    # without the seed, which the directory's name says
    fields += [f"pretraining.{name}" for name in ("steps", "batch_size", "learning_rate")]
    return {name: settings.get(config, name) for name in fields}


def _recipe_file(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}_recipe.json")


def differences(wanted: dict[str, Any], found: dict[str, Any]) -> str:
    """In words, what a recipe found on disk has other than the config's; "" if nothing."""
    return "; ".join(
        f"{name} is {found.get(name)!r} there and {value!r} now"
        for name, value in wanted.items()
        if found.get(name) != value
    )


def _check_recipe(config: settings.Run, path: pathlib.Path) -> None:
    """Raises ValueError if the base model was pretrained by another recipe than the config's."""
    wanted = _recipe(config)
    recipe = _recipe_file(path)
    found = files.read_json(recipe, "delete it") if recipe.exists() else wanted
    if changed := differences(wanted, found):
        raise ValueError(
            f"The base model in {path} was pretrained with another config: {changed}. "
            "Set another config.workspace, or delete that directory and the projectors beside it "
            "to pretrain anew."
        )


def _encode(
    config: settings.Run, chat_format: chat.ChatFormat, rows: list[world.Conversation]
) -> Batch:
    tokens, mask, answer_mask = chat_format.encode_conversations(
        [row.prompt for row in rows],
        [row.answer for row in rows],
        config.data.prompt_length,
        config.data.completion_length,
    )
    return {"tokens": tokens, "mask": mask, "answer_mask": answer_mask}


def _generate(
    config: settings.Run,
    model_config: models.ModelConfig,
    base: Any,
    chat_format: chat.ChatFormat,
    rows: list[world.Conversation],
) -> Batch:
    """The rows' prompts, answered by the base model: sampled by calibration.seed."""
    prompts = chat_format.encode_prompts([row.prompt for row in rows], config.data.prompt_length)
    options = config.calibration
    parts = []
    batches = split_batches(prompts._asdict(), options.batch_size)
    total = -(-len(rows) // options.batch_size)
    silent = not distributed.is_primary()
    bar = progress.Bar(batches, "generate", total, leave=False, disable=silent)
    for index, batch in enumerate(bar):
        done = generation.generate(
            model_config,
            base,
            batch["tokens"],
            batch["mask"],
            jax.random.fold_in(jax.random.key(options.seed), index),
            max_new_tokens=config.data.completion_length,
            stop_ids=chat_format.stop_ids,
            temperature=options.temperature,
        )
        done = distributed.fetch(done)
        answer_mask = done.mask & batch["mask"].any(axis=1, keepdims=True)
        parts.append({
            "tokens": np.concatenate([batch["tokens"], done.tokens], axis=1),
            "mask": np.concatenate([batch["mask"], answer_mask], axis=1),
            "answer_mask": np.concatenate([np.zeros_like(batch["mask"]), answer_mask], axis=1),
        })  # fmt: skip
    return {name: np.concatenate([part[name] for part in parts])[: len(rows)] for name in parts[0]}
