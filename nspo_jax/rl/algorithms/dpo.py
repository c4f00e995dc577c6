"""DPO (arXiv 2305.18290): batches of preference pairs and the step that learns from them.

DPO trains on the policy gradient's prompts, in the same numbers. For each part of a task's batch it
draws pairs whose prompt is in the part, and the two given answers replace two sampled ones.
"""

from collections.abc import Callable, Sequence
import hashlib
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from nspo_jax import base_model, metrics, models, settings, tasks
from nspo_jax.data import iterator, preferences
from nspo_jax.data.conversation import Conversation
from nspo_jax.reward_models import store
from nspo_jax.rl import losses, train_step


class PairBatch(NamedTuple):
    """Pairs for an update: [pairs, 2, ...], the chosen answer and the rejected one.

    So microbatches, minibatches and shards of rows never part a pair. The fields are those of
    `train_step.RolloutBatch` with one more axis.
    """

    prompts: train_step.Array
    prompt_mask: train_step.Array
    completions: train_step.Array
    completion_mask: train_step.Array


class PairBatches:
    """A source of batches of pairs, in place of `batches.RolloutBatches`; it samples nothing.

    On harmful prompts the chosen answer is the safer one of any ranked pair, on others the better
    one of two safe answers. Pairs whose answers are ranked alike, or that are held out, are not
    drawn. Two answers a pair make the number of completions that the policy gradient samples,
    rounded down to whole pairs. Plain, wrapped and benign prompts come in the shares of `run.data`.

    Args:
      run: the run's settings.
      base: its base model and task.

    Raises:
      ValueError: if the pairs cannot be read, or none is about the prompts of a part of the batch.
    """

    def __init__(self, run: settings.Run, base: base_model.BaseModel):
        pairs, _ = store.load_pairs(run)
        parts, total, digest = [], 0, hashlib.sha256()
        for rows, count in base.task.parts:
            ranked = _about(pairs, rows)
            if not ranked:
                raise ValueError(
                    f"None of the {len(pairs)} pairs of reward_training.dataset="
                    f"{run.reward_training.dataset} ranks answers to the {rows[0].kind} prompts "
                    "of the batch: DPO needs pairs about the prompts that the run trains on. Take "
                    "both from one dataset, and set data.benign_fraction=0 where it has no benign "
                    "ones."
                )
            digest.update(json.dumps(ranked).encode())
            before, total = total, total + count * run.rl.samples
            parts.append((self._encode_pairs(run, base, ranked), total // 2 - before // 2))
        self._digest = digest.hexdigest()[:16]
        self._pairs = iterator.MixedBatches(parts, run.rl_seed)

    @staticmethod
    def _encode_pairs(run, base, ranked: Sequence[tuple[str, str, str]]) -> iterator.Arrays:
        """Encodes pairs as name -> array [pairs, 2, ...], the chosen answer first."""
        length = run.data.prompt_length
        rows = base.chat_format.encode_conversations(
            [prompt for prompt, *answers in ranked for _ in answers],
            [answer for _, *answers in ranked for answer in answers],
            length,
            run.data.completion_length,
            cut=True,  # a sampled answer is cut in the same way
        )
        tokens, mask = (array.reshape(len(ranked), 2, -1) for array in (rows.tokens, rows.mask))
        if run.rl.shared_prompt:
            begins = tokens[..., :length], mask[..., :length]
            unlike = np.any([np.any(a[:, 0] != a[:, 1], axis=-1) for a in begins], axis=0)
            if unlike.any():
                first = ranked[int(np.argmax(unlike))][0]
                raise ValueError(
                    f"rl.shared_prompt reads a prompt once for both answers, and {unlike.sum()} of "
                    f"{len(ranked)} pairs have one answer with thoughts, which the prompt opens, "
                    f"and one without; first {first[:80]!r}. Set rl.shared_prompt=False."
                )
        fields = tokens[..., :length], mask[..., :length], tokens[..., length:], mask[..., length:]
        return PairBatch(*fields)._asdict()

    def get_state(self) -> dict[str, Any]:
        """Returns the pairs' digest and the position in them; JSON-able, equal in all processes."""
        return {**self._pairs.get_state(), "digest": self.digest()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from such a position.

        Raises:
          ValueError: if it is a position among other pairs.
        """
        iterator.check_digest(state, self.digest(), "pairs")
        self._pairs.set_state(state)

    def digest(self) -> str:
        """Returns 16 hex digits that identify the pairs, in order."""
        return self._digest

    def sample(
        self, params, step: int, clock: metrics.Stopwatch
    ) -> tuple[PairBatch, dict[str, float]]:
        """Returns one step's pairs (host arrays, equal in all processes) and their metrics."""
        del params, step, clock  # pairs do not depend on the policy
        batch = PairBatch(**next(self._pairs))
        return batch, {"completion_length": float(batch.completion_mask.sum(axis=-1).mean())}

    def example(self) -> str:
        """Describes the pairs in words; they do not depend on the policy."""
        return "DPO's pairs have a chosen and a rejected answer each."

    def hurry(self) -> None:
        """Does nothing: there is no judge to wait for."""

    def close(self) -> None:
        """Does nothing: there is nothing to free."""


def chosen_of(pair: preferences.Pair, kind: str) -> int | None:
    """Returns the answer that DPO raises on a prompt of a kind, 0 or 1; None if no answer wins."""
    if kind == "harmful":
        return pair.safer
    return pair.better if all(pair.safe) else None


def _about(
    pairs: Sequence[preferences.Pair], rows: Sequence[Conversation]
) -> list[tuple[str, str, str]]:
    """Returns (prompt, chosen, rejected) of the pairs that rank answers to a part's prompts."""
    prompts, kind = {row.prompt for row in rows}, rows[0].kind
    ranked = []
    for pair in pairs:
        if pair.prompt in prompts and (chosen := chosen_of(pair, kind)) is not None:
            ranked.append((pair.prompt, pair.responses[chosen], pair.responses[1 - chosen]))
    return ranked


def pair_loss(
    model_config: models.ModelConfig, *, beta: float, shared_prompt: bool = False
) -> train_step.LossOf:
    """Builds the loss `losses.dpo_loss` of `PairBatch`es, for `train_step.make_update`.

    The reference is the base model. All tokens of an answer count, its end included. There is no
    temperature: DPO's policy is the model at temperature 1. With `shared_prompt` a pair's prompt is
    read once for both answers, see `models.predicting_states`.
    """
    samples = 2 if shared_prompt else 1

    def answers(params, batch: PairBatch) -> jax.Array:
        """Returns float32 [pairs, 2]: log p of whole answers."""
        flat = jax.tree.map(lambda array: array.reshape(-1, array.shape[-1]), batch)
        logprobs = models.completion_logprobs(model_config, params, flat, samples=samples)
        return jnp.sum(jnp.where(flat.completion_mask, logprobs, 0.0), axis=-1).reshape(-1, 2)

    def loss_of(params, reference, batch: PairBatch, tokens: jax.Array):
        del tokens  # pairs weigh alike
        policy, base = answers(params, batch), answers(reference, batch)
        result = losses.dpo_loss(policy[:, 0], policy[:, 1], base[:, 0], base[:, 1], beta=beta)
        gains = jnp.mean(policy - base, axis=0)
        return result.loss, {
            **result._asdict(), "chosen_gain": gains[0], "rejected_gain": gains[1],
        }  # fmt: skip

    return loss_of


class DPO:
    """The additions of DPO to the common run; see `algorithms.Algorithm`."""

    generates = False
    fields: tuple[str, ...] = ("rl.dpo_beta", "rl.shared_prompt")
    needs_reference = True

    def __init__(self, run: settings.Run):
        self._run = run
        # two answers stand for two completions, and nothing parts a pair
        self.rows = run.batch_prompts * run.rl.samples // 2
        self.row = "pairs, two completions each,"
        self.group = 1

    def check(self) -> None:
        """Raises ValueError for settings that cannot work."""
        task, dataset = self._run.task, self._run.reward_training.dataset
        if dataset in tasks.KINDS and dataset != task:
            raise ValueError(
                f"rl.algorithm is 'dpo', task is {task!r} and reward_training.dataset is "
                f"{dataset!r}: its pairs are about other prompts. Set reward_training.dataset to "
                "pku_safe_rlhf for the task safety; stories have no pairs."
            )

    def open_batches(self, base: base_model.BaseModel) -> PairBatches:
        """Opens the pairs of `reward_training.dataset` about the task's prompts."""
        return PairBatches(self._run, base)

    def abstract_batch(self, array: Callable[[tuple[int, ...], Any], Any]) -> PairBatch:
        """Describes a minibatch by `array(shape, dtype)`."""
        pairs, data = self.rows // self._run.rl.minibatches, self._run.data
        return PairBatch(
            prompts=array((pairs, 2, data.prompt_length), jnp.int32),
            prompt_mask=array((pairs, 2, data.prompt_length), jnp.bool_),
            completions=array((pairs, 2, data.completion_length), jnp.int32),
            completion_mask=array((pairs, 2, data.completion_length), jnp.bool_),
        )

    def init_extra(self, base: base_model.BaseModel) -> None:
        """Returns None: only the policy learns."""

    def abstract_extra(self, model_config: models.ModelConfig) -> tuple[None, tuple[str, ...]]:
        """Returns None and no assumptions: only the policy learns."""
        return None, ()

    def make_step(
        self, model_config: models.ModelConfig, optimizer: optax.GradientTransformation
    ) -> train_step.Step:
        """Builds the jitted update, which donates the state."""
        update = train_step.make_update(
            pair_loss(
                model_config,
                beta=self._run.rl.dpo_beta,
                shared_prompt=self._run.rl.shared_prompt,
            ),
            optimizer,
            microbatches=self._run.rl.microbatches,
            compute_dtype=model_config.compute_dtype,
        )
        return jax.jit(update, donate_argnums=0)
