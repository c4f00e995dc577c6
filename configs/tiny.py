"""The arms on the chat world: `--config=configs/tiny.py:ARM`.

    python -m scripts.train --config=configs/tiny.py:nspo --workdir=runs/tiny/nspo

A run takes about 20 seconds on two CPU cores once the base model exists (its pretraining takes two
minutes). `nspo` ends at 0 to 1 % unsafe and 98.7 to 99.8 % general, `grpo` at 0 to 1 % and 78.4 to
81.7 %, over ten seeds (docs/results.md); the base has 81.5 to 87.5 % and 98.8 to 99.9 %. Any arm's
name may end in `_replay`, which adds benign prompts to the RL batch and wrappers around half of the
harmful ones. A comment describes each arm of ARMS.
"""

import ml_collections

from configs import default

# The optimizer of every arm that names no other. SGD's step falls with the gradient, so that it
# ends when all groups are flat. Adam's does not, and carries the policy past that place
# (docs/optimizers.md). Learning rates of 0.03, 0.05 and 0.1 give the same at seeds 0 and 9.
SGD = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.05}
ADAM = {"optimizer.name": "adam", "optimizer.learning_rate": 1e-3}
NO_PROJECTION = {"projection.mode": "none", "projection.untargeted": "train"}
STOPPED = {**ADAM, "optimizer.learning_rate": 1e-4, "rl.stop_unsafe": 0.06, "rl.steps": 400}
PAPER = {**ADAM, "projection.targets": "mlp", "projection.untargeted": "train"}
EXACT = {**ADAM, "calibration.rows": 4, "calibration.rank_rule": "relative_max(1e-6)"}

ARMS: dict[str, dict] = {
    # the untrained base model
    "base": {"rl.steps": 0},
    # every linear site projected, head included; embedding and norms frozen
    "nspo": {},
    # the same by Adam, with momentum (docs/adam_tables.md) and without
    "nspo_adam": ADAM,
    "nspo_rmsprop": {**ADAM, "optimizer.b1": 0.0},
    # the same constraint by Adam in null-space coordinates (SGD there is nspo itself); no part of a
    # step is projected away, so that half the learning rate is enough
    "nspo_coords": {**ADAM, "projection.mode": "coordinates", "optimizer.learning_rate": 5e-4},
    # the head frozen instead of projected
    "nspo_linear": {**ADAM, "projection.targets": "mlp+attention"},
    # the MLP projected, the rest frozen
    "nspo_mlp_frozen": {**ADAM, "projection.targets": "mlp"},
    # the MLP projected and everything else trained, as the released code intends
    "nspo_paper": PAPER,
    # the same with the released schedule, which projects the weight change every 5 steps
    "nspo_released": {**PAPER, "projection.period": 5},
    # nspo with Dr.GRPO's advantages, which are only centred, and its sum over tokens
    "nspo_dr_grpo": {"rl.advantage": "dr_grpo", "rl.aggregation": "constant"},
    # nspo with RLOO's advantages, against the mean of the group's others, and its sum over tokens
    "nspo_rloo": {"rl.advantage": "rloo", "rl.aggregation": "constant"},
    # nspo with GSPO's ratio of a whole completion, and minibatches in which its clip acts; 0.05
    # cuts off up to a third of these 9-token completions, 0.2 hardly any, 0.02 nearly all
    "nspo_gspo": {"rl.loss": "gspo", "rl.minibatches": 4, "rl.clip": 0.05},
    # nspo with a cost model in place of the world's judge, trained on the world's preference pairs
    "nspo_learned": {"rewards.terms": "cost_model@harmful"},
    # the same with benign prompts (data.benign_fraction), whose refusals count against the policy
    "nspo_over_refusal": {"rewards.terms": "cost_model@harmful+over_refusal"},
    # plain GRPO: nspo with everything trained and no projection
    "grpo": NO_PROJECTION,
    # grpo with the best learning rate of 0.05, 0.01, 0.003, 0.002 and 0.001 at seed 0
    "grpo_tuned": {**NO_PROJECTION, "optimizer.learning_rate": 1e-3},
    # grpo by Adam, and the same stopped as soon as it is safe enough, with the best learning rate
    # of 3e-5, 1e-4 and 3e-4
    "grpo_adam": {**NO_PROJECTION, **ADAM},
    "grpo_stopped": {**NO_PROJECTION, **STOPPED},
    # grpo_adam with a KL penalty to the base model
    "grpo_kl": {**NO_PROJECTION, **ADAM, "rl.kl_coefficient": 0.1},
    # grpo_stopped with only the MLP trained
    "mlp_only": {"projection.mode": "none", "projection.targets": "mlp", **STOPPED},
    # nspo with a random subspace of the same rank at every site
    "random": {"projection.basis": "random"},
    # nspo_adam with the projection before Adam (for SGD, before and after are the same)
    "project_gradient": {**ADAM, "projection.mode": "gradient"},
    # four protected conversations with a true null space (no part of their inputs is cut off);
    # their logits stay, and move if the projection comes before Adam
    "nspo_exact": EXACT,
    "project_gradient_exact": {**EXACT, "projection.mode": "gradient"},
    # DPO on pairs of the safer and another answer, with everything trained; the best of learning
    # rates 3e-3 and 1e-3, and of beta 0.1, 0.3, 1 and 3 (by Adam): below 1 it loses capability,
    # above 1 it learns slowly
    "dpo": {
        **NO_PROJECTION,
        "rl.algorithm": "dpo",
        "rl.dpo_beta": 1.0,
        "optimizer.learning_rate": 3e-3,
    },
    # DPO projected like nspo; the best of beta 0.05, 0.1, 0.3 and 1, and of learning rates 5e-4,
    # 1e-3 and 2e-3
    "nspo_dpo": {**ADAM, "rl.algorithm": "dpo", "rl.dpo_beta": 0.3},
    # PPO-Lagrangian of Safe RLHF: the reward model's reward under a limit of 5 % on the cost
    # model's cost, with everything trained; the best of learning rates 3e-5, 1e-4, 2e-4 and 3e-4,
    # and of penalties 0.02 and 0.1. If the multiplier started at 1, the policy would forget how to
    # refuse before it has grown; rewards have a scale of 1, so that 10 is enough
    "ppo_lagrangian": {
        **NO_PROJECTION,
        **ADAM,
        "rl.algorithm": "ppo_lagrangian",
        "rewards.terms": "reward_model+cost_model",
        "rewards.normalise": "batch",
        "lagrangian.initial": 5.0,
        "optimizer.learning_rate": 1e-4,
    },
}
REPLAY = {"data.benign_fraction": 0.5, "data.wrapped_fraction": 0.5, "rl.steps": 80}
OF_REPLAY = {  # arm -> the fields that its _replay changes too
    # the best learning rate with replay of 0.003 and 0.001
    "grpo": {"optimizer.learning_rate": 3e-3},
    "nspo_learned": {"rewards.terms": "cost_model@harmful+reward_model@benign"},
}


def get_config(arm: str = "nspo") -> ml_collections.ConfigDict:
    """Returns the config of an arm.

    Raises:
      ValueError: for an unknown arm.
    """
    name = arm.removesuffix("_replay")
    if name not in ARMS:
        raise ValueError(
            f"The arm is {arm!r}; expected one of {', '.join(ARMS)}, or one with _replay added."
        )
    config = default.get_config()
    config.update_from_flattened_dict(SGD | ARMS[name])
    if arm.endswith("_replay"):
        config.update_from_flattened_dict(REPLAY)
        config.update_from_flattened_dict(OF_REPLAY.get(name, {}))
    return config
