"""Deltas: a base model as it is, and a policy's difference from it in float32.

A safety update is smaller than half a bfloat16 step of the weight it moves. Rounded to bfloat16 it
is noise outside the null space; base plus difference keeps it.
"""

import dataclasses
import os
import pathlib

import numpy as np
import safetensors.numpy

from nspo_jax import distributed, files, model_files, progress, trees
from nspo_jax.models import architecture, hf, hf_export, transformer


@dataclasses.dataclass(frozen=True)
class DeltaReport:
    """The size of a delta.

    Attributes:
      tensors: names of the tensors that differ.
      norm: the Frobenius norm of the whole difference.
      inexact: the number of elements that base + delta restores to a neighbouring float32 instead
        of the policy's own, which can happen if the two are not within a factor of two.
      elements: the number of elements of all tensors.
    """

    tensors: list[str]
    norm: float
    inexact: int
    elements: int


def export_delta(
    policy: str | os.PathLike, base: str | os.PathLike, directory: str | os.PathLike
) -> DeltaReport:
    """Writes the base as it is, and the policy's difference from it in float32.

    The directory holds `base/` (hard links to the base's files if the file system allows),
    `delta.safetensors` (float32, the tensors that differ, by Hugging Face's name), `delta.json`,
    config.json and the tokenizer. There are no weights at its top, so a reader that does not know
    deltas fails instead of quietly serving the base. `load_model` adds the two, and `export_model`
    turns them into a plain float32 model.

    Args:
      policy: a saved model, float32.
      base: the model that it was trained from, of the same architecture; no delta and no
        adapter itself.
      directory: the directory to write.

    Raises:
      FileExistsError: the directory holds files that are no part of a model.
      ValueError: the two models differ in their architecture, or the base is a delta or an adapter.
    """
    policy, base = pathlib.Path(policy), pathlib.Path(base)
    hf_export.check_apart(directory, policy, base)
    target = hf_export.check_target(directory)
    if (policy / hf.DELTA).exists():
        return _copy_delta(policy, base, target)
    if hf.is_sum(base):
        kind = "a delta" if (base / hf.DELTA).exists() else "an adapter"
        raise ValueError(
            f"The base {base} is {kind} itself: make a plain model of it with export_model first."
        )
    model_config, after = hf_export.open_checked(policy)
    base_config, before = hf_export.open_checked(base)
    if hf_export.stored(model_config) != hf_export.stored(base_config):
        raise ValueError(
            f"{policy} and {base} differ in their architecture "
            f"({hf_export.differences(model_config, base_config)}): a delta needs the base that "
            "the policy was trained from."
        )
    delta, inexact, elements, energy = {}, 0, 0, 0.0
    for name in progress.Bar(
        hf.expected_tensors(model_config), desc="delta", unit="tensor", leave=False
    ):
        old, new = before.read(name), after.read(name)
        elements += new.size
        if not np.array_equal(old, new):
            delta[name] = new - old
            inexact += int(np.sum(old + delta[name] != new))
            energy += float(np.sum(np.square(delta[name], dtype=np.float64)))
    report = DeltaReport(list(delta), energy**0.5, inexact, elements)

    files.write_directory(
        target, lambda folder: _write_delta(folder, model_config, policy, base, delta, report)
    )
    return report


def save_delta(
    directory: str | os.PathLike,
    model_config: architecture.ModelConfig,
    change: transformer.Params,
    base: str | os.PathLike,
) -> None:
    """Writes a base as it is and a change of it as it was trained, in `export_delta`'s layout.

    The difference of a float32 policy and its base contains the rounding of the policy's weights;
    the change itself has none. All processes call it, as they do `save_model`.

    Args:
      directory: the directory to write; see `save_model` for its errors.
      model_config: the model's config.
      change: float32, laid out as in `transformer`, None at leaves that did not change.
      base: the changed model's directory. If it is a delta or an adapter, the sum of its own base
        and difference is written in float32 as the base.
    """
    hf_export.check_apart(directory, base)
    target, base = hf_export.check_target(directory), pathlib.Path(base)
    flat = {
        path: leaf for path, leaf in trees.flatten(change).items()
        if leaf is not None
    }  # fmt: skip
    expected = hf.expected_tensors(model_config)
    names = [name for name, (path, *_) in expected.items() if path in flat]
    delta = {}
    for name in names:
        path, layer, _ = expected[name]
        value = np.asarray(distributed.fetch(flat[path] if layer is None else flat[path][layer]))
        if distributed.is_primary():
            value = value.T if hf.is_transposed(path) else value
            delta[name] = np.ascontiguousarray(value, np.float32)
    if not distributed.is_primary():
        return
    energy = sum(float(np.sum(np.square(part, dtype=np.float64))) for part in delta.values())
    elements = sum(int(np.prod(shape)) for *_, shape in expected.values())
    report = DeltaReport(names, energy**0.5, 0, elements)
    files.write_directory(
        target, lambda folder: _write_delta(folder, model_config, base, base, delta, report)
    )


def _write_delta(
    folder: pathlib.Path,
    model_config: architecture.ModelConfig,
    like: pathlib.Path,
    base: pathlib.Path,
    delta: dict[str, np.ndarray],
    report: DeltaReport,
) -> None:
    hf_export.write_like(folder, like, model_config, "float32")
    if hf.is_sum(base):
        hf_export.export_model(base, folder / hf.BASE)
    else:
        (folder / hf.BASE).mkdir()
        for file in hf_export.weight_files(base):
            hf_export.link(file, folder / hf.BASE / file.name)
    safetensors.numpy.save_file(delta, folder / hf.DELTA_WEIGHTS, metadata={"format": "pt"})
    hf_export.write_json(
        folder / hf.DELTA, {"format": hf.DELTA_FORMAT, **dataclasses.asdict(report)}
    )


def _copy_delta(source: pathlib.Path, base: pathlib.Path, target: pathlib.Path) -> DeltaReport:
    """Copies a delta, with its difference as it was trained instead of computed anew."""
    if hf.stored_fingerprint(source / hf.BASE) != hf.stored_fingerprint(base):
        raise ValueError(
            f"The delta {source} is of another base than {base}: give {source / hf.BASE}."
        )
    fields = model_files.read_json(source / hf.DELTA)
    report = DeltaReport(**{name: value for name, value in fields.items() if name != "format"})
    delta = safetensors.numpy.load_file(source / hf.DELTA_WEIGHTS)
    model_config, like = hf.load_config(source), source
    files.write_directory(
        target, lambda folder: _write_delta(folder, model_config, like, base, delta, report)
    )
    return report


def load_change(
    directory: str | os.PathLike, shardings: hf.Shardings | None = None
) -> transformer.Params | None:
    """Reads the difference of a delta as it was trained; None for a model that is no delta.

    Args:
      directory: a directory that `save_delta` or `export_delta` wrote.
      shardings: see `hf.load_model`.

    Returns:
      float32, laid out as in `transformer`, with None at parameters that did not change.

    Raises:
      FileNotFoundError, ValueError: for the reasons of `hf.load_model`.
    """
    directory = pathlib.Path(directory)
    if not (directory / hf.DELTA).exists():
        return None
    model_config = hf.load_config(directory)
    tensors = _Change(directory, model_config)
    abstract = transformer.abstract_params(model_config)
    placed = hf.default_shardings(abstract) if shardings is None else shardings(abstract)
    placed = trees.flatten(placed)
    found = {}
    for path, leaf in trees.flatten(abstract).items():
        changed = any(name in tensors.names() for name in hf.tensor_layers(model_config, path))
        dtype, place = np.dtype(np.float32), placed[path]
        found[path] = (
            hf.load_parameter(model_config, tensors, path, leaf.shape, dtype, place)
            if changed
            else None
        )
    return trees.unflatten(found)


class _Change(hf.Tensors):
    """The tensors of a difference, zeros for those that it leaves out."""

    def __init__(self, directory: pathlib.Path, model_config: architecture.ModelConfig):
        file = hf.open_file(directory / hf.DELTA_WEIGHTS)
        self.directory, self.stored, self._change = directory, self, {}
        self._files = dict.fromkeys(file.keys(), file)
        self._shapes = {
            name: shape for name, (*_, shape) in hf.expected_tensors(model_config).items()
        }

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def read(self, name, index=(), *, dtype=np.float32, transpose=False):
        if name in self._files:
            return super().read(name, index, dtype=dtype, transpose=transpose)
        part = np.zeros(self.shape(name), dtype)[index]
        return part.T if transpose else part
