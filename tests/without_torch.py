"""A program that runs another one, PROGRAM ARGUMENT ..., for which torch is not installed.

transformers and tensorboardX import torch where it is there: two CPU seconds of every process that
the tests start, none of which computes with it.
"""

import os
import runpy
import sys


def hide_torch() -> None:
    """Imports what would import torch, without it. An import of torch itself works afterwards."""
    os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # it would say that torch is missing
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    import tensorboardX  # noqa: F401
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: F401

    del sys.modules["torch"]


if __name__ == "__main__":
    hide_torch()
    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
