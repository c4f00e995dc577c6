"""A reader of chat completions from HTTP responses that may hold anything."""

from collections.abc import Callable
import json

import httpx2

_LONGEST = 500  # characters of a server's message that are kept
# The question may be too long or filtered; or the model does not exist, for any question.
_OF_QUESTION = (400, 413, 422)
_PASSING = (408, 409, 429)  # these may pass, like all from 500 on
_BUSY = (429, 502, 503, 504)  # the server had no time, or a gateway found no server


class TransientError(Exception):
    """A request that may succeed when it is sent again.

    Attributes:
      bad: True if the server answered badly; otherwise no server was there or had time.
      retry_after: seconds that the server asks to wait, 0 if it does not ask.
    """

    def __init__(self, said: str, *, bad: bool = True, retry_after: float = 0.0):
        super().__init__(said)
        self.bad = bad
        self.retry_after = retry_after


class RefusedError(Exception):
    """A request that the server will not take: sending it again changes nothing.

    Attributes:
      status: the status of the response.
      of_question: True if the question may be the reason; otherwise all requests are refused.
    """

    def __init__(self, said: str, status: int):
        super().__init__(said)
        self.status = status
        self.of_question = status in _OF_QUESTION


def read(response: httpx2.Response, hide: Callable[[str], str]) -> str:
    """Returns the text of the first choice, "" if the model wrote none (null: it only thought).

    Args:
      response: a response of any status.
      hide: removes secrets from a text; every text passes it before an error shows it.

    Raises:
      TransientError: for a status that may pass, and for a success that is no chat completion.
      RefusedError: for any other status.
    """
    status = response.status_code
    if not response.is_success:
        said = f"status {status}: {error_text(response, hide)!r}"
        if status < 500 and status not in _PASSING:
            raise RefusedError(said, status)
        raise TransientError(said, bad=status not in _BUSY, retry_after=_retry_after(response))
    try:
        text = response.json()["choices"][0]["message"]["content"]
        if not isinstance(text, str | None):
            raise TypeError
    except (ValueError, RecursionError):
        raise TransientError(f"not JSON: {error_text(response, hide)!r}") from None
    except (KeyError, IndexError, TypeError):
        said = error_text(response, hide)
        raise TransientError(f"not a chat completion: {said!r}") from None
    return text or ""


def error_text(response: httpx2.Response, hide: Callable[[str], str]) -> str:
    """Returns a server's error message, cut short: OpenAI's form, FastAPI's, or the whole text."""
    try:
        said = json.loads(response.content)
        if isinstance(said, dict):
            said = said.get("error") or said.get("detail") or said
        if isinstance(said, dict):
            said = said.get("message") or said
        said = said if isinstance(said, str) else json.dumps(said)
    except (ValueError, RecursionError):
        said = response.text
    return shorten(said, hide)


def shorten(said: str, hide: Callable[[str], str]) -> str:
    """Hides secrets first and then cuts: a secret across the cut would show in part."""
    return hide(said)[:_LONGEST]


def _retry_after(response: httpx2.Response) -> float:
    """Returns Retry-After in seconds; its other form, a date, is rare and counts as 0."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0
