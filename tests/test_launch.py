"""The command line answers a mistake in a paragraph, not in a traceback."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
NSPO = "--config=configs/tiny.py:nspo"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config=configs/tiny.py:nosuch"], ["The arm is 'nosuch'; expected one of base, nspo,"]),
        ([NSPO, "--config.rl.stepz=3"], ["no field 'stepz'", 'Did you mean "steps"']),
    ],
    ids=["arm", "field"],
)
def test_a_mistake_is_explained_and_the_exit_status_says_so(tmp_path, flags, words):
    command = [sys.executable, "-m", "scripts.train", f"--workdir={tmp_path / 'run'}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and not done.stdout
    (paragraph,) = [part for part in done.stderr.split("\n\n") if part.strip()]
    assert paragraph.strip().startswith("error: ") and "Traceback" not in done.stderr
    for word in words:
        assert word in paragraph
    assert not (tmp_path / "run").exists()


def test_a_script_with_an_argument_asks_for_it():
    command = [sys.executable, "-m", "scripts.inspect_projectors"]
    for arguments, code, word in (([], 1, "Expected one DIRECTORY"), (["/no"], 1, "/no has no")):
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == code and word in done.stderr + done.stdout
        assert "Traceback" not in done.stderr
