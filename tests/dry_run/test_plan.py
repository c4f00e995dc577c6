"""The dry run: its memory against a real run's, what it refuses, and the parts that save memory."""

import contextlib
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import llm
from nspo_jax import base_model, chips, models, sharding
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.dry_run import plan, report
from nspo_jax.nullspace import projection
from nspo_jax.rl import batches, train_step, trainer
from nspo_jax.rl.algorithms import policy_gradient
from nspo_jax.tasks.chat_world import judge as world_judge
from tests import command_lines, compiling, forks, runs
from tests.rl import micro_run

# wide enough for weights to outweigh prompts and counters
WIDE = {
    "model.hidden_size": 128, "model.intermediate_size": 256, "model.num_layers": 2,
    "model.num_heads": 4, "model.num_kv_heads": 4, "calibration.rank_rule": "fixed(40)",
    "rl.prompts": 8, "data.benign_fraction": 0.0, "rl.steps": 1, "rl.minibatches": 1,
    "pretraining.steps": 2, "mesh.data": 2, "mesh.fsdp": 4, "calibration.batch_size": 20,
}  # fmt: skip


class Measured(Exception):  # noqa: N818
    """Ends a run whose update would come next."""


def measure(directory):
    """Run on eight devices: a real run's bytes on each device before an update, and its plan."""
    config = micro_run.micro(directory, **WIDE)
    held, make = [], policy_gradient.PolicyGradient.make_step

    def make_step(*arguments):
        def update(*operands):
            bytes_on = dict.fromkeys(jax.devices(), 0)
            for array in jax.live_arrays():
                for shard in array.addressable_shards:
                    bytes_on[shard.device] += shard.data.nbytes
            held.append(max(bytes_on.values()))
            raise Measured

        return update

    policy_gradient.PolicyGradient.make_step = make_step
    world_judge.WorldJudge.__call__ = micro_run.judge
    with contextlib.suppress(Measured):
        trainer.train(config, f"{directory}/run")
    policy_gradient.PolicyGradient.make_step = make
    model = models.load_config(base_model.seed_directory(config) / "base")
    programs = {}
    for name in ("_rollout", "_calibration"):
        make = getattr(plan, name)

        def keep(*arguments, name=name, make=make):
            programs[name] = make(*arguments)
            return programs[name]

        setattr(plan, name, keep)
    found = plan.make_plan(config, model, sharding.mesh_from_config(config))
    # only the update's are looked at: the other programs stay those of the first plan
    longer = micro_run.micro(directory, **WIDE, **{"data.completion_length": 45})
    for name, program in programs.items():
        setattr(plan, name, lambda *_, program=program: program)
    longer = plan.make_plan(longer, model, sharding.mesh_from_config(config)).collectives
    return {"longer": longer, "held": held, "plan": dataclasses.asdict(found), "peak": found.peak}


def test_a_plan_s_memory_is_a_real_run_s(tmp_path):
    # the flags decide which code is made, not what is held or sent
    found = forks.call(measure, tmp_path, XLA_FLAGS=compiling.xla_flags(8))
    resident = sum(found["plan"]["resident"].values())
    assert len(found["held"]) == 1
    assert abs(found["held"][0] / resident - 1) < 0.15, (found["held"], resident)
    assert found["peak"] > resident and found["plan"]["devices"] == 8
    assert found["plan"]["assumptions"] == ()  # the rank is fixed
    # sharded weights are gathered, and their gradients summed; no activation travels
    update = found["plan"]["collectives"]["update"]
    trained = 4 * found["plan"]["trained"]
    # and five times the tokens gather hardly more: no activations
    assert found["longer"]["update"]["all-gather"] < 1.02 * update["all-gather"]
    assert 0 < update["all-gather"] < 8 * trained and 0 < update["all-reduce"] < 4 * trained


@functools.cache  # it compiles
def tiny_plan(**changes):
    """Of a small Qwen on one device."""
    config = runs.made(llm.get_config("qwen2_5_0_5b"), {
        "mesh.fsdp": 1, "data.prompt_length": 8, "data.completion_length": 8, "rl.prompts": 4,
        "evaluation.prompts": 1, "calibration.rows": 4, **changes,
    })  # fmt: skip
    model = dataclasses.replace(models.PRESETS["qwen2_5_0_5b"], num_layers=2)
    one = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)
    return config, model, plan.make_plan(config, model, one, rank_share=0.25)


def test_a_plan_counts_what_the_config_says():
    config, model, found = tiny_plan()
    leaves = projection.leaves_by_path(models.abstract_params(model))
    trained = sum(x.size for path, x in leaves.items() if path.endswith("/kernel"))
    assert found.trained == trained and found.tokens == 4 * 5 * 16
    assert found.resident["trained weights"] == 4 * trained
    assert found.resident["optimizer moments"] == pytest.approx(8 * trained, abs=100)
    columns = {896: 2 * 3 * 224, 4864: 2 * 1216}  # a quarter; three sites of 896 in two layers
    assert found.resident["projector bases"] == 4 * sum(n * k for n, k in columns.items())
    assert found.cache == 4 * 5 * 16 * 2 * 2 * 2 * 64 * 2  # rows, slots, k and v, layers, ...
    assert found.assumptions == ("relative_max(0.0005) protects 0.25 of the directions",)
    assert models.flops_per_token(model, 0) == 2 * (trained + leaves["embed/embedding"].size)
    text = report.format_plan(found, config, None)
    assert "trained weights" in text and "assumed: relative_max(0.0005)" in text
    assert all(f"{name} (" in text for name in chips.CHIPS)


def test_less_at_once_needs_less():
    whole = tiny_plan()[2]
    parts = tiny_plan(**{
        "rl.minibatches": 1, "rl.microbatches": 4, "rl.rollout_batches": 4,
        "model.frozen_dtype": "bfloat16",
    })[2]  # fmt: skip
    assert parts.cache == whole.cache / 4
    assert parts.phases["rollout"] < whole.phases["rollout"]
    assert parts.resident["frozen weights"] < 0.6 * whole.resident["frozen weights"]


def test_pairs_sample_nothing_and_need_the_base():
    pairs = {"rl.algorithm": "dpo", "reward_training.dataset": "pku_safe_rlhf"}
    _, model, found = tiny_plan(**pairs)
    _, _, plain = tiny_plan()
    assert set(found.phases) == {"evaluation", "update"} and set(found.flops) == {"update"}
    assert found.resident == plain.resident  # the base is the frozen side of the change
    assert found.flops["update"] == pytest.approx(plain.flops["update"] * 5 / 4)
    _, _, apart = tiny_plan(**pairs, **{"optimizer.master": "weights"})
    leaves = jax.tree.leaves(models.abstract_params(model))
    assert apart.resident["reference weights"] == sum(4 * leaf.size for leaf in leaves)


def test_critics_are_counted_with_their_moments():
    terms = {"rl.algorithm": "ppo_lagrangian", "rewards.terms": "reward_model+cost_model"}
    _, model, found = tiny_plan(**terms)
    critic = models.abstract_params(dataclasses.replace(model, head="scalar"))
    size = 2 * 3 * sum(4 * leaf.size for leaf in jax.tree.leaves(critic))
    assert found.resident["critics, their moments"] == pytest.approx(size, rel=1e-4)
    assert "the cost_model is as large as the base model" in found.assumptions
    assert len(found.assumptions) == len(set(found.assumptions))
    assert {"rollout", "update", "evaluation"} == set(found.phases)


@pytest.mark.parametrize(
    ("phases", "resident", "dtype", "words"),
    [
        ({"rollout": 90, "update": 1, "evaluation": 1}, 1, "float32", "rl.rollout_batches above 1"),
        ({"rollout": 1, "update": 90, "evaluation": 1}, 1, "float32", "rl.microbatches above 1"),
        ({"rollout": 1, "update": 1, "evaluation": 90}, 1, "float32", "evaluation.batches above"),
        ({"rollout": 1, "update": 1, "evaluation": 1}, 90, "float32", "frozen_dtype=bfloat16"),
        ({"rollout": 1, "update": 1, "evaluation": 1}, 90, "bfloat16", "more devices on mesh.fsdp"),
    ],
)
def test_a_plan_that_does_not_fit_names_the_first_field(phases, resident, dtype, words):
    config = runs.made(llm.get_config("qwen2_5_7b"), {"model.frozen_dtype": dtype})
    found = plan.Plan(
        resident={"frozen weights": resident * plan.GIB},
        phases={name: size * plan.GIB for name, size in phases.items()},
        calibration=0, cache=0, flops={}, collectives={}, tokens=1, parameters=1, trained=1,
        devices=8, assumptions=(),
    )  # fmt: skip
    chip = chips.find_chip("h100")
    assert not found.fits(chip) and found.fits(chips.find_chip("b200"))
    assert words in report.first_change(found, config, chip)


def run(*flags):
    # a program out of the cache does not know its memory
    return command_lines.run("train", "--dry_run", *flags, JAX_COMPILATION_CACHE_DIR="")


def test_the_command_needs_neither_weights_nor_an_accelerator():
    done = run(
        "--config=configs/llm.py:qwen2_5_0_5b", "--config.mesh.fsdp=4", "--chip=h100",
        "--config.data.prompt_length=8", "--config.data.completion_length=8",
        "--config.rl.prompts=8", "--config.evaluation.prompts=2", "--config.calibration.rows=8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "0.49B parameters, 0.36B trained; 4 devices; 640 tokens a step" in done.stdout
    assert "fits h100 (74 of 80 GiB)" in done.stdout and "all-gather" in done.stdout


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config=configs/llm.py:qwen2_5_0_5b"], "mesh.fsdp is -1.*--devices=N"),
        (["--config=configs/llm.py:qwen2_5_0_5b", "--config.mesh.fsdp=7"], "320 rows.*fsdp=7"),
        (["--config=configs/tiny.py:nspo", "--devices=1"], "needs to know the model"),
        (["--config=configs/llm.py:qwen2_5_7b,tpu9"], "hardware is 'tpu9'; expected one of h100x8"),
    ],
)
def test_a_plan_that_cannot_be_made_is_explained(flags, words):
    done = run(*flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert re.search(words, done.stderr), done.stderr


def test_utilisation_counts_real_tokens_and_three_passes(monkeypatch):
    model = models.PRESETS["qwen2_5_0_5b"]
    mask = np.arange(6) < np.array([[2], [6]])
    batch = train_step.RolloutBatch(None, mask, None, mask, None, np.zeros(2))
    seconds = {"rollout": 2.0, "update": 0.5}
    plain = batches.throughput(model, batch, seconds)
    assert plain["speed/rollout_tokens_per_second"] == 4.0
    assert plain["speed/update_tokens_per_second"] == 32.0
    assert "speed/update_flop_utilisation" not in plain  # no one knows what a CPU can do
    monkeypatch.setattr(chips, "chip_of", lambda kind: chips.Chip(1, 1e12))
    found = batches.throughput(model, batch, seconds)["speed/update_flop_utilisation"]
    flops = 3 * 16 * models.flops_per_token(model, 4)
    assert found == pytest.approx(flops / (0.5 * jax.device_count() * 1e12))


# ------------------------------------------------------------------------------ less at once


def test_frozen_matrices_are_held_in_bfloat16_where_that_loses_nothing():
    exact = jnp.asarray([[1.0, 0.5], [3.0, -2.0]])
    tree = {"embed": {"embedding": exact}, "layers": {"norm": {"scale": jnp.ones((3, 2)) / 3}}}
    held = optimizer_lib.freeze(tree, "bfloat16")
    assert held["embed"]["embedding"].dtype == jnp.bfloat16
    assert held["layers"]["norm"]["scale"].dtype == jnp.float32  # vectors, stacked
    np.testing.assert_array_equal(held["embed"]["embedding"].astype(jnp.float32), exact)
    with pytest.raises(ValueError, match="would round the base model's embed/embedding.*float32"):
        optimizer_lib.freeze({"embed": {"embedding": exact / 3}}, "bfloat16")
    assert optimizer_lib.freeze(tree, "float32")["embed"]["embedding"] is exact
