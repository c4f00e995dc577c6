"""How every script starts: flags, compile cache, and errors a person can read."""

from collections.abc import Callable
import logging
import os
import signal
import sys
import traceback

from absl import app, flags
from absl import logging as absl_logging
import jax
from ml_collections import config_flags

from nspo_jax import distributed, preemption, rewards

# What a user can get wrong, or meet, and fix: shown as a paragraph. Anything else is a bug, and
# keeps its traceback.
EXPECTED_ERRORS = (ValueError, FloatingPointError, OSError, rewards.JudgeError)

flags.disclaim_key_flags()  # --help of a script shows the flags defined here for it


def define_config(default: str | None = None) -> flags.FlagHolder:
    """The `--config=FILE.py[:ARM]` flag and its `--config.field=value` overrides."""
    holder = config_flags.DEFINE_config_file(
        "config", default, "Config file, such as configs/tiny.py:nspo.", lock_config=True
    )
    if default is None:
        flags.mark_flag_as_required("config")
    return holder


def define_processes() -> None:
    """The flags of a script that several processes run together: see `nspo_jax.distributed`.

    Such a script also takes SIGTERM for a preemption: it saves, and its exit status is 0.
    """
    flags.DEFINE_string("coordinator", None, "host:port of process 0, to start processes by hand.")
    flags.DEFINE_integer(
        "processes", None, "How many there are; 1 keeps this one alone. Default: TPU pods, Slurm "
        "and GKE are recognised.", lower_bound=1,
    )  # fmt: skip
    flags.DEFINE_integer("process", None, "Which of them this is, from 0.", lower_bound=0)
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
      main: the script.
      interrupted: what is said upon Ctrl-C.
      argument: the name of the one argument beside flags, which main takes; "": there is none.
    """

    def start(argv: list[str]) -> None:
        if argument and len(argv) != 2:
            raise app.UsageError(f"Expected one {argument} beside flags, got {argv[1:]}.")
        if not argument and len(argv) > 1:
            raise app.UsageError(f"Not a flag: {' '.join(argv[1:])}. Flags start with --.")
        absl_logging.set_verbosity(absl_logging.ERROR)
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "runs/.jax_cache")
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        try:
            if "coordinator" in flags.FLAGS and not flags.FLAGS.dry_run:
                _join_processes()
            main(*argv[1:])
        except preemption.PreemptedError as stop:
            print(f"\n{stop} The same command continues.", file=sys.stderr)
        except (Exception, KeyboardInterrupt) as error:
            code = _explain(error, interrupted)
            if distributed.several():
                distributed.fail(error)
            sys.exit(code)

    # libraries log through absl, a page a checkpoint: errors are enough of that
    log = logging.getLogger("nspo_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    flags.DEFINE_bool("traceback", False, "Show the traceback of an expected error.")
    app.run(start, flags_parser=_parse_flags)


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

    signal.signal(signal.SIGTERM, stop)  # outside the steps; within them, see nspo_jax.preemption


def _explain(error: BaseException, interrupted: str) -> int:
    """Says what ended a script, unless it is a bug with nobody waiting; returns the exit status."""
    if isinstance(error, KeyboardInterrupt):
        print(f"\n{interrupted}", file=sys.stderr)
        return 130
    if distributed.is_lost_connection(error):
        print(f"\nLost another process: {str(error).splitlines()[0]}", file=sys.stderr)
    elif isinstance(error, EXPECTED_ERRORS) and not flags.FLAGS.traceback:
        print(f"\nerror: {error}\n(--traceback shows where)", file=sys.stderr)
    elif distributed.several():
        traceback.print_exception(error)
    else:
        raise error
    return 1


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses flags, and says in a paragraph what is wrong with them."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, AttributeError, KeyError, TypeError) as error:
        chain: list[BaseException] = [error]
        while chain[-1].__context__ is not None:
            chain.append(chain[-1].__context__)
        if isinstance(chain[-1], KeyError):  # ml_collections' own words name the nearest field
            hint = next((str(e.args[0]) for e in chain if "Did you mean" in str(e.args)), "")
            hint = hint.strip("\"'").split("\\n")[-1].split("\n")[-1]
            message = (
                f"The config has no field {chain[-1]}. {hint}{' ' * bool(hint)}"
                "configs/default.py lists every field with a comment."
            )
        elif "parsing config file" in str(error):
            message = str(chain[-1])  # what the config file itself raised, such as an unknown arm
        else:
            message = str(error)
        print(f"\nerror: {message}\n(--help explains the flags)", file=sys.stderr)
        sys.exit(1)
