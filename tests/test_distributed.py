"""Several real processes over localhost: the run is that of one process, and survives deaths."""

import dataclasses
import json
import multiprocessing.process
import pathlib
import random
import shutil
import signal
import socket
import threading
import time
import types

import numpy as np
import pytest
import safetensors.numpy

from nspo_jax import distributed, liveness, metrics
from nspo_jax.tasks.chat_world import judge as world_judge
from tests import compiling, forks

ROOT = forks.ROOT
MICRO = {
    "model.hidden_size": 16, "model.intermediate_size": 24, "model.num_layers": 1,
    "model.num_heads": 2, "model.num_kv_heads": 1, "pretraining.steps": 20,
    "pretraining.batch_size": 16, "calibration.rows": 20, "calibration.batch_size": 250,
    "calibration.rank_rule": "fixed(6)", "optimizer.learning_rate": 1e-2, "rl.steps": 6,
    "rl.prompts": 8, "rl.samples": 4, "rl.minibatches": 2, "data.benign_fraction": 1.0,
    "data.wrapped_fraction": 0.5, "evaluation.every": 3, "evaluation.prompts": 5,
    "checkpoint.every": 2,
}  # fmt: skip
SHARDED = ("--config.mesh.data=1", "--config.mesh.fsdp=2")
# Summed in another order: what was measured between meshes is below a tenth of this.
TOLERANCE = 1e-5


# ---------------------------------------------------------------------------------- the child


def child(notes: pathlib.Path, pause: float) -> None:
    """scripts.train with a judge that a micro model can please, as in tests/rl/test_trainer.py.

    Notes what this process judged of every step in `notes`, and waits before each, in seconds.
    """
    from jax._src import compiler

    from nspo_jax.rl import batches
    from scripts import launch, train

    # jax lets process 0 alone write to the compile cache, where each process has keys of its own:
    # without this the others compile everything anew in every run, and process 0 waits for them
    compiler.distributed = types.SimpleNamespace(
        global_state=types.SimpleNamespace(process_id=0, client=None)
    )
    sampling, judging = batches.RolloutBatches.sample, []

    def judge(self, conversations, completions):
        odd = np.array([len(text.split()) % 2 for text in completions], np.float32)
        if judging:  # a step's and not an evaluation's
            rows = [
                [row.prompt, text] for row, text in zip(conversations, completions, strict=True)
            ]
            with notes.open("a") as file:
                file.write(json.dumps(rows) + "\n")
        return -odd, {"odd": odd}

    def sample(self, *arguments):
        time.sleep(pause)
        judging.append(True)
        result = sampling(self, *arguments)
        judging.clear()
        return result

    world_judge.WorldJudge.__call__, batches.RolloutBatches.sample = judge, sample
    launch.run(train.main)


@dataclasses.dataclass
class Run:
    """Processes of one run; `outputs` and `notes` (see `child`) are where each writes."""

    workdir: pathlib.Path
    children: list[multiprocessing.process.BaseProcess]
    outputs: list[pathlib.Path]
    notes: list[pathlib.Path]

    def wait(self, seconds: float = 300) -> list[int | None]:
        """Their exit statuses; whatever happens, none of them outlives this."""
        end = time.monotonic() + seconds
        try:
            for child in self.children:
                child.join(max(0.1, end - time.monotonic()))
            return [child.exitcode for child in self.children]
        finally:
            for child in self.children:
                child.kill()

    def after_samples(self, count: int, before: int) -> None:
        """Waits until process 0 has judged `count` steps more than the `before` of earlier runs."""
        end = time.monotonic() + 300
        while all(child.is_alive() for child in self.children) and time.monotonic() < end:
            if lines(self.notes[0]) >= before + count:
                return
            time.sleep(0.02)
        pytest.fail(f"{count} steps were not reached:\n{self.said()}")

    def said(self) -> str:
        return "\n----\n".join(path.read_text() for path in self.outputs)


@dataclasses.dataclass
class Pods:
    """Starts runs in one workspace, with one compile cache."""

    folder: pathlib.Path

    def start(self, name: str, processes: int, *flags: str, pause: float = 0.0, devices: int = 1):
        workdir = self.folder / name
        notes = [self.folder / f"{name}.{process}.jsonl" for process in range(processes)]
        targets = [(child, note, pause) for note in notes]
        return self._start(name, targets, [*flags, f"--workdir={workdir}"], devices, notes)

    def start_script(self, script: str, name: str, processes: int, *flags: str):
        return self._start(name, [(forks.run_script, script)] * processes, [*flags], 1, [])

    def _start(self, name, targets, flags, devices, notes) -> Run:
        processes, port = len(targets), free_port()
        argv = [
            f"--config={ROOT / 'configs' / 'default.py'}",
            f"--config.workspace={self.folder / 'workspace'}",
            *(f"--config.{field}={value}" for field, value in MICRO.items()), *flags,
            f"--processes={processes}",
        ]  # fmt: skip
        outputs = [self.folder / f"{name}.{process}.txt" for process in range(processes)]
        children = []
        for process, (target, *arguments) in enumerate(targets):
            joins = [f"--coordinator=localhost:{port}", f"--process={process}"]
            children.append(
                forks.start(
                    target, *arguments,
                    argv=(*argv, *(joins if processes > 1 else [])), stdout=outputs[process],
                    JAX_COMPILATION_CACHE_DIR=str(self.folder / "cache"),
                    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
                    XLA_FLAGS=compiling.xla_flags(devices),
                )
            )  # fmt: skip
        return Run(self.folder / name, children, outputs, notes)

    def finish(self, *arguments, **options) -> Run:
        run = self.start(*arguments, **options)
        codes = run.wait()
        assert codes == [0] * len(codes), run.said()
        return run


def lines(path: pathlib.Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def logged(workdir):
    """Every logged number that does not depend on the machine."""
    return [
        {name: value for name, value in row.items() if not name.startswith("speed/")}
        for row in metrics.read_metrics(workdir)
    ]


def judged(run):
    """What was judged: a list a step, of the processes' rows one after another."""
    notes = [path.read_text().splitlines() for path in run.notes]
    return [[json.loads(rows) for rows in step] for step in zip(*notes, strict=True)]


@pytest.fixture(scope="module")
def pods(tmp_path_factory):
    return Pods(tmp_path_factory.mktemp("pods"))


@pytest.fixture(scope="module")
def two(pods):
    """An uninterrupted run of two processes, which made the base model and the projectors.

    Each holds half of the parameters.
    """
    return pods.finish("two", 2, *SHARDED)


@pytest.fixture(scope="module")
def one(pods, two):
    """The same by one process with one device."""
    del two  # which made what runs share
    return pods.finish("one", 1)


# ------------------------------------------------------------------------------- the same run


def assert_same_curve(workdir, reference):
    rows, wanted = logged(workdir), logged(reference)
    assert [row.keys() for row in rows] == [row.keys() for row in wanted]
    assert max(row.get("train/gradient_norm", 0) for row in wanted) > 0  # something is learned
    for row, other in zip(rows, wanted, strict=True):
        for name, value in other.items():
            assert row[name] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), name
    policies = [
        safetensors.numpy.load_file(path / "policy" / "model.safetensors")
        for path in (workdir, reference)
    ]
    assert policies[0].keys() == policies[1].keys()
    for name, tensor in policies[1].items():
        np.testing.assert_allclose(policies[0][name], tensor, rtol=0, atol=TOLERANCE, err_msg=name)


def test_two_processes_with_sharded_parameters_are_one(one, two):
    assert_same_curve(two.workdir, one.workdir)
    shares, whole = judged(two), judged(one)
    assert len(whole) == 6
    for (first, second), (both,) in zip(shares, whole, strict=True):
        assert len(first) == len(second) == 32
        assert first + second == both  # disjoint, complete, in order, with the same completions


def test_four_processes_are_one(pods, one):
    four = pods.finish("four", 4)
    assert_same_curve(four.workdir, one.workdir)
    shares, whole = judged(four), judged(one)
    assert [sum(parts, []) for parts in shares] == [both for (both,) in whole]


def test_process_0_writes_and_the_others_are_silent(two):
    assert {path.name for path in two.workdir.iterdir()} == {
        "config.json", "metrics.jsonl", "tensorboard", "checkpoints", "certificate.json",
        "policy", "delta", "summary.json",
    }  # fmt: skip
    first, second = (path.read_text() for path in two.outputs)
    assert (
        "weight change inside the protected subspace" in first and "process 0 of 2 is up" in first
    )
    assert [line for line in second.splitlines() if "Gloo" not in line] == ["process 1 of 2 is up"]


def test_two_processes_evaluate_and_certify_as_one_does(pods, two):
    """Also with a limit that is broken, which every process tells by its exit status."""
    policy, reports, tables = f"--policy={two.workdir / 'policy'}", [], []
    for processes in (1, 2):
        output = pods.folder / f"certificate.{processes}.json"
        run = pods.start_script(
            "certify", f"certify.{processes}", processes, policy, f"--output={output}",
            "--fail_above=held_out.kl=1e-30",
        )  # fmt: skip
        assert run.wait() == [1] * processes, run.said()
        assert "changes more of the base model than --fail_above allows" in run.said()
        reports.append(json.loads(output.read_text()))
        run = pods.start_script("evaluate", f"evaluate.{processes}", processes, policy)
        assert run.wait() == [0] * processes, run.said()
        tables.append(run.outputs[0].read_text().splitlines()[-6:])
    one, both = ({**report, "provenance": None} for report in reports)
    assert len(numbers(one)) > 9
    assert numbers(both) == pytest.approx(numbers(one), rel=1e-3, abs=1e-7)
    assert tables[0] == tables[1] and any("unsafe" in line for line in tables[0])


def numbers(report, place=""):
    """Every number of a report, by its place."""
    if isinstance(report, dict | list):
        items = report.items() if isinstance(report, dict) else enumerate(report)
        return {k: v for name, part in items for k, v in numbers(part, f"{place}/{name}").items()}
    return {place: report} if isinstance(report, int | float) else {}


def test_a_run_of_one_device_continues_on_eight(pods, one):
    workdir = pods.folder / "eight"
    shutil.copytree(one.workdir, workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    for name in ("summary.json", "certificate.json"):
        (workdir / name).unlink()
    run = pods.finish("eight", 1, devices=8)
    assert "at step 4" in run.said()
    assert_same_curve(workdir, one.workdir)


# ----------------------------------------------------------------------------------- deaths


def test_kills_and_a_preemption_cost_nothing(pods, two):
    """kill -9 of either process, then SIGTERM to one of them: all stop, and go on bit for bit."""
    rng = random.Random()
    kills = list(zip((rng.randint(1, 4), rng.randint(1, 2)), rng.sample(range(2), 2), strict=True))
    print(f"kills, as (steps of a run, process): {kills}")

    def start(steps):
        before = lines(pods.folder / "killed.0.jsonl")
        run = pods.start("killed", 2, *SHARDED, pause=0.2)
        run.after_samples(steps, before)
        return run

    for steps, victim in kills:
        run = start(steps)
        run.children[victim].kill()
        killed = time.monotonic()
        codes = run.wait(60)
        assert time.monotonic() - killed < 10
        assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1, run.said()
        said = run.outputs[1 - victim].read_text()
        assert f"Process {victim} of 2 died" in said and "Run the same command again" in said
        assert not (run.workdir / "summary.json").exists()

    run = start(1)
    run.children[rng.randrange(2)].terminate()
    asked = time.monotonic()
    assert run.wait(60) == [0, 0], run.said()
    assert time.monotonic() - asked < 30
    for output in run.outputs:
        assert "SIGTERM: stopped with step" in output.read_text()
    assert not (run.workdir / "summary.json").exists()

    pods.finish("killed", 2, *SHARDED)
    for name in ("policy/model.safetensors", "certificate.json"):
        assert (run.workdir / name).read_bytes() == (two.workdir / name).read_bytes(), name
    assert logged(run.workdir) == logged(two.workdir)


def test_a_checkpoint_that_one_process_cannot_read_is_passed_over_by_both(pods, two):
    workdir = shutil.copytree(two.workdir, pods.folder / "damaged")
    (workdir / "summary.json").unlink()
    for path in (workdir / "checkpoints" / "6" / "state").glob("ocdbt.process_1/d/*"):
        path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    run = pods.finish("damaged", 2, *SHARDED)
    said = run.outputs[0].read_text()
    assert "checkpoints/6 cannot be restored (another process cannot read it)" in said
    assert "falling back to" in said and "at step 4" in said
    assert logged(run.workdir) == logged(two.workdir)


# -------------------------------------------------------------------------------- the parts


def test_what_is_heard_of_a_death():
    """Process 0 hears it of 1, which does not say goodbye, and tells 2; 3 said goodbye before."""
    server, heard = liveness.listen(), {0: [], 2: []}
    event = threading.Event()

    def ended(process):
        def note(dead):
            heard[process].append(dead)
            if all(heard.values()):
                event.set()

        return note

    watch = liveness.LivenessWatch(ended(0), {}, server)
    links = [liveness.connect(["localhost"], server.getsockname()[1], i) for i in (1, 2, 3)]
    other = liveness.LivenessWatch(ended(2), {0: links[1]})
    leaving = liveness.LivenessWatch(ended(2), {0: links[2]})
    leaving.goodbye()
    links[2].close()
    links[0].close()
    assert event.wait(10), heard
    assert heard == {0: [1], 2: [1]}
    watch.goodbye()
    other.goodbye()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("localhost:1", 2, None), "--coordinator=localhost:1 --processes=2 without --process"),
        ((None, None, 1), "--process=1 without --coordinator and --processes"),
        (("localhost", 2, 0), "'localhost'; expected host:port"),
        (("localhost:1", 2, 2), "numbered from 0 to 1"),
    ],
)
def test_flags_that_do_not_fit_together(arguments, words):
    with pytest.raises(ValueError, match=words):
        distributed.initialize(*arguments)


def test_rows_that_do_not_divide(monkeypatch):
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 3)
    monkeypatch.setattr(distributed.jax, "process_index", lambda: 2)
    assert distributed.own_rows(6) == slice(4, 6)
    with pytest.raises(ValueError, match="16 rows do not divide over 3 processes: make rl.prompts"):
        distributed.own_rows(16)
