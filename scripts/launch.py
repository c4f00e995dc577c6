"""The common start of every script: flags, compile cache, and errors that a person can read."""

from collections.abc import Callable
import logging
import os
import pathlib
import signal
import sys
import traceback
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
import jax
from ml_collections import config_flags

from nspo_jax import distributed, preemption, rewards, run_directory
from scripts import command_line, config_files

# A user can cause or meet these errors, and fix them: each is shown as a paragraph. Any other error
# is a bug and keeps its traceback.
EXPECTED_ERRORS = (ValueError, FloatingPointError, OSError, rewards.JudgeError)

flags.disclaim_key_flags()  # a script's --help also shows the flags that this module defines
_config_kinds: list[str] = []
_outputs: list[tuple[flags.FlagHolder, bool]] = []


def define_config(kind: str = "run", *, required: bool = True) -> flags.FlagHolder:
    """Defines the `--config=FILE.py[:ARM]` flag and its `--config.field=value` overrides.

    `kind` is the key of `config_files.CONFIG_KINDS` that the config must have.
    """
    _, what, _ = config_files.CONFIG_KINDS[kind]
    try:
        holder = config_flags.DEFINE_config_file(
            "config", None, f"Config file of {what}.", lock_config=True
        )
    except flags.Error as error:  # the definition reads --flagfile, which may be wrong
        _refuse(str(error))
    if required:
        flags.mark_flag_as_required("config")
    _config_kinds.append(kind)
    return holder


def define_output(
    name: str, help: str, *, file: bool = False, default: str | None = None
) -> flags.FlagHolder:
    """Defines a flag that names the script's output, which `check_outputs` checks at the start.

    The output is a file if `file`, else a directory.
    """
    holder = flags.DEFINE_string(name, default, help)
    _outputs.append((holder, file))
    return holder


def check_outputs() -> None:
    """Raises OSError for a flag of `define_output` whose path cannot be written."""
    for holder, file in _outputs:
        if not holder.value:
            continue
        path = pathlib.Path(holder.value)
        if file and path.is_dir():
            raise IsADirectoryError(
                f"--{holder.name} is {str(path)!r}, a directory; expected the file to write."
            )
        if file:
            run_directory.check_directory(path.parent, f"The directory of --{holder.name}")
        else:
            run_directory.check_directory(path, f"--{holder.name}")


def define_processes(*, dry_run: bool = True) -> None:
    """Defines the flags of a script that several processes run: see `nspo_jax.distributed`.

    Such a script also treats SIGTERM as a preemption: it saves, and its exit status is 0. With
    `dry_run` there is a flag of this name too.
    """
    flags.DEFINE_string("coordinator", None, "host:port of process 0, to start processes by hand.")
    flags.DEFINE_integer(
        "processes", None, "Number of processes; 1 keeps this one alone. Default: TPU pods, Slurm "
        "and GKE are recognised.", lower_bound=1,
    )  # fmt: skip
    flags.DEFINE_integer("process", None, "Number of this process, from 0.", lower_bound=0)
    if dry_run:
        flags.DEFINE_bool(
            "dry_run", False, "Compile for virtual devices, print memory and work, and stop."
        )


def run(
    main: Callable[..., None],
    interrupted: str = "stopped; the same command continues from the last checkpoint",
    argument: str = "",
) -> None:
    """Runs a script's main under absl, with a persistent compile cache.

    Args:
      main: the script's main function.
      interrupted: the message after Ctrl-C.
      argument: the name of the one argument beside flags, which main takes; "": there is none.
    """

    def start(argv: list[str]) -> None:
        if argument and len(argv) != 2:
            _refuse(f"Expected one {argument} beside flags, got {argv[1:]}.")
        if not argument and len(argv) > 1:
            _refuse(f"Not a flag: {' '.join(argv[1:])}. Flags start with --.")
        absl_logging.set_verbosity(absl_logging.ERROR)
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "runs/.jax_cache")
        jax.config.update("jax_compilation_cache_dir", cache)
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        try:
            check_outputs()
            dry = "dry_run" in flags.FLAGS and flags.FLAGS.dry_run
            if "coordinator" in flags.FLAGS and not dry:
                _join_processes()
            main(*argv[1:])
        except preemption.PreemptedError as stop:
            print(f"\n{stop} The same command continues.", file=sys.stderr)
        except (Exception, KeyboardInterrupt) as error:
            code = _explain(error, interrupted)
            if distributed.several():
                distributed.fail(error)
            sys.exit(code)

    # libraries log a page a checkpoint through absl; only their errors are shown
    log = logging.getLogger("nspo_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    flags.DEFINE_bool("traceback", False, "Show the traceback of an expected error.")
    app.run(start, flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    try:
        return command_line.parse(argv, _config_kinds[0] if _config_kinds else "run")
    except command_line.MistakeError as mistake:
        _refuse(str(mistake))


def _refuse(message: str) -> NoReturn:
    """Ends a script whose command line has a mistake in it."""
    print(f"\nerror: {message}\n(--help explains the flags)", file=sys.stderr)
    sys.exit(1)


def _no_device(error: BaseException) -> str:
    """Explains that jax cannot start on the device that it was told to use; "" for other errors."""
    if not isinstance(error, RuntimeError | AssertionError) or distributed.several():
        return ""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as cause:
        told = os.environ.get("JAX_PLATFORMS", "")
        why = f" ({str(cause).split(' (set JAX_PLATFORMS')[0]})" if str(cause) else ""
        return (
            f"JAX_PLATFORMS is {told!r}, and jax finds no such device here{why}. Set "
            "JAX_PLATFORMS=cpu, unset it to take what there is, or install jax for that device."
        )
    return ""


def _join_processes() -> None:
    values = flags.FLAGS.coordinator, flags.FLAGS.processes, flags.FLAGS.process
    distributed.initialize(*values)
    if distributed.several() and not distributed.is_primary():
        logging.getLogger("nspo_jax").setLevel(logging.WARNING)

    def stop(*_) -> None:
        print("\nSIGTERM: stopped; nothing was under way to save.", file=sys.stderr)
        if distributed.several():
            distributed.leave(0)
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)  # during the steps nspo_jax.preemption takes the signal


def _explain(error: BaseException, interrupted: str) -> int:
    """Explains the error that ended a script, and returns the exit status.

    A bug is raised again, unless other processes wait for this one.
    """
    if isinstance(error, KeyboardInterrupt):
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    if distributed.is_lost_connection(error):
        print(f"\nLost another process: {str(error).splitlines()[0]}", file=sys.stderr)
    elif isinstance(error, EXPECTED_ERRORS) and not flags.FLAGS.traceback:
        print(f"\nerror: {error}\n(--traceback shows where)", file=sys.stderr)
    elif not flags.FLAGS.traceback and (told := _no_device(error)):
        print(f"\nerror: {told}\n(--traceback shows where)", file=sys.stderr)
    elif distributed.several():
        traceback.print_exception(error)
    else:
        raise error
    return 1
