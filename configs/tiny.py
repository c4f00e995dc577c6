"""The arms on the chat world: `--config=configs/tiny.py:ARM`.

    python -m scripts.train --config=configs/tiny.py:nspo --workdir=runs/tiny/nspo

About 20 seconds on two CPU cores once the base model exists (its pretraining takes two minutes).
An arm's name may end in `_replay`: benign prompts in the RL batch and wrappers around half of the
harmful ones, for any arm. ARMS says what each arm is; docs/results.md has the table of results.
"""

import ml_collections

from configs import default

# Of every arm that does not say otherwise. SGD's step falls with the gradient, so that it ends when
# all groups are flat; Adam's does not, and carries the policy past that place: docs/optimizers.md.
# Of learning rates 0.03, 0.05 and 0.1 at seeds 0 and 9: all alike.
SGD = {"optimizer.name": "sgd", "optimizer.learning_rate": 0.05}
ADAM = {"optimizer.name": "adam", "optimizer.learning_rate": 1e-3}
NO_PROJECTION = {"projection.mode": "none", "projection.untargeted": "train"}
STOPPED = {**ADAM, "optimizer.learning_rate": 1e-4, "rl.stop_unsafe": 0.06, "rl.steps": 400}
PAPER = {**ADAM, "projection.targets": "mlp", "projection.untargeted": "train"}
EXACT = {**ADAM, "calibration.rows": 4, "calibration.rank_rule": "relative_max(1e-6)"}

ARMS: dict[str, dict] = {
    # the base model as it is
    "base": {"rl.steps": 0},
    # every linear site projected, head included; embedding and norms frozen
    "nspo": {},
    # the same by Adam: with momentum, as docs/adam_tables.md has it, and without
    "nspo_adam": ADAM,
    "nspo_rmsprop": {**ADAM, "optimizer.b1": 0.0},
    # the same constraint, Adam in null-space coordinates (SGD there is nspo itself): nothing of a
    # step is projected away, so that it needs half the learning rate
    "nspo_coords": {**ADAM, "projection.mode": "coordinates", "optimizer.learning_rate": 5e-4},
    # the head frozen instead of projected
    "nspo_linear": {**ADAM, "projection.targets": "mlp+attention"},
    # the MLP projected, the rest frozen
    "nspo_mlp_frozen": {**ADAM, "projection.targets": "mlp"},
    # the MLP projected, everything else trained: what the released code intends
    "nspo_paper": PAPER,
    # and its schedule: the weight change projected every 5 steps
    "nspo_released": {**PAPER, "projection.period": 5},
    # nspo with Dr.GRPO's advantages, centred alone, and its sum over tokens
    "nspo_dr_grpo": {"rl.advantage": "dr_grpo", "rl.aggregation": "constant"},
    # with RLOO's, against the mean of the group's others, and its sum over tokens
    "nspo_rloo": {"rl.advantage": "rloo", "rl.aggregation": "constant"},
    # with GSPO's ratio of a whole completion, and minibatches for its clip to act in: 0.05 cuts off
    # up to a third of these 9-token completions while it learns, 0.2 hardly any, 0.02 nearly all
    "nspo_gspo": {"rl.loss": "gspo", "rl.minibatches": 4, "rl.clip": 0.05},
    # models that were trained on the world's preference pairs in place of its judge
    "nspo_learned": {"rewards.terms": "cost_model@harmful"},
    # benign prompts, as many as data.benign_fraction says, judged by whether they are refused
    "nspo_over_refusal": {"rewards.terms": "cost_model@harmful+over_refusal"},
    # plain GRPO, everything trained, as nspo otherwise
    "grpo": NO_PROJECTION,
    # with the best learning rate of 0.05, 0.01, 0.003, 0.002 and 0.001 at seed 0
    "grpo_tuned": {**NO_PROJECTION, "optimizer.learning_rate": 1e-3},
    # by Adam, and stopped as soon as it is safe enough: the best of learning rates 3e-5, 1e-4, 3e-4
    "grpo_adam": {**NO_PROJECTION, **ADAM},
    "grpo_stopped": {**NO_PROJECTION, **STOPPED},
    # with a KL penalty to the base model
    "grpo_kl": {**NO_PROJECTION, **ADAM, "rl.kl_coefficient": 0.1},
    # the MLP trained without projection, the rest frozen, as grpo_stopped
    "mlp_only": {"projection.mode": "none", "projection.targets": "mlp", **STOPPED},
    # a random subspace of the same rank at every site
    "random": {"projection.basis": "random"},
    # the projection before Adam instead of after it (of SGD there is no before and after)
    "project_gradient": {**ADAM, "projection.mode": "gradient"},
    # four conversations to protect and a true null space (nothing of their inputs is cut off):
    # their logits do not move; with the projection before Adam they do
    "nspo_exact": EXACT,
    "project_gradient_exact": {**EXACT, "projection.mode": "gradient"},
    # DPO on pairs of the safer and another answer, everything trained; the best of learning rates
    # 3e-3 and 1e-3, and of beta 0.1, 0.3, 1 and 3 (by Adam): with less than 1 the capability goes,
    # with more it learns slowly
    "dpo": {
        **NO_PROJECTION,
        "rl.algorithm": "dpo",
        "rl.dpo_beta": 1.0,
        "optimizer.learning_rate": 3e-3,
    },
    # and projected as nspo is; of beta 0.05, 0.1, 0.3 and 1, and learning rates 5e-4, 1e-3 and 2e-3
    "nspo_dpo": {**ADAM, "rl.algorithm": "dpo", "rl.dpo_beta": 0.3},
    # PPO-Lagrangian of Safe RLHF: the reward model's reward under a limit of 5 % on the cost
    # model's cost, everything trained; of learning rates 3e-5, 1e-4, 2e-4 and 3e-4, and penalties
    # of 0.02 and 0.1. A multiplier that starts at 1 lets the policy forget how to refuse before it
    # has grown; rewards have a scale of 1, so that 10 is enough
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
OF_REPLAY = {  # what replay adds to single arms
    # its best learning rate with replay, of 0.003 and 0.001, as grpo_tuned's
    "grpo": {"optimizer.learning_rate": 3e-3},
    "nspo_learned": {"rewards.terms": "cost_model@harmful+reward_model@benign"},
}


def get_config(arm: str = "nspo") -> ml_collections.ConfigDict:
    """The config of an arm.

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
