"""The scores of a policy, from completions sampled from it."""

import jax
import numpy as np

from nspo_jax import base_model, distributed, general_text, nullspace, settings, tasks
from nspo_jax.models import generation


class Evaluator:
    """An evaluator that samples a completion for every prompt of a task's suites and scores them.

    All suites go through one compiled rollout; rows are padded to a multiple of the mesh. Each
    process renders and tokenizes its own rows; all get every completion and the same scores.
    """

    def __init__(self, run: settings.Run, base: base_model.BaseModel):
        prompts = [row.prompt for suite in base.task.suites.values() for row in suite.rows]
        prompts += prompts[:1] * (-len(prompts) % (base.mesh.size * run.evaluation.batches))
        own = base.chat_format.encode_prompts(
            prompts[distributed.own_rows(len(prompts))], run.data.prompt_length
        )
        self._prompts = distributed.gather_rows(tuple(own))
        self._reference = nullspace.Reference(
            base.model_config,
            base.params,
            general_text.split_batches(base.held_out, run.calibration.batch_size),
        )
        self._base = base
        self._options = {
            "batches": run.evaluation.batches,
            "max_new_tokens": run.data.completion_length,
            "stop_ids": base.chat_format.stop_ids,
            "temperature": run.evaluation.temperature,
            "gather": run.mesh.gather_for_rollouts,
        }

    def complete(self, params, key: jax.Array) -> tasks.Completed:
        """Samples completions: suite name -> (conversations, completions). Collective."""
        base = self._base
        prompts, mask = self._prompts
        done = generation.generate_in_batches(
            base.model_config, params, base.mesh, prompts, mask, key, **self._options
        )
        texts = base.chat_format.decode(np.asarray(done.tokens), np.asarray(done.mask))
        completed, start = {}, 0
        for name, suite in base.task.suites.items():
            completed[name] = (suite.rows, texts[start : start + len(suite.rows)])
            start += len(suite.rows)
        return completed

    def __call__(self, params, key: jax.Array) -> tasks.Scores:
        """Returns the task's scores of sampled completions and of the drift on held-out text."""
        return self.score(params, self.complete(params, key))

    def score(self, params, completed: tasks.Completed) -> tasks.Scores:
        """Returns the scores of completions that `complete` made with these parameters."""
        return self._base.task.score(completed, self._reference.drift(params))
