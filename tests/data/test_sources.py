"""Finding original files: locally, and at the Hub as far as that goes without one."""

import pathlib

import huggingface_hub
from huggingface_hub import errors
import pytest

from nspo_jax.data import sources
from tests.data import public_files


@pytest.fixture
def folder(tmp_path):
    for name in (
        "data/Alpaca-7B/train.jsonl", "data/Alpaca-7B/test.jsonl", "data/Alpaca3-8B/train.jsonl",
        "README.md", ".cache/train.jsonl",
    ):  # fmt: skip
        public_files.write(tmp_path / "PKU" / name, name)
    return tmp_path / "PKU"


def names(files):
    return [(file.name, file.split) for file in files]


def test_a_directory_and_its_subsets(folder):
    everything = sources.find("pku_safe_rlhf", [str(folder)])
    assert names(everything) == [
        ("PKU/data/Alpaca-7B/test.jsonl", "test"),
        ("PKU/data/Alpaca-7B/train.jsonl", "train"),
        ("PKU/data/Alpaca3-8B/train.jsonl", "train"),
    ]
    chosen = sources.find("pku_safe_rlhf", [str(folder)], "alpaca-7b")
    assert chosen == everything[:2]
    with pytest.raises(ValueError, match="'alpaca'; .*: alpaca-7b, alpaca3-8b, data, pku"):
        sources.find("pku_safe_rlhf", [str(folder)], "alpaca")


@pytest.mark.parametrize(
    ("name", "split", "size"),
    [
        ("test-00000-of-00001.parquet", "test", ""),
        ("ARC-Challenge-Dev.jsonl", "dev", ""),
        ("harmbench_behaviors_text_val.csv", "validation", ""),
        ("validation/0000.parquet", "validation", ""),
        ("round0/330k/train.jsonl.xz", "train", "330k"),
        ("beavertails_30k_test.jsonl", "test", "30k"),
        ("latest.csv", "", ""),
        ("train/xstest_prompts.csv", "train", ""),
    ],
)
def test_names_say_split_and_size(tmp_path, name, split, size):
    public_files.write(tmp_path / "some" / name, "x")
    (file,) = sources.find("general", [str(tmp_path / "some")])
    assert (file.split, file.size) == (split, size)


def test_what_is_not_there_is_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="no file or directory .*nothing"):
        sources.find("general", [str(tmp_path / "nothing")])
    with pytest.raises(ValueError, match="README.md is of no known format"):
        sources.find("general", [str(folder / "README.md")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty holds no data file"):
        sources.find("general", [str(tmp_path / "empty")])
    with pytest.raises(ValueError, match="'pku'; expected one of pku_safe_rlhf, beavertails"):
        sources.find("pku", [str(folder)])
    with pytest.raises(ValueError, match="safety_prompts has no home at the Hub"):
        sources.find("safety_prompts")


def test_the_digest_is_of_names_and_bytes(folder):
    files = sources.find("pku_safe_rlhf", [str(folder)])
    before = sources.digest(files)
    assert sources.digest(files) == before != sources.digest(files[:2])
    assert sources.digest(files, "other columns") != before
    (folder / "data/Alpaca-7B/test.jsonl").write_text("other")
    assert sources.digest(files) != before


@pytest.mark.parametrize("paths", [[], ["hf:PKU-Alignment/PKU-SafeRLHF"]])
def test_the_hub_is_asked_for_the_files_of_a_dataset(folder, monkeypatch, paths):
    asked = []

    def snapshot_download(repository, *, repo_type, allow_patterns):
        asked.append((repository, repo_type, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    files = sources.find("pku_safe_rlhf", paths, "Alpaca3-8B")
    assert names(files) == [("PKU-Alignment/PKU-SafeRLHF/data/Alpaca3-8B/train.jsonl", "train")]
    ((repository, kind, patterns),) = asked
    assert (repository, kind) == ("PKU-Alignment/PKU-SafeRLHF", "dataset")
    assert any(pathlib.PurePath(files[0].path).match(pattern) for pattern in patterns)


def test_offline_the_message_says_what_to_do(monkeypatch, tmp_path):
    """The client's own refusal: nothing is cached, and it may not go online."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="PKU-SafeRLHF can neither be .* Give the path"):
        sources.find("pku_safe_rlhf")


def test_a_dataset_behind_terms_says_so(monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise errors.GatedRepoError.__new__(errors.GatedRepoError)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(FileNotFoundError, match="owner/name asks to accept its terms"):
        sources.find("safety_prompts", ["hf:owner/name"])
