"""Measures the null space against the dense way: building, memory, application, overhead.

    python -m scripts.bench_projection

The dense reference follows the method's description: a full SVD of each second moment and a [d, d]
projector. Ours is subspace iteration (nullspace/eigen.py) and a thin basis. Both get the same
moments, d in 512 to 3584, with eigenvalues that fall as 1/k and one huge direction, which a
language model's first tokens cause; the rank is d/8. A second part measures the GRPO update of a
60M-parameter Llama on 3072 tokens, with all its kernels projected and without. The last line of
output is JSON; times are medians of interleaved repeats:

- `build_speedup_dD`: seconds of the SVD per second of ours; `leak_ratio_dD`: the energy that our
  basis leaves outside per that of the best basis of its rank (1 is optimal);
- `memory_ratio_rank_d8`: bytes of the basis per byte of the dense projector;
- `apply_speedup_dD`: seconds of P dW per second of ours, dW [d, d];
- `overhead_ratio`: 1 + (optimizer phase with projection - without) / the whole update.
"""

import json
import statistics
import time

from absl import flags
import jax
import jax.numpy as jnp
import numpy as np
import optax

from nspo_jax import models, progress
from nspo_jax.nullspace import eigen, projection
from nspo_jax.rl import train_step
from nspo_jax.rl.algorithms import policy_gradient
from scripts import launch

SIZES = flags.DEFINE_list("sizes", ["512", "1024", "2048", "3584"], "Input sizes d.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Repeats of each measurement.", lower_bound=1)
LAYERS = flags.DEFINE_integer("layers", 12, "Layers of the updated model; 12: 60M parameters.", 1)


def seconds(function, *arguments) -> float:
    """Times one call, until everything that it started has finished."""
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started


def make_moment(size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes a moment, float32 [d, d], and its eigenvalues, float64 [d]: 1e4, then 1/k.

    Its orthogonal basis is a product of reflections, which is as good as any for an iteration from
    a random block.
    """
    values = np.r_[1e4, 1.0 / np.arange(1, size)]
    moment, rng = np.diag(values), np.random.default_rng(seed)
    for _ in range(4):
        normal = rng.standard_normal(size)
        normal /= np.linalg.norm(normal)
        moment -= 2 * np.outer(normal, normal @ moment)
        moment -= 2 * np.outer(moment @ normal, normal)
    return moment.astype(np.float32), values


def measure_basis(size: int, repeats: int) -> dict[str, float]:
    """Measures building, memory and application at one size, with rank d/8."""
    moment, values = make_moment(size, size)
    rank = size // 8
    dense, ours = [], []
    basis = eigen.leading(moment, rank).vectors  # the first call compiles
    for _ in range(repeats if size < 2048 else 1):
        dense.append(seconds(np.linalg.svd, moment))
        ours.append(statistics.median(seconds(eigen.leading, moment, rank) for _ in range(3)))
    exact = moment.astype(np.float64)
    held = np.sum(basis * (exact @ basis.astype(np.float64)))
    projector = jnp.eye(size) - jnp.asarray(basis @ basis.T)
    apply_dense = jax.jit(lambda p, w: jnp.matmul(p, w, precision=jax.lax.Precision.HIGHEST))
    apply_ours = jax.jit(lambda u, w: projection.project(w, u, projection.PROTECTED))
    update = jax.random.normal(jax.random.key(0), (size, size))
    times: tuple[list, list] = ([], [])
    for _ in range(repeats + 1):
        times[0].append(seconds(apply_dense, projector, update))
        times[1].append(seconds(apply_ours, basis, update))
    return {
        f"build_seconds_dense_d{size}": statistics.median(dense),
        f"build_seconds_d{size}": statistics.median(ours),
        f"build_speedup_d{size}": statistics.median(dense) / statistics.median(ours),
        f"leak_ratio_d{size}": float((np.trace(exact) - held) / values[rank:].sum()),
        f"memory_ratio_d{size}": basis.nbytes / projector.nbytes,
        f"apply_speedup_d{size}": statistics.median(times[0][1:]) / statistics.median(times[1][1:]),
    }


def measure_update(layers: int, repeats: int) -> dict[str, float]:
    """Measures the optimizer phase with and without the projection, and the whole update."""
    model_config = models.ModelConfig(
        vocab_size=16000, hidden_size=512, intermediate_size=2048, num_layers=layers, num_heads=8,
        num_kv_heads=8, head_dim=64, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=True,
        max_length=512,
    )  # fmt: skip
    params = models.init_params(model_config, jax.random.key(0))
    leaves, rng, sites = projection.leaves_by_path(params), np.random.default_rng(0), {}
    for name, kernels in models.input_sites(model_config).items():
        size = leaves[kernels[0]].shape[-2]
        basis = np.linalg.qr(rng.standard_normal((size, size // 8)))[0].astype(np.float32)
        basis = np.broadcast_to(basis, (layers, *basis.shape)).copy()
        ranks = np.full((layers,), size // 8)
        sites[name] = projection.Site(kernels, basis, projection.PROTECTED, ranks)
    rows, prompt, completion = 6, 256, 256
    batch = train_step.RolloutBatch(
        prompts=jnp.ones((rows, prompt), jnp.int32),
        prompt_mask=jnp.ones((rows, prompt), bool),
        completions=jnp.ones((rows, completion), jnp.int32),
        completion_mask=jnp.ones((rows, completion), bool),
        old_logprobs=jnp.full((rows, completion), -9.0),
        advantages=jnp.linspace(-1.0, 1.0, rows),
    )
    adam = optax.adamw(1e-6)
    optimizers = {
        "plain": adam,
        "projected": optax.chain(adam, projection.null_space_projection(sites)),
    }
    gradient = jax.tree.map(lambda x: 1e-3 * x, params)
    phases = {name: jax.jit(optimizer.update) for name, optimizer in optimizers.items()}
    states = {name: optimizer.init(params) for name, optimizer in optimizers.items()}
    step = policy_gradient.make_train_step(model_config, optimizers["plain"])
    nothing = jax.tree.map(lambda _: None, params)
    times: dict[str, list[float]] = {"plain": [], "projected": [], "update": []}
    state = train_step.TrainState(
        jnp.int32(0), jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, states["plain"])
    )
    for _ in progress.Bar(range(repeats + 1), desc="update", unit="repeat", leave=False):
        for name, phase in phases.items():
            pair = [seconds(phase, gradient, states[name], params) for _ in range(3)]
            times[name].append(statistics.median(pair))
        started = time.perf_counter()
        state, metrics = step(state, nothing, None, batch)
        jax.block_until_ready((state, metrics))
        times["update"].append(time.perf_counter() - started)
    median = {name: statistics.median(values[1:]) for name, values in times.items()}
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "tokens": rows * (prompt + completion),
        "update_seconds": median["update"],
        "optimizer_seconds": median["plain"],
        "projected_optimizer_seconds": median["projected"],
        "overhead_ratio": 1 + (median["projected"] - median["plain"]) / median["update"],
    }


def main() -> None:
    """Measures and prints."""
    result = {"benchmark": "projection", "device": jax.devices()[0].device_kind}
    sizes = [int(size) for size in SIZES.value]
    for size in progress.Bar(sizes, desc="bases", unit="size", leave=False):
        result |= measure_basis(size, REPEATS.value)
    result["memory_ratio_rank_d8"] = result[f"memory_ratio_d{sizes[-1]}"]
    result |= measure_update(LAYERS.value, REPEATS.value)
    print(json.dumps(result))


if __name__ == "__main__":
    launch.run(main)
