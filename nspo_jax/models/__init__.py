"""One decoder for policy, reference, reward and guard models.

A `ModelConfig` says what the model is, parameters are a plain nested dict of arrays, and pure
functions run it:

    config, params = models.load_model("path/to/checkpoint")
    output = models.forward(config, params, tokens, mask)        # output.hidden [batch, time, d]
    logits = models.logits(config, params, output.hidden)        # [batch, time, vocab] float32

`bind(config, params)` gives the same model as a Flax NNX module.
"""

from nspo_jax.models.cache import Cache, empty_cache, repeat_cache
from nspo_jax.models.config import ModelConfig
from nspo_jax.models.hf import fingerprint, load_model, save_model
from nspo_jax.models.transformer import (
    Output,
    Transformer,
    abstract_params,
    bind,
    forward,
    init_params,
    input_sites,
    logits,
)

__all__ = [
    "Cache",
    "ModelConfig",
    "Output",
    "Transformer",
    "abstract_params",
    "bind",
    "empty_cache",
    "fingerprint",
    "forward",
    "init_params",
    "input_sites",
    "load_model",
    "logits",
    "repeat_cache",
    "save_model",
]
