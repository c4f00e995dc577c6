"""Shape and dtype checks of the public maths, in every test: jaxtyping's, with beartype.

The package does not depend on jaxtyping (`nullspace/projection.py` may be copied into another
project and imports jax, numpy and optax alone), so the signatures stand here. `install` wraps the
functions where they are defined, wherever else they were imported, and in the package's tables.
"""

from collections.abc import Callable
import functools
import sys
import types
from typing import Any

import beartype
import jax
import jaxtyping
from jaxtyping import Bool, Float, Float32, Float64, Shaped
import numpy as np

from nspo_jax.nullspace import projection
from nspo_jax.rl import advantages, losses

Array = jax.Array | np.ndarray
Scalar = Float32[Array, ""]
# float64 where a test has turned it on
Tokens = Float32[Array, "batch time"] | Float64[Array, "batch time"]
Sequences = Float32[Array, "batch"]
Mask = Bool[Array, "batch time"]
Basis = Float32[Array, "*stack inputs k"]
# A kernel's stack and its axes are an input's and an output's; how many, `projection._fits` says.
Kernel = Float[Array, "*kernel"]
# Rewards as they come: the functions themselves refuse what makes no whole groups.
Rewards = Shaped[Array, "..."] | list
Groups = {"rewards": Rewards, "group_size": int, "return": Float32[np.ndarray, "completions"]}
Policy = {
    "logprobs": Tokens, "old_logprobs": Tokens, "mask": Mask, "return": losses.PolicyLoss,
    "advantages": Float32[Array, "batch"] | Float32[Array, "batch time"],
}  # fmt: skip

# Arguments that have no type here are numbers.
SIGNATURES: dict[types.ModuleType, dict[str, dict[str, Any]]] = {
    projection: {
        "stack_bases": {"return": Float32[np.ndarray, "sites inputs k"]},
        "coordinates": {"kernel": Kernel, "basis": Basis, "return": Float32[Array, "*stack k out"]},
        "from_coordinates": {
            "values": Float32[Array, "*stack k out"], "basis": Basis, "like": Kernel,
            "return": Kernel,
        },
        "project": {"update": Kernel, "basis": Basis, "side": str, "return": Kernel},
    },
    losses: {
        "sequence_mean": {"values": Tokens, "mask": Mask, "return": Scalar},
        "aggregate": {
            "values": Tokens, "mask": Mask, "how": str, "tokens": float | Float32[Array, ""] | None,
            "return": Scalar,
        },
        "bounded_exp": {"x": Float[Array, "*x"], "return": Float[Array, "*x"]},
        "kl_estimate": {
            "logprobs": Tokens, "reference_logprobs": Tokens, "mask": Mask, "estimator": str,
            "return": Tokens,
        },
        "importance_weights": {
            "logprobs": Tokens, "sampler_logprobs": Tokens, "mask": Mask, "return": Tokens,
        },
        "grpo_loss": Policy,
        "gspo_loss": Policy,
        "clipped_loss": {
            "ratio": Tokens, "logprobs": Tokens, "mask": Mask, "return": losses.PolicyLoss,
            "advantages": Policy["advantages"], "weights": Tokens | None,
            "reference_logprobs": Tokens | None,
        },
        "value_loss": {
            "values": Tokens, "old_values": Tokens, "returns": Tokens, "mask": Mask,
            "return": Scalar,
        },
        "dpo_loss": {
            "chosen": Sequences, "rejected": Sequences, "reference_chosen": Sequences,
            "reference_rejected": Sequences, "return": losses.PreferenceLoss,
        },
    },
    advantages: {
        "group_advantages": Groups,
        "centred_advantages": Groups,
        "leave_one_out_advantages": Groups,
        "generalised_advantages": {
            "rewards": Tokens, "values": Tokens, "mask": Mask, "return": tuple[Tokens, Tokens],
        },
    },
}  # fmt: skip
# Functions of names and parameter trees, which have no shape of their own.
OF_TREES = {
    "path_string", "null_space_projection", "copy_bases", "sites_of", "match_kernels",
    "leaves_by_path", "map_kernels",
}  # fmt: skip


def check(function: types.FunctionType, annotations: dict[str, Any]) -> Callable:
    """Wraps a function: a wrong shape or dtype, of its arguments or result, raises TypeCheckError.

    Axes of one name have one size within a call.
    """
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__,
        function.__defaults__, function.__closure__,
    )  # fmt: skip
    copy = functools.update_wrapper(copy, function)
    del copy.__wrapped__  # which the checkers would look at
    copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, dict(annotations)
    return jaxtyping.jaxtyped(copy, typechecker=beartype.beartype)


def install() -> None:
    """Puts the checked functions in place of the package's own, for the whole process."""
    for module, signatures in SIGNATURES.items():
        for name, annotations in signatures.items():
            own = getattr(module, name)
            _replace(own, check(own, annotations))


def _replace(own: Callable, checked: Callable) -> None:
    for module in [*sys.modules.values()]:
        if not getattr(module, "__name__", "").startswith("nspo_jax"):
            continue
        for name, value in [*vars(module).items()]:
            if value is own:
                setattr(module, name, checked)
            elif isinstance(value, dict) and name.isupper():
                value.update({key: checked for key, other in value.items() if other is own})
