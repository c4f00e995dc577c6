"""General conversations as arrays: their encoding, the base model's answers, batches, a digest."""

from collections.abc import Iterator, Sequence
import hashlib
import logging
from typing import Any

import jax
import numpy as np

from nspo_jax import distributed, models, progress, settings
from nspo_jax.data import chat
from nspo_jax.data.conversation import Conversation
from nspo_jax.models import generation
from nspo_jax.nullspace import activations

Batch = activations.Batch
_log = logging.getLogger(__name__)


def encode_conversations(
    run: settings.Run,
    chat_format: chat.ChatFormat,
    rows: Sequence[Conversation],
    *,
    cut: bool = False,
) -> Batch:
    """Encodes conversations as `tokens`, `mask` and `answer_mask`: see `data.chat`.

    With `cut`, answers that are longer than their block end there, and the log counts them.
    """
    tokens, mask, answer_mask = chat_format.encode_conversations(
        [row.prompt for row in rows],
        [row.answer for row in rows],
        run.data.prompt_length,
        run.data.completion_length,
        cut=cut,
    )
    if cut and chat_format.chat:  # other texts have no end
        is_full = answer_mask[:, -1] & (tokens[:, -1] != chat_format.end_id)
        if longer := int(np.sum(is_full)):
            _log.warning(
                "%d of %d general answers are cut at data.completion_length=%d tokens",
                longer, len(rows), run.data.completion_length,
            )  # fmt: skip
    return {"tokens": tokens, "mask": mask, "answer_mask": answer_mask}


def generate(
    run: settings.Run,
    model_config: models.ModelConfig,
    base: Any,
    chat_format: chat.ChatFormat,
    rows: Sequence[Conversation],
) -> Batch:
    """Samples the base model's answers to the rows' prompts, with calibration.seed."""
    prompts = chat_format.encode_prompts([row.prompt for row in rows], run.data.prompt_length)
    options = run.calibration
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
            max_new_tokens=run.data.completion_length,
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


def split_batches(arrays: Batch, size: int) -> Iterator[Batch]:
    """Cuts arrays [rows, ...] into batches of `size` rows; the last is filled with masked rows."""
    rows = len(arrays["tokens"])
    for start in range(0, rows, size):
        part = {name: array[start : start + size] for name, array in arrays.items()}
        missing = size - len(part["tokens"]) if start else 0
        yield {name: np.pad(array, ((0, missing), (0, 0))) for name, array in part.items()}


def data_digest(arrays: Batch) -> str:
    """Returns 16 hex digits that identify encoded conversations."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()[:16]


def check_lengths(run: settings.Run, model_config: models.ModelConfig) -> None:
    """Raises ValueError unless prompts and completions of a run fit the model."""
    length = run.data.prompt_length + run.data.completion_length
    if length > model_config.max_length:
        raise ValueError(
            f"data.prompt_length is {run.data.prompt_length} and data.completion_length "
            f"{run.data.completion_length}, together more than the "
            f"{model_config.max_length} positions that the model was made for. Lower them."
        )
