#!/usr/bin/env bash
# The main job at the smallest scale, 2 to 4 minutes on two CPU cores after installation: pretrain a
# helpful-only model, calibrate its null space, align it in several ways, report the cost of each.
# Results stay in runs/demo; a second call continues or shows them.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
environment requirements.txt
python -m scripts.sweep --config=configs/sweeps/demo.py --workdir=runs/demo "$@"
