"""The checks of tests/shapes.py: they are in place, complete, and refuse what does not fit."""

import inspect

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from nspo_jax import nullspace
from nspo_jax.nullspace import projection
from nspo_jax.rl import advantages, losses
from tests import shapes

TOKENS, MASK = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
BASIS = jnp.eye(4)[:, :2]


@pytest.mark.parametrize("module", shapes.SIGNATURES, ids=lambda module: module.__name__)
def test_every_public_function_has_its_shapes_stated(module):
    public = {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__ and name[0] != "_"
    }
    assert public - shapes.OF_TREES == set(shapes.SIGNATURES[module])


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (losses.sequence_mean, (TOKENS, MASK[:, :2])),
        (losses.sequence_mean, (TOKENS, MASK.astype(jnp.float32))),
        (losses.aggregate, (TOKENS, MASK, "token_mean", jnp.ones(2))),
        (losses.kl_estimate, (TOKENS, TOKENS[:1], MASK, "k3")),
        (losses.grpo_loss, (TOKENS, TOKENS, jnp.zeros(3), MASK)),
        (losses.LOSSES["gspo"], (TOKENS, TOKENS, jnp.zeros((2, 1)), MASK)),
        (lambda *a: losses.value_loss(*a, clip=1.0), (TOKENS, TOKENS, TOKENS[0], MASK)),
        (lambda *a: losses.dpo_loss(*a, beta=1.0), (TOKENS[0],) * 3 + (TOKENS[:, 0],)),
        (lambda *a: losses.dpo_loss(*a, beta=1.0), (TOKENS[0].astype(jnp.bfloat16),) * 4),
        (advantages.ESTIMATORS["rloo"], (np.zeros(4), 2.0)),
        (lambda *a: advantages.generalised_advantages(*a, gamma=1.0, lam=1.0),
         (TOKENS, TOKENS[:, :2], MASK)),
        (nullspace.project, (jnp.ones((4, 3)), BASIS.astype(jnp.bfloat16), "null")),
        (nullspace.project, (jnp.ones((4, 3), int), BASIS, "null")),
        (projection.from_coordinates, (jnp.ones((3, 3)), BASIS, jnp.ones((4, 3)))),
        (projection.coordinates, (jnp.ones((4, 3)), BASIS[0])),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(function, arguments):
    with pytest.raises(jaxtyping.TypeCheckError):
        function(*arguments)


def test_a_result_of_another_shape_is_refused():
    def centred(rewards):
        return rewards[:-1]

    stated = {"rewards": shapes.Sequences, "return": shapes.Sequences}
    with pytest.raises(jaxtyping.TypeCheckError):
        shapes.check(centred, stated)(np.zeros(3, np.float32))


def test_ranks_are_not_promoted():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)
