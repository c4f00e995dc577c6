"""The client of a judge behind an OpenAI-compatible API, which survives a server's failures.

There are three kinds of failure:
  - no server was there or had time (no connection; 429, 502, 503, 504): the client waits;
  - the answer was bad (another 5xx, 408, 409, half a body, no JSON, too slow): the client asks
    again, a bounded number of times;
  - the server refused the request (any other status): asking again changes nothing.
Refusals (400, 413, 422) and endless bad answers may be the question's fault or the judge's. It is
the question's, which then has no answer, if the judge answers another question or, where there is
none, a probe: a harmless question of the client's own. A judge that refuses the probe too means an
error of the user, `JudgeRequestError`; every other refusal (401, 403, 404) means one at once. If no
request has succeeded for `down_after` seconds the judge is down: `JudgeDownError`.

A batch of questions runs in an event loop of its own, in the calling thread: between batches no
thread and no socket remains. The price is a new connection a batch.
"""

import asyncio
from collections.abc import Callable, Sequence
import contextlib
import dataclasses
import json
import logging
import math
import random
import threading
import time

import httpx2

from nspo_jax.rewards import chat_response, judge_address, reward

PROBE = [{"role": "user", "content": "This is a test. Reply with one word: hello."}]
WARN_SHARE = 0.05  # a failure is logged once it has lasted this share of down_after
_log = logging.getLogger(__name__)
logging.getLogger("httpx2").setLevel(logging.WARNING)  # httpx2 logs every request as INFO

Messages = list[dict[str, str]]


class JudgeDownError(reward.JudgeError):
    """No request has succeeded for too long."""


class JudgeBudgetError(reward.JudgeError):
    """All requests that were allowed are spent."""


class JudgeRequestError(reward.JudgeError):
    """The server refuses the request itself: a wrong model name, key, url or setting."""


class JudgeClosedError(reward.JudgeError):
    """The client was closed, possibly while it was asking."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """The result of a question.

    Attributes:
      text: the accepted answer; None if there is none.
      requests: HTTP requests sent for it, probes included.
      seconds: time from the first request to the last answer, waits included.
    """

    text: str | None
    requests: int
    seconds: float


class JudgeClient:
    """A client that asks a chat model many questions at once; threads may share it.

    Batches of several threads take turns, so that the bounds hold for all together. Errors name the
    fields of the config that the arguments come from.
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
          base_url: the url without "/chat/completions", such as "http://localhost:8000/v1".
          model: the server's name of the model.
          api_key_env: the environment variable that holds the API key; None: the server needs none.
          max_tokens: tokens of an answer, thoughts included. The temperature is 0.
          seed: the seed that is sent with every question.
          asks: the most times that a question is asked until its answer is accepted, with seed,
            seed + 1, ... At temperature 0 more than one helps only if the server's answers differ.
          concurrency: the most requests in flight.
          timeout: seconds for a request from its sending to the last byte of its answer.
          retries: bad answers that a question may get after the first; fewer if they take longer
            than `down_after`.
          backoff: the longest wait before the first retry, in seconds; the mean is half of it, and
            it doubles with every retry.
          longest_backoff: the limit of the doubling, and the longest Retry-After that is obeyed.
          down_after: seconds of failures without a success after which the client gives up; keep it
            above `timeout`, or a slow judge counts as down.
          budget: HTTP requests in this client's life, failed ones and probes included; None: no
            limit.

        Raises:
          ValueError: for an argument out of its range, or a missing API key.
        """
        judge_address.check_url(base_url)
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
        self._key = judge_address.read_key(api_key_env)
        self._tls = httpx2.create_ssl_context()  # it takes 30 ms, too long for every batch
        self._max_tokens, self._seed, self._asks = max_tokens, seed, asks
        self._concurrency, self._timeout, self._retries = concurrency, timeout, retries
        self._backoff, self._longest_backoff = backoff, longest_backoff
        self._down_after, self._budget = down_after, budget
        self._sent = 0
        self._turn = threading.Lock()
        self._closed = False
        self._asking: tuple[asyncio.AbstractEventLoop, asyncio.Task | None] | None = None
        self._probe = self.body(PROBE)  # the probe differs from a question in its text alone
        self._began = 0.0  # the batch's start, on the monotonic clock
        self._succeeded = 0.0  # the sending of the last request that succeeded, on that clock
        self._given_up: list[str] = []  # the last faults of this batch's unanswered questions
        self._failing_since: float | None = None
        self._warned = False

    def body(self, messages: Messages, ask: int = 0) -> str:
        """Writes a request as JSON: it holds all that an answer depends on, except the server."""
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
        """Asks all questions and waits for the answers; no running event loop may call it.

        Args:
          questions: the messages of a chat each.
          accept: gets the question's index and an answer's text as soon as it arrives, and tells
            whether it accepts the answer. If not, the question is asked again, up to `asks` times.

        Returns:
          A reply for each question, in order. Questions that the judge cannot take are logged.

        Raises:
          JudgeDownError: if no request has succeeded for `down_after` seconds, the probe included.
          JudgeBudgetError: if `budget` is spent.
          JudgeRequestError: if the server refuses all requests, the probe included.
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
        """Ends an `ask` that another thread waits in, and all later ones; any thread may call."""
        self._closed = True
        loop, task = self._asking or (None, None)
        if loop is not None and task is not None:
            with contextlib.suppress(RuntimeError):  # the loop may just have ended by itself
                loop.call_soon_threadsafe(task.cancel)

    async def _ask_all(self, questions, accept) -> list[Reply]:
        self._asking = asyncio.get_running_loop(), asyncio.current_task()
        self._failing_since, self._warned = None, False  # between two batches nothing fails
        self._began, self._given_up = time.monotonic(), []
        free = asyncio.Semaphore(self._concurrency)
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=self._concurrency)
        try:
            if self._closed:
                raise asyncio.CancelledError
            # our timeout covers a whole request; httpx2's cover each of its reads
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
        except ExceptionGroup as errors:  # the other tasks were cancelled
            raise errors.exceptions[0] from None
        finally:
            self._asking = None
            if self._given_up:
                _log.warning(
                    "The judge at %s answers other questions, but not %d of this batch of %d: they "
                    "have no verdict. To the last of them it said: %s",
                    self._url,
                    len(self._given_up),
                    len(questions),
                    self._given_up[-1],
                )

    async def _ask(self, http, free, index: int, messages: Messages, accept) -> Reply:
        """Asks one question until its answer is accepted or there is no hope."""
        # a waiting retry keeps its place, so that a server in trouble gets fewer requests
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
        """Returns the answer to one body, None if it alone has none, and the number of requests."""
        sent = bad = 0
        hopeless = False
        since = math.inf  # the question is to blame if a request sent after this time succeeds
        while True:
            probing = hopeless and self._succeeded <= since
            self._spend()
            sent += 1
            start = time.monotonic()
            try:
                text = await self._request(http, self._probe if probing else body)
            except chat_response.RefusedError as error:
                if probing or not error.of_question:
                    raise self._refusal(error) from None
                # answers to earlier batches do not count: the server may have changed its mind
                fault, wait, hopeless, since = str(error), 0.0, True, self._began
            except chat_response.TransientError as error:
                overdue = self._note_failure(error)
                fault, wait = None, self._delay(sent, error.retry_after)
                if error.bad and not probing:
                    fault, bad, since = str(error), bad + 1, min(since, time.monotonic())
                    hopeless = hopeless or overdue or bad > self._retries
                    wait = 0.0 if overdue else wait  # the probe decides
                elif overdue:
                    raise self._down(error) from None
            else:
                self._note_success(start)
                if not probing:
                    return text, sent
                fault, wait = None, 0.0  # ask again: the judge may have failed, and works now
            if fault and hopeless and self._succeeded > since:
                self._given_up.append(fault)
                return None, sent
            await asyncio.sleep(wait)

    async def _request(self, http: httpx2.AsyncClient, body: str) -> str:
        """Sends one request; raises TransientError or RefusedError."""
        try:
            async with asyncio.timeout(self._timeout):
                response = await http.post(self._url, content=body)
        except TimeoutError:
            raise chat_response.TransientError(
                f"no whole answer in {self._timeout:g} seconds"
            ) from None
        except httpx2.RequestError as error:
            said = chat_response.shorten(f"{type(error).__name__}: {error}", self._without_key)
            nobody = isinstance(error, httpx2.ConnectError)
            # from None, because a traceback would show the message with its secrets
            raise chat_response.TransientError(said, bad=not nobody) from None
        return chat_response.read(response, self._without_key)

    def _without_key(self, said: str) -> str:
        """Removes the key from a server's message, which may repeat it plainly or quoted."""
        if not self._key:
            return said
        # the longest form comes first, as it may hold the others
        forms = {self._key, json.dumps(self._key)[1:-1], repr(self._key)[1:-1]}
        for form in sorted(forms, key=len, reverse=True):
            said = said.replace(form, "[the key]")
        return said

    def _refusal(self, error: chat_response.RefusedError) -> JudgeRequestError:
        every = "refuses even a harmless question" if error.of_question else "refuses to judge"
        if error.status in (401, 403):
            hint = "the API key: rewards.judge.api_key_env names the variable that holds it"
        elif error.of_question:
            hint = f"rewards.judge.model, which is {self._model!r}, and rewards.judge.max_tokens"
        else:
            hint = f"rewards.judge.url, and that the server has a model named {self._model!r}"
        return JudgeRequestError(
            f"The judge at {self._url} {every}. It said: {error}. Check {hint}."
        )

    def _spend(self) -> None:
        if self._budget is not None and self._sent >= self._budget:
            raise JudgeBudgetError(
                f"The judge at {self._url} was sent {self._sent} requests, and "
                f"rewards.judge.budget is {self._budget}. What was answered is kept: the same "
                "command continues the run, with as many requests again, or as many as you set "
                "(-1: no limit)."
            )
        self._sent += 1

    def _delay(self, failures: int, retry_after: float) -> float:
        """Returns the seconds to wait: the server's Retry-After, plus exponential full jitter."""
        ceiling = min(self._backoff * 2.0 ** min(failures - 1, 30), self._longest_backoff)
        return min(retry_after, self._longest_backoff) + random.uniform(0, ceiling)

    def _note_success(self, start: float) -> None:
        """Notes the success of a request that was sent at `start`."""
        self._succeeded = max(self._succeeded, start)
        if self._warned and self._failing_since is not None:
            lasted = time.monotonic() - self._failing_since
            _log.warning("The judge at %s is back after %.0f seconds.", self._url, lasted)
        self._failing_since, self._warned = None, False

    def _note_failure(self, error: chat_response.TransientError) -> bool:
        """Notes a failure, and tells whether requests have only failed for `down_after` seconds."""
        now = time.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        lasted = now - self._failing_since
        if lasted >= WARN_SHARE * self._down_after and not self._warned:
            self._warned = True
            _log.warning(
                "The judge at %s has answered nothing for %.0f seconds, and is given %.0f: %s",
                self._url,
                lasted,
                self._down_after,
                error,
            )
        return lasted >= self._down_after

    def _down(self, error: chat_response.TransientError) -> JudgeDownError:
        lasted = time.monotonic() - (self._failing_since or self._began)
        return JudgeDownError(
            f"The judge at {self._url} is down: nothing has succeeded for {lasted:.0f} seconds, "
            f"and rewards.judge.down_after is {self._down_after:g} seconds. The last error: "
            f"{error}. Check that the server runs and that rewards.judge.url is right. What was "
            "answered is kept: once the judge is up, the same command continues the run."
        )
