"""Writes a trained policy for transformers, vLLM and lm-eval.

    python -m scripts.export_hf --policy=runs/tiny/nspo/policy --output=exported
    python -m scripts.export_hf --policy=runs/tiny/nspo/policy --base=BASE --output=exported \
        --dtype=bfloat16
    python -m scripts.export_hf --policy=runs/tiny/nspo/policy --base=BASE --output=exported \
        --dtype=bfloat16 --rounding=feedback --projectors=DIR
    python -m scripts.export_hf --policy=runs/tiny/nspo/policy --base=BASE --output=exported --delta

A policy's directory (float32) is a Hugging Face directory already; this script writes it in shards
or in bfloat16. BASE is the model that it was trained from. A safety update is often smaller than a
bfloat16 step, and rounding takes it out of the null space. With --base the script prints this loss.
--delta keeps the base unchanged and writes a float32 difference beside it, exactly the trained one.
Without --delta the script turns a delta into a plain float32 model. --rounding=feedback chooses
among neighbouring bfloat16 values so that errors cancel in the protected directions of BASE's
projectors: a smaller leak, not none. `scripts.certify` measures any export.
"""

import pathlib

from absl import flags
import numpy as np

from nspo_jax import models, nullspace, progress
from nspo_jax.models import hf, hf_export
from scripts import launch

POLICY = flags.DEFINE_string("policy", None, "The model to export.", required=True)
OUTPUT = flags.DEFINE_string("output", None, "The directory to write.", required=True)
BASE = flags.DEFINE_string("base", None, "The model that the policy was trained from.")
DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "The weights' dtype.")
ROUNDING = flags.DEFINE_enum(
    "rounding", "nearest", ["nearest", "feedback"], "To bfloat16; feedback needs projectors."
)
PROJECTORS = flags.DEFINE_string("projectors", None, "The directory of --base's projectors.")
DELTA = flags.DEFINE_bool("delta", False, "Write the base and a float32 difference.")
SHARD_GB = flags.DEFINE_float("shard_gb", 5.0, "Largest file of weights, in 1e9 bytes.", 0.001)


def main() -> None:
    """Exports the policy, and prints how much of the update rounding has changed."""
    output = pathlib.Path(OUTPUT.value)
    hf_export.check_apart(output, POLICY.value, BASE.value, PROJECTORS.value)
    edit = rounding_edit()
    if DELTA.value:
        if not BASE.value or DTYPE.value != "float32":
            raise ValueError(
                f"--delta with --base={BASE.value} and --dtype={DTYPE.value}: it needs --base, the "
                "model that the policy was trained from, and is always float32."
            )
        report = models.export_delta(POLICY.value, BASE.value, output)
        total = len(hf.Tensors(output).names())
        print(
            f"{len(report.tensors)} of {total} tensors differ, by {report.norm:.3e} in all; "
            f"{report.elements - report.inexact} of {report.elements} weights are restored bit for "
            "bit, the others to the neighbouring float32."
        )
    else:
        if BASE.value and models.load_config(BASE.value) != models.load_config(POLICY.value):
            raise ValueError(
                f"--base={BASE.value} is not of the architecture of {POLICY.value}: give the model "
                "that the policy was trained from."
            )
        models.export_model(
            POLICY.value,
            output,
            dtype=DTYPE.value,
            shard_bytes=int(SHARD_GB.value * 1e9),
            edit=edit,
        )
        if BASE.value:
            update, lost = rounding(BASE.value, POLICY.value, output)
            share = f"{lost / update:.1%} of the update" if update else "and there is no update"
            print(f"The update is {update:.3e}; rounding to {DTYPE.value} moved weights by "
                  f"{lost:.3e}, {share}.")  # fmt: skip
            if edit is not None:
                print("Most of that is in free directions; scripts.certify says what is not.")
            elif lost > 0.01 * update:
                print("That part is not inside the null space. --delta or --dtype=float32 keep it.")
    print(f"The model is in {output}.")


def rounding_edit() -> models.Edit | None:
    """Returns the edit that --rounding asks for, None for "nearest".

    Raises:
      ValueError: for flags that are missing or do not go together.
    """
    if ROUNDING.value == "nearest":
        if PROJECTORS.value:
            raise ValueError("--projectors is for --rounding=feedback; --rounding is nearest.")
        return None
    if DELTA.value or DTYPE.value != "bfloat16" or not (BASE.value and PROJECTORS.value):
        raise ValueError(
            "--rounding=feedback is for --dtype=bfloat16 without --delta, and needs --projectors "
            "and --base, the model that they were calibrated on."
        )
    projectors = nullspace.load_projectors(PROJECTORS.value)
    projectors.check_model(models.load_config(BASE.value), hf.stored_fingerprint(BASE.value))
    return nullspace.feedback_rounding(projectors)


def rounding(base: str, policy: str, exported: pathlib.Path) -> tuple[float, float]:
    """Computes the Frobenius norms of policy - base and of exported - policy."""
    before, after, written = (hf.Tensors(pathlib.Path(p)) for p in (base, policy, exported))
    update = lost = 0.0
    for name in progress.Bar(written.names(), desc="compare", unit="tensor", leave=False):
        new = after.read(name).astype(np.float64)
        update += float(np.sum(np.square(new - before.read(name))))
        lost += float(np.sum(np.square(written.read(name) - new)))
    return update**0.5, lost**0.5


if __name__ == "__main__":
    launch.run(main)
