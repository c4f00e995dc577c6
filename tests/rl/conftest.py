"""Fixtures of the tests that run a micro model."""

import contextlib
import shutil

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

from nspo_jax.rl import trainer
from nspo_jax.tasks.chat_world import judge as world_judge
from nspo_jax.tasks.chat_world import pairs as pairs_lib
from tests.rl.micro_run import judge, micro


@contextlib.contextmanager
def compiling_into(directory):
    """Keeps on disk what is compiled inside."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in zip(names, (directory, 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def cache_directory(tmp_path_factory):
    """The one that all tests share if there is one, as in ./scripts/test.sh."""
    return jax.config.jax_compilation_cache_dir or str(tmp_path_factory.mktemp("jax_cache"))


@pytest.fixture(scope="module")
def compile_cache(cache_directory):
    """Runs that differ in their data alone share what they compile."""
    with compiling_into(cache_directory):
        yield cache_directory


@pytest.fixture(scope="session")
def baselines_workspace(tmp_path_factory):
    """One base model for the baselines' runs."""
    return tmp_path_factory.mktemp("baselines_workspace")


@pytest.fixture(scope="module")
def few_pairs():
    """Preference pairs of the chat world, enough for each kind of prompt."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs_lib, "WORLD_PAIRS", 1500)
        yield


@pytest.fixture(scope="module")
def another_judge():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_judge.WorldJudge, "__call__", judge)
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory, cache_directory):
    """(workspace, workdir, summary) of an uninterrupted run, which made the base model too."""
    workspace = tmp_path_factory.mktemp("workspace")
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch, compiling_into(cache_directory):
        patch.setattr(world_judge.WorldJudge, "__call__", judge)
        return workspace, workdir, trainer.train(micro(workspace), workdir)


@pytest.fixture
def workspace(finished, tmp_path):
    """A copy of the workspace, to be damaged."""
    return shutil.copytree(finished[0], tmp_path / "workspace")
