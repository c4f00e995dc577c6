"""The examples in docstrings are true, and every public name has one that stands alone."""

import doctest
import importlib
import inspect
import pathlib

import pytest

import nspo_jax

PACKAGE = pathlib.Path(nspo_jax.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if ">>> " in path.read_text()
)
ITEMS = [getattr(nspo_jax, name) for name in nspo_jax.__all__]
PUBLIC = {f"{item.__module__}.{item.__name__}" for item in ITEMS}
OTHERS = [
    example
    for name in MODULES
    for example in doctest.DocTestFinder().find(importlib.import_module(name))
    if example.examples and example.name not in PUBLIC
]


@pytest.mark.parametrize("name", nspo_jax.__all__)
def test_a_public_name_has_an_example_that_a_reader_can_paste(name):
    """With nothing imported but what the example imports."""
    text = inspect.getdoc(getattr(nspo_jax, name))
    assert "\nExamples:\n" in text
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, 0)
    assert any(f"nspo_jax.{name}" in part.source for part in example.examples)
    assert any(part.want for part in example.examples)
    found = doctest.DocTestRunner().run(example)
    assert found.failed == 0 and found.attempted == len(example.examples)


@pytest.mark.parametrize("example", OTHERS, ids=lambda example: example.name)
def test_the_other_examples_run_in_their_module(example):
    found = doctest.DocTestRunner().run(example)
    assert found.failed == 0 and found.attempted == len(example.examples)


def test_there_are_examples_to_run():
    assert len(nspo_jax.__all__) > 10 and len(PUBLIC) == len(nspo_jax.__all__)
    assert "nspo_jax.nullspace.coordinates.nearest_basis" in {e.name for e in OTHERS}
