"""Fixtures that every test package may use."""

import gc
import os
import pathlib

# before torch and numpy look at it: two workers share two cores, and waiting threads spin
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import pytest

from tests import compiling, shapes, worlds

# here, before jax makes its backend, and in the processes that tests start
os.environ.setdefault("XLA_FLAGS", compiling.CHEAPLY)
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
jax.config.update("jax_numpy_rank_promotion", "raise")
shapes.install()


@pytest.fixture(scope="session")
def shared_data():
    """The folder of shared checkpoints and data: NSPO_SHARED_DATA, or ../shared/data."""
    given = os.environ.get("NSPO_SHARED_DATA")
    folder = given or pathlib.Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set NSPO_SHARED_DATA to run this test")
    return folder


@pytest.fixture(scope="session", autouse=True)
def one_world(tmp_path_factory, worker_id):
    """Prepares and decodes the chat world of a seed once, not in every test's own workspace."""
    base = tmp_path_factory.getbasetemp()
    directory = (base if worker_id == "master" else base.parent) / "worlds"
    directory.mkdir(exist_ok=True)
    os.environ[worlds.VARIABLE] = str(directory)
    worlds.share()


# whole runs, child processes, comparisons with torch: what `./scripts/test.sh --fast` leaves out.
# Files, or single tests of a file; the longest first.
SLOW = [
    "test_distributed.py", "rl/test_model_families.py", "models/test_families.py",
    "dry_run/test_plan.py", "evaluation/test_harness.py", "rl/test_arms.py", "rl/test_trainer.py",
    "tasks/test_safety_run.py", "rl/test_judging.py", "test_sharding.py", "test_certify.py",
    "rl/test_lagrangian.py", "test_generate.py", "reward_models/test_training.py",
    "nullspace/test_certificate.py", "rl/test_dpo.py", "tasks/test_stories.py",
    "models/test_hf_export.py", "nullspace/test_calibration.py", "rl/test_remote_judge.py",
    "test_launch.py", "test_rendering.py", "nullspace/test_theory.py", "tasks/test_dataset.py",
    "rewards/test_remote_serving.py", "test_checkpoint.py", "models/test_transformer.py",
    "test_examples.py", "rl/test_interruptions.py", "rewards/test_guard.py",
    "evaluation/test_judges.py", "test_sweep.py", "evaluation/test_preference.py",
    "evaluation/test_execution.py", "evaluation/test_livecodebench.py", "test_ownership.py",
    "rl/test_learning.py",
    "models/test_gguf.py",
    "models/test_gguf_tokenizer.py", "models/test_peft_adapter.py", "test_extending.py",
    "rl/test_shared_prompt.py",
    "evaluation/test_suites.py::"
    "test_the_command_goes_on_after_a_kill_and_judges_again_without_the_model",
    "evaluation/test_suites.py::test_two_processes_on_a_mesh_answer_and_judge_as_one_does",
    "evaluation/test_coding.py::test_the_command_prints_a_table_and_keeps_results",
    "test_own_code.py::test_a_run_with_a_reward_and_a_task_of_ones_own",
    "data/test_public.py::test_inspect_data",
    "models/test_generation.py::test_a_row_gets_what_it_gets_alone",
    "models/test_heads.py::test_chunks_change_nothing",
    "models/test_heads.py::test_what_gradients_keep_changes_no_gradient",
    "nullspace/test_moments.py::test_gradient_moments_span_the_gradients",
    "nullspace/test_rounding.py::test_an_export_with_feedback_leaks_less",
    "nullspace/test_wrappers.py::test_a_linen_model_with_attention_kernels",
    "rewards/test_batched.py::"
    "test_scores_are_those_of_each_row_alone_and_one_program_is_compiled",
    "rewards/test_judge_cache.py::test_several_processes_write_at_once",
    "rewards/test_judge_poison.py::"
    "test_a_question_that_takes_longer_than_the_judge_is_given",
    "rewards/test_remote.py::test_a_kill_in_the_middle_of_a_batch",
    "rl/test_numerics.py::test_padding_on_either_side_moves_neither_logprobs_nor_gradients",
    "tasks/test_world.py::test_a_seed_decides_everything",
]  # fmt: skip


def pytest_collection_modifyitems(items):
    """Marks the slow tests, and sorts files: the longest first, so that two workers end alike."""
    here = pathlib.Path(__file__).parent
    places = {}
    for item in items:
        file = item.path.relative_to(here).as_posix()
        for name in (file, f"{file}::{item.originalname}"):
            if name in SLOW:
                item.add_marker(pytest.mark.slow)
        places[item] = SLOW.index(file) if file in SLOW else len(SLOW)
    items.sort(key=places.__getitem__)


def pytest_collection_finish():
    """Spares the garbage collector what stays until the end: walking it was a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
