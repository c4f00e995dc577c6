"""Launch scripts: what they would run, what they ask for, and what a preemption makes of a run."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests import conftest

ROOT = pathlib.Path(__file__).resolve().parents[1]
POD, GKE = "scripts/tpu/pod.sh", "scripts/gke/train.sh"
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.sh", "*/*.sh", "*/*.sbatch")
    for path in (ROOT / "scripts").glob(pattern)
)
VARIABLES = {
    "PROJECT": "my-project", "ZONE": "us-east5-b", "POD": "nspo", "ACCELERATOR": "v6e-16",
    "BUCKET": "my-bucket", "CLUSTER": "my-cluster", "NAME": "nspo", "STORAGE": "bucket",
}  # fmt: skip
TRAIN = [
    "python", "-m", "scripts.train", "--config=configs/tiny.py:nspo", "--workdir=/bucket/nspo",
    "--config.calibration.rank_rule=energy(0.05)",
]  # fmt: skip


def run(script, *arguments, environment=VARIABLES, tools=()):
    """Runs a script where nothing is installed but a shell's own programs, and those in `tools`."""
    path = ":".join([*map(str, tools), "/usr/bin", "/bin"])
    return subprocess.run(
        ["bash", script, *arguments],
        cwd=ROOT, env={"PATH": path, **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.fixture
def refusing(tmp_path):
    """A folder of cloud tools that must not be called."""
    for name in ("gcloud", "xpk", "sky"):
        tool = tmp_path / "tools" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f"#!/bin/sh\necho {name} was called >&2\nexit 99\n")
        tool.chmod(0o755)
    return [tmp_path / "tools"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_can_parse_it(script):
    done = subprocess.run(["bash", "-n", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("script", [POD, GKE, "scripts/until_done.sh"])
def test_help_says_how_it_is_called(script):
    done = run(script, "--help", environment={})
    assert done.returncode == 0 and script in done.stdout and not done.stderr
    assert "#" not in done.stdout and "set -" not in done.stdout


POD_COMMANDS = {
    "create": ["gcloud compute tpus queued-resources create nspo --project=my-project "
               "--zone=us-east5-b --node-id=nspo --accelerator-type=v6e-16 "
               "--runtime-version=v2-alpha-tpuv6e"],
    "create --spot": ["--runtime-version=v2-alpha-tpuv6e --spot"],
    "wait": ["gcloud compute tpus queued-resources describe nspo"],
    "sync": ["git archive --format=tgz", "gcloud compute tpus tpu-vm scp", "--worker=all",
             "tar -xzf nspo_jax.tgz -C nspo_jax"],
    "setup": ["gcloud compute tpus tpu-vm ssh nspo", "--worker=all", "--implicit-dirs",
              " my-bucket /bucket", "jax[tpu]"],
    "logs": ["--worker=0", "tail -n 100 -F nspo_jax/run.log"],
    "logs 3": ["--worker=3"],
    "stop": ["--worker=all", "kill -TERM"],
    "ssh df -h": ["--worker=all '--command=df -h'"],
    "delete": ["gcloud compute tpus queued-resources delete nspo", "--force --quiet"],
}  # fmt: skip


@pytest.mark.parametrize("command", POD_COMMANDS)
def test_a_dry_run_of_a_pod_prints_the_commands(command, refusing):
    if command == "sync" and not (ROOT / ".git").exists():
        pytest.skip("sync copies what git tracks, and this is no git checkout")
    done = run(POD, "--dry_run", *command.split(), tools=refusing)
    assert done.returncode == 0 and not done.stderr
    # the words of the printed commands, however they are quoted
    words = [shlex.join(bash_words(line)) for line in done.stdout.splitlines()]
    for wanted in POD_COMMANDS[command]:
        assert wanted in "\n".join(words)


def bash_words(line):
    """How bash splits a printed command."""
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def test_a_command_reaches_every_worker_as_it_was_given(refusing):
    done = run(POD, "--dry_run", "run", *TRAIN, tools=refusing)
    remote = next(word for word in bash_words(done.stdout) if word.startswith("--command="))
    (line,) = [line for line in remote.splitlines() if "until_done.sh" in line]
    assert bash_words(line.partition("until_done.sh ")[2].partition(" >>run.log")[0]) == TRAIN
    assert "nohup" in line and line.endswith("&")


def test_a_dry_run_on_gke_prints_the_command(refusing):
    done = run(GKE, "--dry_run", *TRAIN, tools=refusing)
    assert done.returncode == 0 and not done.stderr
    words = bash_words(done.stdout)
    assert words[:3] == ["xpk", "workload", "create"]
    for word in ("--cluster=my-cluster", "--tpu-type=v6e-16", "--restart-on-exit-codes=75"):
        assert word in words
    program = words[-1]
    assert program.startswith("--command=pip install")
    assert bash_words(program.partition("until_done.sh ")[2]) == TRAIN


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([POD, "create"], "PROJECT ZONE POD ACCELERATOR"),
        ([POD, "setup"], "PROJECT ZONE POD BUCKET"),
        ([POD, "run", *TRAIN], "PROJECT ZONE POD"),
        ([POD, "delete"], "PROJECT ZONE POD"),
        ([GKE, *TRAIN], "PROJECT ZONE CLUSTER NAME ACCELERATOR STORAGE"),
    ],
    ids=["create", "setup", "run", "delete", "gke"],
)
def test_a_missing_variable_is_named_with_an_example(arguments, names, refusing):
    names = names.split()
    for missing in ([names[-1]], names):
        environment = {name: VARIABLES[name] for name in names if name not in missing}
        done = run(*arguments, environment=environment, tools=refusing)
        assert done.returncode == 2 and not done.stdout
        lines = done.stderr.splitlines()
        assert [line.split()[1] for line in lines] == missing
        for name, line in zip(missing, lines, strict=True):
            assert line.startswith(f"error: {name} is not set: ") and f"export {name}=" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([POD], "no command"),
        ([POD, "destroy"], "no command destroy"),
        ([POD, "create", "--preemptible"], "create takes --spot or nothing, got --preemptible"),
        ([POD, "run"], "run takes a command"),
        ([GKE], "no command"),
        (["scripts/until_done.sh", "true"], "no --workdir=DIR"),
        (["scripts/slurm/train.sbatch"], "no command"),
    ],
)
def test_a_mistake_is_explained(arguments, words, refusing):
    done = run(*arguments, tools=refusing)
    assert done.returncode == 2 and f"error: {words}" in done.stderr.replace("the command has ", "")


def test_an_unknown_accelerator_needs_its_image(refusing):
    unknown = {**VARIABLES, "ACCELERATOR": "v99-8"}
    done = run(POD, "--dry_run", "create", environment=unknown, tools=refusing)
    assert done.returncode == 2 and "v99-8" in done.stderr and not done.stdout
    done = run(POD, "--dry_run", "create", environment={**unknown, "RUNTIME": "x"}, tools=refusing)
    assert done.returncode == 0 and "--runtime-version=x" in done.stdout


def test_waiting_ends_with_what_became_of_the_slice(tmp_path):
    gcloud = tmp_path / "gcloud"
    for state, code in (("ACTIVE", 0), ("SUSPENDED", 1)):
        gcloud.write_text(f"#!/bin/sh\necho {state}\n")
        gcloud.chmod(0o755)
        done = run(POD, "wait", tools=[tmp_path])
        assert done.returncode == code and done.stdout.split() == [state]
    assert "preempted" in done.stderr


# ------------------------------------------------------------------------------ until_done.sh


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pathlib.Path(out, 'summary.json').touch()", 0),
        ("pass", 75),  # saved and stopped: what a preemption looks like
        ("pathlib.Path(out, 'summary.json').touch(); sys.exit(3)", 3),
    ],
    ids=["done", "preempted", "failed"],
)
def test_only_a_finished_run_counts_as_success(tmp_path, program, code):
    (tmp_path / "sleep").write_text("#!/bin/sh\n")  # nobody else writes the summary here
    (tmp_path / "sleep").chmod(0o755)
    source = f"import pathlib, sys; out = {str(tmp_path)!r}; {program}"
    command = [sys.executable, "-c", source, f"--workdir={tmp_path}"]
    done = run("scripts/until_done.sh", *command, tools=[tmp_path])
    assert done.returncode == code
    assert ("started again" in done.stderr) == (code == 75)


def test_sigterm_reaches_the_run_which_saves(tmp_path):
    source = (
        "import pathlib, signal, sys, time\n"
        f"out = pathlib.Path({str(tmp_path)!r})\n"
        "def save(*_):\n    time.sleep(0.3); (out / 'saved').touch(); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save); (out / 'started').touch(); time.sleep(60)\n"
    )
    command = ["bash", "scripts/until_done.sh", sys.executable, "-c", source]
    process = subprocess.Popen([*command, f"--workdir={tmp_path}"], cwd=ROOT)
    end = time.monotonic() + 20
    while not (tmp_path / "started").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 75 and (tmp_path / "saved").exists()


# ------------------------------------------------------------------------------ SkyPilot, docs


def test_the_skypilot_job_recovers_from_preemptions():
    job = yaml.safe_load((ROOT / "scripts/sky/train.yaml").read_text())
    assert set(job) == {
        "name", "workdir", "resources", "envs", "file_mounts", "setup", "run"
    }  # fmt: skip
    resources = job["resources"]
    assert resources["use_spot"] is True and resources["accelerators"]
    assert resources["job_recovery"]["recover_on_exit_codes"] == [75]
    assert job["file_mounts"]["/bucket"] == {"source": "gs://${BUCKET}", "mode": "MOUNT"}
    # null: SkyPilot refuses a job that does not give it
    assert job["envs"]["BUCKET"] is job["envs"]["COMMAND"] is None
    for name in ("setup", "run"):
        assert subprocess.run(["bash", "-n", "-c", job[name]]).returncode == 0


@pytest.mark.parametrize(
    ("jax", "nodes"), [("jax[tpu]", 4), ("jax[cuda13]", 1), ("jax[cuda13]", 2)]
)
def test_a_skypilot_node_runs_the_command_as_its_process(tmp_path, jax, nodes):
    job = yaml.safe_load((ROOT / "scripts/sky/train.yaml").read_text())
    (tmp_path / "nspo_venv/bin").mkdir(parents=True)
    (tmp_path / "nspo_venv/bin/activate").touch()
    fake = tmp_path / "scripts/until_done.sh"
    fake.parent.mkdir()
    fake.write_text('printf "%s\\n" "$@"\n')
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "JAX": jax,
        "COMMAND": shlex.join(TRAIN), "SKYPILOT_NUM_NODES": str(nodes),
        "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", job["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    flags = ["--coordinator=10.0.0.1:9876", "--processes=2", "--process=1"]
    assert done.stdout.splitlines() == TRAIN + (flags if (jax, nodes) == ("jax[cuda13]", 2) else [])


def test_the_page_names_every_way_and_commands_that_there_are():  # files: tests/test_docs.py
    page = (ROOT / "docs/pods.md").read_text()
    for script in (POD, GKE, "scripts/sky/train.yaml", "scripts/slurm/train.sbatch"):
        assert script in page
    for command in re.findall(r"pod\.sh (?:--dry_run )?(\w+)", page):
        assert command in {name.split()[0] for name in POD_COMMANDS} | {"run"}


def test_what_is_called_slow_is_there():
    for name in conftest.SLOW:
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text() or not test, name
