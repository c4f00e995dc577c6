"""TFDS builders: datasets prepared once as array_record files, read without TensorFlow."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib

from google.protobuf import json_format
import tensorflow_datasets as tfds

from nspo_jax.data import split as split_lib
from nspo_jax.data import world


@dataclasses.dataclass
class ChatWorldConfig(tfds.core.BuilderConfig):
    """One world. `seed` makes its facts, splits and text."""

    seed: int = 0


class ChatWorld(tfds.core.GeneratorBasedBuilder):
    """The synthetic conversations of `data.world`, a config a seed."""

    VERSION = tfds.core.Version("1.0.0")  # to be raised when `world` makes other rows

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {name: tfds.features.Text() for name in ("prompt", "answer", "family", "kind")}
            ),
            description="Tiny chat conversations for safety alignment, seeded and synthetic.",
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing to download
        made = world.World(self.builder_config.seed)
        return {split: self._generate_examples(made.split(split)) for split in world.SPLITS}

    def _generate_examples(self, rows: list[world.Conversation]):
        for index, row in enumerate(rows):
            yield index, dataclasses.asdict(row)


# what TFDS raises for files that it cannot read or write
DAMAGED = (ValueError, KeyError, OSError, RuntimeError, json_format.ParseError)


def prepare(make: Callable[[], tfds.core.DatasetBuilder]) -> tfds.core.DatasetBuilder:
    """A builder whose files are there. Of processes that write them at once, one wins.

    Args:
      make: makes the builder; it reads what is there when it is made.
    """
    builder = make()
    if builder.is_prepared():
        return builder
    try:
        builder.download_and_prepare()
        return builder
    except OSError:
        other = make()  # reads the metadata that another process has written meanwhile
        if not other.is_prepared():
            raise
        return other


def load_split(data_dir: str | pathlib.Path, seed: int, split: str) -> list[world.Conversation]:
    """Reads a split of a seed's world, preparing the dataset first if it is absent.

    Args:
      data_dir: where TFDS keeps prepared datasets.
      seed: the world's.
      split: a name of `world.SPLITS`, with a slice if wanted: "train[:40%]".

    Raises:
      ValueError: for an unknown split, a slice that it does not have, or prepared files that cannot
        be read.
    """
    wanted = split_lib.parse(split)
    if wanted.name not in world.SPLITS:
        raise ValueError(
            f"The split is {split!r}; expected one of {', '.join(world.SPLITS)}, with a slice if "
            "wanted, such as train[:40%]."
        )
    config = ChatWorldConfig(name=f"seed_{seed}", description=f"World {seed}.", seed=seed)
    make = functools.partial(
        ChatWorld, config=config, data_dir=str(data_dir), file_format="array_record"
    )
    try:
        builder = prepare(make)
        wanted.check_rows(builder.info.splits[wanted.name].num_examples)
        source = builder.as_data_source(split=str(wanted))
        rows = [
            world.Conversation(**{name: bytes(value).decode() for name, value in row.items()})
            for row in source
        ]
    except split_lib.SplitError:
        raise
    except DAMAGED as error:
        directory = pathlib.Path(data_dir) / ChatWorld.name / config.name
        raise ValueError(
            f"The dataset in {directory} cannot be read or written ({error}). Delete that "
            "directory to prepare it anew, or set another config.workspace."
        ) from error
    return rows
