"""The settings of reinforcement learning and of what surrounds it, and the run that holds them."""

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
        FOLLOW, OWN_SEED, "Of prompts' order, rollouts and evaluation; -1: the run's seed."
    )
    algorithm: str = option(
        "policy_gradient", NAME,
        "policy_gradient: on judged completions; dpo: on the pairs of reward_training; "
        "ppo_lagrangian: for the reward model, under a limit on the cost model's cost.",
    )  # fmt: skip
    steps: int = option(60, FROM_0, "Steps: each samples, judges and updates.")
    prompts: int = option(16, COUNT, "Harmful prompts a step; data.benign_fraction adds to them.")
    samples: int = option(5, Number(int, 2), "Completions a prompt: the group.")
    minibatches: int = option(1, COUNT, "Updates a step.")
    microbatches: int = option(
        1, COUNT, "Parts of a minibatch whose gradients are added up: less memory."
    )
    rollout_batches: int = option(
        1, COUNT, "Parts of a step's prompts that are answered in turn: less memory."
    )
    loss: str = option("grpo", NAME, "grpo: one ratio a token; gspo: one ratio a completion.")
    advantage: str = option(
        "grpo", NAME,
        "Of rewards in their group. grpo: normalised; dr_grpo: centred; rloo: against the mean of "
        "the others.",
    )  # fmt: skip
    aggregation: str = option(
        "sequence_mean", NAME,
        "sequence_mean: completions weigh alike; token_mean: tokens weigh alike; sequence_sum: the "
        "sum over a completion's tokens; constant: that, divided by data.completion_length "
        "(Dr.GRPO, RLOO).",
    )  # fmt: skip
    clip: float = option(
        0.2, POSITIVE, "The ratio's. It acts from a batch's second minibatch on, or at staleness 1."
    )
    clip_high: float = option(
        0.0, NOT_NEGATIVE, "Its upper bound where that is another (DAPO: 0.28); 0: rl.clip."
    )
    dual_clip: float = option(
        0.0, Number(float, 1, above=True, off=0),
        "Largest ratio where the advantage is negative, such as 3; 0: none.",
    )  # fmt: skip
    kl_coefficient: float = option(0.0, NOT_NEGATIVE, "Weight of the penalty to the base model.")
    kl_estimator: str = option(
        "k3", NAME,
        "Its gradient, in expectation. k2: that of KL(policy || base); k3: of KL(base || policy); "
        "k1: nothing.",
    )  # fmt: skip
    importance_cap: float = option(
        0.0, NOT_NEGATIVE,
        "Tokens are weighted by the trainer's over the sampler's probability, at most this, such "
        "as 2; for one minibatch a step; 0: off.",
    )  # fmt: skip
    temperature: float = option(1.0, POSITIVE, "Of rollouts.")
    dpo_beta: float = option(0.1, POSITIVE, "Of dpo: how much the policy is held to the base.")
    staleness: int = option(
        0, Choice((0, 1)),
        "1: the next step's completions are sampled while this one's are judged, by a policy that "
        "is one update old; it saves a remote judge's time.",
    )  # fmt: skip
    flat_steps: int = option(
        10, FROM_0,
        "A run ends when so many steps from its start on have taught nothing, and a shorter one "
        "when no completion of it had a verdict, else with a warning; 0: never.",
    )  # fmt: skip
    on_flat: str = option("raise", NAME, "Or warn, and go on.")
    stop_unsafe: float = option(
        0.0, SHARE, "The run stops once its held-in unsafe rate is at or below this; 0: never."
    )


@dataclasses.dataclass(frozen=True)
class Lagrangian:
    """Of ppo_lagrangian."""

    limit: float = option(0.05, SHARE, "On the mean cost: the probability of unsafe.")
    initial: float = option(1.0, POSITIVE, "Multiplier: what a cost weighs against a reward.")
    learning_rate: float = option(0.1, POSITIVE, "Of the multiplier's logarithm, an update.")
    largest: float = option(10.0, POSITIVE, "Largest multiplier.")
    kl: float = option(0.02, NOT_NEGATIVE, "Penalty to the base model, in rewards and costs.")
    gae_lambda: float = option(0.95, SHARE, "1: return less value; 0: the one-step error.")
    critic_learning_rate: float = option(3e-4, POSITIVE, "Of both critics.")


@dataclasses.dataclass(frozen=True)
class Guard:
    """A language model that says safe or unsafe."""

    path: str = option("", DIRECTORY, "Its Hugging Face directory.")
    length: int = option(2048, COUNT, "Tokens of policy, prompt and answer; answers are cut.")
    categories: str = option("", Text("a JSON file"), "JSON file {id: text}; '': the guard's own.")
    dtype: str = option("bfloat16", DTYPE, "It is held and computed in it.")


@dataclasses.dataclass(frozen=True)
class Judge:
    """A server with an OpenAI-compatible API."""

    url: str = option("", Text("a server's address"), "Such as http://localhost:8000/v1.")
    model: str = option("", Text("a model's name"), "As the server names it.")
    api_key_env: str = option(
        "", Text("an environment variable's name"), "The variable that holds the key; '': none."
    )
    max_tokens: int = option(64, COUNT, "Of its answer.")
    asks: int = option(2, COUNT, "Times that an answer without a verdict is asked for.")
    concurrency: int = option(16, COUNT, "Requests at a time, of each process.")
    timeout: float = option(60.0, POSITIVE, "Seconds of a request.")
    retries: int = option(5, FROM_0, "After bad answers of the server.")
    down_after: float = option(
        300.0, POSITIVE, "Seconds without an answer, after which the run stops."
    )
    budget: int = option(
        -1, Number(int, 0, off=-1),
        "Requests of a start, of each process, failed ones included; -1: any number.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Who judges, and what becomes of the judgements."""

    terms: str = option(
        "rules", Text("terms"),
        "TERM[@KINDS][=WEIGHT] joined by +. TERM: rules, the task's own; over_refusal: -1 for a "
        "refusal of what is not harmful; cost_model, reward_model, guard: in process; "
        "remote_judge; MODULE:CLASS of your own. KINDS of prompts: all, harmful, benign. WEIGHT: a "
        "number, or STEP:WEIGHT,STEP:WEIGHT and linear between.",
    )  # fmt: skip
    normalise: str = option(
        "none", NAME, "Each term on its own. none; batch, group: mean 0, standard deviation 1."
    )
    on_failure: str = option(
        "raise", NAME,
        "A row without a verdict. raise; drop_group: its prompt teaches nothing; neutral: it is as "
        "good as the mean of the prompt's others.",
    )  # fmt: skip
    batch_size: int = option(80, COUNT, "Rows that a model in process reads at a time.")
    cost_model: str = option("", DIRECTORY, "Its directory; '': the chat world's own, trained.")
    reward_model: str = option("", DIRECTORY, "Likewise.")
    guard: Guard = group(Guard)
    judge: Judge = group(Judge)


@dataclasses.dataclass(frozen=True)
class RewardTraining:
    """Of reward and cost models."""

    dataset: str = option("chat_world", NAME, "Preference pairs: chat_world, or pku_safe_rlhf.")
    path: str = option("", PATHS, "Its files or directory, joined by +; '': from the Hub.")
    subset: str = option("", Text("a directory's name"), "Of pku_safe_rlhf: alpaca-7b, ...")
    split: str = option("train", SPLIT, "With a slice if wanted: train[:40%].")
    held_out_split: str = option("test", SPLIT, "What agreement is measured on.")
    epochs: int = option(4, COUNT, "Times that all pairs are seen.")
    batch_size: int = option(64, COUNT, "Pairs an update.")
    learning_rate: float = option(1e-3, POSITIVE, "Peak; it warms up, then falls on a cosine.")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a policy is asked between steps."""

    every: int = option(10, COUNT, "Steps between evaluations; there is one at start and end too.")
    prompts: int = option(200, COUNT, "Of each set.")
    batches: int = option(1, COUNT, "Parts that they are answered in: less memory.")
    temperature: float = option(1.0, NOT_NEGATIVE, "Of the answers; 0: greedy.")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a run saves to continue from."""

    every: int = option(20, COUNT, "Steps between checkpoints.")
    keep: int = option(2, COUNT, "So many of the last ones are kept.")
    keep_every: int = option(0, FROM_0, "Those of every so many steps are kept for good; 0: none.")


@dataclasses.dataclass(frozen=True)
class Metrics:
    """Where metrics go beside the workdir."""

    wandb_project: str = option(
        "", Text("a project's name", parse=check_project),
        "The project at Weights & Biases that gets a copy of the metrics; '': none. It needs the "
        "extra wandb.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Devices along each axis; -1 takes the rest."""

    data: int = option(-1, AXIS, "Replicas of the parameters.")
    fsdp: int = option(1, AXIS, "Shards of the parameters and of the batch.")
    tensor: int = option(1, AXIS, "Shards of kernels alone.")
    gather_for_rollouts: bool = option(
        True, SWITCH,
        "Weights are whole on every device, in the compute dtype, while it samples; False gathers "
        "one layer at a time, at every token.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Run:
    """All settings of a run."""

    task: str = option(
        "chat_world", NAME,
        "chat_world: the synthetic conversations; stories: a story model; safety: public prompts, "
        "see configs/safety.py; MODULE:CLASS: your own.",
    )  # fmt: skip
    seed: int = option(
        0, SEED, "Of the world. The base model, rollouts and evaluation follow it too."
    )
    workspace: str = option(
        "runs/tiny", Text("a directory", empty=False),
        "What runs share: data, base models, projectors.",
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
        """By which the chat world's base model is made."""
        return self.seed if self.pretraining.seed == FOLLOW else self.pretraining.seed

    @property
    def data_directory(self) -> pathlib.Path:
        """Where prepared datasets live, for every seed."""
        return pathlib.Path(self.workspace) / "data"

    @property
    def batch_prompts(self) -> int:
        """Prompts of a step: the harmful ones and the benign ones added to them."""
        return self.rl.prompts + round(self.rl.prompts * self.data.benign_fraction)

    @property
    def rl_seed(self) -> int:
        """By which prompts are ordered, completions and random subspaces drawn."""
        return self.seed if self.rl.seed == FOLLOW else self.rl.seed
