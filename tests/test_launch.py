"""The command line answers a mistake in a paragraph, not in a traceback."""

import ast
import os
import subprocess
import sys

import pytest

from tests import command_lines
from tests.command_lines import ROOT

NSPO, SWEEP = "--config=configs/tiny.py:nspo", "--config=configs/sweeps/demo.py"
SCRIPTS = [
    path.stem
    for path in sorted((ROOT / "scripts").glob("*.py"))
    if "launch.run(" in path.read_text()
]
# HERE stands for a directory that has these: a file, configs that do not work, a run, a sweep.
FILES = {
    "FILE": "text\n",
    "syntax.py": "def get_config()\n",
    "none.py": "def get_config():\n    pass\n",
    "bare.py": "seed = 0\n",
    "raising.py": "def get_config():\n    config = {}\n    return config['seed']\n",
    "summary.json": '{"unsafe": 0.5}\n',
    "sweep/summary.json": '{"arms": {"base": {}, "nspo": {}}, "seeds": [0, 1]}\n',
}
MISTAKES = [
    # flags
    ("train", [], ["--config is missing: Config file of a run"]),
    ("train", [NSPO], ["--workdir is empty"]),
    ("train", [NSPO, "surplus"], ["Not a flag: surplus"]),
    ("train", [NSPO, "--workdirr=HERE"], ["Unknown command line flag '--workdirr'", "--workdir"]),
    ("train", [NSPO, "--devices=two"], ["--devices is 'two': expected a whole number."]),
    ("train", [NSPO, "--workdir=HERE", "--chip=h100"], ["--chip is h100: it is for --dry_run"]),
    ("train", [NSPO, "--workdir=HERE", "--config.rl.steps=1.5"],
     ["--config.rl.steps is '1.5': expected a whole number."]),
    ("train", [NSPO, "--workdir=HERE", "--config.seed=0,1"],
     ["--config.seed is '0,1': expected a whole number."]),
    ("train", [NSPO, "--workdir=HERE", "--config.rl.clip=small"],
     ["--config.rl.clip is 'small': expected a number."]),
    ("train", [NSPO, "--workdir=HERE", "--config.rl.clip=nan"],
     ["--config.rl.clip is nan; expected a finite number"]),
    ("train", [NSPO, "--workdir=HERE", "--config.data.chat=maybe"],
     ["--config.data.chat is 'maybe': expected true or false."]),
    ("train", [NSPO, "--workdir=HERE", "--config.rl=3"],
     ["--config.rl is '3': expected its fields one by one, --config.SECTION.FIELD=VALUE."]),
    ("train", [NSPO, "--config.rl.stepz=3"], ["no field 'stepz'", 'Did you mean "steps"']),
    ("train", [NSPO, "--config.rl.steps.x=3"], ["The config has no field rl.steps.x."]),
    ("train", [NSPO, "--flagfile=HERE/nosuch"], ["Unable to open flagfile", "HERE/nosuch"]),
    ("export_hf", [], ["--policy is missing: The model", "--output is missing: The directory"]),
    ("export_hf", ["--policy=a", "--output=b", "--shard_gb=inf"], ["--shard_gb is inf"]),
    ("export_hf", ["--policy=a", "--output=b", "--dtype=int8"], ["--dtype is 'int8': value"]),
    ("generate", ["--model=m", "--seed=-1"], ["--seed is '-1'", "The draws' seed"]),
    ("inspect_projectors", [], ["Expected one DIRECTORY beside flags, got []"]),
    ("inspect_projectors", ["HERE/nowhere"], ["HERE/nowhere has no projectors.json"]),
    # config files
    ("train", ["--config=HERE/nosuch.py"], ["--config is 'HERE/nosuch.py', and there is no such"]),
    ("train", ["--config="], ["--config is '', and there is no such file"]),
    ("train", ["--config=configs/tiny.py:nosuch"], ["The arm is 'nosuch'; expected one of base"]),
    ("train", ["--config=configs/default.py:nspo"],
     ["get_config takes no arm, and --config gives 'nspo'"]),
    ("train", ["--config=HERE/syntax.py"], ["makes no config, line 1: SyntaxError: expected ':'"]),
    ("train", ["--config=HERE/none.py"], ["get_config returns NoneType"]),
    ("train", ["--config=HERE/bare.py"], ["has no function get_config"]),
    ("train", ["--config", "HERE/raising.py"], ["makes no config, line 3: KeyError: 'seed'"]),
    *((name, ["--config=configs/sweeps/demo.py"],
       ["the config of a sweep, which scripts.sweep takes", "of a run, such as configs/tiny.py"])
      for name in ("train", "calibrate", "certify", "evaluate", "train_reward")),
    ("sweep", [NSPO, "--workdir=HERE/run"],
     ["the config of a run, which scripts.train takes", "of a sweep, such as configs/sweeps/"]),
    # values that are known to be wrong before anything is computed
    ("train", [NSPO, "--workdir=HERE/run", "--config.rl.steps=-5"], ["rl.steps is -5"]),
    ("train", [NSPO, "--workdir=HERE/run", "--profile=50:90"],
     ["steps to profile are 50:90, and rl.steps is 60"]),
    ("train", [NSPO, "--workdir=HERE/run", "--profile=3:3"], ["--profile is '3:3'"]),
    ("train", [NSPO, "--workdir=HERE/run", "--config.calibration.rows=1001"],
     ["calibration.rows is 1001, and the chat world has 1000"]),
    ("train", [NSPO, "--workdir=HERE/run", "--config.data.train_path=mine.jsonl"],
     ["data.train_path is 'mine.jsonl'", "only task=safety reads it"]),
    ("evaluate", [NSPO, "--config.evaluation.prompts=201"], ["evaluation.prompts is 201"]),
    ("certify", [NSPO, "--policy=p", "--config.rl.steps=-1"], ["rl.steps is -1"]),
    ("certify", [NSPO, "--policy=p", "--fail_above=loss=1"], ["'loss' is no quantity"]),
    # places that cannot be written
    ("train", [NSPO, "--workdir=HERE/FILE"], ["workdir is 'HERE/FILE', and HERE/FILE is a file"]),
    ("train", [NSPO, "--workdir=HERE/FILE/run"], ["HERE/FILE is a file; expected a directory"]),
    ("train", [NSPO, "--workdir=HERE/run", "--config.workspace=HERE/FILE"],
     ["workspace is 'HERE/FILE', and HERE/FILE is a file"]),
    ("sweep", [SWEEP, "--workdir=HERE/FILE"], ["--workdir is 'HERE/FILE'"]),
    ("calibrate", [NSPO, "--output=HERE/FILE"], ["--output is 'HERE/FILE'"]),
    ("certify", [NSPO, "--policy=p", "--output=HERE"], ["--output is 'HERE', a directory"]),
    ("certify", [NSPO, "--policy=p", "--output=HERE/FILE/c"], ["directory of --output is 'HERE"]),
    ("train_reward", [NSPO, "--output=HERE/FILE/m"], ["HERE/FILE is a file"]),
    ("inspect_data", ["general", "--data_dir=HERE/FILE"], ["--data_dir is 'HERE/FILE'"]),
    # sweeps
    ("sweep", [SWEEP], ["--workdir is missing: The sweep's directory."]),
    ("sweep", [SWEEP, "--workdir=HERE/run", "--config.seeds=0,1"],
     ["config.seeds is '0,1'; expected different whole numbers joined by '+', such as 0+1+2"]),
    ("sweep", [SWEEP, "--workdir=HERE/run", "--config.seeds=0+0"], ["different whole numbers"]),
    ("sweep", [SWEEP, "--workdir=HERE/run", "--config.seeds="], ["config.seeds is ''"]),
    ("sweep", [SWEEP, "--workdir=HERE/run", "--config.arms=nspo+nosuch"], ["The arm is 'nosuch'"]),
    ("sweep", [SWEEP, "--workdir=HERE/run", "--config.armz=nspo"],
     ["no field 'armz'", "configs/sweeps/tiny_arms.py lists every field"]),
    ("sweep", [SWEEP, "--workdir=HERE/run", "--config.config=HERE/nosuch.py"],
     ["config.config is 'HERE/nosuch.py', and there is no such file"]),
    ("sweep", [SWEEP, "--workdir=HERE/run", "--config.config=configs/default.py"],
     ["get_config takes no arm, and config.config gives 'base'"]),
    ("sweep", [SWEEP, "--workdir=HERE/run", f"--config.config={SWEEP[9:]}"], ["takes no arm"]),
    ("sweep", [SWEEP, "--workdir=HERE/run", "--parallel=0"], ["--parallel is 0"]),
    ("plot", ["--workdir=HERE/nowhere"], ["there is no HERE/nowhere/summary.json"]),
    ("plot", ["--workdir=HERE"], ["--workdir is 'HERE', the workdir of a run: give that"]),
    ("plot", ["--workdir=HERE/sweep", "--seeds=0,1"], ["--seeds is '0,1'; expected"]),
    ("plot", ["--workdir=HERE/sweep", "--seeds=0+7"], ["--seeds names 7; the sweep has 0, 1."]),
    ("plot", ["--workdir=HERE/sweep", "--arms=nspa"], ["--arms names nspa; the sweep has base, n"]),
    ("plot", ["--workdir=HERE/sweep", "--arms=base"], ["Name other arms"]),
    ("plot", ["--workdir=HERE/sweep", "--against=clip", "--seeds=0"], ["--seeds is '0' with --"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("launch")
    for name, text in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.fixture(scope="module")
def answers(place):
    """Of MISTAKES, and then of each script's --help."""
    lines = [
        (name, [argument.replace("HERE", str(place)) for argument in arguments])
        for name, arguments, _ in MISTAKES
    ]
    lines.extend((name, ["--help"]) for name in SCRIPTS)
    return [command_lines.run(name, *arguments) for name, arguments in lines]


@pytest.mark.parametrize("index", range(len(MISTAKES)))
def test_a_mistake_is_explained_and_the_exit_status_says_so(place, answers, index):
    *_, words = MISTAKES[index]
    code, out, err = answers[index]
    assert code == 1 and not out, (out, err)
    (paragraph,) = [part for part in err.split("\n\n") if part.strip()]
    assert paragraph.strip().startswith("error: ") and "Traceback" not in err
    for word in words:
        assert word.replace("HERE", str(place)) in paragraph
    assert not (place / "run").exists()


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_is_the_script_s_own_text_as_it_is_written(answers, name):
    code, out, err = answers[len(MISTAKES) + SCRIPTS.index(name)]
    written = ast.get_docstring(ast.parse((ROOT / "scripts" / f"{name}.py").read_text()), False)
    assert (code, err) == (0, "") and out.startswith(written.strip())
    assert "--[no]traceback" in out  # a flag of every script


def test_the_scripts_are_found():
    assert {"train", "sweep", "calibrate", "certify", "evaluate", "plot", "generate"} < {*SCRIPTS}


@pytest.mark.parametrize("platform", ["cuda", "no_such"])
def test_a_device_that_is_not_there_is_said(tmp_path, platform):
    command = [sys.executable, "-m", "scripts.train", NSPO, f"--workdir={tmp_path / 'run'}"]
    command.append(f"--config.workspace={tmp_path}")
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "JAX_PLATFORMS": platform, "CUDA_VISIBLE_DEVICES": "-1"},
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"error: JAX_PLATFORMS is '{platform}', and jax finds no such device" in done.stderr
    assert "Set JAX_PLATFORMS=cpu, unset it" in done.stderr
