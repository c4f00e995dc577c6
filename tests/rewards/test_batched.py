"""Rows over the mesh: batches of one shape, padding that changes nothing."""

import functools

import jax
import numpy as np
import pytest

from nspo_jax import models, sharding
from nspo_jax.rewards import batched

CONFIG = models.ModelConfig(
    vocab_size=30, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1,
    head_dim=8, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False, max_length=64,
)  # fmt: skip


def test_rows_are_padded_on_the_left():
    tokens, mask = batched.pad_rows([[5, 6], [7]], 3)
    assert tokens.dtype == np.int32 and tokens.tolist() == [[0, 5, 6], [0, 0, 7]]
    assert mask.tolist() == [[False, True, True], [False, False, True]]
    with pytest.raises(ValueError, match="Row 1 has 4 tokens, more than the 3"):
        batched.pad_rows([[1], [1, 2, 3, 4]], 3)


def test_scores_are_those_of_each_row_alone_and_one_program_is_compiled():
    key = jax.random.key(0)
    config, params = models.with_scalar_head(CONFIG, models.init_params(CONFIG, key), key)
    traced = []

    def count(params, tokens, mask):
        traced.append(tokens.shape)
        return models.scores(config, params, tokens, mask)

    score, mesh = jax.jit(count), sharding.make_mesh()
    ids = [list(range(1, 2 + row)) for row in range(7)]
    rows = batched.pad_rows(ids, 9)
    found = batched.score_rows(score, params, *rows, mesh, 3)
    few = batched.score_rows(score, params, rows.tokens[:2], rows.mask[:2], mesh, 3)
    assert traced == [(3, 9)]
    alone = functools.partial(models.scores, config, params)
    wanted = [alone(np.array([row], np.int32), np.ones((1, len(row)), bool))[0] for row in ids]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(few, wanted[:2], atol=1e-6)


def test_trees_keep_their_shape():
    score = jax.jit(lambda params, tokens, mask: (tokens + params, {"real": mask.sum(axis=1)}))
    tokens, mask = batched.pad_rows([[1, 2], [3]], 2)
    plus, details = batched.score_rows(score, 1, tokens, mask, sharding.make_mesh(), 4)
    assert plus.tolist() == [[2, 3], [1, 4]] and details["real"].tolist() == [2, 1]


def test_what_cannot_be_scored_is_refused():
    mesh, (tokens, mask) = sharding.make_mesh(), batched.pad_rows([], 2)
    with pytest.raises(ValueError, match="no rows to score"):
        batched.score_rows(jax.jit(lambda *arguments: arguments[1]), 0, tokens, mask, mesh, 4)
