"""Shows the contents of a public dataset and its broken rows.

    python -m scripts.inspect_data pku_safe_rlhf --subset=alpaca-7b --split='train[:40%]'
    python -m scripts.inspect_data pku_safe_rlhf --path=DIRECTORY --evaluation=xstest.csv
    python -m scripts.inspect_data safety_prompts --path=mine.csv --prompt_column=text

NAME is pku_safe_rlhf, beavertails, general or safety_prompts. Without --path the files come from
the Hugging Face Hub. The dataset is prepared under --data_dir once, and read from there later. The
tables show rows a split, categories, labels and their agreement, lengths, duplicates, prompts that
are in evaluation sets, and the number of broken rows, the first with file, line and reason.
"""

from absl import flags
import tensorflow_datasets as tfds

from nspo_jax.data import layouts, public, records, statistics
from nspo_jax.reports import tables
from scripts import launch

PATH = flags.DEFINE_multi_string(
    "path", [], "A file or directory in the original format, or hf:OWNER/NAME; may be repeated. "
    "Default: the dataset's home at the Hub.",
)  # fmt: skip
SPLIT = flags.DEFINE_string("split", "", "A split, such as 'train[:40%]'. Default: all.")
SUBSET = flags.DEFINE_string("subset", "", "Only files in a directory of this name: alpaca-7b.")
EVALUATION = flags.DEFINE_multi_string(
    "evaluation", [], "File or directory of safety_prompts to look for in it; may be repeated."
)
PROMPT_COLUMN = flags.DEFINE_string("prompt_column", "", "safety_prompts: the prompts' column.")
CATEGORY_COLUMN = flags.DEFINE_string("category_column", "", "safety_prompts: the categories'.")
KIND = flags.DEFINE_enum("kind", "harmful", records.PROMPT_KINDS, "safety_prompts: their kind.")
DATA_DIR = launch.define_output("data_dir", "Directory of prepared datasets.", default="runs/data")


def main(name: str) -> None:
    """Prints the tables."""
    tfds.disable_progress_bar()
    columns = None
    if PROMPT_COLUMN.value:
        columns = layouts.Columns(PROMPT_COLUMN.value, CATEGORY_COLUMN.value, KIND.value)
    elif CATEGORY_COLUMN.value:
        raise ValueError("--category_column needs --prompt_column.")
    loaded = public.load(
        name,
        DATA_DIR.value,
        SPLIT.value,
        paths=PATH.value,
        subset=SUBSET.value,
        columns=columns,
    )
    suites: dict[str, list[str]] = {}
    if EVALUATION.value:
        evaluated = public.load("safety_prompts", DATA_DIR.value, paths=EVALUATION.value)
        for row in evaluated.rows:
            suites.setdefault(row.source, []).append(row.prompt)
    print(f"{name}: {', '.join(loaded.files)}")
    for title, table in statistics.describe(loaded, suites):
        print(f"\n{title}\n\n{tables.format_table(table)}")


if __name__ == "__main__":
    launch.run(main, interrupted="stopped; nothing is left half done", argument="NAME")
