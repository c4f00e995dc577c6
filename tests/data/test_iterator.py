"""Batches: every row once an epoch, a position that can be saved, exact counts of each part."""

import json

import numpy as np
import pytest

from nspo_jax.data import iterator


def rows(count, start=0):
    index = np.arange(start, start + count)
    return {"row": index, "tokens": np.stack([index, index + 1000], axis=1)}


def drawn(batches, count):
    return [next(batches)["row"].tolist() for _ in range(count)]


def test_every_row_once_an_epoch_in_a_new_order():
    epochs = np.array(drawn(iterator.batches(rows(12), 4, 0), 9)).reshape(3, 12)
    assert (np.sort(epochs, axis=1) == np.arange(12)).all()
    assert not (epochs[0] == epochs[1]).all() and not (epochs[1] == epochs[2]).all()


def test_arrays_stay_together():
    batch = next(iterator.batches(rows(12), 5, 0))
    assert batch["tokens"].shape == (5, 2)
    np.testing.assert_array_equal(batch["tokens"][:, 1], batch["row"] + 1000)


def test_the_seed_decides_the_order():
    assert drawn(iterator.batches(rows(50), 8, 3), 10) == drawn(
        iterator.batches(rows(50), 8, 3), 10
    )
    assert drawn(iterator.batches(rows(50), 8, 3), 2) != drawn(iterator.batches(rows(50), 8, 4), 2)


def test_a_batch_may_exceed_the_rows():
    assert np.bincount(drawn(iterator.batches(rows(3), 9, 0), 1)[0]).tolist() == [3, 3, 3]


def test_a_saved_position_continues_alike():
    batches = iterator.batches(rows(20), 6, 0)
    drawn(batches, 7)
    state = json.loads(json.dumps(batches.get_state()))
    expected = drawn(batches, 12)
    resumed = iterator.batches(rows(20), 6, 0)
    resumed.set_state(state)
    assert drawn(resumed, 12) == expected


def test_no_rows_or_unequal_rows_are_refused():
    for arrays in ({}, rows(0), {"a": np.zeros(2), "b": np.zeros(3)}):
        with pytest.raises(ValueError, match="expected one positive number"):
            iterator.batches(arrays, 2, 0)


def parts():
    return [(rows(30), 8), (rows(9, 100), 4), (rows(50, 200), 4)]


def test_parts_have_exact_counts_in_order():
    mixed = iterator.MixedBatches(parts(), 0)
    for batch in drawn(mixed, 20):
        assert [index // 100 for index in batch] == [0] * 8 + [1] * 4 + [2] * 4


def test_mixed_batches_resume_alike():
    mixed = iterator.MixedBatches(parts(), 0)
    drawn(mixed, 11)
    state = json.loads(json.dumps(mixed.get_state()))
    expected = drawn(mixed, 20)
    resumed = iterator.MixedBatches(parts(), 0)
    resumed.set_state(state)
    assert drawn(resumed, 20) == expected


def test_a_position_of_other_parts_is_refused():
    state = iterator.MixedBatches(parts(), 0).get_state()
    with pytest.raises(ValueError, match="of 3 sets.*there are 2"):
        iterator.MixedBatches(parts()[:2], 0).set_state(state)


def test_one_row_a_batch():
    epoch = np.concatenate(drawn(iterator.batches(rows(5), 1, 0), 5))
    assert np.sort(epoch).tolist() == [0, 1, 2, 3, 4]


def test_no_parts_or_unlike_parts_are_refused():
    for given in ([], [(rows(3), 2), ({"row": np.arange(3)}, 2)]):
        with pytest.raises(ValueError, match="expected one or more, named alike"):
            iterator.MixedBatches(given, 0)
