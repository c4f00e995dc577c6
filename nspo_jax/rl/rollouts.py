"""A step's batch: prompts drawn, completions sampled, judged, and compared inside their groups.

With several processes the order of the prompts is the one that a single process has. Each process
renders and tokenizes its own rows of it, all sample together in one program over the mesh, each
judges its own rows, and rewards are joined in the order of the rows. So every process ends up with
the same batch, whatever their number.
"""

import dataclasses
import hashlib
import json
from typing import Any

import jax
import ml_collections
import numpy as np

from nspo_jax import chips, distributed, metrics, models
from nspo_jax import workspace as workspace_lib
from nspo_jax.data import iterator
from nspo_jax.rl import advantages, rollout, train_step


class Rollouts:
    """Draws prompts, samples completions, judges them and computes advantages.

    Raises:
      ValueError: for a prompt that is too long, now and not at the step that draws it, and for a
        task that nothing judges.
    """

    def __init__(self, config: ml_collections.ConfigDict, work: workspace_lib.Workspace):
        if work.task.reward is None:
            raise ValueError(
                f"The task {config.task!r} has no reward of its own, and the run gives none: rules "
                "tell whether an answer is a refusal, not whether it is harmful. Judge answers by "
                "a guard, or by a reward and a cost model: set config.rewards.terms."
            )
        self._config, self._work = config, work
        self._rows = [row for rows, _ in work.task.parts for row in rows]
        work.format.encode_prompts([row.prompt for row in self._rows], config.data.prompt_length)
        parts, start = [], 0
        for rows, count in work.task.parts:
            parts.append(({"row": np.arange(start, start + len(rows), dtype=np.int32)}, count))
            start += len(rows)
        self._prompts = iterator.MixedBatches(parts, config.seed)
        self._options = {
            "batches": config.rl.rollout_batches,
            "samples": config.rl.samples,
            "max_new_tokens": config.data.completion_length,
            "stop_ids": work.format.stop_ids,
            "temperature": config.rl.temperature,
            "gather": config.mesh.gather_for_rollouts,
        }

    def get_state(self) -> dict[str, Any]:
        """The position among the prompts and their digest, JSON-able; equal in all processes."""
        return {**self._prompts.get_state(), "digest": self.digest()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from such a position.

        Raises:
          ValueError: if it is one among other prompts.
        """
        if state.get("digest") != self.digest():
            raise ValueError(
                f"The run was trained on other prompts: their digest is {state.get('digest')} in "
                f"its checkpoint and {self.digest()} now, of {len(self._rows)} prompts. Restore "
                "the dataset, or start in another --workdir."
            )
        self._prompts.set_state(state)

    def digest(self) -> str:
        """16 hex digits that identify the conversations that prompts are drawn from, in order."""
        digest = hashlib.sha256()
        for row in self._rows:
            digest.update(json.dumps(dataclasses.asdict(row)).encode() + b"\n")
        return digest.hexdigest()[:16]

    def sample(
        self, params, key: jax.Array, clock: metrics.Stopwatch
    ) -> tuple[train_step.Rollouts, dict[str, float]]:
        """One step's batch (host arrays), and what to log of it. Collective.

        Args:
          params: the policy.
          key: of the sampler.
          clock: measures the phases "rollout" and "reward".
        """
        work, samples = self._work, self._config.rl.samples
        with clock.phase("rollout"):
            drawn = next(self._prompts)["row"]  # of the whole step
            rows = [self._rows[index] for index in drawn[distributed.own_rows(len(drawn))]]
            own = work.format.encode_prompts(
                [row.prompt for row in rows], self._config.data.prompt_length
            )
            tokens, mask = distributed.gather_rows((own.tokens, own.mask))
            done = rollout.rollout_in_batches(
                work.config, params, work.mesh, tokens, mask, key, **self._options
            )
        with clock.phase("reward"):
            share = distributed.own_rows(len(done.tokens))
            texts = work.format.decode(done.tokens[share], done.mask[share])
            judged = work.task.reward([row for row in rows for _ in range(samples)], texts)
            rewards, details = distributed.gather_rows(judged)
            advantage = advantages.group_advantages(rewards, samples)
        logged = {
            "reward": float(np.mean(rewards)),
            "completion_length": float(done.mask.sum(axis=1).mean()),
            "flat_groups": float(np.mean(~advantage.reshape(-1, samples).any(axis=1))),
            **{name: float(np.mean(value)) for name, value in details.items()},
        }
        batch = train_step.Rollouts(
            prompts=np.repeat(tokens, samples, axis=0),
            prompt_mask=np.repeat(mask, samples, axis=0),
            completions=done.tokens,
            completion_mask=done.mask,
            old_logprobs=done.logprobs,
            advantages=advantage,
        )
        return batch, logged


def split_minibatches(batch: train_step.Rollouts, count: int, step: int):
    """Yields `count` equal minibatches of whole-batch rows in an order that differs every step."""
    if count == 1:
        yield batch
        return
    order = np.random.default_rng(step).permutation(len(batch.advantages))
    for rows in np.split(order, count):
        yield jax.tree.map(lambda array, rows=rows: array[rows], batch)


def throughput(
    model: models.ModelConfig, batch: train_step.Rollouts, seconds: dict[str, float]
) -> dict[str, float]:
    """What to log of how fast a step was.

    Args:
      model: the policy's configuration.
      batch: the step's. Its sampled tokens are the rollout's; the update runs on the prompts' too.
      seconds: of the phases "rollout" and "update", and others.

    Returns:
      Tokens a second and, on a chip that `chips` knows, the update's model FLOP utilisation: three
      forward passes' operations on real tokens (what is computed again is not counted), as a share
      of what all devices could have computed.
    """
    sampled = float(batch.completion_mask.sum())
    trained = sampled + float(batch.prompt_mask.sum())
    speed = metrics.phase_seconds(seconds) | {
        "speed/rollout_tokens_per_second": sampled / seconds["rollout"],
        "speed/update_tokens_per_second": trained / seconds["update"],
    }
    chip = chips.chip_of(jax.devices()[0].device_kind)
    if chip is not None:
        attended = trained / len(batch.advantages) / 2
        flops = 3 * trained * models.flops_per_token(model, attended)
        possible = seconds["update"] * jax.device_count() * chip.flops
        speed["speed/update_flop_utilisation"] = flops / possible
    return speed
