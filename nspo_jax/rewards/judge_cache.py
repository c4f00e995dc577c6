"""A disk cache of a judge's answers, by the content of the question.

The cache is a folder of JSON lines with a file for each process that writes. No two processes write
to one file, so that the cache needs no lock and works on any shared file system, where a database
does not. Each line is written whole by one call; the next start ignores a last line that `kill -9`
cut short. Files are read at the start only: processes that run at the same time do not see each
other's answers, which costs requests and nothing else. One file a verdict would show them, but a
long run would make a million files.
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
        """Reads the answers that all processes have written so far; makes the folder if absent.

        A damaged line gives a warning and is left out: its question is asked anew.
        """
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._texts: dict[str, str] = {}
        # no other process has this name; the file is made with the first answer
        name = f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}.jsonl"
        self._own = self._folder / name
        for path in sorted(self._folder.glob("*.jsonl")):
            self._read(path)

    def __len__(self) -> int:
        return len(self._texts)

    def get(self, key: str) -> str | None:
        """Returns the text kept under a key, None if there is none."""
        return self._texts.get(key)

    def put(self, key: str, text: str) -> None:
        """Keeps a text, which survives this process from now on; raises OSError if it cannot."""
        # closing the file each time leaves little in a network file system's buffers
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
    """Returns a question's key: the sha256, in hex, of everything that its answer depends on."""
    return hashlib.sha256(body.encode()).hexdigest()
