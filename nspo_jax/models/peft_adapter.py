"""LoRA adapters in PEFT's layout (adapter_config.json), merged into their base's weights.

A merged weight is W + s B A, in float32, for W [out, in], B [out, r] and A [r, in]. The factor s is
lora_alpha / r (Hu et al., 2021, https://arxiv.org/abs/2106.09685), or lora_alpha / sqrt(r) with
use_rslora (Kalajdzievski, 2023, https://arxiv.org/abs/2312.03732). `hf.Tensors` adds s B A block by
block as it reads W, so the merged model needs no files and no memory of its own.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import math
import pathlib
import re
from typing import Any

import numpy as np

from nspo_jax import model_files

# PEFT wraps the model twice, and these two prefixes are the wrappers' names for it.
_PREFIX = "base_model.model."
_FACTORS = (".lora_A.weight", ".lora_B.weight")
_DTYPES = ("F32", "BF16", "F16")
# These fields decide the merged weights.
_READ = frozenset(
    """
    r lora_alpha use_rslora rank_pattern alpha_pattern target_modules exclude_modules
    layers_to_transform layers_pattern
    """.split()
)
# These describe training, storage or the interface, never the merged weights.
_IGNORED = frozenset(
    """
    base_model_name_or_path revision auto_mapping peft_version task_type inference_mode lora_dropout
    megatron_core qalora_group_size runtime_config
    """.split()
)
# These must have one of the named values, or be off: null, false or empty. The first ways to
# initialise leave the base as it is; others (PiSSA, OLoRA, CorDA, LoftQ) train on a changed base.
_VALUES = {
    "peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, "gaussian"),
}  # fmt: skip
# A pattern may be null.
_KINDS = {
    "target_modules": (str, list), "r": (int,), "lora_alpha": (int, float),
    "rank_pattern": (dict,), "alpha_pattern": (dict,),
}  # fmt: skip
_OFF = (None, False, {}, [])
_LISTED = 6  # so many names stand in a message


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The change s B A of one weight.

    Attributes:
      file: the open safetensors file.
      module: the tensors' names without their ends.
      scale: s.
    """

    file: Any
    module: str
    scale: float

    def __call__(self, block: tuple[slice, ...]) -> np.ndarray:
        """Computes a part [rows, columns] of the change [out, in], float32."""
        rows, columns = block
        down, up = (self.file.get_slice(self.module + end) for end in _FACTORS)
        a, b = down[:, columns].astype(np.float32), up[rows, :].astype(np.float32)
        return np.float32(self.scale) * (b @ a)


def open_change(
    directory: pathlib.Path, file: Any, kernels: Mapping[str, tuple[int, ...]]
) -> dict[str, LowRank]:
    """Opens an adapter: the changes that it makes to its base's tensors.

    Args:
      directory: the adapter's directory.
      file: its adapter_model.safetensors, open.
      kernels: the base's linear maps: tensor -> shape [out, in].

    Returns:
      The changes by the names of the base's tensors.

    Raises:
      ValueError: adapter_config.json has a value that cannot be merged, or asks for maps that the
        model lacks; or the file's tensors are not those that it describes.
    """
    path = directory / model_files.ADAPTER
    fields = model_files.read_json(path)
    _check_fields(path, fields)
    modules = {name.removesuffix(".weight"): name for name in kernels}
    try:
        targets = [module for module in modules if _is_target(fields, module)]
        _check_targets(path, fields, modules, targets)
        ranks = {module: _pattern(fields, "rank", "r", module) for module in targets}
        alphas = {module: _pattern(fields, "alpha", "lora_alpha", module) for module in targets}
    except re.error as error:
        raise ValueError(f"{path} has a pattern that is no regular expression: {error}.") from error
    bad = [
        f"rank {rank!r} of {m}" for m, rank in ranks.items() if type(rank) is not int or rank < 1
    ]
    bad += [
        f"alpha {alpha!r} of {module}" for module, alpha in alphas.items()
        if type(alpha) not in (int, float) or not math.isfinite(alpha)
    ]  # fmt: skip
    if bad:
        raise ValueError(
            f"{path} gives {_listed(bad)}: ranks are positive integers, alphas numbers."
        )
    expected = {}
    for module in targets:
        out, inputs = kernels[modules[module]]
        shapes = ((ranks[module], inputs), (out, ranks[module]))
        for end, shape in zip(_FACTORS, shapes, strict=True):
            expected[_PREFIX + module + end] = shape
    _check_tensors(directory, file, expected)
    power = 0.5 if fields.get("use_rslora") else 1.0
    return {
        modules[module]: LowRank(file, _PREFIX + module, alphas[module] / ranks[module] ** power)
        for module in targets
    }


def _check_fields(path: pathlib.Path, fields: Mapping[str, Any]) -> None:
    """Raises ValueError for a field that asks for more than a LoRA of linear maps."""
    for name, allowed in _VALUES.items():
        value = fields.get(name)
        if value not in allowed and not (name != "peft_type" and value in _OFF):
            raise ValueError(
                f"{path} has {name} {value!r}: supported is {' or '.join(map(repr, allowed))}. "
                "Merge the adapter with peft (merge_and_unload, save_pretrained) and load the "
                "result."
            )
    for name, value in fields.items():
        if name not in _READ | _IGNORED | _VALUES.keys() and value not in _OFF:
            raise ValueError(
                f"{path} has {name} {value!r}, which is not supported: only plain LoRA of linear "
                "maps is merged here. Merge the adapter with peft (merge_and_unload, "
                "save_pretrained) and load the result."
            )
    for name, kinds in _KINDS.items():
        value = fields.get(name)
        if not isinstance(value, kinds) and not (value is None and dict in kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{path} has {name} {value!r}: expected one of type {names}.")


def _is_target(fields: Mapping[str, Any], module: str) -> bool:
    """Tells whether PEFT adapts a module; see peft's check_target_module_exists."""
    targets, excluded = fields["target_modules"], fields.get("exclude_modules")
    if excluded and _matches(excluded, module):
        return False
    if not _matches(targets, module):
        return False
    layers = fields.get("layers_to_transform")
    if layers in (None, []) or isinstance(targets, str) or module in targets:
        return True
    names = fields.get("layers_pattern") or [r"[^.]*"]
    for name in [names] if isinstance(names, str) else names:
        if found := re.match(rf"(?:^|.*?\.){name}\.(\d+)\.", module):
            return int(found[1]) in (layers if isinstance(layers, list) else [layers])
    return False


def _matches(wanted: str | list[str], module: str) -> bool:
    """Tells whether a regular expression, or one of the ends of a name, is a module's."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == end or module.endswith(f".{end}") for end in wanted)


def _check_targets(
    path: pathlib.Path, fields: Mapping[str, Any], modules: Iterable[str], targets: list[str]
) -> None:
    """Raises ValueError for a target that is no linear map of the model."""
    wanted = fields["target_modules"]
    ends = [] if isinstance(wanted, str) else wanted
    lost = [end for end in ends if not any(_matches([end], module) for module in modules)]
    if lost or not targets:
        there = dict.fromkeys(module.rsplit(".", 1)[-1] for module in modules)
        raise ValueError(
            f"{path} has target_modules {_listed(map(repr, lost or [wanted]))}, which the base "
            f"model lacks: its linear maps are {', '.join(there)} (embeddings, and a head that is "
            "tied to them, cannot be adapted). Check that the base is the one the adapter was "
            "trained on."
        )


def _pattern(fields: Mapping[str, Any], kind: str, default: str, module: str) -> Any:
    """Returns a module's rank or alpha; see peft's get_pattern_key."""
    for key, value in (fields.get(f"{kind}_pattern") or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return fields[default]


def _check_tensors(
    directory: pathlib.Path, file: Any, expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises ValueError naming every tensor that is missing, extra, misshaped or oddly typed."""
    names = set(file.keys())
    problems = [f"missing {name} {list(expected[name])}" for name in expected.keys() - names]
    for name in names:
        part = file.get_slice(name)
        shape, dtype = tuple(part.get_shape()), part.get_dtype()
        if name not in expected:
            problems.append(f"extra {name} {list(shape)}")
        elif shape != expected[name]:
            problems.append(f"misshaped {name} {list(shape)}, expected {list(expected[name])}")
        elif dtype not in _DTYPES:
            problems.append(f"dtype {dtype} of {name}, expected {', '.join(_DTYPES)}")
    if problems:
        raise ValueError(
            f"The tensors in {directory / model_files.ADAPTER_WEIGHTS} are not those that "
            f"{model_files.ADAPTER} describes for its base: {_listed(sorted(problems))}. Check "
            "that the base is the one the adapter was trained on; an adapter with other parts than "
            "LoRA of linear maps is merged with peft (merge_and_unload, save_pretrained). peft's "
            "save_pretrained(save_embedding_layers=False) leaves out untrained embeddings."
        )


def _listed(items: Iterable[str]) -> str:
    """Joins the first names, and counts the others."""
    items = list(items)
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return "; ".join(items[:_LISTED]) + more
