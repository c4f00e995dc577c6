"""The settings of reinforcement learning and its surroundings, and the run that holds them all."""

import dataclasses
import pathlib

from nspo_jax.settings import groups
from nspo_jax.settings.groups import (
    AXIS,
    COUNT,
    DIRECTORY,
    DTYPE,
    FOLLOW,
    FROM_0,
    NAME,
    NOT_NEGATIVE,
    OWN_SEED,
    PATHS,
    POSITIVE,
    SEED,
    SHARE,
    SPLIT,
    SWITCH,
    group,
    option,
)
from nspo_jax.settings.ranges import Choice, Number, Text, check_project


@dataclasses.dataclass(frozen=True)
class RL:
    """The algorithm and its steps."""

    seed: int = option(
        FOLLOW, OWN_SEED,
        "The seed of the prompts' order, rollouts and evaluation. -1 takes the run's.",
    )  # fmt: skip
    algorithm: str = option(
        "policy_gradient", NAME,
        "The algorithm. policy_gradient trains on judged completions, dpo on the pairs of "
        "reward_training, ppo_lagrangian for the reward model under a limit on the cost model's "
        "cost.",
    )  # fmt: skip
    steps: int = option(60, FROM_0, "The number of steps. Each samples, judges and updates.")
    prompts: int = option(
        16, COUNT, "Harmful prompts per step. data.benign_fraction adds benign ones."
    )
    samples: int = option(5, Number(int, 2), "Completions per prompt, which form a group.")
    minibatches: int = option(1, COUNT, "Updates per step.")
    shared_prompt: bool = option(
        False, SWITCH,
        "Reads a prompt once for its group in the update, or for both answers of a pair, not once "
        "for each: the same gradient to rounding, of fewer tokens. Minibatches then hold whole "
        "groups.",
    )  # fmt: skip
    microbatches: int = option(
        1, COUNT, "Parts of a minibatch whose gradients are added up. More need less memory."
    )
    rollout_batches: int = option(
        1, COUNT, "Parts of a step's prompts that are answered in turn. More need less memory."
    )
    loss: str = option(
        "grpo", NAME, "The ratio's unit. grpo has one ratio per token, gspo one per completion."
    )
    advantage: str = option(
        "grpo", NAME,
        "The advantage of a reward in its group. grpo normalises, dr_grpo centres, rloo subtracts "
        "the mean of the others.",
    )  # fmt: skip
    aggregation: str = option(
        "sequence_mean", NAME,
        "The weights of tokens. sequence_mean weighs completions alike, token_mean weighs tokens "
        "alike, sequence_sum adds up a completion's tokens, constant divides that sum by "
        "data.completion_length (Dr.GRPO, RLOO).",
    )  # fmt: skip
    clip: float = option(
        0.2, POSITIVE,
        "The distance from 1 at which the ratio is clipped. It acts from a batch's second "
        "minibatch on, or at staleness 1.",
    )  # fmt: skip
    clip_high: float = option(
        0.0, NOT_NEGATIVE, "The distance above 1, such as DAPO's 0.28. 0 takes rl.clip."
    )
    dual_clip: float = option(
        0.0, Number(float, 1, above=True, off=0),
        "The largest ratio where the advantage is negative, such as 3. 0 sets none.",
    )  # fmt: skip
    kl_coefficient: float = option(
        0.0, NOT_NEGATIVE, "The weight of the penalty on the KL to the base model."
    )
    kl_estimator: str = option(
        "k3", NAME,
        "The estimator of that KL. In expectation k2 has the gradient of KL(policy || base), k3 "
        "that of KL(base || policy), k1 none.",
    )  # fmt: skip
    importance_cap: float = option(
        0.0, NOT_NEGATIVE,
        "The cap, such as 2, on a token's weight, the trainer's over the sampler's probability. It "
        "needs one minibatch per step. 0 switches the weights off.",
    )  # fmt: skip
    temperature: float = option(
        1.0, POSITIVE, "The sampling temperature of rollouts. Lower it if answers degenerate."
    )
    dpo_beta: float = option(
        0.1, POSITIVE, "The strength with which dpo holds the policy to the base model."
    )
    staleness: int = option(
        0, Choice((0, 1)),
        "The updates that the sampling policy is behind. 1 samples the next step's completions "
        "while this one's are judged, which saves a remote judge's time.",
    )  # fmt: skip
    flat_steps: int = option(
        10, FROM_0,
        "A run ends if so many first steps have taught nothing. A shorter one ends if none of its "
        "completions had a verdict, and else warns. 0 switches this off.",
    )  # fmt: skip
    on_flat: str = option(
        "raise", NAME, "The act after rl.flat_steps. raise ends the run, warn warns and goes on."
    )
    stop_unsafe: float = option(
        0.0, SHARE,
        "The held-in unsafe rate at or below which the run stops. 0 never stops it.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lagrangian:
    """The numbers of ppo_lagrangian."""

    limit: float = option(0.05, SHARE, "The limit on the mean cost, the probability of unsafe.")
    initial: float = option(
        1.0, POSITIVE, "The multiplier at the start: a cost's weight against a reward."
    )
    learning_rate: float = option(
        0.1, POSITIVE, "The learning rate of the multiplier's logarithm, per update."
    )
    largest: float = option(10.0, POSITIVE, "The largest multiplier.")
    kl: float = option(
        0.02, NOT_NEGATIVE, "The weight of the penalty to the base model, in rewards and costs."
    )
    gae_lambda: float = option(
        0.95, SHARE, "GAE's lambda. 1 gives return less value, 0 the one-step error."
    )
    critic_learning_rate: float = option(3e-4, POSITIVE, "The learning rate of both critics.")


@dataclasses.dataclass(frozen=True)
class Guard:
    """A language model that says safe or unsafe."""

    path: str = option("", DIRECTORY, "Its Hugging Face directory.")
    length: int = option(
        2048, COUNT, "Tokens of policy, prompt and answer. Longer answers are cut."
    )
    categories: str = option(
        "", Text("a JSON file"), "The JSON file {id: text}. '' takes the guard's own categories."
    )
    dtype: str = option("bfloat16", DTYPE, "The dtype that it is held and computed in.")


@dataclasses.dataclass(frozen=True)
class Judge:
    """A server with an OpenAI-compatible API."""

    url: str = option(
        "", Text("a server's address"), "Its address, such as http://localhost:8000/v1."
    )
    model: str = option("", Text("a model's name"), "The server's name of the model.")
    api_key_env: str = option(
        "",
        Text("an environment variable's name"),
        "The variable that holds the key. '' sends none.",
    )
    max_tokens: int = option(64, COUNT, "The largest number of tokens in an answer.")
    asks: int = option(2, COUNT, "The largest number of questions until an answer has a verdict.")
    concurrency: int = option(16, COUNT, "Requests at a time, per process.")
    timeout: float = option(60.0, POSITIVE, "The longest time of a request, in seconds.")
    retries: int = option(5, FROM_0, "Retries of a question after bad answers of the server.")
    down_after: float = option(
        300.0, POSITIVE, "Seconds without an answer, after which the run stops."
    )
    budget: int = option(
        -1, Number(int, 0, off=-1),
        "Requests per start and process, failed ones included. -1 sets no limit.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rewards:
    """The reward terms and the use of their verdicts."""

    terms: str = option(
        "rules", Text("terms"),
        "The terms, TERM[@KINDS][=WEIGHT] joined by +. TERM is rules (the task's own), refusal (1 "
        "for a refusal of what is harmful), over_refusal (-1 for a refusal of what is not), "
        "cost_model, reward_model or guard (in process), remote_judge, or MODULE:CLASS of your "
        "own. KINDS of prompts are all, harmful or benign. WEIGHT is a number, or "
        "STEP:WEIGHT,STEP:WEIGHT and linear between.",
    )  # fmt: skip
    normalise: str = option(
        "none", NAME,
        "The normalisation of each term on its own. batch and group give it mean 0 and standard "
        "deviation 1 there.",
    )  # fmt: skip
    on_failure: str = option(
        "raise", NAME,
        "The treatment of a row without a verdict. raise ends the run, drop_group lets its prompt "
        "teach nothing, neutral gives it the mean of the prompt's other rows.",
    )  # fmt: skip
    refusal_detector: str = option(
        "learned", NAME,
        "The detector of refusals in English answers: learned (a fitted classifier), or rules "
        "(patterns in the opening). Task safety scores by it, and its over_refusal judges by it.",
    )  # fmt: skip
    batch_size: int = option(
        80, COUNT, "Rows that a model in process reads at a time. Fewer need less memory."
    )
    cost_model: str = option(
        "", DIRECTORY, "The cost model's directory. '' trains the chat world's own."
    )
    reward_model: str = option(
        "", DIRECTORY, "The reward model's directory. '' trains the chat world's own."
    )
    guard: Guard = group(Guard)
    judge: Judge = group(Judge)


@dataclasses.dataclass(frozen=True)
class RewardTraining:
    """The training of reward and cost models."""

    dataset: str = option(
        "chat_world", NAME,
        "The pairs: chat_world and pku_safe_rlhf have preferences, beavertails has safety flags "
        "alone.",
    )  # fmt: skip
    path: str = option("", PATHS, "Its files or directory, joined by +. '' takes the Hub's.")
    subset: str = option(
        "", Text("a directory's name"), "The subset of pku_safe_rlhf, such as alpaca-7b."
    )
    split: str = option(
        "train", SPLIT, "The split to train on, or a slice of it such as train[:40%]."
    )
    held_out_split: str = option("test", SPLIT, "The split that agreement is measured on.")
    epochs: int = option(4, COUNT, "The number of times that all pairs are seen.")
    batch_size: int = option(64, COUNT, "Pairs per update.")
    microbatches: int = option(
        1, COUNT, "Parts of a batch that are computed in turn. More need less memory."
    )
    learning_rate: float = option(
        1e-3, POSITIVE, "The peak learning rate. It warms up, then falls on a cosine."
    )


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The evaluation of a policy between steps."""

    every: int = option(10, COUNT, "Steps between evaluations. Start and end have one too.")
    prompts: int = option(200, COUNT, "Prompts of each set.")
    suites: str = option(
        "",
        Text("NAME=PATH joined by +"),
        "Suites of the table of evaluation that every evaluation answers, for task safety.",
    )
    batches: int = option(
        1, COUNT, "Parts of the prompts that are answered in turn. More need less memory."
    )
    temperature: float = option(
        1.0, NOT_NEGATIVE, "The sampling temperature of the answers. 0 is greedy."
    )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The checkpoints that a run continues from."""

    every: int = option(20, COUNT, "Steps between checkpoints.")
    keep: int = option(2, COUNT, "The number of last checkpoints that are kept.")
    keep_every: int = option(
        0, FROM_0, "Steps between checkpoints that are kept for good. 0 keeps none."
    )


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The copies of the metrics beside the workdir."""

    wandb_project: str = option(
        "", Text("a project's name", parse=check_project),
        "The project at Weights & Biases that gets a copy of the metrics. '' makes none. It needs "
        "the extra wandb.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mesh:
    """The number of devices along each axis; -1 takes the rest."""

    data: int = option(-1, AXIS, "Replicas of the parameters.")
    fsdp: int = option(1, AXIS, "Shards of the parameters and of the batch.")
    tensor: int = option(1, AXIS, "Shards of kernels alone.")
    gather_for_rollouts: bool = option(
        True, SWITCH,
        "The weights while a policy samples. True holds them whole on every device, in the compute "
        "dtype; False gathers one layer at a time, at every token, and needs less memory.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """All settings of a run."""

    task: str = option(
        "chat_world", NAME,
        "The task. chat_world has synthetic conversations, stories a story model, safety public "
        "prompts (see configs/safety.py); MODULE:CLASS is your own.",
    )  # fmt: skip
    seed: int = option(
        0, SEED, "The seed of the world, which base model, rollouts and evaluation follow too."
    )
    workspace: str = option(
        "runs/tiny", Text("a directory", empty=False),
        "The directory that runs share, with data, base models and projectors.",
    )  # fmt: skip
    model: groups.Model = group(groups.Model)
    pretraining: groups.Pretraining = group(groups.Pretraining)
    data: groups.Data = group(groups.Data)
    calibration: groups.Calibration = group(groups.Calibration)
    projection: groups.Projection = group(groups.Projection)
    optimizer: groups.Optimizer = group(groups.Optimizer)
    rl: RL = group(RL)
    lagrangian: Lagrangian = group(Lagrangian)
    rewards: Rewards = group(Rewards)
    reward_training: RewardTraining = group(RewardTraining)
    evaluation: Evaluation = group(Evaluation)
    checkpoint: Checkpoint = group(Checkpoint)
    metrics: Metrics = group(Metrics)
    mesh: Mesh = group(Mesh)

    @property
    def pretraining_seed(self) -> int:
        """The seed of the chat world's base model."""
        return self.seed if self.pretraining.seed == FOLLOW else self.pretraining.seed

    @property
    def data_directory(self) -> pathlib.Path:
        """The directory of prepared datasets, which all seeds share."""
        return pathlib.Path(self.workspace) / "data"

    @property
    def batch_prompts(self) -> int:
        """The number of a step's prompts, harmful and benign."""
        return self.rl.prompts + round(self.rl.prompts * self.data.benign_fraction)

    @property
    def rl_seed(self) -> int:
        """The seed of the prompts' order, of completions and of random subspaces."""
        return self.seed if self.rl.seed == FOLLOW else self.rl.seed
