"""Projectors on disk, made once by calibration and checked whenever they are opened."""

from collections.abc import Iterable, Mapping
import dataclasses
import logging
import pathlib
from typing import Any

import jax
import numpy as np

from nspo_jax import artifacts, distributed, models
from nspo_jax.nullspace import calibration
from nspo_jax.nullspace import projectors as projectors_lib

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Text:
    """The general text that projectors are calibrated on.

    Attributes:
      batches: batches of encoded conversations; see `calibration.calibrate`.
      digest: their digest, which identifies them.
      fields: the settings that they depend on, name -> value, for messages.
    """

    batches: Iterable[dict[str, np.ndarray]]
    digest: str
    fields: Mapping[str, Any]


def open_projectors(
    directory: pathlib.Path,
    model_config: models.ModelConfig,
    source: models.LayerSource,
    text: Text,
    *,
    rank_rule: str,
    statistics: str,
    first_token: str,
    mesh: jax.sharding.Mesh,
) -> projectors_lib.Projectors:
    """Loads the projectors in a directory, or calibrates them into it. Collective.

    Args:
      directory: their directory.
      model_config: the base model's config.
      source: the source of its layers.
      text: the text that it reads.
      rank_rule: see `rank_rules`.
      statistics: see `calibration.calibrate`.
      first_token: see `calibration.calibrate`.
      mesh: the device mesh.

    Raises:
      ValueError: if those on disk belong to another model or other text.
    """

    def make() -> None:
        _log.info("calibrating projectors into %s", directory)
        made = calibration.calibrate(
            model_config,
            source,
            text.batches,
            rank_rule=rank_rule,
            statistics=statistics,
            first_token=first_token,
            data=text.digest,
            mesh=mesh,
            scratch=directory.with_name(f"{directory.name}.unfinished"),
        )
        made = dataclasses.replace(made, provenance=made.provenance | {"text": dict(text.fields)})
        if distributed.is_primary():
            made.save(directory)

    artifacts.make_once(directory, "projectors", make)
    projectors = projectors_lib.load_projectors(directory)
    try:
        projectors.check_model(model_config, source.fingerprint())
        _check_text(projectors.provenance, text)
    except ValueError as error:
        raise ValueError(
            f"{error} (Found in {directory}; delete it to calibrate anew, or set another "
            "config.workspace.)"
        ) from error
    return projectors


def _check_text(provenance: Mapping[str, Any], text: Text) -> None:
    """Raises ValueError if the projectors were calibrated on another text."""
    if provenance["data"] == text.digest:
        return
    found = provenance.get("text")
    if found:
        reason = artifacts.differences(text.fields, found) or "the data has changed"
    else:
        reason = f"one of {', '.join(text.fields)} has changed, or the data"
    raise ValueError(f"These projectors were calibrated on other text than the config's: {reason}.")
