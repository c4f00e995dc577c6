"""The files around the code: licence, citation, requirements, workflow. Nothing is installed."""

import ast
import hashlib
import pathlib
import re
import sys
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[1]
# SHA-256 of https://www.apache.org/licenses/LICENSE-2.0.txt
APACHE_2_0 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


@pytest.fixture(scope="module")
def pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def requirements(name):
    """The requirements of a file, without comments, files that it includes, and order."""
    lines = (ROOT / name).read_text().splitlines()
    stripped = (re.sub(r"(^|\s)#.*", "", line).strip() for line in lines)
    return sorted(line for line in stripped if line and not line.startswith("-"))


def licences_of_the_data():
    """The third column of the documentation's table of datasets, wherever it stands."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    text = "\n".join(page.read_text() for page in pages)
    (table,) = re.findall(r"^\| dataset \| what \| licence \|\n((?:\|.*\n)+)", text, re.MULTILINE)
    rows = [line.strip("|").split("|") for line in table.splitlines()[1:]]
    return {row[2].strip() for row in rows}


def version():
    """The literal of nspo_jax/version.py, as setuptools reads it: without importing the package."""
    return ast.literal_eval(ast.parse((ROOT / "nspo_jax/version.py").read_text()).body[-1].value)


def load_yaml(name):
    return yaml.safe_load((ROOT / name).read_text())


def test_core_train_and_gguf_are_the_full_set_with_the_same_bounds(pyproject):
    project = pyproject["project"]
    core, extras = project["dependencies"], project["optional-dependencies"]
    assert sorted(core + extras["train"] + extras["gguf"]) == requirements("requirements.txt")
    assert sorted(extras["test"]) == requirements("requirements-test.txt")
    assert sorted(extras["docs"]) == requirements("requirements-docs.txt")
    assert set(extras["plot"] + extras["judge"]) <= set(extras["train"])
    assert set(extras["fit"]) <= set(extras["test"])
    assert set(extras["wandb"]) <= set(extras["test"])  # the tests use it, and a run may
    assert "-r requirements.txt" in (ROOT / "requirements-test.txt").read_text().splitlines()


def test_the_core_is_what_the_public_names_import(pyproject):
    """Follows the imports from nspo_jax/__init__.py on, by the package's source."""
    found, seen, todo = set(), set(), ["nspo_jax"]
    while todo:
        name = todo.pop()
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.exists():
            continue
        seen.add(name)
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                targets = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            todo += [target for target in targets if target.startswith("nspo_jax")]
            found |= {target.split(".")[0] for target in targets}
    core = {re.match(r"[\w-]+", line)[0] for line in pyproject["project"]["dependencies"]}
    assert found - sys.stdlib_module_names - {"nspo_jax"} == core


def test_there_is_one_version(pyproject):
    assert "version" in pyproject["project"]["dynamic"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "nspo_jax.version.VERSION"
    }
    assert re.fullmatch(r"\d+\.\d+\.\d+", version())
    assert "__version__ = VERSION" in (ROOT / "nspo_jax/__init__.py").read_text()


def test_the_package_says_that_it_is_typed(pyproject):
    assert (ROOT / "nspo_jax/py.typed").is_file()
    assert "py.typed" in pyproject["tool"]["setuptools"]["package-data"]["nspo_jax"]


def test_the_licence_is_apaches_text_unchanged(pyproject):
    assert hashlib.sha256((ROOT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_0
    assert pyproject["project"]["license"] == "Apache-2.0"
    assert all((ROOT / name).is_file() for name in pyproject["project"]["license-files"])


def test_the_notice_names_every_licence_of_the_data_table():
    notice, rows = (ROOT / "NOTICE").read_text(), licences_of_the_data()
    assert {"MIT", "CC BY 4.0"} <= rows
    for licence in rows:
        assert licence in notice


def test_the_citation_is_of_this_version_and_keeps_the_paper_apart():
    citation = load_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == version()
    assert citation["license"] == "Apache-2.0"
    (paper,) = citation["references"]
    assert paper["url"].endswith("2512.11391")
    assert not [author for author in paper["authors"] if author in citation["authors"]]


def test_the_workflow_runs_scripts_that_exist_on_every_tested_python(pyproject):
    workflow = load_yaml(".github/workflows/tests.yml")
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    assert jobs.keys() == {"lint", "types", "docs", "fast", "slow"}
    assert {
        "ruff check .", "ruff format --check .", "basedpyright --level error",
        "mkdocs build --strict", "./scripts/test.sh --fast", "./scripts/test.sh -m slow",
    } <= set(commands)  # fmt: skip
    for script in re.findall(r"\./(\S+)", "\n".join(commands)):
        assert (ROOT / script).stat().st_mode & 0o111, script
    classified = re.findall(r"Python :: (3\.\d+)", "\n".join(pyproject["project"]["classifiers"]))
    for name in ("fast", "slow"):
        assert jobs[name]["strategy"]["matrix"]["python-version"] == classified
    steps = [step for job in jobs.values() for step in job["steps"]]
    cached = [step.get("with", {}).get("cache-dependency-path", "") for step in steps]
    installed = re.findall(r"-r (\S+)", "\n".join(commands))
    for name in " ".join(cached).split() + installed:
        assert (ROOT / name).is_file(), name


def test_the_pre_commit_hooks_are_pinned_and_checked_by_the_linter_of_the_tests():
    repos = load_yaml(".pre-commit-config.yaml")["repos"]
    hooks = {hook["id"] for repo in repos for hook in repo["hooks"]}
    assert {"ruff-check", "ruff-format", "codespell", "check-yaml"} <= hooks
    assert all(re.fullmatch(r"v\d+(\.\d+)+", repo["rev"]) for repo in repos)
