"""Whole runs at the smallest scale: files, resume, kill -9, NaN, and every kind of bad input."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy

from configs import tiny
from nspo_jax import metrics, nullspace, rewards, workspace
from nspo_jax.rl import trainer

ROOT = pathlib.Path(__file__).resolve().parents[2]
MICRO = {
    "model.hidden_size": 16, "model.intermediate_size": 24, "model.num_layers": 2,
    "model.num_heads": 2, "model.num_kv_heads": 2, "pretraining.steps": 30,
    "calibration.rows": 40, "calibration.batch_size": 20, "rl.steps": 4, "rl.prompts": 4,
    "rl.samples": 2, "evaluation.prompts": 5, "evaluation.every": 2, "checkpoint.every": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def shared_workspace(tmp_path_factory):
    """A workspace with data, base model and projectors in it."""
    directory = tmp_path_factory.mktemp("workspace")
    trainer.train(micro(directory, **{"rl.steps": 0}), directory / "made")
    return directory


def micro(directory, arm="nspo", **changes):
    config = tiny.get_config(arm)
    config.update_from_flattened_dict({**MICRO, "workspace": str(directory), **changes})
    return config


def policy(workdir):
    return safetensors.numpy.load_file(workdir / "policy" / "model.safetensors")


def assert_same_policy(first, second):
    first, second = policy(first), policy(second)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        np.testing.assert_array_equal(weight, second[name], err_msg=name)


@pytest.fixture(scope="session")
def whole_run(shared_workspace, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return trainer.train(micro(shared_workspace), workdir), workdir


def test_a_run_leaves_its_files_and_a_rerun_returns_at_once(shared_workspace, whole_run):
    summary, workdir = whole_run
    for name in ("config.json", "metrics.jsonl", "certificate.json", "summary.json", "policy"):
        assert (workdir / name).exists(), name
    assert list((workdir / "tensorboard").iterdir())
    assert {"unsafe", "over_refusal", "general", "families", "kl_heldout"} <= set(summary)
    assert summary["step"] == 4 and summary["protected_share"] < 1e-5
    rows = metrics.read_metrics(workdir)
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3, 4]
    assert [row["step"] for row in rows if "evaluation/unsafe" in row] == [0, 2, 4]
    assert all(row["train/logprob_gap"] < 1e-5 for row in rows if "train/loss" in row)
    started = time.monotonic()
    assert trainer.train(micro(shared_workspace), workdir) == summary
    assert time.monotonic() - started < 1


class Stopping(rewards.WorldJudge):
    """Stops the run in its third step, as Ctrl-C would."""

    calls = 0

    def __call__(self, conversations, completions):
        if len(conversations) == 8:
            Stopping.calls += 1
            if Stopping.calls == 3:
                raise KeyboardInterrupt
        return super().__call__(conversations, completions)


def test_an_interrupted_run_continues_bit_for_bit(
    shared_workspace, whole_run, tmp_path, monkeypatch
):
    config = micro(shared_workspace)
    with monkeypatch.context() as patched:
        patched.setattr(rewards, "WorldJudge", Stopping)
        with pytest.raises(KeyboardInterrupt):
            trainer.train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()
    trainer.train(config, tmp_path / "run")
    assert_same_policy(whole_run[1], tmp_path / "run")
    steps = [row["step"] for row in metrics.read_metrics(tmp_path / "run") if "train/loss" in row]
    assert steps == [1, 2, 3, 4]


def test_a_killed_run_continues_bit_for_bit(shared_workspace, whole_run, tmp_path):
    command = [
        sys.executable, "-m", "scripts.train", "--config=configs/tiny.py:nspo",
        f"--workdir={tmp_path / 'run'}", f"--config.workspace={shared_workspace}",
        *(f"--config.{name}={value}" for name, value in MICRO.items()),
    ]  # fmt: skip
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    for wait in (True, False):
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        while wait and process.poll() is None:
            if any(row["step"] >= 2 for row in metrics.read_metrics(tmp_path / "run")):
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        output = process.communicate()[0].decode()
    assert process.returncode == 0, output
    assert "in protected" in output  # the table's header
    assert_same_policy(whole_run[1], tmp_path / "run")


def test_a_nan_stops_the_run_by_name_and_saves_nothing_bad(shared_workspace, tmp_path):
    config = micro(shared_workspace, **{"optimizer.learning_rate": float("nan")})
    with pytest.raises(FloatingPointError, match=r"Step 1 .* first head/kernel"):
        trainer.train(config, tmp_path)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))


def test_another_config_in_the_workdir_is_refused_with_the_difference(shared_workspace, whole_run):
    config = micro(shared_workspace, **{"rl.steps": 9})
    with pytest.raises(ValueError, match=r"rl.steps: 4 there, 9 now"):
        trainer.train(config, whole_run[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"projection.targets": "mlp,attention"}, "joined by '\\+'"),
        ({"projection.targets": "embedding"}, "expected one or more of attention, mlp, head"),
        ({"projection.mode": "last"}, "projection.mode is 'last'"),
        ({"projection.basis": "zero"}, "projection.basis is 'zero'"),
        ({"projection.untargeted": "drop"}, "projection.untargeted is 'drop'"),
        ({"calibration.rank_rule": "energy"}, "rank rule is 'energy'"),
        ({"task": "chess"}, "task is 'chess'"),
        ({"data.prompt_length": 5}, "longer than data.prompt_length=5"),
        ({"data.completion_length": 3}, "longer than data.completion_length=3"),
        ({"data.benign_fraction": 1.5}, "data.benign_fraction is 1.5"),
        ({"rl.minibatches": 3}, "rl.minibatches is 3, which does not divide the 8"),
        ({"rl.samples": 1}, "rl.samples is 1; expected at least 2"),
        ({"rl.prompts": 0}, "rl.prompts is 0"),
        ({"mesh.fsdp": 3}, "does not fit 1 devices"),
        ({"model.path": "/nowhere"}, "/nowhere"),
    ],
)
def test_bad_configs_fail_by_name_before_anything_is_compiled(
    shared_workspace, tmp_path, monkeypatch, changes, message
):
    monkeypatch.setattr(trainer.rollout, "rollout", None)  # reaching a rollout would be a TypeError
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        trainer.train(micro(shared_workspace, **changes), tmp_path)


def test_a_batch_that_does_not_divide_the_mesh_is_named(shared_workspace, tmp_path):
    script = (
        "from tests.rl import test_trainer as t; from nspo_jax.rl import trainer; "
        f"trainer.train(t.micro({str(shared_workspace)!r}), {str(tmp_path)!r})"
    )
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert "The RL batch of prompts is 4 rows, which does not divide" in result.stderr


def test_a_truncated_base_and_foreign_projectors_are_named(shared_workspace, tmp_path):
    copy = tmp_path / "workspace"
    shutil.copytree(shared_workspace, copy)
    base = copy / "seed_0" / "base" / "model.safetensors"
    weights = safetensors.numpy.load_file(base)
    blob = base.read_bytes()
    base.write_bytes(blob[: len(blob) // 2])
    with pytest.raises(ValueError, match="model.safetensors"):
        trainer.train(micro(copy), tmp_path / "truncated")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    safetensors.numpy.save_file(weights, base, {"format": "pt"})
    with pytest.raises(ValueError, match="calibrated on the model .* delete it to calibrate anew"):
        trainer.train(micro(copy), tmp_path / "foreign")


class Noise(rewards.WorldJudge):
    """Rewards that the micro model, which never refuses, can differ in."""

    def __call__(self, conversations, completions):
        parity = np.array([len(text) % 2 for text in completions], np.float32)
        return -parity, {}


def test_exact_mode_moves_no_logit_in_a_whole_run_and_the_gradient_shortcut_does(
    shared_workspace, tmp_path, monkeypatch
):
    monkeypatch.setattr(rewards, "WorldJudge", Noise)
    exact = {
        "calibration.rows": 1, "calibration.rank_rule": "fixed(12)", "rl.steps": 20,
        "checkpoint.every": 20, "evaluation.every": 20,
    }  # fmt: skip
    moved = {}
    for arm in ("nspo", "nspo_coords", "project_gradient"):
        trainer.train(micro(shared_workspace, arm, **exact), tmp_path / arm)
        certificate = json.loads((tmp_path / arm / "certificate.json").read_text())
        moved[arm] = certificate["calibration"]["max_logit_change"]
        assert (certificate["protected_share"] < 1e-5) == (arm != "project_gradient")
        assert certificate["held_out"]["max_logit_change"] > 0.05  # the policy did move
    assert moved["nspo"] < 1e-2 and moved["nspo_coords"] < 1e-2
    assert moved["project_gradient"] > 0.05


def test_replay_mixes_the_stated_numbers(shared_workspace, tmp_path):
    config = micro(shared_workspace, "nspo_replay", **{"rl.steps": 1, "rl.minibatches": 2})
    work = workspace.open_workspace(config, trainer.sharding.make_mesh())
    batch, logged = trainer.Rollouts(config, work).sample(
        work.base, trainer.role_key(0, "rollout", 0)
    )
    assert batch.prompts.shape[0] == (4 + 2) * 2
    assert np.isfinite(list(logged.values())).all()
    assert [count for _, count in work.task.parts] == [2, 2, 1, 1]
    kinds = [{row.kind for row in rows} for rows, _ in work.task.parts]
    assert kinds == [{"harmful"}, {"harmful"}, {"general"}, {"borderline"}]


def test_keys_differ_by_role_and_step():
    keys = [trainer.role_key(0, role, step) for role in trainer.ROLES for step in range(3)]
    assert len({str(trainer.jax.random.key_data(key)) for key in keys}) == 6


def test_projectors_are_calibrated_once(shared_workspace):
    config = micro(shared_workspace)
    work = workspace.open_workspace(config, trainer.sharding.make_mesh())
    first = workspace.open_projectors(config, work)
    assert isinstance(first, nullspace.Projectors)
    directory = shared_workspace / "seed_0" / "projectors" / "energy(0.05)_40_rows"
    before = (directory / "projectors.safetensors").stat().st_mtime_ns
    workspace.open_projectors(config, work)
    assert (directory / "projectors.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config=configs/tiny.py:nosuch", "The arm is 'nosuch'; expected one of base, nspo"),
        ("--config.rl.stepz=3", 'Did you mean "steps"'),
    ],
)
def test_the_command_line_answers_a_mistake_in_a_paragraph(tmp_path, flag, message):
    command = [sys.executable, "-m", "scripts.train", f"--workdir={tmp_path / 'run'}"]
    if not flag.startswith("--config="):
        command.append("--config=configs/tiny.py:nspo")
    result = subprocess.run([*command, flag], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
