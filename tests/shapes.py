"""Shape and dtype checks of the public maths, in every test: jaxtyping's, with beartype.

The package does not depend on jaxtyping (`nullspace/projection.py` may be copied into another
project and imports jax, numpy and optax alone), so the signatures stand here. `install` wraps the
functions where they are defined, wherever else they were imported, and in the package's tables.

Axes of one name have one size within a call, of all arguments and the result. A compiled function
(`generation.generate`) is checked by the functions that it calls, while it is traced.
"""

from collections.abc import Callable
import functools
import inspect
import sys
import types
from typing import Annotated, Any

import beartype
import beartype.door
import beartype.vale
import jax
import jaxtyping
from jaxtyping import Bool, Float, Float32, Float64, Int, Int32, Key, Shaped
import numpy as np

from nspo_jax.models import attention, generation, sampling
from nspo_jax.nullspace import (
    calibration,
    coordinates,
    eigen,
    moments,
    projection,
    rank_rules,
    rounding,
    special_sites,
    spectrum,
    splits,
)
from nspo_jax.rl import advantages, losses


def fields(kind: type, **annotations: Any) -> Any:
    """The type of a tuple or dataclass whose fields have these types, with the axes of the call."""

    def fit(value: Any) -> bool:
        return all(
            beartype.door.is_bearable(getattr(value, name), annotation)
            for name, annotation in annotations.items()
        )

    return Annotated[kind, beartype.vale.Is[fit]]


Array = jax.Array | np.ndarray
Scalar = Float32[Array, ""]
# Their own errors name what does not fit, and are tests' business.
Unchecked = Shaped[Array, "..."] | list

# Tokens' values are float64 where a test has turned it on.
Tokens = Float32[Array, "batch time"] | Float64[Array, "batch time"]
Sequences = Float32[Array, "batch"]
Mask = Bool[Array, "batch time"]
Groups = {"rewards": Unchecked, "group_size": int, "return": Float32[np.ndarray, "completions"]}
OneLoss = fields(losses.PolicyLoss, loss=Scalar, policy=Scalar, clip_share=Scalar, kl=Scalar)
Policy = {
    "logprobs": Tokens, "old_logprobs": Tokens, "mask": Mask, "return": OneLoss,
    "advantages": Sequences | Float32[Array, "batch time"],
}  # fmt: skip

Basis = Float32[Array, "*stack inputs k"]
HostBasis = Float32[np.ndarray, "*stack inputs k"]
# A kernel's stack and its axes are an input's and an output's; how many, `projection._fits` says.
Kernel = Float[Array, "*kernel"]
Ranks = Int[Array, "*stack"] | np.integer
Site = fields(projection.Site, basis=Basis, ranks=Ranks)
Square = Float[Array, "inputs inputs"]
Split = fields(splits.Split, basis=Float32[np.ndarray, "inputs k"], rank=int)
Moment = fields(
    moments.Moment,
    high=Float32[Array, "inputs inputs"], low=Float32[Array, "inputs inputs"],
    first=Float[np.ndarray, "distinct inputs"] | None,
    first_counts=Int[np.ndarray, "distinct"] | None,
)  # fmt: skip
Eigenpairs = fields(
    eigen.Eigenpairs,
    values=Float64[np.ndarray, "k"], vectors=Float32[np.ndarray, "inputs k"], passes=int,
)  # fmt: skip

Angles = Float32[Array, "batch time 1 half"]
Rotation = tuple[Angles, Angles]
Context = fields(
    attention.Context,
    mask=Bool[Array, "batch time time"], distance=Int32[Array, "batch time time"],
    rotation=Rotation, local_rotation=Rotation | None,
    past_mask=Bool[Array, "batch time slots"] | None,
    past_distance=Int32[Array, "batch time slots"] | None,
)  # fmt: skip
Past = Float[Array, "batch slots kv_heads head_dim"]
New = Float[Array, "batch time kv_heads head_dim"]
Inputs = Float[Array, "rows width"]
RowIds, RowKeys = Int32[Array, "rows"], Key[Array, "rows"]
RowValues, RowMask = Float32[Array, "rows"], Bool[Array, "rows"]
Prompts = {"prompts": Int[Array, "prompts length"], "prompt_mask": Bool[Array, "prompts length"]}
Decoding = fields(
    generation.Decoding,
    hidden=Inputs, done=RowMask, step=Int32[Array, ""],
)  # fmt: skip
Prefilled = fields(
    generation.Decoding,
    hidden=Float[Array, "prompts*{samples} width"], done=Bool[Array, "prompts*{samples}"],
    step=Int32[Array, ""],
)  # fmt: skip
Completions = fields(
    generation.Completions,
    tokens=Int32[Array, "prompts*{samples} new"], mask=Bool[Array, "prompts*{samples} new"],
    logprobs=Float32[Array, "prompts*{samples} new"],
)  # fmt: skip

# Arguments that have no type here are numbers, names, trees and models.
SIGNATURES: dict[types.ModuleType, dict[str, dict[str, Any]]] = {
    projection: {
        "Site.protected_ranks": {"return": Ranks},
        "Site.project": {"self": Site, "update": Kernel, "return": Kernel},
        "Site.dense_projector": {
            "self": Site, "return": Float32[np.ndarray, "*stack inputs inputs"],
        },
        "Site.null_basis": {"return": Basis},
        "Site.protected_basis": {"return": Basis},
        "stack_bases": {"return": Float32[np.ndarray, "sites inputs k"]},
        "coordinates": {"kernel": Kernel, "basis": Basis, "return": Float32[Array, "*stack k out"]},
        "from_coordinates": {
            "values": Float32[Array, "*stack k out"], "basis": Basis, "like": Kernel,
            "return": Kernel,
        },
        "project": {"update": Kernel, "basis": Basis, "side": str, "return": Kernel},
    },
    calibration: {
        "site_from_moment": {"moment": Unchecked | moments.Moment, "return": Site},
    },
    coordinates: {
        "nearest_basis": {
            "site": fields(projection.Site, basis=Float32[Array, "*stack inputs given"]),
            "return": Basis,
        },
    },
    eigen: {
        "decompose": {"matrix": Square, "guess": int, "return": tuple[Eigenpairs, list[int]]},
        "leading": {
            "moment": Unchecked, "start": Float32[Array, "inputs columns"] | None,
            "return": Eigenpairs,
        },
    },
    moments: {
        "Moment.add": {"self": Moment, "inputs": Unchecked, "return": Moment},
        "Moment.float64": {"self": Moment, "return": Float64[np.ndarray, "inputs inputs"]},
        "Moment.matrix": {"self": Moment, "return": Square},
    },
    rank_rules: {
        "RankRule.rank": {"eigenvalues": Float[np.ndarray, "known"], "return": int | None},
    },
    rounding: {
        "round_kernel": {
            "kernel": Unchecked, "basis": Unchecked, "side": str,
            "return": Float32[np.ndarray, "inputs out"],
        },
    },
    special_sites: {
        "embedding_site": {"tokens": Int[Array, "..."], "return": Site},
        "init_lora_a": {
            "key": Key[Array, ""], "site": Site, "return": Float32[Array, "*stack inputs {rank}"],
        },
    },
    spectrum: {"single": {"values": Float[np.ndarray, "known"]}},
    splits: {"split_matrix": {"matrix": Square, "return": Split}},
    losses: {
        "sequence_mean": {"values": Tokens, "mask": Mask, "return": Scalar},
        "aggregate": {
            "values": Tokens, "mask": Mask, "how": str, "tokens": float | Scalar | None,
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
            "ratio": Tokens, "logprobs": Tokens, "mask": Mask, "return": OneLoss,
            "advantages": Policy["advantages"], "weights": Tokens | None,
            "reference_logprobs": Tokens | None,
        },
        "value_loss": {
            "values": Tokens, "old_values": Tokens, "returns": Tokens, "mask": Mask,
            "return": Scalar,
        },
        "dpo_loss": {
            "chosen": Sequences, "rejected": Sequences, "reference_chosen": Sequences,
            "reference_rejected": Sequences,
            "return": fields(losses.PreferenceLoss, loss=Scalar, margin=Scalar, accuracy=Scalar),
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
    attention: {
        "Context.of_layer": {
            "self": Context, "window": Int32[Array, ""] | None, "return": Context,
        },
        "make_context": {
            "mask": Mask, "first": Int32[Array, "batch"],
            "past_valid": Bool[Array, "batch slots"] | None, "return": Context,
        },
        "Attention.__call__": {
            "x": Inputs, "context": Context, "past": tuple[Past, Past] | None,
            "return": tuple[Inputs, tuple[New, New]],
        },
    },
    sampling: {
        "sample_token": {
            "logits": Float32[Array, "rows vocabulary"], "keys": RowKeys,
            "return": tuple[RowIds, RowValues],
        },
    },
    generation: {
        "prefill": {**Prompts, "samples": int, "return": Prefilled},
        "decode": {
            "state": Decoding, "keys": RowKeys,
            "return": tuple[Decoding, tuple[RowIds, RowValues, RowMask]],
        },
        "generate_in_batches": {**Prompts, "key": Key[Array, ""], "return": Completions},
        "stream": {
            "prompt": Int[Array, "length"], "prompt_mask": Bool[Array, "length"],
            "key": Key[Array, ""],
        },
    },
}  # fmt: skip


def check(function: types.FunctionType, annotations: dict[str, Any]) -> Callable:
    """Wraps a function: a wrong shape or dtype, of its arguments or result, raises TypeCheckError.

    Raises:
      TypeError: the function has no argument of an annotation's name.
    """
    names = {"return", *inspect.signature(function).parameters}
    if unknown := set(annotations) - names:
        raise TypeError(f"{function.__qualname__} has no arguments {unknown}; it has {names}.")
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
            kind, _, own_name = name.rpartition(".")
            owner = getattr(module, kind) if kind else module
            own = vars(owner)[own_name]
            if isinstance(own, property):
                setattr(owner, own_name, property(check(own.fget, annotations)))
            elif kind:
                setattr(owner, own_name, check(own, annotations))
            else:
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
