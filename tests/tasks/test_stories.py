"""The story task on a real checkpoint, whole, at the smallest scale; and a sweep of micro runs."""

import json
import os

import numpy as np
import pytest

from configs import tinystories
from nspo_jax import base_model, sharding
from nspo_jax.rl import batches, trainer
from nspo_jax.tasks import stories
from tests import command_lines, runs
from tests.rl import test_arms


@pytest.fixture
def config(shared_data, tmp_path):
    return runs.made(tinystories.get_config("nspo"), {
        "workspace": str(tmp_path / "workspace"),
        "model.path": str(shared_data / "checkpoints" / "tinystories-260k"),
        "calibration.rows": 48, "calibration.batch_size": 24, "rl.steps": 2, "rl.prompts": 2,
        "rl.samples": 4, "evaluation.prompts": 4, "data.completion_length": 24,
    })  # fmt: skip


def test_held_out_text_is_the_bases_own_greedy_story(config):
    base = base_model.open_base(config, sharding.make_mesh())
    scores = trainer.evaluation.Evaluator(config, base)(
        base.params, batches.role_key(0, "rollout", 0)
    )
    assert scores["kl_heldout"] == 0
    assert scores["general"] > 0.97  # a token in a hundred may be split anew when the text is
    assert scores["loss_heldout"] < 1.5
    prompts = {row.prompt for row in base.task.calibration}
    assert prompts.isdisjoint(row.prompt for row in base.task.held_out)
    rl = {row.prompt for rows, _ in base.task.parts for row in rows}
    assert {row.prompt for row in base.task.suites["harmful"].rows} <= rl
    for name in ("harmful_nouns", "harmful_templates", "harmful_both"):
        assert rl.isdisjoint(row.prompt for row in base.task.suites[name].rows)
    assert base.calibration["answer_mask"].sum(axis=1).mean() > 20


def test_a_run_on_a_pretrained_checkpoint(config, tmp_path, monkeypatch):
    monkeypatch.setattr(stories, "StoryJudge", test_arms.Noise)  # few stories are harsh
    summary = trainer.train(config, tmp_path / "run")
    assert summary["step"] == 2 and summary["protected_share"] < 1e-3
    assert 0 < summary["kl_heldout"] < 1 and np.isfinite(summary["loss_heldout"])


def test_a_tied_head_cannot_be_projected(config, tmp_path):
    config = runs.changed(config, {"projection.targets": "mlp+head"})
    with pytest.raises(ValueError, match="no projector for head .*a tied head is the embedding"):
        trainer.train(config, tmp_path / "run")


def test_a_sweep_runs_what_is_missing_and_reports(tmp_path):
    (tmp_path / "micro.py").write_text(
        "from configs import tiny\n"
        "def get_config(arm):\n"
        "    config = tiny.get_config(arm)\n"
        f"    config.update_from_flattened_dict({test_arms.MICRO!r})\n"
        "    config.rl.flat_steps = 0  # a micro model never refuses: nothing is learned\n"
        "    return config\n"
    )
    command = [
        "sweep", "--config=configs/sweeps/demo.py",
        f"--workdir={tmp_path / 'sweep'}", f"--config.config={tmp_path / 'micro.py'}",
        "--config.arms=base+nspo_replay", "--config.seeds=0",
    ]  # fmt: skip
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(tmp_path / "cache")
    for _ in range(2):  # the second call finds everything done
        result = command_lines.run(*command, JAX_COMPILATION_CACHE_DIR=cache)
        assert result.returncode == 0, result.stderr
        assert "nspo_replay" in result.stdout and "arms.png" in result.stdout
    summary = json.loads((tmp_path / "sweep" / "summary.json").read_text())
    assert set(summary["arms"]) == {"base", "nspo_replay"} and summary["seeds"] == [0]
    wanted = {
        "unsafe", "unsafe_nouns", "unsafe_templates", "unsafe_both", "over_refusal", "general",
        "general/maths", "kl_heldout", "protected_share", "seconds",
    }  # fmt: skip
    for scores in summary["arms"].values():
        assert wanted <= set(scores)
        assert len(scores["unsafe"]) == len(scores["general/maths"]) == 1
    assert summary["seconds"] > 0
    assert (tmp_path / "sweep" / "table.md").read_text().startswith("| arm")
