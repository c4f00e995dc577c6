"""Splits and their slices: read, and held against the rows that there are."""

import pytest
import tensorflow_datasets as tfds

from nspo_jax.data import split
from nspo_jax.tasks.chat_world import dataset, world

GOOD = ("train", "train[:]", "train[:40%]", "train[60%:]", "train[10:20]", "train[-10:]",
        "train[:-5%]", "train[-20%:-10%]", "train[5:-5]", "train[0:100]")  # fmt: skip


@pytest.mark.parametrize("text", GOOD)
def test_a_slice_is_what_tfds_makes_of_it(text, tmp_path):
    split.parse(text).check_rows(100)
    found = tfds.core.splits.SplitDict(
        [
            tfds.core.SplitInfo(
                name="train", shard_lengths=[100], num_bytes=0,
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=tmp_path, dataset_name="d", filetype_suffix="tfrecord"
                ),
            )
        ]
    )[str(split.parse(text))]  # fmt: skip
    wanted = split.parse(text)
    rows = range(100)[slice(*(split._row(bound, 100) for bound in (wanted.start, wanted.stop)))]
    assert len(rows) == found.num_examples


@pytest.mark.parametrize(
    "text",
    ["", "train[", "train[3]", "train[a:]", "train[:200%]", "train[-101%:]", "train[500:10]",
     "train[90%:10%]", "train[:0]", "train[:0%]", "train[100%:]", "train[-5:-5]", "train[5:5]"],
)  # fmt: skip
def test_what_no_split_has_is_refused_before_its_files_are_read(text):
    with pytest.raises(split.SplitError, match="The split is"):
        split.parse(text)


@pytest.mark.parametrize("text", ["train[:101]", "train[-101:]", "train[50:20%]", "train[100:]"])
def test_what_a_split_of_this_size_has_not_is_refused(text):
    with pytest.raises(split.SplitError, match="train"):
        split.parse(text).check_rows(100)


def test_the_message_names_the_field_and_the_rows(tmp_path):
    rows = len(world.World(0).split("train"))
    with (
        pytest.raises(split.SplitError) as caught,
        split.said_by("data.train_split"),
    ):
        dataset.load_split(tmp_path, 0, f"train[:{rows + 1}]")
    for part in ("data.train_split", f"train[:{rows + 1}]", f"{rows} rows"):
        assert part in str(caught.value)
