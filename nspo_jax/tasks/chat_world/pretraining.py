"""The supervised training of the chat world's small base model on its conversations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nspo_jax import models
from nspo_jax import progress as progress_lib
from nspo_jax.data import iterator


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(3, 4))
def _step(model_config: models.ModelConfig, prompt_length: int, optimizer, params, state, batch):
    def loss_of(params):
        hidden = models.forward(model_config, params, batch["tokens"], batch["mask"]).hidden
        # the answer block starts where the prompt block ends; only its logits are computed
        logits = models.logits(model_config, params, hidden[:, prompt_length - 1 : -1])
        logprobs = models.token_logprobs(logits, batch["tokens"][:, prompt_length:])
        weight = batch["answer_mask"][:, prompt_length:]
        return -jnp.sum(jnp.where(weight, logprobs, 0.0)) / jnp.maximum(jnp.sum(weight), 1)

    loss, gradient = jax.value_and_grad(loss_of)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss


def pretrain(
    model_config: models.ModelConfig,
    conversations: dict[str, np.ndarray],
    *,
    prompt_length: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
):
    """Trains a model from random weights to answer as the conversations do.

    Args:
      model_config: the model to train.
      conversations: `tokens`, `mask` and `answer_mask` [rows, prompt_length + answer_length]:
        prompts left-padded, answers right-padded; the loss is on answer tokens alone.
      prompt_length: columns of the prompt block.
      steps: updates.
      batch_size: conversations per update.
      learning_rate: the peak, after a warm-up of 5 % of the steps; a cosine decay to 0 follows.
      seed: decides the initial weights and the order of the conversations.

    Returns:
      The trained parameters.

    Raises:
      FloatingPointError: if the loss stops being finite.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, max(1, steps // 20), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98))
    params = models.init_params(model_config, jax.random.key(seed))
    state = optimizer.init(params)
    rows = iterator.batches(conversations, batch_size, seed)
    progress = progress_lib.Bar(range(steps), desc="pretrain", unit="step")
    for step in progress:
        params, state, loss = _step(
            model_config, prompt_length, optimizer, params, state, next(rows)
        )
        if step % 50 == 0 or step == steps - 1:
            loss = float(loss)
            if not np.isfinite(loss):
                raise FloatingPointError(
                    f"Pretraining's loss is {loss} at step {step}: lower pretraining.learning_rate."
                )
            progress.set_postfix(loss=f"{loss:.3f}")
    return params
