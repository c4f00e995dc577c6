"""The splits of moments by a rank rule into a protected and a free side, and their joins.

`Store` keeps finished layers' splits on disk, so that an interrupted calibration continues.
"""

from collections.abc import Sequence
import functools
import json
import logging
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from nspo_jax import distributed
from nspo_jax.nullspace import eigen, projection, rank_rules
from nspo_jax.nullspace import moments as moments_lib
from nspo_jax.nullspace import spectrum as spectrum_lib

# First tokens' inputs that differ by less than this part of the largest are float32 roundings of
# one.
_SAME_DIRECTION = 1e-6
_log = logging.getLogger(__name__)


class Split(NamedTuple):
    """One moment, split by a rule.

    basis: float32 [in, k], orthonormal columns of the thinner side; side: the name of that side;
    rank: protected directions; spectrum: the part of it that was needed.
    """

    basis: np.ndarray
    side: str
    rank: int
    spectrum: spectrum_lib.Spectrum


def split(moment: moments_lib.Moment, rule: rank_rules.RankRule, guess: int = 0) -> Split:
    """Splits a moment and keeps its thinner side; `guess` is the expected rank, or 0."""
    pairs, (rank,), spectrum = _decompose(_set_apart(moment), [rule], guess)
    return _thinner(pairs, rank, spectrum)


def split_matrix(matrix: np.ndarray, rule: rank_rules.RankRule) -> Split:
    """Splits a moment in float64 [in, in]."""
    apart = _Apart(matrix, np.zeros((len(matrix), 0)), 0.0, np.zeros(0), None)
    pairs, (rank,), spectrum = _decompose(apart, [rule], 0)
    return _thinner(pairs, rank, spectrum)


def ranks(
    moment: moments_lib.Moment, rules: Sequence[rank_rules.RankRule], guess: int = 0
) -> tuple[list[int], spectrum_lib.Spectrum]:
    """Returns the rank by each rule, and as much of the spectrum as all of them need."""
    _, found, spectrum = _decompose(_set_apart(moment), rules, guess)
    return found, spectrum


def join(
    kernels: Sequence[str], splits: Sequence[Split], stack: tuple[int, ...]
) -> tuple[projection.Site, spectrum_lib.Spectrum]:
    """Joins a stack of splits to a site, all from the thinner side of the thickest of them."""
    size = splits[0].spectrum.size
    protected = np.array([split.rank for split in splits])
    side = projection.PROTECTED if protected.max() <= (size - protected).max() else projection.NULL
    ranks = protected if side == projection.PROTECTED else size - protected
    columns = [split.basis if split.side == side else _other_side(split) for split in splits]
    site = projection.Site(
        kernels=tuple(kernels),
        basis=projection.stack_bases(columns).reshape(*stack, size, -1),
        side=side,
        ranks=ranks.reshape(stack).astype(np.int32),
    )
    return site, spectrum_lib.stacked([split.spectrum for split in splits], stack)


class Store:
    """A directory of finished layers' splits, one file a layer, each whole or absent.

    The first of several processes writes, and all read.

    Args:
      directory: the directory, made if it is absent; None: nothing is stored.
      identity: the model, text and rule of the splits, JSON-able. Those of others are deleted.
    """

    def __init__(self, directory: str | os.PathLike | None, identity: dict[str, Any]):
        self._directory = None if directory is None else pathlib.Path(directory)
        directory = self._written()
        if directory is None:
            return
        path, text = directory / "identity.json", json.dumps(identity, sort_keys=True)
        if path.exists() and path.read_text() == text:
            if done := self.done():
                _log.info("continuing after %d layers in %s", len(done), directory)
            return
        if directory.exists():
            _log.info("%s is of another calibration: starting anew", directory)
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
        path.write_text(text)

    def _written(self) -> pathlib.Path | None:
        """Returns the directory in the process that writes it, else None."""
        return self._directory if self._directory and distributed.is_primary() else None

    def done(self) -> frozenset[int]:
        """Returns the layers that are there."""
        if self._directory is None:
            return frozenset()
        return frozenset(int(path.stem) for path in self._directory.glob("*.safetensors"))

    def write(self, layer: int, splits: dict[str, Split]) -> None:
        """Stores a layer's splits by site."""
        directory = self._written()
        if directory is None:
            return
        arrays = {}
        for name, split in splits.items():
            arrays[f"{name}.basis"] = np.ascontiguousarray(split.basis)
            arrays[f"{name}.values"] = split.spectrum.values
            arrays[f"{name}.trace"] = np.asarray(split.spectrum.trace)
            arrays[f"{name}.bound"] = np.asarray(split.spectrum.bound)
            numbers = [split.rank, int(split.spectrum.first), split.side == projection.PROTECTED]
            arrays[f"{name}.numbers"] = np.array(numbers, np.int32)
        path = directory / f"{layer}.safetensors"
        temporary = path.with_suffix(".tmp")
        safetensors.numpy.save_file(arrays, temporary)
        temporary.replace(path)

    def read(self, layer: int) -> dict[str, Split]:
        """Reads a stored layer's splits.

        Raises:
          ValueError: if the file is damaged.
        """
        if self._directory is None:
            raise ValueError(f"Layer {layer} is not there: nothing is stored.")
        path = self._directory / f"{layer}.safetensors"
        try:
            arrays = safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): delete it, and run again.") from error
        found = {}
        for name in [key.removesuffix(".basis") for key in arrays if key.endswith(".basis")]:
            basis, values = arrays[f"{name}.basis"], arrays[f"{name}.values"]
            rank, first, protected = arrays[f"{name}.numbers"].tolist()
            side = projection.PROTECTED if protected else projection.NULL
            trace = float(arrays[f"{name}.trace"])
            bound = float(arrays.get(f"{name}.bound", np.nan))
            spectrum = spectrum_lib.single(values, trace, len(basis), first, bound)
            found[name] = Split(basis, side, rank, spectrum)
        return found

    def remove(self) -> None:
        """Deletes the directory."""
        if directory := self._written():
            shutil.rmtree(directory)


class _Apart(NamedTuple):
    """A moment that is ready to be decomposed.

    matrix: [in, in]; first: float64 [in, f], the first tokens' directions; spike: the matrix'
    eigenvalue for them; energies: the inputs' energies there, descending; trace: the moment's.
    """

    matrix: Any
    first: np.ndarray
    spike: float
    energies: np.ndarray
    trace: float | None


def _set_apart(moment: moments_lib.Moment) -> _Apart:
    """Sets the first tokens' directions apart, if the moment has them.

    The rest is projected off those directions, which then get an eigenvalue above all others. So
    they come first, and the others are as if these were absent.
    """
    matrix = moment.matrix()
    if moment.first is None or moment.first_counts is None:
        return _Apart(matrix, np.zeros((matrix.shape[-1], 0)), 0.0, np.zeros(0), None)
    vectors = moment.first.astype(np.float64)  # [distinct, in]
    left, sizes, _ = np.linalg.svd(vectors.T, full_matrices=False)
    first = left[:, sizes > _SAME_DIRECTION * sizes[0]]
    if isinstance(matrix, np.ndarray):
        spiked, spike, core, trace = _spiked(matrix, first, np.matmul)
    else:
        spiked, spike, core, trace = _spiked_on_device(matrix, first.astype(np.float32))
    weighted = vectors * np.sqrt(moment.first_counts / moment.count)[:, None]
    own = (weighted @ first).T @ (weighted @ first)
    return _Apart(
        matrix=spiked,
        first=first,
        spike=float(spike),
        energies=np.linalg.eigvalsh(np.asarray(core, np.float64) + own)[::-1],
        trace=float(trace) + float(np.sum(weighted**2)),
    )


def _spiked(matrix, first, matmul):
    held = matmul(first.T, matrix)  # [f, in]
    core = matmul(held, first)
    crossed = matmul(first, held)
    rest = matrix - crossed - crossed.T + matmul(matmul(first, core), first.T)
    # no eigenvalue is above the Frobenius norm; it is that of the whole matrix, since float32's
    # rounding of the whole would turn directions that are set apart by less
    spike = (matrix**2).sum() ** 0.5
    return rest + spike * matmul(first, first.T), spike, core, matrix.trace()


@jax.jit
def _spiked_on_device(matrix, first):
    highest = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return _spiked(matrix, first, highest)


def _decompose(
    apart: _Apart, rules: Sequence[rank_rules.RankRule], guess: int
) -> tuple[eigen.Eigenpairs, list[int], spectrum_lib.Spectrum]:
    """Computes eigenpairs, the rank by each rule, and the spectrum."""
    first = apart.first.shape[1]
    known = [rule.known_rank for rule in rules if rule.known_rank is not None]
    guess = max(guess, *(first + rank for rank in known), 0)

    def ranks_of(values: np.ndarray, size: int, trace: float) -> list[int] | None:
        if first == size:
            return [size] * len(rules)
        if len(values) <= first:
            return None
        size, trace = size - first, trace - first * apart.spike
        ranks = [rule.rank(values[first:], size=size, trace=trace) for rule in rules]
        found = [first + rank for rank in ranks if rank is not None]
        return found if len(found) == len(ranks) else None

    pairs, ranks = eigen.decompose(apart.matrix, ranks_of, guess)
    spectrum = spectrum_lib.single(
        np.concatenate([apart.energies, pairs.values[first:]]),
        pairs.trace if apart.trace is None else apart.trace,
        apart.matrix.shape[-1],
        first,
        pairs.bound,
    )
    return pairs, ranks, spectrum


def _thinner(pairs: eigen.Eigenpairs, rank: int, spectrum: spectrum_lib.Spectrum) -> Split:
    if rank <= spectrum.size - rank:
        return Split(pairs.vectors[:, :rank], projection.PROTECTED, rank, spectrum)
    return Split(pairs.vectors[:, rank:], projection.NULL, rank, spectrum)


def _other_side(split: Split) -> np.ndarray:
    site = projection.Site(("",), split.basis, split.side, np.int32(split.basis.shape[1]))
    return np.asarray(site.complement().basis)
