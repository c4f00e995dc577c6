"""Sweeps: grids become named runs; runs in processes of their own are packed and tried again."""

import os
import pathlib
import signal
import subprocess
import sys
import time

from absl import flags
from ml_collections import config_flags
import pytest

from configs.sweeps import tiny_arms
from nspo_jax import settings
from scripts import processes, sweep_runs
from tests import command_lines

ROOT = pathlib.Path(__file__).resolve().parents[1]
GRID = {"calibration.rank_rule": ["energy(0.05)", "fixed(4)+mlp/in=fixed(3)"], "rl.clip": [0.1]}


def make_sweep(grid, **changes):
    config = tiny_arms.get_config()
    config.grid = tiny_arms.make_grid(grid)
    config.update({"arms": "nspo+grpo_replay", "seeds": "0+3", **changes})
    return config


def test_a_grid_becomes_named_runs_with_the_command_that_runs_each(tmp_path):
    runs = sweep_runs.expand(make_sweep(GRID), tmp_path)
    assert [(run.name, run.seed) for run in runs[:4]] == [
        ("nspo,rank_rule=energy(0.05),clip=0.1", 0),
        ("nspo,rank_rule=fixed(4)_mlp_in=fixed(3),clip=0.1", 0),
        ("grpo_replay,rank_rule=energy(0.05),clip=0.1", 0),
        ("grpo_replay,rank_rule=fixed(4)_mlp_in=fixed(3),clip=0.1", 0),
    ]
    assert [run.seed for run in runs] == [0] * 4 + [3] * 4
    run = runs[5]
    assert run.directory == tmp_path / "seed_3" / "runs" / run.name
    assert run.settings.calibration.rank_rule == "fixed(4)+mlp/in=fixed(3)"
    assert (run.settings.rl.clip, run.settings.seed, run.settings.workspace) == (
        0.1,
        3,
        str(tmp_path),
    )
    assert "--config=configs/tiny.py:nspo" in run.command
    assert "--config.calibration.rank_rule=fixed(4)+mlp/in=fixed(3)" in run.command
    assert "--config.rl.clip=0.1" in run.command and "--config.seed=3" in run.command
    assert run.makes() == [
        tmp_path / "seed_3/base", tmp_path / "seed_3/projectors/fixed(4)+mlp.in=fixed(3)_1000_rows"
    ]  # fmt: skip


def test_the_base_stays_untrained_whatever_the_others_train(tmp_path):
    sweep = make_sweep({}, arms="base+nspo", fixed=tiny_arms.make_fixed({"rl.steps": 7}))
    steps = {run.name: run.settings.rl.steps for run in sweep_runs.expand(sweep, tmp_path)}
    assert steps == {"base": 0, "nspo": 7}


def test_without_a_grid_a_run_is_called_as_its_arm(tmp_path):
    assert [run.name for run in sweep_runs.expand(make_sweep({}), tmp_path)[:2]] == [
        "nspo", "grpo_replay"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        ({"rl.klip": [0.1]}, "sets rl.klip to 0.1, which its config does not take"),
        ({"rl.clip": ["high"]}, "sets rl.clip to 'high', which its config does not take"),
        ({"rl.prompts": [4, 0]}, "rl.prompts is 0; expected a whole number .* from 1 to"),
        (
            {"calibration.rank_rule": ["fixed(4)+mlp/in=fixed(3)"] * 2},
            "Two runs .* are called nspo",
        ),
    ],
    ids=["field", "type", "value", "twice"],
)
def test_a_mistake_in_the_grid_is_named_before_anything_runs(tmp_path, grid, words):
    with pytest.raises(ValueError, match=words):
        sweep_runs.expand(make_sweep(grid), tmp_path)


def test_what_others_share_is_printed_first(tmp_path, capsys):
    runs = sweep_runs.expand(
        make_sweep({"rl.clip": [0.1, 0.2]}, arms="nspo", seeds="0+1"), tmp_path
    )
    sweep_runs.print_commands(runs)
    lines = capsys.readouterr().out.splitlines()
    assert [line.startswith("#") for line in lines] == [True, False, False, True, False, False]
    for line, clip, seed in zip(
        lines[1:3] + lines[4:], (0.1, 0.1, 0.2, 0.2), (0, 1) * 2, strict=True
    ):
        assert line.startswith("python -m scripts.train --config=configs/tiny.py:nspo ")
        assert f"--config.rl.clip={clip} " in line and f"--config.seed={seed} " in line


# ------------------------------------------------------------------------------ processes


def make_job(tmp_path, name, program, **fields):
    """A job that runs Python source in which `out` is its directory."""
    out = tmp_path / name
    source = f"import os, pathlib, sys, time\nout = pathlib.Path({str(out)!r})\n{program}"
    return processes.Job(
        name=name, command=[sys.executable, "-c", source], directory=out,
        log=tmp_path / "logs" / name, **fields,
    )  # fmt: skip


FINISH = "out.mkdir(exist_ok=True); (out / 'summary.json').write_text('{}')\n"


def test_as_many_run_at_a_time_as_there_are_slots_each_in_its_own(tmp_path):
    meet = (  # done once two are running: each writes its slot and waits for the other's
        "slot = os.environ['SLOT']\n"
        "(out.parent / f'slot{slot}').touch()\n"
        "other = out.parent / f'slot{1 - int(slot)}'\n"
        "while not other.exists(): time.sleep(0.01)\n"
    )
    jobs = [make_job(tmp_path, "a", meet + FINISH), make_job(tmp_path, "b", meet + FINISH)]
    jobs.append(make_job(tmp_path, "c", FINISH))
    ended = []
    failures = processes.run_jobs(jobs, [{"SLOT": "0"}, {"SLOT": "1"}], 0, ended.append)
    assert not failures and sorted(job.name for job in ended) == ["a", "b", "c"]
    assert ended[-1].name == "c"


def test_what_stops_before_its_end_is_continued_and_given_up_after_its_retries(tmp_path):
    # crashes, is preempted (exit status 0), is killed, finishes
    attempt = (
        "out.mkdir(exist_ok=True)\n"
        "count = len(list(out.iterdir())); (out / str(count)).touch()\n"
        "print('attempt', count, flush=True)\n"
        "if count == 0: sys.exit(3)\n"
        "if count == 1: sys.exit(0)\n"
        "if count == 2: os.kill(os.getpid(), 9)\n"
    )
    jobs = [make_job(tmp_path, "enough", attempt + FINISH), make_job(tmp_path, "bad", "1 / 0")]
    failures = processes.run_jobs(jobs, [{}, {}], 3)
    assert list(failures) == ["bad"] and "exit status 1; see" in failures["bad"]
    assert (tmp_path / "logs" / "bad").read_text().count("ZeroDivisionError") == 4
    assert (tmp_path / "logs" / "enough").read_text().split() == [
        "attempt", "0", "attempt", "1", "attempt", "2", "attempt", "3"
    ]  # fmt: skip
    again = [make_job(tmp_path, "two", attempt + FINISH)]
    assert processes.run_jobs(again, [{}], 1) == {
        "two": f"it stopped before its end; see {tmp_path / 'logs' / 'two'}"
    }


def test_no_two_jobs_make_the_same_thing_at_once(tmp_path):
    shared = tmp_path / "base"
    make = (
        "shared = out.parent / 'base'\n"
        "alone = not (out.parent / 'making').exists()\n"
        "if not shared.exists():\n"
        "    (out.parent / 'making').touch(); time.sleep(0.3)\n"
        "    (out.parent / 'making').unlink(); shared.touch()\n"
        "assert alone\n"
    )
    jobs = [make_job(tmp_path, name, make + FINISH, makes=[shared]) for name in "abc"]
    assert processes.run_jobs(jobs, [{}] * 3, 0) == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_asks_its_runs_to_save(tmp_path, number):
    """A run gets SIGTERM when the sweep does, at Ctrl-C, and when the sweep is killed."""
    if number == signal.SIGKILL and sys.platform != "linux":
        pytest.skip("only Linux tells a process that its parent was killed")
    job = make_job(
        tmp_path, "job",
        "import signal\n"
        "signal.signal(15, lambda *_: ((out / 'saved').touch(), sys.exit(0)))\n"
        "out.mkdir(); time.sleep(60)\n",
    )  # fmt: skip
    parent = (
        "import pathlib, sys\nfrom scripts import processes\n"
        f"job = processes.Job('job', {job.command!r}, pathlib.Path({str(job.directory)!r}), "
        f"pathlib.Path({str(job.log)!r}))\nprocesses.run_jobs([job], [{{}}], 5)\n"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=ROOT, stderr=subprocess.DEVNULL, process_group=0,
        # in the background of a script the shell has SIGINT ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_for(job.directory.exists)
    os.killpg(running.pid, number)  # as a terminal does
    running.wait(20)
    wait_for((job.directory / "saved").exists)
    assert running.returncode == (0 if number == signal.SIGTERM else -number)


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_processes_share_the_accelerators(tmp_path, monkeypatch):
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS"):
        monkeypatch.delenv(name, raising=False)
    gpus, chips = processes.gpus, processes.tpu_chips
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    (tmp_path / "vfio").mkdir()
    for name in ("7", "8", "11", "12", "vfio"):
        (tmp_path / "vfio" / name).touch()
    assert gpus(tmp_path) == ["0", "1", "2", "10"] and chips(tmp_path) == ["0", "1", "2", "3"]
    (tmp_path / "accel1").touch()
    assert chips(tmp_path) == ["1"]

    monkeypatch.setattr(processes, "gpus", lambda: ["0", "1", "2", "3"])
    assert processes.device_slots(2) == [
        {"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}
    ]  # fmt: skip
    assert processes.device_slots(1) == [{}]
    for count in (3, 8):
        with pytest.raises(ValueError, match=f"--parallel is {count} .* has 4 GPUs"):
            processes.device_slots(count)
    with pytest.raises(ValueError, match="--parallel is 0"):
        processes.device_slots(0)
    monkeypatch.setattr(processes, "gpus", lambda: [])
    monkeypatch.setattr(processes, "tpu_chips", lambda: ["0", "1", "2", "3"])
    slots = processes.device_slots(2)
    assert [slot["TPU_VISIBLE_CHIPS"] for slot in slots] == ["0,1", "2,3"]
    assert {slot["TPU_CHIPS_PER_PROCESS_BOUNDS"] for slot in slots} == {"1,2,1"}
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert processes.device_slots(8) == [{}] * 8


def test_the_command_of_a_run_is_its_config(tmp_path, monkeypatch):
    for run in sweep_runs.expand(make_sweep(GRID), tmp_path):
        values = flags.FlagValues()
        config = config_flags.DEFINE_config_file("config", flag_values=values)
        flags.DEFINE_string("workdir", None, "", flag_values=values)
        monkeypatch.setattr(sys, "argv", list(run.command[2:]))  # ml_collections looks there
        values(sys.argv)
        assert settings.from_config(config.value) == run.settings
        assert values.workdir == str(run.directory)


STUB = """
import json
from jax._src import xla_bridge
from scripts import launch, processes, sweep

def run_jobs(jobs, slots, retries, ended):
    # a parent that has asked jax for devices keeps them from its runs
    assert not xla_bridge.backends_are_initialized()
    assert len(slots) == 2 and retries == 1
    for job in jobs[:-1] if {fail} else jobs:
        job.directory.mkdir(parents=True)
        scores = dict(unsafe=0.25, general=0.5, kl_heldout=0.1, protected_share=0.0)
        (job.directory / "summary.json").write_text(json.dumps(scores))
        kinds = ("unsafe", "unsafe_nouns", "unsafe_templates", "unsafe_both", "general")
        row = dict(step=0) | {{f"evaluation/{{kind}}": 0.5 for kind in kinds}}
        (job.directory / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
        ended(job)
    return {{jobs[-1].name: "exit status 3"}} if {fail} else {{}}

processes.run_jobs = run_jobs
launch.run(sweep.main)
"""


def command_line(tmp_path, program, *arguments):
    command = [sys.executable, "-c", program, f"--workdir={tmp_path}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_runs_in_processes_are_collected_into_one_table(tmp_path):
    arguments = (
        "--config=configs/sweeps/tiny_grid.py", "--parallel=2", "--retries=1",
        "--config.arms=nspo+nspo_replay",
    )  # fmt: skip
    done = command_line(tmp_path, STUB.format(fail=False), *arguments)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert len(rows) == 12
    assert rows[1].startswith("| nspo,rank_rule=energy(0.03),learning_rate=0.001 ")
    assert (tmp_path / "arms.png").exists()


def test_runs_that_were_given_up_are_named(tmp_path):
    arguments = ("--config=configs/sweeps/tiny_grid.py", "--parallel=2", "--retries=1")
    done = command_line(tmp_path, STUB.format(fail=True), *arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    last = "nspo,rank_rule=energy(0.1),learning_rate=0.001 at seed 0: exit status 3"
    assert f"1 of 6 runs did not finish:\n  {last}" in done.stderr


def test_retries_need_processes(tmp_path):
    arguments = ("--config=configs/sweeps/demo.py", "--retries=3")
    done = command_lines.run("sweep", f"--workdir={tmp_path}", *arguments)
    assert done.returncode == 1 and "--retries is 3 without --parallel" in done.stderr
