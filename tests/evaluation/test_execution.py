"""The sandbox, by programs that try to break it, and by the published solutions."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from nspo_jax.evaluation import breakout, coding, confinement, execution

LONG = execution.Limits(seconds=60.0)
SHORT = execution.Limits(seconds=1.5, memory=256 << 20)


def open_or_skip(**options):
    try:
        return execution.open_sandbox(**options)
    except execution.RefusedError as error:
        pytest.skip(f"programs cannot be confined here: {error}")


@pytest.fixture(scope="module")
def isolated():
    return open_or_skip(limits=SHORT)


@pytest.fixture(scope="module", params=["isolated", "unsafe"])
def sandbox(request):
    return open_or_skip(unsafe=request.param == "unsafe", limits=SHORT)


def run(sandbox, solution, checks="assert add(1, 2) == 3"):
    return sandbox.run(execution.Program(solution, checks))


def children(parent=None):
    """The processes of a parent's programs that still live; None: of this process."""
    found, said = [], f'"parent": {os.getpid() if parent is None else parent}}}'.encode()
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
            if confinement.__file__.encode() in words and said in words:
                found.append(entry.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


ADD = "def add(a, b):\n    return a + b\n"


def test_a_right_solution_passes_and_a_wrong_one_does_not(sandbox):
    assert run(sandbox, ADD).outcome == execution.PASSED
    wrong = run(sandbox, "def add(a, b):\n    print('adding')\n    return a - b\n")
    assert (wrong.outcome, wrong.detail) == (execution.FAILED, "AssertionError")
    assert wrong.output == "adding\n"
    for solution, words in {
        "def add(a, b) return": "SyntaxError",
        "": "NameError: name 'add' is not defined",
        "import no_such_module": "ModuleNotFoundError",
        "def add(a, b):\n    return input()": "EOFError",
        "import sys; sys.setrecursionlimit(10**9)\ndef add(a, b): return add(a, b)": "",
    }.items():
        found = run(sandbox, solution)
        assert found.outcome != execution.PASSED and words in found.detail, found


def test_a_main_block_does_not_run_as_in_the_published_evaluators(sandbox):
    assert run(sandbox, f"{ADD}if __name__ == '__main__':\n    1 / 0\n").outcome == execution.PASSED


# a program that ends, replaces or forges what comes after it, instead of solving the problem
CHEATS = {
    "sys.exit(0)": "import sys\nprint('ok')\nsys.exit(0)",
    "os._exit(0)": "import os\nos._exit(0)",
    "exit in the checks": "import os\ndef add(a, b):\n    os._exit(0)",
    "SystemExit in the checks": "def add(a, b):\n    raise SystemExit(0)",
    "exec and compile replaced": "import builtins\nbuiltins.exec = print\n"
    "builtins.compile = lambda *a, **k: compile('', '', 'exec')\nbuiltins.len = lambda _: 32\n",
    "AssertionError replaced": "import builtins\nbuiltins.AssertionError = KeyboardInterrupt\n"
    "def add(a, b): return 0",
    "os.read, os.write, json replaced": "import os, json, socket\nos.read = os.write = "
    "json.dumps = lambda *a, **k: b'{}'\nsocket.socket.recv = lambda *a: b''\n"
    "def add(a, b): return 0",
    "modules removed": "import sys\nsys.modules.clear()",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\nraise ValueError",
    "the protocol, with a guess": "import os\nfor fd in range(3, 20):\n  try:\n"
    "    os.write(fd, b'ready\\ntoken ' + b'0' * 32 + b'\\n{}\\n')\n  except OSError: pass\n"
    "os._exit(0)",
    "a child that goes on": "import os\nif os.fork():\n    os._exit(0)",
    "killed": "import os\nos.kill(os.getpid(), 9)",
}


@pytest.mark.parametrize("name", CHEATS)
def test_an_end_before_the_checks_end_is_no_pass(sandbox, name):
    assert run(sandbox, CHEATS[name]).outcome in (execution.FAILED, execution.TIMED_OUT)


FORKS = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
ENDLESS = {
    "a loop": "while True: pass",
    "a loop that catches all": "import time\nwhile True:\n    try:\n        while True: time.sleep"
    "(9)\n    except BaseException: pass",
    "signals ignored": "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, "
    "signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
    "while True: signal.sigtimedwait([], 9)",
    "a fork bomb": FORKS,
    "a fork bomb in sessions": "import os\nwhile True:\n    try:\n        os.fork() or os.setsid()"
    "\n    except OSError: pass",
    "threads": "import threading, time\nwhile True:\n    try: threading.Thread(target=time.sleep, "
    "args=(99,)).start()\n    except RuntimeError: time.sleep(0.1)",
    "an end that hangs": "class A(BaseException):\n    def __str__(self):\n        while True: pass"
    "\nraise A",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_endless_program_is_ended_with_all_its_children(sandbox, name):
    before = time.monotonic()
    found = run(sandbox, ENDLESS[name])
    assert found.outcome == execution.TIMED_OUT, found
    assert time.monotonic() - before < SHORT.seconds + 10
    assert not children()


def test_the_search_for_children_finds_them(sandbox):
    thread = threading.Thread(target=run, args=(sandbox, "while True: pass"))
    thread.start()
    wait_for(lambda: len(children()) >= 2)
    thread.join()
    assert not children()


def test_daemons_and_zombies_end_with_their_program(sandbox):
    daemon = (
        "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n"
        "        time.sleep(60)\n    os._exit(0)\n"
    )
    assert run(sandbox, daemon + ADD).outcome == execution.PASSED
    assert not children()


def test_memory_is_limited_for_one_and_for_all(sandbox):
    for solution in (
        "x = bytearray(10**10)",
        "x = []\nwhile True: x.append(bytearray(10**6))",
        # each below the limit of one
        "import os, time\nfor _ in range(3): os.fork()\nx = bytearray(b'1') * (100 << 20)\n"
        "time.sleep(9)",
    ):
        found = run(sandbox, solution)
        assert found.outcome == execution.OUT_OF_MEMORY, found


def test_output_is_read_and_cut_and_ends_a_program(sandbox):
    found = run(sandbox, f"print('a' * 10**6 + 'the end')\n{ADD}")
    assert found.outcome == execution.PASSED
    assert found.output.endswith("the end\n") and len(found.output) == execution.TAIL
    found = run(sandbox, "while True: print('x' * 10000)")
    assert (found.outcome, found.seconds < 5) == (execution.FAILED, True)
    assert "printed more than" in found.detail
    assert "\ufffd" in run(sandbox, "import os; os.write(1, bytes(range(256)))").output


def test_files_are_limited(sandbox):
    found = run(sandbox, "open('big', 'wb').write(bytes(1 << 25))")
    assert found.outcome == execution.FAILED
    found = run(sandbox, "kept = [open('f', 'w') for _ in range(1000)]")
    assert "Too many open files" in found.detail


def test_all_files_together_are_limited(isolated):
    fill = "for n in range(64): open(str(n), 'wb').write(bytes(1 << 20))"
    assert "No space left" in run(isolated, fill).detail
    many = "import os\nfor n in range(10**5): os.mkdir(str(n))"
    assert "No space left" in run(isolated, many).detail


def test_nothing_outside_is_seen_or_harmed(isolated, tmp_path, monkeypatch):
    monkeypatch.setenv("NSPO_SECRET", "secret")
    (tmp_path / "kept").write_text("kept")
    with socket.create_server(("127.0.0.1", 0)) as server:
        attempts = {
            "environment": "found = 'NSPO_SECRET' in os.environ or b'secret' in "
            "open('/proc/1/environ', 'rb').read()",
            "read": f"found = open({str(tmp_path / 'kept')!r}).read()",
            "delete": f"shutil.rmtree({str(tmp_path)!r}); found = 1",
            "everything": "shutil.rmtree('/usr'); found = 1",
            "python": "os.remove(os.__file__); found = 1",
            "write": "open(os.path.dirname(os.__file__) + '/x', 'w'); found = 1",
            "link": f"os.symlink({str(tmp_path)!r}, 'link'); found = os.listdir('link')",
            "home": f"found = os.listdir({os.path.expanduser('~')!r} + '/.ssh')",
            "connect": f"found = socket.create_connection({server.getsockname()!r}, 1)",
            "resolve": "found = socket.getaddrinfo('example.com', 80)",
            "unix": "s = socket.socket(socket.AF_UNIX); s.connect('/run/dbus/system_bus_socket')"
            "; found = 1",
            "signal": f"os.kill({os.getpid()}, 9); found = 1",
            "nice": f"os.setpriority(os.PRIO_PROCESS, {os.getpid()}, 5); found = 1",
            "root": "os.setuid(0); found = 1 if os.getuid() == 0 else 1 / 0",
            "limits": "resource.setrlimit(resource.RLIMIT_AS, (-1, -1)); found = 1",
            "chroot": "os.mkdir('d'); os.chroot('d'); found = 1",
            "mount": "libc = ctypes.CDLL(None); "
            "found = 1 / (libc.mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0)",
            "namespace": "libc = ctypes.CDLL(None); found = 1 / (libc.unshare(0x10000000) == 0)",
        }
        modules = "import ctypes, os, resource, shutil, socket\n"
        for name, attempt in attempts.items():
            found = run(isolated, modules + attempt, "assert found")
            assert found.outcome == execution.FAILED, (name, found)
            assert "NameError" not in found.detail, (name, found)
    assert (tmp_path / "kept").read_text() == "kept"
    assert pathlib.Path(os.__file__).exists()


def test_signals_to_all_processes_and_to_the_first_one_stay_inside(isolated):
    loud = "import os\nfor n in (2, 9, 15, 19):\n  for p in (1, -1, 0):\n    try: os.kill(p, n)\n"
    found = run(isolated, f"{loud}    except OSError: pass\n")
    assert found.outcome in (execution.FAILED, execution.TIMED_OUT)
    assert not children()


def test_the_environment_is_its_own_without_isolation_too(sandbox, monkeypatch):
    monkeypatch.setenv("NSPO_SECRET", "secret")
    names = "import os\nfound = {k for k in os.environ if 'NSPO' in k}\nassert os.getcwd() != '/'\n"
    assert run(sandbox, names, "assert not found").outcome == execution.PASSED


def test_ordinary_means_of_a_program_work(sandbox):
    usual = (
        "import dataclasses, multiprocessing, pickle, re, subprocess, sys, tempfile, threading\n"
        "import collections, decimal, fractions, heapq, itertools, math, random\n"
        "import statistics, typing\n"
        "@dataclasses.dataclass\nclass A:\n    x: int = 1\n"
        "assert pickle.loads(pickle.dumps(A(3))) == A(3)\n"
        "t = threading.Thread(target=print, args=('thread',)); t.start(); t.join()\n"
        "assert subprocess.run([sys.executable, '-S', '-c', 'print(3)'], capture_output=True"
        ").stdout == b'3\\n'\n"
        "with tempfile.NamedTemporaryFile('w', dir='.') as f: f.write('x')\n"
        "multiprocessing.Queue()\nimport numpy\nassert numpy.ones(3).sum() == 3\n"
    )
    found = run(execution.Sandbox(isolated=sandbox.isolated, limits=LONG), usual + ADD)
    assert found.outcome == execution.PASSED, found


def test_large_programs_and_checks_arrive(sandbox):
    many = "\n".join(f"assert add({n}, 1) == {n + 1}" for n in range(20_000))
    found = run(sandbox, f"{ADD}text = {'x' * 10**6!r}\n", many)
    assert found.outcome == execution.PASSED, found


def test_results_come_in_order_and_the_count_is_told(sandbox):
    told = []
    programs = [execution.Program(ADD, f"assert add(1, 1) == {n}") for n in range(4)]
    found = sandbox.run_all(programs, workers=2, told=told.append)
    assert [result.outcome == execution.PASSED for result in found] == [False, False, True, False]
    assert told == [1] * 4
    assert sandbox.run_all([]) == []


def test_a_program_ends_with_the_process_that_started_it(sandbox, tmp_path):
    code = (
        "from nspo_jax.evaluation import execution\n"
        f"s = execution.Sandbox(isolated={sandbox.isolated}, limits=execution.Limits())\n"
        "print('ready', flush=True)\ns.run(execution.Program('while True: pass', ''))\n"
    )
    root = pathlib.Path(__file__).resolve().parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        cwd=root,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as parent:
        assert parent.stdout.readline() == b"ready\n"
        wait_for(lambda: len(children(parent.pid)) >= 2)
        parent.kill()
    wait_for(lambda: not children(parent.pid))


def wait_for(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_sandbox_that_does_not_hold_is_refused(monkeypatch):
    """A probe that finds the network or more memory than allowed must tell it."""
    unsafe = execution.Sandbox(isolated=False, limits=SHORT)
    attempts = breakout.ATTEMPTS.replace("if ISOLATED", "if True")
    monkeypatch.setattr(breakout, "ATTEMPTS", attempts)
    reason = execution._probe(unsafe)
    for words in ("it reaches the network;", "it sees another process", "it sees /proc;"):
        assert words in reason, reason
    monkeypatch.setattr(execution, "_probe", lambda sandbox: "it sees /proc")
    with pytest.raises(execution.RefusedError, match=r"(?s)it sees /proc.*namespaces.*unsafe_exec"):
        execution.open_sandbox()


def test_a_system_without_namespaces_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    for unsafe in (False, True):
        with pytest.raises(execution.RefusedError, match="darwin, and programs .* on Linux alone"):
            execution.open_sandbox(unsafe=unsafe)


def test_a_kernel_that_refuses_namespaces_is_told(monkeypatch):
    """A nested sandbox: a chrooted program may take no namespaces, as in many containers."""
    outer = open_or_skip(limits=SHORT)
    told = run(
        outer,
        pathlib.Path(confinement.__file__).read_text().split("if __name__ ==")[0]
        + "\n_take_namespaces()",
    )
    assert told.outcome == execution.FAILED and "PermissionError" in told.detail
    assert "in unshare" in told.detail


def test_threads_of_the_parent_do_not_matter(sandbox):
    results = []
    threads = [threading.Thread(target=lambda: results.append(run(sandbox, ADD))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [result.outcome for result in results] == [execution.PASSED] * 3


@pytest.mark.parametrize(("name", "count"), [("humaneval", 164), ("mbpp", 50)])
def test_the_published_solutions_pass_and_empty_ones_fail(shared_data, name, count):
    """All of HumanEval; of MBPP the first tenth (NSPO_EVERY_PROGRAM=1 takes its 500)."""
    sandbox = open_or_skip()
    problems = coding.read(name, shared_data)
    if name == "mbpp" and os.environ.get("NSPO_EVERY_PROGRAM"):
        count = 500
    problems = problems[:count]
    assert len(problems) == count
    results = sandbox.run_all([each.program(each.reference) for each in problems])
    failed = {
        p.identifier: r for p, r in zip(problems, results, strict=True) if r.outcome != "passed"
    }
    assert not failed
    wrong = problems[:: count // 10]
    stub = "    return None\n" if name == "humaneval" else "pass"
    results = sandbox.run_all([each.program(stub) for each in wrong])
    assert {result.outcome for result in results} == {execution.FAILED}
    assert not children()
    assert json.dumps([result._asdict() for result in results])
