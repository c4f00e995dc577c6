"""The chat world's splits as a TFDS dataset, prepared once and read without TensorFlow."""

import dataclasses
import functools
import pathlib
from typing import cast

import tensorflow_datasets as tfds

from nspo_jax.data import builders
from nspo_jax.data import split as split_lib
from nspo_jax.data.conversation import Conversation
from nspo_jax.tasks.chat_world import world


@dataclasses.dataclass
class ChatWorldConfig(tfds.core.BuilderConfig):
    """One world; `seed` decides its facts, splits and text."""

    seed: int = 0


class ChatWorld(tfds.core.GeneratorBasedBuilder):
    """The synthetic conversations of `world`, with a config for each seed."""

    VERSION = tfds.core.Version("1.0.0")  # raise it when `world` makes other rows

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {name: tfds.features.Text() for name in ("prompt", "answer", "family", "kind")}
            ),
            description="Tiny chat conversations for safety alignment, seeded and synthetic.",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # there is nothing to download
        config = cast(ChatWorldConfig, self.builder_config)  # TFDS leaves its kind open
        made = world.World(config.seed)
        return {split: self._generate_examples(made.split(split)) for split in world.SPLITS}

    def _generate_examples(self, rows: list[Conversation]):
        for index, row in enumerate(rows):
            yield index, dataclasses.asdict(row)


def load_split(data_dir: str | pathlib.Path, seed: int, split: str) -> list[Conversation]:
    """Reads a split of a seed's world, preparing the dataset first if it is absent.

    Args:
      data_dir: the directory in which TFDS keeps prepared datasets.
      seed: the world's seed.
      split: a name of `world.SPLITS`, perhaps with a slice: "train[:40%]".

    Raises:
      ValueError: for an unknown split, a slice beyond its rows, or prepared files that cannot be
        read.
    """
    wanted = split_lib.parse(split)
    if wanted.name not in world.SPLITS:
        raise ValueError(
            f"The split is {split!r}; expected one of {', '.join(world.SPLITS)}, with a slice if "
            "wanted, such as train[:40%]."
        )
    try:
        return list(_read(str(data_dir), seed, wanted))
    except split_lib.SplitError:
        raise
    except builders.DAMAGED as error:
        directory = pathlib.Path(data_dir) / ChatWorld.name / _config(seed).name
        raise ValueError(
            f"The dataset in {directory} cannot be read or written ({error}). Delete that "
            "directory to prepare it anew, or set another config.workspace."
        ) from error


def _config(seed: int) -> ChatWorldConfig:
    return ChatWorldConfig(name=f"seed_{seed}", description=f"World {seed}.", seed=seed)


# a task reads a dozen splits, and a process opens a task several times: TFDS decodes row by row
@functools.lru_cache(maxsize=64)
def _read(data_dir: str, seed: int, split: split_lib.Split) -> tuple[Conversation, ...]:
    make = functools.partial(
        ChatWorld, config=_config(seed), data_dir=data_dir, file_format="array_record"
    )
    builder = builders.prepare(make)
    split.check_rows(builder.info.splits[split.name].num_examples)
    source = builder.as_data_source(split=str(split))  # pyright: ignore[reportCallIssue]  # the decorator hides it
    return tuple(
        Conversation(**{name: bytes(value).decode() for name, value in row.items()})
        for row in source
    )
