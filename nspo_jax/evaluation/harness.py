"""A model of this package in EleutherAI's lm-evaluation-harness, in process and without torch.

Values agree with lm-eval's own `hf` adapter on the same directory in float32, because contexts are
split, cut and begun in the same way. Two things are stricter here: ids that end a turn always end
an answer, and options of `generation_kwargs` that nothing here reads are refused.

This module needs the extra `eval`; only `lm_eval`'s own models import torch.
"""

from collections.abc import Sequence
import dataclasses
import functools
import logging
import pathlib
from typing import Any

import jax
import jinja2
from lm_eval import utils as lm_eval_utils
from lm_eval.api import model as lm_eval_model
from lm_eval.models import utils as lm_eval_models

from nspo_jax import distributed, model_files, progress, sharding
from nspo_jax.data import chat, template
from nspo_jax.evaluation import answering, scoring
from nspo_jax.evaluation import programs as programs_lib
from nspo_jax.models import architecture

DEFAULT_NEW_TOKENS = 256  # hf's default, for a task that does not say
BATCH_PER_SHARD = 8
_DRAWING = {"do_sample", "temperature", "top_k", "top_p", "until", "max_gen_toks"}
# further generation_kwargs -> the value that changes nothing
_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "num_return_sequences": 1}
_log = logging.getLogger(__name__)


def open_model(
    directory: str | pathlib.Path,
    mesh: jax.sharding.Mesh,
    *,
    dtype: str = "float32",
    batch: int | None = None,
    progress: bool = True,
) -> "HarnessLM":
    """Loads a Hugging Face directory or a delta for lm-eval. Collective.

    Args:
      directory: a model of any supported family, with its tokenizer.
      mesh: the mesh that the model is sharded over.
      dtype: the dtype of weights and activations, float32 or bfloat16.
      batch: see `HarnessLM`.
      progress: shows bars.

    Raises:
      FileNotFoundError, ValueError: those of `models.load_model` and `chat.load_format`.
    """
    chat_format = programs_lib.load_format(directory)
    model_config, params = programs_lib.load_model(directory, mesh, dtype)
    return HarnessLM(
        model_config, params, chat_format, mesh, directory, batch=batch, progress=progress
    )


class HarnessLM(lm_eval_model.TemplateLM):
    """A decoder of `nspo_jax.models` as lm-eval's language model.

    Ids that the tokenizer lacks keep their logits, as in `hf`; everywhere else in this package they
    have no probability.

    Args:
      model_config: a language model's.
      params: its parameters, on the mesh.
      chat_format: its tokenizer, chat template and stop ids.
      mesh: the device mesh, which shares the rows of every batch.
      name: the model's name in messages, its directory.
      batch: rows a batch, a multiple of the mesh's shards; None: `BATCH_PER_SHARD` for each.
      progress: shows bars.

    Raises:
      ValueError: for a batch that does not divide over the mesh.
    """

    def __init__(
        self,
        model_config: architecture.ModelConfig,
        params: Any,
        chat_format: chat.ChatFormat,
        mesh: jax.sharding.Mesh,
        name: str | pathlib.Path,
        *,
        batch: int | None = None,
        progress: bool = True,
    ):
        super().__init__()
        model_config = dataclasses.replace(model_config, absent_ids=())
        self.programs = programs_lib.Programs(model_config, params, mesh)
        self.tokenizer: Any = chat_format.tokenizer
        self.batch_size = BATCH_PER_SHARD * self.programs.shards if batch is None else batch
        if self.batch_size < 1:
            raise ValueError(f"The batch size is {batch}; expected a positive number of rows.")
        sharding.check_batch(mesh, self.batch_size, "The batch")
        self._chat_format, self._name, self._progress = chat_format, str(name), progress

    @property
    def max_length(self) -> int:
        """Positions for context and continuation together."""
        return self.programs.model_config.max_length

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text: eos, or else the one that ends a turn."""
        eos = self.tokenizer.eos_token_id
        return self._chat_format.end_id if eos is None else eos

    @property
    def prefix_token_id(self) -> int:
        """The id before a text without a context: BOS, or else the one that ends a text."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in lm-eval's cache of requests."""
        return self._name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Encodes a text as token ids, with one BOS if the tokenizer writes it.

        Args:
          string: the text.
          add_special_tokens: None leaves it to the tokenizer, but adds none if the text begins with
            BOS already, as a chat template's does.
          **kwargs: part of lm-eval's interface; it passes none.

        Raises:
          ValueError: for an id without a row in the model's embedding.
        """
        if add_special_tokens is None:
            given = string.startswith(self._prefix)
            ids = self.tokenizer.encode(string, **({"add_special_tokens": False} if given else {}))
        else:
            ids = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        rows = self.programs.model_config.vocab_size
        if max(ids, default=0) >= rows:
            raise ValueError(
                f"A text has the token {self.tokenizer.convert_ids_to_tokens(max(ids))!r} "
                f"({max(ids)}), and the model's embedding has {rows} rows (vocab_size): "
                f"{string[:80]!r}. Take the tokenizer that belongs to these weights."
            )
        return ids

    @functools.cached_property
    def _prefix(self) -> str:
        return self.tokenizer.decode([self.prefix_token_id])

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Renders a conversation by the template; a last message of the assistant is continued.

        A template without a system role gets the conversation without its system message, which is
        logged, as in `hf`. The date of the model's training is kept.

        Raises:
          ValueError: if there is no template, or it refuses the conversation.
        """
        check_template(self._chat_format, self._name)

        def apply(history: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                chat_template=template.pin(self.tokenizer, self._chat_format.date),
            )

        try:
            return apply(chat_history)
        except jinja2.TemplateError as error:
            rest = [message for message in chat_history if message["role"] != "system"]
            if len(rest) == len(chat_history):
                raise ValueError(
                    f"The chat template of {self._name} refuses a conversation: {error}. Correct "
                    "it in tokenizer_config.json or chat_template.jinja, or leave out "
                    "--apply_chat_template."
                ) from error
            _tell_no_system(self._name)
            return apply(rest)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Scores requests as lm-eval does, but without its bar over the tokenizer's work."""
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Scores each (texts, context, continuation): log p, and True if it is the greedy one."""
        pairs = [scoring.Pair(context, ending) for _, context, ending in requests]
        with self._bar(len(pairs), "log-likelihoods", "request") as bar:
            scores = scoring.score_pairs(
                self.programs, pairs, batch=self.batch_size, told=bar.update
            )
        return [(score.logprob, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Returns log p of whole texts in nats; longer ones in windows of the model's context."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            for window in lm_eval_utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *lm_eval_utils.make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows)
        for number, (logprob, _) in zip(owners, scores, strict=True):
            totals[number] += logprob
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers each (prompt, generation_kwargs), without the stop string that ends the answer.

        Raises:
          ValueError: for generation_kwargs that nothing here reads, or for the reasons of
            `answering.answer`.
        """
        groups: dict[answering.Options, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(read_options(request.args[1], self._chat_format), []).append(number)
        texts = [""] * len(requests)
        with self._bar(len(requests), "answers", "request") as bar:
            for options, numbers in groups.items():
                prompts = [self.tok_encode(requests[number].args[0]) for number in numbers]
                found = answering.answer(
                    self.programs, self.tokenizer, prompts, options,
                    batch=self.batch_size, seeds=numbers, told=bar.update,
                )  # fmt: skip
                for number, text in zip(numbers, found, strict=True):
                    texts[number] = lm_eval_models.postprocess_generated_text(
                        text, list(options.stop_strings), None
                    )
        return texts

    def _bar(self, total: int, what: str, unit: str) -> progress.Bar:
        shown = self._progress and distributed.is_primary()
        return progress.Bar(total=total, desc=what, unit=unit, disable=not shown)


def read_options(given: dict[str, Any], chat_format: chat.ChatFormat) -> answering.Options:
    """Reads lm-eval's generation_kwargs as its other adapters do.

    Raises:
      ValueError: for one that nothing here reads.
    """
    read: dict[str, Any] = dict(lm_eval_models.normalize_gen_kwargs(given, DEFAULT_NEW_TOKENS))
    unread = {
        name: value
        for name, value in read.items()
        if name not in _DRAWING and value not in (None, _NEUTRAL.get(name))
    }
    if unread:
        raise ValueError(
            f"generation_kwargs has {unread}, which nothing here reads; expected "
            f"{', '.join(sorted(_DRAWING))}. Leave the others out of the task's file."
        )
    tokenizer: Any = chat_format.tokenizer
    end = tokenizer.eos_token_id
    eos = None if end is None else tokenizer.decode([end])
    stops = lm_eval_models.handle_stop_sequences(read["until"], eos=eos)
    # a special token has no text to look for
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    ids = {added[stop] for stop in stops if stop in added}
    sampled = bool(read["do_sample"])
    return answering.Options(
        tuple(stop for stop in stops if stop),
        tuple(sorted({*chat_format.stop_ids, *ids})),
        read["max_gen_toks"],
        float(read.get("temperature", 1.0)) if sampled else 0.0,
        int(read.get("top_k") or 0) if sampled else 0,
        float(read.get("top_p") or 1.0) if sampled else 1.0,
    )


def check_template(chat_format: chat.ChatFormat, name: str) -> None:
    """Raises ValueError unless the tokenizer has a chat template."""
    if not chat_format.tokenizer.chat_template:
        raise ValueError(
            f"{name} has no chat template, and --apply_chat_template needs one. Put it in "
            "tokenizer_config.json or chat_template.jinja, or leave out the flag."
        )


def check_generation_config(directory: str | pathlib.Path) -> None:
    """Warns of a generation_config.json that changes `hf`'s greedy answers and not these."""
    path = model_files.config_directory(directory) / "generation_config.json"
    given = model_files.read_optional_json(path)
    penalty = given.get("repetition_penalty", 1.0)
    if penalty not in (None, 1.0):
        _log.warning(
            "%s has repetition_penalty=%s, which lm-eval's hf applies to answers and nothing here "
            "does: answers can differ", path, penalty,
        )  # fmt: skip


@functools.cache
def _tell_no_system(name: str) -> None:
    _log.warning("the chat template of %s has no system role: system messages are left out", name)
