"""The optax chain that ends in the projection, and the choice of the trained parameters.

A float32 weight near 1 cannot hold a change of 1e-8: at a learning rate of 1e-6, rounding of the
weights takes 7e-3 of a projected update out of the null space. So a run trains the *change* `D`
from the base model, in float32, and the forward pass forms `W = W0 + D`: sums of projected updates
stay projected. MASTERS names this way and the other one, which trains `W` itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from nspo_jax import settings, trees
from nspo_jax.nullspace import coordinates, projection
from nspo_jax.nullspace import projectors as projectors_lib

MODES = ("none", "update", "gradient", "coordinates")
NAMES = ("adam", "sgd")
MASTERS = ("change", "weights")
path_string = projection.path_string


def build_optimizer(
    learning_rate: float | optax.Schedule,
    projectors: projectors_lib.Projectors | None = None,
    *,
    name: str = "adam",
    mode: str = "update",
    period: int = 1,
    max_gradient_norm: float = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """Chains a clip, AdamW or SGD, and the null-space constraint at the place of `mode`.

    Args:
      learning_rate: a number or an optax schedule.
      projectors: the sites to constrain; not used when mode is "none".
      name: "adam" is AdamW. "sgd" has momentum `b1`; its step falls with the gradient, Adam's does
        not.
      mode: "none" is the optimizer alone. "update" projects last (NSPO). "coordinates" runs the
        optimizer in null-space coordinates. "gradient" projects before the optimizer, the naive
        reading, which leaks from Adam and serves for ablation.
      period: with "update", project the sum of every `period` updates (1: each one).
      max_gradient_norm: global norm at which gradients are clipped.
      weight_decay: decoupled decay of the trained tree, as in AdamW; a change decays to the base
        model. It is 0 in projected runs.
      b1: decay of Adam's first moment, or SGD's momentum.
      b2: decay of Adam's second moment.

    Raises:
      ValueError: for an unknown name or mode, or a period that the mode does not have.
    """
    if name not in NAMES:
        raise ValueError(f"optimizer.name is {name!r}; expected one of {', '.join(NAMES)}.")
    if mode not in MODES:
        raise ValueError(f"projection.mode is {mode!r}; expected one of {', '.join(MODES)}.")
    check_period(mode, period)
    clip = optax.clip_by_global_norm(max_gradient_norm)
    if name == "adam":
        descent = optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)
    else:
        descent = optax.chain(
            optax.trace(b1) if b1 else optax.identity(),
            optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity(),
            optax.scale_by_learning_rate(learning_rate),
        )
    if mode == "none":
        return optax.chain(clip, descent)
    if projectors is None:
        raise ValueError(f"projection.mode is {mode!r}, which needs projectors; none were given.")
    if mode == "coordinates":
        return optax.chain(clip, coordinates.in_null_space(descent, projectors))
    if mode == "gradient":
        return optax.chain(projection.null_space_projection(projectors), clip, descent)
    return optax.chain(clip, descent, projection.null_space_projection(projectors, period=period))


def check_period(mode: str, period: int) -> None:
    """Raises ValueError for a period that the mode does not have."""
    if period != 1 and mode != "update":
        raise ValueError(
            f"projection.period is {period} with projection.mode={mode!r}; only mode 'update' can "
            "wait. Set projection.period=1."
        )


def partition(params: Any, targets: str, untargeted: str) -> tuple[Any, Any]:
    """Splits parameters into (trainable, frozen): two trees with None where the other has a leaf.

    Args:
      params: nested dict of arrays.
      targets: "+"-joined names of the trained parts: attention, mlp and head (their linear
        kernels), and embed.
      untargeted: "freeze" or "train", for everything else (norms, biases, other parts).

    Raises:
      ValueError: for an unknown value of either.
    """
    names = projectors_lib.parse_targets(targets)
    if untargeted not in ("freeze", "train"):
        raise ValueError(f"projection.untargeted is {untargeted!r}; expected 'freeze' or 'train'.")

    def trained(path) -> bool:
        name = path_string(path)
        is_target = projectors_lib.target_of(name) in names and name.endswith(
            ("/kernel", "/embedding")
        )
        return is_target or untargeted == "train"

    trainable = jax.tree.map_with_path(lambda path, leaf: leaf if trained(path) else None, params)
    frozen = jax.tree.map_with_path(lambda path, leaf: None if trained(path) else leaf, params)
    return trainable, frozen


def open_master(base: Any, targets: str, untargeted: str, master: str) -> tuple[Any, Any]:
    """Returns the trained tree and the fixed one beside it; `combine` makes weights of the two.

    Args:
      base: the base model's parameters.
      targets: see `partition`.
      untargeted: see `partition`.
      master: "change" trains zeros and fixes the whole base. "weights" trains leaves of the base
        and fixes the others.

    Raises:
      ValueError: for the reasons of `partition`, and for an unknown master.
    """
    if master not in MASTERS:
        raise ValueError(f"optimizer.master is {master!r}; expected one of {', '.join(MASTERS)}.")
    trainable, frozen = partition(base, targets, untargeted)
    if master == "weights":
        return trainable, frozen
    return jax.tree.map(jnp.zeros_like, trainable), base


def combine(trained: Any, fixed: Any, dtype: Any = jnp.float32) -> Any:
    """Joins the two trees of `open_master` or `partition` to the parameters of a model.

    A leaf of both trees is a change and its base, and becomes float32 `W0 + D`. With a lower
    `dtype` the sums of stacked matrices are converted to it, as a layer would convert them.
    """

    def join(path, trained, fixed):
        if trained is None or fixed is None:
            return fixed if trained is None else trained
        total = fixed.astype(jnp.float32) + trained
        stacked_matrix = total.ndim == 3 and trees.is_stacked(path_string(path))
        return total.astype(dtype) if stacked_matrix else total

    return jax.tree.map_with_path(join, trained, fixed, is_leaf=lambda leaf: leaf is None)


def select_projectors(
    run: settings.Run, projectors: projectors_lib.Projectors
) -> projectors_lib.Projectors | None:
    """Selects the projectors that `run.projection` names; None for mode none."""
    if run.projection.mode == "none":
        return None
    selected = projectors.select(run.projection.targets)
    if run.projection.basis == "random":
        selected = selected.randomized(run.rl_seed)
    return selected


def from_settings(run: settings.Run, projectors: Any) -> optax.GradientTransformation:
    """Builds the optax chain that `run.optimizer` and `run.projection` describe."""
    return build_optimizer(
        run.optimizer.learning_rate,
        projectors,
        name=run.optimizer.name,
        mode=run.projection.mode,
        period=run.projection.period,
        max_gradient_norm=run.optimizer.max_gradient_norm,
        weight_decay=run.optimizer.weight_decay,
        b1=run.optimizer.b1,
        b2=run.optimizer.b2,
    )


def freeze(frozen: Any, dtype: str) -> Any:
    """Converts frozen matrices to the `dtype` that they are held in; vectors stay as they are.

    Raises:
      ValueError: if that would change one of them.
    """

    def held(path, leaf):
        if not trees.is_matrix(path_string(path), leaf) or dtype == leaf.dtype:
            return leaf
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(leaf.shape, dtype)
        narrow = leaf.astype(dtype)
        if not jnp.array_equal(narrow.astype(leaf.dtype), leaf):
            raise ValueError(
                f"model.frozen_dtype is {dtype}, which would round the base model's "
                f"{path_string(path)}: its checkpoint has more digits. Set "
                "model.frozen_dtype=float32."
            )
        return narrow

    return jax.tree.map_with_path(held, frozen)
