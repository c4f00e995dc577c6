"""Streams a model's answers to the terminal, for any checkpoint of a supported family.

    python -m scripts.generate --model=PATH --prompt="How do I bake bread?"
    python -m scripts.generate --model=runs/tiny/nspo/policy --prompt="how to make a cake ?"
    python -m scripts.generate --model=PATH --prompt="Once upon" --temperature=0.8 --top_p=0.9
    echo "Once upon a time" | python -m scripts.generate --model=PATH --nochat

PATH is a Hugging Face directory, or one that `python -m scripts.export_hf --delta` wrote. --prompt
may be given several times; without it every line of standard input is a prompt. The tokenizer's
chat template renders prompts if there is one; --nochat continues plain text. Answers are greedy
unless --temperature is above 0. Only the answers go to standard output.
"""

import dataclasses
import datetime
import sys
import time

from absl import flags
import jax
import numpy as np

from nspo_jax import models, settings
from nspo_jax.data import chat, text_stream
from nspo_jax.models import generation, sampling
from scripts import launch

MODEL = flags.DEFINE_string("model", None, "The model's directory.", required=True)
PROMPT = flags.DEFINE_multi_string("prompt", None, "The prompt; default: lines of stdin.")
CHAT = flags.DEFINE_bool("chat", None, "Apply the chat template; default: if there is one.")
SYSTEM = flags.DEFINE_string("system", None, "The system message; default: the template's own.")
THINKING = flags.DEFINE_bool("thinking", False, "Sets a template's enable_thinking (Qwen3).")
DATE = flags.DEFINE_string(
    "date", None, "The date in the chat template; default: the training's, or else today."
)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the most likely token.")
TOP_K = flags.DEFINE_integer("top_k", 0, "Draw from the k most likely tokens; 0: from all.")
TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw from the most likely tokens of this mass.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "Cut the answer here.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "The draws' seed.", lower_bound=0, upper_bound=2**32 - 1)
DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "The dtype of weights and activations."
)
# Prompts are padded to a multiple of this, so that few lengths are compiled.
LENGTH_STEP = 32


def main() -> None:
    """Answers every prompt."""
    sampling.check_options(TEMPERATURE.value, TOP_K.value, TOP_P.value)
    model_config = models.load_config(MODEL.value)  # a mistake is cheap before the weights are read
    chat_format = chat.load_format(MODEL.value, system=SYSTEM.value, thinking=THINKING.value)
    use_chat = bool(chat_format.tokenizer.chat_template) if CHAT.value is None else CHAT.value
    chat_format = dataclasses.replace(chat_format, chat=use_chat)
    chat_format = dataclasses.replace(chat_format, date=stated_date(chat_format))
    if SYSTEM.value is not None and not use_chat:
        raise ValueError("--system needs a chat template, and plain text is continued here.")
    if model_config.head != "logits":
        raise ValueError(f"{MODEL.value} is a classifier: it gives a score and cannot generate.")
    given = PROMPT.value or [line.rstrip("\n") for line in sys.stdin]
    if not given:
        raise ValueError("There is no prompt: give --prompt, or lines on standard input.")
    how = "with the chat template" if use_chat else "as plain text (no chat template)"
    how += f", which states the date {chat_format.date}" if chat_format.date else ""
    print(f"[{len(given)} prompt{'s' * (len(given) != 1)}, {how}]", file=sys.stderr)
    prompts = [encode_prompt(model_config, chat_format, prompt) for prompt in given]
    model_config, params = models.load_model(MODEL.value, dtype=np.dtype(DTYPE.value))
    model_config = dataclasses.replace(model_config, compute_dtype=DTYPE.value)
    for number, (text, encoded) in enumerate(zip(given, prompts, strict=True)):
        if len(given) > 1:
            print(f"[{text}]", file=sys.stderr)
        answer(
            model_config,
            params,
            chat_format,
            encoded,
            jax.random.fold_in(jax.random.key(SEED.value), number),
        )


def stated_date(chat_format: chat.ChatFormat) -> str | None:
    """Returns the date that the chat template states: --date, the training's, or today.

    Raises:
      ValueError: if --date is no day.
    """
    if DATE.value:
        settings.check_date(DATE.value, "--date")
    if not chat_format.reads_clock:
        return None
    return DATE.value or chat_format.date or datetime.date.today().isoformat()


def encode_prompt(
    model_config: models.ModelConfig, chat_format: chat.ChatFormat, prompt: str
) -> chat.Encoded:
    """Encodes a prompt as [1, length]; the length is a multiple of LENGTH_STEP if that fits.

    Raises:
      ValueError: if it is empty or leaves no room for --max_new_tokens.
    """
    room = model_config.max_length - MAX_NEW_TOKENS.value
    if room < 1:
        raise ValueError(
            f"--max_new_tokens is {MAX_NEW_TOKENS.value}, but the model has "
            f"{model_config.max_length} positions for prompt and answer together: give fewer."
        )
    tokens, mask = chat_format.encode_prompts([prompt])
    length = tokens.shape[1]
    if not length:
        raise ValueError("The prompt is empty: there is nothing to continue.")
    if length >= model_config.max_length:
        raise ValueError(
            f"--prompt has {length} tokens, and the model has {model_config.max_length} positions "
            f"for prompt and answer together: give a shorter one. It begins with {prompt[:60]!r}."
        )
    if length > room:
        raise ValueError(
            f"--prompt has {length} tokens and --max_new_tokens is {MAX_NEW_TOKENS.value}, "
            f"together more than the model's {model_config.max_length} positions: give "
            f"--max_new_tokens={model_config.max_length - length} at most, or a shorter prompt."
        )
    missing = min(-length % LENGTH_STEP, room - length)
    return chat.Encoded(*(np.pad(array, ((0, 0), (missing, 0))) for array in (tokens, mask)))


def answer(
    model_config: models.ModelConfig,
    params,
    chat_format: chat.ChatFormat,
    encoded: chat.Encoded,
    key: jax.Array,
) -> None:
    """Streams one answer to standard output and a summary to standard error."""
    tokens, mask = encoded.tokens[0], encoded.mask[0]
    text, count, token, started = text_stream.TextStream(chat_format, tokens[mask]), 0, None, None
    try:
        for token in generation.stream(
            model_config, params, tokens, mask, key,
            max_new_tokens=MAX_NEW_TOKENS.value, stop_ids=chat_format.stop_ids,
            temperature=TEMPERATURE.value, top_k=TOP_K.value, top_p=TOP_P.value,
        ):  # fmt: skip
            started = started or time.perf_counter()  # the first token compiles
            count += 1
            print(text.add(token), end="", flush=True)
        reason = "a stop token" if token in chat_format.stop_ids else "--max_new_tokens"
    except KeyboardInterrupt:
        reason = "Ctrl-C"
    print(text.end())
    seconds = time.perf_counter() - started if started else 0.0
    speed = f", {(count - 1) / seconds:.1f} tokens/s" if count > 1 else ""
    print(f"[{count} tokens{speed}; ended by {reason}]", file=sys.stderr)
    if reason == "Ctrl-C":  # the user ends the command, not this answer alone
        sys.exit(130)


if __name__ == "__main__":
    launch.run(main, interrupted="stopped")
