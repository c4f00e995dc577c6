"""The training run, top to bottom: set up, resume, loop, report.

Order of a resume: config compared with the saved one -> base, task, projectors (by fingerprint) ->
state and prompt iterator from the last whole checkpoint -> metrics truncated to that step. Every
random key is folded from (seed, role, step): no key needs saving and no two steps share one.
"""

import functools
import json
import logging
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import tqdm

from nspo_jax import checkpoint, evaluation, metrics, models, nullspace, sharding
from nspo_jax import optimizer as optimizer_lib
from nspo_jax import workspace as workspace_lib
from nspo_jax.data import iterator
from nspo_jax.nullspace import projectors as projectors_lib
from nspo_jax.nullspace import rank_rules
from nspo_jax.rl import advantages, rollout, train_step

ROLES = ("rollout", "evaluation")
_log = logging.getLogger(__name__)


def role_key(seed: int, role: str, step: int) -> jax.Array:
    """The PRNG key of one role at one step."""
    key = jax.random.fold_in(jax.random.key(seed), ROLES.index(role))
    return jax.random.fold_in(key, step)


def train(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> dict[str, Any]:
    """Runs a config in `workdir`, or continues it there, and returns its summary.

    Leaves in the workdir: config.json, metrics.jsonl, tensorboard/, checkpoints/, certificate.json,
    policy/ (a Hugging Face directory, float32) and, when all is done, summary.json.

    Raises:
      ValueError: for a config that cannot run, before any compilation.
      FloatingPointError: for a NaN or inf, naming the step and the tensors.
    """
    workdir = pathlib.Path(workdir)
    check_config(config)
    if resumes_finished(config, workdir):
        return json.loads((workdir / "summary.json").read_text())
    started = time.monotonic()

    # ---------------------------------------------------------------------------- set up
    mesh = sharding.make_mesh(**config.mesh)
    rl, prompts = config.rl, batch_prompts(config)
    sharding.check_batch(mesh, prompts, "The RL batch of prompts")
    sharding.check_batch(mesh, prompts * rl.samples // rl.minibatches, "A minibatch")
    work = workspace_lib.open_workspace(config, mesh)
    rollouts = Rollouts(config, work)
    evaluator = evaluation.Evaluator(config, work)
    projectors = workspace_lib.open_projectors(config, work)
    held_out = list(workspace_lib.split_batches(work.held_out, config.calibration.batch_size))
    calibration = list(workspace_lib.split_batches(work.calibration, config.calibration.batch_size))
    optimizer = make_optimizer(config, projectors, mesh)
    trainable, frozen = optimizer_lib.partition(
        jax.tree.map(jnp.copy, work.base),  # the step donates its state; the base stays
        config.projection.targets,
        config.projection.untargeted,
    )
    state = train_step.TrainState(jnp.int32(0), trainable, optimizer.init(trainable))
    state = jax.device_put(state, sharding.shardings(mesh, state))
    update = train_step.make_train_step(
        work.config,
        optimizer,
        clip=rl.clip,
        kl_coefficient=rl.kl_coefficient,
        temperature=rl.temperature,
    )
    reference = work.base if rl.kl_coefficient else None

    # ---------------------------------------------------------------------------- resume
    record_config(config, workdir)
    checkpoints = checkpoint.Checkpointer(workdir / "checkpoints", keep=config.checkpoint.keep)
    step = 0
    if checkpoints.latest_step() is not None:
        step, state, data_state = checkpoints.restore(state)
        rollouts.set_state(data_state)
        _log.info("resumed %s at step %d", workdir, step)
    writer = metrics.MetricsWriter(workdir, step=step)

    def evaluate(state: train_step.TrainState, *, record: bool = True) -> dict[str, Any]:
        params = optimizer_lib.combine(state.trainable, frozen)
        scores = evaluator(params, role_key(config.seed, "evaluation", step))
        if record:
            shown = {f"evaluation/{k}": v for k, v in scores.items() if k != "families"}
            writer.write(step, shown)
        return scores

    def stops_early(scores: dict[str, Any]) -> bool:
        # a resumed run is scored where it resumes, where an uninterrupted one may not have been
        due = step % config.evaluation.every == 0
        return due and bool(rl.stop_unsafe) and scores["unsafe"] <= rl.stop_unsafe

    # ---------------------------------------------------------------------------- loop
    progress = tqdm.tqdm(total=rl.steps, initial=step, desc=workdir.name, unit="step")
    try:
        scores = evaluate(state, record=step == 0)
        while step < rl.steps and not stops_early(scores):
            params = optimizer_lib.combine(state.trainable, frozen)
            batch, logged = rollouts.sample(params, role_key(config.seed, "rollout", step))
            for minibatch in split_minibatches(batch, rl.minibatches, step):
                minibatch = sharding.shard_batch(mesh, minibatch)
                state, measured = update(state, frozen, reference, minibatch)
            step += 1
            measured = jax.device_get(measured)
            bad = train_step.nonfinite_tensors(measured.pop("nonfinite"), state.trainable)
            if bad:
                good = checkpoints.latest_step()
                raise FloatingPointError(
                    f"Step {step} made {len(bad)} tensors NaN or inf, first {bad[0]}. "
                    f"{'No checkpoint' if good is None else f'Checkpoint {good}'} was saved before "
                    "it. Lower optimizer.learning_rate (in another --workdir), or look at "
                    f"{workdir / 'metrics.jsonl'} for where it began."
                )
            logged.update({name: float(value) for name, value in measured.items()})
            writer.write(step, {f"train/{name}": value for name, value in logged.items()})
            if step % config.evaluation.every == 0 or step == rl.steps:
                scores = evaluate(state)
            if step % config.checkpoint.every == 0:  # last: what it resumes from is all written
                checkpoints.save(step, state, rollouts.get_state())
            progress.update()
            progress.set_postfix(
                reward=f"{logged['reward']:.2f}",
                unsafe=f"{scores['unsafe']:.0%}",
                general=f"{scores['general']:.0%}",
            )
        if checkpoints.latest_step() != step:
            checkpoints.save(step, state, rollouts.get_state())
    finally:
        progress.close()
        checkpoints.close()
        writer.close()

    # ---------------------------------------------------------------------------- report
    policy = optimizer_lib.combine(state.trainable, frozen)
    report = nullspace.certify(work.config, work.base, policy, projectors, calibration, held_out)
    write_text(workdir / "certificate.json", json.dumps(report, indent=1))
    models.save_model(workdir / "policy", work.config, policy, like=work.path)
    summary = {
        **scores,
        "protected_share": report["protected_share"],
        "kl_calibration": report["calibration"]["kl"],
        "step": step,
        "seconds": time.monotonic() - started,
    }
    write_text(workdir / "summary.json", json.dumps(summary, indent=1))
    return summary


class Rollouts:
    """Draws prompts, samples completions, judges them and computes advantages."""

    def __init__(self, config: ml_collections.ConfigDict, work: workspace_lib.Workspace):
        self._config, self._work = config, work
        self._rows = [row for rows, _ in work.task.parts for row in rows]
        parts, start = [], 0
        for rows, count in work.task.parts:
            prompts = [row.prompt for row in rows]
            encoded = work.format.encode_prompts(prompts, config.data.prompt_length)
            index = np.arange(start, start + len(rows), dtype=np.int32)
            parts.append(({"tokens": encoded.tokens, "mask": encoded.mask, "row": index}, count))
            start += len(rows)
        self._prompts = iterator.MixedBatches(parts, config.seed)
        self._options = {
            "samples": config.rl.samples,
            "max_new_tokens": config.data.completion_length,
            "stop_ids": work.format.stop_ids,
            "temperature": config.rl.temperature,
        }

    def get_state(self) -> dict:
        """The prompt iterator's position, JSON-able."""
        return self._prompts.get_state()

    def set_state(self, state: dict) -> None:
        """Continues from such a position."""
        self._prompts.set_state(state)

    def sample(self, params, key: jax.Array) -> tuple[train_step.Rollouts, dict[str, float]]:
        """One step's batch (host arrays), and what to log of it."""
        batch = next(self._prompts)
        tokens, mask = sharding.shard_batch(self._work.mesh, (batch["tokens"], batch["mask"]))
        done = rollout.rollout(self._work.config, params, tokens, mask, key, **self._options)
        done = jax.device_get(done)
        samples = self._config.rl.samples
        rows = [self._rows[index] for index in np.repeat(batch["row"], samples)]
        texts = self._work.format.decode(done.tokens, done.mask)
        rewards, details = self._work.task.reward(rows, texts)
        advantage = advantages.group_advantages(rewards, samples)
        logged = {
            "reward": float(np.mean(rewards)),
            "completion_length": float(done.mask.sum(axis=1).mean()),
            "flat_groups": float(np.mean(~advantage.reshape(-1, samples).any(axis=1))),
            **{name: float(np.mean(value)) for name, value in details.items()},
        }
        rollouts = train_step.Rollouts(
            prompts=np.repeat(batch["tokens"], samples, axis=0),
            prompt_mask=np.repeat(batch["mask"], samples, axis=0),
            completions=done.tokens,
            completion_mask=done.mask,
            old_logprobs=done.logprobs,
            advantages=advantage,
        )
        return rollouts, logged


def batch_prompts(config: ml_collections.ConfigDict) -> int:
    """Prompts of a step: the harmful ones and the benign ones added to them."""
    return config.rl.prompts + round(config.rl.prompts * config.data.benign_fraction)


def make_optimizer(
    config: ml_collections.ConfigDict, projectors: nullspace.Projectors, mesh: jax.sharding.Mesh
) -> optax.GradientTransformation:
    """The optax chain that `config.optimizer` and `config.projection` describe.

    Its bases are on the mesh, for `init` to take as they are; those of `projectors` stay.
    """
    selected = None
    if config.projection.mode != "none":
        selected = projectors.select(config.projection.targets)
        if config.projection.basis == "random":
            selected = selected.randomized(config.seed)
        selected = selected.place(functools.partial(sharding.shardings, mesh))
    return optimizer_lib.build_optimizer(
        config.optimizer.learning_rate,
        selected,
        mode=config.projection.mode,
        period=config.projection.period,
        max_gradient_norm=config.optimizer.max_gradient_norm,
        weight_decay=config.optimizer.weight_decay,
        b1=config.optimizer.b1,
        b2=config.optimizer.b2,
    )


def split_minibatches(batch: train_step.Rollouts, count: int, step: int):
    """Yields `count` equal minibatches of whole-batch rows in an order that differs every step."""
    if count == 1:
        yield batch
        return
    order = np.random.default_rng(step).permutation(len(batch.advantages))
    for rows in np.split(order, count):
        yield jax.tree.map(lambda array, rows=rows: array[rows], batch)


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises ValueError for a value that cannot work, before anything expensive starts."""
    positive = {
        "rl.prompts": 1, "rl.samples": 2, "rl.minibatches": 1, "data.prompt_length": 1,
        "data.completion_length": 1, "evaluation.every": 1, "evaluation.prompts": 1,
        "checkpoint.every": 1, "checkpoint.keep": 1, "calibration.rows": 1,
        "calibration.batch_size": 1, "pretraining.steps": 1, "pretraining.batch_size": 1,
        "projection.period": 1,
    }  # fmt: skip
    flat = _flatten(config)
    for name, least in positive.items():
        if flat[name] < least:
            raise ValueError(f"{name} is {flat[name]}; expected at least {least}.")
    prompts = batch_prompts(config)
    for name in ("benign_fraction", "wrapped_fraction"):
        if not 0 <= config.data[name] <= 1:
            raise ValueError(f"data.{name} is {config.data[name]}; expected a number in [0, 1].")
    rows = prompts * config.rl.samples
    if rows % config.rl.minibatches:
        raise ValueError(
            f"rl.minibatches is {config.rl.minibatches}, which does not divide the {rows} "
            f"completions of a step ({prompts} prompts x {config.rl.samples} samples)."
        )
    choices = {
        "task": ("chat_world", "stories"),
        "projection.mode": optimizer_lib.MODES,
        "projection.untargeted": ("freeze", "train"),
        "projection.basis": ("null_space", "random"),
        "model.preset": ("", *models.PRESETS),
        "calibration.completions": ("given", "generated"),
    }
    for name, values in choices.items():
        if flat[name] not in values:
            raise ValueError(f"{name} is {flat[name]!r}; expected one of {', '.join(values)}.")
    if config.task == "stories" and not config.model.path:
        raise ValueError(
            "task is 'stories' and model.path is empty; expected the Hugging Face directory of a "
            "story model: only the chat world's base can be pretrained here. Set "
            "--config.model.path."
        )
    if config.model.preset and not config.model.path:
        raise ValueError(
            f"model.preset is {config.model.preset!r} and model.path is empty: a preset says what "
            "the checkpoint is, not where. Set --config.model.path to its Hugging Face directory."
        )
    optimizer_lib.check_period(config.projection.mode, config.projection.period)
    projectors_lib.parse_targets(config.projection.targets)
    rank_rules.RankRules.parse(config.calibration.rank_rule)
    nullspace.check_choices(config.calibration.statistics, config.calibration.first_token)
    if not config.evaluation.temperature >= 0:
        raise ValueError(
            f"evaluation.temperature is {config.evaluation.temperature}; expected 0 (the most "
            "likely token) or more."
        )
    if not config.rl.temperature > 0:
        raise ValueError(
            f"rl.temperature is {config.rl.temperature}; expected a positive number: without "
            "randomness the completions of a group are all the same and teach nothing."
        )


def resumes_finished(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> bool:
    """Whether this very run already finished in the workdir.

    Raises:
      ValueError: listing the differences, if the workdir belongs to another config.
    """
    wanted = _recorded(config)
    path = workdir / "config.json"
    if path.exists():
        found = json.loads(path.read_text())
        fields = sorted(set(found) | set(wanted))
        changed = [
            f"  {name}: {found.get(name)!r} there, {wanted.get(name)!r} now"
            for name in fields
            if json.dumps(found.get(name)) != json.dumps(wanted.get(name))  # NaN equals itself
        ]
        if changed:
            raise ValueError(
                f"The workdir {workdir} holds a run with another config:\n" + "\n".join(changed)
                + "\nUse another --workdir, or delete it to start over."
            )  # fmt: skip
        return (workdir / "summary.json").exists()
    return False


def record_config(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Makes the workdir this config's; once it is set up, so that a mistake does not claim it."""
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "config.json", json.dumps(_recorded(config), indent=1))


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n")
    temporary.replace(path)


def _recorded(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What a resumed run must have in common with the interrupted one."""
    return {name: value for name, value in _flatten(config).items() if name != "workspace"}


def _flatten(config: ml_collections.ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Dotted field names to values."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
