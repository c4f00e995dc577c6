"""Our own files: whole or not at all, and damage that names its file."""

import pytest

from nspo_jax import files


def test_a_directory_is_replaced_whole_or_stays(tmp_path):
    target = tmp_path / "model"

    def write(text):
        return lambda folder: (folder / "a.txt").write_text(text)

    files.write_directory(target, write("first"))
    files.write_directory(target, write("second"))
    assert (target / "a.txt").read_text() == "second"

    def fail(folder):
        (folder / "a.txt").write_text("third")
        raise KeyError

    with pytest.raises(KeyError):
        files.write_directory(target, fail)
    assert (target / "a.txt").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_kill_between_the_two_names_leaves_the_old_and_the_new(tmp_path, monkeypatch):
    target = tmp_path / "model"
    files.write_directory(target, lambda folder: (folder / "a.txt").write_text("old"))
    original, renamed = type(target).rename, []

    def rename(self, to):
        renamed.append(to)
        if len(renamed) == 2:
            raise KeyboardInterrupt
        return original(self, to)

    removed = []
    monkeypatch.setattr(type(target), "rename", rename)
    monkeypatch.setattr(files.shutil, "rmtree", lambda path, **_: removed.append(path))
    with pytest.raises(KeyboardInterrupt):
        files.write_directory(target, lambda folder: (folder / "a.txt").write_text("new"))
    texts = {path.read_text() for path in tmp_path.glob("model.*/a.txt")}
    assert texts == {"old", "new"}


@pytest.mark.parametrize(
    ("content", "words"), [("", "0 bytes are no JSON"), ('{"a": 1', "7 bytes"), ("[1]", "a list")]
)
def test_damage_names_the_file_and_what_to_do(tmp_path, content, words):
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words) as error:
        files.read_json(path, "delete it")
    assert str(path) in str(error.value) and "delete it" in str(error.value)
    files.write_text(path, '{"a": 1}')
    assert files.read_json(path, "delete it") == {"a": 1}
