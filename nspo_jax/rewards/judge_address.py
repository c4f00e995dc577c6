"""A remote judge's address and API key: both are checked, and the key is never shown."""

import os

import httpx2


def check_url(base_url: str) -> None:
    """Raises ValueError unless a url is like http://host:port/v1; never shows a password in it."""
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"base_url must be like http://host:port/v1: {error}.") from None
    if url.scheme not in ("http", "https") or not url.host or url.query:
        raise ValueError(f"base_url must be like http://host:port/v1, not {base_url!r}.")
    if url.userinfo:  # the error does not show it, as it may be the key
        raise ValueError(
            f"base_url must have no user or password before {url.host}: api_key_env names the "
            "environment variable that holds the API key."
        )


def read_key(variable: str | None) -> str | None:
    """Reads the API key from an environment variable; a ValueError never shows the key."""
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ValueError(f"api_key_env is {variable!r}, and no such environment variable is set.")
    # httpx2 would show the header that it refuses
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"The API key in {variable} has white space or odd characters in it.")
    return key
