"""One owner a directory, by processes that start, die and take over."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from nspo_jax import artifacts, ownership

ROOT = pathlib.Path(__file__).parent.parent
# takes a directory, says so, and holds it until its input ends
HOLD = """
import sys
from nspo_jax import ownership
try:
    with ownership.own(sys.argv[1], "workdir", wait=len(sys.argv) > 2):
        print("mine", flush=True)
        sys.stdin.read()
except ownership.OwnedError as error:
    print(error, flush=True)
    sys.exit(3)
"""


def start(directory, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory), *arguments],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path):
    first = start(tmp_path / "run")
    assert first.stdout.readline() == "mine\n"
    with pytest.raises(
        ownership.OwnedError, match=rf"in use by process {first.pid} on .*, for 0\."
    ):
        with ownership.own(tmp_path / "run", "workdir"):
            pass
    first.communicate()
    assert first.returncode == 0 and not list(tmp_path.iterdir())
    with ownership.own(tmp_path / "run", "workdir"):
        pass


def test_a_killed_owner_s_directory_is_taken_over_at_once_and_by_one(tmp_path, caplog):
    first = start(tmp_path / "run")
    assert first.stdout.readline() == "mine\n"
    first.send_signal(signal.SIGKILL)
    first.communicate()
    takers = [start(tmp_path / "run") for _ in range(4)]
    said = [taker.stdout.readline() for taker in takers]
    assert sorted(line == "mine\n" for line in said) == [False, False, False, True]
    for taker in takers:
        taker.communicate()


def test_who_waits_is_next(tmp_path):
    first = start(tmp_path / "base")
    assert first.stdout.readline() == "mine\n"
    second = start(tmp_path / "base", "wait")
    time.sleep(0.5)
    assert second.poll() is None
    first.communicate()
    assert second.stdout.readline() == "mine\n"
    second.communicate()


def test_a_lock_of_another_host_is_dead_when_nobody_touches_it(tmp_path, monkeypatch, caplog):
    lock = tmp_path / ".run.owner"
    lock.write_text(json.dumps({
        "host": "elsewhere", "boot": "b", "pid": 1, "start": "1", "since": time.time(), "id": "i",
    }))  # fmt: skip
    with pytest.raises(ownership.OwnedError, match="process 1 on elsewhere"):
        with ownership.own(tmp_path / "run", "workdir"):
            pass
    old = time.time() - 2 * ownership.STALE
    os.utime(lock, (old, old))
    with ownership.own(tmp_path / "run", "workdir"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists() and "process 1 on elsewhere" in caplog.text


def test_an_owner_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "HEARTBEAT", 0.05)
    with ownership.own(tmp_path / "run", "workdir"):
        lock = tmp_path / ".run.owner"
        os.utime(lock, (0, 0))
        time.sleep(0.5)
        assert lock.stat().st_mtime > 0


def test_an_error_gives_the_directory_up(tmp_path):
    with pytest.raises(KeyError), ownership.own(tmp_path / "run", "workdir"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_what_is_shared_is_made_once(tmp_path):
    made = []

    def make():
        made.append(1)
        time.sleep(0.3)
        (tmp_path / "base").mkdir()

    threads = [
        threading.Thread(target=artifacts.make_once, args=(tmp_path / "base", "base model", make))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1] and [path.name for path in tmp_path.iterdir()] == ["base"]
