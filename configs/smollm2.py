"""Arms on a real chat model of 135M parameters: `--config=configs/smollm2.py:ARM[,DATA]`.

    ./scripts/get_smollm2.sh runs/smollm2/model
    python -m scripts.train --config=configs/smollm2.py:nspo,DATA --workdir=runs/smollm2/nspo

DATA is a directory with the files of `data_fields`; without it the fields that name data have their
defaults. SmolLM2-135M-Instruct follows nearly every harmful request, so that there is something to
align. The policy learns to refuse prompts of PKU-SafeRLHF and to answer benign ones, a third of the
batch: general questions, and prompts in OR-Bench's style that only look harmful. The numbers suit
two CPU cores. An arm's name may end in `_no_replay`, which leaves benign prompts out.
"""

import pathlib

import ml_collections

from configs import default, llm, safety, tiny

TUNED = {**tiny.NO_PROJECTION, "optimizer.learning_rate": 1e-5}
DPO = {"rl.algorithm": "dpo", "rl.prompts": 6, "data.benign_fraction": 0.0}

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
    "grpo": tiny.NO_PROJECTION,
    # GRPO at a learning rate of its own, not tuned yet, and the same with a KL penalty to the base
    "grpo_tuned": TUNED,
    "grpo_kl": {**TUNED, "rl.kl_coefficient": 0.05},
    # DPO on pairs of a safe and an unsafe answer, with everything trained, and projected like nspo
    "dpo": {**TUNED, **DPO},
    "nspo_dpo": DPO,
}
NO_REPLAY = "_no_replay"


def data_fields(directory: str) -> dict[str, str]:
    """Returns the fields that name data, for a directory with these files."""

    def paths(*names: str) -> str:
        return "+".join(str(pathlib.Path(directory) / name) for name in names)

    pairs = paths(
        "pku_saferlhf/pku_seferlhf_realign_dpo_first600.json",
        "pku_saferlhf_more/pku_seferlhf_realign_dpo_rows600_3999.json",
    )
    return {
        "data.train_path": pairs,
        "data.train_split": "rows",
        "reward_training.path": pairs,
        "reward_training.split": "rows[:90%]",
        "reward_training.held_out_split": "rows[90%:]",
        "data.general_path": paths(
            "gsm8k/train_first1000.jsonl", "alpaca/alpaca_random9k_first5000.jsonl",
            "mbpp/mbpp.jsonl",
        ),
        "data.borderline_path": paths("or_bench/or_bench_80k_style_prompts_first2500.jsonl"),
        "data.evaluation": paths(
            "advbench/harmful_behaviors.csv", "harmbench/harmbench_behaviors_text_val.csv",
            "strongreject/strongreject_dataset.csv", "jailbreakbench/jbb_harmful_behaviors.csv",
            "xstest/xstest_prompts.csv", "or_bench/or_bench_80k_sample100_with_category.jsonl",
        ),
    }  # fmt: skip


def get_config(arm: str = "nspo") -> ml_collections.ConfigDict:
    """Returns the config of "ARM" or "ARM,DATA".

    Raises:
      ValueError: for an unknown arm.
    """
    arm, _, directory = arm.partition(",")
    name = arm.removesuffix(NO_REPLAY)
    if name not in ARMS:
        raise ValueError(f"The arm is {arm!r}; expected one of {', '.join(ARMS)}.")
    config = safety.get_config(llm.ANY)
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
    config.rewards.on_failure = "neutral"
    config.rl.prompts = 4
    config.rl.samples = 6
    config.rl.minibatches = 1
    config.rl.shared_prompt = True
    config.rl.steps = 60
    config.optimizer.learning_rate = 5e-4
    config.evaluation.prompts = 50
    config.evaluation.every = 20
    config.evaluation.batches = 4
    config.evaluation.temperature = 0.0
    config.checkpoint.every = 10
    config.reward_training.dataset = "pku_safe_rlhf"
    if directory:
        config.update_from_flattened_dict(data_fields(directory))
    config.update_from_flattened_dict(ARMS[name])
    if arm != name:
        config.data.benign_fraction = 0.0
    if config.rl.algorithm == "dpo":  # it samples nothing and asks no judge
        defaults = default.get_config()
        config.rewards.terms = defaults.rewards.terms
        config.rewards.on_failure = defaults.rewards.on_failure
    else:
        config.rl.temperature = 0.8
        replay = "+over_refusal@benign" if config.data.benign_fraction else ""
        config.rewards.terms = f"refusal@harmful{replay}"
    return config
