"""What a config must be like for a run of it to work: told before anything expensive starts."""

import jax

from nspo_jax import nullspace, settings, sharding, tasks
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.rl import algorithms, ranges, terms, uses


def check_mesh(config: settings.Run, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError unless the batches of a step divide over the mesh."""
    rl, prompts = config.rl, config.batch_prompts
    sharding.check_batch(mesh, prompts, "The RL batch of prompts")
    sharding.check_batch(mesh, prompts // rl.rollout_batches, "A part of it (rl.rollout_batches)")
    parts = rl.minibatches * rl.microbatches
    sharding.check_batch(
        mesh, algorithms.of(config).rows // parts, "A microbatch (rl.minibatches x rl.microbatches)"
    )
    if terms.on_mesh(config):
        sharding.check_batch(mesh, config.rewards.batch_size, "rewards.batch_size")


def check_config(config: settings.Run, *, has_weights: bool = True, is_run: bool = True) -> None:
    """Raises ValueError for what cannot work or would be ignored, before anything expensive starts.

    Args:
      config: the run's settings.
      has_weights: a model is loaded; without, a preset alone will do.
      is_run: a policy is trained; without, its judges need not be there yet.

    Raises:
      FileNotFoundError: for the directory of a judge that is not there.
    """
    ranges.check_fields(config)
    if config.checkpoint.keep_every % config.checkpoint.every:
        raise ValueError(
            f"checkpoint.keep_every is {config.checkpoint.keep_every}, but only every "
            f"{config.checkpoint.every} steps there is a checkpoint to keep: make it a multiple of "
            "checkpoint.every, or 0."
        )
    algorithm, prompts = algorithms.of(config), config.batch_prompts
    if algorithm.rows % (config.rl.minibatches * config.rl.microbatches):
        raise ValueError(
            f"rl.minibatches is {config.rl.minibatches} and rl.microbatches "
            f"{config.rl.microbatches}, which do not divide the {algorithm.rows} "
            f"{algorithm.row} of a step ({prompts} prompts x {config.rl.samples} samples)."
        )
    if prompts % config.rl.rollout_batches:
        raise ValueError(
            f"rl.rollout_batches is {config.rl.rollout_batches}, which does not divide the "
            f"{prompts} prompts of a step."
        )
    algorithm.check()
    tasks.kind_of(config.task).check(config, has_weights=has_weights)
    if has_weights and config.model.preset and not config.model.path:
        raise ValueError(
            f"model.preset is {config.model.preset!r} and model.path is empty: a preset says what "
            "the checkpoint is, not where. Set --config.model.path to its Hugging Face directory."
        )
    optimizer_lib.check_period(config.projection.mode, config.projection.period)
    nullspace.check_choices(config.calibration.statistics, config.calibration.first_token)
    if is_run and algorithm.generates:  # the others ask no judge
        terms.check(config, has_weights=has_weights)
    uses.check_uses(config, is_run=is_run)


def check_profile(config: settings.Run, steps: tuple[int, int] | None) -> None:
    """Raises ValueError unless the run has all of the steps, from the first up to the second."""
    if steps is not None and not 0 <= steps[0] < steps[1] <= config.rl.steps:
        raise ValueError(
            f"The steps to profile are {steps[0]}:{steps[1]}, and rl.steps is {config.rl.steps}: "
            "--profile=START:STOP traces the steps from START up to, without, STOP, which is at "
            "most rl.steps."
        )
