"""Limits on a certificate, above which a policy has changed too much of the base model."""

import math
import re
from typing import Any

_DRIFT = ("kl", "max_logit_change", "top1_disagreement")
QUANTITIES = (
    "protected_share", "output_change", "output_bound", "unprotected",
    *(f"{text}.{name}" for text in ("calibration", "held_out") for name in _DRIFT),
)  # fmt: skip


def parse_limits(text: str) -> dict[str, float]:
    """Reads limits such as "protected_share=1e-5+held_out.kl=1e-3"; "" is no limit.

    Raises:
      ValueError: for an unknown quantity, one named twice, or a limit that is no number >= 0.
    """
    limits: dict[str, float] = {}
    for part in re.split(r"\+(?=\s*[A-Za-z_])", text) if text else []:  # 1e+5 is one number
        name, _, value = (piece.strip() for piece in part.partition("="))
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if name not in QUANTITIES:
            problem = f"{name!r} is no quantity of a certificate"
        elif name in limits:
            problem = f"{name} is there twice"
        elif not limit >= 0:
            problem = f"{name} has the limit {value!r}"
        else:
            limits[name] = limit
            continue
        raise ValueError(
            f"The limits are {text!r}, and {problem}; expected NAME=NUMBER with numbers >= 0, "
            f"joined by '+', where NAME is one of {', '.join(QUANTITIES)}. For example "
            "protected_share=1e-5+held_out.kl=1e-3."
        )
    return limits


def quantity(report: dict[str, Any], name: str) -> float:
    """Returns one of QUANTITIES from the report of `certify`.

    `unprotected` is the largest relative change of a parameter without a projector, and
    `top1_disagreement` the share of positions with another most likely token.

    Raises:
      ValueError: for a bound that the certificate could not state.
    """
    if name == "unprotected":
        return max(report["unprotected"].values(), default=0.0)
    if name.endswith(".top1_disagreement"):
        return 1.0 - report[name.partition(".")[0]]["top1_agreement"]
    first, *rest = name.split(".")
    value = report[first]
    for key in rest:
        value = value[key]
    if value is None:
        raise ValueError(
            f"There is no {name} to compare with its limit: the projectors' spectra are of other "
            "text than the certificate was measured on. Give the config, or the projectors, of "
            "this run's calibration."
        )
    return value


def exceeded(report: dict[str, Any], limits: dict[str, float]) -> list[str]:
    """Lists the quantities above their limits, in words; NaN is above every limit."""
    measured = {name: quantity(report, name) for name in limits}
    return [
        f"{name} is {measured[name]:.3g}, the limit {limit:g}"
        for name, limit in limits.items()
        if not measured[name] <= limit
    ]
