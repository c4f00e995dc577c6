"""Exports: other dtypes, shards, deltas; and that neither way loads a model whole."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from nspo_jax import models
from tests import command_lines

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = models.ModelConfig(
    vocab_size=40, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=4, rope_theta=5e4, rms_norm_eps=1e-5, tie_embeddings=False,
    max_length=64,
)  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """A bfloat16 base and a policy that moved its MLP by less than bfloat16 can tell."""
    params = models.init_params(CONFIG, jax.random.key(0))
    models.save_model(tmp_path / "base", CONFIG, params, dtype="bfloat16")
    (tmp_path / "base/tokenizer_config.json").write_text('{"chat_template": "hello"}')
    config, base = models.load_model(tmp_path / "base")
    step = jax.tree.map(lambda x: 1e-5 * jax.random.normal(jax.random.key(1), x.shape), base)
    policy = jax.tree.map(lambda x: x, base)
    policy["layers"]["mlp"] = jax.tree.map(jnp.add, base["layers"]["mlp"], step["layers"]["mlp"])
    models.save_model(tmp_path / "policy", config, policy, like=tmp_path / "base")
    return tmp_path, base, policy


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_policy_keeps_what_goes_with_its_base(run):
    directory, _, policy = run
    fields = json.loads((directory / "policy/config.json").read_text())
    assert fields["torch_dtype"] == "float32"
    assert (directory / "policy/tokenizer_config.json").read_text() == '{"chat_template": "hello"}'
    same(models.load_model(directory / "policy")[1], policy)


def test_a_delta_restores_what_bfloat16_loses(run):
    directory, base, policy = run
    report = models.export_delta(directory / "policy", directory / "base", directory / "out")
    assert len(report.tensors) == 6 and all(".mlp." in name for name in report.tensors)
    assert report.inexact < 0.02 * report.elements
    files = {path.name for path in (directory / "out").iterdir()}
    assert files == {"base", "config.json", "delta.json", "delta.safetensors",
                     "tokenizer_config.json"}  # fmt: skip
    assert (directory / "out/base/model.safetensors").read_bytes() == (
        directory / "base/model.safetensors"
    ).read_bytes()
    delta = safetensors_numpy.load_file(directory / "out/delta.safetensors")
    assert {str(tensor.dtype) for tensor in delta.values()} == {"float32"}

    _, restored = models.load_model(directory / "out")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1.2e-7), restored, policy)
    differ = sum(
        int(np.sum(a != b))
        for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(policy), strict=True)
    )
    assert differ == report.inexact
    models.export_model(directory / "out", directory / "plain")  # one that transformers reads
    same(models.load_model(directory / "plain")[1], restored)

    models.export_model(directory / "policy", directory / "half", dtype="bfloat16")
    half = models.load_model(directory / "half")[1]["layers"]["mlp"]["up"]["kernel"]
    moved = policy["layers"]["mlp"]["up"]["kernel"] - base["layers"]["mlp"]["up"]["kernel"]
    lost = half - policy["layers"]["mlp"]["up"]["kernel"]
    assert np.linalg.norm(lost) > 0.5 * np.linalg.norm(moved)


def test_transformers_does_not_take_a_delta_for_its_base(run):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    directory, _, _ = run
    models.export_delta(directory / "policy", directory / "base", directory / "out")
    with pytest.raises(OSError, match="safetensors"):
        transformers.AutoModelForCausalLM.from_pretrained(directory / "out")


def test_a_delta_needs_its_own_base(run, tmp_path):
    directory, base, _ = run
    config, params = models.with_scalar_head(CONFIG, base, jax.random.key(0))
    models.save_model(directory / "reward", config, params)
    with pytest.raises(ValueError, match="differ in their architecture .head 'logits' against"):
        models.export_delta(directory / "policy", directory / "reward", directory / "out")
    assert not (directory / "out").exists()


def test_shards_are_as_small_as_asked(run):
    directory, _, policy = run
    models.export_model(directory / "policy", directory / "out", shard_bytes=5000)
    index = json.loads((directory / "out/model.safetensors.index.json").read_text())
    sizes = [path.stat().st_size for path in (directory / "out").glob("model-*.safetensors")]
    assert len(sizes) == len({*index["weight_map"].values()}) > 3
    assert max(sizes) < 5000 + 2000  # and a header
    same(models.load_model(directory / "out")[1], policy)


def test_like_must_be_of_the_same_architecture(run):
    directory, _, policy = run
    other = models.ModelConfig(**{**vars(CONFIG), "num_layers": 3})
    params = models.init_params(other, jax.random.key(0))
    with pytest.raises(ValueError, match="num_layers 3 against 2"):
        models.save_model(directory / "out", other, params, like=directory / "base")
    with pytest.raises(ValueError, match="give tokenizer or like, not both"):
        models.save_model(directory / "out", CONFIG, policy, "t", like=directory / "base")


def test_a_delta_is_no_base(run):
    directory, _, _ = run
    models.export_delta(directory / "policy", directory / "base", directory / "delta")
    with pytest.raises(ValueError, match="delta is a delta itself: make a plain model"):
        models.export_delta(directory / "policy", directory / "delta", directory / "out")
    report = models.export_delta(directory / "delta", directory / "base", directory / "out")
    written = (directory / "delta/delta.safetensors").read_bytes()
    assert (directory / "out/delta.safetensors").read_bytes() == written
    with pytest.raises(ValueError, match="is of another base than"):
        models.export_delta(directory / "delta", directory / "policy", directory / "other")
    same(models.load_model(directory / "out")[1], models.load_model(directory / "delta")[1])
    assert len(report.tensors) == 6


def test_a_change_is_saved_as_it_was_trained_and_read_again(run):
    """1e-9 beside a weight of 1: the difference of two float32 models would have lost it."""
    directory, base, _ = run
    change = jax.tree.map(lambda leaf: None, base)
    drawn = 1e-9 * np.random.default_rng(0).standard_normal(base["head"]["kernel"].shape)
    change["head"]["kernel"] = drawn.astype(np.float32)
    change["layers"]["mlp"]["up"]["kernel"] = np.full_like(
        base["layers"]["mlp"]["up"]["kernel"], 1e-9
    )
    models.save_delta(directory / "change", CONFIG, change, directory / "base")
    found = models.load_change(directory / "change")
    assert jax.tree.structure(found) == jax.tree.structure(change)
    same(found, change)
    _, policy = models.load_model(directory / "change")
    same(policy["head"]["kernel"], base["head"]["kernel"] + change["head"]["kernel"])
    assert models.load_change(directory / "base") is None
    # a change of what is a delta itself: its sum is the base
    models.save_delta(directory / "twice", CONFIG, change, directory / "change")
    same(models.load_change(directory / "twice"), change)
    same(models.load_model(directory / "twice/base")[1], policy)


def test_nothing_is_written_over_what_it_is_made_of(run):
    directory, _, _ = run
    (directory / "link").symlink_to(directory / "policy")
    before = (directory / "policy/model.safetensors").read_bytes()
    models.export_delta(directory / "policy", directory / "base", directory / "own")
    for write in (
        lambda: models.export_model(directory / "policy", directory / "link"),
        lambda: models.export_model(directory / "own" / "base", directory / "own"),
        lambda: models.export_delta(directory / "policy", directory / "base", directory / "base"),
        lambda: models.export_delta(directory / "policy", directory / "base", directory / "link"),
    ):
        with pytest.raises(FileExistsError, match="which writing there would destroy"):
            write()
    assert (directory / "policy/model.safetensors").read_bytes() == before
    assert models.load_change(directory / "own") is not None


def test_a_delta_of_a_tied_base_that_stores_its_head(run):
    directory, base, _ = run
    config = models.ModelConfig(**{**vars(CONFIG), "tie_embeddings": True})
    tied = {name: value for name, value in base.items() if name != "head"}
    models.save_model(directory / "tied", config, tied)
    file = directory / "tied/model.safetensors"
    tensors = safetensors_numpy.load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    safetensors_numpy.save_file(tensors, file)
    moved = tied | {"embed": {"embedding": tied["embed"]["embedding"] + 1e-3}}
    models.save_model(directory / "moved", config, moved, like=directory / "tied")
    models.export_delta(directory / "moved", directory / "tied", directory / "out")
    _, restored = models.load_model(directory / "out")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1.2e-7), restored, moved)


def test_the_target_may_be_a_link_and_not_a_file_or_a_tokenizer(run):
    directory, base, policy = run
    (directory / "real").mkdir()
    (directory / "link").symlink_to(directory / "real")
    for params in (base, policy):
        models.save_model(directory / "link", CONFIG, params)
        same(models.load_model(directory / "real")[1], params)
    assert (directory / "link").is_symlink()
    (directory / "file").write_text("text")
    with pytest.raises(FileExistsError, match="file is a file"):
        models.save_model(directory / "file", CONFIG, policy)
    (directory / "tokenizer").mkdir()
    (directory / "tokenizer/tokenizer.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"holds tokenizer\.json"):
        models.save_model(directory / "tokenizer", CONFIG, policy)
    with pytest.raises(ValueError, match="dtype is 'float16': give one of float32, bfloat16"):
        models.save_model(directory / "out", CONFIG, policy, dtype="float16")


def test_a_single_file_wins_over_an_index(run):
    """As in transformers: an index may be left over from an earlier save."""
    directory, _, policy = run
    (directory / "policy/model.safetensors.index.json").write_text('{"weight_map": {"a": "b"}}')
    same(models.load_model(directory / "policy")[1], policy)


def test_a_damaged_delta_is_named(run):
    directory, _, _ = run
    models.export_delta(directory / "policy", directory / "base", directory / "out")
    document = directory / "out/delta.json"
    document.write_text(json.dumps(json.loads(document.read_text()) | {"format": 9}))
    with pytest.raises(ValueError, match="format 9, expected 1"):
        models.load_model(directory / "out")


# ------------------------------------------------------------------------------------------------
# The script.
# ------------------------------------------------------------------------------------------------


def export(*arguments):
    return command_lines.run("export_hf", *arguments)


def test_the_script_exports_and_says_what_rounding_did(run):
    directory, _, policy = run
    done = export(f"--policy={directory / 'policy'}", f"--base={directory / 'base'}",
                  f"--output={directory / 'half'}", "--dtype=bfloat16")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--delta" in done.stdout and "of the update" in done.stdout
    done = export(f"--policy={directory / 'policy'}", f"--base={directory / 'base'}",
                  f"--output={directory / 'delta'}", "--delta")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "6 of 21 tensors differ" in done.stdout
    _, restored = models.load_model(directory / "delta")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1.2e-7), restored, policy)


def test_the_script_names_what_is_missing(run):
    directory, _, _ = run
    done = export(f"--policy={directory / 'policy'}", f"--output={directory / 'out'}", "--delta")
    assert done.returncode == 1 and "--base" in done.stderr and "Traceback" not in done.stderr
    config, params = models.with_scalar_head(CONFIG, run[1], jax.random.key(0))
    models.save_model(directory / "reward", config, params)
    done = export(f"--policy={directory / 'policy'}", f"--output={directory / 'out'}",
                  f"--base={directory / 'reward'}")  # fmt: skip
    assert done.returncode == 1 and "not of the architecture" in done.stderr
    assert not (directory / "out").exists()


# ------------------------------------------------------------------------------------------------
# Memory.
# ------------------------------------------------------------------------------------------------

PEAK = """
import pathlib, sys, threading, time
import jax
from nspo_jax import model_files, models
from nspo_jax.models import hf

def used():  # the process's own memory, without the pages of mapped files
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])

directory = sys.argv[1]
jax.block_until_ready(jax.jit(lambda: jax.numpy.zeros(3))())
fields = model_files.read_json(pathlib.Path(directory) / "config.json")
models.abstract_params(models.read_config(fields))
before, peak, done = used(), [0], threading.Event()

def watch():
    while not done.is_set():
        peak[0] = max(peak[0], used())
        time.sleep(0.002)

thread = threading.Thread(target=watch)
thread.start()
config, params = models.load_model(directory)
jax.block_until_ready(params)
done.set()
thread.join()
everything = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
shapes = [shape for _, _, shape in hf.expected_tensors(config).values()]
print(peak[0] - before, everything, max(4 * rows * sum(rest) for rows, *rest in shapes))
"""


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="measured with /proc")
def test_loading_needs_the_parameters_and_one_tensor(tmp_path):
    config = models.ModelConfig(**{
        **vars(CONFIG), "hidden_size": 1024, "intermediate_size": 4096, "num_layers": 6,
        "vocab_size": 2000,
    })  # fmt: skip
    models.save_model(
        tmp_path / "model", config, models.init_params(config, jax.random.key(0)), dtype="bfloat16"
    )
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "model")],
        cwd=ROOT, capture_output=True, text=True, check=True,
        # large blocks go back to the system when they are freed, so that what is counted is in use
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
    )  # fmt: skip
    peak, everything, largest = map(int, done.stdout.split())
    assert everything > 300e6
    # A tensor is 17 MB, a stack of layers 100 MB. On CPU the layer that is on its way into its
    # stack is in the same memory, hence the second tensor; compiling takes about 30 MB.
    assert peak < everything + 2 * largest + 45e6, (peak, everything, largest)
