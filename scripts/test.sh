#!/usr/bin/env bash
# The tests, in an environment that the script makes: ./scripts/test.sh [--fast] [PYTEST ARGUMENTS ...]
# --fast leaves out whole runs, child processes and comparisons with torch (the marker slow).
set -euo pipefail
chosen=()
if [ "${1:-}" = --fast ]; then
  chosen=(-m "not slow")
  shift
fi
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment requirements-test.txt
ruff check .
ruff format --check .
basedpyright --level error
# over a hundred processes import the package: without files of byte code each compiles its source
unset PYTHONDONTWRITEBYTECODE
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
# many tests run in processes of their own and compile the same programs, most of them small; they
# share them all, which halves the compilations of the tests after the first ones
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$VIRTUAL_ENV/jax_cache}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}"
# two files run at a time: a file's tests share fixtures, and a laptop has two cores
python -m pytest -n 2 --dist loadfile --no-loadscope-reorder ${chosen[@]+"${chosen[@]}"} "$@"
