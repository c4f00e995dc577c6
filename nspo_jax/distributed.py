"""Communication of several processes that run one program: one a host on TPU, else a GPU or host.

Every process runs the same lines. A function that is marked *collective* waits for the others: all
processes must reach it, in the same order, so it never stands behind a condition that only some of
them meet. With one process it costs nothing. The workspace and the workdir are on a file system
that all processes see; process 0 writes there, and the others wait for it.
"""

import json
import logging
import os
import re
import socket
import sys
import time
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from nspo_jax import liveness

# jax.distributed ends all processes when one has been silent for so long; `liveness` is faster.
HEARTBEAT_SECONDS = 30
# The beginning of jax's errors from XLA, gRPC and Gloo, such as "UNAVAILABLE: Socket closed".
_STATUS = re.compile(r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|INTERNAL|UNAVAILABLE|UNKNOWN): ")
_log = logging.getLogger(__name__)


def initialize(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the other processes, if there are any; call it before any other use of jax's devices.

    Without arguments the environment decides: on a TPU pod, and under Slurm, Open MPI or a GKE
    job, jax.distributed finds the others by itself; anywhere else this process is alone.

    Args:
      coordinator: "host:port" of process 0, any free port.
      processes: the number of processes; 1: this one is alone, whatever the environment says.
      process: the number of this process, from 0.

    Raises:
      ValueError: if only some of the three are given, or they do not fit together.
      RuntimeError: from jax, if the others do not come.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    if processes == 1 and not coordinator and not process:
        return
    if any(value is not None for value in given.values()):
        _check(given)
    try:
        jax.distributed.initialize(
            coordinator, processes, process, heartbeat_timeout_seconds=HEARTBEAT_SECONDS
        )
    except ValueError as error:
        # this is jax's message in an environment that it does not know
        if coordinator is not None or "coordinator_address should be defined" not in str(error):
            raise
        return
    if several():
        _watch_others(coordinator)
        _log.info("process %d of %d is up", jax.process_index(), jax.process_count())


def _watch_others(coordinator: str | None) -> None:
    """Connects every process to process 0, which tells its address. Collective."""
    text, server = "", liveness.listen() if is_primary() else None
    if server is not None:
        name = socket.gethostname()
        hosts = [coordinator.rsplit(":", 1)[0]] if coordinator else [name, *_addresses(name)]
        text = json.dumps([hosts, server.getsockname()[1]])
    text = broadcast_text(text)
    if server is not None:
        liveness.LivenessWatch(_end_with, {}, server)
        return
    hosts, port = json.loads(text)
    link = liveness.connect(hosts, port, jax.process_index())
    if link is not None:
        liveness.LivenessWatch(_end_with, {0: link})


def _addresses(name: str) -> list[str]:
    try:
        return [socket.gethostbyname(name)]
    except OSError:  # the host does not know its own name
        return []


def _end_with(dead: int) -> None:
    """Ends this process because another died."""
    print(
        f"\nerror: Process {dead} of {jax.process_count()} died, so this one "
        f"({jax.process_index()}) stops too. The output of process {dead} says why. Run the same "
        "command again in every process: the run continues from its last checkpoint.",
        file=sys.stderr,
    )
    leave(1)


def several() -> bool:
    """Tells whether there are other processes; a process that is alone asks for no device."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _check(given: dict[str, Any]) -> None:
    said = " ".join(f"--{name}={value}" for name, value in given.items() if value is not None)
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if missing:
        raise ValueError(
            f"{said} without {' and '.join(missing)}: every process needs all three, for example "
            "--coordinator=localhost:9876 --processes=2 --process=0."
        )
    if not re.fullmatch(r"\S+:\d+", given["coordinator"]):
        raise ValueError(f"--coordinator is {given['coordinator']!r}; expected host:port.")
    if not 0 <= given["process"] < given["processes"]:
        raise ValueError(
            f"{said}: processes are numbered from 0 to {given['processes'] - 1}. Give each of the "
            "commands its own --process."
        )


def is_primary() -> bool:
    """Tells whether this is the process that writes files and speaks."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits until every process is at the barrier of this name. Collective."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def primary_says(flag: bool) -> bool:
    """Returns process 0's answer in every process. Collective.

    A file system may look different on two hosts, so one process decides what all must do alike.
    """
    if not several():
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.bool_(flag)))


def any_process(flag: bool) -> bool:
    """Tells every process whether the flag is True in any of them. Collective."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def own_rows(count: int) -> slice:
    """Returns this process's share of `count` rows; all shares in order make up all rows.

    Raises:
      ValueError: if the rows do not divide over the processes.
    """
    processes = jax.process_count()
    if count % processes:
        raise ValueError(
            f"{count} rows do not divide over {processes} processes: make rl.prompts and "
            f"data.benign_fraction give a multiple of {processes}."
        )
    share = count // processes
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def gather_rows(tree: Any) -> Any:
    """Joins every process's host arrays [rows, ...], in the order of the processes. Collective.

    Each process gets all rows, bit for bit: bytes travel, so that no dtype is converted.
    """
    if jax.process_count() == 1:
        return tree

    def gather(array: np.ndarray) -> np.ndarray:
        array = np.ascontiguousarray(array)
        rows = array.view(np.uint8).reshape(len(array), -1)
        joined = np.asarray(multihost_utils.process_allgather(rows, tiled=True))
        return np.ascontiguousarray(joined).view(array.dtype).reshape(-1, *array.shape[1:])

    return jax.tree.map(gather, tree)


def broadcast_text(text: str) -> str:
    """Returns process 0's text, of any length, in every process. Collective."""
    if not several():
        return text
    raw = np.frombuffer(text.encode(), np.uint8)
    (size,) = np.asarray(multihost_utils.broadcast_one_to_all(np.array([len(raw)])))
    # padded, so that texts of all lengths travel through few compiled programs
    line = np.zeros(max(2048, 1 << (int(size) - 1).bit_length()), np.uint8)
    if is_primary():
        line[: len(raw)] = raw
    shared = np.asarray(multihost_utils.broadcast_one_to_all(line)).astype(np.uint8)
    return shared[: int(size)].tobytes().decode()


def gather_texts(text: str) -> list[str]:
    """Returns every process's text, cut to 1000 bytes, in the processes' order. Collective."""
    line = np.zeros((1, 1000), np.uint8)
    raw = np.frombuffer(text.encode()[: line.shape[1]], np.uint8)
    line[0, : len(raw)] = raw
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in gather_rows(line)]


def put(tree: Any, shardings: Any) -> Any:
    """Places arrays by their shardings. Collective.

    Args:
      tree: arrays that are global already, or whole and equal in every process.
      shardings: one sharding for every leaf, or one for all.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, shardings)

    def place(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        leaf = np.asarray(leaf)  # each process keeps its part of the leaf; no bytes travel
        return jax.make_array_from_process_local_data(sharding, leaf, leaf.shape)

    if isinstance(shardings, jax.sharding.Sharding):
        return jax.tree.map(lambda leaf: place(leaf, shardings), tree)
    return jax.tree.map(place, tree, shardings)


def fetch(tree: Any) -> Any:
    """Fetches every array whole to every host. Collective if one is sharded over processes."""

    def get(leaf: Any) -> Any:
        whole = not isinstance(leaf, jax.Array) or (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        )
        return leaf if whole else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(get, tree))


def is_lost_connection(error: BaseException | None) -> bool:
    """Tells whether an error, or one that led to it, comes from the death of another process."""
    while several() and error is not None:
        if _STATUS.match(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def fail(error: BaseException) -> None:
    """Ends this process for an error that has been printed, without telling the others.

    A normal exit would wait for them, while they wait in the step that this one left. If the error
    is only that another process is gone, this one first waits to hear which.
    """
    if is_lost_connection(error):
        time.sleep(2 * HEARTBEAT_SECONDS)
    leave(1)


def leave(code: int) -> None:
    """Ends this process at once, with an exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
