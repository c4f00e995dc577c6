"""The preparation of TFDS datasets, once for all runs, as array_record files."""

from collections.abc import Callable
from typing import TypeVar

from google.protobuf import json_format
import tensorflow_datasets as tfds

# the errors that TFDS raises for files that it cannot read or write
DAMAGED = (ValueError, KeyError, OSError, RuntimeError, json_format.ParseError)


Builder = TypeVar("Builder", bound=tfds.core.DatasetBuilder)


def prepare(make: Callable[[], Builder]) -> Builder:
    """Returns a builder whose files are there. If several processes write them at once, one wins.

    Args:
      make: makes the builder, which then reads the files that are there.
    """
    builder = make()
    if builder.is_prepared():
        return builder
    try:
        builder.download_and_prepare()
        return builder
    except OSError:
        other = make()  # it reads the metadata that another process has written meanwhile
        if not other.is_prepared():
            raise
        return other
