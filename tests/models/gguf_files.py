"""GGUF files for tests, written as llama.cpp's convert_hf_to_gguf.py writes them.

The library's own table names the tensors, so that the package's table is checked against it.
"""

import json

import gguf
import numpy as np

F32 = gguf.GGMLQuantizationType.F32
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
PROTOTYPE = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2",
             "gemma3_text": "gemma3"}  # fmt: skip
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"


def small_vocabulary(rows):
    """Byte-level BPE with two merges, two special tokens, and fillers for the remaining rows."""
    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]
    alphabet = [chr(code) for code in codes] + [chr(256 + n) for n in range(256 - len(codes))]
    tokens = ["<s>", "</s>", *alphabet, "he", "hel"]
    padding = [f"[PAD{index}]" for index in range(len(tokens), rows)]
    kinds = [CONTROL] * 2 + [NORMAL] * (len(tokens) - 2) + [UNUSED] * len(padding)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens + padding, "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": ["h e", "he l"], "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1, "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip


def byte_level(folder, pre):
    """The fields of a byte-level tokenizer from a directory in Hugging Face's layout."""
    content = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    vocab = content["model"]["vocab"]
    special = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
    tokens = sorted(vocab | special, key=(vocab | special).__getitem__)
    merges = content["model"]["merges"]
    fields = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if t in special else NORMAL for t in tokens],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        "tokenizer.chat_template": config.get("chat_template", ""),
        "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk")):
        token = config.get(f"{theirs}_token")
        token = token["content"] if isinstance(token, dict) else token
        if token is not None:
            fields[f"tokenizer.ggml.{ours}_token_id"] = tokens.index(token)
    return fields


def sentence_piece(processor, *, prefix, user_defined=()):
    """The fields of a SentencePiece model, user-defined pieces spelled with plain spaces."""
    tokens, scores, kinds = [], [], []
    for index in range(processor.get_piece_size()):
        token, score, kind = processor.id_to_piece(index), processor.get_score(index), NORMAL
        if processor.is_unknown(index):
            kind = UNKNOWN
        elif processor.is_control(index):
            kind = CONTROL
        elif processor.is_byte(index):
            kind = BYTE
        elif token in user_defined:
            token, kind, score = token.replace("▁", " "), USER_DEFINED, -1000.0
        tokens.append(token)
        scores.append(score)
        kinds.append(kind)
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds, "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.bos_token_id": processor.bos_id(),
        "tokenizer.ggml.eos_token_id": processor.eos_id(),
        "tokenizer.ggml.unknown_token_id": processor.unk_id(),
    }  # fmt: skip


def model_fields(config):
    """The metadata of one of transformers' configs, behind the architecture's name."""
    fields = {
        "block_count": config.num_hidden_layers, "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
    }  # fmt: skip
    rope = config.rope_parameters
    if config.model_type == "gemma3_text":
        fields["rope.freq_base_swa"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    fields["rope.freq_base"] = rope["rope_theta"]
    if rope["rope_type"] == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": rope["factor"]}
    if config.model_type == "llama":
        fields |= {"rope.dimension_count": config.head_dim, "vocab_size": config.vocab_size}
    if config.model_type not in ("llama", "qwen2"):
        fields |= {"attention.key_length": config.head_dim,
                   "attention.value_length": config.head_dim}  # fmt: skip
    if config.model_type.startswith("gemma"):
        fields["attention.sliding_window"] = config.sliding_window
        caps = ("attn_logit_softcapping", "final_logit_softcapping")
        fields |= {n: getattr(config, n) for n in caps if getattr(config, n, None) is not None}
    return fields


def tensors(model):
    """The tensors of one of transformers' models by llama.cpp's names, and as it stores them."""
    config = model.config
    kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == PROTOTYPE[config.model_type])
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.float().numpy()
        if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            halves = array.reshape(heads, 2, array.shape[0] // heads // 2, -1)
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
            array = array + 1
        stem, suffix = name.rsplit(".", 1)
        yield f"{names.get_name(stem)}.{suffix}", array
    rope = config.rope_parameters
    if rope.get("rope_type") == "llama3":  # the loop of llama.cpp's converter
        factors = []
        for index in range(0, config.head_dim, 2):
            length = 2 * np.pi * rope["rope_theta"] ** (index / config.head_dim)
            original = rope["original_max_position_embeddings"]
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            smooth = (original / length - low) / (high - low)
            if length < original / high:
                factors.append(1)
            elif length > original / low:
                factors.append(rope["factor"])
            else:
                factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
        yield "rope_freqs.weight", np.array(factors, np.float32)


def write(path, architecture, fields, arrays, kind_of=lambda name, array: F32):
    """Writes a file.

    Args:
      path: of it.
      architecture: general.architecture.
      fields: key, or the rest of one behind the architecture's name, -> value; None: not there.
      arrays: pairs of a tensor's name and its float32 value.
      kind_of: the quantisation of a tensor.
    """
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        if value is None:
            continue
        own = not name.startswith(("tokenizer.", "general.", "split."))
        key = f"{architecture}.{name}" if own else name
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        else:
            writer.add_array(key, value)
    for name, array in arrays:
        kind = kind_of(name, array)
        data = array if kind == F32 else gguf.quants.quantize(array, kind)
        writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_model(path, model, tokenizer=None, changes=None, kind_of=lambda name, array: F32):
    """Writes one of transformers' models; `changes` are fields on top."""
    fields = model_fields(model.config)
    fields |= tokenizer or small_vocabulary(model.config.vocab_size)
    write(
        path, PROTOTYPE[model.config.model_type], fields | (changes or {}), tensors(model), kind_of
    )
