"""The settings of a run, each with its type, default, range and meaning in one place.

`configs/default.py` makes the config of these defaults, `scripts/document_config.py` the table in
`docs/configuration.md`. The name of a part of the library (a loss, a rank rule, a term) is text
here, and `nspo_jax.rl.ranges` restricts it to the names that the part knows.
"""

import dataclasses
from typing import Any

from nspo_jax.settings.ranges import Choice, Number, Range, Text, check_date

LARGEST_SEED = 2**32 - 1  # jax's keys take 32 bits of a seed, and drop the others silently
FOLLOW = -1  # pretraining.seed and rl.seed then take the run's seed

SWITCH = Choice((True, False))
COUNT = Number(int, 1)
FROM_0 = Number(int, 0)
SEED = Number(int, 0, LARGEST_SEED)
OWN_SEED = Number(int, 0, LARGEST_SEED, off=FOLLOW)
POSITIVE = Number(float, 0, above=True)
NOT_NEGATIVE = Number(float, 0)
SHARE = Number(float, 0, 1)
DECAY = Number(float, 0, 1, below=True)
AXIS = Number(int, 1, off=-1)
DTYPE = Choice(("float32", "bfloat16"))
NAME = Text("a name")
DIRECTORY = Text("the directory of a model")
PATHS = Text("files, directories or hf:OWNER/NAME, joined by +")
SPLIT = Text("a split such as train, or a slice of it such as train[:40%]", empty=False)
COLUMN = Text("a column's name")


def option(default: Any, known: Range, what: str) -> Any:
    """Declares a field with a default, a range, and its meaning in a sentence or two."""
    return dataclasses.field(default=default, metadata={"range": known, "what": what})


def group(made: type) -> Any:
    """Declares a field that holds a group of fields."""
    return dataclasses.field(default_factory=made)


@dataclasses.dataclass(frozen=True)
class Model:
    """The base model."""

    path: str = option(
        "", DIRECTORY, "Its Hugging Face directory. '' pretrains the chat world's own model."
    )
    preset: str = option(
        "", NAME, "The published size that the checkpoint must have: see configs/llm.py."
    )
    hidden_size: int = option(
        96, COUNT, "Width of the residual stream in the model that an empty path pretrains."
    )
    intermediate_size: int = option(256, COUNT, "Width of the MLP in that model.")
    num_layers: int = option(3, COUNT, "Decoder layers in that model.")
    num_heads: int = option(4, COUNT, "Attention's query heads in that model.")
    num_kv_heads: int = option(4, COUNT, "Attention's heads of keys and values in that model.")
    compute_dtype: str = option("float32", DTYPE, "The dtype that activations are computed in.")
    frozen_dtype: str = option(
        "float32", DTYPE,
        "The dtype that frozen matrices are held in. bfloat16 halves them, and is for checkpoints "
        "that are stored so, where it rounds nothing.",
    )  # fmt: skip
    remat: str = option(
        "layer", NAME,
        "The activations that are kept for gradients. layer keeps one residual a layer, dots also "
        "matrix products, none everything.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """The pretraining of the chat world's base model."""

    seed: int = option(FOLLOW, OWN_SEED, "The base model's own seed. -1 takes the run's.")
    steps: int = option(1500, COUNT, "The number of updates.")
    batch_size: int = option(64, COUNT, "Conversations per update.")
    learning_rate: float = option(
        3e-3, POSITIVE, "The peak learning rate. It warms up, then falls on a cosine."
    )


@dataclasses.dataclass(frozen=True)
class Data:
    """The prompts, their sources, and the blocks that they fit."""

    chat: bool = option(
        True, SWITCH, "True renders prompts with the tokenizer's chat template, False takes text."
    )
    system_prompt: str = option(
        "", Text("a system message"),
        "The system message of each chat. '' leaves it to the chat template.",
    )  # fmt: skip
    thinking: bool = option(
        False, SWITCH, "The value of enable_thinking, for chat templates that know it (Qwen3)."
    )
    date: str = option(
        "", Text("a day such as 2026-11-25", parse=check_date),
        "The day that chat templates with a clock state (Llama 3.2). '' is the day on which the "
        "workspace was first used, which it records.",
    )  # fmt: skip
    prompt_length: int = option(
        14, COUNT,
        "Tokens of the prompt block, template included. A longer prompt is an error; task safety "
        "leaves it out and counts it in the log.",
    )  # fmt: skip
    completion_length: int = option(9, COUNT, "Tokens of the completion block. Rollouts end there.")
    benign_fraction: float = option(
        0.0, SHARE,
        "Replay: benign prompts for each harmful one in the RL batch. Raise it against "
        "over-refusal.",
    )  # fmt: skip
    wrapped_fraction: float = option(
        0.0, SHARE, "The share of harmful RL prompts that stand inside made-up wrappers."
    )
    train_split: str = option(
        "train", SPLIT,
        "The split of harmful RL prompts, or a slice such as train[:40%]. The chat world's rows "
        "are shuffled, those of task safety keep the order of the files.",
    )  # fmt: skip
    train: str = option(
        "pku_safe_rlhf", NAME,
        "The dataset of harmful prompts for task safety. safety_prompts has the layouts of "
        "data.evaluation, or takes any table.",
    )  # fmt: skip
    train_path: str = option("", PATHS, "Its files. '' takes its home at the Hugging Face Hub.")
    subset: str = option(
        "", Text("a directory's name"),
        "The directory whose files are read, such as alpaca-7b. '' reads all.",
    )  # fmt: skip
    train_column: str = option(
        "", COLUMN, "The column of the prompts, where safety_prompts takes any table."
    )
    general_path: str = option(
        "", PATHS,
        "General questions with answers (GSM8K, Alpaca, MBPP, ...) to calibrate on, to replay "
        "and to measure drift on. '' takes their homes at the Hub.",
    )  # fmt: skip
    general_split: str = option(
        "", Text("a split such as train, or a slice of it"),
        "The split of these questions, such as train. '' takes all of the files.",
    )  # fmt: skip
    borderline_path: str = option(
        "", PATHS,
        "Prompts that only look harmful (OR-Bench), half of the benign ones in a batch of task "
        "safety. '' leaves them out.",
    )  # fmt: skip
    max_broken: float = option(
        0.01, SHARE, "The largest share of a dataset's rows that may break its schema."
    )
    evaluation: str = option(
        "",
        PATHS,
        "XSTest or OR-Bench, and files of harmful prompts such as AdvBench and HarmBench.",
    )
    evaluation_column: str = option(
        "", COLUMN,
        "The column of the prompts in those files that are in no known layout. They are taken for "
        "harmful.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The inputs of the base model's layers on general text, which a run preserves."""

    rows: int = option(1000, COUNT, "General conversations that the base model reads.")
    batch_size: int = option(
        250, COUNT, "Conversations that it reads at a time. Fewer need less memory."
    )
    rank_rule: str = option(
        "energy(0.05)", Text("a rank rule"),
        "The rule for the number of protected directions: relative_max(ALPHA), energy(EPS), "
        "absolute(EIGENVALUE) or fixed(RANK). +REGEX=RULE gives some sites another rule, as in "
        "energy(0.05)+mlp/in=fixed(9). A smaller EPS protects more.",
    )  # fmt: skip
    statistics: str = option(
        "inputs", NAME,
        "The second moments to protect. inputs takes those of what layers read, gradients those of "
        "the loss's gradients, one per batch.",
    )  # fmt: skip
    first_token: str = option(
        "keep", NAME,
        "The treatment of every row's first token. keep counts it as any other, drop leaves it "
        "unprotected, separate protects its directions and keeps its massive activations out of "
        "the rank rule.",
    )  # fmt: skip
    completions: str = option(
        "given", Choice(("given", "generated")),
        "The answers of the conversations. given keeps theirs, generated takes the base model's "
        "own.",
    )  # fmt: skip
    temperature: float = option(
        1.0, NOT_NEGATIVE, "The sampling temperature of generated completions. 0 is greedy."
    )
    seed: int = option(0, SEED, "The seed of generated completions.")


@dataclasses.dataclass(frozen=True)
class Projection:
    """The null-space constraint on updates."""

    mode: str = option(
        "update", NAME,
        "The place of the projection. update projects last in the chain, coordinates runs Adam in "
        "the null space, gradient projects before Adam, which leaks, none does not project.",
    )  # fmt: skip
    targets: str = option(
        "mlp+attention+head", Text("targets"),
        "The projected parts, joined by +. With embed, the rows of tokens that the calibration "
        "text lacks may move.",
    )  # fmt: skip
    untargeted: str = option(
        "freeze", Choice(("freeze", "train")),
        "The treatment of embedding, norms and other kernels. train gives up the guarantee for the "
        "network as a whole.",
    )  # fmt: skip
    period: int = option(
        1, COUNT, "Updates between projections of their sum. 1 is the method, 5 the released code."
    )
    basis: str = option(
        "null_space", Choice(("null_space", "random")),
        "The subspace of the updates. random is the control: one of the same rank, drawn by the "
        "seed of RL.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimizer and its numbers."""

    name: str = option(
        "adam", NAME, "The update rule. The step of sgd falls with the gradient, adam's does not."
    )
    master: str = option(
        "change", NAME,
        "The float32 numbers that are trained. change is the change from the base model; weights "
        "round away a change below 1e-7 of them.",
    )  # fmt: skip
    learning_rate: float = option(1e-3, POSITIVE, "The learning rate, which is constant.")
    weight_decay: float = option(
        0.0, NOT_NEGATIVE,
        "The decay of what is trained. A change decays towards the base model.",
    )  # fmt: skip
    max_gradient_norm: float = option(
        1.0, POSITIVE, "The norm that a longer gradient is scaled down to."
    )
    b1: float = option(0.9, DECAY, "The decay of Adam's first moment, or the momentum of sgd.")
    b2: float = option(0.999, DECAY, "The decay of Adam's second moment.")
