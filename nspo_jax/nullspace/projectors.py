"""Projectors: one basis per input site of a model, with its spectrum and its provenance.

They are stored as a directory with `projectors.safetensors` (bases, ranks, spectra) and
`projectors.json` (kernels, sides, provenance). Both are readable without JAX.
"""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from nspo_jax import distributed, files, models, version
from nspo_jax.nullspace import projection
from nspo_jax.nullspace import spectrum as spectrum_lib

# From the tree {"bases": {site: array}} to a tree of shardings.
FORMAT = 2
TARGETS = ("attention", "mlp", "head", "embed")
# The fields of a model's config that decide the layout of its kernels. Shapes alone do not, since
# another number of heads may have the same ones.
LAYOUT = (
    "family", "num_layers", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads",
    "head_dim", "vocab_size", "tie_embeddings",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Projectors:
    """Bases by site, ready for `null_space_projection` and `in_null_space`.

    Attributes:
      sites: site name ("layers/mlp/in") -> `projection.Site`.
      spectra: site name -> the second moment's `Spectrum`.
      provenance: the record of their making; see `provenance`.

    Examples:
      `nspo_jax.calibrate` makes them for a model of this package. These belong to a foreign layer:

      >>> import numpy as np
      >>> import nspo_jax
      >>> from nspo_jax.nullspace import spectrum
      >>> moment = np.diag([4.0, 1.0, 0.0])  # [in, in]
      >>> site = nspo_jax.site_from_moment(("mlp/up/kernel",), moment, "fixed(2)")
      >>> known = spectrum.single(np.diag(moment), trace=5.0, size=3)
      >>> projectors = nspo_jax.Projectors({"mlp/in": site}, {"mlp/in": known}, {"model": "mine"})
      >>> list(projectors.select("mlp").sites)
      ['mlp/in']
      >>> (row,) = projectors.summary()
      >>> row["in"], row["rank"], round(row["free"], 2), row["energy"]
      (3, 2, 0.33, 1.0)
    """

    sites: dict[str, projection.Site]
    spectra: dict[str, spectrum_lib.Spectrum]
    provenance: dict[str, Any]

    def select(self, targets: str) -> "Projectors":
        """Keeps the sites of some targets.

        Args:
          targets: "+"-joined names of attention, mlp, head and embed: "mlp+attention".

        Raises:
          ValueError: for an unknown target, or one that this model has no site for.
        """
        names = parse_targets(targets)
        kept = {name: site for name, site in self.sites.items() if target_of(name) in names}
        absent = sorted(set(names) - {target_of(name) for name in kept})
        if absent:
            tied = set(absent) <= {"head", "embed"}
            reason = "a tied head is the embedding" if tied else "no such site"
            raise ValueError(
                f"projection.targets is {targets!r}, but there is no projector for "
                f"{'+'.join(absent)} ({reason}). Available: "
                f"{'+'.join(sorted({target_of(name) for name in self.sites}))}."
            )
        return dataclasses.replace(
            self, sites=kept, spectra={name: self.spectra[name] for name in kept}
        )

    def randomized(self, seed: int) -> "Projectors":
        """Draws a random subspace of the same rank at every site, as a control (host, float64)."""
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

    def place(self, shardings: models.Shardings) -> "Projectors":
        """Copies to each device the part of the bases that it needs; see `load_projectors`."""
        bases = {name: site.basis for name, site in self.sites.items()}
        bases = distributed.put(bases, shardings({"bases": bases})["bases"])
        sites = {n: dataclasses.replace(s, basis=bases[n]) for n, s in self.sites.items()}
        return dataclasses.replace(self, sites=sites)

    def summary(self) -> list[dict[str, Any]]:
        """Makes a row per site and layer; see `summary_row`. Bytes include the basis' padding."""
        rows = []
        for name, site in self.sites.items():
            ranks = site.protected_ranks.reshape(-1)
            for layer, (rank, spectrum) in enumerate(
                zip(ranks, self.spectra[name].layers(), strict=True)
            ):
                layer = layer if site.basis.ndim > 2 else None
                size = site.basis.nbytes // len(ranks)
                rows.append(summary_row(name, layer, int(rank), spectrum, size))
        return rows

    def check_model(self, model_config: models.ModelConfig, fingerprint: str) -> None:
        """Raises ValueError unless these were calibrated on this very model.

        Args:
          model_config: the model's config.
          fingerprint: the `models.fingerprint` of its parameters.
        """
        layout = self.provenance["layout"]
        differences = [
            f"{name} {layout[name]!r} there and {getattr(model_config, name)!r} here"
            for name in LAYOUT
            if layout[name] != getattr(model_config, name)
        ]
        if differences:
            raise ValueError(
                "These projectors were calibrated on a model of another layout: "
                f"{'; '.join(differences)}. Run `python -m scripts.calibrate` for this base model."
            )
        if self.provenance["model"] != fingerprint:
            raise ValueError(
                f"These projectors were calibrated on the model {self.provenance['model']}, but "
                f"the base model is {fingerprint}. The null space of one model says nothing about "
                "another: run `python -m scripts.calibrate` again for this base model."
            )

    def save(self, directory: str | pathlib.Path) -> None:
        """Writes the directory, whole or not at all; a kill leaves the old one or the new.

        Raises:
          FileExistsError: if it is there and holds anything but projectors.
        """
        target = pathlib.Path(directory)
        others = [p.name for p in target.glob("*") if p.name not in _FILES]
        if target.exists() and (others or not target.is_dir()):
            raise FileExistsError(
                f"{target} is no directory of projectors ({', '.join(sorted(others)[:5])}), and "
                "saving them there would remove what it is: choose another directory."
            )
        arrays, sites = {}, {}
        for name, site in self.sites.items():
            arrays[f"{name}.basis"] = np.ascontiguousarray(site.basis, np.float32)
            arrays[f"{name}.ranks"] = np.asarray(site.ranks, np.int32)
            spectrum = self.spectra[name]
            arrays[f"{name}.spectrum"] = np.ascontiguousarray(spectrum.values, np.float32)
            arrays[f"{name}.trace"] = np.asarray(spectrum.trace, np.float64)
            arrays[f"{name}.first"] = np.asarray(spectrum.first, np.int32)
            if spectrum.bound is not None:
                arrays[f"{name}.bound"] = np.asarray(spectrum.bound, np.float64)
            sites[name] = {"kernels": list(site.kernels), "side": site.side}
        document = {"format": FORMAT, "sites": sites, "provenance": self.provenance}

        def write(folder: pathlib.Path) -> None:
            safetensors.numpy.save_file(arrays, folder / "projectors.safetensors")
            (folder / "projectors.json").write_text(json.dumps(document, indent=1) + "\n")

        files.write_directory(target, write)


_FILES = ("projectors.safetensors", "projectors.json")


def load_projectors(
    directory: str | pathlib.Path, shardings: models.Shardings | None = None
) -> Projectors:
    """Reads the projectors that `Projectors.save` wrote.

    Args:
      directory: their directory.
      shardings: makes bases arrays on the devices, each of which reads its own part, for example
        `functools.partial(sharding.shardings, mesh)`. None: numpy arrays.

    Raises:
      FileNotFoundError: if the directory or one of its two files is absent.
      ValueError: if a file is damaged or of another format.

    Examples:
      >>> import pathlib, tempfile
      >>> import numpy as np
      >>> import nspo_jax
      >>> from nspo_jax.nullspace import spectrum
      >>> moment = np.diag([4.0, 1.0, 0.0])  # [in, in]
      >>> site = nspo_jax.site_from_moment(("mlp/up/kernel",), moment, "fixed(2)")
      >>> known = spectrum.single(np.diag(moment), trace=5.0, size=3)
      >>> made = nspo_jax.Projectors({"mlp/in": site}, {"mlp/in": known}, {"model": "mine"})
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     made.save(pathlib.Path(folder) / "projectors")
      ...     read = nspo_jax.load_projectors(pathlib.Path(folder) / "projectors")
      >>> read.provenance, bool(np.all(read.sites["mlp/in"].basis == site.basis))
      ({'model': 'mine'}, True)
    """
    directory = pathlib.Path(directory)
    for name in ("projectors.json", "projectors.safetensors"):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory} has no {name}. Expected a directory written by "
                "`python -m scripts.calibrate`; run it, or correct the path."
            )
    try:
        document = files.read_json(
            directory / "projectors.json", "delete the directory and calibrate again"
        )
        if document["format"] != FORMAT:
            raise ValueError(f"format is {document['format']}, expected {FORMAT}")
        with safetensors.safe_open(directory / "projectors.safetensors", "numpy") as file:
            bases = _load_bases(file, list(document["sites"]), shardings)
            sites, spectra, stored = {}, {}, set(file.keys())
            for name, entry in document["sites"].items():
                kernels, side = tuple(entry["kernels"]), entry["side"]
                ranks = file.get_tensor(f"{name}.ranks")
                bound = f"{name}.bound"  # older files have no bounds
                sites[name] = projection.Site(kernels, bases[name], side, ranks)
                spectra[name] = spectrum_lib.Spectrum(
                    values=file.get_tensor(f"{name}.spectrum"),
                    trace=file.get_tensor(f"{name}.trace"),
                    first=file.get_tensor(f"{name}.first"),
                    size=sites[name].size,
                    bound=file.get_tensor(bound) if bound in stored else None,
                )
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"The projectors in {directory} cannot be read ({error}). The files are damaged or of "
            "another version: delete the directory and run `python -m scripts.calibrate` again."
        ) from error
    return Projectors(sites, spectra, document["provenance"])


def _load_bases(file: Any, names: list[str], shardings: models.Shardings | None) -> dict[str, Any]:
    if shardings is None:
        return {name: file.get_tensor(f"{name}.basis") for name in names}
    slices = {name: file.get_slice(f"{name}.basis") for name in names}
    abstract = {
        name: jax.ShapeDtypeStruct(part.get_shape(), np.float32) for name, part in slices.items()
    }
    placed = shardings({"bases": abstract})["bases"]
    return {
        name: jax.make_array_from_callback(
            tuple(part.get_shape()), placed[name], lambda index, part=part: part[index]
        )
        for name, part in slices.items()
    }


def provenance(
    model_config: models.ModelConfig,
    *,
    model: str,
    data: str,
    rule: str,
    tokens: int,
    statistics: str,
    first_token: str,
) -> dict[str, Any]:
    """Makes the record of how projectors were made, JSON-able.

    `model` is the base model's fingerprint, `data` names the text, and `tokens` counts it. rule,
    statistics and first_token are the choices of `calibrate`. The record adds the model's layout,
    the dtypes, and the versions.
    """
    return {
        "model": model,
        "data": data,
        "tokens": tokens,
        "rule": rule,
        "statistics": statistics,
        "first_token": first_token,
        "layout": {name: getattr(model_config, name) for name in LAYOUT},
        "dtypes": {
            "activations": model_config.compute_dtype,
            "products": "float32",
            "bases": "float32",
        },
        "versions": {"nspo_jax": version.VERSION, "jax": jax.__version__},
    }


def format_provenance(provenance: dict[str, Any]) -> str:
    """Formats a provenance in a line, without its nested values."""
    plain = {name: value for name, value in provenance.items() if not isinstance(value, dict)}
    return ", ".join(f"{name} {value}" for name, value in plain.items())


def summary_row(
    site: str, layer: int | None, rank: int, spectrum: spectrum_lib.Spectrum, size: int
) -> dict[str, Any]:
    """Makes a row: site, layer, in, rank, free share, protected energy, gap at the cut, bytes."""
    return {
        "site": site,
        "layer": layer,
        "in": spectrum.size,
        "rank": rank,
        "free": 1.0 - rank / spectrum.size,
        "energy": spectrum.energy(rank),
        "gap": spectrum.gap(rank),
        "bytes": size,
    }


def target_of(name: str) -> str:
    """Returns the target of a site or parameter path, such as "mlp" for "layers/mlp/in", or ""."""
    parts = name.split("/")
    return next((target for target in TARGETS if target in parts), "")


def parse_targets(targets: str) -> tuple[str, ...]:
    """Splits targets such as "mlp+attention"; raises ValueError for an unknown or absent one."""
    names = tuple(name for name in targets.split("+") if name)
    unknown = [name for name in names if name not in TARGETS]
    if unknown or not names:
        raise ValueError(
            f"projection.targets is {targets!r}; expected one or more of {', '.join(TARGETS)}, "
            "joined by '+', for example mlp+attention."
        )
    return names
