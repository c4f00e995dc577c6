"""The projection in somebody else's trainer: GRPO of google-tunix, on a tiny Llama of tunix's own.

`./examples/tunix.sh` makes an environment for it and runs it. Nothing of nspo_jax is used but
`site_from_moment`, which turns second moments into projectors, and `null_space_projection`, the
last link of the chain that tunix takes as `actor_optimizer`. docs/other_trainers.md explains.
"""

import logging
import sys
from unittest import mock

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from tunix.models.llama3 import model as llama3
from tunix.rl import rl_cluster
from tunix.rl.grpo import grpo_learner
from tunix.rl.rollout import base_rollout

import nspo_jax
from nspo_jax.nullspace import projection

LETTERS = " abcdefghijklmnopqrstuvwxyz"
GENERAL = ("the cat sat on the mat", "two and two is four")  # what must not change
PROMPTS = ("say one word", "tell me more", "sing a song", "name a fruit")
STEPS = 4

CONFIG = llama3.ModelConfig(
    num_layers=2,
    vocab_size=3 + len(LETTERS),
    embed_dim=64,
    hidden_dim=128,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=10_000,
    norm_eps=1e-5,
)


class Tokenizer:
    """One token a letter, behind the five methods that tunix asks of a tokenizer."""

    def encode(self, text: str, **_) -> list[int]:
        return [3 + LETTERS.index(letter) for letter in text]

    def decode(self, ids: list[int], **_) -> str:
        return "".join(LETTERS[token - 3] for token in ids if token >= 3)

    def pad_id(self) -> int:
        return 0

    def bos_id(self) -> int:
        return 1

    def eos_id(self) -> int:
        return 2


def vowels(prompts: list[str], completions: list[str], **_) -> list[float]:
    """The reward: the share of vowels."""
    del prompts
    return [sum(letter in "aeiou" for letter in text) / (len(text) + 1) for text in completions]


def make_model() -> llama3.Llama3:
    """A random model. Tunix's MLP starts at zero, where no gradient flows: draw every matrix."""
    model = llama3.Llama3(CONFIG, rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)

    def draw(leaf: jax.Array) -> jax.Array:
        return leaf if leaf.ndim < 2 else jnp.asarray(0.1 * rng.standard_normal(leaf.shape), "f4")

    nnx.update(model, jax.tree.map(draw, nnx.state(model, nnx.Param)))
    return model


def logits(model: llama3.Llama3, text: str) -> np.ndarray:
    """The model's logits [time, vocab] along a text."""
    tokens = jnp.asarray([[Tokenizer().bos_id(), *Tokenizer().encode(text)]])
    time = tokens.shape[1]
    return np.asarray(
        model(tokens, jnp.arange(time)[None], None, jnp.tri(time, dtype=bool)[None])[0][0]
    )


def input_moments(model: llama3.Llama3) -> dict[str, np.ndarray]:
    """Module path -> the float64 sum of `x^T x` over its inputs on the general texts.

    The model runs outside of jit, so that the inputs are arrays; at scale, sum in a jitted function
    and on the accelerator, as nspo_jax.nullspace.calibration does.
    """
    names = {id(module): "/".join(map(str, path)) for path, module in nnx.iter_modules(model)}
    moments = {}

    def recording(call):
        def record(module, x):
            rows = np.asarray(x, np.float64).reshape(x.shape[0] * x.shape[1], -1)  # [tokens, in]
            name = names[id(module)]
            moments[name] = moments.get(name, 0.0) + rows.T @ rows
            return call(module, x)

        return record

    with (
        mock.patch.object(llama3.Einsum, "__call__", recording(llama3.Einsum.__call__)),
        mock.patch.object(nnx.Linear, "__call__", recording(nnx.Linear.__call__)),
    ):
        for text in GENERAL:
            logits(model, text)
    return moments


def make_sites(model: llama3.Llama3) -> dict[str, projection.Site]:
    """One site an input; the kernels that read the same input share it.

    The paths are those of `projection.leaves_by_path(nnx.state(model, nnx.Param))`. Kernels stay as
    they are: q, k and v are [d, heads, head_dim], o is [heads, head_dim, d].
    """
    moments = input_moments(model)
    readers = {"lm_head": ("lm_head/w",)}  # the module whose input it is -> the kernels
    for layer in range(CONFIG.num_layers):
        attention, mlp = f"layers/{layer}/attn", f"layers/{layer}/mlp"
        readers[f"{attention}/q_proj"] = tuple(f"{attention}/{name}_proj/w" for name in "qkv")
        readers[f"{attention}/o_proj"] = (f"{attention}/o_proj/w",)
        readers[f"{mlp}/gate_proj"] = (f"{mlp}/gate_proj/kernel", f"{mlp}/up_proj/kernel")
        readers[f"{mlp}/down_proj"] = (f"{mlp}/down_proj/kernel",)
    return {
        name: nspo_jax.site_from_moment(kernels, moments[name], "relative_max(1e-6)")
        for name, kernels in readers.items()
    }


def make_optimizer(
    sites: dict[str, projection.Site], project: bool
) -> optax.GradientTransformation:
    """AdamW, the projection, and the rest frozen: embedding and norms change what layers see."""
    trained = {path for site in sites.values() for path in site.kernels}

    def frozen(params):
        return jax.tree.map_with_path(
            lambda path, _: projection.path_string(path) not in trained, params
        )

    return optax.chain(
        optax.adamw(1e-2, weight_decay=0.0),
        nspo_jax.null_space_projection(sites) if project else optax.identity(),
        optax.masked(optax.set_to_zero(), frozen),
    )


def train(model: llama3.Llama3, optimizer: optax.GradientTransformation) -> llama3.Llama3:
    """A few steps of tunix's GRPO, with gradient accumulation; returns the actor."""
    mesh = jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    roles = rl_cluster.Role
    cluster = rl_cluster.RLCluster(
        actor=model,
        reference=make_model(),
        tokenizer=Tokenizer(),
        cluster_config=rl_cluster.ClusterConfig(
            role_to_mesh={role: mesh for role in (roles.ACTOR, roles.REFERENCE, roles.ROLLOUT)},
            training_config=rl_cluster.RLTrainingConfig(
                actor_optimizer=optimizer,
                eval_every_n_steps=STEPS + 1,
                max_steps=STEPS,
                mini_batch_size=len(PROMPTS),
                train_micro_batch_size=len(PROMPTS) // 2,
            ),
            rollout_config=base_rollout.RolloutConfig(
                max_tokens_to_generate=12, max_prompt_length=16, kv_cache_size=64, temperature=1.0
            ),
        ),
    )
    learner = grpo_learner.GRPOLearner(
        rl_cluster=cluster,
        algo_config=grpo_learner.GRPOConfig(num_generations=4, beta=0.01),
        reward_fns=vowels,
    )
    learner.train([{"prompts": list(PROMPTS)}] * STEPS)
    return cluster.actor_trainer.model


def measure(sites: dict[str, projection.Site], project: bool) -> tuple[float, float, float, int]:
    """Trains once.

    Returns:
      the largest protected share |U^T dW| / |dW| and the smallest relative change |dW| / |W| of any
      projected kernel, the largest logit change on the general texts, the kernels' number.
    """
    model = make_model()
    base = projection.leaves_by_path(nnx.state(model, nnx.Param))
    base = {path: np.asarray(leaf, np.float64) for path, leaf in base.items()}
    before = [logits(model, text) for text in GENERAL]
    actor = train(model, make_optimizer(sites, project))
    after = projection.leaves_by_path(nnx.state(actor, nnx.Param))
    shares, changes = [], []
    for site in sites.values():
        protected = np.asarray(site.protected_basis(), np.float64)  # [in, rank]
        for path in site.kernels:
            change = (np.asarray(after[path], np.float64) - base[path]).reshape(site.size, -1)
            changes.append(np.linalg.norm(change) / np.linalg.norm(base[path]))
            shares.append(np.linalg.norm(protected.T @ change) / np.linalg.norm(change))
    moved = max(
        np.abs(logits(actor, text) - old).max() for text, old in zip(GENERAL, before, strict=True)
    )
    return max(shares), min(changes), moved, len(shares)


def main() -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)
    sites = make_sites(make_model())
    for project in (False, True):
        share, change, moved, kernels = measure(sites, project)
        name = "adamw, projection" if project else "adamw"
        print(
            f"{name:17}: {STEPS} steps, {kernels} kernels moved by {change:.0%} of their norm "
            f"or more, protected share at most {share:.1e}, "
            f"logits on general text by at most {moved:.1e}"
        )
    if not (share <= 1e-5 and change >= 1e-3):
        sys.exit("error: the protected subspace was touched, or nothing was learned")


if __name__ == "__main__":
    main()
