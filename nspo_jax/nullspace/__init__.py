"""The contribution: projectors, the optax transforms that apply them, and the certificate."""

from nspo_jax.nullspace.calibration import (
    calibrate,
    check_choices,
    preview,
    site_from_moment,
)
from nspo_jax.nullspace.certificate import certify, format_certificate
from nspo_jax.nullspace.coordinates import in_null_space, nearest_basis
from nspo_jax.nullspace.drift import Reference, drift
from nspo_jax.nullspace.moments import Moment, layer_moments, second_moments
from nspo_jax.nullspace.projection import (
    Site,
    null_space_projection,
    project,
)
from nspo_jax.nullspace.projectors import Projectors, format_provenance, load_projectors
from nspo_jax.nullspace.rank_rules import RankRule, RankRules
from nspo_jax.nullspace.rounding import feedback_rounding
from nspo_jax.nullspace.special_sites import embedding_site, init_lora_a
from nspo_jax.nullspace.store import Text, open_projectors

__all__ = [
    "Moment",
    "Projectors",
    "RankRule",
    "RankRules",
    "Reference",
    "Site",
    "Text",
    "calibrate",
    "certify",
    "check_choices",
    "drift",
    "embedding_site",
    "feedback_rounding",
    "format_certificate",
    "format_provenance",
    "in_null_space",
    "init_lora_a",
    "layer_moments",
    "load_projectors",
    "nearest_basis",
    "null_space_projection",
    "open_projectors",
    "preview",
    "project",
    "second_moments",
    "site_from_moment",
]
