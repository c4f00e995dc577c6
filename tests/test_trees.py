"""Parameter trees by path: flat and back, the parameters of all layers, matrices."""

import numpy as np

from nspo_jax import models, trees

CONFIG = models.ModelConfig(
    vocab_size=11, hidden_size=8, intermediate_size=6, num_layers=3, num_heads=2, num_kv_heads=1,
    head_dim=4, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False, max_length=8,
    family="qwen2", qkv_bias=True,
)  # fmt: skip


def test_flat_trees_come_back():
    tree = models.abstract_params(CONFIG)
    assert trees.unflatten(trees.flatten(tree)) == tree


def test_stacks_and_matrices_are_told_apart_by_path():
    flat = trees.flatten(models.abstract_params(CONFIG))
    stacked = {path for path in flat if trees.is_stacked(path)}
    assert {path for path, leaf in flat.items() if leaf.shape[0] == CONFIG.num_layers} == stacked
    assert flat.keys() - stacked == {"embed/embedding", "norm/scale", "head/kernel"}
    matrices = {path for path, leaf in flat.items() if trees.is_matrix(path, leaf)}
    assert matrices == {path for path in flat if path.endswith(("/kernel", "/embedding"))}
    assert not trees.is_matrix("layers/attention/q/bias", np.zeros((3, 8)))


def test_the_head_s_part_makes_the_logits():
    assert CONFIG.head_part in models.abstract_params(CONFIG)
    tied = models.ModelConfig(**{**vars(CONFIG), "tie_embeddings": True})
    assert (CONFIG.head_part, tied.head_part) == ("head", "embed")
    assert "head" not in models.abstract_params(tied)
