"""The client of a judge behind an OpenAI-compatible API: it outlives what a server may do.

What went wrong is one of three things:
  - nobody was there or had time (no connection; 429, 502, 503, 504): waited for;
  - the answer was bad (another 5xx, 408, 409, half a body, no JSON, too slow): asked again, a
    bounded number of times as long as the judge answers other questions;
  - the request was (any other status): raised at once, since asking again changes nothing.
When nothing at all has succeeded for `down_after` seconds the judge is down: `JudgeDownError`.

A batch of questions runs in an event loop of its own, in the thread that asks: nothing is left
behind between batches, neither thread nor socket. The price is a new connection a batch.
"""

import asyncio
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import json
import logging
import os
import random
import threading
import time

import httpx2

from nspo_jax.rewards import chat_response, reward

WARN_SHARE = 0.05  # of down_after: a judge that fails for less is not worth a line in the log
_log = logging.getLogger(__name__)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request as INFO

Messages = list[dict[str, str]]


class JudgeDownError(reward.JudgeError):
    """Nothing has succeeded for too long."""


class JudgeBudgetError(reward.JudgeError):
    """All requests that were allowed are spent."""


class JudgeRequestError(reward.JudgeError):
    """The server refuses the request itself: a wrong model name, key, url or question."""


class JudgeClosedError(reward.JudgeError):
    """The client was closed, possibly while it was asking."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """What came of a question.

    Attributes:
      text: the accepted answer; None if there is none.
      requests: HTTP requests sent for it.
      seconds: from the first request to the last answer, waits included.
    """

    text: str | None
    requests: int
    seconds: float


class JudgeClient:
    """Asks a chat model questions, many at once; safe to share between threads.

    Batches of several threads take turns, so that the bounds hold for all together.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        api_key_env: str | None = None,
        max_tokens: int = 64,
        seed: int = 0,
        asks: int = 2,
        concurrency: int = 16,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 1.0,
        longest_backoff: float = 30.0,
        down_after: float = 300.0,
        budget: int | None = None,
    ):
        """Does not connect yet.

        Args:
          base_url: what comes before "/chat/completions": "http://localhost:8000/v1".
          model: as the server calls it.
          api_key_env: the environment variable that holds the API key; None: the server wants none.
          max_tokens: of an answer, thoughts included. The temperature is 0.
          seed: sent along with every question.
          asks: how often a question is asked until its answer is accepted, with seed, seed + 1, ...
            At temperature 0 it helps only with a server whose answers differ all the same.
          concurrency: requests in flight, at most.
          timeout: seconds for a request from its sending to the last byte of its answer.
          retries: bad answers that are put up with, a question, after the first.
          backoff: seconds before the first retry, on average half of it; doubles with every retry.
          longest_backoff: where it stops doubling; also the longest Retry-After that is obeyed.
          down_after: seconds without any success, while requests fail, after which to give up; more
            than `timeout`, or a judge that is slow counts as down.
          budget: HTTP requests in this client's life, failed ones included; None: no limit.

        Raises:
          ValueError: for an argument out of its range, or an API key that is not there.
        """
        _check_url(base_url)
        for name, value, least in (
            ("max_tokens", max_tokens, 1),
            ("asks", asks, 1),
            ("concurrency", concurrency, 1),
            ("retries", retries, 0),
            ("budget", budget, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}.")
        for name, value in (
            ("timeout", timeout),
            ("backoff", backoff),
            ("longest_backoff", longest_backoff),
            ("down_after", down_after),
        ):
            if not value > 0:
                raise ValueError(f"{name} must be above 0 seconds, not {value}.")
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._model = model
        self._key = _read_key(api_key_env)
        self._tls = httpx2.create_ssl_context()  # takes 30 ms: once, not a batch
        self._max_tokens, self._seed, self._asks = max_tokens, seed, asks
        self._concurrency, self._timeout, self._retries = concurrency, timeout, retries
        self._backoff, self._longest_backoff = backoff, longest_backoff
        self._down_after, self._budget = down_after, budget
        self._sent = 0
        self._turn = threading.Lock()
        self._closed = False
        self._asking: tuple[asyncio.AbstractEventLoop, asyncio.Task] | None = None
        self._succeeded = 0.0  # when the last request that did was sent, on the monotonic clock
        self._failing_since: float | None = None
        self._warned = False

    def body(self, messages: Messages, ask: int = 0) -> str:
        """What is sent, as JSON: it says all that an answer depends on, except for the server."""
        return json.dumps(
            {
                "model": self._model,
                "messages": messages,
                "temperature": 0,
                "max_tokens": self._max_tokens,
                "seed": self._seed + ask,
            }
        )

    def ask(self, questions: Sequence[Messages], accept: Callable[[int, str], bool]) -> list[Reply]:
        """Asks all questions and waits for the answers. Not from inside a running event loop.

        Args:
          questions: the messages of a chat each.
          accept: is told the question's index and an answer's text as soon as it is there; whether
            the answer is one. If not, the question is asked again, up to `asks` times.

        Returns:
          a reply for each question, in order.

        Raises:
          JudgeDownError: if nothing has succeeded for `down_after` seconds.
          JudgeBudgetError: if `budget` is spent.
          JudgeRequestError: if the server refuses a request.
          JudgeClosedError: if `close` was called, before or meanwhile.
        """
        if not questions:
            return []
        with self._turn:
            try:
                return asyncio.run(self._ask_all(questions, accept))
            except asyncio.CancelledError:
                raise JudgeClosedError(f"The judge at {self._url} was closed.") from None

    def close(self) -> None:
        """Ends an `ask` that another thread waits in, and all later ones; from any thread."""
        self._closed = True
        if asking := self._asking:
            loop, task = asking
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself just now
                loop.call_soon_threadsafe(task.cancel)

    async def _ask_all(self, questions, accept) -> list[Reply]:
        self._asking = asyncio.get_running_loop(), asyncio.current_task()
        self._failing_since, self._warned = None, False  # between two batches nothing fails
        free = asyncio.Semaphore(self._concurrency)
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=self._concurrency)
        try:
            if self._closed:
                raise asyncio.CancelledError
            # the timeout is one for all of a request: httpx2's are for each of its reads
            async with (
                httpx2.AsyncClient(
                    headers=headers, limits=limits, timeout=None, verify=self._tls
                ) as http,
                asyncio.TaskGroup() as group,
            ):
                tasks = [
                    group.create_task(self._ask(http, free, index, messages, accept))
                    for index, messages in enumerate(questions)
                ]
            return [task.result() for task in tasks]
        except ExceptionGroup as errors:  # the others were cancelled
            raise errors.exceptions[0] from None
        finally:
            self._asking = None

    async def _ask(self, http, free, index: int, messages: Messages, accept) -> Reply:
        """Asks one question until its answer is accepted or there is no hope."""
        # a place is kept while waiting for a retry: a server in trouble is asked less
        async with free:
            start, requests = time.monotonic(), 0
            for ask in range(self._asks):
                text, sent = await self._complete(http, self.body(messages, ask))
                requests += sent
                if text is None or accept(index, text):
                    break
            else:
                text = None
            return Reply(text, requests, time.monotonic() - start)

    async def _complete(self, http: httpx2.AsyncClient, body: str) -> tuple[str | None, int]:
        """The answer to one body, None if all are bad, and how many requests that took."""
        sent = bad = 0
        first_bad = None
        while True:
            self._spend()
            sent += 1
            start = time.monotonic()
            try:
                text = await self._request(http, body)
            except chat_response.TransientError as error:
                self._note_failure(error)
                if error.bad:
                    bad += 1
                    first_bad = first_bad or time.monotonic()
                    # while it answers nobody, it is the judge that is bad and not this question
                    if bad > self._retries and self._succeeded > first_bad:
                        return None, sent
                await asyncio.sleep(self._delay(sent, error.retry_after))
            else:
                self._note_success(start)
                return text, sent

    async def _request(self, http: httpx2.AsyncClient, body: str) -> str:
        """One request. Raises TransientError, or JudgeRequestError."""
        try:
            async with asyncio.timeout(self._timeout):
                response = await http.post(self._url, content=body)
        except TimeoutError:
            raise chat_response.TransientError(
                f"no whole answer in {self._timeout:g} seconds"
            ) from None
        except httpx2.RequestError as error:
            said = f"{type(error).__name__}: {error}"
            nobody = isinstance(error, httpx2.ConnectError)
            raise chat_response.TransientError(said, bad=not nobody) from error
        if response.is_success or chat_response.is_transient(response):
            return chat_response.read(response)
        said = self._without_key(chat_response.error_text(response))
        raise JudgeRequestError(
            f"{self._url} refuses to judge (status {response.status_code}): {said!r}. "
            f"{self._hint(response.status_code)}"
        )

    def _without_key(self, said: str) -> str:
        """What a server said, which may repeat the key that it was sent."""
        return said.replace(self._key, "[the key]") if self._key else said

    def _hint(self, status: int) -> str:
        if status in (401, 403):
            return "Check the API key: api_key_env names the variable that holds it."
        if status == 404 or status < 400:
            return f"Check base_url, and that the server has a model named {self._model!r}."
        return f"Check the model name {self._model!r}, max_tokens and the length of the question."

    def _spend(self) -> None:
        if self._budget is not None and self._sent >= self._budget:
            raise JudgeBudgetError(
                f"The judge at {self._url} was sent {self._sent} requests, and budget is "
                f"{self._budget}: raise it to go on; what was answered is kept."
            )
        self._sent += 1

    def _delay(self, failures: int, retry_after: float) -> float:
        """Seconds to wait: exponential with full jitter, on top of what the server asks for."""
        ceiling = min(self._backoff * 2.0 ** min(failures - 1, 30), self._longest_backoff)
        return min(retry_after, self._longest_backoff) + random.uniform(0, ceiling)

    def _note_success(self, start: float) -> None:
        """Notes that a request succeeded that was sent at `start`."""
        self._succeeded = max(self._succeeded, start)
        if self._warned:
            lasted = time.monotonic() - self._failing_since
            _log.warning("The judge at %s is back after %.0f seconds.", self._url, lasted)
        self._failing_since, self._warned = None, False

    def _note_failure(self, error: Exception) -> None:
        """Raises JudgeDownError if nothing but failures has been for too long."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        lasted, said = now - self._failing_since, self._without_key(str(error))
        if lasted >= self._down_after:
            raise JudgeDownError(
                f"The judge at {self._url} is down: nothing has succeeded for {lasted:.0f} seconds "
                f"(down_after is {self._down_after:g}). The last error: {said}. What was answered "
                "is kept; start again when it is up."
            )
        if lasted >= WARN_SHARE * self._down_after and not self._warned:
            self._warned = True
            _log.warning(
                "The judge at %s has answered nothing for %.0f seconds, and is given %.0f: %s",
                self._url,
                lasted,
                self._down_after,
                said,
            )


def _check_url(base_url: str) -> None:
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"base_url must be like http://host:port/v1: {error}.") from None
    if url.scheme not in ("http", "https") or not url.host or url.query:
        raise ValueError(f"base_url must be like http://host:port/v1, not {base_url!r}.")
    if url.userinfo:  # not shown: it may be the key
        raise ValueError(
            f"base_url must have no user or password before {url.host}: api_key_env names the "
            "environment variable that holds the API key."
        )


def _read_key(variable: str | None) -> str | None:
    """The API key in an environment variable. Raises ValueError, which never shows it."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ValueError(f"api_key_env is {variable!r}, and no such environment variable is set.")
    # httpx2 would show the header that it refuses
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"The API key in {variable} has white space or odd characters in it.")
    return key
