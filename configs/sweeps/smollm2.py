"""The arms on a real chat model: `--config=configs/sweeps/smollm2.py:DATA[,small]`.

    ./scripts/get_smollm2.sh runs/smollm2/model
    python -m scripts.sweep --config=configs/sweeps/smollm2.py:DATA --workdir=runs/smollm2/study

DATA is a directory with the files that configs/smollm2.py names. `small` leaves three arms and the
fields of SMALL: a trial of the machine, too short for a result.
"""

import ml_collections

from configs import smollm2
from configs.sweeps import tiny_arms

SMALL = {
    "rl.steps": 24,
    "evaluation.prompts": 20,
    "evaluation.every": 24,
    "calibration.rows": 120,  # the certificate reads them three times, a second a row on two cores
}


def get_config(name: str = "data") -> ml_collections.ConfigDict:
    """Returns the sweep of the arms at the first seed, on the data of a directory.

    Raises:
      ValueError: for a size that is not small.
    """
    directory, _, size = name.partition(",")
    if size not in ("", "small"):
        raise ValueError(f"The size is {size!r}; expected small, or none.")
    config = tiny_arms.get_config()
    config.config = "configs/smollm2.py"
    config.arms = "base+grpo_tuned+nspo" + ("" if size else "+nspo_coords+dpo+nspo_dpo")
    config.model_path = "runs/smollm2/model"
    config.seeds = "0"
    fixed = smollm2.data_fields(directory) | (SMALL if size else {})
    config.fixed = tiny_arms.make_fixed(fixed)
    return config
