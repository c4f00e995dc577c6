"""How much a forward pass computes, by formula."""

from nspo_jax.models import architecture, transformer, trees


def flops_per_token(model_config: architecture.ModelConfig, attended: float) -> float:
    """Floating-point operations of one token's forward pass, head included.

    Two a weight of every linear map, and four a head's dimension and token attended to (scores and
    mixing); norms, rotations and the softmax are left out. A gradient costs twice as much again.

    Args:
      model_config: the model.
      attended: to how many tokens it attends, on average.
    """
    leaves = trees.flatten(transformer.abstract_params(model_config))
    weights = sum(leaf.size for path, leaf in leaves.items() if path.endswith("/kernel"))
    if model_config.tie_embeddings:
        weights += leaves["embed/embedding"].size
    attention = model_config.num_layers * model_config.num_heads * model_config.head_dim
    return 2.0 * weights + 4.0 * attention * attended
