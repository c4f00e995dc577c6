"""A disk cache of a judge's answers, by the content of the question.

A folder of JSON lines, a file for each process that writes: nobody ever writes where somebody else
does, so that it needs no lock and works on any shared file system, where a database does not. A
line is written at once and whole; what a `kill -9` leaves of the last one is ignored at the next
start. Files are read at the start only: processes that run at the same time do not see each
other's answers, which costs requests and nothing else. One file a verdict would show them, and
make a million files of a long run.
"""

import hashlib
import json
import logging
import os
import pathlib
import socket
import time

_log = logging.getLogger(__name__)


class JudgeCache:
    """Texts by key, in memory and on disk."""

    def __init__(self, folder: str | os.PathLike):
        """Reads what all processes have written so far; makes the folder if it is not there.

        A line that is damaged is warned of and left out: its question is asked anew.
        """
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._texts: dict[str, str] = {}
        # a name that nobody else has; no file until there is something to write
        name = f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}.jsonl"
        self._own = self._folder / name
        for path in sorted(self._folder.glob("*.jsonl")):
            self._read(path)

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, key: str) -> str | None:
        """The text kept under a key, None if there is none."""
        return self._texts.get(key)

    def put(self, key: str, text: str) -> None:
        """Keeps a text; it survives this process from now on. Raises OSError if it cannot."""
        # opened and closed for each: what a network file system holds back until then is little
        with self._own.open("ab") as file:
            file.write(json.dumps({"key": key, "text": text}).encode() + b"\n")
        self._texts[key] = text

    def _read(self, path: pathlib.Path) -> None:
        damaged = 0
        for line in path.read_bytes().splitlines():
            try:
                entry = json.loads(line)
                key, text = entry["key"], entry["text"]
            except (ValueError, KeyError, TypeError, RecursionError):
                damaged += 1
                continue
            if isinstance(key, str) and isinstance(text, str):
                self._texts[key] = text
            else:
                damaged += 1
        if damaged:
            _log.warning("%s: %d damaged lines, asked anew if they are needed", path, damaged)


def content_key(body: str) -> str:
    """The key of a question: the sha256 of all that its answer depends on, in hex."""
    return hashlib.sha256(body.encode()).hexdigest()
