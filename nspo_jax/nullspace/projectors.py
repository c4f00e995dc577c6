"""Projectors: one basis per input site of a model, with the spectrum and provenance it came from.

On disk: a directory with `projectors.safetensors` (bases, ranks, spectra) and `projectors.json`
(kernels, sides, provenance). Both are readable without JAX.
"""

from collections.abc import Callable
import dataclasses
import json
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from nspo_jax.nullspace import projection

FORMAT = 1
TARGETS = ("attention", "mlp", "head")


@dataclasses.dataclass(frozen=True)
class Projectors:
    """Bases by site, ready for `null_space_projection` and `in_null_space`.

    Attributes:
      sites: site name ("layers/mlp/in") -> `projection.Site`.
      spectra: site name -> float32 [*stack, in], the second moment's eigenvalues, descending.
      provenance: what made them: `model` (fingerprint), `data` (digest), `tokens`, `rule`.
    """

    sites: dict[str, projection.Site]
    spectra: dict[str, np.ndarray]
    provenance: dict[str, Any]

    def select(self, targets: str) -> "Projectors":
        """Keeps the sites of some targets.

        Args:
          targets: "+"-joined names of attention, mlp and head: "mlp+attention".

        Raises:
          ValueError: for an unknown target, or one that this model has no site for.
        """
        names = parse_targets(targets)
        kept = {name: site for name, site in self.sites.items() if target_of(name) in names}
        absent = sorted(set(names) - {target_of(name) for name in kept})
        if absent:
            reason = "a tied head is the embedding" if absent == ["head"] else "no such site"
            raise ValueError(
                f"projection.targets is {targets!r}, but there is no projector for "
                f"{'+'.join(absent)} ({reason}). Available: "
                f"{'+'.join(sorted({target_of(name) for name in self.sites}))}."
            )
        return dataclasses.replace(
            self, sites=kept, spectra={name: self.spectra[name] for name in kept}
        )

    def randomized(self, seed: int) -> "Projectors":
        """The control arm: a random subspace of the same rank at every site (host, float64)."""
        rng = np.random.default_rng(seed)

        def draw(site: projection.Site) -> projection.Site:
            if site.side == projection.ROWS:
                return dataclasses.replace(site, basis=rng.permuted(site.basis, axis=-2))
            ranks = np.asarray(site.ranks)
            bases = [
                np.linalg.qr(rng.standard_normal((site.size, rank)))[0]
                for rank in ranks.reshape(-1)
            ]
            basis = projection.stack_bases(bases).reshape(*ranks.shape, site.size, -1)
            return dataclasses.replace(site, basis=basis)

        sites = {name: draw(site) for name, site in self.sites.items()}
        provenance = {**self.provenance, "randomized": seed}
        return dataclasses.replace(self, sites=sites, provenance=provenance)

    def summary(self) -> list[dict[str, Any]]:
        """A row a site and layer: site, layer, in, rank, free share, protected energy, gap, bytes.

        The gap is the last protected eigenvalue over the first free one, inf where that is zero and
        nan where there is no cut; bytes are those of the stored basis, padding included.
        """
        rows = []
        for name, site in self.sites.items():
            ranks = site.protected_ranks.reshape(-1)
            spectra = np.maximum(self.spectra[name].reshape(len(ranks), -1), 0.0)
            for layer, (rank, spectrum) in enumerate(zip(ranks, spectra, strict=True)):
                rows.append({
                    "site": name,
                    "layer": layer if site.basis.ndim > 2 else None,
                    "in": site.size,
                    "rank": int(rank),
                    "free": 1.0 - int(rank) / site.size,
                    "energy": float(spectrum[:rank].sum() / spectrum.sum()),
                    "gap": _gap(spectrum, int(rank)),
                    "bytes": site.basis.nbytes // len(ranks),
                })  # fmt: skip
        return rows

    def check_model(self, fingerprint: str) -> None:
        """Raises ValueError unless these were calibrated on the model with this fingerprint."""
        if self.provenance["model"] != fingerprint:
            raise ValueError(
                f"These projectors were calibrated on the model {self.provenance['model']}, but "
                f"the base model is {fingerprint}. The null space of one model says nothing about "
                "another: run `python -m scripts.calibrate` again for this base model."
            )

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes the directory, whole or not at all: a kill leaves the old one or the new."""
        arrays, sites = {}, {}
        for name, site in self.sites.items():
            arrays[f"{name}.basis"] = np.ascontiguousarray(site.basis, np.float32)
            arrays[f"{name}.ranks"] = np.asarray(site.ranks, np.int32)
            arrays[f"{name}.spectrum"] = np.ascontiguousarray(self.spectra[name], np.float32)
            sites[name] = {"kernels": list(site.kernels), "side": site.side}
        document = {"format": FORMAT, "sites": sites, "provenance": self.provenance}

        def write(folder: pathlib.Path) -> None:
            safetensors.numpy.save_file(arrays, folder / "projectors.safetensors")
            (folder / "projectors.json").write_text(json.dumps(document, indent=1) + "\n")

        write_directory(directory, write)


def load_projectors(directory: str | pathlib.Path) -> Projectors:
    """Reads what `Projectors.save` wrote.

    Raises:
      FileNotFoundError: if the directory or one of its two files is absent.
      ValueError: if a file is damaged or of another format.
    """
    directory = pathlib.Path(directory)
    for name in ("projectors.json", "projectors.safetensors"):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory} has no {name}. Expected a directory written by "
                "`python -m scripts.calibrate`; run it, or correct calibration.path."
            )
    try:
        document = json.loads((directory / "projectors.json").read_text())
        arrays = safetensors.numpy.load_file(directory / "projectors.safetensors")
        if document["format"] != FORMAT:
            raise ValueError(f"format is {document['format']}, expected {FORMAT}")
        sites = {
            name: projection.Site(
                kernels=tuple(entry["kernels"]),
                basis=arrays[f"{name}.basis"],
                side=entry["side"],
                ranks=arrays[f"{name}.ranks"],
            )
            for name, entry in document["sites"].items()
        }
        spectra = {name: arrays[f"{name}.spectrum"] for name in sites}
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"The projectors in {directory} cannot be read ({error}). The files are damaged or of "
            "another version: delete the directory and run `python -m scripts.calibrate` again."
        ) from error
    return Projectors(sites, spectra, document["provenance"])


def _gap(spectrum: np.ndarray, rank: int) -> float:
    """The last protected eigenvalue over the first free one."""
    if not 0 < rank < len(spectrum):
        return float("nan")
    last, first = float(spectrum[rank - 1]), float(spectrum[rank])
    return last / first if first > 0 else float("inf")


def target_of(name: str) -> str:
    """The target that a site or parameter path belongs to: "layers/mlp/in" -> "mlp", else ""."""
    parts = name.split("/")
    return next((target for target in TARGETS if target in parts), "")


def parse_targets(targets: str) -> tuple[str, ...]:
    """Splits "mlp+attention"; raises ValueError for an unknown or absent target."""
    names = tuple(name for name in targets.split("+") if name)
    unknown = [name for name in names if name not in TARGETS]
    if unknown or not names:
        raise ValueError(
            f"projection.targets is {targets!r}; expected one or more of {', '.join(TARGETS)}, "
            "joined by '+', for example mlp+attention."
        )
    return names


def write_directory(directory: str | pathlib.Path, write: Callable[[pathlib.Path], None]) -> None:
    """Calls `write` on a temporary sibling, then renames it into place."""
    directory = pathlib.Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        temporary.chmod(0o755)
        write(temporary)
        if directory.exists():
            shutil.rmtree(directory)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
