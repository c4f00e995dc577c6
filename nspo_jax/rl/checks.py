"""What a config must be like for a run of it to work: told before anything expensive starts."""

import jax

from nspo_jax import judges, nullspace, rewards, settings, sharding
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.data import split, world
from nspo_jax.rl import algorithms, ranges, uses


def check_mesh(config: settings.Run, mesh: jax.sharding.Mesh) -> None:
    """Raises ValueError unless the batches of a step divide over the mesh."""
    rl, prompts = config.rl, config.batch_prompts
    sharding.check_batch(mesh, prompts, "The RL batch of prompts")
    sharding.check_batch(mesh, prompts // rl.rollout_batches, "A part of it (rl.rollout_batches)")
    parts = rl.minibatches * rl.microbatches
    sharding.check_batch(
        mesh, algorithms.of(config).rows // parts, "A microbatch (rl.minibatches x rl.microbatches)"
    )
    if any(spec.name in judges.ON_MESH for spec in rewards.parse_terms(config.rewards.terms)):
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
    if config.task == "chat_world":
        check_chat_world(config)
    algorithm.check()
    if config.task == "stories" and not config.model.path:
        raise ValueError(
            "task is 'stories' and model.path is empty; expected the Hugging Face directory of a "
            "story model: only the chat world's base can be pretrained here. Set "
            "--config.model.path."
        )
    if config.task == "safety":
        check_safety(config, has_weights=has_weights)
    if has_weights and config.model.preset and not config.model.path:
        raise ValueError(
            f"model.preset is {config.model.preset!r} and model.path is empty: a preset says what "
            "the checkpoint is, not where. Set --config.model.path to its Hugging Face directory."
        )
    optimizer_lib.check_period(config.projection.mode, config.projection.period)
    nullspace.check_choices(config.calibration.statistics, config.calibration.first_token)
    if is_run and algorithm.generates:  # the others ask no judge
        judges.check_terms(config, has_weights=has_weights)
    uses.check_uses(config, is_run=is_run)


def check_profile(config: settings.Run, steps: tuple[int, int] | None) -> None:
    """Raises ValueError unless the run has all of the steps, from the first up to the second."""
    if steps is not None and not 0 <= steps[0] < steps[1] <= config.rl.steps:
        raise ValueError(
            f"The steps to profile are {steps[0]}:{steps[1]}, and rl.steps is {config.rl.steps}: "
            "--profile=START:STOP traces the steps from START up to, without, STOP, which is at "
            "most rl.steps."
        )


def check_chat_world(config: settings.Run) -> None:
    """Raises ValueError for a config that asks for more than the world has, as `check_config`."""
    if split.parse(config.data.train_split).name != "train":
        raise ValueError(
            f"data.train_split is {config.data.train_split!r}; expected train, or a slice of it "
            "such as train[:40%]."
        )
    calibration = world.CALIBRATION_ROWS * len(world.GENERAL_FAMILIES)
    for name, asked, rows in (
        ("calibration.rows", config.calibration.rows, calibration),
        ("evaluation.prompts", config.evaluation.prompts, world.EVALUATION_ROWS),
    ):
        if asked > rows:
            raise ValueError(
                f"{name} is {asked}, and the chat world has {rows} of them: set it to at most "
                f"{rows}."
            )


def check_safety(config: settings.Run, *, has_weights: bool = True) -> None:
    """Raises ValueError for a config of the task safety that cannot work, as `check_config`."""
    data = config.data
    if not config.model.path and not config.model.preset:
        raise ValueError(
            "task is 'safety' and model.path is empty: only the chat world's base can be "
            "pretrained here. Set --config.model.path to a Hugging Face directory."
        )
    if has_weights and not data.evaluation:
        raise ValueError(
            "task is 'safety' and data.evaluation is empty: XSTest, AdvBench, HarmBench and "
            "StrongREJECT are csv files in their authors' repositories. Give their paths, joined "
            "by +: --config.data.evaluation=xstest_prompts.csv+harmful_behaviors.csv."
        )
    if data.train_column and data.train != "safety_prompts":
        raise ValueError(
            f"data.train_column is {data.train_column!r} and data.train {data.train!r}, whose "
            "columns are known: it is for a table of one's own, data.train=safety_prompts."
        )
