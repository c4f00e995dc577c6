"""Weights & Biases, offline and at a server of the tests' own: what arrives, what goes wrong."""

import contextlib
import json
import os
import subprocess
import sys
import time

import pytest
import wandb

from nspo_jax import distributed, metrics, wandb_run
from tests.wandb_server import Server, read_file


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """The library knows no key of this machine and no server, and reports nothing."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the port of discarding
    wandb.teardown()  # it reads the environment once
    yield
    with contextlib.suppress(Exception):  # of a process that the test has killed
        wandb.teardown()


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield server
    with contextlib.suppress(OSError):
        server.stop()


def opened(workdir, step=0, **config):
    return metrics.MetricsWriter(workdir, step=step, wandb_project="safety", config=config)


def written(workdir, steps, *, start=0, **config):
    with contextlib.closing(opened(workdir, start, **config)) as writer:
        for step in steps:
            writer.write(step, {"train/loss": step / 2})
            writer.write(step, {"evaluation/unsafe": float("nan"), "speed/seconds": 1.0})


def steps(rows):
    """(step, loss) of rows, which are all that the writer was given."""
    assert all("evaluation/unsafe" not in row and row["speed/seconds"] == 1 for row in rows)
    return [(row["_step"], row["train/loss"]) for row in rows]


def record(workdir):
    return json.loads((workdir / "wandb_run.json").read_text())["id"]


def offline_runs(workdir):
    wandb.teardown()  # its process then has written all
    paths = sorted((workdir / "wandb").glob("offline-run-*/run-*.wandb"), key=os.path.getmtime)
    return [read_file(path) for path in paths]


def test_offline_a_run_is_a_file_and_a_resume_goes_on_in_the_same_run(tmp_path, offline):
    workdir = tmp_path / "run"
    written(workdir, [1, 2, 3, 4])
    written(workdir, [3, 4, 5], start=2)
    (first, rows, code), (second, resumed, _) = offline_runs(workdir)
    assert first == second == record(workdir) and code == 0
    assert steps(rows) == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert steps(resumed) == [(3, 1.5), (4, 2.0), (5, 2.5)]
    assert [row["step"] for row in metrics.read_metrics(workdir)][::2] == [1, 2, 3, 4, 5]
    written(workdir, [1])  # it starts over, as metrics.jsonl does
    assert record(workdir) not in ("", first)


def test_a_run_that_ends_by_an_exception_is_marked_as_failed(tmp_path, offline):
    with (
        pytest.raises(FloatingPointError),
        contextlib.closing(opened(tmp_path / "run")) as writer,
    ):
        writer.write(1, {"train/loss": 0.5})
        raise FloatingPointError
    assert offline_runs(tmp_path / "run")[0][2] == 1


def test_of_several_processes_the_first_writes(tmp_path, offline, monkeypatch):
    monkeypatch.setattr(distributed, "is_primary", lambda: False)
    written(tmp_path / "run", [1])
    assert not (tmp_path / "run").exists()


def test_without_a_project_nothing_is_written(tmp_path, offline):
    metrics.MetricsWriter(tmp_path).close()
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_a_server_gets_every_step_once_and_the_latest_config(tmp_path, server, caplog):
    workdir = tmp_path / "run"
    written(workdir, [1, 2, 3, 4], **{"rl.steps": 4})
    run = record(workdir)
    assert steps(server.rows[run]) == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert "steps to" not in caplog.text
    written(workdir, [3, 4, 5], start=2, **{"rl.steps": 5})
    assert record(workdir) == run and list(server.rows) == [run]
    assert [step for step, _ in steps(server.rows[run])] == [1, 2, 3, 4, 5]
    assert server.configs[run]["rl.steps"]["value"] == 5
    assert "has the steps to 4 of this run, which resumes at 2" in caplog.text
    assert server.ended[run] == 0


def test_a_server_that_goes_away_stalls_nothing_and_costs_a_bounded_end(
    tmp_path, server, monkeypatch, caplog
):
    monkeypatch.setattr(wandb_run, "FINISH_TIMEOUT", 1.0)
    writer = opened(tmp_path / "run")
    server.stop()
    began = time.monotonic()
    for step in range(1, 101):
        writer.write(step, {"train/loss": 0.5})
    assert time.monotonic() - began < 5
    writer.close()
    assert time.monotonic() - began < 20
    assert "what was not sent in 1 seconds is not sent (TimeoutError" in caplog.text
    wandb.teardown()
    (path,) = (tmp_path / "run" / "wandb").glob("run-*/run-*.wandb")
    assert len(read_file(path)[1]) == 100  # `wandb sync` has them all


def test_a_server_that_does_not_answer_makes_the_run_an_offline_one(
    tmp_path, server, monkeypatch, caplog
):
    """The library waits 15 seconds more where the port refuses, which this test spares itself."""
    monkeypatch.setattr(wandb_run, "INIT_TIMEOUT", 1.0)
    server.refuses = "RunResumeStatus"
    written(tmp_path / "run", [1])
    assert "cannot be reached" in caplog.text and "`wandb sync` sends them" in caplog.text
    ((run, rows, _),) = offline_runs(tmp_path / "run")
    assert run == record(tmp_path / "run") and steps(rows) == [(1, 0.5)]


def test_without_a_key_nobody_is_asked_for_one(tmp_path, caplog):
    written(tmp_path / "run", [1])
    assert "no API key: run `wandb login`, or set WANDB_API_KEY" in caplog.text
    assert steps(offline_runs(tmp_path / "run")[0][1]) == [(1, 0.5)]


def _core() -> int:
    """The library's process, a child of this one, which may take a moment to become it."""
    for _ in range(100):
        children = subprocess.run(
            ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(os.getpid())],  # -ww cuts no line
            capture_output=True, text=True,
        ).stdout.splitlines()  # fmt: skip
        found = [int(line.split()[0]) for line in children if "wandb-core" in line]
        if found:
            (core,) = found
            return core
        time.sleep(0.1)
    pytest.fail(f"no child of this process is wandb-core: {children}")


def test_the_librarys_process_may_die_and_the_run_goes_on(tmp_path, offline, caplog):
    writer = opened(tmp_path)
    os.kill(_core(), 9)
    time.sleep(0.5)
    for step in (1, 2):
        writer.write(step, {"train/loss": 0.5})
    writer.close()
    assert caplog.text.count("from step 1 on nothing more is written there") == 1
    assert [row["step"] for row in metrics.read_metrics(tmp_path)] == [1, 2]


def test_a_field_without_the_library_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    wandb_run.check_installed("")
    with pytest.raises(ModuleNotFoundError, match="metrics.wandb_project is 'p'.*pip install"):
        wandb_run.check_installed("p")


def test_a_damaged_record_is_named(tmp_path, offline):
    (tmp_path / "wandb_run.json").write_text("{")
    with pytest.raises(ValueError, match="wandb_run.json is damaged"):
        opened(tmp_path, 2)
