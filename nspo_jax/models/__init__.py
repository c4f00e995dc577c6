"""One decoder for policy, reference, reward and guard models.

A `ModelConfig` describes the model, its parameters are a plain nested dict of arrays, and pure
functions run it:

    config, params = models.load_model("path/to/checkpoint")     # any family of families.FAMILIES
    output = models.forward(config, params, tokens, mask)        # output.hidden [batch, time, d]
    logits = models.logits(config, params, output.hidden)        # [batch, time, vocab] float32

`bind(config, params)` gives the same model as a Flax NNX module.
"""

from nspo_jax.models.architecture import ModelConfig, RopeScaling
from nspo_jax.models.cache import Cache, empty_cache, repeat_cache
from nspo_jax.models.delta import export_delta, load_change, save_delta
from nspo_jax.models.families import FAMILIES
from nspo_jax.models.flops import flops_per_token
from nspo_jax.models.heads import logits, map_positions, scores, values, with_scalar_head
from nspo_jax.models.hf import BASE as DELTA_BASE
from nspo_jax.models.hf import (
    Shardings,
    fingerprint,
    load_config,
    load_model,
    stored_as,
    stored_fingerprint,
)
from nspo_jax.models.hf_config import read_config, write_config
from nspo_jax.models.hf_export import Edit, export_model, save_model
from nspo_jax.models.layer_source import FileSource, LayerSource, ParamsSource
from nspo_jax.models.logprobs import (
    completion_logprobs,
    predicting_states,
    sequence_logprobs,
    text_logprobs,
    token_logprobs,
)
from nspo_jax.models.presets import PRESETS, check_preset
from nspo_jax.models.transformer import (
    Output,
    Transformer,
    abstract_params,
    bind,
    embed,
    final_norm,
    forward,
    init_params,
    input_sites,
    run_layer,
)

__all__ = [
    "Shardings",
    "DELTA_BASE",
    "FAMILIES",
    "PRESETS",
    "Cache",
    "Edit",
    "FileSource",
    "LayerSource",
    "ModelConfig",
    "Output",
    "ParamsSource",
    "RopeScaling",
    "Transformer",
    "abstract_params",
    "bind",
    "check_preset",
    "completion_logprobs",
    "embed",
    "empty_cache",
    "export_delta",
    "export_model",
    "final_norm",
    "fingerprint",
    "flops_per_token",
    "forward",
    "init_params",
    "input_sites",
    "load_change",
    "load_config",
    "load_model",
    "logits",
    "map_positions",
    "predicting_states",
    "read_config",
    "repeat_cache",
    "run_layer",
    "save_delta",
    "save_model",
    "scores",
    "sequence_logprobs",
    "stored_as",
    "stored_fingerprint",
    "text_logprobs",
    "token_logprobs",
    "values",
    "with_scalar_head",
    "write_config",
]
