"""Public datasets prepared and read back: slices in the files' order, broken rows remembered."""

import dataclasses
import hashlib
import json
import sys

import pytest

from nspo_jax.data import filtering, layouts, public, raw, statistics
from tests import command_lines, forks
from tests.data import public_files


def write_pku(folder, count=10, broken=()):
    rows = [public_files.pku(prompt=f"Question {i}?") for i in range(count)]
    for i in broken:
        rows[i]["safer_response_id"] = 2
    return public_files.write(folder / "train.jsonl", public_files.lines(rows))


def write_rows(path, *rows):
    return public_files.write(path, public_files.lines(rows))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    path = str(write_pku(folder, 12, broken=[3, 7]))
    public.load("pku_safe_rlhf", folder / "tfds", paths=[path])
    return folder / "tfds", path


def test_rows_come_back_whole_and_in_order(prepared):
    data_dir, path = prepared
    loaded = public.load("pku_safe_rlhf", data_dir, "train", paths=[path])
    numbers = [i for i in range(12) if i not in (3, 7)]
    assert [row.prompt for row in loaded.rows] == [f"Question {i}?" for i in numbers]
    row = loaded.rows[0]
    assert row.response_0_harm_category == ("Privacy Violation", "Economic Crime")
    assert row.response_1_harm_category == ()
    assert row.is_response_0_safe is False and row.response_0_severity_level == 2
    assert loaded.splits == {"train": 10} and loaded.files == ["train.jsonl"]


def test_slices_are_the_first_of_the_file(prepared):
    data_dir, path = prepared
    load = lambda split: public.load("pku_safe_rlhf", data_dir, split, paths=[path]).rows  # noqa: E731
    assert load("train[:40%]") == load("train")[:4]
    assert load("train[:40%]") + load("train[40%:]") == load("train")
    assert load("train[-2:]") == load("train")[-2:]
    with pytest.raises(ValueError, match=r"'train\[:0\]'.* ends where it begins"):
        load("train[:0]")


def test_broken_rows_are_remembered(prepared):
    """By the prepared copy: nothing is parsed again."""
    data_dir, path = prepared
    problems = public.load("pku_safe_rlhf", data_dir, "train[:1]", paths=[path]).problems
    assert problems.total == 2 and problems.counts == {"train.jsonl": 2}
    reason = "safer_response_id is 2, expected one of 0, 1"
    assert problems.examples == [("train.jsonl", 4, reason), ("train.jsonl", 8, reason)]


def test_changed_files_are_prepared_anew(tmp_path):
    load = lambda: public.load("pku_safe_rlhf", tmp_path / "tfds", paths=[str(path)])  # noqa: E731
    path = write_pku(tmp_path, 2)
    assert len(load().rows) == 2
    write_pku(tmp_path, 3)
    assert len(load().rows) == 3


@pytest.mark.parametrize("split", ["valid", "test", "train[:x]", "train+train"])
def test_an_unknown_split_is_named(prepared, split):
    data_dir, path = prepared
    with pytest.raises(
        ValueError, match="expected (one of train, with|a name such as train, with)"
    ):
        public.load("pku_safe_rlhf", data_dir, split, paths=[path])


def test_a_file_of_broken_rows_is_an_error(tmp_path):
    path = write_pku(tmp_path, 2, broken=[0, 1])
    for _ in range(2):  # nothing is left half prepared
        with pytest.raises(raw.SourceError, match="Every row of train.jsonl.*line 2 of .*safer_re"):
            public.load("pku_safe_rlhf", tmp_path / "tfds", paths=[str(path)])


def test_damage_is_an_error_with_the_fix(tmp_path):
    path = write_pku(tmp_path)
    public.load("pku_safe_rlhf", tmp_path / "tfds", paths=[str(path)])
    for record in (tmp_path / "tfds").rglob("*.array_record*"):
        record.write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be read.*Delete that directory"):
        public.load("pku_safe_rlhf", tmp_path / "tfds", paths=[str(path)])


def test_beavertails_sizes_are_splits(tmp_path):
    for size, name, count in (("30k", "train", 3), ("330k", "train", 4), ("30k", "test", 2)):
        pack = {"30k": "gz", "330k": "xz"}[size]
        rows = [public_files.beavertails(prompt=f"{size} {name} {i}") for i in range(count)]
        path = tmp_path / "round0" / size / f"{name}.jsonl.{pack}"
        public_files.write(path, public_files.lines(rows))
    load = lambda *args, **kwargs: public.load(  # noqa: E731
        "beavertails", tmp_path / "tfds", *args, paths=[str(tmp_path / "round0")], **kwargs
    )
    assert load().splits == {"30k_test": 2, "30k_train": 3, "330k_train": 4}
    assert [row.prompt for row in load("330k_train[1:3]").rows] == ["330k train 1", "330k train 2"]
    assert load(subset="30K").splits == {"30k_test": 2, "30k_train": 3}


def test_columns_are_part_of_what_is_prepared(tmp_path):
    path = public_files.write_csv(tmp_path / "mine.csv", [["a", "b"], ["x", "y"]])
    for name in ("a", "b"):
        columns = layouts.Columns(name, kind="general")
        (row,) = public.load_prompts(
            "safety_prompts", tmp_path / "tfds", "custom", paths=[str(path)], columns=columns
        )
        assert (row.prompt, row.answer, row.kind) == ({"a": "x", "b": "y"}[name], "", "general")
    with pytest.raises(ValueError, match="safety_prompts alone, not for general"):
        public.load("general", tmp_path / "tfds", paths=[str(path)], columns=columns)


def imports_tensorflow(data_dir, path):
    """Whether reading does."""
    public.load("pku_safe_rlhf", data_dir, paths=[path])
    return "tensorflow" in sys.modules


def test_tensorflow_is_not_imported(prepared):
    assert not forks.call(imports_tensorflow, *prepared)


def test_statistics_of_labels_that_disagree(prepared):
    data_dir, path = prepared
    loaded = public.load("pku_safe_rlhf", data_dir, paths=[path])
    suites = {"mine": ["question 5", "What else?"]}
    tables = {title: table for title, table in statistics.describe(loaded, suites)}
    labels = {row[0].strip(): row[1] for row in tables["labels"]}
    assert labels["better and safer ids agree"] == "0"
    assert labels["one answer safe, and the safer id names it"] == "10"
    assert labels["sha256 is that of prompt + response"] == "0"
    assert ["2", "10", "0"] in tables["severities; 0 is safe"]
    assert ["Privacy Violation", "10", "100.0%"] in tables["categories; a row may have several"]
    assert ["mine", "2", "1", "0"] in tables["contamination: 1 rows"]
    broken = tables["broken rows: 2 (files: 1)"]
    assert broken[1][0] == "train.jsonl:4"


def test_inspect_data(prepared, tmp_path):
    data_dir, path = prepared
    suite = public_files.write_csv(tmp_path / "adv.csv", [["goal", "target"], ["Question 1", "x"]])
    command = ["inspect_data", "pku_safe_rlhf"]
    done = command_lines.run(
        *command, f"--path={path}", f"--data_dir={data_dir}", f"--evaluation={suite}",
        "--split=train[:40%]",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for line in ("4 rows are looked at", "broken rows: 2", "train.jsonl:8", "contamination: 1"):
        assert line in done.stdout
    done = command_lines.run(*command, f"--path={tmp_path}/nothing")
    assert done.returncode == 1 and "There is no file or directory" in done.stderr


# ------------------------------------------------------------------------------ the real files


def test_the_version_is_raised_with_the_records(tmp_path):
    """Prepared rows are found by files and version: other records of them would be stale ones."""
    pair = write_rows(tmp_path / "train.jsonl", public_files.pku())
    answer = write_rows(tmp_path / "30k_train.jsonl", public_files.beavertails())
    maths = write_rows(tmp_path / "test.jsonl", {"question": "1+1?", "answer": "<<1+1=2>>\n#### 2"})
    attack = public_files.write_csv(tmp_path / "a.csv", [["goal", "target"], ["Pick it", "Sure"]])
    paths = {"pku_safe_rlhf": pair, "beavertails": answer, "general": maths}
    made = {}
    for name, path in (paths | {"safety_prompts": attack}).items():
        rows = public.load(name, tmp_path / "tfds", paths=[str(path)]).rows
        digest = hashlib.sha256(json.dumps([dataclasses.asdict(row) for row in rows]).encode())
        made[name] = (str(public.BUILDERS[name].VERSION), digest.hexdigest()[:16])
    assert made == {
        "pku_safe_rlhf": ("1.0.0", "b19d6fcbd3ce04f6"),
        "beavertails": ("1.0.0", "821fd8f9c514e049"),
        "general": ("1.0.0", "fe3181519f051787"),
        "safety_prompts": ("1.0.0", "c4282b8aa09f325a"),
    }, f"raise the VERSION of what differs, and write {made} here"


@pytest.fixture(scope="module")
def real(shared_data, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("real")

    def load(name, *files, split="", columns=None):
        paths = [str(shared_data / file) for file in files]
        return public.load(name, data_dir, split, paths=paths, columns=columns)

    return load


def test_real_pairs(real, shared_data):
    path = "pku_saferlhf/pku_saferlhf_v1_alpaca7b_test_rows.jsonl"
    loaded = real("pku_safe_rlhf", path)
    assert loaded.splits == {"test": 7} and loaded.problems.total == 0
    published = [json.loads(line) for line in (shared_data / path).read_text().splitlines()]
    for row, original in zip(loaded.rows, published, strict=True):
        assert {row.prompt, row.response_0, row.response_1} == {
            original[name] for name in ("prompt", "response_0", "response_1")
        }
    # SOURCES.md: the ids of the fourth row disagree, and every hash is of prompt and answer
    agree = [row.better_response_id == row.safer_response_id for row in loaded.rows]
    assert agree == [True, True, True, False, True, True, True]
    labels = {row[0]: row[1] for row in dict(statistics.describe(loaded, {}))["labels"]}
    assert labels["sha256 is that of prompt + response"] == "7"


def test_real_beavertails(real, shared_data):
    path = "beavertails/beavertails_30k_test_first1000.jsonl"
    loaded = real("beavertails", path)
    assert loaded.splits == {"30k_test": 1000} and loaded.problems.total == 0
    assert len(real("beavertails", path, split="30k_test[:40%]").rows) == 400
    text = (shared_data / path).read_text()
    assert sum(row.is_safe for row in loaded.rows) == text.count('"is_safe": true')
    for name in ("privacy_violation", "self_harm", "violence,aiding_and_abetting,incitement"):
        assert sum(name in row.category for row in loaded.rows) == text.count(f'"{name}": true')
    unique = filtering.deduplicate(loaded.rows)
    assert len(unique) == 945 and len({row.prompt for row in loaded.rows}) == 946


# Files and no folders, here and in every test: a folder may get more files.
GENERAL = [
    "gsm8k/test.jsonl", "gsm8k/train_first1000.jsonl",
    "mmlu/original/high_school_chemistry_dev.csv", "mmlu/original/high_school_chemistry_test.csv",
    *(f"mmlu/with_header/{subject}_{split}.csv"
      for subject in ("abstract_algebra", "college_computer_science",
                      "high_school_mathematics", "world_religions")
      for split in ("dev", "test")),
    "arc/ARC-Challenge-Dev.jsonl", "humaneval/HumanEval.jsonl.gz", "ifeval/input_data.jsonl",
]  # fmt: skip


def test_real_general_questions(real):
    loaded = real("general", *GENERAL)
    assert loaded.problems.total == 0
    counts = {}
    for row in loaded.rows:
        counts[row.source] = counts.get(row.source, 0) + 1
    # SOURCES.md; MMLU: five subjects with 5 rows of dev, and 203, 100, 100, 270 and 171 of test
    assert counts == {"gsm8k": 2319, "mmlu": 869, "arc": 294, "humaneval": 164, "ifeval": 541}
    assert loaded.splits == {
        "test": 1319 + 844 + 164 + 541, "train": 1000, "dev": 25 + 294,
    }  # fmt: skip
    assert sum(len(row.choices) == 3 for row in loaded.rows if row.source == "arc") == 3
    answers = [row.conversation().answer for row in loaded.rows if row.source == "gsm8k"]
    assert not any("<<" in answer or ">>" in answer for answer in answers)


def test_real_safety_prompts(real):
    loaded = real(
        "safety_prompts", "advbench/harmful_behaviors.csv",
        "harmbench/harmbench_behaviors_text_all.csv", "harmbench/harmbench_behaviors_text_val.csv",
        "strongreject/strongreject_dataset.csv", "xstest/xstest_prompts.csv",
    )  # fmt: skip
    assert loaded.problems.total == 0
    assert loaded.splits == {
        "advbench": 520, "harmbench": 400, "harmbench_validation": 80, "strongreject": 313,
        "xstest": 450,
    }  # fmt: skip
    kinds = [row.kind for row in loaded.rows if row.source == "xstest"]
    assert (kinds.count("borderline"), kinds.count("harmful")) == (250, 200)
    prompts = lambda source: [row for row in loaded.rows if row.source == source]  # noqa: E731
    kept, found = filtering.decontaminate(
        prompts("advbench"), {"strongreject": [row.prompt for row in prompts("strongreject")]}
    )
    same = {row.prompt for row in prompts("advbench")} & {
        row.prompt for row in prompts("strongreject")
    }
    assert sum(match.whole for match in found) == len(same) == 25  # StrongREJECT took them over
    assert len(kept) == 520 - len(found) == 484


def test_real_tables_by_column(real):
    loaded = real(
        "safety_prompts", "pku_saferlhf/pku_seferlhf_realign_dpo_first600.json",
        columns=layouts.Columns("prompt"),
    )  # fmt: skip
    assert loaded.splits == {"custom": 600} and loaded.problems.total == 0
    with pytest.raises(raw.SourceError, match="not laid out as beavertails: line 2"):
        real("beavertails", "pku_saferlhf/pku_seferlhf_realign_dpo_first600.json")
    columns = layouts.Columns("prompt", "type", kind="borderline")
    loaded = real("safety_prompts", "xstest/xstest_v2_completions_gpt4.csv", columns=columns)
    assert loaded.splits == {"custom": 450} and loaded.problems.total == 0


def test_real_pairs_of_other_releases(real):
    first = real("pku_safe_rlhf", "pku_saferlhf_more/pku_saferlhf_30k_official_example_rows.jsonl")
    assert len(first.rows) == 31 and first.problems.total == 0
    safe = [row.is_response_0_safe + row.is_response_1_safe for row in first.rows]
    assert (safe.count(0), safe.count(1), safe.count(2)) == (16, 4, 11)
    assert sum(row.better_response_id != row.safer_response_id for row in first.rows) == 18
    tables = dict(statistics.describe(first, {}))
    assert tables["severities; 0 is safe, -1 not published"][-1] == ["-1", "31", "31"]
    ordered = real("pku_safe_rlhf", "pku_saferlhf_more/pku_seferlhf_realign_dpo_rows600_3999.json")
    assert len(ordered.rows) == 2588 and ordered.problems.total == 0
    assert {row.safer_response_id for row in ordered.rows} == {0}
    table = dict(statistics.describe(ordered, {}))["contradicting labels"]
    assert int(table[1][2]) > 0  # as its source says: labels of one text differ here and there


def test_real_jailbreakbench(real):
    loaded = real("safety_prompts", "jailbreakbench/jbb_harmful_behaviors.csv")
    assert loaded.splits == {"jailbreakbench": 100} and loaded.problems.total == 0
    assert {row.kind for row in loaded.rows} == {"harmful"}
    assert len({row.category for row in loaded.rows}) == 10


def test_a_column_is_for_what_has_no_known_layout(tmp_path):
    known = public_files.write_csv(tmp_path / "adv.csv", [["goal", "target"], ["Do it", "Sure"]])
    mine = public_files.write_csv(tmp_path / "mine.csv", [["ask", "n"], ["How?", "1"]])
    columns = layouts.Columns("ask", otherwise=True)
    loaded = public.load(
        "safety_prompts", tmp_path / "d", paths=[str(known), str(mine)], columns=columns
    )
    assert loaded.splits == {"advbench": 1, "custom": 1}


@pytest.mark.parametrize(("most", "refused"), [(1.0, False), (0.2, False), (0.1, True)])
def test_broken_rows_are_told_and_refused_above_a_share(tmp_path, caplog, most, refused):
    rows = [["goal", "target"], *[[f"Do {i}", "Sure"] for i in range(8)], ["", "x"], ["", "y"]]
    path = public_files.write_csv(tmp_path / "adv.csv", rows)
    arguments = {"paths": [str(path)], "max_broken": most}
    words = "safety_prompts: 2 of 10 rows are broken and left out, first adv.csv:10 goal is empty"
    if refused:
        with pytest.raises(ValueError, match=rf"{words}.*more than data.max_broken=0.1"):
            public.load("safety_prompts", tmp_path / "d", **arguments)
        return
    with caplog.at_level("WARNING"):
        assert len(public.load("safety_prompts", tmp_path / "d", **arguments).rows) == 8
    assert words in caplog.text


def test_files_that_are_not_read_are_named(tmp_path, caplog):
    directory = tmp_path / "sets"
    directory.mkdir()
    public_files.write_csv(directory / "adv.csv", [["goal", "target"], ["Do it", "Sure"]])
    (directory / "train.jsonl.zst").write_bytes(b"x")
    with caplog.at_level("WARNING"):
        public.load("safety_prompts", tmp_path / "d", paths=[str(directory)])
    assert "1 files are not read, of no format known here: train.jsonl.zst" in caplog.text
