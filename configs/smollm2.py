"""Arms on a real chat model of 135M parameters: `--config=configs/smollm2.py:ARM`.

    ./scripts/get_smollm2.sh runs/smollm2/model
    python -m scripts.train --config=configs/smollm2.py:nspo --config.data.train_path=PATHS \
        --config.data.general_path=PATHS --config.data.evaluation=PATHS --workdir=runs/smollm2/nspo

SmolLM2-135M-Instruct follows nearly every harmful request, so that there is something to align. The
policy learns to refuse the prompts of PKU-SafeRLHF and to answer general questions, which make up a
third of each batch. The numbers suit two CPU cores. An arm's name may end in `_no_replay`, which
leaves the general questions out of the batch.
"""

import ml_collections

from configs import safety

NO_PROJECTION = {"projection.mode": "none", "projection.untargeted": "train"}
TUNED = {**NO_PROJECTION, "optimizer.learning_rate": 1e-5}
DPO = {"rl.algorithm": "dpo", "rl.prompts": 12, "data.benign_fraction": 0.0}

ARMS: dict[str, dict] = {
    # the untrained base model
    "base": {"rl.steps": 0},
    # attention and MLP projected, all else frozen; the head is the embedding, which stays
    "nspo": {},
    # the same constraint by Adam in null-space coordinates
    "nspo_coords": {"projection.mode": "coordinates"},
    # the MLP projected, the rest frozen
    "nspo_mlp_frozen": {"projection.targets": "mlp"},
    # the MLP projected and everything else trained, as the released code intends
    "nspo_paper": {"projection.targets": "mlp", "projection.untargeted": "train"},
    # nspo with a random subspace of the same rank at every site
    "random": {"projection.basis": "random"},
    # plain GRPO at nspo's learning rate: everything trained, nothing projected
    "grpo": NO_PROJECTION,
    # GRPO with its own learning rate, and the same with a KL penalty to the base model
    "grpo_tuned": TUNED,
    "grpo_kl": {**TUNED, "rl.kl_coefficient": 0.05},
    # DPO on pairs of a safe and an unsafe answer, with everything trained, and projected like nspo
    "dpo": {**TUNED, **DPO},
    "nspo_dpo": DPO,
}
NO_REPLAY = "_no_replay"


def get_config(arm: str = "nspo") -> ml_collections.ConfigDict:
    """Returns the config of an arm.

    Raises:
      ValueError: for an unknown arm.
    """
    name = arm.removesuffix(NO_REPLAY)
    if name not in ARMS:
        raise ValueError(f"The arm is {arm!r}; expected one of {', '.join(ARMS)}.")
    config = safety.get_config("any")
    config.workspace = "runs/smollm2"
    config.model.path = "runs/smollm2/model"
    config.model.compute_dtype = "float32"  # bfloat16 is slower on a CPU
    config.model.remat = "none"
    config.data.prompt_length = 64
    config.data.completion_length = 32
    config.data.benign_fraction = 0.5
    config.calibration.rows = 600
    config.calibration.batch_size = 50
    config.calibration.rank_rule = "energy(0.05)"
    config.calibration.first_token = "separate"
    config.rewards.terms = "refusal@harmful+over_refusal@benign"
    config.rewards.on_failure = "raise"
    config.rl.prompts = 4
    config.rl.samples = 6
    config.rl.minibatches = 1
    config.rl.steps = 60
    config.rl.temperature = 0.8
    config.optimizer.learning_rate = 1e-4
    config.evaluation.prompts = 50
    config.evaluation.every = 20
    config.evaluation.batches = 4
    config.evaluation.temperature = 0.0
    config.checkpoint.every = 10
    config.update_from_flattened_dict(ARMS[name])
    if arm != name:
        config.data.benign_fraction = 0.0
        if config.rl.algorithm != "dpo":
            config.rewards.terms = "refusal@harmful"
    return config
