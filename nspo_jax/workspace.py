"""What the runs of one seed share: the base model, its task, and its projectors.

Each is made once, written whole or not at all, and reused by every later run:

    WORKSPACE/data/                       the chat world's splits (TFDS, array_record)
    WORKSPACE/seed_S/base/                the base model, a Hugging Face directory
    WORKSPACE/seed_S/base_recipe.json     the fields that it was pretrained with
    WORKSPACE/seed_S/projectors/RULE/     bases, spectra, provenance
"""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
import logging
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np

from nspo_jax import distributed, models, nullspace, pretraining, sharding, tasks
from nspo_jax.data import builders, chat, world

Batch = dict[str, np.ndarray]
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Workspace:
    """A base model on a mesh with its task.

    Attributes:
      config: the model's configuration.
      path: the base model's directory.
      base: its parameters, float32, sharded over the mesh.
      format: how its conversations become tokens, and tokens text.
      task: prompts, suites, reward.
      calibration: the task's general conversations, encoded: see `data.chat`.
      held_out: general conversations disjoint from those, encoded.
      mesh: the device mesh.
    """

    config: models.ModelConfig
    path: pathlib.Path
    base: Any
    format: chat.ChatFormat
    task: tasks.Task
    calibration: Batch
    held_out: Batch
    mesh: jax.sharding.Mesh


def seed_directory(config: ml_collections.ConfigDict) -> pathlib.Path:
    """Where this seed's base model and projectors live."""
    return pathlib.Path(config.workspace) / f"seed_{config.seed}"


def open_workspace(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh) -> Workspace:
    """Loads the base model and its task; pretrains the chat world's model if it is absent."""
    path = pathlib.Path(config.model.path or seed_directory(config) / "base")
    if not config.model.path:
        if distributed.primary_says(not path.exists()):
            if distributed.is_primary():
                pretrain_base(config, path)
            distributed.barrier("the base model is there")
        _check_recipe(config, path)

    def place(params):
        sharding.check_rules(params)
        return sharding.shardings(mesh, params)

    if config.model.preset:
        models.check_preset(config.model.preset, models.load_config(path), path)
    model_config, base = models.load_model(path, shardings=place)
    model_config = dataclasses.replace(
        model_config, compute_dtype=config.model.compute_dtype, remat=config.model.remat
    )
    chat_format = chat.load_format(
        path,
        chat=config.data.chat,
        system=config.data.system_prompt or None,
        thinking=config.data.thinking,
    )
    task = tasks.from_config(config, model_config, base, chat_format)
    return Workspace(
        config=model_config,
        path=path,
        base=base,
        format=chat_format,
        task=task,
        calibration=_encode(config, chat_format, task.calibration),
        held_out=_encode(config, chat_format, task.held_out),
        mesh=mesh,
    )


def load_policy(workspace: Workspace, directory: str | pathlib.Path) -> Any:
    """Loads a model that was made from the workspace's base: float32, on its mesh.

    Args:
      workspace: of the config that the policy was trained with.
      directory: a policy or an export of one, in any dtype, or a delta.

    Raises:
      FileNotFoundError, ValueError: as `models.load_model`, and if it has another architecture.
    """
    policy_config, policy = models.load_model(
        directory, shardings=lambda params: sharding.shardings(workspace.mesh, params)
    )
    base = workspace.config
    policy_config = dataclasses.replace(
        policy_config, compute_dtype=base.compute_dtype, remat=base.remat
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


def pretrain_base(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
    """Pretrains the chat world's helpful-only base model and writes it to `path`."""
    _log.info("pretraining the base model for seed %d into %s", config.seed, path)
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
    params = pretraining.pretrain(
        model_config,
        _encode(config, chat_format, rows),
        prompt_length=config.data.prompt_length,
        steps=config.pretraining.steps,
        batch_size=config.pretraining.batch_size,
        learning_rate=config.pretraining.learning_rate,
        seed=config.seed,
    )
    _recipe_file(path).parent.mkdir(parents=True, exist_ok=True)
    _recipe_file(path).write_text(json.dumps(_recipe(config), indent=1) + "\n")
    models.save_model(path, model_config, params, tokenizer)


def open_projectors(
    config: ml_collections.ConfigDict, workspace: Workspace
) -> nullspace.Projectors:
    """Loads this seed's projectors for the configured rank rule, or calibrates them.

    Raises:
      ValueError: if those on disk belong to another model or other calibration text.
    """
    rule = config.calibration.rank_rule.replace(" ", "")
    name = f"{rule.replace('/', '.')}_{config.calibration.rows}_rows"
    directory = seed_directory(config) / "projectors" / name
    digest = data_digest(workspace.calibration)
    if distributed.primary_says(not directory.exists()):
        _log.info("calibrating projectors into %s", directory)
        projectors = nullspace.calibrate(
            workspace.config,
            workspace.base,
            split_batches(workspace.calibration, config.calibration.batch_size),
            rank_rule=rule,
            data=digest,
        )
        if distributed.is_primary():
            projectors.save(directory)
        distributed.barrier("the projectors are there")
    projectors = nullspace.load_projectors(directory)
    try:
        projectors.check_model(models.fingerprint(workspace.base))
        if projectors.provenance["data"] != digest:
            raise ValueError("These projectors were calibrated on other text than the config's.")
    except ValueError as error:
        raise ValueError(
            f"{error} (Found in {directory}; delete it to calibrate anew, or set another "
            "config.workspace.)"
        ) from error
    return projectors


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


def _recipe(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields that made the pretrained base what it is."""
    fields = {f"model.{name}": value for name, value in config.model.items()}
    for name in ("path", "preset", "compute_dtype", "remat"):
        del fields[f"model.{name}"]
    return fields | {f"pretraining.{name}": value for name, value in config.pretraining.items()}


def _recipe_file(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}_recipe.json")


def _check_recipe(config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
    """Raises ValueError if the base model was pretrained by another recipe than the config's."""
    wanted = _recipe(config)
    found = json.loads(_recipe_file(path).read_text()) if _recipe_file(path).exists() else wanted
    changed = [
        f"{name} is {found.get(name)!r} there and {value!r} now"
        for name, value in wanted.items()
        if found.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"The base model in {path} was pretrained with another config: {'; '.join(changed)}. "
            "Set another config.workspace, or delete that directory and the projectors beside it "
            "to pretrain anew."
        )


def _encode(
    config: ml_collections.ConfigDict, chat_format: chat.ChatFormat, rows: list[world.Conversation]
) -> Batch:
    tokens, mask, answer_mask = chat_format.encode_conversations(
        [row.prompt for row in rows],
        [row.answer for row in rows],
        config.data.prompt_length,
        config.data.completion_length,
    )
    return {"tokens": tokens, "mask": mask, "answer_mask": answer_mask}
