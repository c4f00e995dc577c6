# The shell scripts source this file: it goes to the repository's root, and `environment` activates
# .venv, which it makes and fills once. A requirements file that changed is installed again. PYTHON
# picks the interpreter, NSPO_VENV another place for the environment.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

fail() { # fail WORD ...
  echo "error: $*" >&2
  exit 1
}

usage() { # usage SCRIPT: prints the comment that it begins with
  sed -n '2,/^set/p' "scripts/$(basename "$1")" | sed '$d; s/^# \{0,1\}//'
}

environment() { # environment REQUIREMENTS_FILE
  local venv="${NSPO_VENV:-.venv}" requirements="$1" python mark
  python="${PYTHON:-}"
  if [ -z "$python" ]; then
    for candidate in python3.11 python3.12 python3.13 python3; do
      if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python="$candidate"
        break
      fi
    done
  fi
  if [ -z "$python" ]; then
    fail "no Python 3.11 or newer found. Install one, or name it: PYTHON=/path/to/python $0"
  fi
  if [ ! -x "$venv/bin/python" ]; then
    echo "making an environment in $venv with $("$python" --version)"
    "$python" -m venv "$venv" || exit 1
  fi
  mark="$venv/.installed-$(basename "$requirements")"
  if ! cat requirements.txt "$requirements" | cmp -s - "$mark"; then
    echo "installing $requirements into $venv (a few minutes, once)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" || exit 1
    cat requirements.txt "$requirements" >"$mark"
  fi
  # shellcheck disable=SC1091
  source "$venv/bin/activate"
}
