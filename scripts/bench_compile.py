"""Measures a train step's compilation by depth: layers are scanned, so the time should not grow.

    python -m scripts.bench_compile

The script lowers and compiles the GRPO update (loss, gradient, AdamW, projection) of a small Llama
with 4, 16 and 64 layers in turn, a few times. It prints one JSON line: seconds by depth, [median,
least, largest], and the ratio of the deepest to the shallowest, which is the baseline. No update
runs.
"""

import json
import statistics
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np

from nspo_jax import models, trees
from nspo_jax import optimizer as optimizer_lib
from nspo_jax.nullspace import projection
from nspo_jax.rl import train_step
from nspo_jax.rl.algorithms import policy_gradient
from scripts import launch

DEPTHS = flags.DEFINE_list("depths", ["4", "16", "64"], "Numbers of layers, the baseline first.")
REPEATS = flags.DEFINE_integer("repeats", 5, "Compilations of each depth.", lower_bound=1)


def lower(depth: int) -> jax.stages.Lowered:
    """Lowers the update of a model with so many layers, with MLP and attention projected."""
    model_config = models.ModelConfig(
        vocab_size=512, hidden_size=64, intermediate_size=176, num_layers=depth, num_heads=8,
        num_kv_heads=4, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False,
        max_length=64,
    )  # fmt: skip
    params = models.abstract_params(model_config)
    leaves = projection.leaves_by_path(params)
    sites = {}
    for name, kernels in models.input_sites(model_config).items():
        size = leaves[kernels[0]].shape[-2]
        stack = (depth,) if trees.is_stacked(name) else ()
        basis = np.broadcast_to(
            np.eye(size, size // 2, dtype=np.float32), (*stack, size, size // 2)
        )
        ranks = np.full(stack, size // 2, np.int32)
        sites[name] = projection.Site(kernels, basis, projection.PROTECTED, ranks)
    optimizer = optimizer_lib.build_optimizer(1e-3, sites)
    trainable, frozen = optimizer_lib.partition(params, "attention+mlp+head", "freeze")
    state = train_step.TrainState(
        jax.ShapeDtypeStruct((), jnp.int32), trainable, jax.eval_shape(optimizer.init, trainable)
    )
    rows, prompt, completion = 16, 16, 16
    tokens, flags_, numbers = (
        lambda *shape, dtype=dtype: jax.ShapeDtypeStruct((rows, *shape), dtype)
        for dtype in (jnp.int32, jnp.bool_, jnp.float32)
    )
    batch = train_step.RolloutBatch(
        prompts=tokens(prompt), prompt_mask=flags_(prompt), completions=tokens(completion),
        completion_mask=flags_(completion), old_logprobs=numbers(completion), advantages=numbers(),
    )  # fmt: skip
    return policy_gradient.make_train_step(model_config, optimizer).lower(
        state, frozen, None, batch
    )


def main() -> None:
    """Measures and prints."""
    jax.config.update("jax_enable_compilation_cache", False)
    depths = [int(depth) for depth in DEPTHS.value]
    seconds: dict[int, list[float]] = {depth: [] for depth in depths}
    for _ in range(REPEATS.value):
        for depth in depths:
            jax.clear_caches()
            started = time.perf_counter()
            lower(depth).compile()
            seconds[depth].append(time.perf_counter() - started)
    medians = {depth: statistics.median(times) for depth, times in seconds.items()}
    print(json.dumps({
        "benchmark": "compile",
        "device": jax.devices()[0].device_kind,
        "seconds": {d: [medians[d], min(t), max(t)] for d, t in seconds.items()},
        "ratio": medians[depths[-1]] / medians[depths[0]],
        "repeats": REPEATS.value,
    }))  # fmt: skip


if __name__ == "__main__":
    launch.run(main)
