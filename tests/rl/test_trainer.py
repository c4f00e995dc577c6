"""The whole run on a micro model: what it leaves, that it resumes bit for bit, what it refuses."""

import json
import re
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from nspo_jax import evaluation, metrics, models
from nspo_jax.rl import batches, trainer
from nspo_jax.tasks.chat_world import judge as world_judge
from tests import forks
from tests.rl.micro_run import assert_same_run, judge, micro, refuse, stop_at

pytestmark = pytest.mark.usefixtures("compile_cache", "another_judge")


# -------------------------------------------------------------------------------------- a run


def test_a_run_leaves_its_files(finished):
    workspace, workdir, summary = finished
    assert {path.name for path in workdir.iterdir()} == {
        "config.json", "metrics.jsonl", "tensorboard", "checkpoints", "certificate.json",
        "policy", "delta", "summary.json",
    }  # fmt: skip
    assert json.loads((workdir / "summary.json").read_text()) == summary
    assert (
        summary["step"] == 4 and 0 <= summary["unsafe"] <= 1 and summary["protected_share"] < 1e-5
    )
    rows = metrics.read_metrics(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
    assert all(row["train/gradient_norm"] > 0 for row in rows if "train/loss" in row)
    assert [row["step"] for row in rows if "evaluation/unsafe" in row] == [0, 3, 4]
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "4"]


def test_the_policy_that_is_saved_is_the_trained_one(finished):
    workspace, workdir, _ = finished
    config, policy = models.load_model(workdir / "policy")
    base_config, base = models.load_model(workspace / "seed_0" / "base")
    assert config == base_config
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), policy, base)
    assert moved["head"]["kernel"] and moved["layers"]["mlp"]["up"]["kernel"]
    assert not moved["embed"]["embedding"] and not moved["norm"]["scale"]  # frozen


def test_a_run_in_parts_is_the_run_at_once(finished, tmp_path):
    """The same completions, drawn by rows' own keys; the same update to rounding."""
    workspace_path, whole, summary = finished
    config = micro(
        workspace_path,
        **{"rl.microbatches": 3, "rl.rollout_batches": 3, "evaluation.batches": 1},
    )
    found = trainer.train(config, tmp_path / "parts")
    rows = zip(metrics.read_metrics(tmp_path / "parts"), metrics.read_metrics(whole), strict=True)
    for part, one in rows:
        for name, value in one.items():
            if not name.startswith("speed/"):
                assert part[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name
    assert found["unsafe"] == pytest.approx(summary["unsafe"], abs=0.2)


def test_a_finished_run_returns_at_once(finished, monkeypatch):
    workspace, workdir, summary = finished
    monkeypatch.setattr(trainer.sharding, "make_mesh", lambda **_: pytest.fail("it started"))
    assert trainer.train(micro(workspace), workdir) == summary


def test_a_run_depends_on_its_config_alone(finished, tmp_path):
    workspace, workdir, _ = finished
    trainer.train(micro(workspace), tmp_path / "again")
    assert_same_run(tmp_path / "again", workdir)


# ------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("sample", [1, 4], ids=["before any checkpoint", "after one"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the judge is down")])
def test_an_interrupted_run_continues_bit_for_bit(finished, tmp_path, monkeypatch, sample, error):
    workspace, whole, _ = finished
    stop_at(monkeypatch, sample, error)
    with pytest.raises(type(error)):
        trainer.train(micro(workspace), tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    trainer.train(micro(workspace), tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_killed_run_continues_bit_for_bit(finished, tmp_path, compile_cache):
    workspace, whole, _ = finished
    child = forks.start(
        slow_run, workspace, tmp_path / "run",
        JAX_COMPILATION_CACHE_DIR=compile_cache, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )  # fmt: skip
    try:
        while child.is_alive() and not (tmp_path / "run" / "checkpoints" / "2").exists():
            time.sleep(0.01)
    finally:
        child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (tmp_path / "run" / "policy").exists()
    trainer.train(micro(workspace), tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_kill_after_the_last_step_costs_only_the_report(finished, tmp_path, monkeypatch):
    workspace, whole, _ = finished
    shutil.copytree(whole, tmp_path / "run")
    for name in ("summary.json", "certificate.json"):
        (tmp_path / "run" / name).unlink()
    stop_at(monkeypatch, 1, AssertionError("it trained on"))
    trainer.train(micro(workspace), tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_a_run_stops_at_an_evaluation_alone_resumed_or_not(finished, tmp_path, monkeypatch):
    """A resumed run knows a score that the uninterrupted one did not measure."""
    original, calls = evaluation.Evaluator.__call__, []

    def scored(self, params, key):
        calls.append(key)
        return {**original(self, params, key), "unsafe": 1.0 if len(calls) == 1 else 0.1}

    monkeypatch.setattr(evaluation.Evaluator, "__call__", scored)
    stop_at(monkeypatch, 3, KeyboardInterrupt())
    config = micro(finished[0], **{"rl.stop_unsafe": 0.5})
    with pytest.raises(KeyboardInterrupt):
        trainer.train(config, tmp_path / "run")
    assert trainer.train(config, tmp_path / "run")["step"] == 3  # not 2, where it resumed


@pytest.mark.parametrize("rate", [1e20, 1e30])
def test_numbers_that_are_not_finite_stop_the_run_and_are_not_saved(finished, tmp_path, rate):
    config = micro(finished[0], **{"optimizer.learning_rate": rate, "checkpoint.every": 1})
    messages = []
    for _ in range(2):  # the same command once more says the same
        with pytest.raises(FloatingPointError) as error:
            trainer.train(config, tmp_path / "run")
        messages.append(str(error.value))
    message = messages[0]
    assert message == messages[1]
    assert re.match(r"Step \d made \d+ tensors NaN or inf, first (gradient of )?\w+/", message)
    assert "/kernel" in message and "Lower optimizer.learning_rate" in message
    failed = int(message.split()[1])
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert all(step < failed for step in saved)
    good = f"good checkpoint is step {failed - 1}" if failed > 1 else "No checkpoint is saved yet"
    assert good in message


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("task", "chess", ["task is 'chess'", "chat_world"]),
        ("task", "stories", ["model.path is empty", "--config.model.path"]),
        ("projection.targets", "mlp+embedding", ["'mlp+embedding'", "attention, mlp, head"]),
        ("projection.targets", "", ["projection.targets is ''", "mlp+attention"]),
        ("projection.mode", "last", ["projection.mode is 'last'", "none, update"]),
        ("projection.untargeted", "frozen", ["untargeted is 'frozen'", "freeze, train"]),
        ("projection.basis", "full", ["basis is 'full'", "null_space", "random"]),
        ("projection.period", 0, ["projection.period is 0", "a whole number (int) from 1"]),
        ("calibration.rank_rule", "energy(2)", ["'energy(2)'", "(0, 1)"]),
        ("calibration.rank_rule", "top(3)", ["'top(3)'", "relative_max(ALPHA)"]),
        ("calibration.first_token", "skip", ["'skip'", "keep, drop, separate"]),
        ("calibration.statistics", "outputs", ["'outputs'", "inputs, gradients"]),
        ("calibration.completions", "mine", ["'mine'", "given, generated"]),
        (
            "data.benign_fraction",
            -0.5,
            ["data.benign_fraction is -0.5", "at most 1"],
        ),
        (
            "data.wrapped_fraction",
            1.5,
            ["data.wrapped_fraction is 1.5", "at most 1"],
        ),
        ("data.prompt_length", 7, ["data.prompt_length=7 tokens", "--config.data.prompt_length"]),
        ("data.completion_length", 51, ["14 and data.completion_length 51", "64 positions"]),
        ("data.completion_length", 4, ["data.completion_length=4", "the longest has"]),
        ("rl.minibatches", 5, ["rl.minibatches is 5", "do not divide the 24"]),
        ("rl.rollout_batches", 4, ["rl.rollout_batches is 4", "does not divide the 6"]),
        ("rl.samples", 1, ["rl.samples is 1", "a whole number (int) from 2"]),
        ("rl.prompts", 0, ["rl.prompts is 0", "a whole number (int) from 1"]),
        ("rl.temperature", 0.0, ["rl.temperature is 0.0", "above 0"]),
        ("rl.loss", "ppo", ["rl.loss is 'ppo'", "grpo, gspo"]),
        ("rl.advantage", "gae", ["rl.advantage is 'gae'", "grpo, dr_grpo, rloo"]),
        ("rl.aggregation", "mean", ["is 'mean'", "token_mean, sequence_sum, constant"]),
        ("rl.kl_estimator", "k4", ["rl.kl_estimator is 'k4'", "k1, k2, k3"]),
        ("rl.dual_clip", 0.5, ["rl.dual_clip is 0.5", "above 1"]),
        ("rl.importance_cap", -1.0, ["rl.importance_cap is -1.0", "of at least 0"]),
        ("rl.importance_cap", 2.0, ["rl.minibatches 2", "Set rl.minibatches=1"]),
        ("evaluation.temperature", -1.0, ["evaluation.temperature is -1.0", "of at least 0"]),
        ("evaluation.prompts", 0, ["evaluation.prompts is 0", "a whole number (int) from 1"]),
        ("mesh.fsdp", 64, ["fsdp=64", "config.mesh"]),
        ("model.path", "/nowhere", ["/nowhere", "does not exist"]),
        ("model.num_layers", 2, ["model.num_layers is 1 there and 2 now", "workspace"]),
        ("pretraining.steps", 30, ["pretraining.steps is 20 there and 30 now", "workspace"]),
    ],
)
def test_a_value_that_cannot_work(finished, tmp_path, field, value, words):
    config = micro(finished[0], **{field: value})
    refuse(config, tmp_path / "run", *words, error=(ValueError, FileNotFoundError))
    assert not (tmp_path / "run").exists()  # the corrected command may use the same workdir


def test_a_period_that_the_mode_does_not_have(finished, tmp_path):
    changes = {"projection.period": 5, "projection.mode": "gradient"}
    refuse(micro(finished[0], **changes), tmp_path / "run", "projection.period is 5", "'update'")


def test_checkpoints_to_keep_that_are_never_saved(finished, tmp_path):
    config = micro(finished[0], **{"checkpoint.keep_every": 3})
    refuse(config, tmp_path / "run", "checkpoint.keep_every is 3", "every 2 steps")


def test_a_mistake_does_not_cost_a_pretraining(workspace, tmp_path):
    shutil.rmtree(workspace / "seed_0")
    mistakes = {"projection.targets": "mpl", "task": "chess", "data.prompt_length": 9}
    for field, value in mistakes.items():
        refuse(micro(workspace, **{field: value}), tmp_path / "run", str(value))
    assert not (workspace / "seed_0" / "base").exists()


def test_a_batch_that_does_not_divide_the_mesh(finished, tmp_path, monkeypatch):
    mesh = jax.sharding.AbstractMesh((5, 1, 1), trainer.sharding.AXES)
    monkeypatch.setattr(trainer.sharding, "make_mesh", lambda **_: mesh)
    refuse(micro(finished[0]), tmp_path / "run", "RL batch of prompts is 6 rows", "multiple of 5")


def test_a_workdir_of_another_config_lists_what_changed(finished):
    workspace, workdir, _ = finished
    config = micro(workspace, **{"rl.clip": 0.3, "seed": 1})
    refuse(config, workdir, "rl.clip: 0.2 there, 0.3 now", "seed: 0 there, 1 now", "--workdir")


def test_a_truncated_base_model(workspace, tmp_path):
    path = workspace / "seed_0" / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refuse(micro(workspace), tmp_path / "run", str(path), "not a whole safetensors file")


def test_a_base_model_without_its_tokenizer(workspace, tmp_path):
    for path in (workspace / "seed_0" / "base").glob("tokenizer*"):
        path.unlink()
    refuse(micro(workspace), tmp_path / "run", "No tokenizer", "tokenizer.json",
           error=FileNotFoundError)  # fmt: skip


def test_projectors_of_another_model(workspace, tmp_path):
    base = workspace / "seed_0" / "base"
    config, params = models.load_model(base)
    params["norm"]["scale"] = np.asarray(params["norm"]["scale"]) * 2
    models.save_model(tmp_path / "other", config, params)
    shutil.copy(tmp_path / "other" / "model.safetensors", base)
    refuse(micro(workspace), tmp_path / "run", "calibrated on the model", "delete it", "projectors")


def test_projectors_of_other_text(workspace, tmp_path):
    (document,) = workspace.rglob("projectors.json")
    content = json.loads(document.read_text())
    content["provenance"]["data"] = "0123456789abcdef"
    document.write_text(json.dumps(content))
    refuse(micro(workspace), tmp_path / "run", "calibrated on other text", str(document.parent))


def test_a_field_that_changes_the_calibration_text_is_named(workspace, tmp_path):
    refuse(
        micro(workspace, **{"data.completion_length": 10}), tmp_path / "run",
        "calibrated on other text", "data.completion_length is 9 there and 10 now.",
    )  # fmt: skip


def test_damaged_projectors(workspace, tmp_path):
    (path,) = workspace.rglob("projectors.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    refuse(micro(workspace), tmp_path / "run", str(path.parent), "damaged", "delete the directory")


def slow_run(workspace, workdir):
    """For the test that kills it: the steps after the second one take a while."""
    original, calls = batches.RolloutBatches.sample, []

    def sampling(self, *arguments):
        calls.append(arguments)
        if len(calls) > 3:
            time.sleep(60)
        return original(self, *arguments)

    batches.RolloutBatches.sample = sampling
    world_judge.WorldJudge.__call__ = judge
    trainer.train(micro(workspace), workdir)
