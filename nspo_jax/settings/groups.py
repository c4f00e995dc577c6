"""Every setting of a run: its type, its default, its range, and what it does, written once.

`configs/default.py` makes the config of these defaults, `docs/configuration.md` the table. A value
that names a part of the library (a loss, a rank rule, a term) is text here; the part that reads it
says which names there are (`nspo_jax.rl.ranges`).
"""

import dataclasses
from typing import Any

from nspo_jax.settings.ranges import Choice, Number, Range, Text, check_date

LARGEST_SEED = 2**32 - 1  # jax's keys take 32 bits of a seed, and drop the others silently
FOLLOW = -1  # pretraining.seed and rl.seed: the run's seed

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
    """A field with a default, a range, and a sentence or two on what it does."""
    return dataclasses.field(default=default, metadata={"range": known, "what": what})


def group(made: type) -> Any:
    """A field that holds a group of fields."""
    return dataclasses.field(default_factory=made)


@dataclasses.dataclass(frozen=True)
class Model:
    """The base model."""

    path: str = option("", DIRECTORY, "Hugging Face directory; '': the chat world's, pretrained.")
    preset: str = option("", NAME, "Size that the checkpoint must have: see configs/llm.py.")
    hidden_size: int = option(96, COUNT, "Of the model that an empty path pretrains.")
    intermediate_size: int = option(256, COUNT, "Likewise: width of the MLP.")
    num_layers: int = option(3, COUNT, "Likewise.")
    num_heads: int = option(4, COUNT, "Likewise: of attention.")
    num_kv_heads: int = option(4, COUNT, "Likewise: heads of keys and values.")
    compute_dtype: str = option("float32", DTYPE, "Activations are computed in it.")
    frozen_dtype: str = option(
        "float32",
        DTYPE,
        "Frozen matrices are held in it; bfloat16 only for checkpoints that are stored so, where "
        "it rounds nothing.",
    )
    remat: str = option(
        "layer", NAME,
        "What is kept for gradients. layer: one residual a layer; dots: matrix products as well; "
        "none: everything.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """Of the chat world's base model."""

    seed: int = option(FOLLOW, OWN_SEED, "Of the base model alone; -1: the run's seed.")
    steps: int = option(1500, COUNT, "Updates.")
    batch_size: int = option(64, COUNT, "Conversations an update.")
    learning_rate: float = option(3e-3, POSITIVE, "Peak; it warms up, then falls on a cosine.")


@dataclasses.dataclass(frozen=True)
class Data:
    """Prompts: where they come from, and the blocks that they fit."""

    chat: bool = option(True, SWITCH, "Prompts are rendered with the tokenizer's chat template.")
    system_prompt: str = option(
        "", Text("a system message"), "System message of each chat; '': the chat template's own."
    )
    thinking: bool = option(False, SWITCH, "For chat templates that know enable_thinking (Qwen3).")
    date: str = option(
        "", Text("a day such as 2026-11-25", parse=check_date),
        "The day that chat templates state which state today's (Llama 3.2); '': the day on which "
        "the workspace was first used, which it records.",
    )  # fmt: skip
    prompt_length: int = option(
        14, COUNT,
        "Tokens of the prompt block, template included. A longer prompt is an error; task safety "
        "leaves it out and counts it in the log.",
    )  # fmt: skip
    completion_length: int = option(9, COUNT, "Tokens of the completion block; rollouts end there.")
    benign_fraction: float = option(
        0.0, SHARE, "Replay: benign prompts for each harmful one in the RL batch."
    )
    wrapped_fraction: float = option(
        0.0, SHARE, "Share of the harmful RL prompts that stand inside made-up wrappers."
    )
    train_split: str = option(
        "train", SPLIT,
        "Of the harmful RL prompts, such as train[:40%]. The chat world's are shuffled; task "
        "safety takes the rows of the files in their order.",
    )  # fmt: skip
    train: str = option(
        "pku_safe_rlhf", NAME,
        "Task safety: harmful prompts. pku_safe_rlhf; beavertails; safety_prompts: the layouts of "
        "data.evaluation, or any table.",
    )  # fmt: skip
    train_path: str = option("", PATHS, "Its files; '': its home at the Hugging Face Hub.")
    subset: str = option(
        "", Text("a directory's name"),
        "Only files in a directory of this name, such as alpaca-7b; '': all.",
    )  # fmt: skip
    train_column: str = option("", COLUMN, "Of any table: the column that holds the prompts.")
    general_path: str = option(
        "", PATHS,
        "General questions with answers (GSM8K, MMLU, ARC, HumanEval) to calibrate on, to replay "
        "and to measure drift on; '': their homes at the Hub.",
    )  # fmt: skip
    general_split: str = option(
        "", Text("a split such as train, or a slice of it"), "Such as train; '': all of the files."
    )
    max_broken: float = option(
        0.01, SHARE, "Largest share of a dataset's rows that may break its schema."
    )
    evaluation: str = option(
        "", PATHS, "XSTest and files of harmful prompts: AdvBench, HarmBench, ..."
    )
    evaluation_column: str = option(
        "", COLUMN,
        "Where those files that are in no known layout have their prompts, which are taken for "
        "harmful.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is to be preserved: the inputs of the base model's layers on general text."""

    rows: int = option(1000, COUNT, "General conversations that the base model reads.")
    batch_size: int = option(250, COUNT, "Conversations at a time.")
    rank_rule: str = option(
        "energy(0.05)", Text("a rank rule"),
        "How many directions are protected. relative_max(ALPHA), energy(EPS), "
        "absolute(EIGENVALUE), fixed(RANK); for some sites +REGEX=RULE, such as "
        "energy(0.05)+mlp/in=fixed(9).",
    )  # fmt: skip
    statistics: str = option(
        "inputs", NAME,
        "Second moments of what layers read (inputs), or of the loss's gradients (gradients), one "
        "a batch.",
    )  # fmt: skip
    first_token: str = option(
        "keep", NAME,
        "First token of every row. keep; drop: it is not protected; separate: its directions are "
        "protected, and its massive activations kept out of the rank rule.",
    )  # fmt: skip
    completions: str = option(
        "given", Choice(("given", "generated")),
        "Answers of the conversations: those given, or the base model's own.",
    )  # fmt: skip
    temperature: float = option(1.0, NOT_NEGATIVE, "Of generated completions.")
    seed: int = option(0, SEED, "Of generated completions.")


@dataclasses.dataclass(frozen=True)
class Projection:
    """Where updates may go."""

    mode: str = option(
        "update", NAME,
        "update: the projection is last in the chain; coordinates: Adam runs in the null space; "
        "gradient: before Adam, which leaks; none: no projection.",
    )  # fmt: skip
    targets: str = option(
        "mlp+attention+head", Text("targets"),
        "What is projected. With embed, the rows of tokens that the calibration text lacks may "
        "move.",
    )  # fmt: skip
    untargeted: str = option(
        "freeze", Choice(("freeze", "train")), "Embedding, norms and other kernels."
    )
    period: int = option(
        1, COUNT, "Every so many updates their sum is projected (the released code: 5)."
    )
    basis: str = option(
        "null_space", Choice(("null_space", "random")),
        "random: a subspace of the same rank, drawn by the seed of RL.",
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How gradients become updates."""

    name: str = option("adam", NAME, "adam, or sgd, whose step falls with the gradient.")
    master: str = option(
        "change", NAME,
        "What is trained, in float32. change: the change from the base model; weights, which "
        "round a change below 1e-7 of them away.",
    )  # fmt: skip
    learning_rate: float = option(1e-3, POSITIVE, "Constant.")
    weight_decay: float = option(
        0.0, NOT_NEGATIVE, "Of what is trained: a change decays towards the base model."
    )
    max_gradient_norm: float = option(1.0, POSITIVE, "A longer gradient is scaled down to it.")
    b1: float = option(0.9, DECAY, "Decay of Adam's first moment; momentum of sgd.")
    b2: float = option(0.999, DECAY, "Decay of Adam's second moment.")
