"""Sites with other null spaces than that of a kernel's dense inputs: an embedding's, LoRA's A."""

import jax
import jax.numpy as jnp
import numpy as np

from nspo_jax.nullspace import projection


def embedding_site(kernel: str, vocab_size: int, tokens: np.ndarray) -> projection.Site:
    """Makes the site of an embedding [vocab, d], where only rows of unprotected tokens may move.

    Do not use it for an embedding that is also the head, since a logit of an unseen token changes
    with its row on every input.

    Args:
      kernel: the embedding's parameter path, such as "embed/embedding".
      vocab_size: rows of the embedding.
      tokens: int, any shape, the protected text's real tokens, without padding.

    Raises:
      ValueError: if a token is outside the vocabulary.

    Examples:
      >>> import numpy as np
      >>> import nspo_jax
      >>> site = nspo_jax.embedding_site("embed/embedding", 5, np.array([0, 3]))
      >>> int(site.protected_ranks), site.project(np.ones((5, 1), np.float32))[:, 0].tolist()
      (2, [0.0, 1.0, 1.0, 0.0, 1.0])
    """
    seen = np.unique(tokens)
    if seen.size and not 0 <= seen[0] <= seen[-1] < vocab_size:
        raise ValueError(
            f"tokens are {seen[0]} to {seen[-1]}; expected 0 to {vocab_size - 1} for the "
            f"{vocab_size} rows of {kernel}. Was another tokenizer used?"
        )
    free = np.ones((vocab_size, 1), np.float32)
    free[seen] = 0.0
    return projection.Site(
        (kernel,), free, projection.ROWS, np.asarray(vocab_size - seen.size, np.int32)
    )


def init_lora_a(key: jax.Array, site: projection.Site, rank: int) -> jax.Array:
    """Draws `A` of a LoRA pair `y = x W + (x A) B`, random inside the null space of the site.

    Then `x A` is 0 for every protected `x` whatever `B` is, and stays 0 while A's updates are
    projected, so that `B` trains freely:

        params = {"a": init_lora_a(key, site, 8), "b": jnp.zeros((8, out))}
        transform = null_space_projection({"in": dataclasses.replace(site, kernels=("a",))})

    Args:
      key: a PRNG key.
      site: the input site of `W`.
      rank: columns of A.

    Returns:
      float32 [*stack, in, rank]: an input in the null space with unit-variance coordinates gives
      unit-variance `x A`.

    Examples:
      >>> import jax, numpy as np
      >>> import nspo_jax
      >>> seen = np.array([[3.0, 0.0, 0.0], [0.0, 2.0, 0.0]])  # [tokens, in]
      >>> site = nspo_jax.site_from_moment(("w",), seen.T @ seen, "fixed(2)")
      >>> a = nspo_jax.init_lora_a(jax.random.key(0), site, 8)
      >>> a.shape, bool(np.abs(seen @ a).max() < 1e-6), bool(np.abs(a).max() > 0.1)
      ((3, 8), True, True)
    """
    basis = jnp.asarray(site.basis)
    free = jnp.asarray(site.size - site.protected_ranks, jnp.float32)[..., None, None]
    drawn = jax.random.normal(key, (*basis.shape[:-1], rank), jnp.float32)
    return projection.project(drawn, basis, site.side) / jnp.sqrt(jnp.maximum(free, 1.0))
