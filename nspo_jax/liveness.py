"""The immediate notice that another process died, with its number.

jax.distributed ends all processes some time after one falls silent, with a page of text that may
not name it. Here every process holds a connection to process 0, which the operating system closes
when either dies, whatever the cause; a machine that vanishes stops answering keepalives. Process 0
tells the others which process died, and each ends with a paragraph.
"""

import atexit
from collections.abc import Callable
import ctypes
import logging
import selectors
import signal
import socket
import threading
import time
from typing import cast

KEEPALIVE_SECONDS = 20  # a machine that vanished counts as dead after so long
_GOODBYE = 0xFFFFFFFF
_log = logging.getLogger(__name__)


def listen() -> socket.socket:
    """Opens process 0's end, on any free port."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.bind(("", 0))
    server.listen(1024)
    return server


def connect(hosts: list[str], port: int, process: int) -> socket.socket | None:
    """Opens another process's end, at the first host that answers; None if no host does."""
    for host in hosts:
        try:
            link = socket.create_connection((host, port), timeout=10)
        except OSError as error:
            _log.info("process 0 is not at %s:%d: %s", host, port, error)
            continue
        link.settimeout(None)
        link.sendall(_encode_number(process))
        return link
    _log.warning(
        "process 0 does not answer at %s: a process that dies is noticed by jax.distributed alone, "
        "later",
        " or ".join(f"{host}:{port}" for host in hosts),
    )
    return None


class LivenessWatch:
    """A thread that watches the connections to other processes.

    Args:
      ended: gets the number of a process that died, and ends this one.
      links: number of a process -> the connection to it.
      server: process 0's socket, to which the others connect.
    """

    def __init__(
        self,
        ended: Callable[[int], None],
        links: dict[int, socket.socket],
        server: socket.socket | None = None,
    ):
        self._ended, self._links = ended, {link: number for number, link in links.items()}
        self._selector = selectors.DefaultSelector()
        self._leaving = False
        for link in links.values():
            self._watch(link)
        if server is not None:
            self._selector.register(server, selectors.EVENT_READ, "server")
        threading.Thread(target=self._run, name="liveness", daemon=True).start()
        atexit.register(self.goodbye)
        self._outlive_abort()

    def goodbye(self) -> None:
        """Ends the watch: from now on this process and the others may end."""
        self._leaving = True
        self._tell(_GOODBYE)

    def _outlive_abort(self) -> None:
        """Makes abort() wait for the thread.

        jax.distributed aborts from a thread of its own as soon as process 0 is gone, a moment
        before or after the thread here hears of it. Python's own handlers would run too late.
        """
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: time.sleep(5))
        libc = ctypes.CDLL(None)
        libc.signal.argtypes, libc.signal.restype = [ctypes.c_int, ctypes.c_void_p], ctypes.c_void_p
        libc.signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))

    def _watch(self, link: socket.socket) -> None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):  # Linux has these options
            for option, value in (
                (socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS // 2),
                (socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS // 4),
                (socket.TCP_KEEPCNT, 2),
            ):
                link.setsockopt(socket.IPPROTO_TCP, option, value)
        self._selector.register(link, selectors.EVENT_READ, "link")

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                registered = cast(socket.socket, key.fileobj)  # only sockets are registered
                if key.data == "server":
                    link, _ = registered.accept()
                    number = _receive(link)
                    if number is not None:
                        self._links[link] = number
                        self._watch(link)
                else:
                    self._hear(registered)

    def _hear(self, link: socket.socket) -> None:
        dead = _receive(link)
        if dead == _GOODBYE:
            self._drop(link)
            return
        lost = dead is None  # the connection ended without a goodbye
        if lost:
            dead = self._drop(link)
        if self._leaving:
            return
        if lost:
            self._tell(dead)
        self._ended(dead)

    def _drop(self, link: socket.socket) -> int:
        """Closes a link and returns the number of the process behind it."""
        self._selector.unregister(link)
        link.close()
        return self._links.pop(link)

    def _tell(self, number: int) -> None:
        for link in list(self._links):
            try:
                link.sendall(_encode_number(number))
            except OSError:  # that process died too
                _log.debug("process %d does not listen any more", self._links.get(link))


def _encode_number(number: int) -> bytes:
    return number.to_bytes(4, "big")


def _receive(link: socket.socket) -> int | None:
    """Receives a number; None if the connection has ended."""
    try:
        data = link.recv(4, socket.MSG_WAITALL)
    except OSError:
        return None
    return int.from_bytes(data, "big") if len(data) == 4 else None
