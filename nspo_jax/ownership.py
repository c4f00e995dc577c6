"""The lock of a directory, which gives a run's workdir or a shared artifact one owner.

A lock is a file beside the directory, made by a hard link, which only one process can make on local
and on shared file systems. It names its owner's host, pid and start, and its owner touches it every
`HEARTBEAT` seconds. A kill -9 leaves it behind. The owner's own host sees the dead process at once;
for another host the owner is dead if the lock has not been touched for `STALE` seconds.
"""

from collections.abc import Iterator
import contextlib
import json
import logging
import os
import pathlib
import socket
import threading
import time
from typing import Any
import uuid

from nspo_jax import distributed

HEARTBEAT = 10.0  # seconds
STALE = 60.0
_POLL = 1.0
_log = logging.getLogger(__name__)


class OwnedError(OSError):
    """A directory that another live process owns."""


@contextlib.contextmanager
def own(directory: str | os.PathLike, what: str, *, wait: bool = False) -> Iterator[None]:
    """Owns a directory, which need not exist, until the block ends. Collective.

    The first process of a run holds the lock for all of them.

    Args:
      directory: the directory to own.
      what: its name in messages, such as "workdir".
      wait: waits for a live owner to end; otherwise a live owner is an error.

    Raises:
      OwnedError: in every process, naming the owner.
    """
    lock, failure = None, ""
    if distributed.is_primary():
        try:
            lock = _acquire(pathlib.Path(directory), what, wait)
        except OwnedError as error:
            failure = str(error)
    if distributed.several():
        failure = distributed.gather_texts(failure)[0]
    if failure:
        raise OwnedError(failure)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


class _Lock:
    """A lock that this process holds, with its heartbeat."""

    def __init__(self, path: pathlib.Path, content: str):
        self._path, self._content = path, content
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="owner", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            try:
                if self._path.read_text() == self._content:
                    os.utime(self._path)
                    continue
                problem = "another process has taken it over"
            except OSError as error:  # a shared file system may be away for a moment
                problem = str(error)
            _log.warning("the lock %s is not this process's: %s", self._path, problem)

    def release(self) -> None:
        """Gives the directory up."""
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(FileNotFoundError):
            if self._path.read_text() == self._content:
                self._path.unlink()


def _acquire(directory: pathlib.Path, what: str, wait: bool) -> _Lock:
    directory = pathlib.Path(os.path.abspath(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    path = directory.with_name(f".{directory.name}.owner")
    content = json.dumps(_identity())
    told = -HEARTBEAT
    while True:
        if _link(path, content):
            return _Lock(path, content)
        found = _read(path)
        if found is None:  # the owner has just released it
            continue
        if _is_dead(path, found):
            if _take_over(path, found, content):
                _log.warning(
                    "%s %s was left behind by %s, which is dead: taken over",
                    what, directory, _describe(path, found),
                )  # fmt: skip
                return _Lock(path, content)
        elif not wait:
            raise OwnedError(
                f"The {what} {directory} is in use by {_describe(path, found)}. Wait until it "
                f"ends or stop it, or name another {what}. (If it is surely gone, delete {path}.)"
            )
        elif time.monotonic() - told >= HEARTBEAT:
            told = time.monotonic()
            _log.info("waiting for %s %s, which %s makes", what, directory, _describe(path, found))
        time.sleep(_POLL if wait else 0.05)


def _identity() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "host": socket.gethostname(), "boot": _boot(), "pid": pid, "start": _start_of(pid),
        "since": time.time(), "id": uuid.uuid4().hex,
    }  # fmt: skip


def _link(path: pathlib.Path, content: str) -> bool:
    """Makes a file with its content in one step; returns False if it exists already."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(content)
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError:  # without hard links, exclusive creation at least is one step
        try:
            with path.open("x") as file:
                file.write(content)
        except FileExistsError:
            return False
    finally:
        temporary.unlink()
    return True


def _read(path: pathlib.Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _is_dead(path: pathlib.Path, content: str) -> bool:
    owner = {}
    try:
        owner = json.loads(content)
        here = (owner["host"], owner["boot"]) == (socket.gethostname(), _boot())
    except (ValueError, KeyError, TypeError):  # the file is no lock of ours; its age decides
        here = False
    if here:
        return _start_of(owner["pid"]) != owner["start"]
    return _age(path) > STALE


def _take_over(path: pathlib.Path, dead: str, content: str) -> bool:
    """Puts this process in a dead owner's place; returns False if another process was faster."""
    guard = path.with_name(f"{path.name}.takeover")
    if not _link(guard, content):
        if _age(guard) > STALE:  # its maker was killed in between
            guard.unlink(missing_ok=True)
        return False
    try:
        if _read(path) != dead:
            return False
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
        temporary.write_text(content)
        temporary.replace(path)
        return True
    finally:
        guard.unlink(missing_ok=True)


def _age(path: pathlib.Path) -> float:
    """Returns the seconds since a file was touched, by its file system's clock; 0 if it is gone."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink()


def _describe(path: pathlib.Path, content: str) -> str:
    try:
        owner = json.loads(content)
        minutes = (time.time() - owner["since"]) / 60
        return f"process {owner['pid']} on {owner['host']}, for {minutes:.1f} minutes"
    except (ValueError, KeyError, TypeError):
        return f"the owner of {path}"


def _boot() -> str:
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # without Linux, the host's name must do
        return ""


def _start_of(pid: int) -> str | None:
    """Returns a process's start on this host, in its kernel's ticks; None if there is none."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        if pathlib.Path("/proc/self/stat").exists():
            return None
    else:
        state, *rest = stat.rpartition(")")[2].split()
        return None if state in "ZX" else rest[18]
    try:  # without Linux, only the process's life can be seen, not its start
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
