"""How a chat completion is read from an HTTP response that may be anything."""

import json

import httpx2

_BUSY = (429, 502, 503, 504)  # nobody had time, or a gateway found nobody


class TransientError(Exception):
    """A request that may succeed when it is sent again.

    Attributes:
      bad: whether the server answered badly; otherwise nobody was there or had time.
      retry_after: seconds that the server asks to wait, 0 where it asks for nothing.
    """

    def __init__(self, said: str, *, bad: bool = True, retry_after: float = 0.0):
        super().__init__(said)
        self.bad = bad
        self.retry_after = retry_after


def is_transient(response: httpx2.Response) -> bool:
    """Whether a status says that the same request may succeed later."""
    return response.status_code >= 500 or response.status_code in (408, 409, 429)


def read(response: httpx2.Response) -> str:
    """The text of the first choice, "" where the model wrote none (null: all of it was thoughts).

    Raises:
      TransientError: for a transient status, and for a body that is no chat completion.
    """
    if not response.is_success:
        raise TransientError(
            f"status {response.status_code}: {error_text(response)!r}",
            bad=response.status_code not in _BUSY,
            retry_after=_retry_after(response),
        )
    try:
        text = response.json()["choices"][0]["message"]["content"]
    except (ValueError, RecursionError):
        raise TransientError(f"not JSON: {response.text[:200]!r}") from None
    except (KeyError, IndexError, TypeError):
        raise TransientError(f"not a chat completion: {response.text[:200]!r}") from None
    if not isinstance(text, str | None):
        raise TransientError(f"not a chat completion: {response.text[:200]!r}")
    return text or ""


def error_text(response: httpx2.Response) -> str:
    """What a server says of an error, at most 500 characters: OpenAI's form, FastAPI's, or all."""
    try:
        said = json.loads(response.content)
        said = said.get("error") or said.get("detail") or said
        said = said.get("message") or said if isinstance(said, dict) else said
    except (ValueError, RecursionError, AttributeError):
        said = response.text
    return str(said)[:500]


def _retry_after(response: httpx2.Response) -> float:
    """Retry-After in seconds; its other form, a date, is rare and counts as none."""
    value = response.headers.get("retry-after", "")
    return float(value) if value.isascii() and value.isdigit() else 0.0
