"""The arms of configs/tiny.py on a micro model: what they mix, train and keep."""

import json

import numpy as np
import pytest

from configs import tiny
from nspo_jax import base_model, general_text, metrics, models, nullspace, sharding
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.nullspace import projection
from nspo_jax.rl import batches, checks, terms, trainer
from nspo_jax.tasks.chat_world import judge as world_judge
from tests import runs

MICRO = {
    "model.hidden_size": 16, "model.intermediate_size": 24, "model.num_layers": 2,
    "model.num_heads": 2, "model.num_kv_heads": 2, "pretraining.steps": 30,
    "calibration.rows": 40, "calibration.batch_size": 20, "rl.steps": 4, "rl.prompts": 4,
    "rl.samples": 2, "evaluation.prompts": 5, "evaluation.every": 20, "checkpoint.every": 20,
}  # fmt: skip


def micro(directory, arm="nspo", **changes):
    changes = {**MICRO, "workspace": str(directory), **changes}
    return runs.made(tiny.get_config(arm), changes)


class Noise:
    """Rewards that a micro model, which never refuses, can differ in."""

    def __call__(self, conversations, completions):
        return -np.array([len(text) % 2 for text in completions], np.float32), {}


@pytest.fixture(scope="module")
def shared_workspace(tmp_path_factory):
    return tmp_path_factory.mktemp("workspace")


def test_exact_mode_moves_no_logit_in_a_whole_run_and_the_gradient_shortcut_does(
    shared_workspace, tmp_path, monkeypatch
):
    monkeypatch.setattr(world_judge, "WorldJudge", Noise)
    exact = {"calibration.rows": 1, "calibration.rank_rule": "fixed(12)", "rl.steps": 20,
             "optimizer.learning_rate": 5e-3}  # fmt: skip
    moved = {}
    for arm in ("nspo_adam", "nspo_coords", "project_gradient"):
        trainer.train(micro(shared_workspace, arm, **exact), tmp_path / arm)
        certificate = json.loads((tmp_path / arm / "certificate.json").read_text())
        moved[arm] = certificate["calibration"]["max_logit_change"]
        assert (certificate["protected_share"] < 1e-5) == (arm != "project_gradient")
        assert certificate["held_out"]["max_logit_change"] > 0.05  # the policy did move
    assert moved["nspo_adam"] < 1e-2 and moved["nspo_coords"] < 1e-2
    assert moved["project_gradient"] > 0.05

    # the same policy as bfloat16: what the certificate of the float32 one promised is gone
    base = base_model.open_base(micro(shared_workspace, **exact), sharding.make_mesh())
    projectors = base_model.open_projectors(micro(shared_workspace, **exact), base)
    models.export_model(tmp_path / "nspo_adam/policy", tmp_path / "half", dtype="bfloat16")
    stored = {
        name: nullspace.certify(
            base.model_config,
            base.params,
            base_model.load_policy(base, tmp_path / name),
            projectors,
            general_text.split_batches(base.calibration, 1),
            general_text.split_batches(base.held_out, 20),
            change=models.load_change(tmp_path / name),
        )
        for name in ("nspo_adam/delta", "half")
    }
    trained = json.loads((tmp_path / "nspo_adam/certificate.json").read_text())
    assert stored["nspo_adam/delta"]["provenance"] == trained["provenance"]
    assert stored["nspo_adam/delta"]["protected_share"] == pytest.approx(trained["protected_share"])
    assert stored["half"]["protected_share"] > 100 * trained["protected_share"]
    assert stored["half"]["calibration"]["max_logit_change"] > 5 * moved["nspo_adam"]


def test_replay_mixes_the_stated_numbers(shared_workspace):
    config = micro(shared_workspace, "nspo_replay")
    base = base_model.open_base(config, sharding.make_mesh())
    source = batches.RolloutBatches(config, base, terms.open_rewards(config, base))
    batch, logged = source.sample(base.params, 0, metrics.Stopwatch())
    assert batch.prompts.shape[0] == (4 + 2) * 2
    assert np.isfinite(list(logged.values())).all()
    assert [count for _, count in base.task.parts] == [2, 2, 1, 1]
    kinds = [{row.kind for row in rows} for rows, _ in base.task.parts]
    assert kinds == [{"harmful"}, {"harmful"}, {"general"}, {"borderline"}]


def test_projectors_are_calibrated_once(shared_workspace):
    config = micro(shared_workspace)
    base = base_model.open_base(config, sharding.make_mesh())
    projectors = base_model.open_projectors(config, base)
    directory = next((shared_workspace / "seed_0" / "projectors").glob("energy*"))
    made = (directory / "projectors.safetensors").stat().st_mtime_ns
    assert base_model.open_projectors(config, base).provenance == projectors.provenance
    assert (directory / "projectors.safetensors").stat().st_mtime_ns == made


def test_keys_differ_by_role_and_step():
    keys = [batches.role_key(0, role, step) for role in batches.ROLES for step in range(3)]
    assert len({str(trainer.jax.random.key_data(key)) for key in keys}) == len(keys)


@pytest.mark.parametrize("arm", [arm for arm in tiny.ARMS if arm != "base"])
def test_every_arm_starts(shared_workspace, arm):
    """Its optimizer fits its trained parameters: the harmful-only and the replay config."""
    for name in (arm, f"{arm}_replay"):
        config = micro(shared_workspace, name, **{"calibration.rank_rule": "fixed(6)"})
        checks.check_config(config)
        base = base_model.open_base(config, sharding.make_mesh())
        projectors = base_model.open_projectors(config, base)
        trainable, frozen = trainer.optimizer_lib.partition(
            base.params, config.projection.targets, config.projection.untargeted
        )
        selected = optimizer_lib.select_projectors(config, projectors)
        optimizer_lib.from_settings(config, selected).init(trainable)
        names = projection.leaves_by_path(frozen)
        assert ("embed/embedding" in names) == (config.projection.untargeted == "freeze")
