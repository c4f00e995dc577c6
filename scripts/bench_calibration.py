"""Measures calibration at a published model's shapes, with random weights and random tokens.

    python -m scripts.bench_calibration --size=qwen2_5_7b --rows=512 --length=512   # one large GPU
    python -m scripts.bench_calibration --size=qwen2_5_0_5b --layers=2 --rows=8     # a laptop

Weights are drawn a layer at a time, so that no more of the model is in memory than calibration
needs. Every site keeps an eighth of its directions. The baseline is a full decomposition of the
same moment (LAPACK, float64), of the first layer's largest site up to 6000 inputs. The last line of
output is JSON:

- `seconds`: the calibration's, compilation included; `seconds_per_layer`: median over the layers;
- `seconds_all_layers`: with --layers, an estimate for the whole depth, whose layers are alike;
- `projectors_gib`, `projectors_gib_all_layers`: the size of the bases;
- `peak_device_gib`: the backend's report, null if it has none;
- `build_by`: our method at that size, a full decomposition as well (LAPACK) or iteration;
- `build_speedup`: seconds of the full decomposition per second of ours;
- `leak_ratio`: the energy that our basis leaves outside per that of the best of its rank.
"""

import dataclasses
import functools
import json
import statistics
import time

from absl import flags
import jax
import numpy as np

from nspo_jax import models, nullspace, trees
from nspo_jax.nullspace import eigen, rank_rules, splits
from nspo_jax.nullspace import moments as moments_lib
from scripts import launch

SIZE = flags.DEFINE_enum("size", "qwen2_5_0_5b", sorted(models.PRESETS), "The model's shapes.")
LAYERS = flags.DEFINE_integer("layers", 0, "Only so many layers; 0: all.", lower_bound=0)
ROWS = flags.DEFINE_integer("rows", 64, "Number of conversations.", lower_bound=1)
LENGTH = flags.DEFINE_integer("length", 512, "Tokens of each conversation.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch", 8, "Conversations a batch.", lower_bound=1)

_BASELINE_SIZE = 6000
STARTS: list[float] = []  # the time at which each layer was asked for


@dataclasses.dataclass(frozen=True)
class RandomSource:
    """A `models.LayerSource` of random weights, the same at every call."""

    model_config: models.ModelConfig

    def part(self, name: str) -> dict:
        """Draws the embedding or the final norm."""
        return {name: _draw(self.model_config, name, 0)}

    def layer(self, index: int) -> dict:
        """Draws one layer's weights."""
        STARTS.append(time.perf_counter())
        return jax.tree.map(lambda leaf: leaf[0], _draw(self.model_config, "layers", index))

    def fingerprint(self) -> str:
        """Returns a fixed text, as no projectors are kept."""
        return "random"


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draw(model_config: models.ModelConfig, name: str, index):
    """Draws a part of a model of one layer; the rest is never made."""
    key = jax.random.fold_in(jax.random.key(0), index)
    params = models.init_params(dataclasses.replace(model_config, num_layers=1), key)
    # residual kernels get the scale of the model's depth
    scale = model_config.num_layers**-0.5
    for block, kernel in (("attention", "o"), ("mlp", "down")):
        params["layers"][block][kernel]["kernel"] *= scale
    return params[name]


def baseline(source: RandomSource, batches: list[dict]) -> dict[str, float]:
    """Compares a full decomposition with ours, at a layer's largest site up to _BASELINE_SIZE."""
    moments = next(moments_lib.layer_moments(source, batches))
    sizes = {moment.high.shape[0]: moment for moment in moments.values()}
    size = max(size for size in sizes if size <= _BASELINE_SIZE or size == min(sizes))
    moment = sizes[size]
    rule = rank_rules.RankRule("fixed", size // 8)
    splits.split(moment, rule)  # the first call compiles
    started = time.perf_counter()
    ours = splits.split(moment, rule)
    middle = time.perf_counter()
    values = np.linalg.eigh(moment.float64())[0][::-1]
    ended = time.perf_counter()
    basis, matrix = ours.basis.astype(np.float64), moment.float64()
    outside = np.trace(matrix) - np.sum(basis * (matrix @ basis))
    return {
        "baseline_size": size,
        "build_by": "lapack" if size <= eigen.full_size() else "iteration",
        "build_speedup": (ended - middle) / (middle - started),
        "leak_ratio": float(outside / values[size // 8 :].sum()),
    }


def main() -> None:
    """Calibrates, measures, prints."""
    config = dataclasses.replace(models.PRESETS[SIZE.value], compute_dtype="bfloat16")
    depth = config.num_layers
    if LAYERS.value:
        config = dataclasses.replace(
            config, num_layers=LAYERS.value, windows=config.windows[: LAYERS.value]
        )
    rng, mask = np.random.default_rng(0), np.ones((BATCH.value, LENGTH.value), bool)
    batches = [
        {"tokens": rng.integers(0, config.vocab_size, mask.shape).astype(np.int32), "mask": mask}
        for _ in range(-(-ROWS.value // BATCH.value))
    ]
    rule = (
        f"fixed({config.hidden_size // 8})"
        f"+attention/out=fixed({config.num_heads * config.head_dim // 8})"
        f"+mlp/out=fixed({config.intermediate_size // 8})"
    )
    source, started = RandomSource(config), time.perf_counter()
    projectors = nullspace.calibrate(config, source, batches, rank_rule=rule)
    ended = time.perf_counter()
    each = np.diff([*STARTS, ended])
    sites = {n: s for n, s in projectors.sites.items() if trees.is_stacked(n)}
    gib = sum(site.basis.nbytes for site in sites.values()) / 2**30
    share = depth / config.num_layers
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    print(json.dumps({
        "benchmark": "calibration",
        "device": jax.devices()[0].device_kind,
        "size": SIZE.value,
        "layers": config.num_layers,
        "tokens": len(batches) * mask.size,
        "rule": rule,
        "seconds": ended - started,
        "seconds_per_layer": statistics.median(each),
        "seconds_all_layers": ended - started + statistics.median(each) * (depth - len(each)),
        "projectors_gib": gib,
        "projectors_gib_all_layers": gib * share,
        "peak_device_gib": peak and peak / 2**30,
        **baseline(source, batches[:1]),
    }))  # fmt: skip


if __name__ == "__main__":
    launch.run(main)
