"""The style sheet of CONTRIBUTING.md, as far as a parser can tell."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# folders, and the files of a folder without those of its subfolders ("nspo_jax/*.py")
FOLDERS = (
    "nspo_jax/*.py",
    "nspo_jax/data",
    "nspo_jax/dry_run",
    "nspo_jax/evaluation",
    "nspo_jax/models",
    "nspo_jax/nullspace",
    "nspo_jax/reports",
    "nspo_jax/reward_models",
    "nspo_jax/rewards",
    "nspo_jax/rl",
    "nspo_jax/settings",
    "nspo_jax/tasks",
    "configs",
    "scripts",
)
CLAUSES = {"how", "of", "that", "what", "when", "where", "whether", "which", "who", "whose"}
NO_VERB = {"nspo_jax/rl/losses.py: kl_estimate"}  # a page that is as good as it can be
LONGEST_MODULE, LONGEST_FUNCTION = 400, 120
LONG = {"nspo_jax/rl/trainer.py: train", "nspo_jax/rl/trainer.py: _run"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources(folder):
    """The Python files of an entry of FOLDERS."""
    found = ROOT.glob(folder) if folder.endswith(".py") else (ROOT / folder).rglob("*.py")
    return sorted(found)


def nodes(paths, kinds):
    """(name for messages, node) of every node of these kinds."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, kinds):
                name = getattr(node, "name", "the module")
                yield f"{path.relative_to(ROOT).as_posix()}: {name}", node


def first_word(docstring):
    return docstring.split()[0].rstrip(",;:.")


def is_property(node):
    names = {ast.unparse(made) for made in node.decorator_list}
    return bool(names & {"property", "functools.cached_property"})


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_docstring_is_a_clause(folder):
    paths = sources(folder)
    assert paths
    documented = [
        (name, text)
        for name, node in nodes(paths, (ast.Module, ast.ClassDef, *FUNCTIONS))
        if (text := ast.get_docstring(node))
    ]
    assert documented
    assert not [name for name, text in documented if first_word(text).lower() in CLAUSES]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_function_s_docstring_begins_with_a_verb_in_the_third_person(folder):
    odd = [
        name
        for name, node in nodes(sources(folder), FUNCTIONS)
        if (text := ast.get_docstring(node)) and not is_property(node)
        and not first_word(text).endswith("s")
    ]  # fmt: skip
    assert {*odd} <= NO_VERB


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_class_s_docstring_begins_with_a_noun(folder):
    verbs = {"Asks", "Builds", "Counts", "Does", "Draws", "Judges", "Makes", "Returns", "Samples",
             "Saves", "Tells", "Traces", "Watches", "Writes"}  # fmt: skip
    found = nodes(sources(folder), ast.ClassDef)
    assert not [
        name
        for name, node in found
        if (text := ast.get_docstring(node)) and first_word(text) in verbs
    ]


def test_modules_and_functions_fit_on_a_reader_s_desk():
    paths = sources("nspo_jax")
    assert len(paths) > 100
    lengths = {path: len(path.read_text().splitlines()) for path in paths}
    assert not [path for path, length in lengths.items() if length > LONGEST_MODULE]
    long = {
        name
        for name, node in nodes(paths, FUNCTIONS)
        if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    }
    assert long <= LONG
