"""The checks of tests/shapes.py: they are in place, complete, and refuse what does not fit."""

import importlib
import inspect
import pkgutil
import types
import typing

from flax import nnx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest

from nspo_jax import models, nullspace
from nspo_jax.models import attention, generation, layers, sampling
from nspo_jax.nullspace import eigen, projection, rank_rules, special_sites
from nspo_jax.rl import advantages, losses
from tests import shapes

CHECKED = [
    *(f"{nullspace.__name__}.{module.name}" for module in pkgutil.iter_modules(nullspace.__path__)),
    *(module.__name__ for module in (losses, advantages, attention, sampling, generation)),
]
TOKENS, MASK = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
BASIS = jnp.eye(4)[:, :2]
CONFIG = models.ModelConfig(
    vocab_size=8, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=2, num_kv_heads=1,
    head_dim=4, rope_theta=1e4, rms_norm_eps=1e-6, tie_embeddings=False, max_length=8,
)  # fmt: skip
KEYS = jax.random.split(jax.random.key(0), 2)
INT32 = jnp.zeros(2, jnp.int32)


def holds_arrays(annotation):
    """Whether a value of this type is an array, maybe one, or a tuple with one."""
    if annotation in (jax.Array, np.ndarray):
        return True
    if annotation == optax.Params or typing.get_origin(annotation) not in (
        tuple, typing.Union, types.UnionType,
    ):  # fmt: skip
        return False
    return any(map(holds_arrays, typing.get_args(annotation)))


def functions(module):
    """The public functions and methods that a module defines, by name."""
    for name, value in vars(module).items():
        if name[0] == "_" or getattr(value, "__module__", None) != module.__name__:
            continue
        members = {name: value}
        if inspect.isclass(value):
            members = {
                f"{name}.{member}": getattr(method, "fget", method)
                for member, method in vars(value).items()
                if member[0] != "_" or member == "__call__"
            }
        yield from ((key, member) for key, member in members.items() if inspect.isfunction(member))


def functions_of_arrays(module):
    """The names of a module's public functions and methods that take or return arrays.

    Those that are checked have other annotations, and are not among them.
    """
    return {
        name
        for name, function in functions(module)
        if any(map(holds_arrays, function.__annotations__.values()))
    }


@pytest.mark.parametrize("name", CHECKED)
def test_every_public_function_of_arrays_has_its_shapes_stated(name):
    module = importlib.import_module(name)
    assert not functions_of_arrays(module)
    assert set(shapes.SIGNATURES.get(module, ())) <= {name for name, _ in functions(module)}


def test_a_function_without_stated_shapes_is_found():
    assert {"softcap", "Linear.__call__"} <= functions_of_arrays(layers)


def context(time=3, slots=None):
    """Makes the context of two rows of so many tokens."""
    past = None if slots is None else jnp.ones((2, slots), bool)
    return attention.make_context(CONFIG, jnp.ones((2, time), bool), INT32, past)


def attend(x, made, past=None):
    """Runs the attention of a fresh layer."""
    return attention.Attention(CONFIG, rngs=nnx.Rngs(params=jax.random.key(0)))(
        x, made, past, lambda site, inputs: None
    )


PAST = jnp.zeros((2, 5, 1, 4))


def test_what_fits_is_let_through():
    out, (keys, values) = attend(jnp.zeros((6, 8)), context(slots=5), (PAST, PAST))
    assert out.shape == (6, 8) and keys.shape == values.shape == (2, 3, 1, 4)
    token, logprob = sampling.sample_token(jnp.zeros((2, 8)), KEYS)
    assert token.shape == logprob.shape == (2,)
    assert nullspace.project(jnp.ones((4, 3)), BASIS, "null").shape == (4, 3)


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
        (lambda basis: projection.Site(("w",), basis, "null", np.int32(2)).project(TOKENS.T),
         (np.eye(3)[:, :2],)),
        (eigen.decompose, (jnp.ones((3, 2)), lambda *_: [1])),
        (rank_rules.RankRule.parse("fixed(2)").rank, (np.ones((2, 3)),)),
        (special_sites.embedding_site, ("embed", 5, np.array([0.0, 3.0]))),
        (attention.make_context, (CONFIG, MASK, INT32[:1], None)),
        (attention.make_context, (CONFIG, MASK, INT32, MASK[:1])),
        (lambda made: made.of_layer(jnp.zeros(1, jnp.int32)), (context(),)),
        (attend, (jnp.zeros((2, 3, 8)), context())),
        (attend, (jnp.zeros((6, 8)), context()._replace(distance=jnp.zeros((2, 3, 4), int)))),
        (attend, (jnp.zeros((6, 8)), context(slots=5), (PAST, PAST[:, :4]))),
        (attend, (jnp.zeros((6, 8)), context(slots=4), (PAST, PAST))),
        (sampling.sample_token, (jnp.zeros((2, 8)), KEYS[:1])),
        (sampling.sample_token, (jnp.zeros(8), KEYS)),
        (sampling.sample_token, (jnp.zeros((2, 8), jnp.bfloat16), KEYS)),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(function, arguments):
    with pytest.raises(jaxtyping.TypeCheckError):
        function(*arguments)


def test_shapes_are_checked_inside_compiled_functions():
    with pytest.raises(jaxtyping.TypeCheckError):
        jax.jit(losses.sequence_mean)(TOKENS, MASK[:, :2])
    params = models.abstract_params(CONFIG)
    with pytest.raises(jaxtyping.TypeCheckError):  # a key a prompt, not one a completion
        jax.eval_shape(
            lambda params: generation.generate(
                CONFIG, params, jnp.zeros((2, 3), jnp.int32), MASK, KEYS,
                samples=2, max_new_tokens=2, stop_ids=(1,),
            ), params,
        )  # fmt: skip


def test_a_result_of_another_shape_is_refused():
    def centred(rewards):
        return rewards[:-1]

    stated = {"rewards": shapes.Sequences, "return": shapes.Sequences}
    with pytest.raises(jaxtyping.TypeCheckError):
        shapes.check(centred, stated)(np.zeros(3, np.float32))


def test_a_field_of_another_shape_is_refused():
    def loss(values):
        return losses.PreferenceLoss(values[0], values[0], values)

    stated = {"return": shapes.SIGNATURES[losses]["dpo_loss"]["return"]}
    with pytest.raises(jaxtyping.TypeCheckError):
        shapes.check(loss, stated)(jnp.zeros(3))


def test_an_annotation_of_no_argument_is_refused():
    with pytest.raises(TypeError, match="no arguments {'mask'}"):
        shapes.check(projection.stack_bases, {"mask": shapes.Mask})


def test_ranks_are_not_promoted():
    with pytest.raises(ValueError, match="rank_promotion"):
        jnp.ones((2, 3)) + jnp.ones(3)
