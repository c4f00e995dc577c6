"""One owner a directory, by processes that start, die and take over."""

import contextlib
import json
import os
import threading
import time

import pytest

from nspo_jax import artifacts, ownership
from tests import forks


def hold(end, directory, wait):
    """Takes a directory, says so, and holds it until it is told to go."""
    try:
        with ownership.own(directory, "workdir", wait=wait):
            end.send("mine")
            end.recv()
    except ownership.OwnedError as error:
        end.send(str(error))


class Holder:
    """A process that runs `hold`."""

    def __init__(self, directory, wait=False):
        self._end, other = forks.pipe()
        self.process = forks.start(hold, other, directory, wait)
        other.close()

    def says(self):
        return self._end.recv()

    def leave(self):
        with contextlib.suppress(BrokenPipeError):  # who was refused has left
            self._end.send("go")
        self.process.join()


def test_a_second_owner_is_refused_and_told_who_the_first_is(tmp_path):
    first = Holder(tmp_path / "run")
    assert first.says() == "mine"
    with pytest.raises(
        ownership.OwnedError, match=rf"in use by process {first.process.pid} on .*, for 0\."
    ):
        with ownership.own(tmp_path / "run", "workdir"):
            pass
    first.leave()
    assert first.process.exitcode == 0 and not list(tmp_path.iterdir())
    with ownership.own(tmp_path / "run", "workdir"):
        pass


def test_a_killed_owner_s_directory_is_taken_over_at_once_and_by_one(tmp_path, caplog):
    first = Holder(tmp_path / "run")
    assert first.says() == "mine"
    first.process.kill()
    first.process.join()
    takers = [Holder(tmp_path / "run") for _ in range(4)]
    said = [taker.says() for taker in takers]
    assert sorted(line == "mine" for line in said) == [False, False, False, True]
    for taker in takers:
        taker.leave()


def test_who_waits_is_next(tmp_path):
    first = Holder(tmp_path / "base")
    assert first.says() == "mine"
    second = Holder(tmp_path / "base", wait=True)
    time.sleep(0.5)
    assert second.process.is_alive()
    first.leave()
    assert second.says() == "mine"
    second.leave()


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
