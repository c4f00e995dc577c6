"""The checks of a whole config, which come before anything expensive starts."""

import jax

from nspo_jax import nullspace, settings, sharding, tasks, wandb_run
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.rl import algorithms, ranges, terms, uses


def check_mesh(run: settings.Run, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError unless the batches of a step divide over the mesh."""
    rl, prompts = run.rl, run.batch_prompts
    sharding.check_batch(mesh, prompts, "The RL batch of prompts")
    sharding.check_batch(mesh, prompts // rl.rollout_batches, "A part of it (rl.rollout_batches)")
    algorithm, parts = algorithms.of(run), rl.minibatches * rl.microbatches
    what = "A microbatch (rl.minibatches x rl.microbatches)"
    if algorithm.group > 1:
        what += " of whole groups (rl.shared_prompt)"
    sharding.check_batch(mesh, algorithm.rows // algorithm.group // parts, what)
    if terms.on_mesh(run):
        sharding.check_batch(mesh, run.rewards.batch_size, "rewards.batch_size")


def check_config(run: settings.Run, *, has_weights: bool = True, is_run: bool = True) -> None:
    """Raises ValueError for settings that cannot work or would be ignored.

    Args:
      run: the run's settings.
      has_weights: a model is loaded; without one a preset is enough.
      is_run: a policy is trained; otherwise its judges need not be there yet.

    Raises:
      FileNotFoundError: for the missing directory of a judge.
      ModuleNotFoundError: for metrics.wandb_project without the library that writes there.
    """
    ranges.check_fields(run)
    if run.checkpoint.keep_every % run.checkpoint.every:
        raise ValueError(
            f"checkpoint.keep_every is {run.checkpoint.keep_every}, but only every "
            f"{run.checkpoint.every} steps there is a checkpoint to keep: make it a multiple of "
            "checkpoint.every, or 0."
        )
    algorithm, prompts = algorithms.of(run), run.batch_prompts
    parts = run.rl.minibatches * run.rl.microbatches
    if algorithm.rows // algorithm.group % parts:
        units = f"{algorithm.rows} {algorithm.row}"
        if algorithm.group > 1:
            units = f"{prompts} groups that rl.shared_prompt keeps together, in the {units}"
        raise ValueError(
            f"rl.minibatches is {run.rl.minibatches} and rl.microbatches "
            f"{run.rl.microbatches}, which do not divide the {units} of a step ({prompts} prompts "
            f"x {run.rl.samples} samples)."
        )
    if prompts % run.rl.rollout_batches:
        raise ValueError(
            f"rl.rollout_batches is {run.rl.rollout_batches}, which does not divide the "
            f"{prompts} prompts of a step."
        )
    algorithm.check()
    tasks.kind_of(run.task).check(run, has_weights=has_weights)
    if has_weights and run.model.preset and not run.model.path:
        raise ValueError(
            f"model.preset is {run.model.preset!r} and model.path is empty: a preset says what "
            "the checkpoint is, not where. Set --config.model.path to its Hugging Face directory."
        )
    optimizer_lib.check_period(run.projection.mode, run.projection.period)
    nullspace.check_choices(run.calibration.statistics, run.calibration.first_token)
    if is_run and algorithm.generates:  # other algorithms ask no judge
        terms.check(run, has_weights=has_weights)
    if is_run and has_weights:
        wandb_run.check_installed(run.metrics.wandb_project)
    uses.check_uses(run, is_run=is_run)


def check_profile(run: settings.Run, steps: tuple[int, int] | None) -> None:
    """Raises ValueError unless the run has all steps from the first number up to the second."""
    if steps is not None and not 0 <= steps[0] < steps[1] <= run.rl.steps:
        raise ValueError(
            f"The steps to profile are {steps[0]}:{steps[1]}, and rl.steps is {run.rl.steps}: "
            "--profile=START:STOP traces the steps from START up to, without, STOP, which is at "
            "most rl.steps."
        )
