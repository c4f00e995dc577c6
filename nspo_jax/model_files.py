"""The files of a model's directory beside its weights: JSON files and the tokenizer.

A token's id is a row of the embedding. This module alone compares the two: ids without a row are
refused when a tokenizer is loaded, and rows without a token are `absent_ids`, which are never
sampled and have no probability.
"""

import functools
import json
import logging
import os
import pathlib
import re
from typing import Any

import transformers

CONFIG = "config.json"
# A directory with these is a LoRA adapter in PEFT's layout: see `adapter_base`.
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# This file records the date of a model's chat template: {"date": "2026-11-25"}.
RENDERING = "rendering.json"
_TOKENIZERS = ("tokenizer*", "vocab.*")
_OWN_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.*")
_JSON_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_log = logging.getLogger(__name__)

Ranges = tuple[tuple[int, int], ...]


def check_directory(directory: str | os.PathLike, what: str = "The model") -> pathlib.Path:
    """Returns the path of a model's directory if it exists.

    Args:
      directory: the value of a field or flag.
      what: the name of that field or flag, for the message.

    Raises:
      FileNotFoundError: if it does not exist, such as a name at the Hugging Face Hub.
    """
    path = pathlib.Path(directory)
    if path.is_dir():
        return path
    name = str(directory).removeprefix("hf:").removeprefix("https://huggingface.co/").rstrip("/")
    if path.exists():
        raise FileNotFoundError(f"{what} is {str(directory)!r}, which is a file: give a directory.")
    message = f"{what} is {str(directory)!r}: there is no such directory, it does not exist."
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        message += (
            " A name at the Hugging Face Hub is not fetched by itself: download it first, `hf "
            f"download {name} --local-dir models/{name.split('/')[1]}`, and give the directory, "
            f"models/{name.split('/')[1]}."
        )
    else:
        message += " Expected one in Hugging Face's layout: check the path or download the model."
    raise FileNotFoundError(message)


def adapter_base(directory: str | os.PathLike) -> pathlib.Path | None:
    """Returns the directory of an adapter's base model; None for a directory that is no adapter.

    The base is `base` inside the adapter's directory, a folder or a link, if there is one, and
    otherwise the directory that base_model_name_or_path of adapter_config.json names.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: adapter_config.json is damaged or names no base, the base is an adapter itself, or
        whole weights lie beside the adapter.
    """
    directory = pathlib.Path(directory)
    path, inside = directory / ADAPTER, directory / "base"
    if not path.exists():
        return None
    if whole := sorted(file.name for file in directory.glob("model*.safetensors")):
        raise ValueError(
            f"{directory} holds an adapter, {ADAPTER}, and whole weights, {whole[0]}: expected one "
            f"of them. Remove {ADAPTER} if the weights are merged already, or else the weights."
        )
    remedy = f"Or link the base into the adapter's directory: ln -s BASE {inside}"
    name = read_json(path).get("base_model_name_or_path")
    if inside.exists() or inside.is_symlink():
        base = check_directory(inside, f"The base of the adapter {directory}")
    elif isinstance(name, str) and name:
        try:
            base = check_directory(name, f"base_model_name_or_path of {path}")
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{error} {remedy}") from error
    else:
        raise ValueError(
            f"{path} has base_model_name_or_path {name!r}: write the base's directory there. "
            f"{remedy}"
        )
    if (base / ADAPTER).exists():
        raise ValueError(
            f"The base {base} of the adapter {directory} is an adapter itself: merge it first, "
            f"python -m scripts.export_hf --policy={base} --output=MERGED, and name MERGED."
        )
    return base


def config_directory(directory: str | os.PathLike) -> pathlib.Path:
    """Returns where a model's config.json is: an adapter's base, or the directory itself."""
    return adapter_base(directory) or pathlib.Path(directory)


def tokenizer_directory(directory: str | os.PathLike) -> pathlib.Path:
    """Returns where a model's tokenizer is: an adapter without one has its base's."""
    directory = pathlib.Path(directory)
    own = any(any(directory.glob(pattern)) for pattern in _OWN_TOKENIZERS)
    return directory if own else config_directory(directory)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads the object in a JSON file of a model's directory.

    Raises:
      FileNotFoundError: if the file is missing.
      ValueError: if it holds no JSON object.
    """
    if not path.exists():
        check_directory(path.parent)
        raise FileNotFoundError(
            f"{path} does not exist. Expected a directory in Hugging Face's layout, with {CONFIG} "
            "and model.safetensors (or model.safetensors.index.json and its shards); check the "
            "path or download the model."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object.")
    return content


def read_optional_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a file by `read_json`; returns {} if there is no such file."""
    return read_json(path) if path.exists() else {}


def load_tokenizer(directory: str | os.PathLike) -> transformers.PreTrainedTokenizerBase:
    """Loads a tokenizer from local files.

    tokenizer.json and SentencePiece's tokenizer.model are read unchanged. Without them the class
    that tokenizer_config.json names is used. It is the last choice: in transformers 5,
    GPT2Tokenizer and its like replace the pre-tokenizer of tokenizer.json by their own (the ids of
    digits after blanks change), and LlamaTokenizer merges a tokenizer.model's pieces in another
    order than that of their scores (the ids of repeated blanks change).

    Raises:
      FileNotFoundError: if the directory is absent or has no tokenizer in it.
      ValueError: if a file is damaged, or the tokenizer is not the model's: see `check_rows`.
    """
    model = check_directory(directory)
    directory = tokenizer_directory(model)
    load = transformers.AutoTokenizer.from_pretrained
    options = {}
    if (directory / "tokenizer.json").exists():
        load = transformers.PreTrainedTokenizerFast.from_pretrained
    elif (directory / "tokenizer.model").exists():
        load = transformers.PreTrainedTokenizerFast.from_pretrained
        # with `legacy`, blanks at the start of a text stay, as in SentencePiece
        given = read_optional_json(directory / "tokenizer_config.json").get("add_bos_token", True)
        options = {"legacy": True, "add_bos_token": given}
    try:
        loaded = load(directory, local_files_only=True, **options)
        if loaded.get_vocab().keys() <= loaded.added_tokens_encoder.keys():
            # transformers makes up such a tokenizer if there is no tokenizer.json
            raise ValueError("it has special tokens alone")
    except Exception as error:  # a damaged file can raise almost any error in transformers
        for name in _JSON_FILES:
            read_optional_json(directory / name)  # this raises the error of a damaged file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FileNotFoundError(
            f"No tokenizer can be loaded from {directory} ({reason}). Copy tokenizer.json and "
            "tokenizer_config.json into the model's directory; to read a SentencePiece "
            "tokenizer.model instead, pip install sentencepiece protobuf."
        ) from error
    rows = read_optional_json(config_directory(model) / CONFIG).get("vocab_size")
    if type(rows) is int:
        check_rows(loaded, rows, directory)
    return loaded


def token_ids(tokenizer: transformers.PreTrainedTokenizerBase) -> dict[int, str]:
    """Returns every id of a tokenizer -> its token."""
    added = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    return {index: token for token, index in tokenizer.get_vocab().items()} | added


def check_rows(
    tokenizer: transformers.PreTrainedTokenizerBase, rows: int, where: str | os.PathLike
) -> None:
    """Checks that every id of a tokenizer has a row of its model's embedding.

    An added token that neither the chat template nor an end of text needs may lack a row, as Gemma
    3's image token does. Such a token is logged, and a text that holds it is refused. A text in a
    chat cannot hold it, as special tokens in it are not read as such: see `chat.ChatFormat`.

    Args:
      tokenizer: the model's.
      rows: the number of rows of the embedding, vocab_size.
      where: the model's directory, for the message.

    Raises:
      ValueError: naming the ids, the rows and the directory.
    """
    beyond = {index: token for index, token in token_ids(tokenizer).items() if index >= rows}
    if not beyond:
        return
    written = str(tokenizer.chat_template or "")
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    added = tokenizer.added_tokens_decoder
    needed = [i for i, t in beyond.items() if i not in added or i in ends or t in written]
    listed = ", ".join(f"{beyond[i]} ({i})" for i in sorted(needed or beyond)[:4])
    more = f" and {len(needed or beyond) - 4} more" if len(needed or beyond) > 4 else ""
    if needed:
        size = max(beyond) + 1
        raise ValueError(
            f"The tokenizer in {where} has ids up to {size - 1}, and the model's embedding has "
            f"{rows} rows (vocab_size): there is none for {listed}{more}, which would be read as "
            "another token. Take the tokenizer that belongs to these weights, or give the new "
            f"tokens rows with transformers: model.resize_token_embeddings({size})."
        )
    _log_once(
        f"{where}: the embedding's {rows} rows (vocab_size) have none for {listed}{more}: texts "
        "that would be read as it are refused"
    )


def absent_ids(directory: str | os.PathLike, rows: int) -> Ranges:
    """Returns the rows of a model's embedding that have no token in the tokenizer beside it.

    Embeddings are padded to round numbers: Qwen2.5's has 271 rows too many. A directory without a
    loadable tokenizer gives no ranges, as nothing is known about its rows.

    Returns:
      Ranges [first, last + 1), in order.

    Raises:
      ValueError: for the reasons of `load_tokenizer`.
    """
    model, directory = directory, tokenizer_directory(directory)
    if not any(any(directory.glob(pattern)) for pattern in _TOKENIZERS):
        return ()
    try:
        tokenizer = load_tokenizer(model)
    except FileNotFoundError:  # weights need no tokenizer, and its users get the error themselves
        return ()
    ids = sorted(index for index in token_ids(tokenizer) if index < rows)
    edges = zip([-1, *ids], [*ids, rows], strict=True)
    return tuple((before + 1, after) for before, after in edges if after - before > 1)


def recorded_date(directory: str | os.PathLike) -> str | None:
    """Returns the recorded date that a model's conversations were rendered with, or None.

    Raises:
      ValueError: if the file is damaged.
    """
    return read_optional_json(config_directory(directory) / RENDERING).get("date")


def record_date(directory: str | os.PathLike, date: str | None) -> None:
    """Records a date for `recorded_date`; None writes no file, as the template has no date."""
    if date is not None:
        path = pathlib.Path(directory) / RENDERING
        temporary = path.with_name(f"{RENDERING}.{os.getpid()}")  # half a file is never read
        temporary.write_text(json.dumps({"date": date}) + "\n", encoding="utf-8")
        temporary.replace(path)


@functools.cache
def _log_once(message: str) -> None:
    """Logs a line once, however often a directory is opened."""
    _log.info("%s", message)
