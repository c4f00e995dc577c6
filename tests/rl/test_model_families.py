"""The whole run on models of other families than Llama: random, small, from their directories."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from nspo_jax import models
from nspo_jax.data import chat
from nspo_jax.rl import trainer
from nspo_jax.tasks.chat_world import judge as world_judge
from nspo_jax.tasks.chat_world import world
from tests.rl import micro_run

LLAMA = models.ModelConfig(
    vocab_size=1, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=2,
    num_kv_heads=1, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-5, tie_embeddings=False,
    max_length=64,
)  # fmt: skip
FAMILIES = {
    "mistral": {"windows": (4, 4)},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True, "tie_embeddings": True},
    "gemma": {**models.FAMILIES["gemma"].traits, "tie_embeddings": True},
    "gemma2": {
        **models.FAMILIES["gemma2"].traits, "tie_embeddings": True, "windows": (4, 0),
        "query_scale": 8.0, "attention_softcap": 5.0, "logits_softcap": 3.0,
    },
    "gemma3_text": {
        **models.FAMILIES["gemma3_text"].traits, "tie_embeddings": True, "windows": (4, 0),
        "query_scale": 8.0, "local_rope_theta": 1e3,
    },
}  # fmt: skip


# these have all traits between them; NSPO_EVERY_FAMILY=1 takes all families
SOME = ("qwen2", "gemma2", "gemma3_text")


@pytest.mark.parametrize("family", FAMILIES if os.environ.get("NSPO_EVERY_FAMILY") else SOME)
def test_exact_mode_keeps_every_family_where_it_was(family, tmp_path, monkeypatch):
    """Biases, norms and embedding frozen, all kernels projected: protected logits do not move."""
    monkeypatch.setattr(world_judge.WorldJudge, "__call__", micro_run.judge)
    tokenizer = chat.build_tokenizer(world.World(0).words())
    config = dataclasses.replace(
        LLAMA, family=family, vocab_size=len(tokenizer), **FAMILIES[family]
    )
    params = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(1), x.shape),  # no bias is zero
        models.init_params(config, jax.random.key(0)),
    )
    models.save_model(tmp_path / "base", config, params, tokenizer)

    targets = "mlp+attention" if config.tie_embeddings else "mlp+attention+head"
    run = micro_run.micro(tmp_path / "workspace", **{
        "model.path": str(tmp_path / "base"), "calibration.rows": 1,
        "calibration.rank_rule": "relative_max(1e-6)", "projection.targets": targets,
    })  # fmt: skip
    trainer.train(run, tmp_path / "run")
    certificate = json.loads((tmp_path / "run/certificate.json").read_text())
    assert certificate["calibration"]["max_logit_change"] < 1e-3
    assert certificate["held_out"]["max_logit_change"] > 0.05  # the policy did move
    assert certificate["protected_share"] < 1e-5 and not certificate["unprotected"]

    policy_config, policy = models.load_model(tmp_path / "run/policy")
    assert policy_config == config
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), policy, params)
    assert all(
        moved["layers"][block][name]["kernel"]
        for block, names in (("attention", "qkvo"), ("mlp", ("gate", "up", "down")))
        for name in names
    )
    if config.qkv_bias:
        assert not moved["layers"]["attention"]["q"]["bias"]
    assert not moved["embed"]["embedding"] and not moved["norm"]["scale"]
