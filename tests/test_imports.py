"""Who may import whom (the table in the package's design): read from the source, not run."""

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {
    module_name(path): path
    for folder in ("nspo_jax", "configs", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
PACKAGE = [name for name in FILES if name.startswith("nspo_jax")]


def imports(name):
    """The modules that a module's source imports; `from package import module` is the module."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            targets = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {target if target in FILES else node.module for target in targets}
    return found


def inside(module, packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_the_walk_sees_the_package():
    assert {"nspo_jax", "nspo_jax.nullspace.projection", "scripts.train"} <= FILES.keys()
    assert "nspo_jax.rl.batches" in imports("nspo_jax.rl.trainer")
    assert "absl" in imports("scripts.train")


def test_the_projection_stands_alone():
    for name in ("nspo_jax.nullspace.projection", "nspo_jax.nullspace.coordinates"):
        outside = imports(name) - {"nspo_jax.nullspace.projection"}
        roots = {module.split(".")[0] for module in outside}
        assert roots - sys.stdlib_module_names <= {"jax", "numpy", "optax"}, name


@pytest.mark.parametrize(
    ("layer", "allowed"),
    [
        ("models", {"models", "model_files", "sharding"}),
        ("data", {"data", "model_files"}),
        ("nullspace", {"nullspace", "models", "sharding", "version", "artifacts", "ownership"}),
        ("rewards", {"rewards", "data", "models", "model_files", "sharding"}),
        ("model_files", set()),
        ("rl.losses", set()),
        ("rl.advantages", set()),
        ("sharding", set()),
        ("run_directory", {"settings"}),
        ("reports", {"reports", "nullspace", "metrics"}),
        ("settings", {"settings"}),
        ("metrics", {"wandb_run"}),
        ("wandb_run", set()),
        ("checkpoint", set()),
        ("preemption", set()),
        ("distributed", {"liveness"}),
        ("liveness", set()),
        ("files", set()),
        ("progress", set()),
        ("ownership", set()),
        ("artifacts", {"ownership"}),
        ("own_code", set()),
        ("trees", set()),
    ],
)
def test_a_layer_imports_only_what_is_below_it(layer, allowed):
    everybody = {"distributed", "files", "own_code", "progress", "trees"}
    layer, allowed = f"nspo_jax.{layer}", {f"nspo_jax.{name}" for name in allowed | everybody}
    for name in filter(lambda name: inside(name, [layer]), PACKAGE):
        above = {
            module
            for module in imports(name)
            if inside(module, ["nspo_jax"]) and not inside(module, allowed)
        }
        assert not above, f"{name} imports {above}"


def test_only_scripts_and_configs_know_flags():
    for name in PACKAGE:
        source = FILES[name].read_text()
        assert "absl" not in {module.split(".")[0] for module in imports(name)} or (
            "flags" not in source and "app" not in source
        ), name


def test_the_package_knows_no_scripts_and_no_configs():
    for name in PACKAGE:
        assert not {m for m in imports(name) if inside(m, ["scripts", "configs"])}, name


def test_there_are_no_cycles():
    edges = {name: sorted(imports(name) & set(PACKAGE)) for name in PACKAGE}
    done = set()

    def visit(name, trail):
        assert name not in trail, f"a cycle: {' -> '.join([*trail, name])}"
        if name not in done:
            for target in edges[name]:
                visit(target, [*trail, name])
            done.add(name)

    for name in PACKAGE:
        visit(name, [])


def part(name):
    """A folder of the package, or a file at its top."""
    return name.split(".")[1] if "." in name else ""


def test_no_part_reaches_itself_through_another():
    below = {part(name): set() for name in PACKAGE}
    for name in PACKAGE:
        below[part(name)] |= {part(m) for m in imports(name) & set(PACKAGE)} - {part(name), ""}

    def reach(start):
        seen, todo = set(), [start]
        while todo:
            new = below[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    assert not {name: below[name] for name in below if name in reach(name)}


def test_one_part_of_the_package_knows_config_dicts():
    knowing = {name for name in PACKAGE if "ConfigDict" in FILES[name].read_text()}
    assert knowing == {"nspo_jax.settings"}
