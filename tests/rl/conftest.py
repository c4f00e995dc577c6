"""Fixtures of the tests that run a micro model."""

import shutil

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from nspo_jax import rewards
from nspo_jax.data import preferences
from nspo_jax.rl import trainer
from tests.rl.micro_run import judge, micro


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="session")
def baselines_workspace(tmp_path_factory):
    """One base model for the baselines' runs."""
    return tmp_path_factory.mktemp("baselines_workspace")


@pytest.fixture(scope="module")
def few_pairs():
    """Preference pairs of the chat world, enough for each kind of prompt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preferences, "WORLD_PAIRS", 1500)
        yield


@pytest.fixture(scope="module")
def another_judge():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewards.WorldJudge, "__call__", judge)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compile_cache, another_judge):
    """(workspace, workdir, summary) of an uninterrupted run, which made the base model too."""
    del compile_cache, another_judge
    workspace = tmp_path_factory.mktemp("workspace")
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workspace, workdir, trainer.train(micro(workspace), workdir)


@pytest.fixture
def workspace(finished, tmp_path):
    """A copy of the workspace, to be damaged."""
    return shutil.copytree(finished[0], tmp_path / "workspace")
