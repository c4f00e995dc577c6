"""What the processes of `tests.forks` have in common: imported without flags, and without torch.

transformers and tensorboardX import torch where it is there, two CPU seconds for processes of which
none computes with it. An import of torch itself works afterwards.
"""

# ruff: noqa: E402, F401
import os
import sys

import pytest

os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"  # it would say that torch is missing
sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]

import tensorboardX
from transformers import AutoTokenizer, PreTrainedTokenizerFast

del sys.modules["torch"]

import nspo_jax.dry_run.plan
import nspo_jax.evaluation.lm_eval_tasks
import nspo_jax.rl.trainer
import scripts.launch
