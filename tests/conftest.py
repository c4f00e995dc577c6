"""Fixtures that every test package may use."""

import os
import pathlib

import pytest


@pytest.fixture(scope="session")
def shared_data():
    """The folder of shared checkpoints and data: NSPO_SHARED_DATA, or ../shared/data."""
    given = os.environ.get("NSPO_SHARED_DATA")
    folder = given or pathlib.Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set NSPO_SHARED_DATA to run this test")
    return folder


# whole runs, child processes, comparisons with torch: what `./scripts/test.sh --fast` leaves out
SLOW = {
    "evaluation/test_harness.py",
    "models/test_families.py", "models/test_gguf.py", "models/test_gguf_tokenizer.py",
    "models/test_hf_export.py", "models/test_transformer.py",
    "nullspace/test_calibration.py", "nullspace/test_certificate.py", "nullspace/test_theory.py",
    "rewards/test_guard.py", "rewards/test_remote_serving.py", "rl/test_arms.py",
    "rl/test_dpo.py", "rl/test_interruptions.py", "rl/test_judging.py", "rl/test_lagrangian.py",
    "rl/test_learning.py", "rl/test_model_families.py", "dry_run/test_plan.py",
    "rl/test_remote_judge.py", "rl/test_trainer.py", "tasks/test_dataset.py",
    "tasks/test_safety_run.py", "tasks/test_stories.py", "test_certify.py", "test_checkpoint.py",
    "test_distributed.py", "test_generate.py", "test_launch.py", "test_rendering.py",
    "reward_models/test_training.py", "test_sharding.py", "test_sweep.py",
}  # fmt: skip


def pytest_collection_modifyitems(items):
    """Marks the slow files; the slowest first: else one of two workers has it left at the end."""
    here = pathlib.Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix() in SLOW:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.path.name != "test_distributed.py")
