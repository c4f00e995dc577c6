"""A server on loopback that misbehaves on request, in front of another one or of a function."""

from collections.abc import Callable, Iterable
import http.server
import itertools
import json
import socket
import struct
import threading
import time

import httpx2

CHAT = "/v1/chat/completions"


def chat_reply(text):
    """The body of a chat completion, as OpenAI spells it."""
    message = {"role": "assistant", "content": text}
    choices = [{"index": 0, "finish_reason": "stop", "message": message}]
    return 200, json.dumps({"object": "chat.completion", "choices": choices}).encode()


def forward_to(url: str) -> Callable[[dict], tuple[int, bytes]]:
    """Answers as another server does: `url` is its base, without the path."""

    def answer(body):
        response = httpx2.post(f"{url}{CHAT}", json=body, timeout=60)
        return response.status_code, response.content

    return answer


def status(code, body=b'{"error": {"message": "injected"}}', **headers):
    """A fault: answers with a status and a body of its own."""

    def fault(handler, answer):
        handler.reply(code, body, {name.replace("_", "-"): v for name, v in headers.items()})

    return fault


def garbage(handler, answer):
    """A fault: a successful answer that is no JSON."""
    handler.reply(200, b"\x00\xff<html>it works!</html>")


def wrong_schema(handler, answer):
    """A fault: JSON, but no chat completion."""
    handler.reply(200, b'{"choices": []}')


def half_body(handler, answer):
    """A fault: Content-Length promises more than comes."""
    _, body = answer()
    handler.reply(200, body[: len(body) // 2], {"Content-Length": str(len(body))})
    handler.close_connection = True


def half_chunks(handler, answer):
    """A fault: a chunked body without its end, cut where what came is whole JSON."""
    _, body = answer()
    handler.reply(200, b"%x\r\n%s\r\n" % (len(body), body), {"Transfer-Encoding": "chunked"})
    handler.close_connection = True


def reset(handler, answer):
    """A fault: the connection is reset before anything is said."""
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.close_connection = True


def trickle(handler, answer):
    """A fault: a byte at a time, for ever; no single read takes long."""
    handler.reply(200, b"", {"Content-Length": "1000000"})
    while not handler.server.ending.wait(0.01):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def slow(seconds):
    """A fault: the right answer, late."""

    def fault(handler, answer):
        code, body = answer()
        handler.server.ending.wait(seconds)
        handler.reply(code, body)

    return fault


class FaultProxy:
    """Serves chat completions at `url`; each request takes the next fault, None: no fault.

    Attributes:
      requests: the bodies received, in order, refused ones included.
      headers: their headers.
      busiest: how many requests were in work at the same time, at most.
    """

    def __init__(self, answer: Callable[[dict], tuple[int, bytes]], faults: Iterable = ()):
        self._answer = answer
        self._faults = iter(faults)
        self._lock = threading.Lock()
        self._busy = 0
        self._port = 0
        self._server = None
        self.requests, self.headers, self.busiest = [], [], 0
        self.up()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._server is not None:
            self.down()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}/v1"

    def up(self):
        """Starts to listen, at the same port each time."""
        self._server = _Server(("127.0.0.1", self._port), _Handler)
        self._server.proxy, self._server.ending = self, threading.Event()
        self._port = self._server.server_address[1]
        threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def down(self):
        """Refuses connections, and cuts those that are open."""
        self._server.ending.set()
        self._server.shutdown()
        self._server.server_close()
        self._server.cut()
        self._server = None

    def down_for(self, seconds):
        """Goes down and comes back, while the caller goes on."""
        self.down()
        threading.Timer(seconds, self.up).start()

    def always(self, fault, after=0):
        """Every request takes this fault, once so many have taken none."""
        self._faults = itertools.chain([None] * after, itertools.repeat(fault))

    @property
    def is_up(self):
        return self._server is not None

    def connections(self):
        """How many are open."""
        return len(self._server.open)

    def handle(self, handler, body):
        with self._lock:
            self.requests.append(body)
            self.headers.append(dict(handler.headers))
            self._busy += 1
            self.busiest = max(self.busiest, self._busy)
            fault = next(self._faults, None)
        try:
            if fault is None:
                handler.reply(*self._answer(body))
            else:
                fault(handler, lambda: self._answer(body))
        finally:
            with self._lock:
                self._busy -= 1


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *args):
        self.open = set()
        super().__init__(*args)

    def process_request(self, request, address):
        self.open.add(request)
        super().process_request(request, address)

    def shutdown_request(self, request):
        self.open.discard(request)
        request.close()  # without a farewell: `reset` wants none

    def cut(self):
        for connection in list(self.open):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed meanwhile
                continue

    def handle_error(self, request, address):
        """Clients that hang up are what this server is for."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept, as real servers do

    def do_POST(self):  # noqa: N802
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.proxy.handle(self, body)

    def reply(self, code, body, headers=()):
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            if not (name == "Content-Length" and "Transfer-Encoding" in dict(headers)):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


def wait_until(condition, seconds=10.0):
    """Waits for something that another thread does; fails the test if it does not."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
