"""Fixtures that every test package may use."""

import os
import pathlib

import pytest


@pytest.fixture(scope="session")
def shared_data():
    """The folder of shared checkpoints and data: NSPO_SHARED_DATA, or ../shared/data."""
    given = os.environ.get("NSPO_SHARED_DATA")
    folder = given or pathlib.Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}: set NSPO_SHARED_DATA to run this test")
    return folder


def pytest_collection_modifyitems(items):
    """The slowest file first: else one of two workers has it left when the other is done."""
    items.sort(key=lambda item: item.path.name != "test_distributed.py")
