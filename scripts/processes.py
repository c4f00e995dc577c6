"""A runner of several commands at a time on one machine, each on its own accelerators.

A command is done when its directory has summary.json. A command that ends without it, whatever its
exit status, was preempted or crashed: it is started again and continues from its last checkpoint.
"""

from collections.abc import Callable, Sequence
import ctypes
import dataclasses
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

_log = logging.getLogger("nspo_jax.sweep")
_POLL_SECONDS = 0.1
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl
# number of chips of a process -> their shape, in libtpu's notation
_CHIP_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}


@dataclasses.dataclass
class Job:
    """A command to run to its end.

    Attributes:
      name: its name in messages.
      command: the program and its arguments.
      directory: the directory in which it leaves summary.json once it is done.
      log: the file that its output is appended to.
      makes: paths that it makes where they are absent and that other jobs use. Two jobs that would
        make the same path do not run at once.
    """

    name: str
    command: Sequence[str]
    directory: pathlib.Path
    log: pathlib.Path
    makes: Sequence[pathlib.Path] = ()

    def done(self) -> bool:
        """Tells whether it ran to its end, now or earlier."""
        return (self.directory / "summary.json").exists()

    def missing(self) -> set[pathlib.Path]:
        """Returns the paths that it would make if it started now."""
        return {path for path in self.makes if not path.exists()}


def run_jobs(
    jobs: Sequence[Job],
    slots: Sequence[dict[str, str]],
    retries: int,
    ended: Callable[[Job], None] = lambda job: None,
) -> dict[str, str]:
    """Runs jobs, as many at a time as there are slots.

    If this process is interrupted or gets SIGTERM, its jobs get SIGTERM, and it waits until they
    have saved and ended. If it is killed, its jobs get SIGTERM as well (on Linux).

    Args:
      jobs: started in this order, but a job waits for the paths that another one makes.
      slots: environment variables, one dict for each job that may run at a time.
      retries: the most restarts of a job.
      ended: gets each job that is done.

    Returns:
      Name of a job that was given up -> the reason.
    """
    waiting, free = list(jobs), list(slots)
    running: list[_Running] = []
    attempts = dict.fromkeys((job.name for job in jobs), 0)
    failures = {}
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while waiting or running:
            busy = {path for other in running for path in other.makes if not path.exists()}
            for job in list(waiting):
                if free and not busy & job.missing():
                    waiting.remove(job)
                    running.append(_Running(job, free.pop(0)))
                    busy |= job.missing()
            time.sleep(_POLL_SECONDS)
            for item in [item for item in running if item.process.poll() is not None]:
                running.remove(item)
                free.append(item.slot)
                job, code = item.job, item.process.returncode
                if job.done():
                    ended(job)
                    continue
                why = f"exit status {code}" if code else "it stopped before its end"
                if attempts[job.name] < retries:
                    attempts[job.name] += 1
                    _log.warning("%s: %s; started again", job.name, why)
                    waiting.insert(0, job)
                else:
                    failures[job.name] = f"{why}; see {job.log}"
    finally:
        for item in running:
            item.process.terminate()
        for item in running:
            item.process.wait()
        signal.signal(signal.SIGTERM, before)
    return failures


class _Running:
    """A job's process."""

    def __init__(self, job: Job, slot: dict[str, str]):
        self.job, self.slot, self.makes = job, slot, job.missing()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as log:
            self.process = subprocess.Popen(
                job.command,
                env={**os.environ, **slot},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C reaches this process alone, which then sends SIGTERM
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )


_LIBC = ctypes.CDLL(None)  # loading it here leaves the forked child nothing to import


def _die_with_parent() -> None:
    _LIBC.prctl(_DIE_WITH_PARENT, signal.SIGTERM)


def device_slots(count: int) -> list[dict[str, str]]:
    """Returns environment variables that give each of `count` processes its accelerators.

    It does not ask jax: a process that has looked at its devices keeps them from the others. It
    sets no variable for one process, without accelerators, or with JAX_PLATFORMS=cpu.

    Raises:
      ValueError: if the accelerators do not divide over the processes.
    """
    if count < 1:
        raise ValueError(f"--parallel is {count}; expected the number of processes at a time.")
    if count == 1 or os.environ.get("JAX_PLATFORMS") == "cpu":
        return [{}] * count
    for kind, found in (("GPU", gpus()), ("TPU chip", tpu_chips())):
        if not found:
            continue
        share = len(found) // count
        if not share or len(found) % count or (kind != "GPU" and share not in _CHIP_BOUNDS):
            raise ValueError(
                f"--parallel is {count} and this machine has {len(found)} {kind}s: every process "
                "needs the same number of them, at least one. Set JAX_PLATFORMS=cpu to run on CPU."
            )
        parts = [",".join(found[i * share : (i + 1) * share]) for i in range(count)]
        if kind == "GPU":
            return [{"CUDA_VISIBLE_DEVICES": part} for part in parts]
        bounds = {
            "TPU_CHIPS_PER_PROCESS_BOUNDS": _CHIP_BOUNDS[share],
            "TPU_PROCESS_BOUNDS": "1,1,1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        }
        return [{"TPU_VISIBLE_CHIPS": part, **bounds} for part in parts]
    return [{}] * count


def gpus(devices: pathlib.Path = pathlib.Path("/dev")) -> list[str]:
    """Lists the NVIDIA GPUs that this process may use."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name]
    found = [entry.name for entry in devices.glob("nvidia*")]
    return _numbers(found, r"nvidia(\d+)")


def tpu_chips(devices: pathlib.Path = pathlib.Path("/dev")) -> list[str]:
    """Lists the TPU chips that this process may use."""
    given = os.environ.get("TPU_VISIBLE_CHIPS")
    if given is not None:
        return [name for name in given.split(",") if name]
    found = _numbers([entry.name for entry in devices.glob("accel*")], r"accel(\d+)")
    if not found:  # newer generations have groups, and libtpu numbers their chips from 0
        groups = _numbers([entry.name for entry in devices.glob("vfio/*")], r"(\d+)")
        found = [str(index) for index in range(len(groups))]
    return found


def _numbers(names: list[str], pattern: str) -> list[str]:
    matches = [re.fullmatch(pattern, name) for name in names]
    return [str(n) for n in sorted(int(match[1]) for match in matches if match)]
