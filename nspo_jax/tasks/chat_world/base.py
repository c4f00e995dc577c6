"""The chat world's helpful-only base model, pretrained once, with its recipe beside it.

DIRECTORY                      the model, a Hugging Face directory
DIRECTORY_recipe.json          the settings of its pretraining
"""

import logging
import pathlib

from nspo_jax import artifacts, general_text, models, settings
from nspo_jax.data import chat
from nspo_jax.tasks.chat_world import dataset, pretraining, world

_log = logging.getLogger(__name__)


def pretrain_base(run: settings.Run, path: pathlib.Path) -> None:
    """Pretrains the chat world's helpful-only base model and writes it to `path`."""
    seed = run.pretraining_seed
    _log.info("pretraining the base model by seed %d into %s", seed, path)
    vocabulary = world.World(run.seed).words()
    tokenizer = chat.build_tokenizer(vocabulary)
    chat_format = chat.ChatFormat(
        tokenizer, chat=run.data.chat, system=run.data.system_prompt or None
    )
    rows = dataset.load_split(run.data_directory, run.seed, "pretrain")
    model_config = models.ModelConfig(
        vocab_size=len(tokenizer),
        hidden_size=run.model.hidden_size,
        intermediate_size=run.model.intermediate_size,
        num_layers=run.model.num_layers,
        num_heads=run.model.num_heads,
        num_kv_heads=run.model.num_kv_heads,
        head_dim=run.model.hidden_size // run.model.num_heads,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_embeddings=False,  # a tied head could not be projected
        max_length=64,
    )
    general_text.check_lengths(run, model_config)
    params = pretraining.pretrain(
        model_config,
        general_text.encode_conversations(run, chat_format, rows),
        prompt_length=run.data.prompt_length,
        steps=run.pretraining.steps,
        batch_size=run.pretraining.batch_size,
        learning_rate=run.pretraining.learning_rate,
        seed=seed,
    )
    recipe(run, path).write()
    models.save_model(path, model_config, params, tokenizer)


def recipe(run: settings.Run, path: pathlib.Path) -> artifacts.Recipe:
    """Returns the settings of the base model's pretraining, for the file beside it."""
    names = ("hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads")
    fields = [f"model.{name}" for name in names]
    # the directory's name holds the seed
    fields += [f"pretraining.{name}" for name in ("steps", "batch_size", "learning_rate")]
    return artifacts.Recipe(
        {name: settings.get(run, name) for name in fields},
        path.with_name(f"{path.name}_recipe.json"),
        "Set another config.workspace, or delete that directory and the projectors beside it to "
        "pretrain anew.",
    )
