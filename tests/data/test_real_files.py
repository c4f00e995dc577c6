"""Every real file of a layout that we read: all of its rows, none broken, and what they say."""

import collections

import pytest

from nspo_jax.data import layouts, raw, sources

FILES = {  # path: dataset and rows, as its publisher or SOURCES.md counts them
    "pku_saferlhf/pku_saferlhf_v1_alpaca7b_test_rows.jsonl": ("pku_safe_rlhf", 7),
    "pku_saferlhf/pku_seferlhf_realign_dpo_first600.json": ("pku_safe_rlhf", 600),
    "pku_saferlhf_more/pku_saferlhf_30k_official_example_rows.jsonl": ("pku_safe_rlhf", 31),
    "pku_saferlhf_more/pku_seferlhf_realign_dpo_rows600_3999.json": ("pku_safe_rlhf", 2588),
    "beavertails/beavertails_30k_test_first1000.jsonl": ("beavertails", 1000),
    "gsm8k/test.jsonl": ("general", 1319),
    "gsm8k/train_first1000.jsonl": ("general", 1000),
    "humaneval/HumanEval.jsonl.gz": ("general", 164),
    "ifeval/input_data.jsonl": ("general", 541),
    "arc/ARC-Challenge-Dev.jsonl": ("general", 294),
    "mmlu/original/high_school_chemistry_test.csv": ("general", 203),
    "mmlu/with_header/high_school_mathematics_test.csv": ("general", 270),
    "advbench/harmful_behaviors.csv": ("safety_prompts", 520),
    "harmbench/harmbench_behaviors_text_all.csv": ("safety_prompts", 400),
    "harmbench/harmbench_behaviors_text_val.csv": ("safety_prompts", 80),
    "strongreject/strongreject_dataset.csv": ("safety_prompts", 313),
    "xstest/xstest_prompts.csv": ("safety_prompts", 450),
    "jailbreakbench/jbb_harmful_behaviors.csv": ("safety_prompts", 100),
}
TABLES = {  # likewise, by the name of a column
    "simplesafetytests/simple_safety_tests.csv": ("prompts_final", 100),
    "harmfulqa/harmfulqa_first500.jsonl": ("question", 495),
    "or_bench/or_bench_80k_sample100_with_category.jsonl": ("prompt", 100),
    "beavertails_more/BeaverTails-Evaluation.json": ("prompt", 700),
}


def read(path, dataset, columns=None):
    if not path.exists():
        pytest.skip(f"no {path.name}")
    problems = raw.Problems()
    [file] = sources.find(dataset, [str(path)])
    rows = list(layouts.parse(file, layouts.recognise(dataset, file, columns), problems))
    assert problems.total == 0, problems.examples
    return rows


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_read_whole(shared_data, name):
    dataset, count = FILES[name]
    assert len(read(shared_data / name, dataset)) == count


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_by_its_column(shared_data, name):
    column, count = TABLES[name]
    rows = read(shared_data / name, "safety_prompts", layouts.Columns(column))
    assert len(rows) == count and all(row.prompt.strip() for row in rows)


def test_xstests_halves_and_jailbreakbenchs_categories(shared_data):
    rows = read(shared_data / "xstest/xstest_prompts.csv", "safety_prompts")
    assert collections.Counter(row.kind for row in rows) == {"borderline": 250, "harmful": 200}
    rows = read(shared_data / "jailbreakbench/jbb_harmful_behaviors.csv", "safety_prompts")
    assert set(collections.Counter(row.category for row in rows).values()) == {10}
