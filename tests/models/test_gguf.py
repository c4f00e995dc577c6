"""GGUF files imported: against the models they were written from, and transformers' own reading."""

import dataclasses
import json
import shutil
import sys
import types

import gguf as library
import numpy as np
import pytest

from nspo_jax import models
from nspo_jax.models import gguf, gguf_config, hf_export
from tests import command_lines
from tests.models import gguf_files, test_families

torch = pytest.importorskip("torch", reason="torch is the independent check of the models")
transformers = pytest.importorskip("transformers")

SMALL = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "rms_norm_eps": 1e-5,
}  # fmt: skip
LLAMA3 = {
    "rope_theta": 5e5, "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
}  # fmt: skip
# The width of a head is Gemma's own, and Qwen3's is: transformers' reading takes them for granted.
GEMMA = {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 5}
CASES = {
    "llama": ("llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama3.2": ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3}),
    "llama linear": (
        "llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}},
    ),
    "qwen2": ("qwen2", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    "qwen3": ("qwen3", {"head_dim": 128, "tie_word_embeddings": True}),
    "gemma2": ("gemma2", GEMMA),
    "gemma3": ("gemma3_text", GEMMA | {"num_hidden_layers": 7}),
}  # fmt: skip
# What transformers 5.24 reads right: it drops rotary scaling.
READ_BY_TRANSFORMERS = ["llama", "llama tied", "qwen2", "qwen3", "gemma2", "gemma3"]
KINDS = [library.GGMLQuantizationType[name] for name in
         ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16", "BF16")]  # fmt: skip


def make(case):
    """A random model of transformers."""
    model_type, fields = CASES[case]
    return test_families.random_model(model_type, {**SMALL, **fields})


@pytest.fixture(scope="module")
def sources():
    """case -> transformers' model, made on first use."""
    made = {}

    def get(case):
        if case not in made:
            made[case] = make(case)
        return made[case]

    return get


@pytest.fixture
def write(sources, tmp_path):
    """Writes model.gguf of a case, and returns its path and the model."""

    def get(case="llama", **options):
        path = tmp_path / "model.gguf"
        gguf_files.write_model(path, sources(case), **options)
        return path, sources(case)

    return get


def mixed_kinds(name, array):
    """Every quantisation in turn; norms and biases stay float32, as in real files."""
    if array.ndim < 2 or array.shape[-1] % 32:
        return gguf_files.F32
    return KINDS[sum(map(ord, name)) % len(KINDS)]


def tokens_and_mask():
    tokens = np.random.default_rng(0).integers(3, 256, (2, 12))
    mask = np.ones((2, 12), bool)
    mask[1, :5] = False
    return np.where(mask, tokens, 0), mask


def differences(directory, theirs):
    """Our logits of a directory and those of transformers' model, of the tokens that there are."""
    config, params = models.load_model(directory)
    tokens, mask = tokens_and_mask()
    expected = test_families.their_logits(theirs, tokens, mask)
    actual = test_families.our_logits(config, params, tokens, mask)
    known = np.ones(config.vocab_size, bool)
    for first, end in config.absent_ids:
        known[first:end] = False
    assert np.abs(expected[mask]).max() > 1 and known.sum() > 250
    return actual[mask][:, known], expected[mask][:, known]


# ------------------------------------------------------------------------------------------------
# Weights and configs.
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_float32_file_is_the_model_it_was_written_from(write, tmp_path, case):
    path, source = write(case)
    report = gguf.import_gguf(path, tmp_path / "out")
    actual, expected = differences(tmp_path / "out", source)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    )
    state, loose = theirs.state_dict(), case.startswith("gemma")  # w + 1 - 1 is rounded
    for name, value in source.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=2e-7 if loose else 0)
    assert theirs.config.tie_word_embeddings == source.config.tie_word_embeddings
    assert theirs.config.rms_norm_eps == 1e-5 and theirs.config.eos_token_id == 1
    written = models.load_config(tmp_path / "out")
    assert report.model_config == dataclasses.replace(written, absent_ids=())
    assert set(report.quantisations) == {"F32"}
    assert sum(report.quantisations.values()) == len(library.GGUFReader(path).tensors)


@pytest.mark.parametrize("case", READ_BY_TRANSFORMERS)
def test_quantised_files_are_what_transformers_reads(write, tmp_path, case):
    path, _ = write(case, kind_of=mixed_kinds)
    report = gguf.import_gguf(path, tmp_path / "out")
    assert len(report.quantisations) >= 6
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, attn_implementation="eager", dtype=torch.float32
    ).eval()
    actual, expected = differences(tmp_path / "out", theirs)
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_every_quantisation_of_the_library_is_read_as_by_transformers(tmp_path):
    """K-quants and others that the library reads and does not write: blocks of random bytes."""
    dequant = pytest.importorskip("transformers.integrations.gguf.dequant")
    read = []
    for kind, function in dequant._DEQUANT.items():
        kind = library.GGMLQuantizationType(kind)
        size, width = library.GGML_QUANT_SIZES[kind]
        data = np.random.default_rng(0).integers(0, 60, (8, width), np.uint8)
        theirs = function(torch.tensor(data), torch.float32).numpy().reshape(8, size)
        path = tmp_path / f"{kind.name}.gguf"
        writer = library.GGUFWriter(path, "llama")
        writer.add_tensor("x", data, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        ours = gguf.open_gguf(path).read("x")
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=kind.name)
        read.append(kind.name)
    assert {"Q4_K", "Q5_K", "Q6_K", "Q2_K", "Q3_K", "IQ4_XS"} <= {*read}


def test_bfloat16_is_the_rounded_model_in_half_the_space(write, tmp_path):
    path, source = write("llama tied", kind_of=mixed_kinds)
    full = gguf.import_gguf(path, tmp_path / "full")
    half = gguf.import_gguf(path, tmp_path / "half", dtype="bfloat16", shard_bytes=20_000)
    assert half.size * 2 == full.size and models.stored_as(tmp_path / "half") == "BF16"
    assert len(list((tmp_path / "half").glob("model-*.safetensors"))) > 1
    _, exact = models.load_model(tmp_path / "full")
    _, rounded = models.load_model(tmp_path / "half")
    kernel, other = (p["layers"]["mlp"]["up"]["kernel"] for p in (exact, rounded))
    assert (kernel.astype("bfloat16") == other.astype("bfloat16")).all() and (kernel != other).any()


def test_a_27b_gemma_scales_its_queries_by_its_width():
    fields = {
        "general.architecture": "gemma2", "gemma2.block_count": 46,
        "gemma2.embedding_length": 4608, "gemma2.attention.head_count": 32,
    }  # fmt: skip
    assert gguf_config._gemma(gguf.File("27b", fields, {}), 128)["query_scale"] == 144  # published
    fields["gemma2.block_count"] = 42
    assert gguf_config._gemma(gguf.File("9b", fields, {}), 256)["query_scale"] == 256


def test_the_generation_config_has_every_end_and_the_sampling(write, tmp_path):
    path, _ = write(changes={
        "tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.padding_token_id": 1,
        "general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.license": "mit",
    })  # fmt: skip
    report = gguf.import_gguf(path, tmp_path / "out")
    assert report.licence == "mit" and report.chat
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {
        "bos_token_id": 0, "eos_token_id": [1, 5], "pad_token_id": 1, "do_sample": True,
        "temperature": 0.6, "top_k": 20,
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------
# Errors: before anything is written.
# ------------------------------------------------------------------------------------------------

WRONG_FIELDS = {
    "architecture key": ({"some.switch": 3}, "llama.some.switch is 3.*not known here"),
    "experts": ({"expert_count": 8}, "llama.expert_count is 8; supported is 0 alone"),
    "partial rotation": ({"rope.dimension_count": 8, "attention.key_length": 16},
                         "rope.dimension_count is 8; supported is the width of a head, 16"),
    "yarn": ({"rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn'; supported are 'none'"),
    "split": ({"split.count": 3}, "is one of 3 files of a split model; expected a whole one"),
    "layers": ({"block_count": None}, "llama.block_count is None; expected a positive whole"),
    "more layers": ({"block_count": 3}, r"missing blk.2.attn_k.weight \[32, 64\]"),
    "fewer layers": ({"block_count": 1}, r"extra blk.1.attn_k.weight \[32, 64\]"),
    "width": ({"feed_forward_length": 64}, r"misshaped blk.0.ffn_down.weight \[64, 96\], expected "
                                           r"\[64, 64\]"),
    "vocabulary": ({"vocab_size": 7}, "vocab_size is 7 and the embedding has 320 rows"),
    "tokenizer model": ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert': this "
                                                          "tokenizer cannot be converted"),
    "no tokenizer": ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model is None"),
    "pre-tokenizer": ({"tokenizer.ggml.pre": "poro-chat"},
                      "tokenizer.ggml.pre is 'poro-chat'.*expected one of gpt-2, smollm"),
    "kinds": ({"tokenizer.ggml.token_type": [1, 1]}, "320 entries and .*token_type 2; expected"),
    "merges": ({"tokenizer.ggml.merges": ["h x"]}, r"among them \('h', 'x'\); expected pairs"),
    "merge's spaces": ({"tokenizer.ggml.merges": ["h e l"]}, "expected pairs of tokens"),
    "merge's parts": ({"tokenizer.ggml.merges": ["h el"]}, "cannot be converted: .*el"),
    "special id": ({"tokenizer.ggml.eos_token_id": 999}, "eos_token_id is 999; expected an id"),
    "bos": ({"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": True},
            "add_bos_token is true and tokenizer.ggml.bos_token_id is missing"),
    "twice": ({"tokenizer.ggml.tokens": ["<s>", "</s>"] * 160},
              "The tokens 0 and 2 of tokenizer.ggml.tokens are both '<s>'"),
    "too many": ({"tokenizer.ggml.tokens": [str(n) for n in range(400)],
                  "tokenizer.ggml.token_type": [1] * 400}, "400 tokens and its embedding 320 rows"),
    "scores": ({"tokenizer.ggml.model": "llama"}, "scores has 0 entries .* 320; expected a score"),
    "changed texts": ({"tokenizer.ggml.model": "llama",
                       "tokenizer.ggml.remove_extra_whitespaces": True}, "changes texts before"),
}  # fmt: skip


def refuse(path, target, message, error=ValueError):
    with pytest.raises(error, match=message) as caught:
        gguf.import_gguf(path, target)
    assert "\n" not in str(caught.value)
    assert not list(target.parent.glob(f"{target.name}*"))


@pytest.mark.parametrize("name", WRONG_FIELDS)
def test_metadata_that_does_not_fit_is_named(write, tmp_path, name):
    changes, message = WRONG_FIELDS[name]
    path, _ = write(changes=changes)
    refuse(path, tmp_path / "out", message)


def test_files_that_are_no_gguf_or_cut(write, tmp_path):
    refuse(tmp_path / "absent.gguf", tmp_path / "out", "does not exist; expected a GGUF file",
           FileNotFoundError)  # fmt: skip
    refuse(tmp_path, tmp_path / "out", "is a directory; expected a GGUF file", FileNotFoundError)
    other = tmp_path / "other.gguf"
    other.write_bytes(b"PK\x03\x04 and so on")
    refuse(other, tmp_path / "out", r"is no GGUF file: it begins with b'PK.*expected b'GGUF'")
    path, _ = write()
    whole = path.read_bytes()
    for share in (0.00002, 0.01, 0.1, 0.5, 0.999):  # in the counts, the header, the tensors
        path.write_bytes(whole[: max(9, int(len(whole) * share))])
        refuse(path, tmp_path / "out", r"bytes\) is cut short or damaged.*Fetch it again")


def test_an_architecture_that_is_not_supported(write, tmp_path):
    path, source = write()
    gguf_files.write(path, "mamba", gguf_files.model_fields(source.config), [])
    refuse(path, tmp_path / "out", "general.architecture is 'mamba'; supported are llama, qwen2")


def test_quantisations_that_are_not_supported(write, tmp_path):
    path, _ = write()
    whole = path.read_bytes()
    name = b"blk.0.ffn_up.weight"
    place = whole.index(name) + len(name) + 4 + 16  # behind the rank and two sizes
    assert whole[place : place + 4] == bytes(4)  # float32
    kinds = {999: "unknown quantisation .*999", 26: "ffn_up.weight is quantised as I32; expected"}
    for kind, message in kinds.items():
        path.write_bytes(whole[:place] + kind.to_bytes(4, "little") + whole[place + 4 :])
        refuse(path, tmp_path / "out", message)


def test_weights_that_are_no_numbers(write, tmp_path):
    path, source = write()
    arrays = {name: array.copy() for name, array in gguf_files.tensors(source)}
    arrays["blk.1.ffn_up.weight"][3, 4] = np.nan
    fields = gguf_files.model_fields(source.config) | gguf_files.small_vocabulary(320)
    gguf_files.write(path, "llama", fields, arrays.items())
    refuse(path, tmp_path / "out", "blk.1.ffn_up.weight holds NaN or infinity; expected finite")


def test_factors_of_the_rotation_that_no_published_model_has(write, tmp_path):
    path, source = write("llama3.2")
    arrays = dict(gguf_files.tensors(source))
    arrays["rope_freqs.weight"] = np.linspace(1, 3, 8, dtype=np.float32)
    fields = gguf_files.model_fields(source.config) | gguf_files.small_vocabulary(320)
    gguf_files.write(path, "llama", fields, arrays.items())
    refuse(path, tmp_path / "out", "rope_freqs.weight is .*expected the factors of Llama 3.1's")


def test_nothing_is_overwritten(write, tmp_path):
    path, _ = write()
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(FileExistsError, match="The output .*out exists; expected a new directory"):
        gguf.import_gguf(path, target)
    assert not list(target.iterdir())


def test_a_full_disk_is_told_before_the_work(write, tmp_path, monkeypatch):
    path, _ = write()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=5))
    refuse(path, tmp_path / "new" / "out", r"0.00 GB free, and the model takes 0.07 GB", OSError)
    assert not (tmp_path / "new").exists()


def test_an_interrupted_import_leaves_nothing(write, tmp_path, monkeypatch):
    path, _ = write()
    opened = []

    def stop(*arguments):
        opened.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(hf_export, "write_weights", stop)
    with pytest.raises(KeyboardInterrupt):
        gguf.import_gguf(path, tmp_path / "out")
    assert opened and [entry.name for entry in tmp_path.iterdir()] == ["model.gguf"]


def test_the_library_that_is_not_installed(write, tmp_path, monkeypatch):
    path, _ = write()
    monkeypatch.setitem(sys.modules, "gguf", None)
    refuse(path, tmp_path / "out", r"package gguf is not installed.*pip install 'nspo_jax\[gguf")


def test_the_command(write, tmp_path):
    path, _ = write("llama tied", kind_of=mixed_kinds, changes={
        "general.license": "apache-2.0", "tokenizer.chat_template.tool_use": "x"})  # fmt: skip
    out = tmp_path / "deep" / "out"
    command = [f"--gguf={path}", f"--output={out}"]
    done = command_lines.run("import_gguf", *command)
    cut = command_lines.run("import_gguf", f"--gguf={tmp_path}", f"--output={tmp_path}/other")
    bare = command_lines.run("import_gguf", *command[:1])
    assert done.returncode == 0, done.stderr
    first, tokens, left_out, licence, last = done.stdout.splitlines()
    assert first.startswith("llama: 2 layers, hidden size 64, vocabulary 320, tied; tensors: ")
    assert "Q4_1" in first and tokens == "tokenizer: 260 tokens, a chat template"
    assert left_out == "left out: further chat templates (tool_use)"
    assert licence == "licence, as the file says: apache-2.0"
    assert last == f"The model is in {out} (float32, 0.00 GB)."
    assert models.load_config(out).absent_ids == ((260, 320),)
    assert cut.returncode == 1 and "error: " in cut.stderr
    assert "expected a GGUF file" in cut.stderr
    assert bare.returncode == 1 and "--output is missing" in bare.stderr
