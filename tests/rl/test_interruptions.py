"""Preemption, other configs and data, full disks: a run stops well and continues, or says why."""

import dataclasses
import errno
import json
import logging
import os
import shutil
import signal
import sys

import pytest
import wandb

from nspo_jax import metrics, preemption, run_directory
from nspo_jax.rl import batches, trainer
from nspo_jax.tasks.chat_world import dataset
from tests import wandb_server
from tests.rl.micro_run import assert_same_run, logged, micro, refuse

pytestmark = pytest.mark.usefixtures("compile_cache", "another_judge")


def test_sigterm_saves_and_the_same_command_continues(finished, tmp_path, monkeypatch):
    """kill's own signal, in the middle of the second step: not at a checkpoint."""
    workspace, whole, _ = finished
    with monkeypatch.context() as patch:
        original, calls = batches.RolloutBatches.sample, []

        def sampling(self, *arguments):
            calls.append(arguments)
            if len(calls) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, *arguments)

        patch.setattr(batches.RolloutBatches, "sample", sampling)
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


def test_where_a_judge_is_and_how_long_it_may_take_is_no_other_run(finished):
    changes = {"rewards.judge.url": "http://another/v1", "rewards.judge.timeout": 5.0}
    assert run_directory.resumes_finished(micro(finished[0], **changes), finished[1])
    with pytest.raises(ValueError, match="rewards.judge.model: '' there, 'b' now"):
        run_directory.resumes_finished(
            micro(finished[0], **{"rewards.judge.model": "b"}), finished[1]
        )


def test_a_copy_at_weights_and_biases_is_no_other_run(finished, tmp_path, monkeypatch):
    """Asked for in the middle of a run, whose config is of before the field."""
    changes = {"metrics.wandb_project": "safety"}
    assert run_directory.resumes_finished(micro(finished[0], **changes), finished[1])
    workdir = tmp_path / "run"
    shutil.copytree(finished[1], workdir)
    (workdir / "summary.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "4")
    recorded = json.loads((workdir / "config.json").read_text())
    del recorded["metrics.wandb_project"]
    (workdir / "config.json").write_text(json.dumps(recorded))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "wandb", None)
        refuse(
            micro(finished[0], **changes), workdir, "metrics.wandb_project is 'safety'",
            "pip install", error=ModuleNotFoundError,
        )  # fmt: skip
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb.teardown()  # it reads the environment once
    trainer.train(micro(finished[0], **changes), workdir)
    assert_same_run(workdir, finished[1])
    wandb.teardown()  # its process then has written all
    (path,) = (workdir / "wandb").glob("offline-run-*/run-*.wandb")
    run, rows, code = wandb_server.read_file(path)
    assert run == json.loads((workdir / "wandb_run.json").read_text())["id"] and code == 0
    losses = {row["step"]: row["train/loss"] for row in logged(workdir) if "train/loss" in row}
    assert [row["_step"] for row in rows] == [3, 4]
    assert [row["train/loss"] for row in rows] == [losses[3], losses[4]]
    assert all("evaluation/unsafe" in row for row in rows)


def test_another_dataset_does_not_continue_a_run(finished, tmp_path, monkeypatch):
    shutil.copytree(finished[1], tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    load = dataset.load_split

    def changed(directory, seed, split):
        rows = load(directory, seed, split)
        if split == "train":
            rows[0] = dataclasses.replace(rows[0], prompt=rows[1].prompt)
        return rows

    monkeypatch.setattr(dataset, "load_split", changed)
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
