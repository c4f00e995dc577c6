"""The prompt that the update reads once for its group: states, gradients and parts are the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nspo_jax import models
from nspo_jax.rl import batches, checks, train_step, trainer
from nspo_jax.tasks.chat_world import judge as world_judge
from tests import test_sharding
from tests.rl import micro_run, test_model_families

SAMPLES, GROUPS, PROMPT = 3, 4, 6
FAMILIES = {"llama": {}, **test_model_families.FAMILIES}


def grouped(completion, seed=0):
    """A batch of groups with ragged prompts and answers."""
    rng, rows = np.random.default_rng(seed), SAMPLES * GROUPS
    prompts = rng.integers(0, 32, (GROUPS, PROMPT)).astype(np.int32)
    mask = np.arange(PROMPT) >= rng.integers(0, PROMPT - 1, (GROUPS, 1))
    return train_step.RolloutBatch(
        prompts=np.repeat(prompts, SAMPLES, axis=0),
        prompt_mask=np.repeat(mask, SAMPLES, axis=0),
        completions=rng.integers(0, 32, (rows, completion)).astype(np.int32),
        completion_mask=np.arange(completion) < rng.integers(1, completion + 1, (rows, 1)),
        old_logprobs=rng.normal(-3.5, 0.1, (rows, completion)).astype(np.float32),
        advantages=rng.standard_normal(rows).astype(np.float32),
    )


@pytest.mark.parametrize(
    ("family", "completion"), [("llama", 1), ("llama", 4), *((name, 9) for name in FAMILIES)]
)
def test_states_and_gradients_are_those_of_whole_rows(family, completion):
    config = dataclasses.replace(
        test_model_families.LLAMA, family=family, vocab_size=32, **FAMILIES[family]
    )
    params = models.init_params(config, jax.random.key(0))
    params = jax.tree.map(lambda x: 3 * x, params)  # so that attention attends to something
    batch = grouped(completion)
    weights = np.random.default_rng(1).normal(size=batch.completions.shape).astype(np.float32)

    def total(params, samples):
        found = models.completion_logprobs(config, params, batch, 0.7, samples)
        found = jnp.where(batch.completion_mask, found, 0.0)
        return jnp.sum(weights * found), found

    whole, shared = (
        jax.jit(jax.grad(lambda params, n=n: total(params, n), has_aux=True))(params)
        for n in (1, SAMPLES)
    )
    np.testing.assert_allclose(shared[1], whole[1], atol=1e-5)
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(whole[0]))
    assert scale > 1e-3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * scale), shared[0], whole[0]
    )


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_parts_hold_whole_groups(parts):
    """The loss of a part with a prompt's rows torn apart would be another one."""
    params = models.init_params(test_sharding.CONFIG, jax.random.key(0))
    batch = grouped(4)

    def loss_of(params, rows, tokens):
        del tokens
        found = models.completion_logprobs(test_sharding.CONFIG, params, rows, 1.0, SAMPLES)
        return jnp.mean(jnp.where(rows.completion_mask, found, 0.0) * rows.advantages[:, None]), {}

    parted, whole = (
        jax.jit(train_step.gradient_in_parts(loss_of, count, SAMPLES))(params, batch)[0]
        for count in (parts, 1)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), parted, whole)


def test_minibatches_hold_whole_groups_and_all_rows():
    batch = grouped(4)
    for step in range(3):
        found = list(batches.split_minibatches(batch, 2, step, SAMPLES))
        for part in found:
            rows = part.prompts.reshape(-1, SAMPLES, PROMPT)
            assert np.all(rows == rows[:, :1])
        advantages = np.concatenate([part.advantages for part in found])
        assert sorted(advantages) == sorted(batch.advantages)


def test_a_run_learns_what_it_learns_from_whole_rows(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(world_judge.WorldJudge, "__call__", micro_run.judge)
    policies = []
    for shared in (False, True):
        workdir = tmp_path / str(shared)
        changes = {"rl.shared_prompt": shared, "rl.minibatches": 1, "rl.steps": 3}
        trainer.train(micro_run.micro(finished[0], **changes), workdir)
        policies.append(models.load_model(workdir / "policy")[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *policies)


def test_parts_that_would_tear_groups_are_refused(tmp_path):
    config = micro_run.micro(
        tmp_path, **{"rl.shared_prompt": True, "rl.minibatches": 4, "rl.samples": 8}
    )
    with pytest.raises(ValueError, match="do not divide the 6 groups that rl.shared_prompt keeps"):
        checks.check_config(config)
