"""The examples in docstrings are true."""

import doctest

import pytest

from nspo_jax.nullspace import (
    calibration,
    coordinates,
    moments,
    projection,
    rank_rules,
    special_sites,
)

MODULES = (calibration, coordinates, moments, projection, rank_rules, special_sites)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.split(".")[-1])
def test_docstrings_run(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
