"""The contribution: projectors, the optax transforms that apply them, the certificate."""

from nspo_jax.nullspace.calibration import build_projectors, calibrate, second_moments
from nspo_jax.nullspace.certificate import certify, drift, format_certificate
from nspo_jax.nullspace.projection import Site, in_null_space, null_space_projection, project
from nspo_jax.nullspace.projectors import Projectors, load_projectors
from nspo_jax.nullspace.rounding import feedback_rounding

__all__ = [
    "Projectors",
    "Site",
    "build_projectors",
    "calibrate",
    "certify",
    "drift",
    "feedback_rounding",
    "format_certificate",
    "in_null_space",
    "load_projectors",
    "null_space_projection",
    "project",
    "second_moments",
]
