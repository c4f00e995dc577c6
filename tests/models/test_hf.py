"""Checkpoints: read, written, compared with torch, and refused with a useful message."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from nspo_jax import models

CONFIG = models.ModelConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    rope_theta=5e4,
    rms_norm_eps=1e-5,
    tie_embeddings=False,
    max_length=64,
)


@pytest.fixture(scope="module")
def params():
    tree = models.init_params(CONFIG, jax.random.key(0))
    return jax.tree.map(lambda x: x * 10 if x.ndim == 3 else x, tree)


@pytest.fixture
def saved(tmp_path, params):
    models.save_model(tmp_path / "model", CONFIG, params)
    return tmp_path / "model"


def rewrite(directory, change):
    tensors = safetensors_numpy.load_file(directory / "model.safetensors")
    change(tensors)
    safetensors_numpy.save_file(tensors, directory / "model.safetensors")


def all_logits(config, params, tokens, mask):
    hidden = models.forward(config, params, tokens, mask).hidden
    return models.logits(config, params, hidden)


# ------------------------------------------------------------------------------------------------
# Round trips.
# ------------------------------------------------------------------------------------------------


def test_round_trip_is_bit_identical(saved, params, tmp_path):
    config, loaded = models.load_model(saved)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert models.fingerprint(loaded) == models.fingerprint(params)
    models.save_model(tmp_path / "again", config, loaded)
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_a_published_checkpoint_comes_back_bit_identical(shared_data, tmp_path):
    source = shared_data / "checkpoints" / "tinystories-260k"
    models.save_model(tmp_path / "copy", *models.load_model(source))
    before = safetensors_numpy.load_file(source / "model.safetensors")
    after = safetensors_numpy.load_file(tmp_path / "copy" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(tensor, after[name])


def test_shards_and_half_precision_files(saved, params):
    tensors = safetensors_numpy.load_file(saved / "model.safetensors")
    tensors = {name: np.asarray(x, jnp.bfloat16) for name, x in tensors.items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    weight_map = {}
    for i, half in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2])):
        name = f"model-0000{i + 1}-of-00002.safetensors"
        safetensors_numpy.save_file({key: tensors[key] for key in half}, saved / name)
        weight_map |= dict.fromkeys(half, name)
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    _, half = models.load_model(saved, dtype=jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, half, rounded)
    _, loaded = models.load_model(saved)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(a.dtype)), loaded, rounded)

    (saved / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00002.safetensors does not exist"):
        models.load_model(saved)


def test_half_precision_of_the_other_kind(saved, params):
    tensors = safetensors_numpy.load_file(saved / "model.safetensors")
    tensors = {name: x.astype(np.float16) for name, x in tensors.items()}
    safetensors_numpy.save_file(tensors, saved / "model.safetensors")
    rounded = jax.tree.map(lambda x: np.asarray(x, np.float16).astype(np.float32), params)
    jax.tree.map(np.testing.assert_array_equal, models.load_model(saved)[1], rounded)


def test_fingerprint_sees_every_change(params):
    fingerprint = models.fingerprint(params)
    assert len(fingerprint) == 16 and int(fingerprint, 16)
    changed = jax.tree.map(jnp.copy, params)
    changed["norm"]["scale"] = changed["norm"]["scale"].at[3].add(1e-6)
    renamed = {"norm2" if name == "norm" else name: value for name, value in params.items()}
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    others = [models.fingerprint(tree) for tree in (changed, renamed, half)]
    assert len({fingerprint, *others}) == 4


# ------------------------------------------------------------------------------------------------
# Saving over a directory.
# ------------------------------------------------------------------------------------------------


def test_saving_replaces_a_model_and_leaves_nothing_beside_it(saved, params):
    doubled = jax.tree.map(lambda x: 2 * x, params)
    (saved / "model-00001-of-00002.safetensors").write_text("a stale shard")
    models.save_model(saved, CONFIG, doubled)
    jax.tree.map(np.testing.assert_array_equal, models.load_model(saved)[1], doubled)
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_model(saved, params):
    class Broken:
        def save_pretrained(self, directory):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        models.save_model(saved, CONFIG, jax.tree.map(jnp.zeros_like, params), tokenizer=Broken())
    jax.tree.map(np.testing.assert_array_equal, models.load_model(saved)[1], params)
    assert [path.name for path in saved.parent.iterdir()] == ["model"]


def test_saving_does_not_remove_other_files(saved, params):
    (saved / "notes.md").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.md"):
        models.save_model(saved, CONFIG, params)
    assert (saved / "notes.md").read_text() == "mine"


def test_saving_refuses_parameters_of_another_config(tmp_path, params):
    other = {name: value for name, value in params.items() if name != "head"}
    other["norm"] = {"scale": jnp.ones(15)}
    other["bias"] = jnp.ones(3)
    with pytest.raises(ValueError) as error:
        models.save_model(tmp_path / "model", CONFIG, other)
    for part in ("missing head/kernel", "misshaped norm/scale [15], expected [16]", "extra bias"):
        assert part in str(error.value)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------
# Damaged checkpoints.
# ------------------------------------------------------------------------------------------------


def test_missing_extra_and_misshaped_tensors_are_listed_together(saved):
    def damage(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.1.self_attn.q_proj.bias"] = np.zeros(24, np.float32)
        tensors["lm_head.weight"] = np.zeros((40, 17), np.float32)
        tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((24, 16), np.int8)

    rewrite(saved, damage)
    with pytest.raises(ValueError) as error:
        models.load_model(saved)
    for part in (
        str(saved),
        "missing model.norm.weight [16]",
        "extra model.layers.1.self_attn.q_proj.bias [24]",
        "misshaped lm_head.weight [40, 17], expected [40, 16]",
        "dtype I8 of model.layers.0.mlp.up_proj.weight",
    ):
        assert part in str(error.value)


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*does not exist"):
        models.load_model(tmp_path / "nowhere")
    (saved / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors does not exist"):
        models.load_model(saved)


def test_damaged_files_are_named(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors .* not a whole .* fetch it again"):
        models.load_model(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        models.load_model(saved)


# ------------------------------------------------------------------------------------------------
# Against transformers on torch.
# ------------------------------------------------------------------------------------------------


def test_both_directions_agree_with_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    fields = models.write_config(CONFIG) | {"initializer_range": 0.3}
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval()
    theirs.save_pretrained(tmp_path / "theirs")  # transformers' own spelling of the config
    config, params = models.load_model(tmp_path / "theirs")
    assert config == CONFIG
    models.save_model(tmp_path / "ours", config, params)
    reloaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()

    tokens = np.random.default_rng(0).integers(0, 40, (3, 12))
    mask = np.ones((3, 12), bool)
    mask[1, :5] = False  # left padding
    mask[2, 7:] = False  # right padding
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    mine = all_logits(config, params, jnp.asarray(tokens), jnp.asarray(mask))
    for model in (theirs, reloaded):
        with torch.no_grad():
            expected = model(
                input_ids=torch.tensor(tokens),
                attention_mask=torch.tensor(mask.astype(np.int64)),
                position_ids=torch.tensor(positions),
            ).logits.numpy()
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(mine[mask], expected[mask], atol=1e-4)


def test_tokenizer_is_saved_along(shared_data, tmp_path):
    transformers = pytest.importorskip("transformers")
    source = shared_data / "checkpoints" / "tinystories-260k"
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    models.save_model(tmp_path / "copy", *models.load_model(source), tokenizer=tokenizer)
    copy = transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")
    assert copy("Once upon a time").input_ids == tokenizer("Once upon a time").input_ids
    fields = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert (fields["bos_token_id"], fields["eos_token_id"]) == (1, 2)
