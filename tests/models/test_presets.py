"""Published sizes, built abstractly: parameter counts, names and shapes, nothing allocated."""

import dataclasses
import json

from flax import traverse_util
import jax
import numpy as np
import pytest

from configs import llama3_8b, llm, qwen2_5_7b
from nspo_jax import models, sharding
from nspo_jax.models import hf
from nspo_jax.rl import checks
from tests import runs

# As the Hugging Face hub counts them; without the tied head that Qwen3-0.6B's files repeat.
PUBLISHED = {
    "qwen2_5_0_5b": 494_032_768,
    "qwen2_5_1_5b": 1_543_714_304,
    "qwen2_5_7b": 7_615_616_512,
    "qwen3_0_6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
    "llama3_2_1b": 1_235_814_400,
    "llama3_8b": 8_030_261_248,
}


@pytest.mark.parametrize("name", models.PRESETS)
def test_parameter_count_is_the_published_one(name):
    abstract = jax.tree.leaves(models.abstract_params(models.PRESETS[name]))
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in abstract)
    assert sum(int(np.prod(leaf.shape)) for leaf in abstract) == PUBLISHED[name]


@pytest.mark.parametrize("name", models.PRESETS)
def test_tensor_names_and_shapes_are_those_of_transformers(name):
    torch = pytest.importorskip("torch", reason="torch is the independent check of the models")
    transformers = pytest.importorskip("transformers")
    config = models.PRESETS[name]
    fields = models.write_config(config)
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.for_model(**fields)
        )
    expected = {name: tuple(value.shape) for name, value in theirs.named_parameters()}
    assert {name: shape for name, (*_, shape) in hf.expected_tensors(config).items()} == expected


@pytest.mark.parametrize("name", models.PRESETS)
def test_every_parameter_is_sharded_by_a_rule(name):
    config = models.PRESETS[name]
    abstract = models.abstract_params(config)
    sharding.check_rules(abstract)
    mesh = jax.sharding.AbstractMesh(
        (1, 8, 1), sharding.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3
    )
    placed = traverse_util.flatten_dict(sharding.shardings(mesh, abstract), sep="/")
    whole = [path for path, where in placed.items() if not any(where.spec)]
    assert all(path.endswith("scale") for path in whole), whole


@pytest.mark.parametrize("name", models.PRESETS)
def test_the_run_config_of_a_size_is_valid(name):
    config = runs.made(llm.get_config(name))
    with pytest.raises(ValueError, match="model.preset is .* and model.path is empty"):
        checks.check_config(config)
    config = runs.changed(config, {"model.path": "/somewhere"})
    checks.check_config(config)
    tied = models.PRESETS[name].tie_embeddings
    assert ("head" in config.projection.targets) == (not tied)


@pytest.mark.parametrize("hardware", ["", *llm.HARDWARE])
def test_a_model_s_own_config_is_its_size_s(hardware):
    for module, size in ((qwen2_5_7b, "qwen2_5_7b"), (llama3_8b, "llama3_8b")):
        config = module.get_config(hardware)
        assert config == llm.get_config(f"{size},{hardware}") and config.model.preset == size
        checks.check_config(runs.made(config), has_weights=False)
        # a model of seven billion parameters on one device trains its MLP alone
        assert (config.projection.targets == "mlp") == (config.mesh.fsdp == 1)
    with pytest.raises(
        ValueError, match="hardware is 'tpu9'; expected one of h100x8, v5p_16, h200"
    ):
        qwen2_5_7b.get_config("tpu9")


def test_an_unknown_size_is_named():
    with pytest.raises(ValueError, match="The size is 'qwen9'; expected one of qwen2_5_0_5b"):
        llm.get_config("qwen9")


def test_another_model_than_the_preset_is_named():
    config = models.PRESETS["qwen2_5_7b"]
    models.check_preset("qwen2_5_7b", dataclasses.replace(config, max_length=131072), "here")
    with pytest.raises(ValueError) as error:
        models.check_preset("qwen2_5_1_5b", config, "runs/model")
    for part in ("runs/model is not qwen2_5_1_5b", "hidden_size is 3584 there, 1536 in the preset"):
        assert part in str(error.value)


def test_a_published_config_is_the_preset():
    """Qwen/Qwen2.5-7B-Instruct's config.json, as transformers 4 wrote it."""
    fields = json.loads("""{
      "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
      "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 3584,
      "initializer_range": 0.02, "intermediate_size": 18944, "max_position_embeddings": 32768,
      "max_window_layers": 28, "model_type": "qwen2", "num_attention_heads": 28,
      "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
      "rope_theta": 1000000.0, "sliding_window": 131072, "tie_word_embeddings": false,
      "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": true,
      "use_sliding_window": false, "vocab_size": 152064}""")
    assert models.read_config(fields) == models.PRESETS["qwen2_5_7b"]
