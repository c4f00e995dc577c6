"""A sandbox that runs Python programs which a model wrote, each in a child process of its own.

With isolation a program has its own Linux namespaces: no network, no process but its own, and a
file system of a read-only Python and a small /tmp. `open_sandbox` proves that by a hostile program
before any other runs. Without isolation (`unsafe`) the limits on time, memory, processes, open
files and output remain, and the program sees the files and the network that its user sees.

A program has passed if its checks ran to their end, which it proves by a token that it gets after
its own code has run (`confinement`); no exit status counts. The checks run in the program's own
process: a solution that is written to deceive them from inside, such as a result that equals
everything, passes here as it does in other evaluators.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent import futures
import functools
import json
import os
import pathlib
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any, NamedTuple

from nspo_jax.evaluation import breakout, confinement

PASSED, FAILED, TIMED_OUT, OUT_OF_MEMORY = "passed", "failed", "timed out", "out of memory"
OUTCOMES = (PASSED, FAILED, TIMED_OUT, OUT_OF_MEMORY)
TAIL = 2000  # bytes of output that are kept, the last, unless limits say more
_GRACE = 3.0  # seconds for a child to end what it started, before it is killed
_LARGEST_TALK = 1 << 16  # bytes that a program says to the parent
# all that a program finds in its environment; one arena and one thread need little memory
_ENVIRONMENT = {
    "HOME": "/tmp", "LANG": "C.UTF-8", "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0",
    "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
}  # fmt: skip
_TOP = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SYSCTLS = {
    "kernel/unprivileged_userns_clone": "0",
    "kernel/apparmor_restrict_unprivileged_userns": "1",
    "user/max_user_namespaces": "0",
}
_UNSAFE = (
    "Run it where nothing can be harmed, such as a container without a network, with "
    "--unsafe_exec: limits of time, memory and processes stay, files and network are open."
)


class RefusedError(ValueError):
    """The refusal to run programs where they cannot be confined."""


class Limits(NamedTuple):
    """The limits of one program.

    seconds: of wall clock, and one more of processor time for each process.
    memory: bytes of address space for a process, and of memory for all of them.
    processes: processes and threads at once.
    file_bytes: the largest file; with isolation also all files together.
    open_files: for each process.
    output_bytes: printed bytes that end a program.
    kept_bytes: printed bytes that a result keeps, the last.
    """

    seconds: float = 10.0
    memory: int = 1 << 30
    processes: int = 32
    file_bytes: int = 16 << 20
    open_files: int = 64
    output_bytes: int = 16 << 20
    kept_bytes: int = TAIL


class Program(NamedTuple):
    """A program: a solution, and checks that run after it in the same module."""

    solution: str
    checks: str


class Result(NamedTuple):
    """The result of a program.

    outcome: one of `OUTCOMES`.
    detail: why it did not pass, in a line; "" if it did.
    output: the last bytes that it printed, as many as the limits keep.
    seconds: of wall clock, with the start of the child.
    """

    outcome: str
    detail: str
    output: str
    seconds: float


class Sandbox:
    """A place for programs, which `open_sandbox` makes and checks."""

    def __init__(self, *, isolated: bool, limits: Limits):
        self.isolated, self.limits = isolated, limits
        packages = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
        packages = [path for path in packages if os.path.isdir(path)]
        wanted = ["/usr", os.path.realpath(sys.base_prefix), *map(os.path.realpath, packages)]
        top = [f"/{name}" for name in _TOP]
        wanted += [path for path in top if os.path.isdir(path) and not os.path.islink(path)]
        wanted += [path for path in ["/etc/ld.so.cache"] if os.path.exists(path)]
        self._settings = {
            "isolated": isolated,
            "limits": limits._asdict(),
            "visible": _outermost(wanted),
            "links": {path[1:]: os.readlink(path) for path in top if os.path.islink(path)},
            "packages": [os.path.realpath(path) for path in packages],
            "executable": os.path.realpath(sys.executable),
        }

    def limited(self, limits: Limits) -> "Sandbox":
        """Returns the same sandbox with other limits."""
        return Sandbox(isolated=self.isolated, limits=limits)

    def run(self, program: Program) -> Result:
        """Runs a program to its end, which comes within the limits.

        Raises:
          RefusedError: if the child process could not confine the program.
        """
        start = time.monotonic()
        ours, theirs = socket.socketpair()
        with ours, tempfile.TemporaryDirectory(prefix="nspo_exec_") as directory:
            with theirs:
                settings = self._settings | {"directory": directory, "parent": os.getpid()}
                child = subprocess.Popen(
                    [sys.executable, "-s", "-S", "-P", "-B", "-u", confinement.__file__,
                     json.dumps(settings)],
                    stdin=theirs.fileno(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    cwd="/", env=_ENVIRONMENT, start_new_session=True,
                )  # fmt: skip
            with child:
                talk = _Talk(child, ours, program, self.limits)
                try:
                    talk.listen()
                finally:
                    _kill_group(child)
        outcome, detail = talk.judge()
        return Result(outcome, detail, talk.output(), time.monotonic() - start)

    def run_all(
        self,
        programs: Sequence[Program],
        *,
        workers: int | None = None,
        told: Callable[[int], Any] = lambda count: None,
    ) -> list[Result]:
        """Runs programs, several at a time, and returns their results in the same order.

        Args:
          programs: the programs.
          workers: programs at a time; None: as many as there are processors.
          told: gets the number of programs that have just ended.

        Raises:
          RefusedError: that of `run`.
        """
        return run_parallel(
            [functools.partial(self.run, each) for each in programs], workers=workers, told=told
        )


def run_parallel(
    tasks: Sequence[Callable[[], Any]],
    *,
    workers: int | None = None,
    told: Callable[[int], Any] = lambda count: None,
) -> list[Any]:
    """Calls functions that wait for programs, several at a time; see `Sandbox.run_all`."""
    results: dict[int, Any] = {}
    pool = futures.ThreadPoolExecutor(min(workers or 2**31, os.cpu_count() or 1))
    try:
        started = {pool.submit(task): n for n, task in enumerate(tasks)}
        for ended in futures.as_completed(started):
            results[started[ended]] = ended.result()
            told(1)
    finally:
        pool.shutdown(cancel_futures=True)
    return [results[number] for number in range(len(tasks))]


def open_sandbox(*, unsafe: bool = False, limits: Limits | None = None) -> Sandbox:
    """Opens a sandbox, after a hostile program has shown that it holds.

    Args:
      unsafe: does without namespaces; their absence is no longer an error.
      limits: the limits of each program; None: the defaults.

    Raises:
      RefusedError: if programs cannot be confined here.
    """
    if sys.platform != "linux":
        raise RefusedError(
            f"The system is {sys.platform}, and programs that a model wrote run on Linux alone: "
            "expected its namespaces and limits. Evaluate on Linux, for instance in a container."
        )
    sandbox = Sandbox(isolated=not unsafe, limits=limits or Limits())
    reason = _probe(sandbox)
    if reason and unsafe:
        raise RefusedError(
            f"--unsafe_exec cannot limit a program here: {reason}. Expected a program that ends "
            "within its limits; root needs a Python that other users can read."
        )
    if reason:
        hints = [f"{path.replace('/', '.')} is {value}" for path, value in _SYSCTLS.items()
                 if _sysctl(path) == value]  # fmt: skip
        raise RefusedError(
            f"Programs that a model wrote cannot be confined here: {reason}"
            f"{''.join(f'; {hint}' for hint in hints)}. Expected Linux 5.14 or newer that lets "
            "this user take namespaces (user, mount, process, network); containers often forbid "
            "them. "
            f"{_UNSAFE}"
        )
    return sandbox


def _sysctl(name: str) -> str:
    path = pathlib.Path("/proc/sys") / name
    return path.read_text().strip() if path.exists() else ""


def _outermost(paths: Iterable[str]) -> list[str]:
    """Returns the paths that lie below no other one."""
    found: list[str] = []
    for path in sorted(set(paths)):
        if not any(path.startswith(f"{other}/") for other in found):
            found.append(path)
    return found


def _kill_group(child: subprocess.Popen) -> None:
    """Kills what a child may have left in its process group; mostly there is nothing."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


class _Talk:
    """The parent's side of one program: it sends the parts, reads all, and judges."""

    def __init__(self, child: Any, control: socket.socket, program: Program, limits: Limits):
        self._child, self._control, self._program, self._limits = child, control, program, limits
        self._token = secrets.token_hex(confinement.TOKEN_BYTES // 2).encode()
        self._said, self._verdict = b"", b""
        self._printed, self._tail = 0, bytearray()
        self._late = False  # the child did not end in time itself
        self._unsent = memoryview(_framed(program.solution.encode("utf-8", "replace")))
        self._checks_sent = False

    def listen(self) -> None:
        """Talks with the child until it ends or is killed."""
        deadline = time.monotonic() + self._limits.seconds + _GRACE
        asked = False
        sources = {self._child.stdout: self._print, self._child.stderr: self._report}
        with selectors.DefaultSelector() as selector:
            for file in (self._control, *sources):
                os.set_blocking(file.fileno(), False)
                selector.register(file, selectors.EVENT_READ)
            while self._child.stderr in selector.get_map():
                if self._control in selector.get_map():
                    write = selectors.EVENT_WRITE if self._unsent else 0
                    selector.modify(self._control, selectors.EVENT_READ | write)
                for key, events in selector.select(min(1.0, max(0, deadline - time.monotonic()))):
                    read = sources.get(key.fileobj)
                    if not (self._converse(events) if read is None else read()):
                        selector.unregister(key.fileobj)
                if self._printed > self._limits.output_bytes and not asked:
                    asked, deadline = True, min(deadline, time.monotonic() + _GRACE)
                    self._child.terminate()
                if time.monotonic() >= deadline:
                    self._late = True
                    return
        while not self._child.stdout.closed and self._print(whole=False):  # what is in the pipe
            pass

    def judge(self) -> tuple[str, str]:
        """Returns the outcome and its detail."""
        report = json.loads(self._verdict) if self._verdict else {}
        if confinement.CANNOT in report:
            raise RefusedError(
                f"A program could not be confined: {report[confinement.CANNOT]}. {_UNSAFE}"
            )
        lines = self._said.split(b"\n")[:-1]
        if confinement.TOKEN + self._token in lines:
            return PASSED, ""
        seconds, status = self._limits.seconds, report.get("status")
        if self._printed > self._limits.output_bytes:
            return FAILED, f"It printed more than {self._limits.output_bytes} bytes."
        kind, words = _raised(lines)
        if report.get("reason") == confinement.MEMORY or kind == "MemoryError":
            return OUT_OF_MEMORY, f"It wanted more than {self._limits.memory} bytes of memory."
        timed = (128 + signal.SIGXCPU, 128 + signal.SIGKILL)
        if self._late or report.get("reason") == confinement.TIME or status in timed:
            return TIMED_OUT, f"It did not end within {seconds:g} seconds."
        if kind:
            return FAILED, " ".join(f"{kind}: {words}".split()).removesuffix(":")
        return FAILED, f"It ended with status {status} before its checks had run to their end."

    def output(self) -> str:
        """Returns the last bytes that the program printed, as text."""
        return self._tail.decode("utf-8", "replace")

    def _print(self, *, whole: bool = True) -> bool:
        """Reads output; returns whether there can be more."""
        data = _read(self._child.stdout)
        self._printed += len(data or b"")
        self._tail += data or b""
        del self._tail[: -self._limits.kept_bytes]
        at_most = whole or self._printed <= self._limits.output_bytes + (1 << 20)
        return data != b"" and (whole or data is not None) and at_most

    def _report(self) -> bool:
        data = _read(self._child.stderr)
        self._verdict += data or b""
        return data != b""

    def _converse(self, events: int) -> bool:
        """Sends what is unsent and reads what is said; returns whether there can be more."""
        try:
            if events & selectors.EVENT_WRITE:
                self._unsent = self._unsent[self._control.send(self._unsent) :]
            if not events & selectors.EVENT_READ:
                return True
            data = self._control.recv(1 << 12)
        except BlockingIOError:
            return True
        except OSError:  # the program has closed its end
            return False
        self._said += data
        if not self._checks_sent and confinement.READY in self._said.split(b"\n")[:-1]:
            checks = self._program.checks.encode("utf-8", "replace")
            self._unsent = memoryview(_framed(self._token + checks))
            self._checks_sent = True
        return bool(data) and len(self._said) < _LARGEST_TALK


def _framed(data: bytes) -> bytes:
    return len(data).to_bytes(8, "big") + data


def _read(file: Any) -> bytes | None:
    """Returns what a pipe holds, b"" at its end, None if it holds nothing now."""
    try:
        return os.read(file.fileno(), 1 << 16)
    except BlockingIOError:
        return None


def _raised(lines: list[bytes]) -> tuple[str, str]:
    """Returns the kind and the words of the exception that a program told; it may tell anything."""
    for line in lines:
        if line.startswith(confinement.RAISED):
            try:
                kind, words = json.loads(line.removeprefix(confinement.RAISED))
            except ValueError:
                return "", ""
            return str(kind)[:80], str(words)[:500]
    return "", ""


def _probe(sandbox: Sandbox) -> str:
    """Runs a program that tries to break out; returns what it could do, or ""."""
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.NamedTemporaryFile() as canary:
        given = {
            "LIMITS": sandbox.limits._asdict(),
            "ENVIRONMENT": sorted({*_ENVIRONMENT}),
            "ISOLATED": sandbox.isolated,
            "ADDRESS": server.getsockname(),
            "PARENT": os.getpid(),
            "CANARY": canary.name,
        }
        values = "\n".join(f"{name} = {value!r}" for name, value in given.items())
        try:
            result = sandbox.run(Program(f"{values}\n{breakout.ATTEMPTS}", breakout.VERDICT))
        except RefusedError as error:
            return str(error).removesuffix(f". {_UNSAFE}")
    return "" if result.outcome == PASSED else f"a test program {result.outcome}, {result.detail}"
