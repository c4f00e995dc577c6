"""Published model sizes, known without a checkpoint.

They serve to plan shapes, memory and compilation before anything is downloaded, and to notice a
path to another model than the config's. The numbers are those of each model's config.json.
"""

import dataclasses
import os
from typing import Any

from nspo_jax.models import architecture, hf_config


def _preset(model_type: str, **fields: Any) -> architecture.ModelConfig:
    return hf_config.read_config({"model_type": model_type, **fields})


def _qwen(model_type: str, **fields: Any) -> architecture.ModelConfig:
    return _preset(
        model_type,
        max_position_embeddings=32768,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        **{"vocab_size": 151936, **fields},
    )


_LLAMA3 = {
    "vocab_size": 128256,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rope_theta": 5e5,
    "rms_norm_eps": 1e-5,
}

PRESETS: dict[str, architecture.ModelConfig] = {
    "qwen2_5_0_5b": _qwen(
        "qwen2", hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
        num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "qwen2_5_1_5b": _qwen(
        "qwen2", hidden_size=1536, intermediate_size=8960, num_hidden_layers=28,
        num_attention_heads=12, num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "qwen2_5_7b": _qwen(
        "qwen2", hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, vocab_size=152064,
    ),
    "qwen3_0_6b": _qwen(
        "qwen3", hidden_size=1024, intermediate_size=3072, num_hidden_layers=28,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128, tie_word_embeddings=True,
    ),
    "qwen3_8b": _qwen(
        "qwen3", hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
        num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    ),
    "llama3_2_1b": _preset(
        "llama", hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, head_dim=64,
        max_position_embeddings=131072, tie_word_embeddings=True,
        rope_scaling={
            "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        },
        **_LLAMA3,
    ),
    "llama3_8b": _preset(
        "llama", hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
        max_position_embeddings=8192, **_LLAMA3,
    ),
}  # fmt: skip


def check_preset(
    name: str, model_config: architecture.ModelConfig, path: str | os.PathLike
) -> None:
    """Raises ValueError unless a checkpoint's config is the preset's.

    The context length may differ, since base and instruct checkpoints of a model state different
    ones. So may the ids without a token, which are the tokenizer's.

    Args:
      name: a name of `PRESETS`.
      model_config: the checkpoint's config.
      path: the checkpoint's directory, for the message.
    """
    preset = PRESETS[name]
    changed = [
        f"{field.name} is {getattr(model_config, field.name)!r} there, "
        f"{getattr(preset, field.name)!r} in the preset"
        for field in dataclasses.fields(model_config)
        if field.name not in ("max_length", "absent_ids")
        and getattr(model_config, field.name) != getattr(preset, field.name)
    ]
    if changed:
        raise ValueError(
            f"The model in {path} is not {name}: {'; '.join(changed)}. Correct "
            "--config.model.path, or choose the preset that fits."
        )
