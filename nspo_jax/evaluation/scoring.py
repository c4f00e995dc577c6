"""The log-probabilities of continuations behind contexts that lm-eval asks for.

Pairs are sorted by length, longest first, and go through few compiled shapes: lengths are rounded
up to `bucket`s and every batch has the same number of rows, but the last, which may have a half, a
quarter and so on. If several continuations have one context, like the choices of a question, the
context is computed once.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any, NamedTuple

import numpy as np

from nspo_jax.evaluation import programs as programs_lib
from nspo_jax.rewards import batched

# The most endings of one context in one batch, and of one token each: these cost no second pass.
_MOST_ENDINGS, _MOST_TOKENS = 8, 64
# The second pass has the keys and values of a context once for each ending: so many slots at most
# for each row of a batch, and no fewer than its contexts alone take.
_MOST_SLOTS = 512


class Pair(NamedTuple):
    """A context and a continuation, token ids of each, not empty."""

    context: Sequence[int]
    continuation: Sequence[int]


class Score(NamedTuple):
    """A continuation's log p in nats, and `greedy`, True if every token was the likeliest."""

    logprob: float
    greedy: bool


class _Row(NamedTuple):
    """One row of a batch: its tokens, and the pairs that it scores."""

    tokens: Sequence[int]
    pairs: list[int]


def bucket(length: int, limit: int, least: int = 16) -> int:
    """Returns a row's padded length: 16, 32, ... 128, 160, ... 256, 320, ..., at most `limit`.

    Steps are an eighth of the next power of two, and `least` or more.
    """
    step = max(least, 2 ** math.ceil(math.log2(max(length, 1))) // 8)
    return min(-(-length // step) * step, limit)


def rows_of(count: int, batch: int, shards: int) -> int:
    """Returns the rows of the next batch of `count` rows to come: `batch`, or fewer for the last.

    The last batch has the smallest power of two of rows that holds them and divides over `shards`.
    """
    return min(batch, -(-_power(count) // shards) * shards)


def score_pairs(
    programs: programs_lib.Programs,
    pairs: Sequence[Pair],
    *,
    batch: int,
    told: Callable[[int], Any] = lambda count: None,
) -> list[Score]:
    """Scores each continuation behind its context.

    Rows that are longer than the model's context are cut on the left, as lm-eval's `hf` does, to
    max_length + 1 tokens: the last one is predicted and not read.

    Args:
      programs: the model's.
      pairs: any number of them.
      batch: rows a batch, a multiple of the mesh's shards.
      told: gets the number of pairs that have just been scored.

    Raises:
      ValueError: for an empty context or continuation, or a continuation that is longer than the
        model's context.
    """
    limit = programs.model_config.max_length
    for pair in pairs:
        if not pair.context or not 0 < len(pair.continuation) <= limit:
            raise ValueError(
                f"A context of {len(pair.context)} and a continuation of {len(pair.continuation)} "
                f"tokens; expected at least one each, and a continuation within the {limit} of the "
                "model's context. Shorten or leave out that document of the task."
            )
    shared, single = _group(pairs, limit)
    scores: list[Score | None] = [None] * len(pairs)
    for rows, arrays, name in (
        *_shared_batches(pairs, shared, limit, batch, programs.shards),
        *_single_batches(pairs, single, limit, batch, programs.shards),
    ):
        logprobs, best = programs.ask(name, *arrays)
        count = 0
        for place, row in enumerate(rows):
            for turn, index in enumerate(row.pairs):
                ids = np.asarray(pairs[index].continuation)
                at = (place, turn, slice(len(ids)))
                if name == "score_rows":
                    at = (place, slice(logprobs.shape[1] - len(ids), None))
                greedy = bool(np.all(best[at] == ids))
                scores[index] = Score(float(np.sum(logprobs[at], dtype=np.float64)), greedy)
                count += 1
        told(count)
    return [score for score in scores if score is not None]


def _group(pairs: Sequence[Pair], limit: int) -> tuple[list[_Row], list[_Row]]:
    """Groups pairs to rows with several endings, and rows of one pair with all its tokens."""
    contexts: dict[tuple[int, ...], list[int]] = {}
    single = []
    for index, (context, continuation) in enumerate(pairs):
        if len(context) + len(continuation) > limit + 1:  # cut on the left, each in its own place
            single.append(index)
        else:
            contexts.setdefault(tuple(context), []).append(index)
    shared = []
    for context, members in contexts.items():
        longest = max(len(pairs[index].continuation) for index in members)
        # with a short context a pass of its own, padded on its own, costs more than it saves
        if len(members) == 1 or (longest > 1 and len(context) < longest):
            single += members
            continue
        most = _MOST_TOKENS if longest == 1 else _MOST_ENDINGS
        shared += [_Row(context, members[i : i + most]) for i in range(0, len(members), most)]
    return shared, [
        _Row([*pairs[i].context, *pairs[i].continuation][-(limit + 1) :], [i]) for i in single
    ]


def _power(count: int) -> int:
    """Returns the smallest power of two that is no smaller."""
    return 1 << (count - 1).bit_length()


def _single_batches(pairs, rows: list[_Row], limit: int, batch: int, shards: int):
    """Yields (rows, arrays of `Programs.score_rows`, its name), longest first."""

    def size(row: _Row) -> tuple[int, int]:
        length = bucket(len(row.tokens) - 1, limit, least=8)
        return length, bucket(len(pairs[row.pairs[0]].continuation), length)

    rows = sorted(rows, key=size, reverse=True)
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        length = size(part[0])[0]
        count = max(size(row)[1] for row in part)
        missing = [[]] * (rows_of(len(part), batch, shards) - len(part))
        read = batched.pad_rows([row.tokens[:-1] for row in part] + missing, length)
        endings = [pairs[row.pairs[0]].continuation for row in part]
        targets = batched.pad_rows(endings + missing, count).tokens
        yield part, (*read, targets), "score_rows"


def _shared_batches(pairs, rows: list[_Row], limit: int, batch: int, shards: int):
    """Yields (rows, arrays of `Programs.score_shared`, its name), longest first."""

    def size(row: _Row) -> tuple[int, int, int]:
        longest = max(len(pairs[index].continuation) for index in row.pairs)
        padded = longest if longest == 1 else bucket(longest, limit, least=4)
        return bucket(len(row.tokens), limit), padded, _power(len(row.pairs))

    rows = sorted(rows, key=size, reverse=True)
    while rows:
        length, longest, endings = np.max([size(row) for row in rows[:batch]], axis=0)
        most = batch * _MOST_SLOTS // (endings * (length + longest)) if longest > 1 else batch
        most = max(min(most, batch), batch // endings, 1)
        count = rows_of(len(rows), max(most // shards, 1) * shards, shards)
        part, rows = rows[:count], rows[count:]
        read = batched.pad_rows([row.tokens for row in part] + [[]] * (count - len(part)), length)
        ids = np.zeros((count, endings, longest), np.int32)
        ids_mask = np.zeros((count, endings, longest), bool)
        for place, row in enumerate(part):
            for turn, index in enumerate(row.pairs):
                ending = pairs[index].continuation
                ids[place, turn, : len(ending)] = ending
                ids_mask[place, turn, : len(ending)] = True
        yield part, (*read, ids, ids_mask), "score_shared"
