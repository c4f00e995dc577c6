"""Rewards from reward and cost models: decoders with a scalar head, on the mesh."""

import dataclasses
import functools
import pathlib

import jax
import numpy as np

from nspo_jax import models, sharding
from nspo_jax.data import chat
from nspo_jax.rewards import batched, reward


class ModelReward:
    """A trained model's score of each conversation; fits `reward.Reward`. Collective.

    A reward model's reward is its score, on a scale of its own. A cost model's is -sigmoid(cost),
    the negated probability that the completion is unsafe by the sign term of its training (Safe
    RLHF, arXiv 2310.12773, eq. 6). Details hold the model's `score` itself.

    Args:
      directory: a Hugging Face directory of a one-label sequence classifier.
      chat_format: the format of its conversations, with its own tokenizer, as in its training.
      mesh: the mesh that it runs on.
      is_cost: True if a high score is bad.
      prompt_length: tokens of a prompt; an answer to a longer one gets no verdict (NaN).
      completion_length: tokens of a completion with its end; a longer one is cut, as in training.
      batch_size: rows at a time.
      compute_dtype: the dtype of activations.

    Raises:
      FileNotFoundError, ValueError: those of `models.load_model`, and one for a model without a
        scalar head.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        chat_format: chat.ChatFormat,
        mesh: jax.sharding.Mesh,
        *,
        is_cost: bool,
        prompt_length: int,
        completion_length: int,
        batch_size: int,
        compute_dtype: str = "float32",
    ):
        model_config, self._params = models.load_model(
            directory, shardings=functools.partial(sharding.shardings, mesh)
        )
        if model_config.head != "scalar":
            raise ValueError(
                f"The model in {directory} has no scalar head, so it scores nothing: expected a "
                "sequence classifier with one label, such as scripts.train_reward writes."
            )
        model_config = dataclasses.replace(model_config, compute_dtype=compute_dtype)
        self._score = jax.jit(functools.partial(models.scores, model_config))
        self._format = chat_format
        self._lengths = prompt_length, completion_length
        self._mesh, self._batch_size, self._is_cost = mesh, batch_size, is_cost

    def __call__(self, conversations, completions):
        """Scores each conversation; see `reward.Reward`."""
        reward.check_rows(conversations, completions)
        prompts = [row.prompt for row in conversations]
        fits = self._format.prompt_lengths(prompts) <= self._lengths[0]
        prompts = [prompt if fit else "" for prompt, fit in zip(prompts, fits, strict=True)]
        rows = self._format.encode_conversations(prompts, completions, *self._lengths, cut=True)
        scores = batched.score_rows(
            self._score, self._params, rows.tokens, rows.mask, self._mesh, self._batch_size
        )
        scores = np.where(fits, scores, np.nan).astype(np.float32)
        rewards = -1 / (1 + np.exp(-scores)) if self._is_cost else scores
        return rewards.astype(np.float32), {"score": scores}
