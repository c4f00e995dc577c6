"""scripts/real.sh where nothing is run: what it refuses before any work."""

import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--smal", "."), "--smal is no option; expected --small, or --help"),
        ((), "expected one directory with the data: ./scripts/real.sh [--small] DATA"),
        (("a", "b"), "expected one directory with the data"),
        (("--small", "nowhere"), "nowhere is no directory: expected the one with the data"),
        (("--small", "."), "runs/smollm2 has 7 GiB free; expected 8"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path, arguments, words):
    (tmp_path / "df").write_text(f"#!/bin/sh\necho head\necho disk 1 2 {8 * 2**20 - 1} 4 /\n")
    (tmp_path / "df").chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "real.sh"), *arguments],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 1 and words in done.stderr, done
    assert not done.stdout


def test_help_tells_the_time():
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "real.sh"), "--help"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "40 minutes" in done.stdout and not done.stderr
