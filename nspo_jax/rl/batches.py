"""The batch of a step: its prompts, their sampled completions, verdicts and advantages.

With `rl.staleness` 1 the next step's completions are sampled while judges that are not on the mesh
look at this one's: the policy that samples is then one update behind the one that learns.

Several processes draw the prompts in the same order as a single one. Each process renders and
tokenizes its own rows, all sample together in one program over the mesh, each judges its own rows,
and rewards are joined in the order of the rows. So every process ends up with the same batch,
whatever their number.
"""

import base64
import collections
from collections.abc import Callable
from concurrent import futures
import dataclasses
import hashlib
import json
from typing import Any, NamedTuple

import jax
import numpy as np

from nspo_jax import base_model, chips, distributed, metrics, models, rewards, settings
from nspo_jax.data import iterator
from nspo_jax.models import generation
from nspo_jax.rl import advantages, train_step

Outcomes = Callable[[rewards.Total, dict[str, Any]], np.ndarray]
ROLES = ("rollout", "evaluation")
FIELDS = (  # the settings of runs whose completions are sampled and judged
    "rl.temperature", "rl.staleness", "rewards.terms", "rewards.normalise", "rewards.on_failure",
)  # fmt: skip


def role_key(seed: int, role: str, step: int) -> jax.Array:
    """Returns the PRNG key of one role at one step."""
    key = jax.random.fold_in(jax.random.key(seed), ROLES.index(role))
    return jax.random.fold_in(key, step)


class Sampled(NamedTuple):
    """A batch that is not judged yet: host arrays, equal in all processes.

    rows: int32 [prompts], the conversations' positions in the task's parts.
    prompts, prompt_mask: [prompts, length].
    tokens, logprobs, mask: [prompts * samples, length].
    """

    rows: np.ndarray
    prompts: np.ndarray
    prompt_mask: np.ndarray
    tokens: np.ndarray
    logprobs: np.ndarray
    mask: np.ndarray


class RolloutBatches:
    """A source of batches that draws prompts, samples completions and has them judged.

    Args:
      run: the run's settings.
      base: its base model and task.
      mixture: the judges.
      outcomes: turns verdicts into `RolloutBatch.outcomes`, for an algorithm that asks for them.

    Raises:
      ValueError: for a prompt that is too long, now and not at the step that draws it.
    """

    def __init__(
        self,
        run: settings.Run,
        base: base_model.BaseModel,
        mixture: rewards.Mixture,
        outcomes: Outcomes | None = None,
    ):
        self._outcomes = outcomes
        self._run, self._base, self._mixture = run, base, mixture
        self._rows = [row for rows, _ in base.task.parts for row in rows]
        base.chat_format.encode_prompts([row.prompt for row in self._rows], run.data.prompt_length)
        parts, start = [], 0
        for rows, count in base.task.parts:
            parts.append(({"row": np.arange(start, start + len(rows), dtype=np.int32)}, count))
            start += len(rows)
        self._prompts = iterator.MixedBatches(parts, run.rl_seed)
        self._options = {
            "batches": run.rl.rollout_batches,
            "samples": run.rl.samples,
            "max_new_tokens": run.data.completion_length,
            "stop_ids": base.chat_format.stop_ids,
            "temperature": run.rl.temperature,
            "gather": run.mesh.gather_for_rollouts,
        }
        self._queue: collections.deque[tuple[Sampled, rewards.Pending]] = collections.deque()
        # One thread is enough: judges that work on several rows at once do so themselves. Each of
        # several processes has one, so that all of them hear of it when one is to stop.
        threads = run.rl.staleness or distributed.several()
        self._executor = futures.ThreadPoolExecutor(1) if threads else None
        self._hurried = False
        self._last: tuple[Sampled, rewards.Total] | None = None

    def get_state(self) -> dict[str, Any]:
        """Returns the position among the prompts, their digest and the batches still to learn from.

        The result is JSON-able and equal in all processes.
        """
        queue = [[_pack(array) for array in sampled] for sampled, _ in self._queue]
        return {**self._prompts.get_state(), "digest": self.digest(), "queue": queue}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from such a position; completions that were sampled there are judged anew.

        Raises:
          ValueError: if it is a position among other prompts.
        """
        count = f", of {len(self._rows)} prompts"
        iterator.check_digest(state, self.digest(), "prompts", count)
        self._prompts.set_state(state)
        self._queue.clear()
        for arrays in state.get("queue", ()):
            sampled = Sampled(*map(_unpack, arrays))
            prompts, samples = self._run.batch_prompts, self._run.rl.samples
            if (len(sampled.rows), len(sampled.tokens)) != (prompts, prompts * samples):
                raise ValueError(
                    f"The checkpoint holds a batch of {len(sampled.rows)} prompts and "
                    f"{len(sampled.tokens)} completions that wait for a verdict, and the config "
                    f"asks for {prompts} x {samples}: continue with the old rl.prompts, "
                    "rl.samples and data.benign_fraction, or start in another --workdir."
                )
            self._judge(sampled)

    def digest(self) -> str:
        """Returns 16 hex digits that identify the conversations of the prompts, in order."""
        digest = hashlib.sha256()
        for row in self._rows:
            digest.update(json.dumps(dataclasses.asdict(row)).encode() + b"\n")
        return digest.hexdigest()[:16]

    def sample(
        self, params, step: int, clock: metrics.Stopwatch
    ) -> tuple[train_step.RolloutBatch, dict[str, float]]:
        """Returns one step's batch (host arrays) and its metrics for the log. Collective.

        If judging fails, the samples stay: `get_state` then is the position to continue from.

        Args:
          params: the policy.
          step: updates done.
          clock: measures the phases "rollout" and "reward".
        """
        ahead = min(self._run.rl.staleness, self._run.rl.steps - 1 - step)
        while len(self._queue) <= ahead:
            with clock.phase("rollout"):
                key = role_key(self._run.rl_seed, "rollout", step + len(self._queue))
                sampled = self._sample(params, key)
            with clock.phase("reward"):
                self._judge(sampled)
        with clock.phase("reward"):
            sampled, pending = self._queue[0]
            found = self._learn(sampled, self._verdicts_of_all(pending), step)
            self._queue.popleft()
        return found

    def example(self) -> str:
        """Describes the last batch's first answer and its reward, in words."""
        if self._last is None:
            return "No answer is judged yet."
        sampled, total = self._last
        text = self._base.chat_format.decode(sampled.tokens[:1], sampled.mask[:1])[0]
        reward = "no verdict" if total.dropped[0] else f"reward {total.rewards[0]:g}"
        return f"An answer to {self._rows[sampled.rows[0]].prompt!r}: {text!r}, {reward}."

    def hurry(self) -> None:
        """Ends the judges: those that wait for an answer give up, in every process.

        `sample` then raises `rewards.JudgeError`, if it needs a judge. The call is safe in a
        signal's handler.
        """
        self._hurried = True
        self._mixture.close()

    def close(self) -> None:
        """Ends the judges and their thread."""
        self.hurry()
        if self._executor is not None:
            self._executor.shutdown(wait=False)

    def _sample(self, params, key: jax.Array) -> Sampled:
        """Draws prompts and answers them."""
        base = self._base
        drawn = next(self._prompts)["row"]  # rows of the whole step, not of this process alone
        own = base.chat_format.encode_prompts(
            [self._rows[index].prompt for index in drawn[distributed.own_rows(len(drawn))]],
            self._run.data.prompt_length,
        )
        tokens, mask = distributed.gather_rows((own.tokens, own.mask))
        done = generation.generate_in_batches(
            base.model_config, params, base.mesh, tokens, mask, key, **self._options
        )
        answers = (np.asarray(array) for array in (done.tokens, done.logprobs, done.mask))
        return Sampled(drawn, tokens, mask, *answers)

    def _judge(self, sampled: Sampled) -> None:
        """Starts judging this process's rows, and puts them at the end of the queue."""
        share = distributed.own_rows(len(sampled.tokens))
        texts = self._base.chat_format.decode(sampled.tokens[share], sampled.mask[share])
        asked = np.repeat(sampled.rows, self._run.rl.samples)[share]
        conversations = [self._rows[index] for index in asked]
        self._queue.append((sampled, self._mixture.start(conversations, texts, self._executor)))

    def _verdicts_of_all(self, pending: rewards.Pending) -> dict[str, Any]:
        """Waits for this process's verdicts, and joins them with the others'. Collective.

        Raises:
          rewards.JudgeError: in every process, if any process has lost its judge.
        """
        if distributed.several():
            while distributed.any_process(not pending.wait(1.0)):
                if distributed.any_process(self._hurried):
                    self.hurry()
        own, failure = {}, ""
        try:
            own = pending.result()
        except rewards.JudgeError as error:
            if not distributed.several():
                raise
            failure = f"The judge of process {jax.process_index()}: {error}"
        failures = distributed.gather_texts(failure)
        if any(failures):
            raise rewards.JudgeError(next(filter(None, failures)))
        return distributed.gather_rows(own)

    def _learn(
        self, sampled: Sampled, verdicts: dict[str, Any], step: int
    ) -> tuple[train_step.RolloutBatch, dict[str, float]]:
        """Turns verdicts on all rows into the batch to learn from, and its metrics for the log."""
        samples = self._run.rl.samples

        def example(row: int) -> str:
            text = self._base.chat_format.decode(sampled.tokens[[row]], sampled.mask[[row]])[0]
            return f"One is {text!r}, to {self._rows[sampled.rows[row // samples]].prompt!r}."

        total = self._mixture.total(verdicts, step, samples, example)
        self._last = sampled, total
        advantage = advantages.ESTIMATORS[self._run.rl.advantage](total.rewards, samples)
        kept = total.rewards[~total.dropped]
        logged = {
            "reward": float(np.mean(kept)) if len(kept) else float("nan"),
            "completion_length": float(sampled.mask.sum(axis=1).mean()),
            "flat_groups": float(np.mean(~advantage.reshape(-1, samples).any(axis=1))),
            **total.logged,
        }
        batch = train_step.RolloutBatch(
            prompts=np.repeat(sampled.prompts, samples, axis=0),
            prompt_mask=np.repeat(sampled.prompt_mask, samples, axis=0),
            completions=sampled.tokens,
            completion_mask=sampled.mask,
            old_logprobs=sampled.logprobs,
            advantages=advantage,
            outcomes=self._outcomes(total, verdicts) if self._outcomes else None,
        )
        return batch, logged


def _pack(array: np.ndarray) -> dict[str, Any]:
    array = np.ascontiguousarray(array)
    data = base64.b64encode(array.tobytes()).decode()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": data}


def _unpack(packed: dict[str, Any]) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(packed["data"]), packed["dtype"])
    return flat.reshape(packed["shape"])


def split_minibatches(batch: Any, count: int, step: int, group: int = 1):
    """Yields `count` equal minibatches of whole-batch rows in an order that differs every step.

    `group` neighbouring rows stay together.
    """
    if count == 1:
        yield batch
        return
    order = np.random.default_rng(step).permutation(len(batch.completion_mask) // group)
    for groups in np.split(order, count):
        rows = (groups[:, None] * group + np.arange(group)).reshape(-1)
        yield jax.tree.map(lambda array, rows=rows: array[rows], batch)


def throughput(
    model_config: models.ModelConfig, batch: Any, seconds: dict[str, float]
) -> dict[str, float]:
    """Computes the speed of a step, for the log.

    Args:
      model_config: the policy's configuration.
      batch: the step's. Its completions are the rollout's, if there was one; the update runs on the
        prompts too.
      seconds: the seconds of each phase, "update" among them.

    Returns:
      Tokens a second and, on a chip that `chips` knows, the update's model FLOP utilisation: the
      operations of three forward passes on real tokens (recomputation is not counted), as a share
      of what all devices could have computed.
    """
    completed = float(batch.completion_mask.sum())
    trained = completed + float(batch.prompt_mask.sum())
    speed = metrics.phase_seconds(seconds)
    speed["speed/update_tokens_per_second"] = trained / seconds["update"]
    if "rollout" in seconds:
        speed["speed/rollout_tokens_per_second"] = completed / seconds["rollout"]
    chip = chips.chip_of(jax.devices()[0].device_kind)
    if chip is not None:
        rows = batch.completion_mask.size // batch.completion_mask.shape[-1]
        attended = trained / rows / 2
        flops = 3 * trained * models.flops_per_token(model_config, attended)
        possible = seconds["update"] * jax.device_count() * chip.flops
        speed["speed/update_flop_utilisation"] = flops / possible
    return speed
