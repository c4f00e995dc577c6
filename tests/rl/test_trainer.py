"""The whole run on a micro model: what it leaves, that it resumes bit for bit, what it refuses."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
from jax.experimental.compilation_cache import compilation_cache
import numpy as np
import pytest

from configs import default
from nspo_jax import evaluation, metrics, models, preemption, rewards
from nspo_jax.data import builders
from nspo_jax.rl import rollouts, trainer

ROOT = pathlib.Path(__file__).resolve().parents[2]
MICRO = {
    "model.hidden_size": 16, "model.intermediate_size": 24, "model.num_layers": 1,
    "model.num_heads": 2, "model.num_kv_heads": 1, "pretraining.steps": 20,
    "pretraining.batch_size": 16, "calibration.rows": 20, "calibration.batch_size": 10,
    "calibration.rank_rule": "fixed(6)", "optimizer.learning_rate": 1e-2, "rl.steps": 4,
    "rl.prompts": 4, "rl.samples": 4, "rl.minibatches": 2, "data.benign_fraction": 0.5,
    "data.wrapped_fraction": 0.5, "evaluation.every": 3, "evaluation.prompts": 5,
    "checkpoint.every": 2,
}  # fmt: skip


def micro(workspace, **changes):
    config = default.get_config()
    config.update_from_flattened_dict({**MICRO, **changes, "workspace": str(workspace)})
    return config


@pytest.fixture(scope="module", autouse=True)
def compile_cache(tmp_path_factory):
    """Runs that differ in their data alone share what they compile."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    directory = str(tmp_path_factory.mktemp("jax_cache"))
    for name, value in zip(names, (directory, 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield directory
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def judge(self, conversations, completions):
    """Odd numbers of words are bad: a micro model never satisfies the world's judge, and where all
    rewards are the same nothing is learned and every resume is right."""
    odd = np.array([len(text.split()) % 2 for text in completions], np.float32)
    return -odd, {"odd": odd}


@pytest.fixture(scope="module", autouse=True)
def another_judge():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards.WorldJudge, "__call__", judge)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workspace, workdir, summary) of an uninterrupted run, which made the base model too."""
    workspace = tmp_path_factory.mktemp("workspace")
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workspace, workdir, trainer.train(micro(workspace), workdir)


@pytest.fixture
def workspace(finished, tmp_path):
    """A copy of the workspace, to be damaged."""
    return shutil.copytree(finished[0], tmp_path / "workspace")


def stop_at(monkeypatch, sample, error):
    """Makes the rollout number `sample` raise; the later ones work again."""
    original, calls = rollouts.Rollouts.sample, []

    def sampling(self, *arguments):
        calls.append(arguments)
        if len(calls) == sample:
            raise error
        return original(self, *arguments)

    monkeypatch.setattr(rollouts.Rollouts, "sample", sampling)


def logged(workdir):
    return [
        {name: value for name, value in row.items() if not name.startswith("speed/")}
        for row in metrics.read_metrics(workdir)
    ]


def assert_same_run(workdir, whole):
    """Weights bit for bit, and every logged number that does not depend on the machine."""
    for name in ("policy/model.safetensors", "certificate.json"):
        assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
    assert logged(workdir) == logged(whole)
    drop = lambda path: {**json.loads(path.read_text()), "seconds": None}  # noqa: E731
    assert drop(workdir / "summary.json") == drop(whole / "summary.json")


# -------------------------------------------------------------------------------------- a run


def test_a_run_leaves_its_files(finished):
    workspace, workdir, summary = finished
    assert {path.name for path in workdir.iterdir()} == {
        "config.json", "metrics.jsonl", "tensorboard", "checkpoints", "certificate.json",
        "policy", "summary.json",
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
    environment = {
        **os.environ, "JAX_COMPILATION_CACHE_DIR": compile_cache, "PYTHONPATH": str(ROOT),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, __file__, str(workspace), str(tmp_path / "run")], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while child.poll() is None and not (tmp_path / "run" / "checkpoints" / "2").exists():
            time.sleep(0.01)
    finally:
        child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, "the run ended before it could be killed"
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


@pytest.mark.parametrize("rate", [float("nan"), 1e30])
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


def test_sigterm_saves_and_the_same_command_continues(finished, tmp_path, monkeypatch):
    """kill's own signal, in the middle of the second step: not at a checkpoint."""
    workspace, whole, _ = finished
    with monkeypatch.context() as patch:
        original, calls = rollouts.Rollouts.sample, []

        def sampling(self, *arguments):
            calls.append(arguments)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *arguments)

        patch.setattr(rollouts.Rollouts, "sample", sampling)
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(preemption.PreemptedError, match="stopped with step 3 saved"):
            trainer.train(micro(workspace), tmp_path / "run")
        assert signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "run" / "checkpoints" / "3").exists()
    trainer.train(micro(workspace), tmp_path / "run")
    assert_same_run(tmp_path / "run", whole)


def test_another_config_continues_a_run_when_it_is_allowed_to(finished, tmp_path, caplog):
    """Also a finished one, whose summary is then no longer true."""
    shutil.copytree(finished[1], tmp_path / "run")
    config = micro(finished[0], **{"rl.steps": 5})
    refuse(config, tmp_path / "run", "rl.steps: 4 there, 5 now", "--allow_config_change")
    with caplog.at_level(logging.WARNING, "nspo_jax"):
        summary = trainer.train(config, tmp_path / "run", allow_config_change=True)
    assert "rl.steps: 4 there, 5 now" in caplog.text
    assert summary["step"] == 5 and trainer.train(config, tmp_path / "run") == summary
    assert [row["step"] for row in logged(tmp_path / "run") if "train/loss" in row] == [
        *range(1, 6)
    ]


def test_another_dataset_does_not_continue_a_run(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[1], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    load = builders.load_split

    def changed(directory, seed, split):
        rows = load(directory, seed, split)
        if split == "train":
            rows[0] = dataclasses.replace(rows[0], prompt=rows[1].prompt)
        return rows

    monkeypatch.setattr(builders, "load_split", changed)
    with pytest.raises(ValueError, match="trained on other prompts: their digest is .*--workdir"):
        trainer.train(micro(finished[0]), tmp_path / "run")


def test_a_full_disk_names_the_last_good_checkpoint(finished, tmp_path, monkeypatch):
    original = metrics.MetricsWriter.write

    def write(self, step, values):
        if step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, step, values)

    monkeypatch.setattr(metrics.MetricsWriter, "write", write)
    with pytest.raises(
        OSError, match="(?s)No space.*last good checkpoint is step 2 of .*make room"
    ):
        trainer.train(micro(finished[0]), tmp_path / "run")


def test_speed_is_logged_and_steps_are_traced(finished, tmp_path):
    trainer.train(micro(finished[0]), tmp_path / "run", profile=(1, 2))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    rows = metrics.read_metrics(tmp_path / "run")
    phases = ("rollout_seconds", "reward_seconds", "update_seconds")
    rates = ("rollout_tokens_per_second", "update_tokens_per_second")
    steps = [row for row in rows if "train/loss" in row]
    for name in (*phases, *rates):
        assert all(row[f"speed/{name}"] > 0 for row in steps), name
    for row in steps:  # of 6 prompts with 4 completions each
        sampled = row["speed/rollout_tokens_per_second"] * row["speed/rollout_seconds"]
        assert sampled == pytest.approx(24 * row["train/completion_length"])
    scored = [row for row in rows if "evaluation/unsafe" in row]
    assert all(row["speed/evaluation_seconds"] > 0 for row in scored)


# -------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def nothing_compiles():
    compiled = []

    def listen(event, duration, **_):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax._src.monitoring.unregister_event_duration_listener(listen)
    assert not compiled


def refuse(config, workdir, *words, error=ValueError):
    """The run is refused before it compiles, in a paragraph that holds all of `words`."""
    with nothing_compiles(), pytest.raises(error) as caught:
        trainer.train(config, workdir)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert len(message) < 900
    return message


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
        ("projection.period", 0, ["projection.period is 0", "at least 1"]),
        ("calibration.rank_rule", "energy(2)", ["'energy(2)'", "(0, 1)"]),
        ("calibration.rank_rule", "top(3)", ["'top(3)'", "relative_max(ALPHA)"]),
        ("calibration.first_token", "skip", ["'skip'", "keep, drop, separate"]),
        ("calibration.statistics", "outputs", ["'outputs'", "inputs, gradients"]),
        ("calibration.completions", "mine", ["'mine'", "given, generated"]),
        ("data.benign_fraction", -0.5, ["data.benign_fraction is -0.5", "[0, 1]"]),
        ("data.wrapped_fraction", 1.5, ["data.wrapped_fraction is 1.5", "[0, 1]"]),
        ("data.prompt_length", 7, ["data.prompt_length=7 tokens", "--config.data.prompt_length"]),
        ("data.completion_length", 4, ["data.completion_length=4", "the longest has"]),
        ("rl.minibatches", 5, ["rl.minibatches is 5", "does not divide the 24"]),
        ("rl.samples", 1, ["rl.samples is 1", "at least 2"]),
        ("rl.prompts", 0, ["rl.prompts is 0", "at least 1"]),
        ("rl.temperature", 0.0, ["rl.temperature is 0.0", "positive"]),
        ("evaluation.temperature", -1.0, ["evaluation.temperature is -1.0", "expected 0"]),
        ("evaluation.prompts", 0, ["evaluation.prompts is 0", "at least 1"]),
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


def test_damaged_projectors(workspace, tmp_path):
    (path,) = workspace.rglob("projectors.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    refuse(micro(workspace), tmp_path / "run", str(path.parent), "damaged", "delete the directory")


def slow_run(workspace, workdir):
    """For the test that kills it: the steps after the second one take a while."""
    original, calls = rollouts.Rollouts.sample, []

    def sampling(self, *arguments):
        calls.append(arguments)
        if len(calls) > 3:
            time.sleep(60)
        return original(self, *arguments)

    rollouts.Rollouts.sample = sampling
    rewards.WorldJudge.__call__ = judge
    trainer.train(micro(workspace), workdir)


if __name__ == "__main__":
    slow_run(*sys.argv[1:])
