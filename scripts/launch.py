"""How every script starts: flags, compile cache, and errors a person can read."""

from collections.abc import Callable
import logging
import os
import sys

from absl import app, flags
import jax
from ml_collections import config_flags

# What a user can get wrong, or meet, and fix: shown as a paragraph. Anything else is a bug, and
# keeps its traceback.
EXPECTED_ERRORS = (ValueError, FileNotFoundError, FloatingPointError, OSError)


def define_config(default: str | None = None) -> flags.FlagHolder:
    """The `--config=FILE.py[:ARM]` flag and its `--config.field=value` overrides."""
    return config_flags.DEFINE_config_file(
        "config", default, "Config file, such as configs/tiny.py:nspo.", lock_config=True
    )


def run(main: Callable[[], None]) -> None:
    """Runs a script's main under absl, with a persistent compile cache."""

    def start(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"Not a flag: {' '.join(argv[1:])}. Flags start with --.")
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "runs/.jax_cache")
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        try:
            main()
        except EXPECTED_ERRORS as error:
            if flags.FLAGS.traceback:
                raise
            print(f"\nerror: {error}\n(--traceback shows where)", file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print("\nstopped; the same command continues from the last checkpoint", file=sys.stderr)
            sys.exit(130)

    # absl leaves the root logger at warnings, so that libraries stay quiet; ours says what it does
    log = logging.getLogger("nspo_jax")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    flags.DEFINE_bool("traceback", False, "Show the traceback of an expected error.")
    try:
        app.run(start)
    except ValueError as error:  # a config file refused its argument while flags were parsed
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(1)
