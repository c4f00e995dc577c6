"""Fixtures of the rewards' tests."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def no_proxy():
    """The servers of these tests are on loopback, whatever proxy the environment has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("no_proxy", "127.0.0.1")
        yield
