"""LoRA adapters against PEFT, which makes them, merges them and says what they compute."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from nspo_jax import model_files, models
from nspo_jax.data import chat
from nspo_jax.models import hf, layer_source

torch = pytest.importorskip("torch", reason="PEFT computes on torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft", reason="PEFT is the independent check of the merge")

# PEFT's, of transformers' old name of a property
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
SMALL = {
    "vocab_size": 19, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FAMILIES = {"llama": {}, "mistral": {"sliding_window": 3}, "gemma": {"head_dim": 6}}
ADAPTERS = {
    "of queries and values": ("llama", {"target_modules": ["q_proj", "v_proj"]}),
    "of everything": ("gemma", {"target_modules": "all-linear", "lora_alpha": 3}),
    "with patterns": (
        "llama", {"target_modules": ["q_proj", "down_proj", "lm_head"],
                  "rank_pattern": {"down_proj": 3, "layers.1.self_attn.q_proj": 2},
                  "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 9, "lm_head": 1}},
    ),
    "of some layers, rank-stabilised": (
        "mistral", {"target_modules": ["o_proj", "up_proj"], "layers_to_transform": [0, 2],
                    "layers_pattern": "layers", "use_rslora": True},
    ),
    "by a regular expression": (
        "gemma", {"target_modules": r".*layers\.[12]\..*(k|gate)_proj",
                  "exclude_modules": ["layers.2.self_attn.k_proj"]},
    ),
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(3, 19, (2, 9))


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """family -> the directory of a random base."""
    made = {}
    for family, fields in FAMILIES.items():
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(family, **{**SMALL, **fields})
        made[family] = tmp_path_factory.mktemp(family) / "model"
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(made[family])
    return made


def make(base, directory, **options):
    """Saves an adapter with random weights, and returns PEFT's merged model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, attn_implementation="eager")
    options = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | options
    model = peft.get_peft_model(model, peft.LoraConfig(**options))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(directory, save_embedding_layers=False)
    return model.merge_and_unload().eval()


@pytest.fixture
def adapter(bases, tmp_path):
    make(bases["llama"], tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    return tmp_path / "adapter"


def edit(adapter, **changes):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def logits(directory):
    config, params = models.load_model(directory)
    mask = jnp.ones(TOKENS.shape, bool)
    hidden = jax.jit(lambda p: models.forward(config, p, jnp.asarray(TOKENS), mask).hidden)(params)
    return np.asarray(models.logits(config, params, hidden))


def flat(directory):
    tensors = hf.Tensors(directory)
    return {name: tensors.read(name) for name in tensors.names()}


# ------------------------------------------------------------------------------------------------
# The merged model.
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTERS)
def test_the_merge_is_that_of_peft(name, bases, tmp_path):
    family, options = ADAPTERS[name]
    theirs = make(bases[family], tmp_path, **options)
    with torch.no_grad():
        expected = theirs(torch.tensor(TOKENS)).logits.numpy()
    np.testing.assert_allclose(logits(tmp_path), expected, atol=1e-5)
    assert np.abs(logits(bases[family]) - expected).max() > 0.1  # the adapter does something

    merged, base, changed = flat(tmp_path), flat(bases[family]), set()
    for tensor, value in theirs.named_parameters():
        np.testing.assert_allclose(merged[tensor], value.detach().numpy(), atol=1e-6)
        if np.any(merged[tensor] != base[tensor]):
            changed.add(tensor.removesuffix(".weight"))
    stored = safetensors_numpy.load_file(tmp_path / "adapter_model.safetensors")
    assert changed == {key.split(".", 2)[2].rsplit(".lora_", 1)[0] for key in stored}


def test_a_bfloat16_base_is_merged_in_float32(bases, tmp_path):
    """The sum of a bfloat16 weight and its change is not rounded to bfloat16."""
    models.export_model(bases["llama"], tmp_path / "base", dtype="bfloat16")
    make(tmp_path / "base", tmp_path / "adapter", target_modules=["v_proj"])
    name = "model.layers.1.self_attn.v_proj"
    stored = safetensors_numpy.load_file(tmp_path / "adapter/adapter_model.safetensors")
    a, b = (stored[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    weight = safetensors_numpy.load_file(tmp_path / "base/model.safetensors")[f"{name}.weight"]
    expected = weight.astype(np.float64) + 6 / 4 * b.astype(np.float64) @ a.astype(np.float64)
    merged = hf.Tensors(tmp_path / "adapter").read(f"{name}.weight")
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged, expected, atol=1e-6)
    assert np.abs(merged - merged.astype(jnp.bfloat16).astype(np.float32)).max() > 1e-4
    assert models.stored_as(tmp_path / "adapter") == "BF16 + adapter"


def test_it_is_read_in_parts_and_by_layers(adapter, monkeypatch):
    whole = flat(adapter)
    monkeypatch.setattr(hf, "_BLOCK_BYTES", 4 * 16 * 3)  # three rows of 16
    tensors = hf.Tensors(adapter)
    for name in ("model.layers.2.self_attn.q_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        np.testing.assert_allclose(tensors.read(name), whole[name], atol=1e-6)
        part = tensors.read(name, (slice(2, 11), slice(5, 8)), transpose=True)
        np.testing.assert_allclose(part, whole[name][2:11, 5:8].T, atol=1e-6)
    source, params = layer_source.FileSource(adapter), models.load_model(adapter)[1]
    ours = jax.tree.map(lambda leaf: leaf[1], params["layers"])
    jax.tree.map(np.testing.assert_array_equal, source.layer(1), ours)
    assert source.fingerprint() == models.fingerprint(params)


# ------------------------------------------------------------------------------------------------
# Its directory.
# ------------------------------------------------------------------------------------------------


def test_an_export_is_a_plain_model(adapter, bases, tmp_path):
    models.export_model(adapter, tmp_path / "merged")
    np.testing.assert_array_equal(logits(tmp_path / "merged"), logits(adapter))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert theirs.config.model_type == "llama"
    assert not (tmp_path / "merged/adapter_config.json").exists()
    with pytest.raises(FileExistsError, match="holds the input"):
        models.export_model(adapter, bases["llama"])


def test_a_change_of_an_adapted_model_is_a_delta(adapter, bases, tmp_path):
    config, params = models.load_model(adapter)
    change = jax.tree.map(lambda leaf: 1e-4 * jnp.ones_like(leaf), params)
    models.save_delta(tmp_path / "delta", config, change, adapter)
    moved = models.load_model(tmp_path / "delta")[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b + 1e-4, rtol=1e-5), moved, params)
    report = models.export_delta(adapter, bases["llama"], tmp_path / "as_delta")
    assert len(report.tensors) == 2 * SMALL["num_hidden_layers"]
    np.testing.assert_allclose(logits(tmp_path / "as_delta"), logits(adapter), atol=1e-5)
    with pytest.raises(ValueError, match="adapter is an adapter itself: make a plain"):
        models.export_delta(bases["llama"], adapter, tmp_path / "other")
    edit(adapter, base_model_name_or_path=str(tmp_path / "delta"))
    with pytest.raises(ValueError, match=r"delta of the adapter .* is a delta: make a plain model"):
        models.load_model(adapter)


def test_the_tokenizer_is_its_own_or_its_base_s(adapter, bases, tmp_path):
    base = tmp_path / "base"
    models.export_model(bases["llama"], base)
    edit(adapter, base_model_name_or_path=str(base))
    words = [f"w{index}" for index in range(12)]
    chat.build_tokenizer(words).save_pretrained(base)
    (base / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    chat_format = chat.load_format(adapter)
    assert chat_format.tokenizer.get_vocab() == chat.load_tokenizer(base).get_vocab()
    assert 7 in chat_format.stop_ids
    assert models.load_config(adapter) == models.load_config(base)
    assert models.load_config(adapter).absent_ids

    chat.build_tokenizer(words[::-1]).save_pretrained(adapter)
    own = chat.load_format(adapter)
    assert own.tokenizer.get_vocab() != chat_format.tokenizer.get_vocab()
    assert 7 in own.stop_ids
    models.export_model(adapter, tmp_path / "merged")
    assert chat.load_tokenizer(tmp_path / "merged").get_vocab() == own.tokenizer.get_vocab()
    assert (tmp_path / "merged/generation_config.json").exists()
    chat.build_tokenizer([f"w{index}" for index in range(40)]).save_pretrained(adapter)
    with pytest.raises(ValueError, match="embedding has 19 rows"):
        chat.load_tokenizer(adapter)


def test_the_base_may_lie_inside(adapter, bases):
    expected = logits(adapter)
    edit(adapter, base_model_name_or_path="google/gemma-2b")
    with pytest.raises(FileNotFoundError) as error:
        models.load_model(adapter)
    for part in ("base_model_name_or_path of", "hf download google/gemma-2b", "ln -s BASE"):
        assert part in str(error.value)
    (adapter / "base").symlink_to(adapter / "nothing")
    with pytest.raises(FileNotFoundError, match=r"The base of the adapter .* does not exist"):
        models.load_model(adapter)
    (adapter / "base").unlink()
    (adapter / "base").symlink_to(bases["llama"])
    np.testing.assert_array_equal(logits(adapter), expected)


def test_a_base_that_cannot_be_is_named(adapter, tmp_path):
    edit(adapter, base_model_name_or_path=None)
    with pytest.raises(ValueError, match=r"has base_model_name_or_path None: write .* ln -s BASE"):
        models.load_config(adapter)
    edit(adapter, base_model_name_or_path=str(adapter))
    with pytest.raises(ValueError, match="is an adapter itself: merge it first"):
        models.load_config(adapter)
    (adapter / "model.safetensors").touch()
    with pytest.raises(ValueError, match=r"an adapter, .* and whole weights, model\.safetensors"):
        models.load_config(adapter)


# ------------------------------------------------------------------------------------------------
# What is refused.
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"}, {"peft_type": None}, {"use_dora": True}, {"bias": "all"},
        {"modules_to_save": ["lm_head"]}, {"fan_in_fan_out": True}, {"init_lora_weights": "pissa"},
        {"trainable_token_indices": [3]}, {"layer_replication": [[0, 2]]}, {"lora_bias": True},
        {"alora_invocation_tokens": [5]}, {"use_qalora": True}, {"a_new_field": 0.5},
        {"r": "4"}, {"r": 0}, {"lora_alpha": None}, {"target_modules": None},
        {"rank_pattern": {"q_proj": 0}}, {"alpha_pattern": {"q_proj": "8"}},
        {"rank_pattern": ["q_proj"]}, {"target_modules": "(q_proj"},
        {"target_modules": ["q_proj", "down_proj", "c_attn"]}, {"target_modules": "c_attn"},
        {"target_modules": ["q_proj", "down_proj", "embed_tokens"]}, {"target_modules": []},
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_merged_is_named(adapter, change):
    edit(adapter, **change)
    ((name, value),) = change.items()
    named = {"rank_pattern": "rank", "alpha_pattern": "alpha", "r": "r"}.get(name, name)
    if isinstance(value, list) and value and name == "target_modules":
        value = value[-1]
    elif isinstance(value, dict):
        (value,) = value.values()
    with pytest.raises(ValueError, match=r"adapter_config\.json") as error:
        models.load_model(adapter)
    assert named in str(error.value) or "regular expression" in str(error.value)
    assert repr(value) in str(error.value) or "unterminated" in str(error.value)


def test_what_is_off_is_read_past(adapter):
    expected = logits(adapter)
    edit(adapter, a_new_field=None, enable_lora=None, merge_weights=False, peft_version="0.3.0",
         rank_pattern=None, loftq_config={}, lora_dropout=0.1, init_lora_weights="gaussian",
         exclude_modules=[], revision="main")  # fmt: skip
    np.testing.assert_array_equal(logits(adapter), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(Q.format("B")), r"missing .*layers\.1\.self_attn\.q_proj\.lora_B"),
        (lambda t: t.update({"base_model.model.lm_head.weight": np.ones((19, 16))}),
         r"extra base_model\.model\.lm_head\.weight \[19, 16\]"),
        (lambda t: t.update({Q.format("A").replace("q_proj", "k_proj"): np.ones((4, 16))}),
         r"extra .*k_proj\.lora_A\.weight"),
        (lambda t: t.update({Q.format("A"): np.ones((5, 16), np.float32)}),
         r"misshaped .*q_proj\.lora_A\.weight \[5, 16\], expected \[4, 16\]"),
        (lambda t: t.update({Q.format("B"): np.ones((12, 4), np.float32)}),
         r"misshaped .*q_proj\.lora_B\.weight \[12, 4\], expected \[16, 4\]"),
        (lambda t: t.update({Q.format("A"): np.ones((4, 16), np.int8)}), "dtype I8 of .*q_proj"),
        (lambda t: t.clear() or t.update(x=np.ones(2)), "; .* and 7 more"),
    ],
)  # fmt: skip
def test_tensors_and_config_must_agree(adapter, change, message):
    path = adapter / "adapter_model.safetensors"
    tensors = safetensors_numpy.load_file(path)
    change(tensors)
    safetensors_numpy.save_file(tensors, path)
    with pytest.raises(ValueError, match=message):
        models.load_model(adapter)


Q = "base_model.model.model.layers.1.self_attn.q_proj.lora_{}.weight"


def test_a_tied_head_cannot_be_adapted(bases, tmp_path):
    make(bases["gemma"], tmp_path, target_modules=["q_proj"])
    edit(tmp_path, target_modules=["q_proj", "lm_head"])
    with pytest.raises(ValueError, match="target_modules 'lm_head', which the base model lacks"):
        models.load_model(tmp_path)


def test_missing_weights_are_named(adapter):
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.safetensors does not exist"):
        models.load_model(adapter)


def test_a_plain_directory_is_its_own(bases):
    directory = bases["llama"]
    assert model_files.adapter_base(directory) is None
    assert model_files.config_directory(directory) == directory
    assert model_files.tokenizer_directory(directory) == directory
