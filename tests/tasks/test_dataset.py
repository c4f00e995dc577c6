"""The TFDS builder: written once, sliced, rebuilt after a kill, loud about damage."""

import dataclasses
import hashlib
import json
import shutil
import sys
import time

import pytest

from nspo_jax.tasks.chat_world import dataset, world
from tests import forks, worlds


def imports_tensorflow(prepared):
    """Whether reading does."""
    dataset.load_split(prepared, 0, "train")
    return "tensorflow" in sys.modules


@pytest.fixture(scope="module", autouse=True)
def own_files(one_world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(worlds.VARIABLE, "")
        worlds.share()
        yield
    worlds.share()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, own_files):
    directory = tmp_path_factory.mktemp("data")
    dataset.load_split(directory, 0, "train")
    return directory


@pytest.fixture
def damaged(prepared, tmp_path):
    """A copy to damage, and the folder of its files."""
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data", tmp_path / "data" / "chat_world" / "seed_0" / "1.0.0"


@pytest.mark.parametrize("split", ["calibration", "train", "harmful_both"])
def test_rows_are_the_worlds(prepared, split):
    rows = dataset.load_split(prepared, 0, split)
    key = lambda row: (row.prompt, row.answer, row.family, row.kind)  # noqa: E731
    # TFDS shuffles rows when it writes them, by a hash of their keys
    assert sorted(map(key, rows)) == sorted(map(key, world.World(0).split(split)))
    assert rows == dataset.load_split(prepared, 0, split)


def test_slices_divide_a_split(prepared):
    whole = dataset.load_split(prepared, 0, "train")
    first = dataset.load_split(prepared, 0, "train[:40%]")
    assert len(first) == round(0.4 * len(whole))
    assert first + dataset.load_split(prepared, 0, "train[40%:]") == whole
    assert dataset.load_split(prepared, 0, "train[5:8]") == whole[5:8]


def test_tensorflow_is_not_imported(prepared):
    assert not forks.call(imports_tensorflow, prepared)


def test_a_killed_build_starts_again(tmp_path):
    process = forks.start(dataset.load_split, tmp_path, 0, "train")
    while process.is_alive() and not list(tmp_path.glob("*/*/incomplete.*/*")):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert not (tmp_path / "chat_world" / "seed_0" / "1.0.0").exists()  # killed in time
    assert dataset.load_split(tmp_path, 0, "train")


def test_two_processes_may_prepare_at_once(tmp_path):
    both = [forks.start(dataset.load_split, tmp_path, 0, "train") for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert len(dataset.load_split(tmp_path, 0, "train")) == 294


@pytest.mark.parametrize("damage", ["missing", "truncated", "metadata"])
def test_damage_is_an_error_with_the_fix(damaged, damage):
    directory, files = damaged
    record = next(files.glob("*-train.array_record*"))
    if damage == "missing":
        record.unlink()
    elif damage == "truncated":
        record.write_bytes(record.read_bytes()[:1000])
    else:
        (files / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match="chat_world/seed_0 cannot be read.*Delete that directory"):
        dataset.load_split(directory, 0, "train")


@pytest.mark.parametrize("split", ["valid", "train+general", "", "train[:foo]"])
def test_an_unknown_split_is_named(tmp_path, split):
    with pytest.raises(ValueError, match="expected (one of pretrain|a name such as train)"):
        dataset.load_split(tmp_path, 0, split)
    assert not list(tmp_path.iterdir())  # refused before anything is prepared


def test_the_version_is_raised_with_the_world():
    """Prepared rows are found by version: other rows under the same one would be stale ones."""
    digest = hashlib.sha256()
    for split in sorted(world.SPLITS):
        rows = [dataclasses.astuple(row) for row in world.World(0).split(split)]
        digest.update(json.dumps(rows).encode())
    made = (str(dataset.ChatWorld.VERSION), digest.hexdigest()[:16])
    assert made == ("1.0.0", "d61a21670be7e5ba"), f"raise ChatWorld.VERSION and write {made} here"
