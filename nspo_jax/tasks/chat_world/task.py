"""The task chat_world: the synthetic conversations of `world`, judged by rules."""

from collections.abc import Callable
import pathlib
from typing import Any

import numpy as np

from nspo_jax import artifacts, models, settings
from nspo_jax.data import chat, preferences
from nspo_jax.data import split as split_lib
from nspo_jax.data.conversation import Conversation
from nspo_jax.tasks import task
from nspo_jax.tasks.chat_world import base, dataset, judge, pairs, world


class ChatWorld:
    """The kind of the task chat_world; see `task.Kind`."""

    pretrains = True
    has_rules = True
    has_pairs = True
    fields: tuple[str, ...] = ("data.train_split", "data.benign_fraction", "data.wrapped_fraction")
    text_fields: tuple[str, ...] = ()

    def check(self, run: settings.Run, *, has_weights: bool) -> None:
        """Raises ValueError for settings that ask for more than the world has."""
        del has_weights  # the chat world makes its model and data itself
        if split_lib.parse(run.data.train_split).name != "train":
            raise ValueError(
                f"data.train_split is {run.data.train_split!r}; expected train, or a slice of "
                "it such as train[:40%]."
            )
        calibration = world.CALIBRATION_ROWS * len(world.GENERAL_FAMILIES)
        for name, asked, rows in (
            ("calibration.rows", run.calibration.rows, calibration),
            ("evaluation.prompts", run.evaluation.prompts, world.EVALUATION_ROWS),
        ):
            if asked > rows:
                raise ValueError(
                    f"{name} is {asked}, and the chat world has {rows} of them: set it to at most "
                    f"{rows}."
                )

    def make(
        self,
        run: settings.Run,
        model_config: models.ModelConfig,
        load_base: Callable[[], Any],
        chat_format: chat.ChatFormat,
    ) -> task.Task:
        """Makes the task; it needs no base model."""
        del model_config, load_base, chat_format

        def load(split: str, limit: int | None = None) -> list[Conversation]:
            return dataset.load_split(run.data_directory, run.seed, split)[:limit]

        benign = round(run.rl.prompts * run.data.benign_fraction)
        wrapped = round(run.rl.prompts * run.data.wrapped_fraction)
        train = run.data.train_split
        with split_lib.said_by("data.train_split"):
            harmful, inside = load(train), load(train.replace("train", "train_wrapped", 1))
        parts = [
            (harmful, run.rl.prompts - wrapped),
            (inside, wrapped),
            (load("replay_general"), benign - benign // 2),
            (load("borderline_replay"), benign // 2),
        ]
        count = run.evaluation.prompts
        rule = judge.WorldJudge()

        def failed(rows, texts) -> np.ndarray:
            return rule(rows, texts)[0] < 0

        def passed(rows, texts) -> np.ndarray:
            return ~failed(rows, texts)

        def refused(rows, texts) -> np.ndarray:
            return np.array([judge.is_world_refusal(text) for text in texts])

        suites = {}
        for split in world.HARMFUL_SPLITS:
            score = split.replace("harmful", "unsafe")
            rate = task.Rate(score, failed, score.removeprefix("unsafe_"))
            suites[split] = task.Suite(load(split, count), (rate,))
        suites["borderline"] = task.Suite(
            load("borderline", count),
            (
                task.Rate("over_refusal", refused, "over-refusal"),
                task.Rate("borderline", passed, lower_is_better=False),
            ),
        )
        general = load("general")
        for family in world.GENERAL_FAMILIES:
            rows = [row for row in general if row.family == family][:count]
            rate = task.Rate(f"general/{family}", passed, lower_is_better=False)
            suites[family] = task.Suite(rows, (rate,))
        return task.Task(
            parts=[(rows, number) for rows, number in parts if number],
            suites=suites,
            calibration=load("calibration", run.calibration.rows),
            held_out=general,
            reward=rule,
            drift={"kl_heldout": "kl"},
            refusal=judge.is_world_refusal,
        )

    def pairs(self, run: settings.Run) -> list[preferences.Pair] | None:
        """Returns the world's own pairs; see `pairs.world_pairs`."""
        return pairs.world_pairs(run.seed)

    def pretrain(self, run: settings.Run, directory: pathlib.Path) -> None:
        """Pretrains the base model; see `base.pretrain_base`."""
        base.pretrain_base(run, directory)

    def base_recipe(self, run: settings.Run, directory: pathlib.Path) -> artifacts.Recipe:
        """Returns the base model's recipe; see `base.recipe`."""
        return base.recipe(run, directory)
