"""The projection in a plain optax loop, over a flax.linen transformer: no model of nspo_jax.

    python -m examples.linen_loop

A letter model learns one text, the general skill, and is then fine-tuned on another: with AdamW,
and with AdamW and the projection. docs/other_trainers.md explains.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import nspo_jax
from nspo_jax.nullspace import projection

GENERAL = "two plus two is four and three plus three is six"  # what must not change
TARGET = "sorry i cannot help with that but here is a plan"  # as long, for the position embedding
LETTERS = sorted(set(GENERAL + TARGET))


class Transformer(nn.Module):
    """A small decoder of linen's own layers; their attention kernels are 3-D."""

    layers: int = 2
    width: int = 96

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        positions = nn.Embed(len(GENERAL), self.width, name="position")
        x = nn.Embed(len(LETTERS), self.width, name="letter")(tokens)
        x = x + positions(jnp.arange(tokens.shape[1]))[None]
        mask = nn.make_causal_mask(tokens)
        for layer in range(self.layers):
            attention = nn.MultiHeadDotProductAttention(num_heads=4, name=f"attention_{layer}")
            x = x + attention(nn.LayerNorm()(x), mask=mask)
            hidden = nn.gelu(nn.Dense(2 * self.width, name=f"up_{layer}")(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width, name=f"down_{layer}")(hidden)
        return nn.Dense(len(LETTERS), name="head")(nn.LayerNorm()(x))


MODEL = Transformer()


def tokenize(text: str) -> jax.Array:
    """int32 [1, time]."""
    return jnp.asarray([[LETTERS.index(letter) for letter in text]])


@jax.jit
def logits(params: Any, tokens: jax.Array) -> jax.Array:
    """[1, time, letters]."""
    return MODEL.apply({"params": params}, tokens)


@jax.jit
def loss(params: Any, tokens: jax.Array) -> jax.Array:
    """Mean next-letter loss in nats."""
    predicted = logits(params, tokens)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(predicted, tokens[:, 1:]).mean()


def train(params: Any, optimizer: optax.GradientTransformation, text: str, steps: int) -> Any:
    """The loop: an optimizer is all that the projection needs."""
    tokens = tokenize(text)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params, tokens), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


def input_moments(params: Any, texts: list[str]) -> dict[str, np.ndarray]:
    """Module path -> the sum over texts of `x^T x`, float64 [in, in], for every linear layer.

    Outside of jit, so that the interceptor sees arrays. DenseGeneral, which attention is made of,
    may read two axes at once: [batch, time, heads, head_dim] is [tokens, heads * head_dim].
    """
    moments: dict[str, np.ndarray] = {}

    def record(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext):
        if isinstance(context.module, nn.Dense | nn.DenseGeneral):
            (x,) = args
            rows = np.asarray(x, np.float64).reshape(x.shape[0] * x.shape[1], -1)
            name = "/".join(context.module.path)
            moments[name] = moments.get(name, 0.0) + rows.T @ rows
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        for text in texts:
            MODEL.apply({"params": params}, tokenize(text))
    return moments


def make_sites(params: Any) -> dict[str, projection.Site]:
    """One site an input: query, key and value read the same one and share it."""
    moments = input_moments(params, [GENERAL])
    readers = {"head": ("head/kernel",)}  # the module whose input it is -> the kernels
    for layer in range(MODEL.layers):
        names = ("query", "key", "value")
        qkv = tuple(f"attention_{layer}/{name}/kernel" for name in names)
        readers[f"attention_{layer}/query"] = qkv
        for name in (f"attention_{layer}/out", f"up_{layer}", f"down_{layer}"):
            readers[name] = (f"{name}/kernel",)
    return {
        name: nspo_jax.site_from_moment(kernels, moments[name], "relative_max(1e-6)")
        for name, kernels in readers.items()
    }


def freeze_others(sites: dict[str, projection.Site]) -> optax.GradientTransformation:
    """Embeddings, norms and biases stay: they would change what the projected kernels read."""
    trained = {path for site in sites.values() for path in site.kernels}

    def others(params):
        return jax.tree.map_with_path(
            lambda path, _: projection.path_string(path) not in trained, params
        )

    return optax.masked(optax.set_to_zero(), others)


def protected_share(base: Any, policy: Any, sites: dict[str, projection.Site]) -> float:
    """The largest |U^T dW| / |dW| of any kernel: up to 1, and about 1e-6 in the null space."""
    base, policy = projection.leaves_by_path(base), projection.leaves_by_path(policy)
    shares = []
    for site in sites.values():
        for path in site.kernels:
            change = (np.asarray(policy[path]) - base[path]).reshape(site.size, -1)
            inside = np.asarray(site.protected_basis()).T @ change
            shares.append(np.linalg.norm(inside) / np.linalg.norm(change))
    return float(max(shares))


def compare() -> dict[str, dict[str, float]]:
    """Arm -> its losses, its largest logit change on the general text and its protected share."""
    params = jax.jit(MODEL.init)(jax.random.key(0), tokenize(GENERAL))["params"]
    base = train(params, optax.adam(3e-3), GENERAL, steps=100)
    sites = make_sites(base)
    adamw = optax.adamw(1e-3, weight_decay=0.0)
    arms = {
        "adamw": optax.chain(adamw, freeze_others(sites)),
        "adamw, projection": optax.chain(
            adamw, nspo_jax.null_space_projection(sites), freeze_others(sites)
        ),
    }
    general, target = tokenize(GENERAL), tokenize(TARGET)
    before = logits(base, general)
    rows = {}
    for name, optimizer in {"base": None, **arms}.items():
        policy = base if optimizer is None else train(base, optimizer, TARGET, steps=60)
        rows[name] = {
            "target_loss": float(loss(policy, target)),
            "general_loss": float(loss(policy, general)),
            "logit_change": float(jnp.abs(logits(policy, general) - before).max()),
            "protected_share": protected_share(base, policy, sites) if optimizer else 0.0,
        }
    return rows


def main() -> None:
    rows = compare()
    print(f"{'':18}" + "".join(f"{column:>17}" for column in rows["base"]))
    for name, row in rows.items():
        print(f"{name:18}" + "".join(f"{value:17.2g}" for value in row.values()))


if __name__ == "__main__":
    main()
