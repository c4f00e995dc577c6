"""README.md and docs/ say what is there: links, files, commands, fields, names and snippets."""

import importlib
import os
import pathlib
import re
import shlex
import tomllib

import numpy as np
import pytest

from configs import default
import nspo_jax
from nspo_jax import settings
from nspo_jax.nullspace import spectrum
from nspo_jax.rl import ranges
from scripts import document_config
from tests import command_lines
from tests.command_lines import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
DEFAULTS = settings.flatten(settings.from_config(default.get_config()))
# of a sweep's config: configs/sweeps/tiny_arms.py
SWEEP_FIELDS = {"config", "arms", "model_path", "seeds", "grid"}
# paths under these folders that a page names in running text must exist
FOLDERS = "nspo_jax|configs|scripts|docs|tests|examples"


def blocks(page: pathlib.Path, language: str) -> list[str]:
    """The fenced code blocks of a language, those inside lists included, without their indent."""
    pattern = rf"^( *)```{language}\n(.*?)^\1```"
    found = re.finditer(pattern, page.read_text(), re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{match[1]}", "", match[2], flags=re.MULTILINE) for match in found]


def shell_lines(page: pathlib.Path) -> list[str]:
    """The commands of a page's shell blocks, one a line, without comments."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s+)#.*", "", line).strip() for line in lines) if line]


def prose(page: pathlib.Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page: pathlib.Path) -> list[tuple[str, list[str]]]:
    """(script, arguments) of each `python -m scripts.NAME ...`, in blocks and in running text."""
    lines = [
        line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += [span.replace("\n", " ") for span in re.findall(r"`([^`]+)`", prose(page))]
    found = []
    for line in lines:
        if match := re.search(r'("?)python -m scripts\.(\w+)(.*)', line):
            quote, name, rest = match.groups()
            rest = (
                rest.partition('"')[0] if quote else rest
            )  # COMMAND="python -m scripts.train ..."
            found.append((name, shlex.split(rest, comments=True)))
    return found


COMMANDS = [(page.name, *command) for page in PAGES for command in commands(page)]


SCRIPT = "python -m scripts."
README = [  # (script, arguments): they read the whole command line, config included, and stop
    (name, [*arguments, "--only_check_args"])
    for line in shell_lines(ROOT / "README.md") if line.startswith(SCRIPT)
    for name, *arguments in [shlex.split(line.removeprefix(SCRIPT))]
]  # fmt: skip
WRONG = [("train", [*README[0][1], "--config.rl.stepz=3"]), ("certify", ["--fail_abov=x"])]


@pytest.fixture(scope="module")
def flags_of():
    """Script -> the names of its flags, as its --help lists them."""
    found = {}
    for name in sorted({name for _, name, _ in COMMANDS}):
        answer = command_lines.run(name, "--help")
        assert answer.returncode == 0, answer.stderr
        found[name] = set(
            re.findall(r"^  (?:-\w,)?--(?:\[no\])?(\w+)", answer.stdout, re.MULTILINE)
        )
    return found


def anchors(page: pathlib.Path) -> set[str]:
    """What a link may name behind "#": headings as GitHub spells them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line).strip().lower().replace(" ", "-") for line in headings}


@EVERY_PAGE
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@EVERY_PAGE
def test_every_file_of_the_repository_that_is_named_exists(page):
    text = page.read_text()
    if page.name == "extending.md":  # whose examples are files to be written
        text = re.sub(r"`[\w/]*\b(echo|riddles|ipo)\.py`", "", text)
    text = text.replace("nspo_jax/run.log", "")  # on a pod's worker
    named = re.findall(rf"(?<![\w/.])(?:{FOLDERS})/[\w/]+(?:\.\w+)?", text)
    assert [n for n in named if not (ROOT / n).exists() and "NAME" not in n] == []


@EVERY_PAGE
def test_every_name_of_the_package_exists(page):
    for name in set(re.findall(r"(?<![\w/.])nspo_jax(?:\.\w+)+", page.read_text())):
        parts = name.split(".")
        if parts[-1] in ("py", "egg"):
            continue
        found, path = nspo_jax, parts[0]
        for part in parts[1:]:
            path += f".{part}"
            if not hasattr(found, part):
                importlib.import_module(path)
            found = getattr(found, part)


@pytest.mark.parametrize(("page", "name", "arguments"), COMMANDS)
def test_every_command_names_what_the_script_knows(flags_of, page, name, arguments):
    assert (ROOT / "scripts" / f"{name}.py").exists()
    known_fields = SWEEP_FIELDS if name == "sweep" else ranges.FIELDS
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        flag, _, value = argument[2:].partition("=")
        flag, _, field = flag.partition(".")
        assert flag in flags_of[name] or flag.removeprefix("no") in flags_of[name], argument
        if field:
            assert field in known_fields, argument
            if name != "sweep" and (kind := type(DEFAULTS[field])) is not bool:
                assert ranges.FIELDS[field].holds(kind(value)), argument
        elif flag == "config" and "NAME" not in value:
            assert (ROOT / value.partition(":")[0]).is_file(), value


@EVERY_PAGE
def test_every_field_that_is_named_exists(page):
    sections = sorted({name.partition(".")[0] for name in ranges.FIELDS if "." in name})
    spans = re.findall(r"`(?:config\.)?([a-z_]+(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`", prose(page))
    named = {span for span in spans if span.partition(".")[0] in sections}
    known = {name.rpartition(".")[0] for name in ranges.FIELDS} | set(ranges.FIELDS)
    modules = {f"{path.parent.name}.{path.stem}" for path in (ROOT / "nspo_jax").rglob("*.py")}
    unknown = {n for n in named - known if ".".join(n.split(".")[:2]) not in modules}
    assert not {name for name in unknown if not name.endswith((".py", ".jsonl"))}


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 40
    readme = {name for page, name, _ in COMMANDS if page == "README.md"}
    assert {"train", "calibrate", "evaluate", "certify", "sweep", "export_hf"} <= readme


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    """Beside projectors such as scripts.calibrate writes; both of its optimizers then step."""
    moment = np.diag([4.0, 1.0, 0.0])
    site = nspo_jax.site_from_moment(("w",), moment, "fixed(2)")
    known = spectrum.single(np.diag(moment), trace=5.0, size=3)
    made = nspo_jax.Projectors({"mlp/in": site}, {"mlp/in": known}, {})
    made.save(tmp_path / "runs" / "projectors")
    monkeypatch.chdir(tmp_path)
    (snippet,) = blocks(ROOT / "README.md", "python")
    assert set(re.findall(r"nspo_jax\.(\w+)", snippet)) <= set(nspo_jax.__all__)
    built = re.findall(r"^optimizer = ", snippet, re.MULTILINE)
    assert len(built) == 2
    first, second = snippet[: snippet.rindex("optimizer = ")], snippet
    for part in (first, second):
        names = {}
        exec(compile(part, "README.md", "exec"), names)
        params = {"w": np.ones((3, 2), np.float32)}
        state = names["optimizer"].init(params)
        updates, _ = names["optimizer"].update(params, state, params)
        assert np.abs(updates["w"][:2]).max() == 0 and np.all(updates["w"][2] < 0)


def test_the_shell_of_the_readme_parses():
    *parsed, one, two = [command_lines.run(name, *given) for name, given in README + WRONG]
    assert len(README) >= 9 and one.returncode != 0 and two.returncode != 0
    answered = zip(README, parsed, strict=True)
    assert not [(line, got.stderr) for line, got in answered if got.returncode or got.stdout]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in shell_lines(ROOT / "README.md") if not line.startswith(SCRIPT)]
    for line in lines:
        if line.startswith("./"):
            assert os.access(ROOT / shlex.split(line)[0], os.X_OK), line
        elif extra := re.fullmatch(r'pip install -e "\.\[(\w+)\]"', line):
            assert extra[1] in project["optional-dependencies"], line
        else:
            assert line in ("python3 -m venv .venv", "source .venv/bin/activate"), line


def test_the_readme_is_a_front_door():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) < 200 and len(text.split()) < 1500


def test_the_table_of_fields_is_up_to_date():
    page = document_config.PAGE.read_text()
    behind = "run python -m scripts.document_config"
    assert document_config.insert(page) == page, behind
    assert not [name for name in ranges.FIELDS if f"| `{name}` |" not in page]


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "api.md").read_text()
    assert sorted(re.findall(r"^::: nspo_jax\.(\w+)$", page, re.MULTILINE)) == sorted(
        nspo_jax.__all__
    )


def test_every_page_is_in_the_site_and_in_its_index():
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in PAGES[1:]}
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    index = (ROOT / "docs" / "index.md").read_text()
    assert {page for page in pages if page not in nav} == set()
    assert {page for page in pages - {"index.md"} if f"({page})" not in index} == set()
