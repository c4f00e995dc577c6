"""The floating-point operations of a forward pass, by formula."""

from nspo_jax import trees
from nspo_jax.models import architecture, transformer


def flops_per_token(model_config: architecture.ModelConfig, attended: float) -> float:
    """Counts the floating-point operations of one token's forward pass, head included.

    These are two a weight of every linear map, and four a head's dimension and attended token, for
    scores and mixing. Norms, rotations and the softmax are left out. A gradient costs twice as much
    again.

    Args:
      model_config: the model.
      attended: the mean number of tokens that it attends to.
    """
    leaves = trees.flatten(transformer.abstract_params(model_config))
    weights = sum(leaf.size for path, leaf in leaves.items() if path.endswith("/kernel"))
    if model_config.tie_embeddings:
        weights += leaves["embed/embedding"].size
    attention = model_config.num_layers * model_config.num_heads * model_config.head_dim
    return 2.0 * weights + 4.0 * attention * attended
