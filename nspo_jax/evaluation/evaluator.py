"""Scoring a policy by sampling from it."""

import jax
import numpy as np

from nspo_jax import distributed, general_text, nullspace, settings, tasks, workspace
from nspo_jax.models import generation


class Evaluator:
    """Samples one completion for every prompt of a task's suites and scores them.

    All suites go through one compiled rollout; rows are padded to a multiple of the mesh. Each
    process renders and tokenizes its own rows; all get every completion, and the same scores.
    """

    def __init__(self, config: settings.Run, work: workspace.Workspace):
        prompts = [row.prompt for rows in work.task.suites.values() for row in rows]
        prompts += prompts[:1] * (-len(prompts) % (work.mesh.size * config.evaluation.batches))
        own = work.format.encode_prompts(
            prompts[distributed.own_rows(len(prompts))], config.data.prompt_length
        )
        self._prompts = distributed.gather_rows(tuple(own))
        self._base = nullspace.Reference(
            work.config,
            work.base,
            general_text.split_batches(work.held_out, config.calibration.batch_size),
        )
        self._work = work
        self._options = {
            "batches": config.evaluation.batches,
            "max_new_tokens": config.data.completion_length,
            "stop_ids": work.format.stop_ids,
            "temperature": config.evaluation.temperature,
            "gather": config.mesh.gather_for_rollouts,
        }

    def complete(self, params, key: jax.Array) -> tasks.Completed:
        """Suite name -> (conversations, sampled completions)."""
        work = self._work
        prompts, mask = self._prompts
        done = generation.generate_in_batches(
            work.config, params, work.mesh, prompts, mask, key, **self._options
        )
        texts = work.format.decode(np.asarray(done.tokens), np.asarray(done.mask))
        completed, start = {}, 0
        for name, rows in work.task.suites.items():
            completed[name] = (rows, texts[start : start + len(rows)])
            start += len(rows)
        return completed

    def __call__(self, params, key: jax.Array) -> tasks.Scores:
        """The task's scores of one sample of completions, and of the drift on held-out text."""
        return self.score(params, self.complete(params, key))

    def score(self, params, completed: tasks.Completed) -> tasks.Scores:
        """The scores of completions that `complete` made with these parameters."""
        return self._work.task.score(completed, self._base.drift(params))
