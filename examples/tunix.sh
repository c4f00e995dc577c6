#!/usr/bin/env bash
# google-tunix's GRPO with the projection, in an environment of its own, made and filled once:
# ./examples/tunix.sh [VENV]  (.venv-tunix; a relative path is from the repository's root)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/environment.sh"
NSPO_VENV="${1:-.venv-tunix}"
environment examples/requirements-tunix.txt
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
python examples/tunix_grpo.py
