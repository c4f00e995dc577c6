"""The training run, top to bottom: set up, resume, loop, report.

Order of a resume: config compared with the saved one -> base, task, projectors (by fingerprint) ->
state and prompt iterator (by the prompts' digest) from the last checkpoint that can be read ->
metrics truncated to that step. Every random key is folded from (seed, role, step): no key needs
saving and no two steps share one.

Each of several processes runs these lines: arrays are global, host values the same everywhere.
"""

import contextlib
import json
import logging
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp

from nspo_jax import (
    base_model,
    checkpoint,
    distributed,
    evaluation,
    files,
    general_text,
    metrics,
    model_files,
    models,
    nullspace,
    ownership,
    preemption,
    rewards,
    run_directory,
    settings,
    sharding,
)
from nspo_jax import optimizer as optimizer_lib
from nspo_jax import progress as progress_lib
from nspo_jax.rl import algorithms, batches, checks, learning, train_step

_log = logging.getLogger(__name__)


def train(
    run: settings.Run,
    workdir: str | pathlib.Path,
    *,
    allow_config_change: bool = False,
    profile: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """Runs a config in `workdir`, or continues it there, and returns its summary.

    The run leaves in the workdir: config.json, metrics.jsonl, tensorboard/, checkpoints/,
    certificate.json, policy/ (a Hugging Face directory, float32), delta/ (the base and the change
    as it was trained), wandb/ and wandb_run.json with metrics.wandb_project, and, when all is done,
    summary.json.

    Every process calls it with the same arguments and gets the same summary; process 0 writes.

    Args:
      run: the run's settings.
      workdir: the run's directory, on a file system that all processes see.
      allow_config_change: continues a run of another config with this one.
      profile: traces the steps from the first number up to the second into profile/.

    Raises:
      ValueError: for a config that cannot run, before any compilation.
      learning.NothingToLearnError: if the first steps held nothing to learn from.
      FloatingPointError: for a NaN or inf, naming the step and the tensors.
      ownership.OwnedError: if another process runs in the workdir.
      OSError: if a file cannot be written, naming the last good checkpoint.
      preemption.PreemptedError: after SIGTERM, once all work is saved.
      rewards.JudgeError: if a judge does not answer any more; all work is saved.
    """
    workdir = pathlib.Path(workdir)
    for name, directory in (("workdir", workdir), ("workspace", run.workspace)):
        run_directory.check_directory(directory, name)
    run = run_directory.restore_defaults(run, workdir)
    checks.check_config(run)
    checks.check_profile(run, profile)
    run = run_directory.with_recorded(run, workdir)
    with ownership.own(workdir, "workdir"):
        if run_directory.resumes_finished(run, workdir, allow_config_change):
            if profile is not None:
                _log.warning("%s is finished: no step is left to profile", workdir)
            return files.read_json(workdir / "summary.json", "delete it, and run again")
        return _run(run, workdir, profile)


def _run(
    run: settings.Run, workdir: pathlib.Path, profile: tuple[int, int] | None
) -> dict[str, Any]:
    """Runs or continues a config in a workdir that this process owns; see `train`."""
    started = time.monotonic()

    # ---------------------------------------------------------------------------- set up
    mesh = sharding.mesh_from_config(run)
    rl = run.rl
    checks.check_mesh(run, mesh)
    distributed.own_rows(run.batch_prompts)
    base = base_model.open_base(run, mesh)
    run = settings.replace(run, {"data.date": base.chat_format.date or ""})
    projectors = base_model.open_projectors(run, base)
    algorithm = algorithms.of(run)
    source = algorithm.open_batches(base)
    evaluator = evaluation.Evaluator(run, base)
    held_out = list(general_text.split_batches(base.held_out, run.calibration.batch_size))
    calibration = list(general_text.split_batches(base.calibration, run.calibration.batch_size))
    optimizer = optimizer_lib.from_settings(run, optimizer_lib.select_projectors(run, projectors))
    trainable, frozen = optimizer_lib.open_master(
        base.params,
        run.projection.targets,
        run.projection.untargeted,
        run.optimizer.master,
    )
    frozen = optimizer_lib.freeze(frozen, run.model.frozen_dtype)
    reference = None
    if algorithm.needs_reference:
        if run.optimizer.master == "change":
            reference = frozen  # this is the base itself
        else:  # the step donates its state; a reference stays
            trainable, reference = jax.tree.map(jnp.copy, trainable), base.params
    base.release()  # the certificate reads the parameters again
    state = train_step.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    state = distributed.put(state, sharding.shardings(mesh, state))
    state = state._replace(critics=algorithm.init_extra(base))
    update = algorithm.make_step(base.model_config, optimizer)
    # where the weights themselves are trained, `combine` computes and copies nothing
    changes = run.optimizer.master == "change"
    form_weights = _add_change if changes else optimizer_lib.combine

    # ---------------------------------------------------------------------------- resume
    run_directory.write_config(run, workdir)
    checkpoints = checkpoint.Checkpointer(
        workdir / "checkpoints",
        keep=run.checkpoint.keep,
        keep_every=run.checkpoint.keep_every,
    )
    step = 0
    if checkpoints.latest_step() is not None:
        like, state = abstract(state), None  # two states do not fit in memory
        step, state, data_state = checkpoints.restore(like)
        source.set_state(data_state)
        _log.info("resumed %s at step %d", workdir, step)
    writer = metrics.MetricsWriter(
        workdir,
        step=step,
        wandb_project=run.metrics.wandb_project,
        config=settings.flatten(run),
    )
    clock = metrics.Stopwatch()
    profiler = metrics.Profiler(workdir / "profile", profile)
    history = metrics.read_metrics(workdir)  # process 0 wrote it, and all processes can read it
    learning_watch = learning.LearningWatch(rl.flat_steps, rl.on_flat, history)

    def evaluate(state: train_step.TrainState, *, shown: bool = True) -> dict[str, Any]:
        params = form_weights(state.trainable, frozen)
        with clock.phase("evaluation"):
            scores = evaluator(params, batches.role_key(run.rl_seed, "evaluation", step))
        speed = metrics.phase_seconds(clock.read())
        if shown:
            rates = {f"evaluation/{name}": value for name, value in scores.items()}
            writer.write(step, rates | speed)
        return scores

    def stops_early(scores: dict[str, Any]) -> bool:
        # a resumed run is scored at the step it resumes from, an uninterrupted one perhaps not
        due = step % run.evaluation.every == 0
        return due and bool(rl.stop_unsafe) and scores["unsafe"] <= rl.stop_unsafe

    # ---------------------------------------------------------------------------- loop
    progress = progress_lib.Bar(
        total=rl.steps, initial=step, desc=workdir.name, unit="step",
        disable=not distributed.is_primary(),
    )  # fmt: skip
    with (
        jax.set_mesh(mesh),
        checkpoints.naming_last_good(),
        checkpoints,
        contextlib.closing(source),
        contextlib.closing(writer),
        contextlib.closing(profiler),
        progress,
        preemption.PreemptionWatch(source.hurry) as watch,
    ):
        scores = evaluate(state, shown=step == 0)
        while step < rl.steps and not stops_early(scores):
            if watch.asked():
                checkpoints.finish(step, state, source.get_state())
                raise preemption.PreemptedError(f"SIGTERM: stopped with step {step} saved.")
            profiler.at(step)
            params = form_weights(state.trainable, frozen)
            try:
                batch, logged = source.sample(params, step, clock)
            except rewards.JudgeError as error:
                # the state holds the completions that wait for a verdict
                checkpoints.finish(step, state, source.get_state())
                if watch.asked():
                    raise preemption.PreemptedError(
                        f"SIGTERM: stopped with step {step} saved."
                    ) from error
                raise
            del params  # these are a second copy of the weights, where a change is trained
            with clock.phase("update"):
                measured = {}
                for minibatch in batches.split_minibatches(
                    batch, rl.minibatches, step, algorithm.group
                ):
                    minibatch = sharding.shard_batch(mesh, minibatch)
                    state, measured = update(state, frozen, reference, minibatch)
                measured = distributed.fetch(measured)
            step += 1
            bad = train_step.nonfinite_tensors(measured.pop("nonfinite"), state)
            if bad:
                checkpoints.wait()
                raise FloatingPointError(
                    f"Step {step} made {len(bad)} tensors NaN or inf, first {bad[0]}. "
                    f"{checkpoints.last_good()}. Lower optimizer.learning_rate (in another "
                    f"--workdir), or look at {workdir / 'metrics.jsonl'} for where it began."
                )
            logged.update({name: float(value) for name, value in measured.items()})
            speed = batches.throughput(base.model_config, batch, clock.read())
            writer.write(step, {f"train/{name}": value for name, value in logged.items()} | speed)
            try:
                learning_watch.observe(logged, source.example, last=step == rl.steps)
            except learning.NothingToLearnError:
                checkpoints.finish(step, state, source.get_state())
                raise
            if step % run.evaluation.every == 0 or step == rl.steps:
                scores = evaluate(state)
            if step % run.checkpoint.every == 0:  # last: a resume finds this step's log complete
                checkpoints.save(step, state, source.get_state())
            progress.update()
            learned = "reward" if "reward" in logged else "accuracy"
            progress.set_postfix(
                {learned: f"{logged[learned]:.2f}"},
                unsafe=f"{scores['unsafe']:.0%}",
                general=f"{scores['general']:.0%}",
            )
        checkpoints.finish(step, state, source.get_state())

    # ---------------------------------------------------------------------------- report
    policy = optimizer_lib.combine(state.trainable, frozen)
    # casting a frozen matrix is exact
    policy = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), policy)
    change = state.trainable if changes else None
    del state, reference
    with jax.set_mesh(mesh):
        report = nullspace.certify(
            base.model_config,
            base.params,
            policy,
            projectors,
            calibration,
            held_out,
            mesh,
            change=change,
        )
    summary = {
        **scores,
        "counts": base.task.counts,
        "columns": base.task.columns,
        "left_out": dict(base.task.left_out),
        "protected_share": report["protected_share"],
        "kl_calibration": report["calibration"]["kl"],
        "step": step,
        "seconds": time.monotonic() - started,
    }
    with checkpoints.naming_last_good():
        models.save_model(workdir / "policy", base.model_config, policy, like=base.path)
        if change is not None:
            models.save_delta(workdir / "delta", base.model_config, change, base.path)
            model_files.record_date(workdir / "delta", base.chat_format.date)
        if distributed.is_primary():
            model_files.record_date(workdir / "policy", base.chat_format.date)
            files.write_text(workdir / "certificate.json", json.dumps(report, indent=1))
            files.write_text(workdir / "summary.json", json.dumps(summary, indent=1))
    distributed.barrier("the summary is written")
    return files.read_json(workdir / "summary.json", "delete it, and run again")


def abstract(state: train_step.TrainState) -> train_step.TrainState:
    """Returns the shapes, dtypes and shardings of a state, without its arrays."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )


@jax.jit
def _add_change(change: Any, base: Any) -> Any:
    return sharding.constrain(optimizer_lib.combine(change, base))
