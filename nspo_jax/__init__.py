"""nspo_jax: safety alignment without the alignment tax, by null-space constrained updates in JAX.

The projection is an optax transform that needs no other part of this package:

    projectors = nspo_jax.load_projectors(path)
    optimizer = optax.chain(optax.adamw(1e-6), nspo_jax.null_space_projection(projectors))
"""

from nspo_jax.nullspace import (
    Moment,
    Projectors,
    RankRule,
    RankRules,
    Site,
    calibrate,
    certify,
    embedding_site,
    in_null_space,
    init_lora_a,
    load_projectors,
    null_space_projection,
    site_from_moment,
)
from nspo_jax.version import VERSION

__version__ = VERSION

__all__ = [
    "Moment",
    "Projectors",
    "RankRule",
    "RankRules",
    "Site",
    "calibrate",
    "certify",
    "embedding_site",
    "in_null_space",
    "init_lora_a",
    "load_projectors",
    "null_space_projection",
    "site_from_moment",
]
