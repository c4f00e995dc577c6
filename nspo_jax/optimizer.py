"""The optax chain that ends in the projection, and which parameters it trains."""

from typing import Any

import jax
import optax

from nspo_jax.nullspace import coordinates, projection
from nspo_jax.nullspace import projectors as projectors_lib

MODES = ("none", "update", "gradient", "coordinates")
path_string = projection.path_string


def build_optimizer(
    learning_rate: float | optax.Schedule,
    projectors: projectors_lib.Projectors | None = None,
    *,
    mode: str = "update",
    period: int = 1,
    max_gradient_norm: float = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
) -> optax.GradientTransformation:
    """Clip, AdamW, and the null-space constraint where `mode` says.

    Args:
      learning_rate: a number or an optax schedule.
      projectors: the sites to constrain; not used when mode is "none".
      mode: "none": plain AdamW. "update": project last (NSPO). "coordinates": AdamW in null-space
        coordinates. "gradient": project before Adam, the naive reading, which leaks: for ablation.
      period: with "update", project the sum of every `period` updates (1: each one).
      max_gradient_norm: global norm at which gradients are clipped.
      weight_decay: AdamW's; 0 in projected runs.
      b1: decay of Adam's first moment.
      b2: decay of Adam's second moment.

    Raises:
      ValueError: for an unknown mode, or a period that the mode does not have.
    """
    if mode not in MODES:
        raise ValueError(f"projection.mode is {mode!r}; expected one of {', '.join(MODES)}.")
    check_period(mode, period)
    clip = optax.clip_by_global_norm(max_gradient_norm)
    adam = optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)
    if mode == "none":
        return optax.chain(clip, adam)
    if projectors is None:
        raise ValueError(f"projection.mode is {mode!r}, which needs projectors; none were given.")
    if mode == "coordinates":
        return optax.chain(clip, coordinates.in_null_space(adam, projectors))
    if mode == "gradient":
        return optax.chain(projection.null_space_projection(projectors), clip, adam)
    return optax.chain(clip, adam, projection.null_space_projection(projectors, period=period))


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
      targets: "+"-joined names of what is trained: the linear kernels of attention, mlp and head;
        embed.
      untargeted: "freeze" or "train": everything else (norms, biases, what is no target).

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


def combine(trainable: Any, frozen: Any) -> Any:
    """The whole parameter tree from the two halves that `partition` made."""
    return jax.tree.map(
        lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda leaf: leaf is None
    )
