"""The examples for other trainers; the one of tunix runs in an environment of its own."""

import pathlib
import py_compile
import subprocess

from examples import linen_loop

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_a_plain_optax_loop_over_a_linen_model_keeps_the_general_text():
    rows = linen_loop.compare()
    plain, projected = rows["adamw"], rows["adamw, projection"]
    assert plain["protected_share"] > 0.3 and projected["protected_share"] < 1e-5
    assert plain["logit_change"] > 1 and projected["logit_change"] < 1e-3
    assert plain["general_loss"] > 10 * projected["general_loss"]
    assert projected["target_loss"] < 0.2 * rows["base"]["target_loss"]  # it learned all the same


def test_the_tunix_example_is_sound_as_far_as_it_can_be_read(tmp_path):
    source = ROOT / "examples" / "tunix_grpo.py"
    py_compile.compile(str(source), cfile=str(tmp_path / "compiled"), doraise=True)
    subprocess.run(["bash", "-n", str(ROOT / "examples" / "tunix.sh")], check=True)
