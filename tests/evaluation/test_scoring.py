"""How pairs become batches, and what generation_kwargs come to: without a model."""

import types

import numpy as np
import pytest

from nspo_jax.evaluation import answering, scoring


class Recorder:
    """Programs that compute no more than which arrays they were given.

    A token's log p is minus its id, and the most likely token is always 7.
    """

    def __init__(self, max_length=64, shards=1):
        self.model_config = types.SimpleNamespace(max_length=max_length)
        self.shards, self.calls = shards, []

    def ask(self, name, *arrays):
        self.calls.append((name, arrays))
        ids = arrays[2]
        return -ids.astype(np.float32), np.full(ids.shape, 7, np.int32)


def pairs_of(rng, count, longest, endings=1):
    found = []
    for _ in range(count):
        context = rng.integers(10, 99, rng.integers(1, longest)).tolist()
        for _ in range(endings):
            length = rng.integers(1, 6)
            found.append(scoring.Pair(context, rng.integers(7, 10, length).tolist()))
    return found


@pytest.mark.parametrize("endings", [1, 3, 20])
@pytest.mark.parametrize("shards", [1, 2])
def test_every_pair_gets_its_own_score_in_its_own_place(endings, shards):
    pairs = pairs_of(np.random.default_rng(0), 40, 60, endings)
    programs, told = Recorder(shards=shards), []
    scores = scoring.score_pairs(programs, pairs, batch=4, told=told.append)
    assert [score.logprob for score in scores] == [-sum(pair.continuation) for pair in pairs]
    assert [score.greedy for score in scores] == [set(p.continuation) == {7} for p in pairs]
    assert any(score.greedy for score in scores) and not all(score.greedy for score in scores)
    assert sum(told) == len(pairs)
    assert all(len(arrays[0]) % shards == 0 for _, arrays in programs.calls)


def test_what_is_too_long_is_cut_on_the_left_and_its_last_token_is_not_read():
    programs = Recorder(max_length=32)
    context, ending = list(range(10, 50)), [60, 61]
    (score,) = scoring.score_pairs(programs, [scoring.Pair(context, ending)], batch=1)
    ((name, (tokens, mask, targets)),) = programs.calls
    assert name == "score_rows" and mask.all()
    assert tokens[0].tolist() == [*range(19, 50), 60] and targets[0, -2:].tolist() == ending
    assert score.logprob == -121


def test_a_context_of_several_endings_is_computed_once():
    context = list(range(10, 40))
    programs = Recorder()
    pairs = [scoring.Pair(context, [7, 8, number]) for number in range(4)]
    scoring.score_pairs(programs, pairs, batch=8)
    ((name, (_, mask, endings, _)),) = programs.calls
    assert name == "score_shared" and mask.sum() == 30
    assert endings[0, :, 2].tolist() == [0, 1, 2, 3]


def test_thousands_of_lengths_need_few_shapes_and_the_longest_come_first():
    rng = np.random.default_rng(1)
    programs = Recorder(max_length=2048)
    pairs = [
        scoring.Pair(
            rng.integers(0, 99, rng.integers(10, 1500)).tolist(), [8] * rng.integers(1, 30)
        )
        for _ in range(3000)
    ]
    scoring.score_pairs(programs, pairs, batch=8)
    lengths = [arrays[0].shape[1] for _, arrays in programs.calls]
    assert lengths == sorted(lengths, reverse=True)
    assert len({tuple(a.shape for a in arrays) for _, arrays in programs.calls}) < 80
    real = sum(arrays[1].sum() for _, arrays in programs.calls)
    assert real > 0.85 * sum(arrays[1].size for _, arrays in programs.calls)


def test_a_bucket_is_little_longer_than_what_it_holds():
    sizes = [scoring.bucket(length, 10**6) for length in range(1, 5000)]
    assert all(length <= size for length, size in enumerate(sizes, 1))
    assert all(size <= 1.25 * length + 16 for length, size in enumerate(sizes, 1))
    assert len({*sizes}) < 40 and scoring.bucket(500, 501) == 501


@pytest.mark.parametrize("pair", [([], [1]), ([1], []), ([1], [2] * 65)])
def test_a_pair_that_cannot_be_scored_is_refused(pair):
    with pytest.raises(ValueError, match=r"expected at least one each, .* within the 64"):
        scoring.score_pairs(Recorder(), [scoring.Pair(*pair)], batch=1)


def test_answers_that_leave_no_room_are_refused():
    with pytest.raises(ValueError, match=r"64 new tokens .* 64 positions .* from 1 to 63"):
        answering.check_options(answering.Options((), (0,), 64), 64)
