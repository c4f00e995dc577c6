"""How much a forward pass computes, by formula."""

from nspo_jax.models import config as config_lib
from nspo_jax.models import transformer, trees


def flops_per_token(config: config_lib.ModelConfig, attended: float) -> float:
    """Floating-point operations of one token's forward pass, head included.

    Two a weight of every linear map, and four a head's dimension and token attended to (scores and
    mixing); norms, rotations and the softmax are left out. A gradient costs twice as much again.

    Args:
      config: the model.
      attended: to how many tokens it attends, on average.
    """
    leaves = trees.flatten(transformer.abstract_params(config))
    weights = sum(leaf.size for path, leaf in leaves.items() if path.endswith("/kernel"))
    if config.tie_embeddings:
        weights += leaves["embed/embedding"].size
    attention = config.num_layers * config.num_heads * config.head_dim
    return 2.0 * weights + 4.0 * attention * attended
