"""The judge's cache: what survives whom."""

import json
import os
import signal

import pytest

from nspo_jax.rewards import judge_cache
from tests import forks


def write_many(folder, name, count):
    cache = judge_cache.JudgeCache(folder)
    for index in range(count):
        cache.put(f"{name} {index}", "text " * 50)


def write_until_killed(folder):
    cache = judge_cache.JudgeCache(folder)
    for index in range(10**9):
        cache.put(str(index), "ünsafe\nS1")
        if index == 100:
            os.kill(os.getpid(), signal.SIGKILL)


def test_round_trip(tmp_path):
    texts = {"a": "safe", "b": "", "c": "unsafe\nS1\r\u2028\u0085\x00 日本語 \ud800"}
    cache = judge_cache.JudgeCache(tmp_path / "made" / "here")
    for key, text in texts.items():
        assert cache.get(key) is None
        cache.put(key, text)
        assert cache.get(key) == text
    again = judge_cache.JudgeCache(tmp_path / "made" / "here")
    assert len(again) == 3 and {key: again.get(key) for key in texts} == texts


def test_reading_leaves_no_file(tmp_path):
    judge_cache.JudgeCache(tmp_path).get("a")
    assert not list(tmp_path.iterdir())


def test_several_processes_write_at_once(tmp_path):
    writers = [forks.start(write_many, tmp_path, name, 200) for name in ("a", "b")]
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2
    assert len(judge_cache.JudgeCache(tmp_path)) == 400


def test_what_was_put_survives_a_kill(tmp_path):
    writer = forks.start(write_until_killed, tmp_path)
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    cache = judge_cache.JudgeCache(tmp_path)
    assert len(cache) == 101 and cache.get("100") == "ünsafe\nS1"


@pytest.mark.parametrize(
    "line",
    [
        b'{"key": "b", "text": "saf',  # torn by a kill
        b"\x00\x00\x00\x00",
        b'{"key": "b", "text": "s\xff"}',
        b'{"key": "b"}',
        b'{"key": 1, "text": "safe"}',
        b'{"key": "b", "text": null}',
        b'{"key": ["b"], "text": "safe"}',
        b'["b", "safe"]',
        b"[" * 5000,
        b"",
    ],
)
def test_a_damaged_line_is_left_out_with_a_warning(tmp_path, caplog, line):
    judge_cache.JudgeCache(tmp_path).put("a", "safe")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole + line + b"\n" + whole.replace(b'"a"', b'"c"') + line)
    cache = judge_cache.JudgeCache(tmp_path)
    assert [cache.get(key) for key in "abc"] == ["safe", None, "safe"]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert str(path) in warning and ("2 damaged" if line else "1 damaged") in warning
    cache.put("b", "asked anew")
    assert judge_cache.JudgeCache(tmp_path).get("b") == "asked anew"


def test_a_disk_that_is_full_is_no_silence(tmp_path):
    cache = judge_cache.JudgeCache(tmp_path / "folder")
    (tmp_path / "folder").rmdir()
    with pytest.raises(OSError):
        cache.put("a", "safe")


def test_the_key_is_of_all_the_content():
    body = {"model": "judge", "messages": ["a"], "seed": 0}
    keys = {
        judge_cache.content_key(json.dumps({**body, **change}))
        for change in ({}, {"model": "other"}, {"messages": ["b"]}, {"seed": 1})
    }
    assert len(keys) == 4 and all(len(key) == 64 for key in keys)
