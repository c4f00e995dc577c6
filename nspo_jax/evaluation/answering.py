"""Answers to prompts up to stop strings, decoded in chunks with a look at the text between them.

A compiled loop knows ids and no text. It draws `CHUNK` tokens at a time; then the host decodes
them, and rows whose text holds a stop string are done.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import transformers

from nspo_jax.evaluation import programs as programs_lib
from nspo_jax.evaluation import scoring
from nspo_jax.models import sampling
from nspo_jax.rewards import batched

CHUNK = 16  # tokens between two looks at the text


class Options(NamedTuple):
    """The options of an answer's drawing; requests with equal options share batches.

    stop_strings: end an answer where they stand in its text.
    stop_ids: end an answer.
    max_new_tokens: at least 1.
    temperature: 0 takes the likeliest token; top_k: 0 is off; top_p: 1 is off.
    """

    stop_strings: tuple[str, ...]
    stop_ids: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


def check_options(options: Options, max_length: int) -> None:
    """Raises ValueError for options out of range, or that leave no room for a prompt."""
    sampling.check_options(options.temperature, options.top_k, options.top_p)
    if not 0 < options.max_new_tokens < max_length:
        raise ValueError(
            f"{options.max_new_tokens} new tokens are asked for (max_gen_toks), and the model has "
            f"{max_length} positions for prompt and answer together; expected from 1 to "
            f"{max_length - 1}. Set max_gen_toks in generation_kwargs of the task's file."
        )


def answer(
    programs: programs_lib.Programs,
    tokenizer: transformers.PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    options: Options,
    *,
    batch: int,
    seeds: Sequence[int],
    told: Callable[[int], Any] = lambda count: None,
) -> list[str]:
    """Answers each prompt; the text may go on behind its stop string by less than a chunk.

    Prompts that leave no room for the answer are cut on the left, as lm-eval's `hf` does.

    Args:
      programs: the model's.
      tokenizer: the model's; special tokens are left out of the text.
      prompts: token ids, not empty.
      options: the options of all prompts.
      batch: rows a batch, a multiple of the mesh's shards.
      seeds: one for each prompt; used above temperature 0.
      told: gets the number of prompts that have just been answered.

    Raises:
      ValueError: for an empty prompt, or for the reasons of `check_options`.
    """
    check_options(options, programs.model_config.max_length)
    room = programs.model_config.max_length - options.max_new_tokens
    if not all(prompts):
        raise ValueError("A prompt has no token; expected one at least to continue from.")
    cut = [list(prompt[-room:]) for prompt in prompts]
    order = sorted(range(len(cut)), key=lambda index: -len(cut[index]))
    texts = [""] * len(cut)
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        length = scoring.bucket(len(cut[part[0]]), room)
        missing = scoring.rows_of(len(part), batch, programs.shards) - len(part)
        rows = batched.pad_rows([cut[index] for index in part] + [[]] * missing, length)
        drawn_by = np.array([seeds[index] for index in part] + [0] * missing, np.int32)
        found = _answer_batch(programs, tokenizer, rows, drawn_by, options, len(part))
        for index, text in zip(part, found, strict=True):
            texts[index] = text
        told(len(part))
    return texts


def _answer_batch(programs, tokenizer, prompts, seeds, options: Options, count: int) -> list[str]:
    """Returns the texts of the first `count` rows; the others fill the batch up."""
    length, limit = prompts[0].shape[1], prompts[0].shape[1] + options.max_new_tokens
    done = np.arange(len(seeds)) >= count
    ids: list[list[int]] = [[] for _ in range(count)]
    texts = [""] * count
    slots = min(scoring.bucket(length + CHUNK, limit), limit)
    programs.ask("begin", *prompts, slots=slots)
    for made in range(0, options.max_new_tokens, CHUNK):
        steps = min(CHUNK, options.max_new_tokens - made)
        slots = max(slots, scoring.bucket(length + made + steps, limit))
        tokens, live = programs.ask(
            "advance", done, seeds, slots=slots, steps=steps, stop_ids=list(options.stop_ids),
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
        )  # fmt: skip
        for row in np.flatnonzero(~done):
            ids[row] += tokens[row][live[row]].tolist()
            ended = ids[row][-1] in options.stop_ids
            said = ids[row][:-1] if ended else ids[row]  # a stop id need not be a special token
            texts[row] = tokenizer.decode(said, skip_special_tokens=True)
            done[row] = ended or any(stop in texts[row] for stop in options.stop_strings)
        if done.all():
            break
    return texts
