"""The child process that confines and watches one program; `execution` starts it by its path.

It needs the standard library alone and is never imported. In order: it takes new namespaces, builds
a small file system of read-only directories, forks the program, which gives up all rights and runs
under limits, and watches its time and memory. When it ends, every process of the program has ended.

A program proves that its checks ran to their end by a token. The process that runs the program gets
the token, and the checks themselves, only when the program's own code has run.

Memory that no process maps (SysV segments, open files of memfd_create) is not counted.
"""

import ctypes
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import types
from typing import Any, NoReturn

TOKEN_BYTES = 32
READY, TOKEN, RAISED = b"ready", b"token ", b"raised "
TIME, MEMORY = "time", "memory"  # a watcher's reasons to end a program
CANNOT = "cannot"  # the key of a report that a program could not be confined
FIRST_UID, UIDS = 61184, 4336  # systemd's range of users that exist for one process only

_NEW_MOUNTS, _NEW_UTS, _NEW_IPC = 0x00020000, 0x04000000, 0x08000000
_NEW_USER, _NEW_PIDS, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_NOSUID, _NODEV, _BIND, _RECURSIVE, _PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000  # the number on every architecture
_ATTR_READ_ONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
# of prctl
_DEATH_SIGNAL, _KEEP_CAPABILITIES, _SUBREAPER, _NO_NEW_PRIVILEGES = 1, 8, 36, 38
_CAPABILITIES_3, _READ_ALL = 0x20080522, 1 << 2  # CAP_DAC_READ_SEARCH
_LOOK = 0.1  # seconds between two looks at the memory
_TMPFS = "nr_inodes=2000,size="
_DEVICES = ("null", "zero", "random", "urandom")
_libc = ctypes.CDLL(None, use_errno=True)


class _StopError(Exception):
    """The parent's request to end the program."""


def main() -> None:
    """Runs the program that comes over standard input, a socket; reports to standard error."""
    settings = json.loads(sys.argv[1])
    control, verdict = os.dup(0), os.dup(2)
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(1, 2)
    signal.signal(signal.SIGTERM, _stop)
    _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != settings["parent"]:
        return
    try:
        if settings["isolated"]:
            _take_namespaces()
            _build_root(settings)
        else:
            _call("prctl", _SUBREAPER, 1, 0, 0, 0)
            settings["limits"]["processes"] += _count_tasks()
        with open(f"/proc/self/task/{os.getpid()}/children"):
            pass
        report = _watch(_start(settings, control, verdict), settings)
    except _StopError:
        report = {}
    except OSError as error:
        report = {CANNOT: str(error)}
    os.write(verdict, json.dumps(report).encode())


def _stop(*_: Any) -> NoReturn:
    raise _StopError


def _call(name: str, *arguments: Any) -> None:
    """Calls a function of libc; raises OSError with its name."""
    given = [ctypes.c_ulong(a & (1 << 64) - 1) if isinstance(a, int) else a for a in arguments]
    if getattr(_libc, name)(*given) < 0:
        code = ctypes.get_errno()
        shown = " ".join(str(a) for a in arguments if isinstance(a, str | int | bytes))
        raise OSError(code, f"{os.strerror(code)} in {name} {shown}")


def _take_namespaces() -> None:
    """Takes new namespaces of mounts, processes, network, IPC and host name; a user needs a fifth.

    Root needs no user namespace: the program becomes a user that nobody is, see `_give_up_rights`.
    """
    user, group = os.geteuid(), os.getegid()
    flags = _NEW_MOUNTS | _NEW_PIDS | _NEW_NETWORK | _NEW_IPC | _NEW_UTS
    _call("unshare", flags | (_NEW_USER if user else 0))
    if user:
        maps = {"setgroups": "deny", "uid_map": f"{user} {user} 1", "gid_map": f"{group} {group} 1"}
        for name, text in maps.items():
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def _build_root(settings: dict[str, Any]) -> None:
    """Builds the program's file system at `directory`: libraries to read, and a small /tmp."""
    root = settings["directory"]
    _call("mount", None, b"/", None, _RECURSIVE | _PRIVATE, None)
    _mount_tmpfs(root, 1 << 20, 0o755)
    os.mkdir(f"{root}/tmp")  # before the others: a Python may lie below /tmp
    _mount_tmpfs(f"{root}/tmp", settings["limits"]["file_bytes"], 0o1777)
    for path in settings["visible"]:
        _bind(path, root + path)
        _set_attributes(root + path, _ATTR_READ_ONLY | _ATTR_NOSUID | _ATTR_NODEV, _AT_RECURSIVE)
    for name, target in settings["links"].items():
        os.symlink(target, f"{root}/{name}")
    for name in _DEVICES:
        _bind(f"/dev/{name}", f"{root}/dev/{name}")
    os.symlink("/tmp", f"{root}/dev/shm")
    _set_attributes(root, _ATTR_READ_ONLY | _ATTR_NOSUID, 0)


def _mount_tmpfs(path: str, size: int, mode: int) -> None:
    options = f"{_TMPFS}{size},mode={mode:o}".encode()
    _call("mount", b"tmpfs", path.encode(), b"tmpfs", _NOSUID | _NODEV, options)


def _bind(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o444))
    _call("mount", source.encode(), target.encode(), None, _BIND | _RECURSIVE, None)


def _set_attributes(path: str, attributes: int, flags: int) -> None:
    """Sets attributes of a mount, and with _AT_RECURSIVE of all mounts below it; Linux 5.12."""
    wanted = struct.pack("QQQQ", attributes, 0, 0, 0)
    _call("syscall", _MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, wanted, len(wanted))


def _start(settings: dict[str, Any], control: int, verdict: int) -> int:
    """Starts the program, with namespaces below a process 1; returns the child's id."""
    child = os.fork()
    if child:
        os.close(control)
        return child
    os.close(verdict)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    status = 1
    try:
        if settings["isolated"]:
            status = _be_first(settings, control)
        else:
            _run(settings, control)
    finally:
        os._exit(status)


def _be_first(settings: dict[str, Any], control: int) -> int:
    """Starts the program as a child of process 1, and waits for it; the kernel ends the others."""
    _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    program = os.fork()
    if not program:
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            _run(settings, control)
        finally:
            os._exit(1)
    os.close(control)
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == program:
            return _shell_status(status)


def _shell_status(status: int) -> int:
    """Returns an exit status as shells do: 128 and the signal, if one ended the process."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _run(settings: dict[str, Any], control: int) -> None:
    """Executes the program without rights and under limits; tells the parent why it cannot."""
    channel = socket.socket(fileno=control)
    try:
        _prepare(settings)
    except OSError as error:
        told = json.dumps(["The child process", f"cannot be confined: {error}"])
        channel.sendall(RAISED + told.encode() + b"\n")
        return
    _execute(channel)


def _prepare(settings: dict[str, Any]) -> None:
    """Enters the program's directory, gives up all rights and sets the limits."""
    if settings["isolated"]:
        os.chroot(settings["directory"])
    os.chdir("/tmp" if settings["isolated"] else settings["directory"])
    os.umask(0o077)
    if not settings["isolated"] and os.geteuid() == 0:
        os.chown(".", _own_uid(), _own_uid())
    sys.executable, sys.argv = settings["executable"], ["solution"]
    sys.path += settings["packages"]
    _give_up_rights(reads_all=not settings["isolated"])
    _call("prctl", _DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)  # a change of user has unset it
    _set_limits(settings["limits"])


def _own_uid() -> int:
    """Returns the id of a user that owns nothing: the watcher's process decides it."""
    return FIRST_UID + os.getpid() % UIDS


def _give_up_rights(*, reads_all: bool) -> None:
    """Gives up root's id and all capabilities, for good.

    With `reads_all` root's program still reads what root does, such as a Python in /root.
    """
    header, rights = struct.pack("Ii", _CAPABILITIES_3, 0), ctypes.create_string_buffer(24)
    kept = 0
    if os.geteuid() == 0:
        if reads_all:
            _call("capget", header, rights)
            kept = struct.unpack("6I", rights.raw)[1] & _READ_ALL
            _call("prctl", _KEEP_CAPABILITIES, 1, 0, 0, 0)
        user = _own_uid()
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _call("capset", header, struct.pack("6I", kept, kept, 0, 0, 0, 0))


def _set_limits(limits: dict[str, Any]) -> None:
    seconds = int(limits["seconds"]) + 1
    for name, value in {
        "AS": limits["memory"],
        "CPU": seconds,
        "FSIZE": limits["file_bytes"],
        "NOFILE": limits["open_files"],
        "CORE": 0,
        "MSGQUEUE": 0,
        "NPROC": limits["processes"],
    }.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))


def _execute(control: socket.socket) -> NoReturn:
    """Executes the solution, asks for checks and token, executes the checks, tells the token.

    Every function that stands between the checks and the token is a local: the solution may have
    replaced the builtin of that name.
    """
    send, receive, leave = control.sendall, control.recv, os._exit
    execute, translate, number, size = exec, compile, int.from_bytes, len

    def read() -> bytes:
        missing, parts = 8, b""
        while size(parts) < missing:
            part = receive(min_(missing - size(parts), 1 << 16))
            if not part:
                leave(1)
            parts += part
            if missing == 8 and size(parts) == 8:
                missing += number(parts, "big")
        return parts[8:]

    min_ = min
    module = types.ModuleType("solution")
    # not "__main__" by name, as in the published evaluators: `if __name__ == ...` does not run
    sys.modules["solution"] = sys.modules["__main__"] = module
    try:
        execute(translate(read().decode(), "<solution>", "exec"), module.__dict__)
        send(READY + b"\n")
        given = read()
        checks = translate(given[TOKEN_BYTES:].decode(), "<checks>", "exec")
        execute(checks, module.__dict__)
        send(TOKEN + given[:TOKEN_BYTES] + b"\n")
    except BaseException as error:
        told = json.dumps([type(error).__name__, str(error)[:500]])
        send(RAISED + told.encode() + b"\n")
        leave(1)
    leave(0)


def _watch(child: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Waits for the child within its time and memory, and ends all that it started."""
    limits = settings["limits"]
    deadline = time.monotonic() + limits["seconds"]
    poll, reason = select.poll(), ""
    handle = os.pidfd_open(child)
    poll.register(handle, select.POLLIN)
    try:
        while not reason:
            left = deadline - time.monotonic()
            if poll.poll(1000 * max(min(left, _LOOK), 0)):
                break
            if left <= 0:
                reason = TIME
            elif _memory(_descendants(child)) > limits["memory"]:
                reason = MEMORY
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what follows ends by itself
        status = _end(child, settings["isolated"])
    return {"reason": reason, "status": status}


def _end(child: int, isolated: bool) -> int:
    """Ends a child with all that it started, and returns its exit status."""
    status = 1
    if isolated:
        os.kill(child, signal.SIGKILL)  # the kernel ends the namespace before waitpid returns
        return _shell_status(os.waitpid(child, 0)[1])
    while True:
        for process in _descendants(os.getpid())[1:]:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                status = _shell_status(found[1]) if found[0] == child else status
        except ChildProcessError:
            return status
        time.sleep(0.001)


def _descendants(process: int) -> list[int]:
    """Returns a process and all that descend from it, as far as they still live."""
    found, todo = [], [process]
    while todo:
        found.append(todo.pop())
        try:
            for thread in os.listdir(f"/proc/{found[-1]}/task"):
                with open(f"/proc/{found[-1]}/task/{thread}/children") as file:
                    todo += [int(word) for word in file.read().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
    return found


def _memory(processes: list[int]) -> int:
    """Returns the bytes that processes hold together; shared pages count once in all."""
    total = 0
    for process in processes:
        try:
            with open(f"/proc/{process}/smaps_rollup") as file:
                lines = [line.split() for line in file if line.startswith("Pss:")]
            total += 1024 * int(lines[0][1]) if lines else 0
        except (FileNotFoundError, ProcessLookupError):
            continue
        except PermissionError:  # it runs a program that it may not read: its pages count in full
            with open(f"/proc/{process}/statm") as file:
                total += resource.getpagesize() * int(file.read().split()[1])
    return total


def _count_tasks() -> int:
    """Returns the processes and threads of this user, which RLIMIT_NPROC counts; root's is new."""
    user, count = os.geteuid(), 0
    for name in os.listdir("/proc") if user else ():
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return count


if __name__ == "__main__":
    main()
